"""areas.csv: how many pixels and square metres each class has in every mask of a folder."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from pathlib import Path

import numpy as np
import torch

from fcn.data.georeference import Georeference, read_georeference
from fcn.errors import ConfigError
from fcn.output import atomic_write
from fcn.processes import Processes

NAME = "areas.csv"
HEADER = ["mask", "class", "pixels", "share", "square_metres"]


class Areas:
    """The table of a folder, which the processes of a command fill together.

    The masks of earlier commands stay in it. They too are counted each time, so the table agrees
    with the files whatever their times say.

    Args:
        folder: of the masks.
        classes: the names of the labels.
        masks: those of this command, the same in all processes.

    Raises:
        ConfigError: the table there has other columns.
    """

    def __init__(self, folder: Path, classes: Sequence[str], masks: Sequence[Path]) -> None:
        self.path, self.classes = folder / NAME, classes
        self.others = sorted(_read(self.path) - set(masks))  # of earlier commands
        self.numbers = {mask: number for number, mask in enumerate([*masks, *self.others])}
        # The last column is of the pixels without a class.
        self.pixels = torch.zeros((len(self.numbers), len(classes) + 1), dtype=torch.int64)

    def add(self, mask: Path, pixels: Sequence[int]) -> None:
        """Add a mask with the pixels of each label 0..255."""
        known = len(self.classes)
        counts = [*pixels[:known], sum(pixels[known:])]
        self.pixels[self.numbers[mask]] = torch.tensor(counts)

    def gather(self, processes: Processes) -> set[Path]:
        """Return the masks that any process has added; all must call this."""
        self.pixels = processes.sum(self.pixels)
        found = self.pixels.any(1).tolist()
        return {mask for mask, added in zip(self.numbers, found, strict=True) if added}

    def write(self, georeferences: Mapping[Path, Georeference | None]) -> list[str]:
        """Write the table, unless it stands there already.

        Args:
            georeferences: those of the images of this command, by mask.

        Returns:
            Why the square metres of GeoTIFFs are not known, a line for each reason; none if the
            table is the one that stood there.
        """
        rows, reasons = list[Iterable[object]]([HEADER]), Counter[str]()
        for mask in sorted(self.numbers, key=Path.as_posix):
            pixels = self.pixels[self.numbers[mask], :-1].tolist()
            if total := sum(pixels):
                place = georeferences[mask] if mask in georeferences else read_georeference(mask)
                metres, reason = place.pixel_area() if place else (None, "")
                reasons[reason] += 1
                name = mask.relative_to(self.path.parent).as_posix()
                areas = ["" if metres is None else f"{n * metres:.12g}" for n in pixels]
                shares = [f"{n / total:.6f}" for n in pixels]
                rows += zip(repeat(name), self.classes, pixels, shares, areas, strict=False)
        csv.writer(text := io.StringIO()).writerows(rows)
        table = text.getvalue().encode()
        if self.path.is_file() and self.path.read_bytes() == table:
            return []
        with atomic_write(self.path) as temporary:
            temporary.write_bytes(table)
        return [
            f"{NAME} has no square metres for {count} GeoTIFF{'s' * (count > 1)} {reason}; "
            "reproject to a UTM zone, for example"
            for reason, count in reasons.items()
            if reason
        ]


def count(mask: np.ndarray) -> list[int]:
    """Return the pixels of each label 0..255 in a mask, uint8 (H, W)."""
    return np.bincount(mask.ravel(), minlength=256).tolist()


def _read(path: Path) -> set[Path]:
    """Return the masks that a table names and that are still there."""
    if not path.is_file():
        return set()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets add a mark
            header, *rows = csv.reader(file)
    except ValueError:  # empty, or in another encoding
        header, rows = [], []
    if header != HEADER:
        raise ConfigError(
            f"{path}: other columns than {','.join(HEADER)} in UTF-8; rename or remove the file"
        )
    masks = {path.parent / row[0] for row in rows if row}
    return {mask for mask in masks if mask.is_file()}
