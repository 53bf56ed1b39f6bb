"""Evaluate a model on a split at the images' original size, and write the results."""

import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fcn.data.dataset import SegmentationDataset
from fcn.data.loaders import evaluation_loader, resolve_num_workers
from fcn.device import InferenceModel
from fcn.errors import UserError
from fcn.inference.ceiling import Ceiling
from fcn.inference.metrics import (
    METRICS,
    OTHERS,
    Metrics,
    Trimap,
    image_confusions,
    metrics_of,
    other_rates,
    rates,
    tally,
)
from fcn.output import atomic_write, percent, progress, warn, write_json
from fcn.pictures import plots, visualize
from fcn.processes import Processes

SHOWN = 6  # images in predictions.png and in worst.png
ONE_CLASS_CAUSES = (
    "Likely causes: too few steps, a learning rate far too high or too low, no pretrained weights, "
    "imbalance, where loss.class_weights=balanced helps, or wrong labels (scripts/prepare_data.py "
    "shows them)"
)


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a model on a split."""

    metrics: Metrics
    ceiling: Metrics  # of perfect scores at the network's stride, see `Ceiling`
    trimap: list[float]  # mean IoU within 1, 2, ..., 20 pixels of the ground truth's boundaries
    per_image: Tensor  # int64 (N, 3, K) in the split's order, see `fcn.inference.metrics.tally`


@torch.inference_mode()
def evaluate(
    model: InferenceModel,
    dataset: SegmentationDataset,
    console: Console,
    title: str = "",
    batch_size: int = 8,
    num_workers: int | None = None,
    processes: Processes | None = None,
) -> Evaluation:
    """Evaluate a model over one confusion matrix.

    Args:
        model: the model, its device and its precision.
        dataset: the split.
        console: shows a progress bar.
        title: of the progress bar.
        batch_size: images of one size that are loaded together, fewer if they are large. On a CPU
            the numbers do not depend on it; on a GPU, whose kernels depend on the batch, a label
            may where two scores are equal up to rounding.
        num_workers: processes that load images; None chooses for the device.
        processes: those that share the images; each must call this.

    Returns:
        The numbers of all images, the same in every process.

    Raises:
        DataError: an image or a mask cannot be used.
    """
    processes = processes or Processes(0, 1, model.device)
    num_classes = len(dataset.classes)
    workers = resolve_num_workers(num_workers, model.device, processes.world)
    loader = evaluation_loader(dataset, batch_size, workers, processes.rank, processes.world)
    labels = None if model.labels is None else model.labels.tolist()
    ideal = Ceiling(model.model, labels)
    perfect = InferenceModel(ideal, model.device, labels=labels)  # type: ignore[arg-type]
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    ceiling = torch.zeros_like(confusion)
    trimap, tallies = Trimap(num_classes), []
    with progress(console) as bar:
        for image, target in bar.track(loader, description=title):
            prediction, truth = model.predict(image), target.to(model.device)
            confusions = image_confusions(prediction, truth, num_classes).cpu()
            confusion += confusions.sum(0)
            best = perfect.predict(truth[:, None])
            ceiling += image_confusions(best, truth, num_classes).sum(0).cpu()
            tallies.append(tally(confusions))
            trimap.update(prediction, target)
    assert loader.batch_sampler is not None
    per_image = torch.zeros(len(dataset), 3, num_classes, dtype=torch.int64)
    indices = (index for batch in loader.batch_sampler for index in batch)
    for index, row in zip(indices, torch.cat(tallies), strict=True):
        if index >= 0:  # others only fill up a process's batches, with ignored pixels
            per_image[index] = row
    trimap.rings = processes.sum(torch.from_numpy(trimap.rings)).numpy()
    confusion, ceiling, per_image = map(processes.sum, (confusion, ceiling, per_image))
    return Evaluation(metrics_of(confusion), metrics_of(ceiling), trimap.mean_iou(), per_image)


def evaluate_and_write(
    model: InferenceModel,
    dataset: SegmentationDataset,
    folder: Path,
    console: Console,
    *,
    data: str,
    split: str,
    batch_size: int = 8,
    num_workers: int | None = None,
    processes: Processes | None = None,
) -> dict[str, Any] | None:
    """Evaluate a model, print the table, write metrics.json, per_image.npz and pictures.

    Args:
        model, dataset, console, batch_size, num_workers, processes: see `evaluate`.
        folder: where to write.
        data: name of the data set, for metrics.json.
        split: of the data set, likewise.

    Returns:
        The contents of metrics.json; None in processes other than the first.
    """
    title = f"{data} {split}"
    found = evaluate(model, dataset, console, title, batch_size, num_workers, processes)
    if processes is not None and processes.rank > 0:
        return None
    metrics = metrics_json(found, model, dataset, data, split)
    with atomic_write(folder / "per_image.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, ids=np.array(dataset.ids), per_image=found.per_image.numpy())
    write_json(folder / "metrics.json", metrics)
    _write_pictures(folder, model, dataset, found)
    _print_scores(console, metrics)
    if note := counted_classes_note(found.metrics.confusion, dataset.classes):
        console.print(note)
    warn(console, one_class_warning(found.metrics.confusion, dataset.classes))
    return metrics


def metrics_json(
    found: Evaluation, model: InferenceModel, dataset: SegmentationDataset, data: str, split: str
) -> dict[str, Any]:
    """Return the contents of metrics.json. Rates are 0..1, null for a class without pixels."""
    result, ceiling, arguments = found.metrics, found.ceiling, model.model.arguments
    others = other_rates(found.per_image, background=dataset.info.background)
    columns = {"iou": result.iou, "accuracy": result.accuracy}
    columns |= {"precision": others["precision"], "f1": others["f1"], "ceiling": ceiling.iou}
    pixels = result.confusion.sum(1).tolist()
    return {
        **{name: _number(getattr(result, name)) for name in METRICS},
        **{name: _number(others[name]) for name in OTHERS},
        "classes": [
            {"name": name, **{key: _number(column[k]) for key, column in columns.items()}}
            | {"pixels": pixels[k]}
            for k, name in enumerate(dataset.classes)
        ],
        "confusion": result.confusion.tolist(),
        "ceiling": {name: _number(getattr(ceiling, name)) for name in METRICS},  # see `Ceiling`
        "trimap": [_number(value) for value in found.trimap],
        "protocol": {
            "data": data,
            "split": split,
            "images": len(dataset),
            "ids_sha256": dataset.fingerprint(),
            "size": "original",
            "precision": model.precision,
            "flip": model.flip,
            "scales": model.scales,
            "ignore_index": dataset.info.ignore_index,
            "model": arguments,
            "upsampling": arguments["upsampling"],
        },
    }


def _number(value: float | Tensor) -> float | None:
    return None if math.isnan(value) else float(value)


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the contents of a metrics.json, or raise a UserError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); evaluate again") from None
    needed = {*METRICS, "classes", "confusion", "trimap", "protocol"}
    if not isinstance(content, dict) or not needed <= content.keys():
        raise UserError(f"{path}: not the metrics of a run of this project; evaluate again")
    return content


def read_per_image(path: Path) -> tuple[list[str], Tensor]:
    """Return ids and tallies, int64 (N, 3, K), of a per_image.npz, or raise a UserError."""
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            return file["ids"].tolist(), torch.from_numpy(file["per_image"])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}); evaluate again") from None


def _print_scores(console: Console, metrics: dict[str, Any]) -> None:
    """Print the rates of every class, the paper's four metrics, and those of other tools."""
    keys = {"iou": "IoU", "accuracy": "accuracy", "precision": "precision", "f1": "F1"}
    table = Table("class", *(f"{name} (%)" for name in keys.values()), "pixels", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for entry in metrics["classes"]:
        rates = (percent(entry[key]) for key in keys)
        table.add_row(entry["name"], *rates, f"{entry['pixels']:,}")
    means = [f"mean_{key}" for key in keys]
    table.add_row("mean", *(percent(metrics[key]) for key in means))
    ceiling = (percent(metrics["ceiling"].get(key)) for key in means)
    table.add_row(f"ceiling of stride {metrics['protocol']['model']['stride']}", *ceiling)
    console.print(table)
    for words in (METRICS, OTHERS):
        shown = [f"{name} {percent(metrics[key])} %" for key, name in words.items()]
        console.print("  ".join(shown))


def counted_classes_note(confusion: Tensor, classes: Sequence[str]) -> str | None:
    """Return which classes the mean IoU counts, where some occur on one side or not at all."""
    true, predicted = confusion.sum(1) > 0, confusion.sum(0) > 0
    only = [classes[k] for k in (predicted & ~true).nonzero().flatten()]
    absent = [classes[k] for k in (~predicted & ~true).nonzero().flatten()]
    if not only and not absent:
        return None
    count = len(classes) - len(absent)
    parts = [f"the mean IoU counts {count} of {len(classes)} classes"]
    if only:
        parts.append(f"as 0 %, since predicted but in no mask: {', '.join(only)}")
    if absent:
        parts.append(f"not counted, since neither predicted nor in a mask: {', '.join(absent)}")
    return "; ".join(parts)


def one_class_warning(confusion: Tensor, classes: Sequence[str]) -> str:
    """Return a warning if the ground truth or the predictions hold a single class, or ""."""
    true, predicted = (confusion.sum(axis).nonzero().flatten().tolist() for axis in (1, 0))
    if len(true) == 1:
        return (
            f"the masks hold {classes[true[0]]} alone, so the mean IoU says nothing about the "
            "other classes; scripts/prepare_data.py shows what the masks hold"
        )
    if len(predicted) == 1:
        return f"the predictions hold {classes[predicted[0]]} alone. {ONE_CLASS_CAUSES}"
    return ""


def print_last_line(console: Console, metrics: dict[str, Any], when: str, folder: Path) -> None:
    """Print in one line how good the model is, and where the files are."""
    protocol = metrics["protocol"]
    console.print(
        f"mean IoU {percent(metrics['mean_iou'])} % on {protocol['data']} {protocol['split']} "
        f"({protocol['images']} images) {when}; files in {folder}"
    )


def _write_pictures(
    folder: Path, model: InferenceModel, dataset: SegmentationDataset, found: Evaluation
) -> None:
    """Write predictions.png (images evenly spaced in the split), worst.png, and plots."""
    info, mean_iou = dataset.info, rates(found.per_image)["mean_iou"].numpy()
    shown = min(SHOWN, len(dataset))
    even = np.linspace(0, len(dataset) - 1, shown).round().astype(int)
    worst = np.argsort(mean_iou, kind="stable")[:shown]  # NaN, ignored pixels alone, comes last
    for name, indices in (("predictions", even.tolist()), ("worst", worst.tolist())):
        captions = [f"{dataset.ids[i]}: mean IoU {percent(mean_iou[i])} %" for i in indices]
        rows = predicted_rows(model, dataset, indices)
        visualize.panel(rows, info, captions).save(folder / f"{name}.png")
    iou = [_number(value) for value in found.metrics.iou]
    plots.iou_bars(iou, info.classes).save(folder / "iou.png")
    confusion = found.metrics.confusion.numpy()
    plots.confusion_plot(confusion, info.classes).save(folder / "confusion.png")
    plots.trimap_plot({"mean IoU": found.trimap}).save(folder / "trimap.png")


def predicted_rows(
    model: InferenceModel, dataset: SegmentationDataset, indices: Sequence[int]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield image (H, W, 3), ground truth (H, W) and prediction (H, W) of some images, uint8."""
    for index in indices:
        image, target = dataset[index]
        yield visualize.as_rgb(image), target.numpy(), predicted_mask(model, image)


def predicted_mask(model: InferenceModel, image: Tensor) -> NDArray[np.uint8]:
    """Return the labels, uint8 (H, W), of one image (C, H, W)."""
    return model.predict(image[None])[0].cpu().numpy()
