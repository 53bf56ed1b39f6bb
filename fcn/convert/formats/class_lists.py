"""Files that name the classes of masks, by number or by colour."""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from fcn.config import PrepareDataConfig
from fcn.convert.annotation_folder import AnnotationFolder, Item
from fcn.convert.annotation_set import AnnotationSet
from fcn.convert.masks import COLOUR, find_alpha, read_values
from fcn.data.dataset import read_list
from fcn.dataset_info import IGNORED
from fcn.errors import DataError

Rows = Sequence[tuple[str, list[int]]]  # name and RGB of each class


@dataclass(frozen=True)
class ClassList:
    """A file that names the classes of masks."""

    path: Path
    names: dict[int, str]  # class of each value
    colours: dict[str, list[int]] = field(default_factory=dict)  # RGB of classes


def listed_set(
    title: str, folder: AnnotationFolder, lists: Sequence[ClassList], cfg: PrepareDataConfig
) -> AnnotationSet:
    """Return an export of masks whose values lists of classes name.

    Raises:
        DataError: lists give a value two names.
    """
    colours = {name: rgb for entry in lists for name, rgb in entry.colours.items()}
    by_colour = any(value >= COLOUR for entry in lists for value in entry.names)
    items, names, notes = paired(folder, cfg, by_colour), dict[int, str](), list[str]()
    for entry in lists:
        for value, name in entry.names.items():
            if names.setdefault(value, name) != name and not (cfg.labels or cfg.data.colours):
                raise DataError(
                    f"{entry.path} and {lists[0].path} name classes differently; convert their "
                    'folders one by one, or say what values mean: "labels={0: NAME, 1: NAME}"'
                )
        counts = Counter(name for value, name in entry.names.items() if value < COLOUR)
        for name, count in counts.items():
            if count > 1 and name.lower() not in IGNORED:
                notes.append(f"{entry.path}: {name} is in several rows, which become one class")
    return AnnotationSet(title, items, names, colours, notes)


def paired(
    folder: AnnotationFolder,
    cfg: PrepareDataConfig,
    by_colour: bool = False,
    matches: Mapping[Path, list[Path]] | None = None,
) -> list[Item]:
    """Return the masks with their images.

    Args:
        folder: the files.
        cfg: the settings.
        by_colour: colours are classes, even in palettes and in grey; so they are if the settings
            list colours. If the settings name labels, they never are.
        matches: the images of each mask; None: those that `folder.match` finds.
    """
    alpha = find_alpha(folder.masks)
    by_colour = not cfg.labels and (by_colour or bool(cfg.data.colours))
    if alpha.is_mask and by_colour:
        if alpha.is_black:
            raise DataError(
                f"{folder.masks[0]}: all masks are black, and their alpha channel is the mask; "
                "leave out data.colours"
            )
        alpha = replace(alpha, is_mask=False)
    lossless = not {*cfg.labels} <= {0, 255}  # values other than black and white count
    return folder.pair(
        matches or folder.match(),
        lambda mask: partial(read_values, mask, by_colour, alpha, lossless),
    )


def colour_names(rows: Rows, source: object) -> dict[int, str]:
    """Return the class of each value of masks in colours.

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


def colour_list(path: Path, rows: Rows) -> ClassList:
    """Return a list of classes and colours; if a row has no colour, all are numbers."""
    if all(rgb for _, rgb in rows):
        return ClassList(path, colour_names(rows, path), dict(rows))
    return ClassList(path, dict(enumerate(name for name, _ in rows)))


def colour_rows(path: Path) -> list[tuple[str, list[int]]]:
    """Return name and colour, if there is one, in each row of a list of CamVid or Cityscapes."""
    lines = read_list(path)
    if path.suffix == ".csv":
        head, *rows = map(cells, lines or [""])
        names = [name.lower() for name in head]
        place = next((k for k, name in enumerate(names) if name in ("name", "class")), None)
        if place is not None and {*"rgb"} <= {*names} and all(len(r) == len(head) for r in rows):
            rgb = [names.index(name) for name in "rgb"]  # columns with a head, in any order
            return [(row[place], [int(row[k]) for k in rgb]) for row in rows]
    found = []
    for line in (line.replace('"', "") for line in lines):
        numbers = re.search(r"(?:^|,)\s*(\d+)[\s,]+(\d+)[\s,]+(\d+)", line)
        if path.suffix == ".csv" and not numbers:
            continue  # the head
        name = line.replace(numbers[0], "") if numbers else line
        found.append((name.strip(" \t,"), [int(n) for n in numbers.groups()] if numbers else []))
    return found


def cells(line: str) -> list[str]:
    """Return the cells of a line of CSV, without their quotes."""
    return [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))]
