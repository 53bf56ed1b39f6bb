"""Inspect a data set before training: what is in it, and everything that is wrong with it.

Files are read by the functions that training reads them with, in several processes.
"""

import hashlib
import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from fcn.config import DataConfig, PrepareDataConfig, RecipeConfig
from fcn.convert.convert import convert
from fcn.data.check import absent_classes, count_pixels, set_problems, too_few_classes
from fcn.data.dataset import (
    Colours,
    Pair,
    SegmentationDataset,
    exif_kind,
    fit_mask,
    read_labels_and_palette,
    read_mask,
    used_colours,
)
from fcn.data.download import fetch
from fcn.data.images import orientation, range_note, read_image
from fcn.data.layouts import open_split
from fcn.data.loaders import TrainingSamples
from fcn.data.shards import write_shards
from fcn.data.transforms import TrainTransform, check_transforms
from fcn.dataset_info import VOID, DatasetInfo
from fcn.errors import DataError
from fcn.output import percent, progress, refuse_overwriting, write_json
from fcn.pictures import visualize
from fcn.processes import usable_cores

IMAGES_PER_PROCESS = 100  # at least; starting a process takes about as long
LARGE = 50_000_000  # pixels of an image that takes seconds to decode
ON_SHEET = 6  # images of each split on the contact sheet
EXIF_NOTES = {
    "turned": "are turned by their EXIF orientation; their masks, which are not, are turned alike",
    "unclear": "are turned by their EXIF orientation, and their size does not tell whether their "
    "masks are too; they are used as they are: look at the contact sheet",
}
ON_SCREEN = 100  # problems printed; report.json has all


@dataclass(frozen=True)
class Reading:
    """The content of an image and its mask, or the problem that makes them unusable."""

    problem: str = ""
    digest: bytes = b""  # of the image's pixels
    exif: str = ""  # see `exif_kind`
    colours: Colours = field(default_factory=dict)  # in the palette of the mask
    size: tuple[int, int] = (0, 0)  # width, height
    moments: np.ndarray | None = None  # float64 (2, C): sums of pixels in [0, 1], of their squares
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

    def absent_classes(self) -> list[str]:
        """Return the classes that no usable mask shows."""
        return absent_classes(self.dataset.info, self.labels().sum(0))


def main(cfg: PrepareDataConfig, folder: Path, console: Console) -> dict[str, Any]:
    """Run prepare_data: fetch a data set if asked to, inspect it, and write shards if asked to.

    Args:
        cfg: the settings.
        folder: where report.json, contact_sheet.png and, of a recipe, training.png are written.
        console: where tables and problems are printed.

    Returns:
        The content of report.json.

    Raises:
        DataError: training on the data set would fail, or the folder of the shards is not empty.
    """
    written = [folder / name for name in ("report.json", "contact_sheet.png", "training.png")]
    refuse_overwriting(written, cfg.overwrite, "hydra.run.dir")
    data, shards = cfg.data, Path(cfg.shards) if cfg.shards else None
    if cfg.convert or cfg.to:
        data = convert(cfg, console)
    if shards and shards.is_dir() and any(shards.iterdir()):
        raise DataError(f"shards={shards}: the folder is not empty; choose a new one")
    if data.download:
        fetch(data, console)
    splits, problems = inspect(data, console, cfg.processes)
    notes = list(dict.fromkeys(note for split in splits for note in _notes(split)))
    summaries = {split.name: _summary(split) for split in splits}
    report = {
        "data": data.name,
        "root": data.root,
        "ignore_index": splits[0].dataset.info.ignore_index if splits else None,
        "splits": summaries,
        "problems": problems,
        "warnings": notes,
    }
    train = [split for split in splits if split.name == data.train_split and split.usable()]
    if cfg.recipe and train:
        info, (width, height) = train[0].dataset.info, train[0].readings[train[0].usable()[0]].size
        check_transforms(cfg.recipe, info.channels, len(info.classes), (height, width))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    if shown := [split for split in splits if split.usable()]:
        _contact_sheet(shown, folder / "contact_sheet.png")
        if cfg.recipe and train:
            _training_sheet(train[0], cfg.recipe, folder / "training.png")
        _print_tables({split.name: summaries[split.name] for split in shown}, console)
    for kind, texts in (("note", notes), ("problem", problems)):
        for text in texts[:ON_SCREEN]:
            console.print(f"{kind}: {text}")
    if problems:
        raise DataError(
            f"data={data.name} cannot be trained on; problems: {len(problems)}, listed in "
            f"{folder / 'report.json'}"
        )
    absent = next(split for split in splits if split.name == data.train_split).absent_classes()
    verdict = "can be trained on"
    if absent:
        verdict = f"can be trained on, but no training mask shows {', '.join(absent)}"
    console.print(f"data={data.name} {verdict}; report and contact sheet in {folder}")
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
            problems += too_few_classes(split.dataset, split.labels().sum(0))
    for one, other in combinations(splits, 2):
        problems += _shared(one, other)
    seen = [(s.dataset.pairs[i], s.readings[i]) for s in splits for i in s.usable()]
    problems += set_problems([(pair, reading.colours, reading.exif) for pair, reading in seen])
    return splits, list(dict.fromkeys(problems))


def _read_all(
    datasets: list[SegmentationDataset], data: DataConfig, console: Console, processes: int | None
) -> list[Reading]:
    """Return a reading of every pair, one data set after the other."""
    tasks = [(pair, dataset.info) for dataset in datasets for pair in dataset.pairs]
    processes = processes or min(usable_cores(), 1 + len(tasks) // IMAGES_PER_PROCESS)
    spawn = multiprocessing.get_context("spawn")
    with progress(console) as bar, ProcessPoolExecutor(processes, spawn) as pool:
        results = pool.map(_read, tasks, chunksize=8) if processes > 1 else map(_read, tasks)
        return list(bar.track(results, len(tasks), description=f"reading {data.name}"))


def _read(task: tuple[Pair, DatasetInfo]) -> Reading:
    """Read one pair as training does."""
    pair, info = task
    try:
        image = read_image(pair.image, info)
    except DataError as error:
        return Reading(str(error))
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())  # H,W,C
    digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    try:
        target = read_mask(pair.mask, len(info.classes), info.ignore_index)
        fitted = fit_mask(pair, image, target)
    except DataError as error:
        return Reading(str(error), digest)
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(c.ravel(), minlength=256) for c in image.numpy()], 1)
    moments = np.stack([levels @ counts, levels**2 @ counts])
    labels = count_pixels(target.numpy())
    exif = exif_kind(orientation(pair.image), target.shape, fitted is not target)
    colours = used_colours(*read_labels_and_palette(pair.mask))
    return Reading("", digest, exif, colours, (pixels.shape[1], pixels.shape[0]), moments, labels)


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
    labels, notes = split.labels(), list(split.dataset.notes)
    if absent := split.absent_classes() if split.usable() else []:
        notes.append(f"{split.name}: no pixel of {', '.join(absent)}")
    sources = [split.dataset.pairs[index].image for index in split.usable()]
    if note := range_note(sources, split.dataset.info):
        notes.append(f"{split.name}: {note}")
    if large := [i for i in split.usable() if math.prod(split.readings[i].size) > LARGE]:
        example, pixels = split.dataset.pairs[large[0]].image, split.readings[large[0]].size
        notes.append(
            f"{split.name}: {len(large)} images such as {example} have "
            f"{math.prod(pixels) / 1e6:.0f} megapixels; every crop of one decodes all of it, which "
            "is slow: smaller pieces of it, saved with their masks, train faster"
        )
    for kind, text in EXIF_NOTES.items():
        found = [index for index in split.usable() if split.readings[index].exif == kind]
        if found:
            example = split.dataset.pairs[found[0]].image
            notes.append(f"{split.name}: {len(found)} images such as {example} {text}")
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
    titles = ("images", "usable", "smallest", "largest", "mean", "std", "ignored (%)")
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
        for index in _spread(split.usable()):
            image, target = split.dataset[index]
            samples.append((visualize.as_rgb(image), target.numpy()))
            captions.append(f"{split.name}: {split.dataset.ids[index]}")
    visualize.contact_sheet(samples, splits[0].dataset.info, captions).save(path)


def _training_sheet(split: Split, recipe: RecipeConfig, path: Path) -> None:
    """Save usable images, evenly spaced, as training sees them: each drawn twice."""
    info, ids = split.dataset.info, split.dataset.ids
    drawn = TrainingSamples(split.dataset, TrainTransform.of(recipe, info.channels))
    samples, captions = [], []
    for seed, index in enumerate(np.repeat(_spread(split.usable()), 2).tolist()):
        image, target = drawn[index, seed]
        samples.append((visualize.as_rgb(image), target.numpy()))
        captions.append(f"{ids[index]}, as training may see it")
    visualize.contact_sheet(samples, info, captions).save(path)


def _spread(usable: Sequence[int]) -> list[int]:
    """Return some indices of images, evenly spaced."""
    places = np.linspace(0, len(usable) - 1, min(ON_SHEET, len(usable))).round().astype(int)
    return [usable[place] for place in places]
