"""Draw the shapes that an annotation tool has stored onto a mask."""

import base64
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fcn.errors import DataError

LARGEST = 1e6  # coordinate, in pixels; COCO's tool and Pillow fail on much larger ones
POINTS = {"polygon": 3, "rectangle": 2, "ellipse": 2, "line": 2}  # at least


@dataclass(frozen=True)
class Shape:
    """An annotated area, or what has none, such as a point."""

    name: str  # of its class
    # polygon, rectangle, ellipse or line; others are counted and left out. With a mask the kind
    # is for messages alone.
    kind: str
    points: Any  # (x, y) in pixels; of a rectangle or an ellipse two opposite corners of its box
    holes: Any = ()  # polygons that are cut out of a polygon
    width: float = 0  # of a line
    mask: Callable[[], np.ndarray] | None = None  # what it covers, bool (h, w), from points[0] on
    layer: float = 0  # higher ones lie over lower ones
    title: str = ""  # how messages call it

    @property
    def has_area(self) -> bool:
        enough = len(self.points) >= POINTS.get(self.kind, math.inf)
        return self.mask is not None or (enough and (self.kind != "line" or self.width > 0))


def draw(
    shapes: Iterable[Shape],
    labels: dict[str, int],
    size: tuple[int, int],
    small_on_top: bool = False,
    place: str = "",
) -> tuple[np.ndarray, int]:
    """Draw the shapes of one image, later ones over earlier ones.

    Polygons and rectangles cover their outlines too, as labelme and Supervisely draw them.

    Args:
        shapes: of any classes; those without an area are left out.
        labels: of the classes, by name.
        size: (width, height) of the image.
        small_on_top: draw smaller shapes over larger ones, instead of later over earlier.
        place: file and image, for errors.

    Returns:
        int64 (H, W), 0 where no shape is; and the number of pixels that several classes cover.

    Raises:
        DataError: a shape that cannot be drawn.
    """
    drawn = []
    for number, shape in enumerate(shapes, start=1):
        try:
            drawn += [(shape, *_area(shape, size))] if shape.has_area else []
        except DataError:  # a library is missing
            raise
        except Exception as error:  # whatever a decoder makes of wrong data
            title = shape.title or f"shape {number} ({shape.name})"
            reason = str(error) or type(error).__name__
            raise DataError(f"{place}: {title}: no outline ({reason}); export it again") from error
    if small_on_top:
        drawn.sort(key=lambda entry: -int(entry[3].sum()))
    drawn.sort(key=lambda entry: entry[0].layer)
    result, shared = np.zeros(size[::-1], np.int64), np.zeros(size[::-1], bool)
    for shape, left, top, inside in drawn:
        box = slice(top, top + inside.shape[0]), slice(left, left + inside.shape[1])
        label = labels[shape.name]
        shared[box] |= inside & (result[box] > 0) & (result[box] != label)
        result[box][inside] = label
    return result, int(shared.sum())


def _area(shape: Shape, size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """Return the left and upper edge of a shape, and what it covers from there on, bool."""
    points = as_points(shape.points)
    if shape.mask is not None:
        left, top = (int(value) for value in points[0])
        inside = shape.mask()[max(-top, 0) :, max(-left, 0) :]
        left, top = max(left, 0), max(top, 0)
        inside = inside[: max(size[1] - top, 0), : max(size[0] - left, 0)]
        # Only what is covered, or 300 objects of a large image would fill the memory.
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        if not len(rows):
            return 0, 0, np.zeros((0, 0), bool)
        covered = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
        return left + int(columns[0]), top + int(rows[0]), covered
    canvas = Image.new("L", size)
    pencil = ImageDraw.Draw(canvas)
    if shape.kind == "line":
        pencil.line(points.ravel().tolist(), fill=1, width=round(shape.width))
    elif shape.kind == "polygon":
        pencil.polygon(points.ravel().tolist(), fill=1, outline=1)
    else:
        box = [*points.min(0).tolist(), *points.max(0).tolist()]
        (pencil.ellipse if shape.kind == "ellipse" else pencil.rectangle)(box, fill=1, outline=1)
    for hole in shape.holes:
        pencil.polygon(as_points(hole).ravel().tolist(), fill=0, outline=0)
    left, top, right, bottom = canvas.getbbox() or (0, 0, 0, 0)
    return left, top, np.asarray(canvas.crop((left, top, right, bottom))) > 0


def as_points(points: Any) -> np.ndarray:
    """Return points as float64 (N, 2)."""
    pairs = np.asarray(points, np.float64).reshape(-1, 2)
    if not (abs(pairs) < LARGEST).all():  # or not a number
        raise ValueError("a coordinate is no number of pixels")
    return pairs


def turned(points: Any, degrees: float, centre: Any) -> np.ndarray:
    """Turn points clockwise (y points down) about a centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (np.asarray(points) - centre) @ np.array([[cos, sin], [-sin, cos]]) + centre


def turned_box(low: Any, high: Any, degrees: float, centre: Any) -> np.ndarray:
    """Return the corners, float (4, 2), of a box of two opposite ones that is turned clockwise."""
    box = np.array([low, (high[0], low[1]), high, (low[0], high[1])], np.float64)
    return turned(box, degrees, centre)


def ellipse(name: str, centre: Any, radii: Any, degrees: float = 0, layer: float = 0) -> Shape:
    """Return an ellipse that is turned clockwise, as the pixels whose centres it covers."""
    reach = math.ceil(max(radii)) + 1
    corner = np.floor(centre) - reach

    def mask() -> np.ndarray:
        y, x = np.mgrid[: 2 * reach + 1, : 2 * reach + 1] + 0.5
        points = turned(np.stack([x, y], axis=-1) + corner, -degrees, np.asarray(centre))
        distance: np.ndarray = (((points - centre) / radii) ** 2).sum(-1)
        return distance <= 1

    return Shape(name, "ellipse", [corner], mask=mask, layer=layer)


def run_mask(counts: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the mask, bool (H, W), of run lengths along its rows: of 0, then of 1, and so on."""
    counts = np.asarray(counts, np.int64)
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1])


def png_mask(content: bytes | str) -> np.ndarray:
    """Return the mask, bool (H, W), of a PNG or its base64: what is neither 0 nor transparent."""
    content = base64.b64decode(content) if isinstance(content, str) else content
    with Image.open(io.BytesIO(content)) as picture:
        if picture.has_transparency_data:
            return np.asarray(picture.convert("RGBA"))[..., 3] > 0
        bands = np.asarray(picture).reshape(picture.height, picture.width, -1)
        return np.asarray(bands.any(2))
