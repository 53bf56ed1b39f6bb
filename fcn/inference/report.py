"""What a person sees of a run: tables on the terminal, pictures beside the numbers."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fcn import visualize
from fcn.data.files import SegmentationFiles
from fcn.metrics import Scores, confusion_matrix, scores
from fcn.models.fcn import FCN
from fcn.models.surgery import Report

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from fcn.config import TrainConfig
    from fcn.data.datamodule import SegmentationData

SHOWN = 6  # images in predictions.png


def print_start(
    console: Console,
    cfg: "TrainConfig",
    model: FCN,
    surgery: Report | None,
    data: "SegmentationData",
    trainer: "pl.Trainer",
) -> None:
    """What is about to be trained, on what, and where its weights come from."""
    parameters = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kernels = sum(p.numel() for n, p in model.named_parameters() if n.startswith("upscore"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row(
        "model", f"{cfg.model.name}, backbone {cfg.backbone.name}, padding {cfg.model.padding}"
    )
    table.add_row(
        "parameters",
        f"{parameters:,}, {trainable:,} of them trainable; upsampling {cfg.upsampling.name}: "
        f"{kernels:,} trainable",
    )
    table.add_row(
        "data",
        f"{cfg.data.name}: {len(data.train)} training images, {len(data.val)} validation images, "
        f"{len(data.classes)} classes",
    )
    table.add_row(
        "recipe",
        f"{cfg.recipe.name}: {trainer.max_steps} steps of {cfg.recipe.batch_size} x "
        f"{trainer.accumulate_grad_batches} x {trainer.world_size} images, "
        f"{cfg.recipe.optimizer}, {cfg.recipe.loss_reduction} loss",
    )
    table.add_row("device", f"{trainer.strategy.root_device}, precision {trainer.precision}")
    table.add_row("weights", "random" if surgery is None else f"from {surgery.source}")
    console.print(table)
    if surgery is not None:
        console.print(surgery_table(surgery))


def surgery_table(report: Report) -> Table:
    """How many tensors were copied, reshaped, initialised and left over, and which."""
    table = Table("fate", "tensors", "which", title=f"surgery from {report.source}", box=None)
    for fate in ("copied", "reshaped", "initialised", "left over"):
        names = report.named(fate)
        shown = ", ".join(names[:4]) + (f", ... {names[-1]}" if len(names) > 4 else "")
        table.add_row(fate, str(len(names)), shown)
    return table


def print_result(console: Console, result: Scores, classes: list[str]) -> None:
    """Per-class IoU and accuracy, and the paper's four metrics."""
    table = Table("class", "IoU", "accuracy", "pixels", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, iou, accuracy, row in zip(
        classes, result.iou.tolist(), result.accuracy.tolist(), result.confusion, strict=True
    ):
        table.add_row(name, percent(iou), percent(accuracy), f"{int(row.sum()):,}")
    console.print(table)
    console.print(
        f"pixel accuracy {percent(result.pixel_accuracy)}  "
        f"mean accuracy {percent(result.mean_accuracy)}  "
        f"mean IoU {percent(result.mean_iou)}  "
        f"frequency-weighted IoU {percent(result.frequency_weighted_iou)}",
        highlight=False,
    )


def percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


@torch.inference_mode()
def write_pictures(
    folder: Path, model: FCN, files: SegmentationFiles, result: Scores, device: torch.device
) -> None:
    """predictions.png, of images evenly spaced in the split, and confusion.png."""
    rows, captions = [], []
    for index in np.linspace(0, len(files) - 1, min(SHOWN, len(files))).round().astype(int):
        image, target = files[index]
        prediction = model(image[None].to(device).float() / 255)[0].argmax(0).cpu()
        confusion = confusion_matrix(len(files.classes))
        confusion.update(prediction[None], target[None].long())
        pixels = image.permute(1, 2, 0).numpy()
        rows.append((pixels, target.numpy(), prediction.byte().numpy()))
        mean_iou = scores(confusion.compute()).mean_iou
        captions.append(f"{files.ids[index]}: mean IoU {mean_iou:.2f}")
    visualize.panel(rows, files.classes, captions).save(folder / "predictions.png")
    visualize.confusion_plot(result.confusion.numpy(), files.classes).save(folder / "confusion.png")


def write_curves(
    folder: Path, loss: list[tuple[int, float]], mean_iou: list[tuple[int, float]]
) -> None:
    """curves.png: training loss and validation mean IoU over the steps."""
    if loss and mean_iou:
        visualize.curves({"training loss": loss}, {"validation mean IoU": mean_iou}).save(
            folder / "curves.png"
        )
