"""Pictures beside pictures: predictions with their errors, images with their masks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fcn.config import VOID
from fcn.visualize import (
    ERROR_COLOURS,
    UInt8,
    as_labels,
    as_rgb,
    colorize,
    errors,
    outline,
    same_size,
    voc_palette,
)

INK, FAINT = "#333333", "#8a8a8a"
MARGIN, GAP = 20, 10  # in pixels


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
    image, t, p = (
        as_rgb("image", image),
        as_labels("truth", truth),
        as_labels("prediction", prediction),
    )
    same_size("truth", t, "image", image)
    same_size("prediction", p, "image", image)
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
    colours[outline(labels, 1, ignore_index)] = 255
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
