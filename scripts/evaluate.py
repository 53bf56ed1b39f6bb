"""Evaluate a checkpoint on a data set."""

from fcn.cli import run

if __name__ == "__main__":
    run("evaluate")
