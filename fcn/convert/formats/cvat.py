"""CVAT for images 1.1: annotations.xml with polygons, masks, ellipses, boxes and lines.

Shapes of a higher z_order are drawn over those of a lower one, later ones over earlier ones.
"""

from functools import partial
from xml.etree import ElementTree

from fcn.convert.drawing import Shape, runs
from fcn.convert.export import Drawing, Export, Reading, drawn_export
from fcn.convert.export_folder import SPLITS, ExportFolder
from fcn.data.images import file_errors

KINDS = {"polyline": "line", "box": "rectangle"}


def read(folder: ExportFolder, reading: Reading) -> Export | None:
    drawings, classes = list[Drawing](), list[str]()
    for path in (path for path in folder.files if path.suffix == ".xml"):
        with file_errors(path, "file"):
            root = ElementTree.parse(path).getroot()
        images = root.findall("image") if root.tag == "annotations" else []
        classes += [name.text or "" for name in root.iterfind("meta//labels/label/name") if images]
        for image in images:
            about = image.attrib
            size = int(about["width"]), int(about["height"])
            shapes = [_shape(e, reading.line_width or 0) for e in image if "label" in e.attrib]
            split = SPLITS.get(about.get("subset", "").lower(), "")
            drawings.append(Drawing(path, about["name"], shapes, size, split))
    return drawn_export("CVAT for images", folder, drawings, classes) if drawings else None


def _shape(element: ElementTree.Element, line_width: float) -> Shape:
    kind, about = element.tag, element.attrib
    mask, points = None, list[list[float]]()
    if kind == "box":
        corners = [float(about[key]) for key in ("xtl", "ytl", "xbr", "ybr")]
        points = [corners[:2], corners[2:]]
    elif kind == "ellipse":
        x, y, rx, ry = (float(about[key]) for key in ("cx", "cy", "rx", "ry"))
        points = [[x - rx, y - ry], [x + rx, y + ry]]
    elif kind == "mask":
        left, top, width, height = (int(about[k]) for k in ("left", "top", "width", "height"))
        points = [[left, top]]
        mask = partial(runs, about["rle"].split(","), (height, width))
    elif "points" in about:
        points = [[float(v) for v in pair.split(",")] for pair in about["points"].split(";")]
    return Shape(
        about["label"],
        KINDS.get(kind, kind),
        points,
        width=line_width,
        angle=float(about.get("rotation", 0)),
        mask=mask,
        layer=int(about.get("z_order", 0)),
    )
