"""Label Studio's JSON, JSON-MIN: polygons, rectangles, ellipses in percent; brushes, bitmasks.

Corners are rounded to pixels. Later regions are drawn over earlier ones. A task without an
annotation is left out; one whose annotation is empty is all background. Of several annotations of a
task the newest counts.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from fcn.config import PrepareDataConfig
from fcn.convert.annotation_folder import AnnotationFolder, split_in
from fcn.convert.annotation_set import AnnotationSet, Drawing, drawn_set
from fcn.convert.drawing import Shape, ellipse, png_mask, turned_box
from fcn.convert.formats.foreign import LABEL_STUDIO_PNG, describe_foreign
from fcn.data.files import is_image
from fcn.errors import DataError

WORDS = ('"original_width"',)  # in each file
GEOMETRY = {"points", "rle", "imageDataURL", "radiusX", "x", "vertices"}  # of shapes and places
UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")  # put before the name of an uploaded file


def read(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet | None:
    newest, counts = dict[Any, tuple[Path, dict[str, Any], str, list[Any]]](), Counter[Any]()
    for path, tasks in folder.documents(*WORDS):
        for task in tasks if isinstance(tasks, list) else []:
            key = path, task.get("id", id(task))  # JSON-MIN has a row for each annotation
            counts[key] += 0
            for date, regions in _annotations(task):
                counts[key] += 1
                if key not in newest or date >= newest[key][2]:
                    newest[key] = path, task.get("data", task), date, regions
    pictures = {path for path in folder.pictures if LABEL_STUDIO_PNG.fullmatch(path.name)}
    bare, several = list(counts.values()).count(0), sum(n > 1 for n in counts.values())
    if not newest and bare:
        raise DataError(f"{folder.root}: no task has an annotation; submit predictions first")
    if not newest and pictures:
        raise DataError(describe_foreign(folder))
    if not newest:
        return None
    folder.photos = [path for path in folder.photos if path not in pictures]
    drawings = []
    for path, data, _, regions in newest.values():
        name, image = _find_image(folder, path, data, regions)
        labelled = {region.get("id") for region in regions if _names(region)}
        shapes = [shape for region in regions for shape in _shapes(region, labelled)]
        sizes = (_size(region) for region in regions if GEOMETRY & region.keys())
        split = split_in(path.stem)
        drawings.append(Drawing(path, name, image, shapes, next(sizes, None), split))
    notes = []
    if bare:
        notes.append(f"{bare} tasks without a submitted annotation are left out")
    if several:
        notes.append(f"{several} tasks have several annotations, of which the newest counts")
    return drawn_set("Label Studio", folder, drawings, notes=notes)


def _annotations(task: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield date and regions of each annotation of a task."""
    if "data" not in task:  # JSON-MIN: one annotation, its regions by the name of the tag
        lists = (value for value in task.values() if isinstance(value, list))
        regions = [region for found in lists for region in found if isinstance(region, dict)]
        yield str(task.get("updated_at", "")), regions
        return
    for entry in task.get("annotations") or task.get("completions") or []:
        if not entry.get("was_cancelled") and not entry.get("skipped"):
            results = [r for r in entry["result"] if isinstance(r.get("value"), dict)]
            regions = [result | result["value"] for result in results]
            yield str(entry.get("updated_at") or entry.get("created_at") or ""), regions


def _find_image(
    folder: AnnotationFolder, path: Path, data: dict[str, Any], regions: Sequence[dict[str, Any]]
) -> tuple[str, Path | None]:
    """Return the name of a task's image, and its file.

    Raises:
        DataError: the task names no image, or it is not clear on which one its regions are.
    """
    names = {key: text for key, value in data.items() if is_image(Path(text := _path_in(value)))}
    if not names:
        raise DataError(f"{path}: a task names no image: {str(data)[:100]}; export it again")
    tags = {region["to_name"] for region in regions if "to_name" in region}
    if len(tags) == 1 and tags <= names.keys():
        names = {tag: names[tag] for tag in tags}
    found = {name: _file_called(folder, name, path) for name in dict.fromkeys(names.values())}
    there = {name: image for name, image in found.items() if image} or found
    if len(there) > 1 or (len(tags) > 1 and len(found) > 1):
        raise DataError(
            f"{path}: a task has several images ({', '.join(found)}), and it is not clear which "
            "one is annotated; export tasks of one image each"
        )
    return next(iter(there.items()))


def _path_in(value: Any) -> str:
    """Return the path or address in a task's value, without what is no part of its name."""
    text = value if isinstance(value, str) else ""
    if "://" in text or text.startswith("/data/"):
        address = urlsplit(text)
        text = parse_qs(address.query).get("d", [unquote(address.path)])[0]
    return text


def _file_called(folder: AnnotationFolder, name: str, path: Path) -> Path | None:
    split = split_in(path.stem)
    image = folder.find_image(name, path, split)
    if image is None and (upload := UPLOAD.fullmatch(Path(name).name)):
        image = folder.find_image(upload[1], path, split)
    return image


def _size(region: dict[str, Any]) -> tuple[int, int]:
    """Return width and height of the image on which a region was drawn."""
    return region["original_width"], region["original_height"]


def _names(region: dict[str, Any]) -> list[str]:
    return [name for key, value in region.items() if key.endswith("labels") for name in value]


def _shapes(region: dict[str, Any], labelled: set[Any]) -> Iterator[Shape]:
    """Yield the shape of a region, once for each of its labels."""
    names = _names(region)
    kind = next((key.removesuffix("labels") for key in region if key.endswith("labels")), "")
    if not GEOMETRY & region.keys():  # text of an image, which has no names, or a new kind
        yield from (Shape(name, kind or "region", ()) for name in names)
        return
    if not names and region.get("id") not in labelled:  # or the same region follows with its label
        yield Shape("", "region without a label", ())
    width, height = _size(region)
    share = np.array([width, height]) / 100
    place = np.array([region.get("x", 0), region.get("y", 0)]) * share
    for name in names:
        if "rle" in region:
            mask = partial(brush_mask, region["rle"], (height, width))
            yield Shape(name, kind, [(0, 0)], mask=mask)
        elif "imageDataURL" in region:
            mask = partial(png_mask, region["imageDataURL"].partition(",")[2])
            yield Shape(name, kind, [(0, 0)], mask=mask)
        elif "radiusX" in region:
            radii = np.array([region["radiusX"], region["radiusY"]]) * share
            yield ellipse(name, place, radii, region.get("rotation", 0))
        elif "points" in region:
            yield Shape(name, "polygon", np.rint(np.array(region["points"], float) * share))
        elif "height" in region:  # turned about its upper left corner
            end = place + np.array([region["width"], region["height"]]) * share
            box = turned_box(place, end, region.get("rotation", 0), place)
            yield Shape(name, "polygon", np.rint(box))
        else:
            yield Shape(name, kind or "region", ())


def brush_mask(code: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """Return the mask, bool (H, W), of a brush: run lengths of red, green, blue and alpha.

    Args:
        code: bytes of thi.ng's rle-pack: 32 bits with the number of values, 5 with their bits less
            1, four times 4 with the bits of lengths less 1; then, for each run, a bit that says
            whether its values are all the same, 2 that choose the bits of its length, the length
            less 1, and the value or values.
        shape: (height, width).
    """
    bits, place = np.unpackbits(np.array(code, np.uint8)), 0
    digits = (bits + ord("0")).tobytes()

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(digits[place - count : place], 2)

    values, start = np.zeros(take(32), np.uint8), 0
    if take(5) != 7:
        raise ValueError("its values do not have 8 bits")
    lengths = [take(4) + 1 for _ in range(4)]
    while start < len(values):
        same = take(1)
        count = take(lengths[take(2)]) + 1
        block = bits[place : place + 8 * (1 if same else count)]
        values[start : start + count] = np.packbits(block)
        place, start = place + len(block), start + count
    return values.reshape(*shape, 4)[..., 3] > 0
