"""Arrays in, pictures out: masks in the VOC colours, overlays and error maps.

Nothing here reads a file, prints or saves: masks come back as uint8 arrays, finished pictures as
`PIL.Image.Image`, and the caller saves them. Class 0 is the background, 255 is void, as in VOC.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcn.config import VOID

UInt8 = npt.NDArray[np.uint8]

# Okabe & Ito's colours: apart in lightness as well as in hue, whatever the reader's colour vision.
ERROR_COLOURS = {
    "right": (38, 38, 42),
    "false object": (213, 94, 0),  # background in truth
    "missed object": (86, 180, 233),  # background in prediction
    "wrong class": (240, 228, 66),
    "not counted": (128, 128, 128),
}


def voc_palette(n: int = 256) -> UInt8:
    """Pascal VOC's colours: (n, 3) uint8; the bits of label i, dealt out to R, G, B from the top.

    Raises: ValueError: n outside 1..256.
    Source: VOCdevkit's VOClabelcolormap.m. Entry 1 is (128, 0, 0), 255 is (224, 224, 192).
    """
    if not 1 <= n <= 256:
        raise ValueError(f"n must be in 1..256, got {n}")
    label = np.arange(n)[:, None]
    palette = np.zeros((n, 3), dtype=np.uint8)
    for group in range(3):  # bits 3g, 3g+1, 3g+2 of the label are bit 7-g of red, green, blue
        palette |= (label >> (3 * group + np.arange(3)) & 1).astype(np.uint8) << (7 - group)
    return palette


def palette_image(mask: npt.NDArray[Any]) -> Image.Image:
    """A mode "P" image whose pixel values are the labels of mask, (H, W) integers in 0..255.

    Raises: ValueError: mask is not so.
    """
    image = Image.fromarray(as_labels("mask", mask))
    image.putpalette(voc_palette().tobytes())  # turns mode "L" into "P", pixel values kept
    return image


def colorize(mask: npt.NDArray[Any]) -> UInt8:
    """The VOC colours of mask, (H, W) integers in 0..255, as (H, W, 3) uint8.

    Raises: ValueError: mask is not so.
    """
    return voc_palette()[as_labels("mask", mask)]


def overlay(
    image: UInt8, mask: npt.NDArray[Any], alpha: float = 0.55, ignore_index: int = VOID
) -> UInt8:
    """The colours of mask over image; objects are outlined on their inside, void is a faint tint.

    Args: image: (H, W, 3) uint8. mask: (H, W) integers in 0..255. alpha: weight of the colour,
        0..1. ignore_index: the label of void.
    Returns: (H, W, 3) uint8; pixels of class 0 are those of image.
    Raises: ValueError: a shape, dtype or label is not so, or alpha is outside 0..1.
    """
    image, labels = as_rgb("image", image), as_labels("mask", mask)
    same_size("mask", labels, "image", image)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, got {alpha}")
    every = np.arange(256)
    weight = (np.where(every == ignore_index, alpha / 3, alpha) * (every != 0))[:, None]
    tint = voc_palette() * weight
    result: UInt8 = np.empty(image.shape, np.uint8)
    for top in range(0, len(labels), 256):  # a large image is never held as floats
        rows = slice(top, top + 256)
        label = labels[rows]
        result[rows] = (image[rows] * (1 - weight)[label] + tint[label]).round()
    thickness = max(1, round(max(labels.shape) / 500))  # as thin to the eye at any image size
    result[outline(labels, thickness, ignore_index)] = 255
    return result


def errors(
    truth: npt.NDArray[Any], prediction: npt.NDArray[Any], ignore_index: int = VOID
) -> UInt8:
    """Where and how prediction is wrong: (H, W, 3) uint8 in the colours of ERROR_COLOURS.

    Args: truth, prediction: (H, W) integers in 0..255; truth == ignore_index is not judged.
    Raises: ValueError: a shape, dtype or label is not so.
    """
    t, p = as_labels("truth", truth), as_labels("prediction", prediction)
    same_size("prediction", p, "truth", t)
    result: UInt8 = np.empty((*t.shape, 3), dtype=np.uint8)
    result[...] = ERROR_COLOURS["wrong class"]
    result[t == 0] = ERROR_COLOURS["false object"]
    result[p == 0] = ERROR_COLOURS["missed object"]
    result[t == p] = ERROR_COLOURS["right"]
    result[t == ignore_index] = ERROR_COLOURS["not counted"]
    return result


def outline(labels: UInt8, thickness: int, ignore_index: int) -> npt.NDArray[np.bool_]:
    """Pixels of an object with another label within thickness up, down, left or right of them."""
    near: npt.NDArray[np.bool_] = np.zeros(labels.shape, dtype=bool)
    for d in range(1, thickness + 1):
        for ahead, behind in ((np.s_[d:], np.s_[:-d]), (np.s_[:, d:], np.s_[:, :-d])):
            differs = labels[ahead] != labels[behind]
            near[ahead] |= differs
            near[behind] |= differs
    near &= (labels != 0) & (labels != ignore_index)
    return near


def as_labels(name: str, mask: npt.NDArray[Any]) -> UInt8:
    array = np.asarray(mask)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be (H, W) integers, got {array.shape} of {array.dtype}")
    if array.min() < 0 or array.max() > 255:
        raise ValueError(f"{name} must hold 0..255, got {array.min()}..{array.max()}")
    return array.astype(np.uint8)


def as_rgb(name: str, image: UInt8) -> UInt8:
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0 or array.dtype != np.uint8:
        raise ValueError(f"{name} must be (H, W, 3) uint8, got {array.shape} of {array.dtype}")
    return array


def same_size(name: str, array: UInt8, other_name: str, other: UInt8) -> None:
    if array.shape[:2] != other.shape[:2]:
        size, other_size = array.shape[:2], other.shape[:2]
        raise ValueError(f"{name} must have {other_name}'s size {other_size}, got {size}")
