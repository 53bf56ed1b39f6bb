"""The embedded sample data set `shapes`: small synthetic scenes, drawn on first use.

It lies on disk as Pascal VOC does (JPEG images, palette PNG masks, id lists, 255 = void on the
contours), so that it takes the very path Pascal VOC takes. Four of its seven objects are thin or
pointed: they are what a stride-8 net resolves and a stride-32 net cannot.
"""

import colorsys
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from fcn.config import VOID

CLASSES = ("background", "disk", "square", "triangle", "ring", "star", "cross", "bolt")
VERSION = 2  # raise it whenever a pixel would change: sets of another version are redrawn
COUNTS = {"train": 480, "val": 96}

IMAGE_SIZES = ((128, 128), (128, 160), (160, 128), (117, 149), (144, 112))  # height, width
OBJECTS = (2, 6)  # fewest and most in an image
SOLID, THIN = CLASSES[1:4], CLASSES[4:]
DIAMETER = dict.fromkeys(SOLID, (12, 80)) | dict.fromkeys(THIN, (30, 80))  # pixels
STROKE = (0.12, 0.16)  # of the diameter, for ring, cross and bolt ...
STROKE_PIXELS = (4.0, 7.0)  # ... and its limits
VOID_HALF_WIDTH = 0.8  # pixels either side of a visible contour
# Round the colour circle, solid and thin in turn: neighbours in hue differ most in shape.
HUES = ("disk", "cross", "square", "bolt", "triangle", "ring", "star")
HUE_SPREAD = 0.045  # standard deviation; centres lie 1/7 apart: hue helps, and misleads at times
FILL_CONTRAST = 0.16
RIM, RIM_WIDTH = 0.3, 1.5  # darker inside the contour ...
SHADOW, SHADOW_WIDTH = 0.35, 4.0  # ... and a soft shadow around it: overlaps stay visible
NOISE = 0.02  # standard deviation of the camera noise, of a range of 1
PLACEMENTS = 4  # positions tried for an object; the one farthest from the others is taken
JPEG_QUALITY = 92

_MARKER = "VERSION"
_STAR_WAIST = 0.42  # inner over outer radius
_BOLT = ((0.30, -0.95), (-0.45, 0.15), (0.45, -0.15), (-0.30, 0.95))  # in radii


def prepare(root: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Makes sure that the drawn set lies at `root/shapes`.

    A set is drawn beside its place and renamed into it, so it is there whole or not at all, and
    processes that draw at the same time do not meet: the first to finish wins. What lay there
    before is removed if it bears a marker of this module; anything else is moved aside.

    Args:
        root: made if missing.
        progress: called after each image with the numbers done and to do; not if none is drawn.
    Returns: the folder: JPEGImages/NAME.jpg, SegmentationClass/NAME.png (mode P, VOC's colours),
        ImageSets/Segmentation/{train,val,trainval}.txt and the file VERSION.
    Raises: OSError: the folder cannot be written; nothing half-drawn is left behind.
    Warns: UserWarning: something else lay at `root/shapes`, and where it is now.
    """
    folder = Path(root) / "shapes"
    if _is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".shapes-", dir=folder.parent, ignore_cleanup_errors=True
    ) as scratch:
        drawn = Path(scratch) / "new"  # not scratch itself, which only its owner may read
        _write(drawn, progress)
        while not _is_complete(folder):  # another process may have been first
            try:
                os.rename(drawn, folder)
            except OSError:
                if not folder.exists():
                    raise
                if not _is_complete(folder):
                    _make_way(folder, Path(scratch))
    return folder


def draw(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """One scene, a pure function of its arguments (and of VERSION).

    Args:
        split: "train" or "val".
        index: any >= 0; the set on disk holds the first COUNTS[split].
    Returns: image, uint8 (H, W, 3) RGB; mask, uint8 (H, W), an index of CLASSES or 255 for void.
    Raises: ValueError: an unknown split, or a negative index.
    """
    if split not in COUNTS:
        raise ValueError(f"split must be one of {', '.join(COUNTS)}, got {split!r}")
    if index < 0:
        raise ValueError(f"index must be >= 0, got {index}")
    rng = np.random.default_rng([VERSION, list(COUNTS).index(split), index])
    height, width = IMAGE_SIZES[rng.integers(len(IMAGE_SIZES))]
    # float64 throughout: processors round float32 sines differently, by enough to move a pixel
    image = _background(rng, height, width)
    mask = np.zeros((height, width), np.uint8)
    for label, radius, centre in _arrange(rng, height, width):
        _paint(rng, image, mask, label, radius, centre)
    image *= rng.uniform(0.85, 1.1) * rng.uniform(0.94, 1.06, 3)  # exposure, white balance
    image += rng.normal(0, NOISE, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), mask


def _arrange(
    rng: np.random.Generator, height: int, width: int
) -> list[tuple[int, float, tuple[float, float]]]:
    """The scene's objects as (label, radius, (y, x)), largest first: none hides all of another."""
    labels = rng.permutation(len(CLASSES) - 1)[: rng.integers(OBJECTS[0], OBJECTS[1] + 1)] + 1
    radii = [math.exp(rng.uniform(*np.log(DIAMETER[CLASSES[label]]))) / 2 for label in labels]
    objects: list[tuple[int, float, tuple[float, float]]] = []
    for radius, label in sorted(zip(radii, labels.tolist(), strict=True), reverse=True):
        margin = 0.7 * radius  # some are cut by the image's border
        tries = rng.uniform(margin, np.subtract((height, width), margin), (PLACEMENTS, 2))
        gaps = [
            min((math.dist(at, there) - other for _, other, there in objects), default=0)
            for at in tries
        ]
        y, x = tries[int(np.argmax(gaps))].tolist()
        objects.append((label, radius, (y, x)))
    return objects


def _paint(
    rng: np.random.Generator,
    image: np.ndarray,
    mask: np.ndarray,
    label: int,
    radius: float,
    centre: tuple[float, float],
) -> None:
    """Paints one object over image (float, 0..1) and mask, in place."""
    reach = radius + SHADOW_WIDTH + 1
    (top, left), (bottom, right) = (
        np.clip(np.add(centre, by).astype(int), 0, mask.shape) for by in (-reach, reach + 1)
    )
    box = np.s_[top:bottom, left:right]
    y, x = np.ogrid[box]
    y, x = y - centre[0], x - centre[1]
    angle = rng.uniform(0, 2 * math.pi)
    across, down = math.cos(angle), math.sin(angle)
    stroke = np.clip(2 * radius * rng.uniform(*STROKE), *STROKE_PIXELS)
    d = _distance(CLASSES[label], x * across + y * down, y * across - x * down, radius, stroke)

    hue = HUES.index(CLASSES[label]) / len(HUES) + rng.normal(0, HUE_SPREAD)
    colour = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.6, 0.95), rng.uniform(0.7, 1.0))
    shade = 1 + FILL_CONTRAST * _texture(rng, *d.shape)
    shade *= 1 - RIM * (1 + d / RIM_WIDTH).clip(0, 1)
    cover = (0.5 - d).clip(0, 1)[..., None]  # antialiased
    image[box] *= 1 - SHADOW * (1 - d / SHADOW_WIDTH).clip(0, 1)[..., None]
    image[box] += cover * (shade[..., None] * colour - image[box])
    mask[box][d < 0] = label
    mask[box][np.abs(d) < VOID_HALF_WIDTH] = VOID


def _distance(name: str, x: np.ndarray, y: np.ndarray, radius: float, stroke: float) -> np.ndarray:
    """Signed distance in pixels to the contour of a class's shape, negative inside."""
    if name == "disk":
        return np.hypot(x, y) - radius
    if name == "ring":
        return np.abs(np.hypot(x, y) - radius + stroke / 2) - stroke / 2
    spine = radius - stroke / 2  # round ends reach as far as the radius
    if name == "cross":
        arms = [_to_edge(x, y, (-a, -b), (a, b))[0] for a, b in ((spine, 0), (0, spine))]
        return np.sqrt(np.minimum(*arms)) - stroke / 2
    if name == "bolt":
        joints = spine * np.array(_BOLT)
        edges = [_to_edge(x, y, a, b)[0] for a, b in pairwise(joints)]
        return np.sqrt(np.minimum.reduce(edges)) - stroke / 2
    corners = {"triangle": 3, "square": 4, "star": 10}[name]
    turns = 2 * math.pi * np.arange(corners) / corners
    outline = radius * np.stack((np.cos(turns), np.sin(turns)), 1)
    if name == "star":
        outline[1::2] *= _STAR_WAIST
    sides = [_to_edge(x, y, a, b) for a, b in zip(outline, np.roll(outline, -1, 0), strict=True)]
    inside = np.logical_xor.reduce([crossed for _, crossed in sides])
    return np.where(inside, -1, 1) * np.sqrt(np.minimum.reduce([squared for squared, _ in sides]))


def _to_edge(
    x: np.ndarray, y: np.ndarray, start: Sequence[float], end: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distance to a line segment, and whether a ray towards +x from (x, y) crosses it."""
    level = (y < start[1]) != (y < end[1])  # so compared that edges agree about a shared corner
    x, y = x - start[0], y - start[1]
    ex, ey = end[0] - start[0], end[1] - start[1]
    along = ((x * ex + y * ey) / (ex * ex + ey * ey)).clip(0, 1)
    crossed = level & ((x * ey < y * ex) == (ey > 0))
    return (x - along * ex) ** 2 + (y - along * ey) ** 2, crossed


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Float (height, width, 3): two pale colours, blended by a texture."""
    one, other = (
        np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.35), rng.uniform(0.3, 0.75)))
        for _ in range(2)
    )
    return one + (0.5 + 0.4 * _texture(rng, height, width))[..., None] * (other - one)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Float (height, width), mostly in -1..1: a gradient, noise of three scales, stripes."""
    y, x = np.ogrid[:height, :width]

    def ramp() -> np.ndarray:  # pixels in a random direction
        angle = rng.uniform(0, 2 * math.pi)
        return x * math.cos(angle) + y * math.sin(angle)

    texture = rng.uniform(0.2, 0.8) * ramp() / max(height, width)
    for cell, weight in ((32, 0.4), (12, 0.25), (4, 0.2)):
        knots = rng.normal(size=(height // cell + 2, width // cell + 2))
        smooth = Image.fromarray(knots.astype(np.float32)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        texture += weight * np.asarray(smooth)
    stripes = np.sin(ramp() * (2 * math.pi / rng.uniform(5, 24)) + rng.uniform(0, 2 * math.pi))
    return texture + rng.uniform(0, 0.5) * stripes


def _write(folder: Path, progress: Callable[[int, int], None] | None) -> None:
    """Draws the whole set into a new folder; the marker comes last."""
    images, masks, lists = (
        folder / part for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    )
    for part in (images, masks, lists):
        part.mkdir(parents=True)
    palette = voc_palette()
    scenes = list(_scenes())
    for done, (split, index, name) in enumerate(scenes, 1):
        image, mask = draw(split, index)
        Image.fromarray(image).save(images / f"{name}.jpg", quality=JPEG_QUALITY)
        coloured = Image.fromarray(mask)
        coloured.putpalette(palette)  # turns mode L into P
        coloured.save(masks / f"{name}.png")
        if progress is not None:
            progress(done, len(scenes))
    for chosen in (("train",), ("val",), ("train", "val")):
        names = "".join(f"{name}\n" for split, _, name in scenes if split in chosen)
        (lists / f"{''.join(chosen)}.txt").write_text(names)
    (folder / _MARKER).write_text(f"{VERSION}\n")


def _scenes() -> Iterator[tuple[str, int, str]]:
    """(split, index, file name without its suffix) of every scene on disk."""
    return ((s, i, f"{s}_{i:04d}") for s, count in COUNTS.items() for i in range(count))


def _is_complete(folder: Path) -> bool:
    """Whether a whole set of this VERSION lies there. Opens one file and counts the others."""
    try:
        return (folder / _MARKER).read_text(errors="replace") == f"{VERSION}\n" and all(
            len(os.listdir(folder / part)) >= sum(COUNTS.values())
            for part in ("JPEGImages", "SegmentationClass")
        )
    except (FileNotFoundError, NotADirectoryError):
        return False


def _make_way(folder: Path, scratch: Path) -> None:
    """Moves what lies at `folder` into `scratch`, or, if it is not ours, to a name beside it."""
    ours = (folder / _MARKER).is_file()
    beside = folder.with_name(f"{folder.name}-aside{scratch.name.removeprefix('.shapes')}")
    try:
        os.rename(folder, Path(tempfile.mkdtemp(dir=scratch)) / "old" if ours else beside)
    except FileNotFoundError:
        return  # another process has just moved it
    if not ours:
        warnings.warn(f"{folder} was no set of shapes: moved to {beside}", stacklevel=3)


def voc_palette() -> list[int]:
    """Pascal VOC's 256 colours, flat: label bits 0, 1, 2 set r, g, b's top bit, 3, 4, 5 the next.

    Here once more, beside fcn.visualize.voc_palette, because `data` imports nothing of the rest.
    """
    return [
        sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
        for label in range(256)
        for channel in range(3)
    ]
