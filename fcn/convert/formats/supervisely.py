"""Supervisely's project: meta.json, DATASET/img/NAME and DATASET/ann/NAME.json.

Later objects are drawn over earlier ones. An image without a file is not annotated.
"""

import base64
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fcn.convert.drawing import Shape, png_mask
from fcn.convert.export import Drawing, Export, Reading, drawn_export
from fcn.convert.export_folder import ExportFolder
from fcn.convert.formats.class_lists import json_files
from fcn.convert.formats.supervisely_masks import class_colours


def read(folder: ExportFolder, reading: Reading) -> Export | None:
    drawings = []
    for path, content in json_files(folder.files, '"objects"', '"size"'):
        if path.parent.name == "ann":
            shapes = [_shape(entry, reading.line_width or 0) for entry in content["objects"]]
            size = content["size"]["width"], content["size"]["height"]
            name = f"{path.parent.parent.name}/img/{path.stem}"
            drawings.append(Drawing(path, name, shapes, size))
    if not drawings:
        return None
    colours = class_colours(folder)
    export = drawn_export("Supervisely project", folder, drawings, colours)
    export.colours = {"background": [0, 0, 0]} | colours
    return export


def _shape(entry: dict[str, Any], line_width: float) -> Shape:
    name, kind = entry["classTitle"], entry["geometryType"]
    if kind == "bitmap":
        bitmap = entry["bitmap"]
        return Shape(name, "mask", [bitmap["origin"]], mask=partial(_bitmap, bitmap["data"]))
    points = entry["points"]
    return Shape(name, kind, points["exterior"], points.get("interior", ()), width=line_width)


def _bitmap(content: str) -> np.ndarray:
    """Return the mask, bool (H, W), of a PNG that is compressed and in base64."""
    decoded = base64.b64decode(content)
    try:
        decoded = zlib.decompress(decoded)
    except zlib.error:
        pass  # older ones are not compressed
    return png_mask(decoded)
