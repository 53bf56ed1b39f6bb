"""What every script shares: Hydra in front, memory kept, and errors that a user can read."""

import argparse
import ctypes
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fcn import config
from fcn.checks.values import check_values
from fcn.messages import explain, unknown_key, unreadable

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
CONFIGS = str(config.REPOSITORY / "configs")
DEBUG = re.compile(r"\+*debug=(true|yes|on|y|1)", re.IGNORECASE)  # what Hydra takes for true
PATIENCE = 5.0  # seconds that a process which fails leaves the run's first one to fail alike


def run(name: str, main: Callable[[Any], None], prepare: Callable[[], None] = lambda: None) -> None:
    """Composes `configs/NAME.yaml` with the command line and calls `main` on its dataclass.

    `prepare` runs before, to look at or complete the command line.

    An error that the user can mend ends the program with one line on stderr and exit code 1, and
    so does any other; `debug=true` shows the traceback. Where several processes of a run fail
    alike, the first alone says so: it ends, and whatever started the others ends them.
    """
    config.register()
    keep_memory()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to here instead of printing them
    argparse.ArgumentParser.error = _refuse_flag  # type: ignore # Hydra's parser

    failures: list[Exception] = []
    process = os.getpid()

    @hydra.main(config_path=CONFIGS, config_name=name, version_base="1.3")
    def entry(cfg: Any) -> None:
        try:
            if HydraConfig.get().run.dir == "":
                raise config.ConfigError("hydra.run.dir is empty; name a folder, or leave it out")
            settings = OmegaConf.to_object(cfg)
            _refuse_unknown(settings, name)
            check_values(settings)
            main(settings)
        except config.Interrupted as error:  # a sweep ends with it
            if rank() == 0:
                print(error, file=sys.stderr)
            else:
                time.sleep(PATIENCE)
            raise SystemExit(error.code) from error
        except Exception as error:
            if os.getpid() != process:  # a sweep's launcher has sent the job elsewhere
                raise
            failures.append(error)  # past Hydra, which would print more around it

    try:
        _refuse_bare_words(sys.argv[1:])
        prepare()
        entry()
        if failures:
            raise failures[0]
    except SystemExit:
        raise
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if rank() > 0:
            time.sleep(PATIENCE)
        if any(map(DEBUG.fullmatch, sys.argv)):
            raise
        text = explain(error, name)
        if isinstance(error, BrokenPipeError):  # whatever read our words has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if isinstance(error, OSError) and not (failures or isinstance(error, HydraException)):
            text = f"hydra.run.dir: no folder can be made there ({text}); name another"
        if len(failures) > 1:
            text += f" (and {len(failures) - 1} more runs failed)"
        print(f"error: {config.printable(text)}", file=sys.stderr)
        sys.exit(1)


def keep_memory() -> None:
    """Has glibc, where that is the C library, keep what is freed for what is allocated next.

    Otherwise every tensor of more than 32 MB comes as new pages that the kernel has to clear, which
    takes longer than most that is done with them: a third of a training step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(parameter, value)


class Tidy(Callback):
    """Puts a run's folder back as it was, if Hydra's record of the settings is all that is new.

    So a command that is refused leaves no folder, and takes nothing from a run that is there: what
    that was trained with is what `resume` goes by. Named in the configs of scripts with a folder.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self.watches = config.hydra.output_subdir is not None  # a run's other processes keep none
        self.folder = Path(config.hydra.run.dir).absolute()
        self.record = self.folder / (config.hydra.output_subdir or ".hydra")
        above = (self.folder, *self.folder.parents)
        self.new = [folder for folder in above if not folder.exists()]  # innermost first
        self.others = self._others()
        recorded = self.record.iterdir() if self.record.is_dir() else ()
        self.recorded = {path: path.read_bytes() for path in recorded}

    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        if not self.watches or self._others() != self.others:
            return
        shutil.rmtree(self.record, ignore_errors=True)
        if self.recorded:
            self.record.mkdir(exist_ok=True)  # another rank may be at it too
        for path, content in self.recorded.items():
            path.write_bytes(content)
        with suppress(OSError):  # another run may have begun beside it
            for folder in self.new:
                folder.rmdir()

    def _others(self) -> dict[Path, int]:
        """When each thing in the folder but the record was changed; a folder is, by a new file."""
        if not self.folder.is_dir():
            return {}
        there = (path for path in self.folder.iterdir() if path != self.record)
        return {path: path.lstat().st_mtime_ns for path in there}


def rank() -> int:
    """Of this process among those of a run, 0 if it is alone; as torchrun, Lightning, SLURM say."""
    keys = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((int(os.environ[key]) for key in keys if key in os.environ), 0)


def quoted(path: Path) -> str:
    """A path as a value on Hydra's command line, whatever characters it has."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _refuse_bare_words(arguments: list[str]) -> None:
    """Raises: ConfigError: an argument that is neither key=value nor a flag, or a flag's own."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if not re.match(r"[-~]|[^=]+=", argument) and not before.startswith("-"):
            raise config.ConfigError(unreadable(argument))


def _refuse_flag(_: argparse.ArgumentParser, message: str) -> NoReturn:
    """In place of argparse's own, which prints the usage and exits with 2."""
    raise config.ConfigError(f"{message}; flags come before or after all key=value, see --help")


def _refuse_unknown(settings: Any, name: str, key: str = "") -> None:
    """Raises: ConfigError: a key that + has added, but nothing reads."""
    known = {field.name for field in fields(settings)}
    for field, value in vars(settings).items():
        own = f"{key}.{field}".lstrip(".")
        if field not in known:
            raise config.ConfigError(unknown_key(own, name))
        if is_dataclass(value):
            _refuse_unknown(value, name, own)
