"""Explain deconvolutional layers: topics run as notebooks, and an explorer."""

from fcn.cli import run

if __name__ == "__main__":
    run("explain")
