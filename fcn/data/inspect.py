"""Inspecting a data set before training: what is in it, and everything that is wrong with it.

Files are read by the functions that training reads them with, in several processes.
"""

import hashlib
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

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
    """What an image and its mask hold; without problems, nothing is None."""

    problems: list[str]
    digest: bytes = b""  # of the image's pixels
    size: tuple[int, int] | None = None  # width, height
    moments: np.ndarray | None = None  # float64 (2, 3): sums of RGB in [0, 1], and of its squares
    labels: np.ndarray | None = None  # int64 (256,): pixels of each label, 255 = ignored


@dataclass
class Split:
    """A split and one reading per pair; only the usable pairs have no problems."""

    name: str
    dataset: SegmentationDataset
    readings: list[Reading] = field(default_factory=list)

    def usable(self) -> list[int]:
        return [index for index, reading in enumerate(self.readings) if not reading.problems]

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
    report = {
        "data": data.name,
        "root": data.root,
        "ignore_index": data.ignore_index,
        "splits": {split.name: _summary(split) for split in splits},
        "problems": problems,
        "warnings": notes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    shown = [split for split in splits if split.usable()]
    if shown:
        _contact_sheet(shown, folder / "contact_sheet.png")
        _print_tables({split.name: _summary(split) for split in shown}, console)
    for kind, texts in (("note", notes), ("problem", problems)):
        for text in texts[:ON_SCREEN]:
            console.print(f"{kind}: {text}")
    if problems:
        raise DataError(
            f"data={data.name} cannot be trained on: {len(problems)} problem"
            f"{'s' * (len(problems) > 1)}, listed in {folder / 'report.json'}"
        )
    console.print(f"data={data.name} can be trained on; report and contact sheet in {folder}")
    if shards:
        for split in splits:
            with progress(console) as bar:
                task = bar.add_task(f"writing {split.name}", total=len(split.dataset))
                advance = partial(bar.advance, task)
                write_shards(split.dataset, shards, split.name, progress=advance)
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
        The splits that could be opened, and all problems. An image that occurs in two splits is
        one, even if only its pixels are the same.
    """
    splits: list[Split] = []
    problems: list[str] = []
    names = [data.train_split, data.val_split]
    names += [data.split] if data.split and data.split not in names else []
    for name in names:
        try:
            splits.append(Split(name, open_split(data, name, strict=False)))
            problems += splits[-1].dataset.problems
        except DataError as error:
            problems.append(str(error))
    pairs = [pair for split in splits for pair in split.dataset.pairs]
    if pairs:
        processes = processes or min(usable_cores(), -(-len(pairs) // IMAGES_PER_PROCESS))
        about = splits[0].dataset  # all splits have the same classes
        read = partial(_read, num_classes=len(about.classes), ignore_index=about.ignore_index)
        with progress(console) as bar:
            results = _map(read, pairs, processes)
            readings = list(bar.track(results, len(pairs), description=f"reading {data.name}"))
        for split in splits:
            count = len(split.dataset)
            split.readings, readings = readings[:count], readings[count:]
            problems += [problem for reading in split.readings for problem in reading.problems]
    problems += [p for split in splits if split.name == data.train_split for p in _too_few(split)]
    problems += [p for one, other in combinations(splits, 2) for p in _shared(one, other)]
    return splits, list(dict.fromkeys(problems))


def _map(read: Any, pairs: Sequence[Pair], processes: int) -> Iterator[Reading]:
    if processes == 1:
        yield from map(read, pairs)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(read, pairs, chunksize=8)


def _read(pair: Pair, num_classes: int, ignore_index: int) -> Reading:
    """Read one pair as training does, but collect its problems."""
    problems: list[str] = []
    image = target = None
    try:
        image = read_image(pair.image)
    except DataError as error:
        problems.append(str(error))
    try:
        target = read_mask(pair.mask, num_classes, ignore_index)
        if image is not None:
            check_same_size(pair, image, target)
    except DataError as error:
        problems.append(str(error))
    if image is None:
        return Reading(problems)
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())  # H,W,3
    digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    if problems or target is None:
        return Reading(problems, digest)
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(3)], 1)
    moments = np.stack([levels @ counts, levels**2 @ counts])
    labels = np.bincount(target.numpy().ravel(), minlength=256)
    return Reading(problems, digest, (pixels.shape[1], pixels.shape[0]), moments, labels)


def _too_few(train: Split) -> list[str]:
    """Return a problem if the training masks show fewer than two classes."""
    total = train.labels().sum(0)
    shown = np.flatnonzero(total[:VOID])
    if len(shown) > 1 or not train.usable():
        return []
    if not len(shown):
        what = "every pixel of every mask is ignored; check data.ignore_index"
    elif total[VOID] and train.dataset.ignore_index == VOID:
        what = (
            f"the masks hold only the labels {shown[0]} and 255, and 255 means ignored; if it is a "
            "class, save it as 1 in the masks"
        )
    else:
        what = f"the masks hold only the label {shown[0]}; training needs at least two classes"
    return [f"{train.dataset.name}: {what}"]


def _shared(one: Split, other: Split) -> list[str]:
    """Return a problem for each image that is in both splits, by its id or by its pixels."""
    ids = set(one.dataset.ids)
    twins: dict[bytes, Pair] = {}
    for pair, reading in zip(one.dataset.pairs, one.readings, strict=True):
        twins.setdefault(reading.digest, pair)
    problems = []
    for pair, reading in zip(other.dataset.pairs, other.readings, strict=True):
        if pair.id in ids:
            how = f"{pair.id} is in both {one.name} and {other.name}"
        elif reading.digest and reading.digest in twins:
            twin = twins[reading.digest].image
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
    sizes = Counter(reading.size for reading in found if reading.size)
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    labels = split.labels()
    total, pixels = labels.sum(0), int(labels.sum())
    mean, square = np.array([reading.moments for reading in found]).sum(0) / pixels
    return about | {
        "pixels": pixels,
        "sizes": {
            "different": len(sizes),
            "smallest": by_area[0],
            "largest": by_area[-1],
            "commonest": [[*size, count] for size, count in sizes.most_common(5)],
        },
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
    numbers, classes = Table("split", box=None), Table("class", box=None)
    titles = ("images", "usable", "smallest", "largest", "mean of RGB", "std of RGB", "ignored (%)")
    for title in titles:
        numbers.add_column(title, justify="right")
    for name, split in splits.items():
        small, large = ("{} x {}".format(*split["sizes"][k]) for k in ("smallest", "largest"))
        mean, std = (" ".join(f"{value:.3f}" for value in split[key]) for key in ("mean", "std"))
        counts = (f"{split[key]:,}" for key in ("images", "usable"))
        numbers.add_row(name, *counts, small, large, mean, std, percent(split["ignored_share"]))
        classes.add_column(f"{name} images", justify="right")
        classes.add_column("pixels (%)", justify="right")
    for rows in zip(*(split["classes"] for split in splits.values()), strict=True):
        cells = []
        for row, split in zip(rows, splits.values(), strict=True):
            cells += [f"{row['images']:,}", percent(row["pixels"] / split["pixels"])]
        classes.add_row(rows[0]["name"], *cells)
    console.print(numbers)
    console.print(classes)


def _contact_sheet(splits: Sequence[Split], path: Path) -> None:
    """Save usable images of every split, evenly spaced, each next to its mask."""
    samples, captions = [], []
    for split in splits:
        usable = split.usable()
        places = np.linspace(0, len(usable) - 1, min(ON_SHEET, len(usable))).round().astype(int)
        for index in (usable[place] for place in places):
            image, target = split.dataset[index]
            samples.append((image.permute(1, 2, 0).numpy(), target.numpy()))
            captions.append(f"{split.name}: {split.dataset.ids[index]}")
    visualize.contact_sheet(samples, splits[0].dataset.classes, captions).save(path)
