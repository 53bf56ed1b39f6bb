"""Arrays in, pictures out: masks in the VOC colours, overlays, error maps and panels.

Nothing here reads a file, prints or saves: masks come back as uint8 arrays, finished pictures as
`PIL.Image.Image`, and the caller saves them. Class 0 is the background, 255 is void, as in VOC.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

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
INK, FAINT = "#333333", "#8a8a8a"
MARGIN, GAP = 20, 10  # of a panel, in pixels


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
    image = Image.fromarray(_labels("mask", mask))
    image.putpalette(voc_palette().tobytes())  # turns mode "L" into "P", pixel values kept
    return image


def colorize(mask: npt.NDArray[Any]) -> UInt8:
    """The VOC colours of mask, (H, W) integers in 0..255, as (H, W, 3) uint8.

    Raises: ValueError: mask is not so.
    """
    return voc_palette()[_labels("mask", mask)]


def overlay(
    image: UInt8, mask: npt.NDArray[Any], alpha: float = 0.55, ignore_index: int = VOID
) -> UInt8:
    """The colours of mask over image; objects are outlined on their inside, void is a faint tint.

    Args: image: (H, W, 3) uint8. mask: (H, W) integers in 0..255. alpha: weight of the colour,
        0..1. ignore_index: the label of void.
    Returns: (H, W, 3) uint8; pixels of class 0 are those of image.
    Raises: ValueError: a shape, dtype or label is not so, or alpha is outside 0..1.
    """
    image, labels = _rgb("image", image), _labels("mask", mask)
    _same_size("mask", labels, "image", image)
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
    result[_outline(labels, thickness, ignore_index)] = 255
    return result


def errors(
    truth: npt.NDArray[Any], prediction: npt.NDArray[Any], ignore_index: int = VOID
) -> UInt8:
    """Where and how prediction is wrong: (H, W, 3) uint8 in the colours of ERROR_COLOURS.

    Args: truth, prediction: (H, W) integers in 0..255; truth == ignore_index is not judged.
    Raises: ValueError: a shape, dtype or label is not so.
    """
    t, p = _labels("truth", truth), _labels("prediction", prediction)
    _same_size("prediction", p, "truth", t)
    result: UInt8 = np.empty((*t.shape, 3), dtype=np.uint8)
    result[...] = ERROR_COLOURS["wrong class"]
    result[t == 0] = ERROR_COLOURS["false object"]
    result[p == 0] = ERROR_COLOURS["missed object"]
    result[t == p] = ERROR_COLOURS["right"]
    result[t == ignore_index] = ERROR_COLOURS["not counted"]
    return result


def panel(
    rows: Sequence[tuple[UInt8, npt.NDArray[Any], npt.NDArray[Any]]],
    classes: Sequence[str],
    captions: Sequence[str] | None = None,
    width: int = 1400,
    ignore_index: int = VOID,
) -> Image.Image:
    """A grid of image | truth | prediction | errors, with legends of the colours it shows.

    Args:
        rows: (image, truth, prediction), as for `overlay` and `errors`; each row may have its own
            size, and is scaled to the column's width, or to as much height if it is upright.
        classes: the name of each label, background first.
        captions: a line of text below each row, such as "2007_000033: mean IoU 0.83".
        width: of the picture in pixels, 600 or more.
        ignore_index: the label of void, which needs no name.
    Returns: an RGB image, `width` wide and as high as it needs; objects are outlined in white.
    Raises: ValueError: rows are none, a shape, dtype or label is not so, a label has no name,
        captions are not one a row, or width is below 600.
    """
    if not rows:
        raise ValueError("rows must hold at least one (image, truth, prediction), got none")
    if captions is not None and len(captions) != len(rows):
        raise ValueError(f"captions must be one a row, got {len(captions)} for {len(rows)} rows")
    if width < 600:
        raise ValueError(f"width must be at least 600, got {width}")
    bands, shown = [_headings(width)], set[int]()
    lines = [None] * len(rows) if captions is None else captions
    for (image, truth, prediction), caption in zip(rows, lines, strict=True):
        bands.append(_row(image, truth, prediction, caption, width, ignore_index))
        shown |= {*np.unique(truth).tolist(), *np.unique(prediction).tolist()}
    nameless = shown.difference(range(len(classes)), [ignore_index])
    if nameless:
        raise ValueError(f"classes must name label {max(nameless)}, got {len(classes)} names")
    names = [(classes[k] if k != ignore_index else "void", k) for k in sorted(shown)]
    colours = voc_palette().tolist()
    bands.append(_legend([(name, tuple(colours[k])) for name, k in names], width))
    bands.append(_legend(list(ERROR_COLOURS.items()), width))
    return _stacked(bands, width)


def contact_sheet(
    samples: Sequence[tuple[UInt8, npt.NDArray[Any]]],
    classes: Sequence[str],
    captions: Sequence[str],
    width: int = 1400,
) -> Image.Image:
    """Images, each with its mask to the right and its caption below, two a row, and a legend.

    Args: samples: (image, mask), as for `overlay`; 255 is void. classes: the name of each label.
        captions: a line for each sample. width: of the picture in pixels.
    Returns: an RGB image, `width` wide; objects are outlined in white.
    """
    cell, bands = _cell(width), [Image.new("RGB", (width, MARGIN), "white")]
    for first in range(0, len(samples), 2):
        row = [(_scaled(image, cell), _scaled(m, cell)) for image, m in samples[first : first + 2]]
        bands.append(Image.new("RGB", (width, 34 + max(len(m) for _, m in row)), "white"))
        for i, (image, mask) in enumerate(row):
            left = MARGIN + 2 * i * (cell + GAP)
            bands[-1].paste(Image.fromarray(image), (left, 0))
            bands[-1].paste(Image.fromarray(_outlined(mask, VOID)), (left + cell + GAP, 0))
            text, at = _shorten(captions[first + i], 2 * cell), (left, mask.shape[0] + 14)
            ImageDraw.Draw(bands[-1]).text(at, text, INK, _font(14), anchor="lm")
    shown = sorted({label for _, mask in samples for label in np.unique(mask).tolist()})
    names = ["void" if label == VOID else classes[label] for label in shown]
    colours = map(tuple, voc_palette()[shown].tolist())
    return _stacked([*bands, _legend([*zip(names, colours, strict=True)], width)], width)


def _stacked(bands: Sequence[Image.Image], width: int) -> Image.Image:
    canvas = Image.new("RGB", (width, sum(band.height for band in bands) + GAP), "white")
    y = 0
    for band in bands:
        canvas.paste(band, (0, y))
        y += band.height
    return canvas


def _headings(width: int) -> Image.Image:
    band = Image.new("RGB", (width, 48), "white")
    cell = _cell(width)
    for i, title in enumerate(("image", "truth", "prediction", "errors")):
        centre = (MARGIN + i * (cell + GAP) + cell / 2, 28)
        ImageDraw.Draw(band).text(centre, title, INK, _font(17), anchor="mm")
    return band


def _row(
    image: UInt8,
    truth: npt.NDArray[Any],
    prediction: npt.NDArray[Any],
    caption: str | None,
    width: int,
    ignore_index: int,
) -> Image.Image:
    image, t, p = _rgb("image", image), _labels("truth", truth), _labels("prediction", prediction)
    _same_size("truth", t, "image", image)
    _same_size("prediction", p, "image", image)
    cell = _cell(width)
    image, t, p = _scaled(image, cell), _scaled(t, cell), _scaled(p, cell)
    height, wide = t.shape
    band = Image.new("RGB", (width, height + (GAP if caption is None else 34)), "white")
    masks = [_outlined(labels, ignore_index) for labels in (t, p)]
    for i, picture in enumerate((image, *masks, errors(t, p, ignore_index))):
        left = MARGIN + i * (cell + GAP) + (cell - wide) // 2
        band.paste(Image.fromarray(picture), (left, 0))
    if caption is not None:
        text = _shorten(caption, width - 2 * MARGIN)
        ImageDraw.Draw(band).text((MARGIN, height + 14), text, INK, _font(14), anchor="lm")
    return band


def _scaled(picture: UInt8, cell: int) -> UInt8:
    """An image (H, W, 3), or a mask (H, W), with its longer side `cell` pixels."""
    height, wide = (max(1, round(n * cell / max(picture.shape[:2]))) for n in picture.shape[:2])
    how = Image.Resampling.LANCZOS if picture.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize((wide, height), how))


def _outlined(labels: UInt8, ignore_index: int) -> UInt8:
    """The colours of a mask, objects in a white line: VOC's dark colours are lost on black."""
    colours = colorize(labels)
    colours[_outline(labels, 1, ignore_index)] = 255
    return colours


def _legend(entries: Sequence[tuple[str, tuple[int, ...]]], width: int) -> Image.Image:
    """Swatches with names in even columns, filled row by row, below a gap."""
    names = [_shorten(name, 300) for name, _ in entries]
    column = 60 + int(max(_font(14).getlength(name) for name in names))
    per_row = max(1, (width - 2 * MARGIN) // column)
    band = Image.new("RGB", (width, 14 + 26 * -(-len(entries) // per_row)), "white")
    draw = ImageDraw.Draw(band)
    for i, (name, (_, colour)) in enumerate(zip(names, entries, strict=True)):
        x, y = MARGIN + i % per_row * column, 14 + i // per_row * 26
        draw.rectangle((x, y, x + 22, y + 14), colour, FAINT)
        draw.text((x + 30, y + 7), name, INK, _font(14), anchor="lm")
    return band


def _cell(width: int) -> int:
    return (width - 2 * MARGIN - 3 * GAP) // 4


def _shorten(text: str, width: int) -> str:
    """text on one line, cut with an ellipsis where it is wider than width pixels."""
    text = " ".join(text.split())
    if _font(14).getlength(text) <= width:
        return text
    while text and _font(14).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _outline(labels: UInt8, thickness: int, ignore_index: int) -> npt.NDArray[np.bool_]:
    """Pixels of an object with another label within thickness up, down, left or right of them."""
    near: npt.NDArray[np.bool_] = np.zeros(labels.shape, dtype=bool)
    for d in range(1, thickness + 1):
        for ahead, behind in ((np.s_[d:], np.s_[:-d]), (np.s_[:, d:], np.s_[:, :-d])):
            differs = labels[ahead] != labels[behind]
            near[ahead] |= differs
            near[behind] |= differs
    near &= (labels != 0) & (labels != ignore_index)
    return near


def _labels(name: str, mask: npt.NDArray[Any]) -> UInt8:
    array = np.asarray(mask)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be (H, W) integers, got {array.shape} of {array.dtype}")
    if array.min() < 0 or array.max() > 255:
        raise ValueError(f"{name} must hold 0..255, got {array.min()}..{array.max()}")
    return array.astype(np.uint8)


def _rgb(name: str, image: UInt8) -> UInt8:
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0 or array.dtype != np.uint8:
        raise ValueError(f"{name} must be (H, W, 3) uint8, got {array.shape} of {array.dtype}")
    return array


def _same_size(name: str, array: UInt8, other_name: str, other: UInt8) -> None:
    if array.shape[:2] != other.shape[:2]:
        size, other_size = array.shape[:2], other.shape[:2]
        raise ValueError(f"{name} must have {other_name}'s size {other_size}, got {size}")
