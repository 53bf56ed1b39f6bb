"""Looking through a whole data set: what is in it, and everything in it that training would refuse.

Files are read by the very functions that training reads them with, in many processes; a damaged
one becomes a line in the report, never the end of it.
"""

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from fcn.config import VOID, DataConfig
from fcn.data.datamodule import open_split
from fcn.data.examine import Examined, examine
from fcn.data.files import Pair, SegmentationFiles
from fcn.data.reading import DataError

IMAGES = 100  # of a process at least: it takes about as long to start
Progress = Callable[[int, int], None]  # called with the numbers of images done and to do


@dataclass
class Split:
    """A split as it was found. `files` is None where there is no list to go by."""

    name: str
    files: SegmentationFiles | None
    problems: list[str] = field(default_factory=list)  # of the list
    examined: list[Examined] = field(default_factory=list)  # one a pair

    @property
    def usable(self) -> list[int]:
        """Indices of the pairs that can be trained on."""
        return [index for index, found in enumerate(self.examined) if not found.problems]


@dataclass
class Audit:
    """All that was found. `problems` are what training would refuse, `warnings` what it would not.

    An image that two splits share is a problem however it is stored: where only its pixels are
    the same, training would start, but its number would be worthless.
    """

    splits: list[Split]
    problems: list[str]
    warnings: list[str]

    def report(self, data: DataConfig) -> dict[str, Any]:
        """The contents of report.json."""
        return {
            "data": data.name,
            "root": data.root,
            "ignore_index": data.ignore_index,
            "splits": {split.name: summary(split) for split in self.splits},
            "problems": self.problems,
            "warnings": self.warnings,
        }


def audit(
    data: DataConfig,
    splits: Sequence[str],
    processes: int | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Reads every image and mask of some splits.

    Args: processes: how many read; null: one a core, fewer for few images.
    Raises: nothing for what is wrong with the data: that is what it returns.
    """
    found = [_open(data, name) for name in splits]
    work = [(s.files, pair) for s in found if s.files is not None for pair in s.files.pairs]
    processes = processes or min(cores(), -(-len(work) // IMAGES))
    results = []
    for done, result in enumerate(_examine_all(work, processes), 1):
        results.append(result)
        if progress is not None:
            progress(done, len(work))
    for split in found:
        count = len(split.files) if split.files is not None else 0
        split.examined, results = results[:count], results[count:]
    problems = [p for s in found for p in s.problems]
    problems += [p for s in found for e in s.examined for p in e.problems]
    for one, other in combinations(found, 2):
        problems += shared(one, other)
    return Audit(found, list(dict.fromkeys(problems)), _warnings(found))


def shared(one: Split, other: Split) -> list[str]:
    """What to say of each image that is in both splits: by its id, its bytes or its pixels."""
    if one.files is None or other.files is None:
        return []
    ids = set(one.files.ids)
    said = {
        pair.id: f"{pair.image}: {pair.id} is in both {one.name} and {other.name}; "
        "take it off one of the lists"
        for pair in other.files.pairs
        if pair.id in ids
    }
    for kind, how in ((0, "is the same file as"), (1, "has the same pixels as")):
        firsts: dict[bytes, Pair] = {}
        for pair, found in zip(one.files.pairs, one.examined, strict=True):
            if found.hashes:
                firsts.setdefault(found.hashes[kind], pair)
        for pair, found in zip(other.files.pairs, other.examined, strict=True):
            twin = firsts.get(found.hashes[kind]) if found.hashes else None
            if twin is not None and pair.id not in said:
                said[pair.id] = (
                    f"{pair.image}: in {other.name}, {how} {twin.image} in {one.name}; "
                    "take it off one of the lists"
                )
    return list(said.values())


def summary(split: Split) -> dict[str, Any]:
    """Counts and statistics of a split's usable pairs; null where there is nothing to say."""
    if split.files is None:
        return {"images": 0, "usable": 0}
    found = [split.examined[index] for index in split.usable]
    sizes = Counter(e.size for e in found if e.size is not None)
    labels = np.array([e.labels for e in found]).reshape(-1, 256)
    total, pixels = labels.sum(0), int(labels.sum())
    mean, square = np.array([e.moments for e in found]).reshape(-1, 2, 3).sum(0) / max(pixels, 1)
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    return {
        "list": split.files.name,
        "images": len(split.files),
        "usable": len(found),
        "ids_sha256": split.files.fingerprint(),
        "pixels": pixels,
        "sizes": {
            "different": len(sizes),
            "smallest": by_area[0] if by_area else None,
            "largest": by_area[-1] if by_area else None,
            "commonest": [[*size, count] for size, count in sizes.most_common(5)],
        },
        "mean": mean.tolist() if found else None,
        "std": np.sqrt(np.maximum(square - mean**2, 0)).tolist() if found else None,
        "void_share": total[VOID] / pixels if found else None,
        "classes": [
            {"name": name, "pixels": int(total[k]), "images": int((labels[:, k] > 0).sum())}
            for k, name in enumerate(split.files.classes)
        ],
    }


def cores() -> int:
    """How many this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _open(data: DataConfig, name: str) -> Split:
    try:
        files = open_split(data, name, strict=False)
    except DataError as error:
        return Split(name, None, [str(error)])
    return Split(name, files, files.problems)


def _examine_all(
    work: Sequence[tuple[SegmentationFiles, Pair]], processes: int
) -> Iterator[Examined]:
    """One result a pair, in order. Processes are spawned: nothing of this one is copied."""
    if not work:
        return
    files = work[0][0]  # all splits have the same classes
    examine_one = partial(examine, num_classes=len(files.classes), ignore_index=files.ignore_index)
    pairs = [pair for _, pair in work]
    if processes == 1:
        yield from map(examine_one, pairs)
        return
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(examine_one, pairs, chunksize=8)
    finally:
        pool.shutdown(cancel_futures=True)


def _warnings(splits: Sequence[Split]) -> list[str]:
    """What training would not refuse, but a person may want to know."""
    said = []
    for split in splits:
        if split.files is None:
            continue
        labels = np.array([split.examined[i].labels for i in split.usable]).reshape(-1, 256)
        if absent := [n for k, n in enumerate(split.files.classes) if not labels[:, k].any()]:
            said.append(f"{split.name}: no pixel of {', '.join(absent)}")
        for index, row in zip(split.usable, labels, strict=True):
            if row[VOID] == row.sum():
                said.append(f"{split.files.pairs[index].mask}: void alone; nothing to learn from")
    return said
