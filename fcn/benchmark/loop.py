"""What the training loop adds to a step: loading, hooks, logs, curves."""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from torch.utils.data import DataLoader

from fcn.benchmark.contestants import default
from fcn.benchmark.measure import LEAST_ROUNDS, Pace, Progress, Samples, Task, synchronize, timed
from fcn.benchmark.nets import speed
from fcn.benchmark.runner import Steps, batch, low_rate
from fcn.config import BenchmarkConfig, TrainConfig, TrainerConfig
from fcn.models.fcn import FCN
from fcn.training.callbacks import History
from fcn.training.diagnosis import Diagnosis
from fcn.training.module import SegmentationModule
from fcn.training.trainer import make_trainer, quieten

WARM = 2  # steps that do not count


def loop(
    cfg: BenchmarkConfig, device: torch.device, pace: Pace, progress: Progress
) -> dict[str, Any]:
    """Steps as scripts/train.py runs them, with its callbacks, against the bare steps, in turns.

    Returns: "trainer" and "bare", each the speed of a step; "slower", of the two.
    """
    quieten()
    contestant = default(cfg, device)
    held = batch((cfg.batch_size, cfg.size[0], cfg.size[1]), cfg.num_classes, device)
    bare = Steps(contestant, cfg, device)
    turns = Turns(partial(bare, *held), device, pace, progress)
    steps = WARM + max(pace.rounds, LEAST_ROUNDS)
    train = TrainConfig(
        data=cfg.data,
        recipe=cfg.recipe,
        trainer=TrainerConfig(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=1,
            max_steps=steps,
            limit_val_batches=0,
            precision=contestant.precision,
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        classes = [str(label) for label in range(cfg.num_classes)]
        quiet, last = Console(quiet=True), Path(folder) / "last.ckpt"
        own: list[Callback] = [History(quiet), Diagnosis(last, classes, quiet)]
        trainer = make_trainer(train, Path(folder), own, classes, False)
        trainer.callbacks.append(turns)  # type: ignore[attr-defined]  # last: others count as its own
        image, target = (part.cpu() for part in held)
        samples: Any = [(image, target)] * steps
        batches: Any = DataLoader(samples, batch_size=None)
        net = contestant.net()
        assert isinstance(net, FCN)
        module = SegmentationModule(net, cfg.recipe, low_rate(cfg), cfg.seed, about={})
        trainer.fit(module, train_dataloaders=batches, val_dataloaders=batches)
    taken = {"trainer": Samples.of(turns.trainer), "bare": Samples.of(turns.bare)}
    return {
        "size": cfg.size,
        "batch": cfg.batch_size,
        **{name: speed(samples, cfg.batch_size) for name, samples in taken.items()},
        "slower": taken["trainer"].median / taken["bare"].median,
    }


class Turns(Callback):
    """A bare step after each of the trainer's; both are timed, from the third on."""

    def __init__(self, step: Task, device: torch.device, pace: Pace, progress: Progress) -> None:
        self.step, self.device, self.pace, self.progress = step, device, pace, progress
        self.trainer: list[float] = []
        self.bare: list[float] = []
        self.started = self.before = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = self.before = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        synchronize(self.device)
        theirs = time.perf_counter() - self.before
        own = timed(self.step, 1, self.device)
        if batch_idx >= WARM:
            self.trainer.append(theirs)
            self.bare.append(own)
        elapsed = time.perf_counter() - self.started
        self.progress(self.pace.share(len(self.bare), elapsed))
        if self.pace.over(len(self.bare), elapsed):
            trainer.should_stop = True
        self.before = time.perf_counter()
