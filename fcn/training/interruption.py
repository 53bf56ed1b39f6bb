"""Stopping without loss: atomic checkpoints, and signals that end a run after a whole step.

Lightning's own checkpoints pass through the system's temporary folder, and its signal handlers may
save in the middle of a step; neither allows to resume a run bit for bit.
"""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loops.progress import _ProcessedTracker
from pytorch_lightning.plugins.io import TorchCheckpointIO
from rich.console import Console

from fcn.errors import Interrupted, UserError
from fcn.output import atomic_write

SIGNALS = [signal.SIGINT, signal.SIGTERM]


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, to the disk, and then renames it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            UserError: the disk is full, or the folder cannot be written to.
        """
        path = Path(path)
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
                "space and use resume=last"
            ) from error


class Interruption(Callback):
    """Stops a run after the current step, and the validation that is due, when a signal comes.

    As a context around `trainer.fit`. SIGINT and SIGTERM are handled, in a SLURM job SIGUSR1 too. A
    second signal has its usual effect at once. Of several processes it is enough that one receives
    it: all stop after the same step.

    Args:
        last: the checkpoint to save.
        console: where to say so.
    """

    def __init__(self, last: Path, console: Console) -> None:
        self.last, self.console = last, console
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
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _install(self) -> None:
        for number in self.before:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self.before[signal.Signals(number)])
        name = signal.Signals(number).name
        self.console.print(f"{name}: stopping after this step; a second one stops at once")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers again, over Lightning's."""
        if not self.received:
            self._install()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop between two steps: everything that belongs to the last one is done by now."""
        if trainer.fit_loop.total_batch_idx % trainer.accumulate_grad_batches == 0:
            self._stop_if_received(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop before the evaluation."""
        self._stop_if_received(trainer)

    def _stop_if_received(self, trainer: pl.Trainer) -> None:
        number = self.received
        if trainer.world_size > 1:
            received = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(received, reduce_op="max"))
        if not number:
            return
        save_between_steps(trainer, self.last)
        raise Interrupted(
            f"interrupted by {signal.Signals(number).name} after step {trainer.global_step}, saved "
            f"in {self.last}; resume={self.last} continues",
            128 + number,
        )


def save_between_steps(trainer: pl.Trainer, path: Path) -> None:
    """Save the state between two steps, from within one that has changed nothing yet.

    Lightning has counted its batch already, which a resumed run would then leave out.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for count in (progress.total, progress.current):
        assert isinstance(count, _ProcessedTracker)
        count.completed -= count.completed % trainer.accumulate_grad_batches
        count.ready = count.started = count.processed = count.completed
    trainer.save_checkpoint(path)
