"""Inspect a data set before training: what is in it, and everything that is wrong with it.

Files are read by the functions that training reads them with, in several processes.
"""

import hashlib
import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from fcn import visualize
from fcn.config import VOID, DataConfig, PrepareDataConfig
from fcn.data.dataset import (
    DataError,
    Pair,
    SegmentationDataset,
    check_same_size,
    read_image,
    read_mask,
)
from fcn.data.download import fetch
from fcn.data.layouts import open_split
from fcn.data.shards import write_shards
from fcn.device import usable_cores
from fcn.output import percent, progress, write_json

IMAGES_PER_PROCESS = 100  # at least; starting a process takes about as long
ON_SHEET = 6  # images of each split on the contact sheet
ON_SCREEN = 100  # problems printed; report.json has all


@dataclass(frozen=True)
class Reading:
    """The content of an image and its mask, or the problem that makes them unusable."""

    problem: str = ""
    digest: bytes = b""  # of the image's pixels
    size: tuple[int, int] = (0, 0)  # width, height
    moments: np.ndarray | None = None  # float64 (2, 3): sums of RGB in [0, 1], and of its squares
    labels: np.ndarray | None = None  # int64 (256,): pixels of each label, 255 = ignored


@dataclass(frozen=True)
class Split:
    """A split and one reading per pair."""

    name: str
    dataset: SegmentationDataset
    readings: list[Reading]

    def usable(self) -> list[int]:
        return [index for index, reading in enumerate(self.readings) if not reading.problem]

    def labels(self) -> np.ndarray:
        """Return the pixels of each label in each usable mask, int64 (images, 256)."""
        return np.array([self.readings[i].labels for i in self.usable()]).reshape(-1, 256)


def main(cfg: PrepareDataConfig, folder: Path, console: Console) -> dict[str, Any]:
    """Run prepare_data: fetch a data set if asked to, inspect it, and write shards if asked to.

    Args:
        cfg: the settings.
        folder: where report.json and contact_sheet.png are written.
        console: where tables and problems are printed.

    Returns:
        The content of report.json.

    Raises:
        DataError: training on the data set would fail, or the folder of the shards is not empty.
    """
    data, shards = cfg.data, Path(cfg.shards) if cfg.shards else None
    if shards and shards.is_dir() and any(shards.iterdir()):
        raise DataError(f"shards={shards}: the folder is not empty; choose a new one")
    if data.download:
        fetch(data, console)
    splits, problems = inspect(data, console, cfg.processes)
    notes = [note for split in splits for note in _notes(split)]
    summaries = {split.name: _summary(split) for split in splits}
    report = {
        "data": data.name,
        "root": data.root,
        "ignore_index": data.ignore_index,
        "splits": summaries,
        "problems": problems,
        "warnings": notes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    if shown := [split for split in splits if split.usable()]:
        _contact_sheet(shown, folder / "contact_sheet.png")
        _print_tables({split.name: summaries[split.name] for split in shown}, console)
    for kind, texts in (("note", notes), ("problem", problems)):
        for text in texts[:ON_SCREEN]:
            console.print(f"{kind}: {text}")
    if problems:
        raise DataError(
            f"data={data.name} cannot be trained on; problems: {len(problems)}, listed in "
            f"{folder / 'report.json'}"
        )
    console.print(f"data={data.name} can be trained on; report and contact sheet in {folder}")
    if shards:
        for split in splits:
            write_shards(split.dataset, shards, split.name, console)
        console.print(f"shards in {shards}; train on them with data=shards data.root={shards}")
    return report


def inspect(
    data: DataConfig, console: Console, processes: int | None = None
) -> tuple[list[Split], list[str]]:
    """Read every image and mask of the splits of a data set.

    Args:
        data: the data set; its train_split, val_split and split are read.
        console: where progress is shown.
        processes: that read; None: one per core, fewer for few images.

    Returns:
        The splits that could be opened, and all problems; one is an image that occurs in two
        splits, even if only its pixels are the same.
    """
    datasets: dict[str, SegmentationDataset] = {}
    problems: list[str] = []
    for name in dict.fromkeys((data.train_split, data.val_split, data.split or data.val_split)):
        try:
            datasets[name] = open_split(data, name, strict=False)
        except DataError as error:
            problems.append(str(error))
    readings = iter(_read_all(list(datasets.values()), data, console, processes))
    splits = [
        Split(name, dataset, list(islice(readings, len(dataset))))
        for name, dataset in datasets.items()
    ]
    for split in splits:
        problems += split.dataset.problems
        problems += [reading.problem for reading in split.readings if reading.problem]
        if split.name == data.train_split:
            problems += _too_few_classes(split)
    for one, other in combinations(splits, 2):
        problems += _shared(one, other)
    return splits, list(dict.fromkeys(problems))


def _read_all(
    datasets: list[SegmentationDataset], data: DataConfig, console: Console, processes: int | None
) -> list[Reading]:
    """Return a reading of every pair, one data set after the other."""
    tasks = [
        (pair, len(dataset.classes), dataset.ignore_index)
        for dataset in datasets
        for pair in dataset.pairs
    ]
    processes = processes or min(usable_cores(), 1 + len(tasks) // IMAGES_PER_PROCESS)
    spawn = multiprocessing.get_context("spawn")
    with progress(console) as bar, ProcessPoolExecutor(processes, spawn) as pool:
        results = pool.map(_read, tasks, chunksize=8) if processes > 1 else map(_read, tasks)
        return list(bar.track(results, len(tasks), description=f"reading {data.name}"))


def _read(task: tuple[Pair, int, int]) -> Reading:
    """Read one pair as training does; a task is (pair, number of classes, ignore_index)."""
    pair, num_classes, ignore_index = task
    try:
        image = read_image(pair.image)
    except DataError as error:
        return Reading(str(error))
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())  # H,W,3
    digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    try:
        target = read_mask(pair.mask, num_classes, ignore_index)
        check_same_size(pair, image, target)
    except DataError as error:
        return Reading(str(error), digest)
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(3)], 1)
    moments = np.stack([levels @ counts, levels**2 @ counts])
    labels = np.bincount(target.numpy().ravel(), minlength=256)
    return Reading("", digest, (pixels.shape[1], pixels.shape[0]), moments, labels)


def _too_few_classes(train: Split) -> list[str]:
    """Return a problem if the training masks show fewer than two classes."""
    total = train.labels().sum(0)
    shown = np.flatnonzero(total[:VOID])
    if len(shown) > 1 or not train.usable():
        return []
    labels, ignored, hint = [str(label) for label in shown], train.dataset.ignore_index, ""
    if total[VOID]:
        labels.append(f"{ignored}, and {ignored} means ignored")
        hint = f": if {ignored} is a class, save it as another label in the masks, such as 1"
    return [
        f"{train.dataset.name}: the masks hold only the labels {' and '.join(labels)}; training "
        f"needs at least two classes{hint}"
    ]


def _shared(one: Split, other: Split) -> list[str]:
    """Return a problem for each image that is in both splits, by its id or by its pixels."""
    ids = set(one.dataset.ids)
    twins = {
        reading.digest: pair.image
        for pair, reading in zip(one.dataset.pairs, one.readings, strict=True)
        if reading.digest
    }
    problems = []
    for pair, reading in zip(other.dataset.pairs, other.readings, strict=True):
        if pair.id in ids:
            how = f"{pair.id} is in both {one.name} and {other.name}"
        elif twin := twins.get(reading.digest):
            how = f"in {other.name}, has the same pixels as {twin} in {one.name}"
        else:
            continue
        problems.append(f"{pair.image}: {how}; remove it from one of the two")
    return problems


def _notes(split: Split) -> list[str]:
    """Return what training accepts, but the user may want to know."""
    labels, classes = split.labels(), split.dataset.classes
    absent = [name for k, name in enumerate(classes) if not labels[:, k].any()]
    notes = [f"{split.name}: no pixel of {', '.join(absent)}"] if absent else []
    ignored = [i for i, row in zip(split.usable(), labels, strict=True) if row[VOID] == row.sum()]
    return notes + [f"{split.dataset.pairs[i].mask}: all pixels are ignored" for i in ignored]


def _summary(split: Split) -> dict[str, Any]:
    """Return counts and statistics of a split's usable pairs."""
    found = [split.readings[index] for index in split.usable()]
    about = {
        "list": split.dataset.name,
        "images": len(split.dataset),
        "usable": len(found),
        "ids_sha256": split.dataset.fingerprint(),
    }
    if not found:
        return about
    by_area = sorted((reading.size for reading in found), key=math.prod)
    labels = split.labels()
    total, pixels = labels.sum(0), int(labels.sum())
    mean, square = np.array([reading.moments for reading in found]).sum(0) / pixels
    return about | {
        "pixels": pixels,
        "sizes": {"smallest": by_area[0], "largest": by_area[-1]},
        "mean": mean.tolist(),
        "std": np.sqrt(np.maximum(square - mean**2, 0)).tolist(),
        "ignored_share": total[VOID] / pixels,
        "classes": [
            {"name": name, "pixels": int(total[k]), "images": int((labels[:, k] > 0).sum())}
            for k, name in enumerate(split.dataset.classes)
        ],
    }


def _print_tables(splits: dict[str, dict[str, Any]], console: Console) -> None:
    """Print the numbers of each split, then those of each class."""
    titles = ("images", "usable", "smallest", "largest", "mean of RGB", "std of RGB", "ignored (%)")
    numbers = Table("split", *(Column(title, justify="right") for title in titles), box=None)
    classes = Table("class", box=None)
    for name, split in splits.items():
        small, large = ("{} x {}".format(*split["sizes"][key]) for key in ("smallest", "largest"))
        mean, std = (" ".join(f"{value:.3f}" for value in split[key]) for key in ("mean", "std"))
        counts = (f"{split[key]:,}" for key in ("images", "usable"))
        numbers.add_row(name, *counts, small, large, mean, std, percent(split["ignored_share"]))
        for title in (f"{name} images", "pixels (%)"):
            classes.add_column(title, justify="right")
    for rows in zip(*(split["classes"] for split in splits.values()), strict=True):
        cells = []
        for row, split in zip(rows, splits.values(), strict=True):
            cells += [f"{row['images']:,}", percent(row["pixels"] / split["pixels"])]
        classes.add_row(rows[0]["name"], *cells)
    console.print(numbers)
    console.print(classes)


def _contact_sheet(splits: Sequence[Split], path: Path) -> None:
    """Save usable images of every split, evenly spaced, each with its mask."""
    samples, captions = [], []
    for split in splits:
        usable = split.usable()
        places = np.linspace(0, len(usable) - 1, min(ON_SHEET, len(usable))).round().astype(int)
        for index in (usable[place] for place in places):
            image, target = split.dataset[index]
            samples.append((image.permute(1, 2, 0).numpy(), target.numpy()))
            captions.append(f"{split.name}: {split.dataset.ids[index]}")
    visualize.contact_sheet(samples, splits[0].dataset.classes, captions).save(path)
