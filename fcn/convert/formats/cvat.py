"""CVAT: Segmentation mask 1.1, and CVAT for images 1.1."""

import re
from functools import partial
from xml.etree.ElementTree import Element

from fcn.config import PrepareDataConfig
from fcn.convert.annotation_folder import AnnotationFolder, split_in
from fcn.convert.annotation_set import AnnotationSet, Drawing, drawn_set
from fcn.convert.drawing import Shape, ellipse, run_mask, turned_box
from fcn.convert.formats.class_lists import colour_list, listed_set
from fcn.convert.formats.coco import coco_mask
from fcn.data.dataset import read_list

WORDS = ("<annotations", "<image")  # in each file of shapes


def read_masks(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet | None:
    """Read Segmentation mask 1.1: labelmap.txt of name:r,g,b:parts:actions, SegmentationClass."""
    lists = []
    for path in folder.files_named("labelmap.txt"):
        rows = list[tuple[str, list[int]]]()
        for line in read_list(path):
            coloured = re.match(r"(.+):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:|$)", line)
            if coloured:
                rows.append((coloured[1], [int(value) for value in coloured.groups()[1:4]]))
            elif not line.startswith("#"):
                rows.append((line.rsplit(":", 3)[0], []))
        lists.append(colour_list(path, rows))
    if not lists:
        return None
    return listed_set("CVAT segmentation masks", folder, lists, cfg)


def read_shapes(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet | None:
    """Read CVAT for images 1.1: annotations.xml with polygons, masks, ellipses, boxes, lines.

    Polygons and boxes are drawn by COCO's tool, as in CVAT's own export of masks. Shapes of a
    higher z_order lie over those of a lower one, later ones over earlier ones.
    """
    drawings, classes = list[Drawing](), list[str]()
    for path, root in folder.documents(*WORDS, suffix=".xml"):
        images = root.findall("image") if root.tag == "annotations" else []
        classes += [name.text or "" for name in root.iterfind("meta//labels/label/name") if images]
        for about in images:
            name, split = about.attrib["name"], split_in(about.get("subset") or path.stem)
            size = int(about.attrib["width"]), int(about.attrib["height"])
            elements = (e for e in about if "label" in e.attrib and e.tag != "tag")
            shapes = [_shape(element, size, cfg.line_width or 0) for element in elements]
            image = folder.find_image(name, path, split)
            drawings.append(Drawing(path, name, image, shapes, size, split))
    return drawn_set("CVAT for images", folder, drawings, classes) if drawings else None


def _shape(element: Element, size: tuple[int, int], line_width: float) -> Shape:
    def numbers(*keys: str) -> list[float]:
        return [float(element.attrib[key]) for key in keys]

    about, kind, name = element.attrib, element.tag, element.attrib["label"]
    angle, layer = float(about.get("rotation", 0)), int(about.get("z_order", 0))
    points = [float(number) for number in re.findall(r"[^,;]+", about.get("points", ""))]
    if kind == "mask":
        box = int(about["width"]), int(about["height"])
        mask = partial(run_mask, about["rle"].split(","), box)
        return Shape(name, kind, [numbers("left", "top")], mask=mask, layer=layer)
    if kind == "ellipse":
        return ellipse(name, numbers("cx", "cy"), numbers("rx", "ry"), angle, layer)
    if kind == "box":
        low, high = numbers("xtl", "ytl"), numbers("xbr", "ybr")
        middle = (low[0] + high[0]) / 2, (low[1] + high[1]) / 2
        kind, points = "rectangle", turned_box(low, high, angle, middle).ravel().tolist()
    if kind in ("rectangle", "polygon"):
        mask = partial(coco_mask, [points], size)
        return Shape(name, kind, [(0, 0)], mask=mask, layer=layer)
    pairs = [*zip(points[::2], points[1::2], strict=True)]
    return Shape(name, "line" if kind == "polyline" else kind, pairs, width=line_width, layer=layer)
