"""Nothing lost: checkpoints that are whole or not there, and stops that leave one behind."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loops.progress import _ProcessedTracker
from pytorch_lightning.plugins.io import TorchCheckpointIO
from rich.console import Console

from fcn.config import Interrupted, RecipeConfig, UserError
from fcn.inference import checkpoint
from fcn.models.fcn import FCN

STOPPING = (signal.SIGINT, signal.SIGTERM)
REQUEUE = signal.SIGUSR1  # what a SLURM job asks for with --signal=USR1@90, as Lightning has it


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, through to the disk, and then moves it there.

    Whatever ends the process or fills the disk meanwhile, the checkpoint of before stays whole.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Raises: UserError: it cannot be written, and why."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            cause = error if isinstance(error, OSError) else error.__context__ or error
            reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
            before = "the one before it is whole" if path.is_file() else "there is none before it"
            raise UserError(
                f"{path}: cannot be written ({reason}); {before}; mend that, and go on with "
                "resume=last"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


class Interruption(Callback):
    """SIGINT and SIGTERM let the step finish, and the validation that is due; then it saves.

    As a context around `trainer.fit`. A second signal of the kind acts at once. On several ranks
    one that has heard is enough: all stop after the same step. In a SLURM job SIGUSR1 does so too,
    and has the job queued again; Lightning's own handler would save in the middle of a step.
    """

    def __init__(self, last: Path, console: Console) -> None:
        self.last, self.console = last, console
        self.heard = 0  # the number of the signal
        self.numbers = (*STOPPING, REQUEUE) if "SLURM_JOB_ID" in os.environ else STOPPING

    def __enter__(self) -> Self:
        handlers = {number: signal.getsignal(number) for number in self.numbers}
        # What this process was started to ignore, it goes on ignoring.
        self.before = {n: h for n, h in handlers.items() if h not in (None, signal.SIG_IGN)}
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _listen(self) -> None:
        for number in self.before:
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = number
        signal.signal(number, self.before[signal.Signals(number)])
        name = signal.Signals(number).name
        self.console.print(f"{name}: finishing the step; again to stop at once", highlight=False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.heard:
            self._listen()  # Lightning has put its own before ours

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Here all that belongs to the step before is done, its validation included."""
        if trainer.fit_loop.total_batch_idx % trainer.accumulate_grad_batches == 0:
            self._stop_if_heard(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_if_heard(trainer)

    def _stop_if_heard(self, trainer: pl.Trainer) -> None:
        """Raises: Interrupted: some process of the run has heard a signal; the step is saved."""
        number = self.heard
        if trainer.world_size > 1:
            heard = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(heard, reduce_op="max"))
        if not number:
            return
        save_between_steps(trainer, self.last)
        again = queue_again() if number == REQUEUE and trainer.is_global_zero else ""
        raise Interrupted(
            f"interrupted by {signal.Signals(number).name} after step {trainer.global_step}, "
            f"which {self.last} holds; resume=last goes on with it{again}",
            128 + number,
        )


def queue_again() -> str:
    """Asks SLURM for this job once more. Returns: what to say where that fails."""
    command = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return f" (the job is not queued again: {error})"
    return f" (the job is not queued again: {done.stderr.strip()})" if done.returncode else ""


def save_between_steps(trainer: pl.Trainer, path: Path) -> None:
    """Saves, within a step that has changed nothing yet, the state after the one before it.

    Lightning counts batches as ready that have begun, which a resumed run would then leave out.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for count in (progress.total, progress.current):
        assert isinstance(count, _ProcessedTracker)
        count.completed -= count.completed % trainer.accumulate_grad_batches
        count.ready = count.started = count.processed = count.completed
    trainer.save_checkpoint(path)


def newest_checkpoint(folder: Path, console: Console) -> Path:
    """The newest checkpoint of a run that can be read; says which it had to skip.

    Raises: UserError: there is none.
    """
    for unfinished in (folder / "checkpoints").glob("*.part"):
        unfinished.unlink(missing_ok=True)  # of a process that was killed as it wrote
    found = (folder / "checkpoints").glob("*.ckpt")
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            checkpoint.read(path)
        except checkpoint.CheckpointError as error:
            console.print(f"skipped, as damaged: {error}", style="yellow", highlight=False)
        else:
            return path
    raise UserError(
        f"resume=last: no checkpoint that can be read in {folder / 'checkpoints'}; name another "
        "run's folder, or leave resume out to start anew"
    )


def refuse_full_disk(folder: Path, model: FCN, recipe: RecipeConfig) -> None:
    """Raises: UserError: the disk below `folder` has no room for what the run will write."""
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    states = {"sgd": 1, "adamw": 2}[recipe.optimizer] + (recipe.ema_decay is not None)
    # best.ckpt, last.ckpt and the one being written, each with the optimiser's state; the weights.
    needed = 3 * weights * (1 + states) + weights
    folder.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_size for path in folder.glob("checkpoints/*.ckpt"))  # to be replaced
    free = shutil.disk_usage(folder).free + there
    if free < needed:
        raise UserError(
            f"{folder}: {free / 2**20:,.0f} MiB free, but the checkpoints of this run take about "
            f"{needed / 2**20:,.0f} MiB; free some, or set hydra.run.dir= to another disk"
        )
