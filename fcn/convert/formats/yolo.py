"""YOLO segmentation: data.yaml, and for each image a file with lines "class x1 y1 x2 y2 ...".

The corners are shares of width and height; they are rounded to pixels. Smaller objects are drawn
over larger ones. An image whose file is empty is all background; one without a file is left out.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from yaml import BaseLoader, YAMLError, load

from fcn.config import PrepareDataConfig
from fcn.convert.annotation_folder import SPLITS, AnnotationFolder
from fcn.convert.annotation_set import AnnotationSet, Drawing, drawn_set
from fcn.convert.drawing import Shape
from fcn.convert.formats.foreign import BOXES
from fcn.data.dataset import read_list
from fcn.data.images import image_size
from fcn.dataset_info import BACKGROUND
from fcn.errors import DataError

LISTS = ("classes.txt", "obj.names", "classes.names", "labels.txt")  # one name a line
ADVICE = (
    "annotate polygons, and export Ultralytics YOLO Segmentation in CVAT, or an instance "
    "segmentation project as YOLO in Roboflow"
)


def read(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet | None:
    settings = {path: content for path in folder.files if (content := _settings(path))}
    if pose := next((path for path, content in settings.items() if "kpt_shape" in content), None):
        raise DataError(f"{pose}: keypoints (kpt_shape), not outlines; {ADVICE}")
    texts = [path for path in folder.files if path.suffix == ".txt"]
    files = {path: rows for path in texts if (rows := _rows(path)) is not None}
    sides = [len(row) for rows in files.values() for row in rows]
    boxes = sides.count(5)
    if not sides or (boxes == len(sides) and folder.masks):
        return None
    if boxes == len(sides):
        raise DataError(f"{next(path for path in files if files[path])}: {BOXES}; {ADVICE}")
    names, drawings = _names(folder, settings, cfg), list[Drawing]()
    splits, notes = _splits(settings)
    titles = {path: "/".join([*folder.info(path).folders, path.stem]) for path in texts}
    images = {path: folder.find_image(title, path) for path, title in titles.items()}
    for path, rows in files.items():
        if image := images[path]:
            size = image_size(image)
            shapes = [_shape(path, row, names, size) for row in rows]
            drawings.append(Drawing(path, titles[path], image, shapes, size))
        elif rows:
            drawings.append(Drawing(path, titles[path], None, []))
    drawn = {drawing.image for drawing in drawings}
    for path, image in images.items():
        if path not in files and image and image not in drawn:
            raise _wrong_line(path, 1)
    classes = [names[number] for number in sorted(names)]
    annotations = drawn_set("YOLO", folder, drawings, classes, small_on_top=True, notes=notes)
    annotations.items = [
        replace(item, split=_split_of(item.image, splits) or item.split)
        for item in annotations.items
    ]
    annotations.lists = {place: split for place, split in splits.items() if place.is_file()}
    return annotations


def _split_of(image: Path, splits: dict[Path, str]) -> str:
    """Return the split of the innermost folder that data.yaml names and the image lies in."""
    parent = Path(os.path.realpath(image.parent))  # the image itself may be a link
    inside = [place for place in splits if parent.is_relative_to(place)]
    return splits[max(inside, key=lambda place: len(place.parts))] if inside else ""


def is_annotation(path: Path) -> bool:
    """Return True if a text annotates an image."""
    try:
        return bool(_rows(path))
    except DataError:  # after some that are right
        return True


def _rows(path: Path) -> list[np.ndarray] | None:
    """Return the numbers in each line of an annotation file, None of another text."""
    rows = list[np.ndarray]()
    try:
        lines = read_list(path)
    except DataError:  # not in UTF-8
        return None
    for line in lines:
        try:
            row = np.array(line.split(), float)
        except ValueError:
            row = np.zeros(0)
        if len(row) < 5 or len(row) % 2 == 0 or row[0] % 1 or not abs(row[1:]).max() <= 2:
            if not rows:
                return None
            raise _wrong_line(path, len(rows) + 1)
        rows.append(row)
    return rows


def _wrong_line(path: Path, line: int) -> DataError:
    return DataError(
        f"{path}: line {line} is not a class and its corners as shares of width and height; "
        "export it again"
    )


def _shape(path: Path, row: np.ndarray, names: dict[int, str], size: tuple[int, int]) -> Shape:
    if len(row) == 5:
        return Shape("", "box without an outline", ())
    if (number := int(row[0])) not in names:
        raise DataError(
            f"{path}: the class {number} has no name in data.yaml or classes.txt; add it there, or "
            "without these files name all in the order of their numbers: "
            "data.classes=[background,NAME,...]"
        )
    return Shape(names[number], "polygon", np.rint(row[1:].reshape(-1, 2) * size))


def _settings(path: Path) -> dict[str, Any]:
    """Return the content of data.yaml, by whatever name; nothing of another file."""
    if path.suffix not in (".yaml", ".yml"):
        return {}
    text = path.read_text("utf-8-sig", "replace")
    try:
        # All scalars as text: "yes" and "no" are names, too.
        content = load(text, BaseLoader) if re.search("^names:", text, re.M) else None
    except YAMLError as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}") from None
    return content if isinstance(content, dict) else {}


def _names(
    folder: AnnotationFolder, settings: dict[Path, dict[str, Any]], cfg: PrepareDataConfig
) -> dict[int, str]:
    """Return the class of each number: by data.yaml, a list, or data.classes but for background."""
    lists = {path: content["names"] for path, content in settings.items()}
    lists = lists or {path: read_list(path) for path in folder.files_named(*LISTS)}
    given = [name for name in cfg.data.classes if name.lower() not in BACKGROUND]
    tables = dict[Path, dict[int, str]]()
    for path, names in lists.items():
        rows = names.items() if isinstance(names, dict) else enumerate(names)
        tables[path] = {int(number): str(name) for number, name in rows}
        if tables[path] != tables[first := next(iter(tables))]:
            raise DataError(
                f"{first} and {path} name classes differently; convert their folders one by one"
            )
    return next(iter(tables.values()), dict(enumerate(given)))


def _splits(settings: dict[Path, dict[str, Any]]) -> tuple[dict[Path, str], list[str]]:
    """Return the folders and lists that data.yaml names, with their splits, and notes."""
    found, notes = dict[Path, str](), list[str]()
    for path, content in settings.items():
        for key in (key for key in SPLITS if key in content):
            for place in dict.fromkeys(_places(path, content, key)):
                if (split := found.setdefault(place, SPLITS[key])) != SPLITS[key]:
                    notes.append(f"{path}: {key} names {place} too, whose images count as {split}")
    return found, notes


def _places(path: Path, content: dict[str, Any], key: str) -> Iterator[Path]:
    """Yield the folders and files that a key of data.yaml names."""
    entries = content[key] if isinstance(content[key], list) else [content[key]]
    # Roboflow's ../train/images lies beside data.yaml. An empty entry is no folder.
    ends = (end for entry in entries for end in (str(entry), str(entry).lstrip("./")) if end)
    for end, start in product(ends, (content.get("path") or "", "")):
        if (place := path.parent / start / end).exists():
            yield Path(os.path.realpath(place))
