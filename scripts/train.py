"""Trains an FCN: `python scripts/train.py [key=value ...]`; `--help` lists the choices."""

import sys
from pathlib import Path

from fcn.app import run
from fcn.config import ConfigError, TrainConfig


def main(cfg: TrainConfig) -> None:
    from hydra.core.hydra_config import HydraConfig
    from pytorch_lightning.utilities import rank_zero_only
    from rich.console import Console

    from fcn.training.run import train
    from fcn.training.stages import train_stages

    folder = Path(HydraConfig.get().runtime.output_dir)
    (train_stages if cfg.stages else train)(cfg, folder, Console(quiet=rank_zero_only.rank > 0))


def folder_to_resume(arguments: list[str]) -> list[str]:
    """A resumed run goes on in its own folder: the override that sends Hydra there, or none.

    `resume=last` is the newest run below outputs/train; `resume=RUN/checkpoints/NAME.ckpt` is RUN.
    Raises: ConfigError: there is no run to go on with.
    """
    keys = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    resume = keys.get("resume", "null")
    if resume == "null" or "hydra.run.dir" in keys:
        return []
    if resume != "last":
        checkpoints = Path(resume).parent
        own = checkpoints.name == "checkpoints"
        return [f"hydra.run.dir='{checkpoints.parent}'"] if own else []
    runs = sorted(Path("outputs/train").glob("*"), key=lambda run: run.stat().st_mtime)
    runs = [run for run in runs if any(run.glob("**/checkpoints/last.ckpt"))]
    if not runs:
        raise ConfigError("resume=last: no run with a checkpoint below outputs/train; give a path")
    return [f"hydra.run.dir='{runs[-1]}'"]


if __name__ == "__main__":
    run("train", main, lambda: sys.argv.extend(folder_to_resume(sys.argv[1:])))
