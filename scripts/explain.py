"""Explain deconvolutional layers: a page with every number computed on the spot."""

from fcn.cli import run

if __name__ == "__main__":
    run("explain")
