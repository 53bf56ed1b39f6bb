"""The processes of one run: they start together, and none outlives another.

Lightning's launcher starts processes 1, 2, ... from the first and ends all when one of these fails,
but not when the first does; torchrun and SLURM's srun look after theirs. Whatever starts them, one
that fails says why, and the others, which only notice that it is gone, keep quiet.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch.distributed as dist

from fcn.app import PATIENCE
from fcn.config import ConfigError, UserError

_FIRST = "FCN_FIRST_PROCESS"  # tells the processes that Lightning starts the pid of the first
_started: list[subprocess.Popen] = []  # by the launcher of a trainer, for all later trainers too


class LostProcess(UserError):
    """Another process of the run is gone."""


def follow_first() -> None:
    """In a process that Lightning's launcher started: ends it once the first is gone.

    It might wait for the first for half an hour else. It ends without a word: the first has said
    why, or was killed.
    """
    first = os.environ.pop(_FIRST, None)
    if first is None:
        return

    def watch() -> None:
        while os.getppid() == int(first):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="follow-first").start()


def check_world(trainer: pl.Trainer) -> None:
    """Raises: ConfigError: another number of processes was started than is to train."""
    started = int(os.environ.get("WORLD_SIZE", trainer.world_size))
    if started != trainer.world_size:
        raise ConfigError(
            f"{started} processes were started, but trainer.devices x trainer.num_nodes is "
            f"{trainer.world_size}; trainer.devices= are those of one machine"
        )


@contextmanager
def together(trainer: pl.Trainer) -> Iterator[None]:
    """Around what the processes of a run do with one another.

    Raises: LostProcess: another one is gone, and has not said why.
        SystemExit: it has.
    """
    os.environ[_FIRST] = str(os.getpid())
    try:
        yield
    except Exception as error:
        if isinstance(error, dist.DistBackendError) or "gloo/transport" in str(error):
            raise _loss(trainer, error) from error
        raise
    finally:
        del os.environ[_FIRST]
        _started.extend(_launched(trainer))


def _launched(trainer: pl.Trainer) -> list[subprocess.Popen]:
    return getattr(trainer.strategy.launcher, "procs", [])


def _loss(trainer: pl.Trainer, error: Exception) -> BaseException:
    """Why a process was lost, as far as can be known here: by its exit code, if it was our own."""
    for _ in range(int(10 * PATIENCE)):  # others' launchers end this process meanwhile
        for number, process in enumerate([*_started, *_launched(trainer)], 1):
            code = process.poll()
            if code is not None and code < 0:
                return LostProcess(
                    f"process {number} of the run (pid {process.pid}) was ended by "
                    f"{signal.Signals(-code).name}, and the run with it; resume=last goes on"
                )
            if code:
                return SystemExit(1)
        time.sleep(0.1)
    text = " ".join(str(error).split()).partition(". ")[0]
    return LostProcess(
        f"another process of the run is gone; it says why, unless it was killed ({text}); "
        "resume=last goes on"
    )
