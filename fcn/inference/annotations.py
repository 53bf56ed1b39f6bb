"""Predicted masks as annotations that a tool imports, to be corrected there.

An image has one mask per class: semantic segmentation knows no objects. Background is left out;
ignored pixels, which only a person can have painted, are of the class "ignore".
All of these tools take masks as they are, so every pixel is kept; outlines would lose some.
"""

import base64
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from PIL import Image

from fcn.data.dataset import read_labels
from fcn.dataset_info import IGNORED, VOID, DatasetInfo
from fcn.inference.origin import checksum
from fcn.output import atomic_write, write_json
from fcn.pictures.visualize import palette

# What is written below the folder of the masks for each tool; labelme has a file for each image.
PLACES = {
    "coco": "annotations/coco.json",
    "cvat": "annotations/cvat.xml",
    "labelme": "annotations/labelme",
    "labelstudio": "annotations/labelstudio.json",  # and .xml: the labelling interface for it
}
LABELME_VERSION = "5.5.0"  # of the format; masks came with 5.4
IGNORE = IGNORED[0]  # the name of ignored pixels, which prepare_data.py reads as such


@dataclass(frozen=True)
class Prediction:
    """An image, its path below `input=`, and the file of its mask."""

    image: Path
    name: Path
    mask: Path

    def read(self) -> np.ndarray:
        """Return the mask, uint8 (H, W); a DataError if it holds no labels any more."""
        return read_labels(self.mask)


@dataclass(frozen=True)
class Segment:
    """The pixels of one class in an image: its name, and a mask, bool (H, W)."""

    name: str
    mask: np.ndarray

    def box(self) -> tuple[int, int, int, int]:
        """Return left, top, width and height of the smallest box round the pixels."""
        rows, columns = (np.flatnonzero(self.mask.any(axis)) for axis in (1, 0))
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1

    def cropped(self) -> np.ndarray:
        """Return the mask within its box."""
        left, top, width, height = self.box()
        return self.mask[top : top + height, left : left + width]


def write(
    tool: str, predictions: Sequence[Prediction], info: DatasetInfo, path: Path, overwrite: bool
) -> int:
    """Write the annotations of all predictions; return how many files were kept.

    Args:
        tool: a key of `PLACES`.
        predictions: whose masks are written.
        info: classes and colours.
        path: the file to write, or labelme's folder.
        overwrite: also replace files in labelme's folder that are not as they were written here;
            other tools import theirs, so they are replaced anyway.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = 0
    if tool == "coco":
        write_coco(predictions, info, path)
    elif tool == "cvat":
        write_cvat(predictions, info, path)
    elif tool == "labelstudio":
        write_labelstudio(predictions, info, path)
    else:
        for prediction in predictions:
            target = (path / prediction.name).with_suffix(".json")
            if overwrite or not _is_changed(target):
                write_labelme(prediction, info, target)
            else:
                kept += 1
    return kept


def _is_changed(path: Path) -> bool:
    """Return True if a file is there that no longer has the shapes that `write_labelme` wrote."""
    try:
        content = json.loads(path.read_text("utf-8"))
        return content["shapes_checksum"] != _shapes_checksum(content["shapes"])
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        return True


def _shapes_checksum(shapes: list[dict[str, Any]]) -> str:
    return checksum(json.dumps(shapes).encode())


def write_coco(predictions: Iterable[Prediction], info: DatasetInfo, path: Path) -> None:
    """Write COCO's JSON, with masks as uncompressed run lengths, column by column."""
    ids = {name: number for number, name in enumerate(_classes(info), start=1)}
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    images, number = list[dict[str, Any]](), 0
    with _open(path) as file:
        file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')
        for image_id, prediction in enumerate(predictions, start=1):
            mask = prediction.read()
            height, width = mask.shape
            image = {"id": image_id, "file_name": prediction.name.as_posix()}
            images.append({**image, "width": width, "height": height})
            for segment in segments(mask, info):
                number += 1
                counts = run_lengths(segment.mask.T).tolist()
                entry = {
                    "id": number,
                    "image_id": image_id,
                    "category_id": ids[segment.name],
                    "segmentation": {"counts": counts, "size": [height, width]},
                    "area": sum(counts[1::2]),
                    "bbox": segment.box(),
                    "iscrowd": 0,
                }
                file.write((",\n" if number > 1 else "\n") + json.dumps(entry))
        file.write(f'],\n"images": {json.dumps(images)}}}\n')


def write_cvat(predictions: Iterable[Prediction], info: DatasetInfo, path: Path) -> None:
    """Write the XML "CVAT for images 1.1", with masks as run lengths within their boxes."""
    meta = Element("meta")
    labels = SubElement(SubElement(meta, "task"), "labels")
    for name, colour in _classes(info).items():
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        SubElement(label, "color").text = colour
        SubElement(label, "attributes")
    with _open(path) as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n')
        file.write(f"<version>1.1</version>\n{tostring(meta, 'unicode')}\n")
        for number, prediction in enumerate(predictions):
            mask = prediction.read()
            height, width = map(str, mask.shape)
            name = prediction.name.as_posix()
            image = Element("image", id=str(number), name=name, width=width, height=height)
            for segment in segments(mask, info):
                left, top, width, height = map(str, segment.box())
                SubElement(
                    image,
                    "mask",
                    label=segment.name,
                    source="auto",
                    occluded="0",
                    rle=", ".join(map(str, run_lengths(segment.cropped()).tolist())),
                    left=left,
                    top=top,
                    width=width,
                    height=height,
                    z_order="0",
                )
            file.write(tostring(image, "unicode") + "\n")
        file.write("</annotations>\n")


def write_labelme(prediction: Prediction, info: DatasetInfo, path: Path) -> None:
    """Write the JSON of one image for labelme, with masks as PNGs within their boxes."""
    mask, shapes = prediction.read(), list[dict[str, Any]]()
    for segment in segments(mask, info):
        left, top, width, height = segment.box()
        png = io.BytesIO()
        Image.fromarray(segment.cropped().astype(np.uint8)).save(png, "PNG")
        shapes.append(
            {
                "label": segment.name,
                "points": [[left, top], [left + width - 1, top + height - 1]],
                "group_id": None,
                "description": "",
                "shape_type": "mask",
                "flags": {},
                "mask": base64.b64encode(png.getvalue()).decode(),
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    image = os.path.join(os.path.realpath(prediction.image.parent), prediction.image.name)
    with suppress(ValueError):  # on another drive of Windows
        image = os.path.relpath(image, os.path.realpath(path.parent))
    content = {
        "version": LABELME_VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": Path(image).as_posix(),
        "imageData": None,  # labelme reads the image from its path
        "imageHeight": mask.shape[0],
        "imageWidth": mask.shape[1],
        "shapes_checksum": _shapes_checksum(shapes),  # labelme keeps it
    }
    write_json(path, content)


def write_labelstudio(predictions: Iterable[Prediction], info: DatasetInfo, path: Path) -> None:
    """Write tasks with predictions for Label Studio, and next to them its labelling interface."""
    with _open(path) as file:
        file.write("[")
        for number, prediction in enumerate(predictions):
            task = labelstudio_task(prediction, info)
            file.write((",\n" if number else "\n") + json.dumps(task))
        file.write("]\n")
    view = Element("View")
    SubElement(view, "Image", name="image", value="$image")
    brush = SubElement(view, "BrushLabels", name="tag", toName="image")
    for name, colour in _classes(info).items():
        SubElement(brush, "Label", value=name, background=colour)
    with _open(path.with_suffix(".xml")) as file:
        file.write(tostring(view, "unicode") + "\n")


def labelstudio_task(prediction: Prediction, info: DatasetInfo) -> dict[str, Any]:
    """Return a task: an image that Label Studio serves from the disk, and brushes predicted.

    The image's path is from the root "/", which is Label Studio's default
    LOCAL_FILES_DOCUMENT_ROOT.
    """
    mask, results = prediction.read(), list[dict[str, Any]]()
    for segment in segments(mask, info):
        rle = list(brush_rle(segment.mask))
        results.append(
            {
                "type": "brushlabels",
                "from_name": "tag",
                "to_name": "image",
                "original_width": mask.shape[1],
                "original_height": mask.shape[0],
                "image_rotation": 0,
                "value": {"format": "rle", "rle": rle, "brushlabels": [segment.name]},
            }
        )
    image = prediction.image.absolute()
    place = quote(image.relative_to(image.anchor).as_posix())
    return {
        "data": {"image": f"/data/local-files/?d={place}"},
        "predictions": [{"model_version": "fcn", "result": results}],
    }


def _classes(info: DatasetInfo) -> dict[str, str]:
    """Return the classes that are annotated, and their colours such as #804000."""
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette(info).tolist()]
    named = list(zip(info.classes, colours, strict=False))
    return dict(named[1:] if info.background else named) | {IGNORE: colours[VOID]}


def segments(mask: np.ndarray, info: DatasetInfo) -> Iterator[Segment]:
    """Yield the pixels of each class that a mask, uint8 (H, W), has; background is left out."""
    counts = Image.fromarray(mask).histogram()
    if counts[VOID]:
        yield Segment(IGNORE, mask == VOID)
    for label, name in enumerate(info.classes):
        if counts[label] and not (label == 0 and info.background):
            yield Segment(name, mask == label)


def run_lengths(mask: np.ndarray) -> np.ndarray:
    """Return how many pixels, row by row, are False, then True, then False, and so on.

    Args:
        mask: bool (H, W).

    Returns:
        int64 (N,); the first is 0 if the first pixel is True.
    """
    pixels = mask.ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    first = [0, 0] if pixels[0] else [0]
    return np.diff(np.concatenate((first, changes, [pixels.size])))


def brush_rle(mask: np.ndarray) -> bytes:
    """Return a mask as Label Studio's brush stores it: a picture of four channels, 0 or 255.

    A header holds the number of values (32 bits), their size in bits less 1 (5 bits), and four
    sizes of counters, each less 1 (4 bits). Runs follow: 1 for equal values (1 bit), the number of
    a counter size (2 bits), the count less 1, and the value. Here all runs are of equal values,
    and all counters have the fourth size, 16 bits.

    Args:
        mask: bool (H, W).

    Source: the package rle-pack of thi.ng/umbrella, by which the tool reads them.
    """
    longest = 2**16
    lengths = 4 * run_lengths(mask)  # of values: four for every pixel
    pieces = -(-lengths // longest)  # none for a first run of 0
    counts = np.full(pieces.sum(), longest)
    counts[np.cumsum(pieces)[pieces > 0] - 1] = (lengths[pieces > 0] - 1) % longest + 1
    value = np.repeat(np.arange(len(lengths)) % 2 * 255, pieces)
    runs = (0b1_11 << 24) + (counts - 1 << 8) + value  # 1 + 2 + 16 + 8 = 27 bits
    bits = np.unpackbits(runs.astype(">u4").view(np.uint8)).reshape(-1, 32)[:, 5:]
    header = f"{4 * mask.size:032b}{8 - 1:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    return np.packbits(np.concatenate(([int(bit) for bit in header], bits.ravel()))).tobytes()


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    """Open a text file that is written atomically."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file
