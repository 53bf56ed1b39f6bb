"""Read all masks of a data set before a run, so that an invalid one fails early.

For a large data set that takes a while, so what is in a mask is kept in the user's cache folder, by
the path, size and time of its file.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch
from numpy.typing import NDArray
from rich.console import Console

from fcn.data.dataset import (
    CONVERT,
    Colours,
    Pair,
    SegmentationDataset,
    Source,
    check_size,
    exif_kind,
    exif_problem,
    palette_problem,
    read_labels_and_palette,
    used_colours,
    wrong_label,
)
from fcn.data.images import size_and_orientation
from fcn.dataset_info import VOID, DatasetInfo
from fcn.errors import DataError
from fcn.output import progress, write_json
from fcn.processes import usable_cores

CACHED_FROM = 200  # smallest number of masks in a split whose counts are cached
Counts = NDArray[np.int64]  # (images, 256): pixels of each label in each mask


class Mask(NamedTuple):
    """What is kept of a mask.

    Args:
        labels: those in it.
        pixels: of each of them.
        colours: of its palette.
        exif: see `exif_kind`.
    """

    labels: list[int]
    pixels: list[int]
    colours: Colours
    exif: str


def scan(splits: Sequence[SegmentationDataset], console: Console, *, training: bool) -> None:
    """Read every mask of some splits, before a run that would fail at a bad one much later.

    Masks in shards are left out: they were read when the shards were written.

    Args:
        splits: of one data set; for training, the split to train on comes first.
        console: for progress, and for what is odd but no error.
        training: whether the first split is to be trained on.

    Raises:
        DataError: a mask is unreadable, has another size than its image, or holds a label that is
            no class; the training masks hold fewer than two classes; see `set_problems`.
    """
    print_notes(splits, console)
    seen = list[tuple[Pair, Colours, str]]()
    for split in splits:
        if not all(isinstance(pair.mask, Path) for pair in split.pairs):
            continue
        masks = read_masks(split, console)
        seen += [(p, m.colours, m.exif) for p, m in zip(split.pairs, masks, strict=True)]
        counts = count_labels(masks)
        train = training and split is splits[0]
        problems = label_problems(split, counts)
        totals = as_targets(counts, split.info).sum(0)
        if train and not problems:
            problems = too_few_classes(split, totals)
        problems = problems or set_problems(seen)[:1]
        if problems:
            more = f" (and {len(problems) - 1} more masks)" if len(problems) > 1 else ""
            raise DataError(problems[0] + more)
        if absent := absent_classes(split.info, totals):
            kind, style = ("warning", "yellow") if train else ("note", None)
            console.print(f"{kind}: {split.name}: no pixel of {', '.join(absent)}", style=style)


def print_notes(splits: Sequence[SegmentationDataset], console: Console) -> None:
    """Print what was left out of some splits, and what else the user may want to know."""
    for note in dict.fromkeys(note for split in splits for note in split.notes):
        console.print(f"note: {note}")


def set_problems(masks: Sequence[tuple[Pair, Colours, str]]) -> list[str]:
    """Return the problems of masks that do not fit together, though each may be right.

    Args:
        masks: of one data set, each with the colours of its palette and its `exif_kind`.
    """
    palettes = palette_problem((pair.mask, colours) for pair, colours, _ in masks)
    turns = exif_problem((pair, exif) for pair, _, exif in masks)
    return [problem for problem in (palettes, turns) if problem]


def read_masks(split: SegmentationDataset, console: Console) -> list[Mask]:
    """Read every mask of a split, or what is known of it.

    Raises:
        DataError: a mask is missing or unreadable, or has another size than its image.
    """
    cache = _cache_file(split) if len(split) >= CACHED_FROM else None
    known, masks = _read_cache(cache), [str(pair.mask) for pair in split.pairs]
    states = [_file_state(pair.mask) + _file_state(pair.image) for pair in split.pairs]
    todo = [i for i, mask in enumerate(masks) if known.get(mask, [None])[0] != states[i]]
    with progress(console) as bar, ThreadPoolExecutor(usable_cores()) as pool:
        read = pool.map(_read_pair, (split.pairs[i] for i in todo))
        done = zip(todo, read, strict=True)
        for i, mask in bar.track(done, len(todo), description="reading masks"):
            colours = [*mask.colours.items()]  # JSON has no numbers as keys
            known[masks[i]] = [states[i], mask.labels, mask.pixels, colours, mask.exif]
    if cache and todo:
        with suppress(OSError):  # such as a home folder that cannot be written to
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(cache, known)
    found = (known[mask][1:] for mask in masks)
    return [Mask(labels, pixels, dict(kept), exif) for labels, pixels, kept, exif in found]


def count_labels(masks: Sequence[Mask]) -> Counts:
    """Return the pixels of each label, as it is stored, in every mask."""
    counts = np.zeros((len(masks), 256), np.int64)
    for row, mask in zip(counts, masks, strict=True):
        row[mask.labels] = mask.pixels
    return counts


def class_pixels(split: SegmentationDataset, console: Console) -> list[int]:
    """Count the pixels of each class in all masks of a split."""
    totals = as_targets(count_labels(read_masks(split, console)), split.info).sum(0)
    return totals[: len(split.classes)].tolist()


def _read_pair(pair: Pair) -> Mask:
    """Read a mask that has the size of its image."""
    labels, palette = read_labels_and_palette(pair.mask)
    size, turn = (pair.size, 1) if pair.size else size_and_orientation(pair.image)
    turned = check_size(pair, size, labels.shape)
    used = np.flatnonzero(row := count_pixels(labels))
    colours, kind = used_colours(used, palette), exif_kind(turn, labels.shape, turned)
    return Mask(used.tolist(), row[used].tolist(), colours, kind)


def count_pixels(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the pixels of each label of a mask (H, W), int64 (256,)."""
    return np.bincount(labels.ravel(), minlength=256)


def as_targets(counts: Counts, info: DatasetInfo) -> Counts:
    """Return counts with the ignored pixels at 255, wherever the mask files have them."""
    result = counts.copy()
    result[:, info.ignore_index] = 0
    result[:, VOID] = counts[:, info.ignore_index]
    return result


def label_problems(split: SegmentationDataset, counts: Counts) -> list[str]:
    """Return a message for each mask with a label that is neither a class nor ignored."""
    k, ignored = len(split.classes), split.info.ignore_index
    wrong = [label for label in range(k, 256) if label != ignored]
    return [
        wrong_label(pair.mask, wrong[int(row[wrong].argmax())], k, ignored)
        for pair, row in zip(split.pairs, counts > 0, strict=True)
        if row[wrong].any()
    ]


def too_few_classes(split: SegmentationDataset, totals: NDArray[np.int64]) -> list[str]:
    """Return a problem if the masks of a split to train on show fewer than two classes.

    Args:
        split: the split.
        totals: int64 (256,), the pixels of each label; 255 is ignored.
    """
    shown = np.flatnonzero(totals[: len(split.classes)])
    if len(shown) > 1 or not totals.any():
        return []
    name, ignored = split.name, split.info.ignore_index
    if len(shown) == 1 and totals[VOID]:
        return [
            f"{name}: masks hold only {shown[0]} and {ignored}; {ignored} is ignored, so there is "
            f"one class to learn; to read {ignored} as class 1, run {CONVERT}"
        ]
    labels = str(shown[0]) if len(shown) else str(ignored)
    return [f"{name}: masks hold only the label {labels}; training needs at least two classes"]


def absent_classes(info: DatasetInfo, totals: NDArray[np.int64]) -> list[str]:
    """Return the classes without a pixel, except one whose label means ignored."""
    return [
        name
        for label, name in enumerate(info.classes)
        if not totals[label] and label != info.ignore_index
    ]


def _file_state(file: Source) -> list[int]:
    """Return what tells whether a file has changed: size and time, or a shard's checksum."""
    if isinstance(file, Path):
        try:
            stat = file.stat()
        except OSError:
            return []  # reading it will say what is wrong
        return [stat.st_size, stat.st_mtime_ns]
    return [getattr(file, "length", 0), getattr(file, "crc32", 0)]


def _cache_file(split: SegmentationDataset) -> Path:
    """Return where the counts of a data set are kept: one file for each folder of masks."""
    folders = sorted({str(Path(str(pair.mask)).parent.absolute()) for pair in split.pairs})
    name = hashlib.sha256("\n".join(folders).encode()).hexdigest()[:16]
    return Path(pooch.os_cache("fcn-segmentation"), "masks", f"{name}.json")


def _read_cache(cache: Path | None) -> dict[str, list]:
    """Return the state of the files of each mask, and its `Mask`."""
    try:
        return json.loads(cache.read_text(encoding="utf-8")) if cache else {}
    except (OSError, ValueError):
        return {}
