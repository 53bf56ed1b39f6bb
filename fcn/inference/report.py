"""What a person sees of a run: tables on the terminal, pictures beside the numbers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fcn import panels, plots
from fcn.data.datamodule import evaluation_loader, evaluation_processes
from fcn.data.files import SegmentationFiles
from fcn.inference.evaluation import (
    Evaluation,
    evaluate,
    metrics_json,
    number,
    predict,
    write_json,
    write_per_image,
)
from fcn.inference.submission import write_submission
from fcn.metrics import Scores, rates
from fcn.models.fcn import FCN
from fcn.models.surgery import Report

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from fcn.config import TrainConfig
    from fcn.data.datamodule import SegmentationData

SHOWN = 6  # images in predictions.png and in worst.png
Row = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]  # image, truth, prediction


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
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Evaluates a model on a split; prints the table, writes the numbers and the pictures.

    Args: model: made `ready` in place. data, split: their names, for metrics.json.
    Returns: the contents of metrics.json.
    """
    evaluation = evaluate_split(
        model,
        files,
        console,
        f"{data} {split}",
        device=device,
        bf16=bf16,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    metrics = metrics_json(
        evaluation, files, split, model.arguments, data, "bf16-mixed" if bf16 else "32-true"
    )
    write_per_image(folder / "per_image.npz", files.ids, evaluation.per_image)
    write_json(folder / "metrics.json", metrics)
    write_pictures(folder, model, files, evaluation, device=device, bf16=bf16)
    print_result(console, evaluation.scores, files.classes)
    return metrics


def evaluate_split(
    model: FCN,
    files: SegmentationFiles,
    console: Console,
    title: str,
    *,
    device: torch.device,
    bf16: bool,
    batch_size: int = 8,
    num_workers: int | None = None,
) -> Evaluation:
    """Evaluates a model under a progress bar.

    Args: num_workers: processes that load; None: as suits the device.
    Returns: with images in the order of the split.
    """
    loader = evaluation_loader(files, batch_size, evaluation_processes(num_workers, device))
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=len(loader))
        evaluation = evaluate(
            model,
            loader,
            len(files.classes),
            device=device,
            bf16=bf16,
            advance=lambda: progress.advance(task),
        )
    assert loader.batch_sampler is not None
    order = torch.tensor([index for batch in loader.batch_sampler for index in batch])
    return replace(evaluation, per_image=evaluation.per_image[order.argsort()])


def submit(
    model: FCN,
    files: SegmentationFiles,
    folder: Path,
    console: Console,
    *,
    data: str,
    split: str,
    device: torch.device,
    bf16: bool,
) -> None:
    """Writes what VOC's evaluation server takes, under a progress bar, and says where it is.

    Args: data: the year's folder, such as VOC2012.
    """
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"{data} {split}", total=len(files))
        archive = write_submission(
            model,
            files,
            folder,
            data,
            split,
            device=device,
            bf16=bf16,
            advance=lambda: progress.advance(task),
        )
    console.print(
        f"predictions of {data} {split} ({len(files)} images) for its evaluation server: {archive}",
        highlight=False,
        soft_wrap=True,
    )


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


def write_pictures(
    folder: Path,
    model: FCN,
    files: SegmentationFiles,
    evaluation: Evaluation,
    *,
    device: torch.device,
    bf16: bool,
) -> None:
    """predictions.png, of images evenly spaced in the split, worst.png, and plots of the scores."""
    mean_iou = rates(evaluation.per_image)["mean_iou"].numpy()
    shown = min(SHOWN, len(files))
    even = np.linspace(0, len(files) - 1, shown).round().astype(int)
    worst = np.argsort(mean_iou, kind="stable")[:shown]  # NaN, an image of void alone, comes last
    for name, indices in (("predictions", even), ("worst", worst)):
        rows = list(predicted_rows(model, files, indices, device=device, bf16=bf16))
        captions = [f"{files.ids[i]}: mean IoU {mean_iou[i]:.2f}" for i in indices]
        panels.panel(rows, files.classes, captions).save(folder / f"{name}.png")
    result = evaluation.scores
    iou = [number(value) for value in result.iou.tolist()]
    plots.iou_bars(iou, files.classes).save(folder / "iou.png")
    plots.confusion_plot(result.confusion.numpy(), files.classes).save(folder / "confusion.png")
    trimap = [number(value) for value in evaluation.trimap]
    if any(value is not None for value in trimap):
        plots.trimap_plot({"mean IoU": trimap}).save(folder / "trimap.png")


def predicted_rows(
    model: FCN,
    files: SegmentationFiles,
    indices: Sequence[int] | NDArray[np.intp],
    *,
    device: torch.device,
    bf16: bool,
) -> Iterator[Row]:
    """Image (H, W, 3), truth (H, W) and prediction (H, W) of some images of a split, all uint8."""
    for index in indices:
        image, target = files[int(index)]
        prediction = predict(model, image[None], device=device, bf16=bf16)[0]
        pixels = image.permute(1, 2, 0).numpy()
        yield pixels, target.numpy(), prediction.byte().cpu().numpy()


def write_curves(
    folder: Path, loss: list[tuple[int, float]], mean_iou: list[tuple[int, float]]
) -> None:
    """curves.png: training loss and validation mean IoU over the steps."""
    if loss and mean_iou:
        plots.curves({"training loss": loss}, {"validation mean IoU": mean_iou}).save(
            folder / "curves.png"
        )
