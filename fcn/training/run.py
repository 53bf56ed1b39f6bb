"""A training run from its settings to the files it leaves."""

import logging
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console

from fcn.config import ConfigError, TrainConfig, UserError, check, learning_rate
from fcn.data.datamodule import SegmentationData, evaluation_loader
from fcn.inference import checkpoint, report
from fcn.inference.evaluation import evaluate, metrics_json, write_json
from fcn.models.fcn import FCN
from fcn.training.callbacks import History, Panels, checkpoints
from fcn.training.initialise import initialise
from fcn.training.module import SegmentationModule


@dataclass
class Run:
    """What a run left: its metrics.json as a dictionary, and where its best model lies."""

    folder: Path
    metrics: dict[str, Any]
    best: Path


def build_model(cfg: TrainConfig, num_classes: int) -> FCN:
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


def train(cfg: TrainConfig, folder: Path, console: Console) -> Run | None:
    """Trains, evaluates the best checkpoint on val, and writes what the run leaves.

    Returns: None on ranks other than the first, which leave nothing.
    Raises: UserError: what the settings, the data or the weights make impossible.
    """
    started = time.monotonic()
    check(cfg)
    quieten()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = SegmentationData(cfg.data, cfg.recipe, cfg.seed)
    try:
        model = build_model(cfg, len(data.classes))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    surgery = initialise(model, cfg.model, cfg.backbone.weights) if not cfg.resume else None
    resume = resume_from(cfg.resume, folder, model)
    about = {
        "model": model.arguments,
        "classes": data.classes,
        "data": {"name": cfg.data.name, "train": data.train.fingerprint()},
        "recipe": cfg.recipe.name,
        "seed": cfg.seed,
    }
    module = SegmentationModule(model, cfg.recipe, learning_rate(cfg.recipe, cfg.model), about)
    history = History(console)
    callbacks: list[Callback] = [
        history,
        Panels(data.classes),
        *checkpoints(folder / "checkpoints"),
    ]
    if cfg.recipe.ema_decay is not None:
        callbacks.insert(0, EMAWeightAveraging(decay=cfg.recipe.ema_decay))
    if cfg.trainer.enable_progress_bar and console.is_terminal:
        callbacks.append(RichProgressBar(leave=False))
    trainer = make_trainer(cfg, folder, callbacks)
    if trainer.is_global_zero:
        report.print_start(console, cfg, model, surgery, data, trainer)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    if trainer.interrupted:
        raise UserError(f"interrupted; go on with resume={folder / 'checkpoints' / 'last.ckpt'}")
    if not trainer.is_global_zero:
        return None

    best = folder / "checkpoints" / "best.ckpt"
    if not best.is_file():  # no validation took place
        best = folder / "checkpoints" / "last.ckpt"
        trainer.save_checkpoint(best)
    model = checkpoint.load(best)
    loader = evaluation_loader(data.val, 8)
    result = evaluate(
        model,
        loader,
        len(data.classes),
        device=trainer.strategy.root_device,
        bf16=str(trainer.precision).startswith("bf16"),
    )
    metrics = metrics_json(result, data.val, cfg.data.val_split, model.arguments, cfg.data.name)
    write_json(folder / "metrics.json", metrics)
    checkpoint.write_safetensors(folder / "model.safetensors", model, about | {"metrics": metrics})
    report.write_pictures(folder, model, data.val, result, trainer.strategy.root_device)
    report.write_curves(folder, history.loss, history.mean_iou)
    report.print_result(console, result, data.classes)
    console.print(
        f"mean IoU {result.mean_iou:.4f} on {cfg.data.name} {cfg.data.val_split} "
        f"({len(data.val)} images) after {time.monotonic() - started:.0f} s; files in {folder}",
        highlight=False,
        soft_wrap=True,
    )
    return Run(folder, metrics, best)


def make_trainer(cfg: TrainConfig, folder: Path, callbacks: list[Callback]) -> pl.Trainer:
    """Lightning's Trainer with this run's arguments."""
    arguments = asdict(cfg.trainer)
    accumulate = arguments["accumulate_grad_batches"]
    arguments["precision"] = precision(cfg.trainer.precision, cfg.trainer.accelerator)
    arguments["val_check_interval"] = min(
        arguments["val_check_interval"] or cfg.recipe.val_every * accumulate,
        cfg.trainer.max_steps * accumulate,
    )
    arguments["enable_progress_bar"] = any(isinstance(c, RichProgressBar) for c in callbacks)
    return pl.Trainer(
        **arguments,
        check_val_every_n_epoch=None,  # val_check_interval counts over the run, not in an epoch
        use_distributed_sampler=False,  # the samplers of fcn.data share out by rank themselves
        callbacks=callbacks,
        logger=TensorBoardLogger(folder, name=None, version=""),
        enable_model_summary=False,
    )


def precision(wanted: str | None, accelerator: str) -> Any:
    """Lightning's name of a precision; `auto` is bf16-mixed where the device computes in it."""
    if wanted != "auto":
        return wanted
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(False) else "32-true"
    if accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"
    return "32-true"


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


def quieten() -> None:
    """Lightning's hints that do not concern a user of this project."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",  # how many is the recipe's and data's choice
        r".*Checkpoint directory .* exists and is not empty.*",  # as it is when resuming
        r".*You have overridden `on_after_batch_transfer` in `LightningModule`.*",  # as meant
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message=message)
