"""Segment images: a checkpoint and photographs in, masks out."""

from fcn.cli import run

if __name__ == "__main__":
    run("predict")
