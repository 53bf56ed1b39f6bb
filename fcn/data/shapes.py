"""The sample data set `shapes`: small synthetic scenes, drawn on first use.

On disk it has Pascal VOC's layout (JPEG images, palette PNG masks, lists of ids, 255 on the
contours), so that it is read like Pascal VOC. Four of its seven shapes are thin or pointed: a
stride-8 network can resolve them, a stride-32 network cannot.
"""

import colorsys
import math
import shutil
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from fcn.dataset_info import VOID
from fcn.errors import DataError
from fcn.pictures.visualize import palette_image

CLASSES = ("background", "disk", "square", "triangle", "ring", "star", "cross", "bolt")
FOLDER = "shapes"  # below data.root
VERSION = 2  # raise it whenever a pixel would change: sets of another version are redrawn
# What data.root holds if it is somebody's own data set.
USER_FILES = (
    "images", "annotations", "dataset.yaml", "classes.txt", "_classes.csv", "labelmap.txt",
    "JPEGImages", "leftImg8bit", "train", "valid", "val",
)  # fmt: skip
COUNTS = {"train": 480, "val": 96}

IMAGE_SIZES = ((128, 128), (128, 160), (160, 128), (117, 149), (144, 112))  # height, width
OBJECTS = (2, 6)  # fewest and most in an image
SOLID, THIN = CLASSES[1:4], CLASSES[4:]
DIAMETER = dict.fromkeys(SOLID, (12, 80)) | dict.fromkeys(THIN, (30, 80))  # pixels
STROKE = (0.12, 0.16)  # width of ring, cross and bolt as a fraction of the diameter ...
STROKE_PIXELS = (4.0, 7.0)  # ... and its limits
VOID_HALF_WIDTH = 0.8  # pixels on either side of a visible contour
# Around the colour circle, alternately solid and thin: neighbours in hue differ most in shape.
HUES = ("disk", "cross", "square", "bolt", "triangle", "ring", "star")
HUE_SPREAD = 0.045  # standard deviation; centres are 1/7 apart: hue helps, and sometimes misleads
FILL_CONTRAST = 0.16
RIM, RIM_WIDTH = 0.3, 1.5  # darker inside the contour ...
SHADOW, SHADOW_WIDTH = 0.35, 4.0  # ... and a soft shadow around it: overlaps stay visible
NOISE = 0.02  # standard deviation of the camera noise, where the range is 1
PLACEMENTS = 4  # positions tried for an object; the one farthest from the others is taken
JPEG_QUALITY = 92

_STAR_WAIST = 0.42  # inner over outer radius
_BOLT = ((0.30, -0.95), (-0.45, 0.15), (0.45, -0.15), (-0.30, 0.95))  # in radii


def prepare(root: Path) -> Path:
    """Draw the data set into root/shapes, unless this VERSION of it is there.

    It is drawn into a temporary folder and renamed, so that several processes may do so at once.

    Args:
        root: data.root; created if missing.

    Returns:
        The folder with JPEGImages/NAME.jpg, SegmentationClass/NAME.png (mode P, VOC's colours),
        ImageSets/Segmentation/{train,val,trainval}.txt and the file VERSION.

    Raises:
        DataError: the folder cannot be written, or holds the user's own data.
    """
    folder = root / FOLDER
    if theirs := next((root / name for name in USER_FILES if (root / name).exists()), None):
        raise DataError(
            f"data.root={root} holds {theirs.name}, but data=shapes draws a sample data set; add "
            "data=folder to use yours"
        )
    if _is_complete(folder):
        return folder
    if folder.exists() and not (folder / "VERSION").is_file():
        raise DataError(f"{folder}: not a sample drawn by data=shapes; move it, or set data.root")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".shapes-", dir=root) as scratch:
            drawn = Path(scratch) / FOLDER  # scratch itself is readable by its owner only
            _write(drawn)
            if not _is_complete(folder):
                shutil.rmtree(folder, ignore_errors=True)
                drawn.rename(folder)
    except OSError as error:
        if not _is_complete(folder):  # else another process was faster
            raise DataError(
                f"data.root={root}: cannot draw the sample there ({error.strerror}); set data.root "
                "to a folder that can be written to"
            ) from error
    return folder


def draw(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene, a pure function of its arguments (and of VERSION).

    Args:
        split: "train" or "val".
        index: any >= 0; the set on disk holds the first COUNTS[split].

    Returns:
        image, uint8 (H, W, 3) RGB; mask, uint8 (H, W), an index of CLASSES, or 255 = ignored.
    """
    rng = np.random.default_rng([VERSION, list(COUNTS).index(split), index])
    height, width = IMAGE_SIZES[rng.integers(len(IMAGE_SIZES))]
    # float64 throughout: processors round float32 sines differently, enough to change a pixel
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
    """Return objects (label, radius, (y, x)), largest first: none hides another completely."""
    labels = rng.permutation(len(CLASSES) - 1)[: rng.integers(OBJECTS[0], OBJECTS[1] + 1)] + 1
    radii = [math.exp(rng.uniform(*np.log(DIAMETER[CLASSES[label]]))) / 2 for label in labels]
    objects: list[tuple[int, float, tuple[float, float]]] = []
    for radius, label in sorted(zip(radii, labels.tolist(), strict=True), reverse=True):
        margin = 0.7 * radius  # some are cut by the edge of the image
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
    """Paint one object over image (float, 0..1) and mask, in place."""
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
    """Return the signed distance in pixels to the contour of a class's shape, negative inside."""
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
    """Return the squared distance to a segment, and whether a ray from (x, y) to +x crosses it."""
    level = (y < start[1]) != (y < end[1])  # compared so that edges agree at a shared corner
    x, y = x - start[0], y - start[1]
    ex, ey = end[0] - start[0], end[1] - start[1]
    along = ((x * ex + y * ey) / (ex * ex + ey * ey)).clip(0, 1)
    crossed = level & ((x * ey < y * ex) == (ey > 0))
    return (x - along * ex) ** 2 + (y - along * ey) ** 2, crossed


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return float (height, width, 3): two pale colours, blended by a texture."""
    one, other = (
        np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.35), rng.uniform(0.3, 0.75)))
        for _ in range(2)
    )
    return one + (0.5 + 0.4 * _texture(rng, height, width))[..., None] * (other - one)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return float (height, width), mostly -1..1: a gradient, noise of three scales, stripes."""
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


def _write(folder: Path) -> None:
    """Draw the whole set into a new folder; VERSION is written last."""
    images, masks, lists = (
        folder / part for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    )
    for part in (images, masks, lists):
        part.mkdir(parents=True)
    for split, count in COUNTS.items():
        names = [f"{split}_{index:04d}" for index in range(count)]
        for index, name in enumerate(names):
            image, mask = draw(split, index)
            Image.fromarray(image).save(images / f"{name}.jpg", quality=JPEG_QUALITY)
            palette_image(mask).save(masks / f"{name}.png")
        for listing in (split, "trainval"):
            with (lists / f"{listing}.txt").open("a") as file:
                file.writelines(f"{name}\n" for name in names)
    (folder / "VERSION").write_text(f"{VERSION}\n")


def _is_complete(folder: Path) -> bool:
    version = folder / "VERSION"
    return version.is_file() and version.read_text(errors="replace") == f"{VERSION}\n"
