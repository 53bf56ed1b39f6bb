"""Graceful shutdown: atomic checkpoints, and signals that end a run after a whole step.

Lightning's own checkpoints pass through the system's temporary folder, and its signal handlers may
save in the middle of a step; neither allows to resume a run bit for bit.
"""

import os
import signal
import time
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO
from rich.console import Console

from fcn.errors import CheckpointError, ConfigError, Interrupted, UserError
from fcn.output import atomic_write
from fcn.processes import Processes

SIGNALS = [signal.SIGINT, signal.SIGTERM]
DATA_PATIENCE = 20  # seconds to wait for data after a signal


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints atomically (temporary file, fsync, rename)."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; a full disk or a read-only folder is a UserError."""
        path = Path(path)
        for name, state in checkpoint.get("callbacks", {}).items():
            _check_loadable(name, state)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            cause: BaseException = error
            while not isinstance(cause, OSError) and cause.__context__ is not None:
                cause = cause.__context__
            reason = str(cause).splitlines()[0]
            raise UserError(
                f"{path}: cannot be written ({reason}); earlier checkpoints are intact: free some "
                f"space and use resume={path.parent.parent}"
            ) from error

    def load_checkpoint(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        """Read a checkpoint; a damaged one is a CheckpointError."""
        try:
            return super().load_checkpoint(*arguments, **keywords)
        except Exception as error:  # a damaged file makes its reader raise almost anything
            path = Path(str(arguments[0]))
            others = [other for other in sorted(path.parent.glob("*.ckpt")) if other != path]
            advice = f"; resume={others[0]} continues from another" if others else ""
            raise CheckpointError(
                f"{path}: damaged ({error or type(error).__name__}){advice}"
            ) from error


def _check_loadable(callback: str, state: Any) -> None:
    """Raise a ConfigError if a callback's state could not be read again."""
    try:
        torch.save(state, stream := BytesIO())
        stream.seek(0)
        torch.load(stream, weights_only=True)
    except Exception as error:  # pickle's and torch's readers raise almost anything
        raise ConfigError(
            f"callbacks: {callback}: its state_dict cannot be read back ({type(error).__name__}); "
            "return numbers, texts, tensors, and lists or dicts of them; float(...) for NumPy's"
        ) from error


class Interruption(Callback):
    """Stops a run after the current step, and the validation that is due, when a signal comes.

    A context manager around `trainer.fit`. It handles SIGINT and SIGTERM, in SLURM jobs also
    SIGUSR1. A second signal stops at once. Of several processes it is enough that one receives it:
    all stop after the same step. The state is saved as `last`.
    """

    def __init__(self, last: Path, console: Console, processes: Processes) -> None:
        self.last, self.console, self.processes = last, console, processes
        self.trainer: pl.Trainer | None = None  # while it trains
        self.in_step, self.step_started = False, -1  # the batch that began last
        self.heard = 0.0  # when the first signal came
        self.received = 0  # the number of the signal
        in_slurm = "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1")  # Windows has none
        self.signals = [*SIGNALS, signal.SIGUSR1] if in_slurm else SIGNALS

    def __enter__(self) -> Self:
        handlers = {number: signal.getsignal(number) for number in self.signals}
        # A signal that this process was started to ignore stays ignored.
        self.before = {n: h for n, h in handlers.items() if h not in (None, signal.SIG_IGN)}
        self._install()
        return self

    def __exit__(self, *_: object) -> None:
        if self.received:
            _end_alarm()
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _install(self) -> None:
        for number in self.before:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            # torchrun passes on what its processes have received from the terminal themselves.
            if "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self.heard < 2:
                return
            self._stop_at_once(number)
        self.heard = time.monotonic()
        self.received = number
        name = signal.Signals(number).name
        self.console.print(f"{name}: stopping after this step; a second one stops at once")
        if hasattr(signal, "SIGALRM"):
            self.seen_batch = self.step_started
            signal.signal(signal.SIGALRM, self._give_up)
            signal.setitimer(signal.ITIMER_REAL, DATA_PATIENCE, DATA_PATIENCE)

    def _stop_at_once(self, number: int) -> None:
        kept = f"{self.last} is kept" if self.last.is_file() else "nothing is saved"
        raise Interrupted(
            f"stopped at once by {signal.Signals(number).name}: this step is lost; {kept}",
            128 + number,
        )

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        """Stop waiting for data that may never come; a step that is under way is left alone."""
        if self.trainer is None or self.in_step or self.step_started != self.seen_batch:
            self.seen_batch = self.step_started
        elif self.processes.world > 1:  # saving takes all of them
            self._stop_at_once(self.received)
        else:
            self._save_and_stop(self.trainer, self.received)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers again, over Lightning's."""
        self._install()
        # Lightning asks all processes for its own SIGTERM at every step, and waits for the device
        # to answer; there is no public way to leave it out.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore
        self.trainer = trainer

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop between two steps: everything that belongs to the last one is done by now."""
        self.in_step, self.step_started = True, trainer.fit_loop.total_batch_idx
        whole = self.step_started % trainer.accumulate_grad_batches == 0
        if whole and (number := self.processes.any_signal(self.received)):
            self._save_and_stop(trainer, number)

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Note that the next batch is waited for."""
        self.in_step = False

    on_validation_end = on_train_batch_end

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that a validation, too, is to be finished."""
        self.in_step = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop before the evaluation."""
        if number := self.processes.any_signal(self.received, at_once=True):
            self._save_and_stop(trainer, number)

    def _save_and_stop(self, trainer: pl.Trainer, number: int) -> None:
        _end_alarm()
        save_between_steps(trainer, self.last)
        raise Interrupted(
            f"interrupted by {signal.Signals(number).name} after step {trainer.global_step}, saved "
            f"in {self.last}; resume={self.last.parent.parent} continues",
            128 + number,
        )


def _end_alarm() -> None:
    if hasattr(signal, "SIGALRM"):  # Windows has none
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def save_between_steps(trainer: pl.Trainer, path: Path) -> None:
    """Save the state after the last whole step, from within one that has changed nothing yet.

    Lightning has counted the next batch already: uncorrected, a resumed run would skip it.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    for count in (progress.total, progress.current):
        count.completed -= count.completed % trainer.accumulate_grad_batches
        count.ready = count.started = count.processed = count.completed
    trainer.save_checkpoint(path)
