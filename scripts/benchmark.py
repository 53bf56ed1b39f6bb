"""Measure how fast this project is on this machine; --quick takes about two minutes."""

import sys

from fcn.cli import run

if __name__ == "__main__":
    sys.argv = ["quick=true" if argument == "--quick" else argument for argument in sys.argv]
    run("benchmark")
