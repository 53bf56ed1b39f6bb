"""areas.csv: how many pixels and square metres each class has in every mask of a folder."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby, repeat
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

from fcn.data.dataset import read_labels
from fcn.data.georeference import Georeference, read_georeference
from fcn.errors import ConfigError, DataError
from fcn.output import atomic_write
from fcn.processes import Processes

NAME = "areas.csv"
HEADER = ["mask", "class", "pixels", "share", "square_metres"]


class Areas:
    """The table of a folder, which the processes of a command fill together.

    Args:
        folder: of the masks.
        classes: the names of the labels.
        masks: those of this command, the same in all processes.
        since: when predict.json was written; an older table is of other masks, and replaced.

    Raises:
        ConfigError: the table there has other columns.
    """

    def __init__(
        self, folder: Path, classes: Sequence[str], masks: Sequence[Path], since: float
    ) -> None:
        self.folder, self.classes = folder, classes
        self.numbers = {mask: number for number, mask in enumerate(masks)}
        self.pixels = torch.zeros((len(masks), len(classes)), dtype=torch.int64)
        self.rows, self.changed = _read(folder / NAME, since)

    def add(self, mask: Path, pixels: Sequence[int]) -> None:
        """Add a mask with the pixels of each label, of which only the classes count."""
        self.pixels[self.numbers[mask]] = torch.tensor(pixels[: len(self.classes)])

    def write(
        self, processes: Processes, georeferences: Mapping[Path, Georeference | None]
    ) -> list[str]:
        """Write what all processes have added, and what the table had; all must call this.

        Returns:
            Why the square metres of GeoTIFFs are not known, a line for each reason.
        """
        counts, reasons = processes.sum(self.pixels).tolist(), Counter[str]()
        added = dict(zip(self.numbers, counts, strict=True))
        if processes.rank == 0:  # masks of other images that were corrected since
            georeferences = dict(georeferences)
            for mask in (mask for mask in self.changed if mask not in added):
                with suppress(DataError):  # no mask of labels any more: it has no row
                    added[mask] = count(mask)[: len(self.classes)]
                    georeferences[mask] = read_georeference(mask)
        for mask, pixels in added.items():
            if total := sum(pixels):
                place, name = georeferences[mask], mask.relative_to(self.folder).as_posix()
                metres, reason = place.pixel_area() if place else (None, "")
                reasons[reason] += 1
                areas = ["" if metres is None else f"{n * metres:.12g}" for n in pixels]
                shares = [f"{n / total:.6f}" for n in pixels]
                columns = repeat(name), self.classes, pixels, shares, areas
                self.rows[mask] = _text(zip(*columns, strict=False))
        if reasons and processes.rank == 0:
            rows = (self.rows[mask] for mask in sorted(self.rows, key=Path.as_posix))
            with atomic_write(self.folder / NAME) as temporary:
                temporary.write_text("".join((_text([HEADER]), *rows)), "utf-8", newline="")
        return [
            f"{NAME} has no square metres for {count} GeoTIFF{'s' * (count > 1)} {reason}; "
            "reproject to a UTM zone, for example"
            for reason, count in reasons.items()
            if reason
        ]


def count(mask: Path) -> list[int]:
    """Return the pixels of each label 0..255 in the file of a mask."""
    return np.bincount(read_labels(mask).ravel(), minlength=256).tolist()


def _read(path: Path, since: float) -> tuple[dict[Path, str], list[Path]]:
    """Return the rows of each mask, as text, and the masks that are newer than the table."""
    time = path.stat().st_mtime if path.is_file() else -math.inf
    if time < since:
        return {}, []
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        if next(lines, []) != HEADER:
            raise ConfigError(
                f"{path}: other columns than {','.join(HEADER)}; rename the file, or overwrite=true"
            )
        rows = {path.parent / name: _text(own) for name, own in groupby(lines, key=itemgetter(0))}
    there = {mask: row for mask, row in rows.items() if mask.exists()}
    changed = [mask for mask in there if mask.stat().st_mtime > time]
    for mask in changed:
        del there[mask]
    return there, changed


def _text(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
