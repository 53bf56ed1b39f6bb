"""Files that name the classes of masks, by number or by colour."""

import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from fcn.convert.export import Export, Reading
from fcn.convert.export_folder import ExportFolder, Item
from fcn.convert.masks import COLOUR, find_alpha, read_values
from fcn.data.dataset import read_list
from fcn.dataset_info import IGNORED
from fcn.errors import DataError


@dataclass(frozen=True)
class ClassList:
    """A file that names the classes of masks."""

    path: Path
    names: dict[int, str]  # class of each value
    colours: dict[str, list[int]] = field(default_factory=dict)  # RGB of classes


def listed_export(
    title: str, folder: ExportFolder, lists: Sequence[ClassList], reading: Reading
) -> Export:
    """Return an export of masks whose values lists of classes name.

    Raises:
        DataError: lists give a value two names.
    """
    items, names = paired(folder, reading), dict[int, str]()
    for entry in lists:
        for value, name in entry.names.items():
            if names.setdefault(value, name) != name and not reading.mapped:
                raise DataError(
                    f"{entry.path} and {lists[0].path} name classes differently; convert their "
                    'folders one by one, or say what values mean: "labels={0: NAME, 1: NAME}"'
                )
    colours = {name: rgb for entry in lists for name, rgb in entry.colours.items()}
    notes = [note for entry in lists for note in _twice_notes(entry)]
    return Export(title, items, names, colours, notes)


def paired(folder: ExportFolder, reading: Reading) -> list[Item]:
    """Return the masks with their images."""
    return folder.pair(mask_reader(folder, reading))


def mask_reader(
    folder: ExportFolder, reading: Reading
) -> Callable[[Path], Callable[[], np.ndarray]]:
    """Return a function that returns the function that reads a mask."""
    alpha = find_alpha(folder.masks)
    if alpha.is_mask and reading.colours:
        if alpha.is_black:
            raise DataError(
                f"{folder.masks[0]}: all masks are black, and their alpha channel is the mask; "
                "leave out data.colours"
            )
        alpha = replace(alpha, is_mask=False)
    return lambda mask: partial(read_values, mask, reading.colours, alpha, reading.lossless)


def _twice_notes(entry: ClassList) -> list[str]:
    """Return notes on names that a list has in several rows, which become one class."""
    counts = Counter(name for value, name in entry.names.items() if value < COLOUR)
    twice = [n for n, count in counts.items() if count > 1 and n.lower() not in IGNORED]
    return [f"{entry.path}: {name} is in several rows, which become one class" for name in twice]


def colour_names(rows: Sequence[tuple[str, list[int]]], source: object) -> dict[int, str]:
    """Return the class of each value of masks in colours, from pairs of name and RGB.

    A mask of one channel holds grey levels if all colours are grey, otherwise the numbers of rows.

    Raises:
        DataError: two classes have one colour; `source` names the list.
    """
    owners = dict[tuple[int, ...], str]()
    for name, rgb in rows:
        if (owner := owners.setdefault(tuple(rgb), name)) != name:
            raise DataError(
                f"{source}: {owner} and {name} have one colour, {rgb}; give each its own, or, if "
                "they are one class, take one of them away"
            )
    grey = all(len(set(rgb)) == 1 for _, rgb in rows)
    numbers = {rgb[0] if grey else number: name for number, (name, rgb) in enumerate(rows)}
    return numbers | {COLOUR + (r << 16) + (g << 8) + b: name for name, (r, g, b) in rows}


def colour_list(path: Path, rows: Sequence[tuple[str, list[int]]]) -> ClassList:
    """Return a list of classes and colours; if a row has no colour, all are numbers."""
    if all(rgb for _, rgb in rows):
        return ClassList(path, colour_names(rows, path), dict(rows))
    return ClassList(path, {number: name for number, (name, _) in enumerate(rows)})


def colour_rows(path: Path) -> list[tuple[str, list[int]]]:
    """Return name and colour, if there is one, in each row of a list of CamVid or Cityscapes."""
    head, *lines = read_list(path) or [""]
    names = [name.lower() for name in cells(head)] if path.suffix == ".csv" else []
    rgb = [names.index(name) for name in "rgb" if name in names]
    place = next((k for k, name in enumerate(names) if name in ("name", "class")), None)
    if len(rgb) == 3 and place is not None:  # columns with a head, in any order
        rows = [row for row in map(cells, lines) if len(row) == len(names)]
        if len(rows) == len(lines):
            return [(row[place], [int(row[k]) for k in rgb]) for row in rows]
    found = []
    for line in (head, *lines):
        numbers = re.search(r"(?:^|,)\s*(\d+)[\s,]+(\d+)[\s,]+(\d+)", line.replace('"', ""))
        if path.suffix == ".csv" and not numbers:
            continue  # the head
        name = line.replace('"', "").replace(numbers[0], "") if numbers else line
        found.append((name.strip(" \t,"), [int(n) for n in numbers.groups()] if numbers else []))
    return found


def cells(line: str) -> list[str]:
    """Return the cells of a line of CSV, without their quotes."""
    return [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))]
