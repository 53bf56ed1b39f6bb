"""How results reach the screen and the disk."""

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from fcn.errors import ConfigError

# rich is imported where it is used: its import changes Python's random state.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

WIDTH = 110  # of tables, where there is no terminal
LOCK = ".lock"  # of the folder that a process works in


def make_console(*, quiet: bool = False, log: Path | None = None) -> "Console":
    """Return a console that prints text as it is; without a terminal, wide enough for tables.

    Args:
        quiet: print nothing.
        log: a file to which everything is added too, without colours and progress bars.
    """
    from rich.console import Console, NewLine
    from rich.control import Control

    class LoggedConsole(Console):
        def print(self, *objects: Any, **form: Any) -> None:
            super().print(*objects, **form)
            of_progress = any(isinstance(o, Control | NewLine) for o in objects)
            if log is not None and not (quiet or of_progress):
                with open(log, "a", encoding="utf-8") as file:
                    text = Console(**plain, file=file, width=WIDTH, force_terminal=False)
                    text.print(*objects, **form)

    plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
    return LoggedConsole(**plain, quiet=quiet, width=None if sys.stdout.isatty() else WIDTH)


def warn(console: "Console", text: str) -> None:
    """Print a warning, if there is any text."""
    if text:
        console.print(f"warning: {text}", style="yellow")


def size_of(log: Path | None) -> int:
    """Return the bytes of a log; 0 if there is none."""
    return log.stat().st_size if log is not None and log.is_file() else 0


def add_line(log: Path | None, text: str, before: int) -> None:
    """Add a line to a log if this command has written to it: it has more than `before` bytes."""
    if log is not None and size_of(log) > before:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")


def progress(console: "Console") -> "Progress":
    """Return a progress bar with counts and time left, which disappears when it is done.

    Without a terminal nothing is shown.
    """
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    hidden = not console.is_terminal
    return Progress(*columns, console=console, transient=True, disable=hidden)


def percent(value: float | None) -> str:
    """Return a rate of 0..1 in percent, without the sign; "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def refuse_overwriting(paths: Iterable[Path], overwrite: bool, setting: str = "output") -> None:
    """Check that files to be written do not exist yet, before anything is computed.

    Args:
        paths: the files.
        overwrite: the user allows it.
        setting: the key that says where they are written, for the error.

    Raises:
        ConfigError: one of them exists.
    """
    found = next((path for path in paths if path.exists()), None)
    if found is not None and not overwrite:
        raise ConfigError(f"{found} exists; choose another {setting}, or overwrite=true")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file that atomically replaces `path` once it is complete.

    The content is on the disk before the file is renamed, so an older file survives whatever
    interrupts the writing.
    """
    temporary = path.with_name(f"{path.name}.part")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno and error.filename is None:  # such as a full disk
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_settings(settings: Mapping[str, Any], folder: Path, **notes: str) -> None:
    """Write .hydra as Hydra does, for `--config-path FOLDER/.hydra`; nothing without Hydra.

    Hydra itself would write it before the folder is checked, over that of another run.

    Args:
        settings: of the command.
        folder: where it works.
        notes: more entries of hydra.yaml, from which no settings are read.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        contents: dict[str, Any] = {
            "config": settings,
            "hydra": {"hydra": hydra, **notes},
            "overrides": hydra.overrides.task,
        }
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            OmegaConf.save(OmegaConf.create(content), folder / ".hydra" / f"{name}.yaml")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder while this process works in it.

    The lock file is never removed: a process that had it open would hold a lock that no other
    process sees.

    Raises:
        ConfigError: another process works in it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{folder}: another process works there at this moment; wait until it is done, or "
            "choose another folder"
        ) from None
    except (NotImplementedError, OSError):  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()


def is_live(folder: Path) -> bool:
    """Return True if a process works in a folder."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with locked(folder):
            return False
    except ConfigError:
        return True
