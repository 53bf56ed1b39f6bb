"""Lightning's Trainer as this project runs it: which callbacks, where, and how precisely."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    Callback,
    EMAWeightAveraging,
    LearningRateMonitor,
)
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from fcn.config import ConfigError, TrainConfig, TrainerConfig
from fcn.inference.evaluation import computes_bf16, pick_device
from fcn.training.callbacks import Kernels, Panels, ProgressBar, checkpoints
from fcn.training.safekeeping import AtomicCheckpoints


def make_trainer(
    cfg: TrainConfig, folder: Path, own: list[Callback], classes: list[str], progress_bar: bool
) -> pl.Trainer:
    """Lightning's Trainer with this run's arguments, its `own` callbacks, and those of every run.

    Raises: ConfigError: Lightning refuses an argument.
    """
    callbacks: list[Callback] = [
        *own,
        Panels(classes),
        Kernels(classes),
        LearningRateMonitor("step"),
    ]
    if cfg.recipe.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=cfg.recipe.ema_decay))
    progress_bar = progress_bar and cfg.trainer.enable_progress_bar
    if progress_bar:
        callbacks.append(ProgressBar(leave=False))
    callbacks += checkpoints(folder / "checkpoints")
    arguments = asdict(cfg.trainer)
    accumulate = arguments["accumulate_grad_batches"]
    device = device_of(cfg.trainer)
    arguments["precision"] = precision_of(cfg.trainer)
    arguments["sync_batchnorm"] &= device.type == "cuda"  # torch has it for no other device
    arguments["val_check_interval"] = min(
        arguments["val_check_interval"] or cfg.recipe.val_every * accumulate,
        cfg.trainer.max_steps * accumulate,
    )
    arguments["log_every_n_steps"] = min(cfg.trainer.log_every_n_steps, cfg.trainer.max_steps)
    arguments["enable_progress_bar"] = progress_bar
    with lightnings_refusals(MisconfigurationException, ValueError, TypeError, ImportError):
        return pl.Trainer(
            **arguments,
            check_val_every_n_epoch=None,  # val_check_interval counts over the run, not an epoch
            use_distributed_sampler=False,  # the samplers of fcn.data share out by rank themselves
            callbacks=callbacks,
            plugins=[AtomicCheckpoints()],
            default_root_dir=folder,
            logger=TensorBoardLogger(folder, name=None, version=""),
            enable_model_summary=False,
        )


@contextmanager
def lightnings_refusals(*kinds: type[Exception]) -> Iterator[None]:
    """Raises: ConfigError: with Lightning's own words, where it raises one of `kinds`."""
    try:
        yield
    except kinds as error:
        raise ConfigError(f"trainer.*, as Lightning has it: {error}") from error


def device_of(trainer: TrainerConfig) -> torch.device:
    """Where a run will compute.

    Raises: ConfigError: there is no such device here.
    """
    if trainer.accelerator != "gpu":
        return pick_device(trainer.accelerator, "trainer.accelerator")
    device = pick_device("auto")
    if device.type == "cpu":
        raise ConfigError("trainer.accelerator=gpu: there is no GPU here; use auto or cpu")
    return device


def precision_of(trainer: TrainerConfig) -> Any:
    """Lightning's name of a precision; `auto` is bf16-mixed where the device computes in it.

    Raises: ConfigError: the device has not the one asked for.
    """
    if trainer.precision == "16-mixed" and device_of(trainer).type == "cpu":
        raise ConfigError("trainer.precision=16-mixed wants a GPU; use bf16-mixed or 32-true")
    if trainer.precision != "auto":
        return trainer.precision
    return "bf16-mixed" if computes_bf16(device_of(trainer)) else "32-true"


def process_rank() -> int:
    """Of this process among those of the run, as Lightning counts; known before it starts."""
    return int(getattr(rank_zero_only, "rank", 0))


def quieten() -> None:
    """Lightning's hints that do not concern a user of this project."""
    for name in ("pytorch_lightning", "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",  # how many is the recipe's and data's choice
        r".*Checkpoint directory .* exists and is not empty.*",  # as it is when resuming
        r".*You have overridden `on_after_batch_transfer` in `LightningModule`.*",  # as meant
        r".*It is recommended to use `self.log.*sync_dist=True.*",  # the same on every rank
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message=message)
