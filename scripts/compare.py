"""Compare runs: a table, a plot and one HTML page."""

from fcn.cli import run

if __name__ == "__main__":
    run("compare")
