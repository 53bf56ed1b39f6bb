"""A training run from its settings to the files it leaves."""

import logging
import time
import warnings
from dataclasses import asdict, dataclass
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
from rich.console import Console

from fcn.checks import check, learning_rate
from fcn.config import ConfigError, TrainConfig, TrainerConfig, UserError
from fcn.data.datamodule import SegmentationData
from fcn.data.official import fetch
from fcn.inference import checkpoint, report
from fcn.inference.evaluation import computes_bf16, pick_device
from fcn.models.fcn import FCN
from fcn.training import ranks
from fcn.training.callbacks import History, Kernels, Panels, ProgressBar, checkpoints
from fcn.training.initialise import initialise
from fcn.training.module import SegmentationModule


@dataclass
class Run:
    """What a run left: its metrics.json as a dictionary, and where its best model lies."""

    folder: Path
    metrics: dict[str, Any]
    best: Path


def train(cfg: TrainConfig, folder: Path, console: Console) -> Run | None:
    """Trains, evaluates the best checkpoint on val, and writes what the run leaves.

    Returns: None on ranks other than the first, which leave nothing.
    Raises: UserError: what the settings, the data or the weights make impossible.
    """
    started = time.monotonic()
    ranks.follow_first()
    check(cfg)
    if process_rank() == 0:
        refuse_overwriting(cfg.resume, folder)
    if cfg.data.download:
        fetch(cfg.data, console)
    quieten()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = SegmentationData(cfg.data, cfg.recipe, cfg.seed)
    model = build_model(cfg, len(data.classes))
    surgery = None
    if not cfg.resume:
        surgery = initialise(model, cfg.model, cfg.backbone.weights, data.classes)
    about = describe(cfg, model, data)
    lr = learning_rate(cfg.recipe, cfg.model)
    module = SegmentationModule(model, cfg.recipe, lr, cfg.seed, about)
    history = History(console)
    trainer = make_trainer(cfg, folder, history, data.classes, console.is_terminal)
    ranks.check_world(trainer)
    if cfg.recipe.loss_reduction == "sum" and trainer.world_size > 1:
        raise ConfigError(
            "recipe.loss_reduction=sum does not fit several processes, whose gradients are "
            "averaged; use trainer.devices=1, or mean"
        )
    resume = resume_from(cfg.resume, folder, model)
    report.print_start(console, cfg, model, surgery, data, trainer, resume)
    with ranks.together(trainer):
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    best = folder / "checkpoints" / "best.ckpt"
    if cfg.trainer.limit_val_batches == 0:  # no validation, so none is best
        best = folder / "checkpoints" / "last.ckpt"
        trainer.save_checkpoint(best)
    if not trainer.is_global_zero:
        return None
    report.write_curves(folder, history.loss, history.mean_iou)
    model = checkpoint.load(best)
    metrics = report.judge(
        model,
        data.val,
        folder,
        console,
        data=cfg.data.name,
        split=cfg.data.val_split,
        device=trainer.strategy.root_device,
        bf16=about["precision"] == "bf16-mixed",
    )
    checkpoint.write_safetensors(folder / "model.safetensors", model, about | {"metrics": metrics})
    seconds = f"after {time.monotonic() - started:.0f} s"
    report.print_last_line(console, metrics, seconds, folder)
    return Run(folder, metrics, best)


def describe(cfg: TrainConfig, model: FCN, data: SegmentationData) -> dict[str, Any]:
    """What every checkpoint of the run keeps: how to build its model, and how it was trained."""
    return {
        "model": model.arguments,
        "classes": data.classes,
        "data": {"name": cfg.data.name, "train": data.train.fingerprint()},
        "recipe": cfg.recipe.name,
        "training": asdict(cfg.recipe)
        | {
            "lr": learning_rate(cfg.recipe, cfg.model),
            "max_steps": cfg.trainer.max_steps,
            "accumulate": cfg.trainer.accumulate_grad_batches,
        },
        "precision": precision_of(cfg.trainer),
        "seed": cfg.seed,
    }


def build_model(cfg: TrainConfig, num_classes: int) -> FCN:
    """Raises: ConfigError: an argument outside its choices."""
    try:
        return FCN(
            stride=cfg.model.stride,
            num_classes=num_classes,
            backbone=cfg.backbone.name,
            upsampling=cfg.upsampling.name,
            padding=cfg.model.padding,
            skip_scales=cfg.model.skip_scales,
            width=cfg.backbone.width,
            head_width=cfg.backbone.head_width,
            dropout=cfg.model.dropout,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def make_trainer(
    cfg: TrainConfig, folder: Path, history: History, classes: list[str], progress_bar: bool
) -> pl.Trainer:
    """Lightning's Trainer with this run's arguments and callbacks."""
    callbacks: list[Callback] = [
        history,
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
    return pl.Trainer(
        **arguments,
        check_val_every_n_epoch=None,  # val_check_interval counts over the run, not in an epoch
        use_distributed_sampler=False,  # the samplers of fcn.data share out by rank themselves
        callbacks=callbacks,
        logger=TensorBoardLogger(folder, name=None, version=""),
        enable_model_summary=False,
    )


def device_of(trainer: TrainerConfig) -> torch.device:
    """Where a run will compute.

    Raises: ConfigError: there is no such device here.
    """
    if trainer.accelerator != "gpu":
        return pick_device(trainer.accelerator)
    device = pick_device("auto")
    if device.type == "cpu":
        raise ConfigError("trainer.accelerator=gpu: there is no GPU here; use auto or cpu")
    return device


def precision_of(trainer: TrainerConfig) -> Any:
    """Lightning's name of a precision; `auto` is bf16-mixed where the device computes in it."""
    if trainer.precision != "auto":
        return trainer.precision
    return "bf16-mixed" if computes_bf16(device_of(trainer)) else "32-true"


def resume_from(resume: str | None, folder: Path, model: FCN) -> Path | None:
    """The checkpoint to go on from, once it is known to fit the model.

    Raises: UserError: there is none, or it is of another model.
    """
    if resume is None:
        return None
    path = folder / "checkpoints" / "last.ckpt" if resume == "last" else Path(resume)
    if not path.is_file():
        raise UserError(f"resume={resume}: no checkpoint at {path}")
    theirs = checkpoint.read(path).about["model"]
    if theirs != model.arguments:
        differ = [k for k, v in model.arguments.items() if theirs.get(k) != v]
        raise UserError(f"resume={path}: its model differs in {', '.join(differ)}; use init_from")
    return path


def refuse_overwriting(resume: str | None, folder: Path) -> None:
    """Raises: UserError: the folder holds a run already, and this is not to go on with it."""
    if resume is None and (folder / "checkpoints").exists():
        raise UserError(
            f"{folder} holds a run already; resume=last goes on with it, another hydra.run.dir= "
            "starts a new one"
        )


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
