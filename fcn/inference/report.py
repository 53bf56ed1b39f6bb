"""What a person sees of a run: tables on the terminal, pictures beside the numbers."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fcn import plots, visualize
from fcn.data.datamodule import evaluation_loader
from fcn.data.files import SegmentationFiles
from fcn.inference.evaluation import evaluate, metrics_json, write_json
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
    resume: Path | None,
) -> None:
    """What is about to be trained, on what, and where its weights come from."""
    parameters = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kernels = sum(p.numel() for n, p in model.named_parameters() if n.startswith("upscore"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row(
        "model", f"{cfg.model.name}, backbone {cfg.backbone.name}, padding {cfg.model.padding}"
    )
    table.add_row("upsampling", f"{cfg.upsampling.name}, {kernels:,} trainable parameters")
    table.add_row("parameters", f"{parameters:,}, of them {trainable:,} trainable")
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
    source = resume or (surgery.source if surgery is not None else "random")
    table.add_row("weights", f"{source}, going on" if resume else str(source))
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


def judge(
    model: FCN,
    files: SegmentationFiles,
    folder: Path,
    console: Console,
    *,
    data: str,
    split: str,
    device: torch.device,
    bf16: bool,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Evaluates a model on a split; prints the table, writes metrics.json and the pictures.

    Args: data, split: their names, for metrics.json.
    Returns: the contents of metrics.json.
    """
    loader = evaluation_loader(files, batch_size)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"{data} {split}", total=len(loader))
        evaluation = evaluate(
            model,
            loader,
            len(files.classes),
            device=device,
            bf16=bf16,
            advance=lambda: progress.advance(task),
        )
    result = evaluation.scores
    metrics = metrics_json(
        evaluation, files, split, model.arguments, data, "bf16-mixed" if bf16 else "32-true"
    )
    write_json(folder / "metrics.json", metrics)
    write_pictures(folder, model, files, result, device)
    print_result(console, result, files.classes)
    return metrics


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
        soft_wrap=True,
    )


def print_last_line(console: Console, metrics: dict[str, Any], when: str, folder: Path) -> None:
    """The one line that says how good and where."""
    protocol = metrics["protocol"]
    console.print(
        f"mean IoU {percent(metrics['mean_iou'])} on {protocol['data']} {protocol['split']} "
        f"({protocol['images']} images) {when}; files in {folder}",
        highlight=False,
        soft_wrap=True,
    )


def percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


@torch.inference_mode()
def write_pictures(
    folder: Path, model: FCN, files: SegmentationFiles, result: Scores, device: torch.device
) -> None:
    """predictions.png, of images evenly spaced in the split, iou.png and confusion.png."""
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
    iou = [None if math.isnan(value) else value for value in result.iou.tolist()]
    plots.iou_bars(iou, files.classes).save(folder / "iou.png")
    plots.confusion_plot(result.confusion.numpy(), files.classes).save(folder / "confusion.png")


def write_curves(
    folder: Path, loss: list[tuple[int, float]], mean_iou: list[tuple[int, float]]
) -> None:
    """curves.png: training loss and validation mean IoU over the steps."""
    if loss and mean_iou:
        plots.curves({"training loss": loss}, {"validation mean IoU": mean_iou}).save(
            folder / "curves.png"
        )
