"""A training run from its settings to the files it leaves."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console

from fcn.checks.training import check, learning_rate
from fcn.config import ConfigError, TrainConfig, UserError
from fcn.data.datamodule import SegmentationData
from fcn.data.official import fetch
from fcn.inference import checkpoint, report
from fcn.models.fcn import FCN
from fcn.training import ranks, record
from fcn.training.callbacks import History
from fcn.training.diagnosis import Diagnosis
from fcn.training.initialise import initialise
from fcn.training.module import SegmentationModule
from fcn.training.safekeeping import Interruption, newest_checkpoint, refuse_full_disk
from fcn.training.trainer import (
    lightnings_refusals,
    make_trainer,
    precision_of,
    process_rank,
    quieten,
)


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
    history, last = History(console), folder / "checkpoints" / "last.ckpt"
    interruption, diagnosis = Interruption(last, console), Diagnosis(last, data.classes, console)
    own = [history, diagnosis, interruption]
    trainer = make_trainer(cfg, folder, own, data.classes, console.is_terminal)
    ranks.check_world(trainer)
    if cfg.recipe.loss_reduction == "sum" and trainer.world_size > 1:
        raise ConfigError(
            "recipe.loss_reduction=sum does not fit several processes, whose gradients are "
            "averaged; use trainer.devices=1, or mean"
        )
    model = build_model(cfg, len(data.classes))
    surgery = None
    if not cfg.resume:
        surgery = initialise(model, cfg.model, cfg.backbone.weights, data.classes)
    about = describe(cfg, model, data)
    lr = learning_rate(cfg.recipe, cfg.model)
    module = SegmentationModule(model, cfg.recipe, lr, cfg.seed, about, compile=cfg.compile)
    resume = resume_from(cfg.resume, folder, about, console)
    report.print_start(console, cfg, model, surgery, data, trainer, resume)
    if trainer.is_global_zero:
        refuse_full_disk(folder, model, cfg.recipe)
        keep_record(cfg, folder, data, trainer, console)
    with lightnings_refusals(MisconfigurationException), ranks.together(trainer), interruption:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    best = folder / "checkpoints" / "best.ckpt"
    if cfg.trainer.limit_val_batches == 0:  # no validation, so none is best
        best = last
        trainer.save_checkpoint(best)
    if not trainer.is_global_zero:
        return None
    report.write_curves(folder, history.loss, history.mean_iou)
    trained = checkpoint.read(best)
    metrics = report.judge(
        trained.model(),
        data.val,
        folder,
        console,
        data=cfg.data.name,
        split=cfg.data.val_split,
        device=trainer.strategy.root_device,
        bf16=about["precision"] == "bf16-mixed",
        num_workers=cfg.data.num_workers,
    )
    about |= {"metrics": metrics}
    checkpoint.write_safetensors(folder / "model.safetensors", trained.model(), about)
    seconds = f"after {time.monotonic() - started:.0f} s"
    report.print_last_line(console, metrics, seconds, folder)
    if cfg.rerun:
        record.print_comparison(console, metrics, Path(cfg.rerun))
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


def keep_record(
    cfg: TrainConfig, folder: Path, data: SegmentationData, trainer: pl.Trainer, console: Console
) -> None:
    """Writes run.json; of a run that is run again, says what is not as it was the first time.

    A run that goes on keeps its first record.
    """
    now = record.describe(cfg, data, trainer.strategy.root_device)
    if cfg.rerun:
        record.print_differences(console, record.read(Path(cfg.rerun)), now)
    if not (folder / record.FILE).is_file():
        record.write(folder, now)


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


def resume_from(
    resume: str | None, folder: Path, about: dict[str, Any], console: Console
) -> Path | None:
    """The checkpoint to go on from, once it is known to fit.

    Args: about: of the run, as `describe` gives it.
    Raises: UserError: there is none, or it is of another model, other classes, or of an optimiser
        whose state is another.
    """
    if resume is None:
        return None
    path = newest_checkpoint(folder, console) if resume == "last" else Path(resume)
    if not path.is_file():
        raise UserError(
            f"resume={resume}: no checkpoint at {path}; name RUN/checkpoints/last.ckpt, or leave "
            "resume out to start anew"
        )
    theirs = checkpoint.read(path).about
    if path.suffix == ".safetensors":
        raise UserError(
            f"resume={path}: weights alone, without the optimiser's state; name a .ckpt of the "
            "run, or start from them with model.init_from="
        )
    if theirs["model"] != about["model"]:
        differ = [k for k, v in about["model"].items() if theirs["model"].get(k) != v]
        raise UserError(f"resume={path}: its model differs in {', '.join(differ)}; use init_from")
    trained, training = theirs.get("training", about["training"]), about["training"]
    for what, one, other in (
        ("data.classes", theirs["classes"], about["classes"]),
        ("recipe.optimizer", trained["optimizer"], training["optimizer"]),
    ):
        if one != other:
            raise UserError(
                f"resume={path}: trained with {what}={one}, not {other}; go on as it began, or use "
                "init_from"
            )
    return path


def refuse_overwriting(resume: str | None, folder: Path) -> None:
    """Raises: UserError: the folder holds a run already, and this is not to go on with it."""
    if resume is None and any((folder / "checkpoints").glob("*.ckpt")):
        raise UserError(
            f"{folder} holds a run already; resume=last goes on with it, another hydra.run.dir= "
            "starts a new one"
        )
