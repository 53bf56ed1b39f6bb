"""Trains an FCN: `python scripts/train.py [key=value ...]`; `--help` lists the choices."""

import os
import sys
from pathlib import Path

from fcn.app import quoted, rank, run
from fcn.config import ConfigError, TrainConfig
from fcn.recorded import first_overrides, read_overrides


def main(cfg: TrainConfig) -> None:
    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from fcn.training.run import train
    from fcn.training.stages import train_stages
    from fcn.training.trainer import process_rank

    folder = Path(HydraConfig.get().runtime.output_dir)
    console = Console(quiet=process_rank() > 0, markup=False)
    (train_stages if cfg.stages else train)(cfg, folder, console)


def continued(arguments: list[str]) -> list[str]:
    """The command line that goes on with a run, in its folder, with its settings.

    `resume=last` is the newest run below outputs/train, or that of hydra.run.dir;
    `resume=RUN/checkpoints/NAME.ckpt` is RUN. What the run was started with comes first, so that
    the new command line need only name what is to differ. So it is with `rerun=RUN`, which begins
    anew in a folder of its own.
    Raises: ConfigError: there is no run to go on with.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = [a for a in arguments if "=" in a and not a.startswith("-")]
    keys = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(given)}
    resume, rerun = keys.get("resume"), keys.get("rerun")
    queued_again = "SLURM_RESTART_COUNT" in os.environ and "hydra.run.dir" in keys
    if queued_again and any(Path(str(keys["hydra.run.dir"])).glob("**/checkpoints/*.ckpt")):
        arguments = [a for a in arguments if not a.startswith(("resume=", "rerun="))]
        resume, rerun, arguments = "last", None, [*arguments, "resume=last"]
    if rerun is not None:
        if resume is not None:
            raise ConfigError("rerun starts from the beginning, resume goes on: give one of them")
        first = by_key(first_overrides(Path(str(rerun))))
        if "stages" in first:
            raise ConfigError(f"rerun={rerun}: one of several stages; start those anew together")
        own = {"rerun", "resume", "hydra.run.dir", *keys}
        return [*(override for key, override in first.items() if key not in own), *arguments]
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
    before = by_key(read_overrides(folder / ".hydra" / "overrides.yaml"))
    before.pop("rerun", None)
    if "stages" not in before:
        before.pop("model.init_from", None)  # a run goes on with its own weights
    if "hydra.run.dir" not in keys:
        arguments = [*arguments, f"hydra.run.dir={quoted(folder)}"]
    return [*(o for key, o in before.items() if key not in keys), *arguments]


def by_key(overrides: list[str]) -> dict[str, str]:
    return {override.partition("=")[0].lstrip("+"): override for override in overrides}


def leaving_nothing(arguments: list[str]) -> list[str]:
    """The command line of a process that is not the run's first, whose folder alone matters.

    Processes that torchrun or SLURM start would each make a folder, named by their own clock.
    Raises: ConfigError: they must all reach one folder, and it is not said which.
    """
    keys = {argument.partition("=")[0] for argument in arguments}
    if rank() == 0 or "hydra.output_subdir" in keys:  # as Lightning's launcher gives it
        return arguments
    if "hydra.run.dir" in keys:
        return [*arguments, "hydra.output_subdir=null"]
    if "stages" in keys:
        raise ConfigError("stages in several processes want hydra.run.dir=, which all can reach")
    return [*arguments, "hydra.output_subdir=null", "hydra.run.dir=."]


def newest_run() -> Path:
    runs = sorted(Path("outputs/train").glob("*"), key=lambda run: run.stat().st_mtime)
    runs = [run for run in runs if any(run.glob("**/checkpoints/*.ckpt"))]
    if not runs:
        raise ConfigError("resume=last: no run with a checkpoint below outputs/train; give a path")
    return runs[-1]


def complete_command_line() -> None:
    sys.argv[1:] = leaving_nothing(continued(sys.argv[1:]))


if __name__ == "__main__":
    run("train", main, complete_command_line)
