"""Supervisely: masks, and a project in its own format."""

import base64
import zlib
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fcn.config import PrepareDataConfig
from fcn.convert.annotation_folder import AnnotationFolder
from fcn.convert.annotation_set import AnnotationSet, Drawing, drawn_set
from fcn.convert.drawing import Shape, png_mask
from fcn.convert.formats.class_lists import colour_list, listed_set

WORDS = ('"objects"', '"size"')  # in each file of shapes


def read_masks(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet | None:
    """Read masks: obj_class_to_machine_color.json, DATASET/img/NAME, DATASET/masks_machine."""
    black = {"background": [0, 0, 0]}
    lists = [
        colour_list(path, [*(black | rows).items()])
        for path, rows in folder.documents(name="obj_class_to_machine_color.json")
    ]
    if not lists:
        return None
    annotations = listed_set("Supervisely masks", folder, lists, cfg)
    return replace(annotations, colours=black | _colours(folder))


def _colours(folder: AnnotationFolder) -> dict[str, list[int]]:
    """Return the classes of a project and the colours that people see."""
    entries = [
        entry
        for _, content in folder.documents('"classes"', name="meta.json")
        for entry in content["classes"]
    ]
    return {entry["title"]: list(bytes.fromhex(entry["color"].lstrip("#"))) for entry in entries}


def read_shapes(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet | None:
    """Read a project: meta.json, DATASET/img/NAME and DATASET/ann/NAME.json.

    Later objects are drawn over earlier ones. An image without a file is not annotated.
    """
    drawings = list[Drawing]()
    for path, content in folder.documents(*WORDS):
        if path.parent.name == "ann":
            shapes = [_shape(entry, cfg.line_width or 0) for entry in content["objects"]]
            size = content["size"]["width"], content["size"]["height"]
            name = f"{path.parent.parent.name}/img/{path.stem}"
            drawings.append(Drawing(path, name, folder.find_image(name, path), shapes, size))
    if not drawings:
        return None
    colours = _colours(folder)
    annotations = drawn_set("Supervisely project", folder, drawings, colours)
    annotations.colours = {"background": [0, 0, 0]} | colours
    return annotations


def _shape(entry: dict[str, Any], line_width: float) -> Shape:
    name, kind = entry["classTitle"], entry["geometryType"]
    if kind in ("bitmap", "alpha_mask"):
        bitmap = entry["bitmap"]
        return Shape(name, "mask", [bitmap["origin"]], mask=partial(_bitmap, bitmap["data"]))
    points = entry.get("points")
    if not isinstance(points, dict):  # keypoints, cuboids
        return Shape(name, kind, ())
    return Shape(name, kind, points["exterior"], points.get("interior", ()), width=line_width)


def _bitmap(content: str) -> np.ndarray:
    """Return the mask, bool (H, W), of a PNG that is compressed and in base64."""
    decoded = base64.b64decode(content)
    with suppress(zlib.error):  # older ones are not compressed
        decoded = zlib.decompress(decoded)
    return png_mask(decoded)
