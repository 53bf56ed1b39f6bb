"""YOLO segmentation: data.yaml, and for each image a file with lines "class x1 y1 x2 y2 ...".

The corners are shares of width and height; they are rounded to pixels. Smaller objects are drawn
over larger ones. An image whose file is empty is all background; one without a file is left out.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from yaml import BaseLoader, YAMLError, load

from fcn.config import PrepareDataConfig
from fcn.convert.drawing import Shape
from fcn.convert.export import Drawing, Export, drawn_export
from fcn.convert.export_folder import SPLITS, ExportFolder
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


def read(folder: ExportFolder, cfg: PrepareDataConfig) -> Export | None:
    settings = _settings(folder)
    if pose := next((path for path, content in settings if "kpt_shape" in content), None):
        raise DataError(f"{pose}: keypoints (kpt_shape), not outlines; {ADVICE}")
    files = {path: rows for path in folder.files if (rows := _rows(path)) is not None}
    rows = [row for found in files.values() for row in found]
    boxes = sum(len(row) == 5 for row in rows)
    if not rows or (boxes == len(rows) and folder.masks):
        return None
    if boxes == len(rows):
        raise DataError(f"{next(path for path in files if files[path])}: {BOXES}; {ADVICE}")
    names, splits, drawings = _names(folder, settings, cfg), _splits(settings), list[Drawing]()
    for path, found in files.items():
        image = folder.find_image(path.stem, path)
        if image is None:
            drawings += [Drawing(path, path.stem, None, [])] if found else []
            continue
        size = image_size(image)
        shapes = [_shape(path, row, names, size) for row in found if len(row) > 5]
        inside = [place for place in splits if image.resolve().is_relative_to(place)]
        split = splits[max(inside, key=lambda place: len(place.parts))] if inside else ""
        drawings.append(Drawing(path, path.stem, image, shapes, size, split))
    drawn = {drawing.image for drawing in drawings}
    for path in (path for path in folder.files if path.suffix == ".txt" and path not in files):
        if (image := folder.find_image(path.stem, path)) and image not in drawn:
            raise _no_rows(path, 1)
    notes = [f"{boxes} boxes without an outline are left out"] if boxes else []
    classes = [names[number] for number in sorted(names)]
    return drawn_export("YOLO", folder, drawings, classes, small_on_top=True, notes=notes)


def _rows(path: Path) -> list[np.ndarray] | None:
    """Return the numbers in each line of an annotation file, None of another text."""
    if path.suffix != ".txt":
        return None
    rows = list[np.ndarray]()
    for line in read_list(path):
        try:
            row = np.array(line.split(), float)
        except ValueError:
            row = np.zeros(0)
        if len(row) < 5 or len(row) % 2 == 0 or row[0] % 1 or not abs(row[1:]).max() <= 2:
            if not rows:
                return None
            raise _no_rows(path, len(rows) + 1)
        rows.append(row)
    return rows


def _no_rows(path: Path, line: int) -> DataError:
    return DataError(
        f"{path}: line {line} is not a class and its corners as shares of width and height; "
        "export it again"
    )


def _shape(path: Path, row: np.ndarray, names: dict[int, str], size: tuple[int, int]) -> Shape:
    if (number := int(row[0])) not in names:
        raise DataError(
            f"{path}: the class {number} has no name in data.yaml or classes.txt; add it there, or "
            "without these files name all in the order of their numbers: "
            "data.classes=[background,NAME,...]"
        )
    return Shape(names[number], "polygon", np.rint(row[1:].reshape(-1, 2) * size))


def _settings(folder: ExportFolder) -> list[tuple[Path, dict[str, Any]]]:
    """Return data.yaml, by whatever name, and its content."""
    found = []
    for path in (path for path in folder.files if path.suffix in (".yaml", ".yml")):
        text = path.read_text("utf-8-sig", "replace")
        try:
            # All scalars as text: "yes" and "no" are names, too.
            content = load(text, BaseLoader) if re.search("^names:", text, re.M) else None
        except YAMLError as error:
            raise DataError(f"{path}: {' '.join(str(error).split())}") from None
        if isinstance(content, dict):
            found.append((path, content))
    return found


def _names(
    folder: ExportFolder, settings: list[tuple[Path, dict[str, Any]]], cfg: PrepareDataConfig
) -> dict[int, str]:
    """Return the class of each number: by data.yaml, a list, or data.classes but for background."""
    lists = [(path, content["names"]) for path, content in settings]
    lists = lists or [(path, read_list(path)) for path in folder.named(*LISTS)]
    tables = []
    for path, names in lists:
        rows = names.items() if isinstance(names, dict) else enumerate(names)
        tables.append((path, {int(number): str(name) for number, name in rows}))
    if other := next((path for path, names in tables if names != tables[0][1]), None):
        raise DataError(
            f"{tables[0][0]} and {other} name classes differently; convert their folders one by one"
        )
    given = (name for name in cfg.data.classes if name.lower() not in BACKGROUND)
    return tables[0][1] if tables else dict(enumerate(given))


def _splits(settings: list[tuple[Path, dict[str, Any]]]) -> dict[Path, str]:
    """Return the folders that data.yaml names, and their splits."""
    found = dict[Path, str]()
    for path, content in settings:
        for key in SPLITS.keys() & content.keys():
            entries = content[key] if isinstance(content[key], list) else [content[key]]
            for entry in map(str, entries):
                # Roboflow's ../train/images lies beside data.yaml.
                for start in (content.get("path") or "", ""):
                    for end in (entry, entry.lstrip("./")):
                        place = (path.parent / start / end).resolve()
                        if place.is_dir():
                            found.setdefault(place, SPLITS[key])
    return found
