"""labelme: what labelme2voc writes, and the JSON that labelme, AnyLabeling, X-AnyLabeling write."""

import base64
import io
import math
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from fcn.config import PrepareDataConfig
from fcn.convert.annotation_folder import AnnotationFolder
from fcn.convert.annotation_set import AnnotationSet, Drawing, drawn_set
from fcn.convert.drawing import Shape, png_mask
from fcn.convert.formats.class_lists import ClassList, listed_set
from fcn.data.dataset import read_list
from fcn.data.images import file_errors

WORDS = ('"shapes"', '"imagePath"')  # in each file
LINE_WIDTH = 10  # of labelme2voc
KINDS = {"oriented_rectangle": "polygon", "linestrip": "line"}
KINDS |= {"rotation": "polygon", "quadrilateral": "polygon"}  # of X-AnyLabeling


def read_masks(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet | None:
    """Read what labelme2voc writes: class_names.txt, JPEGImages, masks in PNG or .npy."""
    lists = []
    for path in folder.files_named("class_names.txt"):
        names = [name for name in read_list(path) if name != "__ignore__"]  # the first, of -1
        lists.append(ClassList(path, dict(enumerate(names))))
    if not lists:
        return None
    folder.masks = [path for path in folder.masks if path.suffix != ".npy"] or folder.masks
    return listed_set("labelme's VOC export", folder, lists, cfg)


def read_shapes(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet | None:
    """Read JSON files, one for each image; an image without one is not annotated.

    Later shapes are drawn over earlier ones, as labelme2voc does. Groups make no difference, since
    their shapes are of one class.
    """
    drawings = list[Drawing]()
    for path, content in folder.documents(*WORDS):
        shapes = [_shape(entry, cfg.line_width or LINE_WIDTH) for entry in content["shapes"]]
        name = content["imagePath"] or path.stem
        image = folder.file_at(path.parent / name.replace("\\", "/"))
        image = image or folder.find_image(name, path) or folder.find_image(path.stem, path)
        if image is None and content.get("imageData"):
            image = _unpacked(path, content["imageData"], folder.scratch / str(len(drawings)))
        width, height = content.get("imageWidth"), content.get("imageHeight")
        size = (width, height) if width and height else None
        drawings.append(Drawing(path, name, image, shapes, size))
    return drawn_set("labelme's JSON", folder, drawings) if drawings else None


def _shape(entry: dict[str, Any], line_width: float) -> Shape:
    if entry["label"] is None:
        return Shape("", "shape without a label", ())
    name, kind, points = str(entry["label"]), entry.get("shape_type") or "polygon", entry["points"]
    if kind == "mask":
        return Shape(name, kind, points[:1], mask=partial(png_mask, entry["mask"]))
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        kind, points = "ellipse", [(x - radius, y - radius), (x + radius, y + radius)]
    return Shape(name, KINDS.get(kind, kind), points, width=line_width)


def _unpacked(path: Path, content: str, folder: Path) -> Path:
    """Write the image inside a JSON file to a folder, and return its path."""
    with file_errors(path, "image inside"):
        decoded = base64.b64decode(content)
        with Image.open(io.BytesIO(decoded)) as picture:
            suffix = str(picture.format).lower()
    folder.mkdir(parents=True)
    (image := folder / f"{path.stem}.{suffix}").write_bytes(decoded)
    return image
