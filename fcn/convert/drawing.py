"""Draw the shapes that an annotation tool has stored onto a mask."""

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fcn.errors import DataError

CORNERS = {"polygon": 3, "rectangle": 2, "ellipse": 2, "line": 2, "mask": 1}  # at least


@dataclass(frozen=True)
class Shape:
    """One annotated area.

    Args:
        name: of its class.
        kind: polygon, rectangle, ellipse, line or mask; others are not drawn.
        points: (x, y) in pixels: the corners; of a rectangle or an ellipse two opposite corners of
            its box; of a mask its upper left pixel.
        holes: polygons inside a polygon that are left out.
        width: of a line, in pixels.
        angle: by which a rectangle or an ellipse is turned clockwise about its centre, in degrees.
        mask: returns a bool array.
        layer: shapes of a higher layer are drawn over those of a lower one.
        title: how messages call it.
    """

    name: str
    kind: str
    points: Sequence[Any]
    holes: Sequence[Any] = ()
    width: float = 0
    angle: float = 0
    mask: Callable[[], np.ndarray] | None = None
    layer: float = 0
    title: str = ""

    @property
    def is_drawn(self) -> bool:
        enough = len(self.points) >= CORNERS.get(self.kind, math.inf)
        return enough and (self.kind != "line" or self.width > 0)


def draw(
    shapes: Iterable[Shape],
    labels: dict[str, int],
    size: tuple[int, int],
    *,
    small_on_top: bool = False,
    place: str = "",
) -> tuple[np.ndarray, int]:
    """Draw the shapes of one image, later ones over earlier ones.

    Polygons and rectangles cover their outlines too, as labelme and Supervisely draw them.

    Args:
        shapes: in any classes.
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
            left, top, inside = _area(shape, size)
        except Exception as error:  # whatever a decoder makes of wrong data
            title = shape.title or f"shape {number} ({shape.name})"
            reason = str(error) or type(error).__name__
            raise DataError(f"{place}: {title}: no outline ({reason}); export it again") from error
        drawn.append((shape, left, top, inside))
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
    points = _pairs(shape.points)
    if shape.mask is not None:
        left, top = (int(value) for value in points[0])
        inside = shape.mask()
        inside = inside[max(-top, 0) : max(size[1] - top, 0), max(-left, 0) : max(size[0] - left, 0)]
        return max(left, 0), max(top, 0), inside
    kind = shape.kind
    if kind in ("rectangle", "ellipse"):
        low, high = points.min(0), points.max(0)
        if shape.angle:
            points, kind = turned(_outline(kind, low, high), shape.angle, (low + high) / 2), "polygon"
        else:
            points = np.stack([low, high])
    canvas = Image.new("L", size)
    pencil = ImageDraw.Draw(canvas)
    corners = [(float(x), float(y)) for x, y in points]
    if kind == "line":
        pencil.line(corners, fill=1, width=round(shape.width))
    else:
        getattr(pencil, kind)(corners, fill=1, outline=1)
    for hole in shape.holes:
        pencil.polygon([(float(x), float(y)) for x, y in _pairs(hole)], fill=0, outline=0)
    left, top, right, bottom = canvas.getbbox() or (0, 0, 0, 0)
    return left, top, np.asarray(canvas.crop((left, top, right, bottom))) > 0


def _pairs(points: Any) -> np.ndarray:
    """Return points as float64 (N, 2)."""
    pairs = np.asarray(points, np.float64).reshape(-1, 2)
    if not np.isfinite(pairs).all():
        raise ValueError("a coordinate is no finite number")
    return pairs


def _outline(kind: str, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the corners of a rectangle, or 360 points of an ellipse."""
    if kind == "rectangle":
        return np.array([low, (high[0], low[1]), high, (low[0], high[1])])
    angles = np.radians(np.arange(360))
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return (low + high) / 2 + ring * (high - low) / 2


def turned(points: Any, degrees: float, centre: Any) -> np.ndarray:
    """Turn points clockwise (y points down) about a centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (np.asarray(points) - centre) @ np.array([[cos, sin], [-sin, cos]]) + centre


def runs(counts: Any, shape: tuple[int, int], order: Any = "C") -> np.ndarray:
    """Return the mask, bool (H, W), of run lengths: first of 0, then of 1, and so on.

    Args:
        counts: the lengths.
        shape: (height, width).
        order: "C" for runs along rows, "F" along columns.
    """
    counts = np.asarray(counts, np.int64)
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(shape, order=order)


def png_mask(content: bytes | str) -> np.ndarray:
    """Return the mask, bool (H, W), of a PNG, which may be in base64: what is neither 0 nor clear."""
    content = base64.b64decode(content) if isinstance(content, str) else content
    with Image.open(io.BytesIO(content)) as picture:
        if picture.mode in ("LA", "RGBA"):
            return np.asarray(picture)[..., -1] > 0
        return (np.asarray(picture).reshape(picture.height, picture.width, -1) > 0).any(2)
