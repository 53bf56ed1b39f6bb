"""Trains an FCN: `python scripts/train.py [key=value ...]`; `--help` lists the choices."""

import sys
from pathlib import Path

from fcn.app import quoted, run
from fcn.config import ConfigError, TrainConfig
from fcn.recorded import read_overrides


def main(cfg: TrainConfig) -> None:
    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from fcn.training.run import process_rank, train
    from fcn.training.stages import train_stages

    folder = Path(HydraConfig.get().runtime.output_dir)
    console = Console(quiet=process_rank() > 0, markup=False)
    (train_stages if cfg.stages else train)(cfg, folder, console)


def continued(arguments: list[str]) -> list[str]:
    """The command line that goes on with a run: in its folder, with its settings.

    `resume=last` is the newest run below outputs/train, or that of hydra.run.dir;
    `resume=RUN/checkpoints/NAME.ckpt` is RUN. What the run was started with comes first, so that
    the new command line need only name what is to differ.
    Raises: ConfigError: there is no run to go on with.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = [a for a in arguments if "=" in a and not a.startswith("-")]
    keys = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(given)}
    resume = keys.get("resume")
    if resume is None:
        return arguments
    if {"-m", "--multirun"} & set(arguments):
        raise ConfigError("resume goes on with one run; leave out --multirun")
    if "hydra.run.dir" in keys:
        folder = Path(str(keys["hydra.run.dir"]))
    elif resume == "last":
        folder = newest_run()
    elif Path(str(resume)).parent.name == "checkpoints":
        folder = Path(str(resume)).parent.parent
    else:
        return arguments
    started_with = read_overrides(folder / ".hydra" / "overrides.yaml")
    before = {o.partition("=")[0].lstrip("+"): o for o in started_with}
    if "stages" not in before:
        before.pop("model.init_from", None)  # a run goes on with its own weights
    if "hydra.run.dir" not in keys:
        arguments = [*arguments, f"hydra.run.dir={quoted(folder)}"]
    return [*(o for key, o in before.items() if key not in keys), *arguments]


def newest_run() -> Path:
    runs = sorted(Path("outputs/train").glob("*"), key=lambda run: run.stat().st_mtime)
    runs = [run for run in runs if any(run.glob("**/checkpoints/last.ckpt"))]
    if not runs:
        raise ConfigError("resume=last: no run with a checkpoint below outputs/train; give a path")
    return runs[-1]


def complete_command_line() -> None:
    sys.argv[1:] = continued(sys.argv[1:])


if __name__ == "__main__":
    run("train", main, complete_command_line)
