"""Train a fully convolutional network; --help lists all choices and settings."""

from fcn.cli import run

if __name__ == "__main__":
    run("train")
