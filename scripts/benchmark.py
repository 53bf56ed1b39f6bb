"""Measure how fast this project is on this machine; quick=true takes about two minutes."""

from fcn.cli import run

if __name__ == "__main__":
    run("benchmark")
