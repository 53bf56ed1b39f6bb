"""Fetch, read and check a data set, and report what is in it."""

from fcn.cli import run

if __name__ == "__main__":
    run("prepare_data")
