"""Trains an FCN: `python scripts/train.py [key=value ...]`; `--help` lists the choices."""

from pathlib import Path

from fcn.app import run
from fcn.config import TrainConfig


def main(cfg: TrainConfig) -> None:
    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from fcn.training.run import train

    train(cfg, Path(HydraConfig.get().runtime.output_dir), Console())


if __name__ == "__main__":
    run("train", main)
