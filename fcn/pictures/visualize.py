"""Masks as pictures: VOC colours, overlays, error maps, and grids of examples.

Nothing here reads or writes a file: masks become uint8 arrays, finished pictures PIL images.
255 marks ignored pixels. Colours, and whether class 0 is background, come from `DatasetInfo`.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fcn.dataset_info import VOID, DatasetInfo
from fcn.pictures.plots import FAINT, INK

if TYPE_CHECKING:  # torch takes a second to import
    from torch import Tensor

UInt8 = npt.NDArray[np.uint8]
Labels = npt.NDArray[Any]  # (H, W) integers in 0..255; bool is 0 and 1

# Okabe & Ito's colours: distinct in lightness as well as in hue, for every kind of colour vision.
ERROR_COLOURS = {
    "correct": (38, 38, 42),
    "false object": (213, 94, 0),  # background in the ground truth
    "missed object": (86, 180, 233),  # background in the prediction
    "wrong class": (240, 228, 66),
    "ignored": (128, 128, 128),
}
PLAIN = DatasetInfo()  # VOC's colours, and label 0 is background
STRIP = 2**20  # pixels of an overlay that are blended at once
COLUMNS, CELL, SPACE, LINE = 4, 320, 12, 22  # of a grid of pictures; pixels


def voc_palette(n: int = 256) -> UInt8:
    """Return Pascal VOC's colours of the labels 0..n-1.

    Returns:
        uint8 (n, 3); the bits of a label are dealt to red, green and blue, highest bit first.

    Source: VOCdevkit, VOClabelcolormap.m. Label 1 is (128, 0, 0), 255 is (224, 224, 192).
    """
    label = np.arange(n)[:, None]
    palette = np.zeros((n, 3), np.uint8)
    for group in range(3):  # bits 3g, 3g+1, 3g+2 of the label are bit 7-g of red, green, blue
        palette |= (label >> (3 * group + np.arange(3)) & 1).astype(np.uint8) << (7 - group)
    return palette


def as_rgb(image: "Tensor") -> UInt8:
    """Return an image (C, H, W) as a picture (H, W, 3): its first three channels, or first one."""
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return shown.permute(1, 2, 0).cpu().numpy()


def as_labels(mask: npt.ArrayLike) -> Labels:
    """Return a mask (H, W) of integers or bool as labels in 0..255.

    Raises:
        ValueError: another shape, type or label.
    """
    labels = np.asarray(mask)
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(f"mask must be integers or bool (H, W), got {labels.dtype} {labels.shape}")
    if labels.dtype != np.uint8 and labels.size:
        low, high = labels.min(), labels.max()
        if low < 0 or high > VOID:
            raise ValueError(f"mask must hold labels in 0..{VOID}, got {low} to {high}")
    return labels


def palette(info: DatasetInfo) -> UInt8:
    """Return the colours of the labels 0..255, uint8 (256, 3): VOC's where there is no other."""
    colours = voc_palette()
    if info.colours:
        colours[: len(info.colours)] = info.colours
    return colours


def palette_image(mask: Labels, info: DatasetInfo = PLAIN) -> Image.Image:
    """Return a mode "P" image: its pixel values are the labels, its palette their colours."""
    image = Image.fromarray(as_labels(mask).astype(np.uint8))
    image.putpalette(palette(info).tobytes())  # turns mode "L" into "P" and keeps pixel values
    return image


def colorize(mask: Labels, info: DatasetInfo = PLAIN) -> UInt8:
    """Return the colours of a mask, uint8 (H, W, 3)."""
    return palette(info)[as_labels(mask)]


def overlay(image: UInt8, mask: Labels, alpha: float = 0.55, info: DatasetInfo = PLAIN) -> UInt8:
    """Blend the colours of a mask over an image, uint8 (H, W, 3) both; see `fcn.overlay`."""
    mask = as_labels(mask)
    result: UInt8 = np.empty((*mask.shape, 3), np.uint8)
    for top, strip in overlay_strips(image, mask, alpha, info):
        result[top : top + len(strip)] = strip
    return result


def overlay_strips(
    image: UInt8, mask: Labels, alpha: float = 0.55, info: DatasetInfo = PLAIN
) -> Iterator[tuple[int, UInt8]]:
    """Yield an overlay in strips of rows, each with its first row; see `overlay`."""
    mask = as_labels(mask)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, got {alpha}")
    if image.dtype != np.uint8 or image.shape != (*mask.shape, 3):
        raise ValueError(
            f"image must be uint8 (H, W, 3) of the mask's size {mask.shape}, "
            f"got {image.dtype} {image.shape}"
        )
    weight = np.full((256, 1), alpha)
    weight[VOID] = alpha / 3
    if info.background:
        weight[0] = 0
    tint, line = palette(info) * weight, _line_width(mask)
    rows = max(1, STRIP // max(1, mask.shape[1]))
    for top in range(0, len(mask), rows):
        labels, first = mask[top : top + rows], max(0, top - line)
        strip = image[top : top + rows] * (1 - weight)[labels] + tint[labels]
        strip = strip.round().astype(np.uint8)
        outline = _outline(mask[first : top + rows + line], info, line)
        strip[outline[top - first :][:rows]] = 255
        yield top, strip


def error_colours(info: DatasetInfo) -> dict[str, tuple[int, ...]]:
    """Return name -> colour of the errors that occur: without background there are no objects."""
    objects = {} if info.background else {"false object", "missed object"}
    return {name: colour for name, colour in ERROR_COLOURS.items() if name not in objects}


def error_map(ground_truth: Labels, prediction: Labels, info: DatasetInfo = PLAIN) -> UInt8:
    """Return where and how a prediction is wrong, uint8 (H, W, 3) in `error_colours`."""
    result: UInt8 = np.empty((*ground_truth.shape, 3), np.uint8)
    result[...] = ERROR_COLOURS["wrong class"]
    if info.background:
        result[ground_truth == 0] = ERROR_COLOURS["false object"]
        result[prediction == 0] = ERROR_COLOURS["missed object"]
    result[ground_truth == prediction] = ERROR_COLOURS["correct"]
    result[ground_truth == VOID] = ERROR_COLOURS["ignored"]
    return result


def outlined(mask: Labels, info: DatasetInfo = PLAIN) -> UInt8:
    """Return the colours of a mask with objects outlined: VOC's dark colours are lost on black.

    A small mask is enlarged first, by an integer factor, so that the line is thin.
    """
    scale = max(1, 320 // max(mask.shape))
    mask = mask.repeat(scale, 0).repeat(scale, 1)
    colours = colorize(mask, info)
    colours[_outline(mask, info, _line_width(mask))] = 255
    return colours


def legend_of(masks: Iterable[Labels], info: DatasetInfo) -> dict[str, tuple[int, ...]]:
    """Return name -> colour of the labels that occur in masks; 255 is named "ignored"."""
    labels = sorted({int(label) for mask in masks for label in np.unique(mask)})
    colours = palette(info).tolist()
    return {"ignored" if k == VOID else info.classes[k]: tuple(colours[k]) for k in labels}


def panel(
    rows: Iterable[tuple[UInt8, Labels, Labels]],
    info: DatasetInfo,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """Draw rows of image | ground truth | prediction | errors, with legends of their colours.

    Rows may differ in size; they are taken one at a time, so that only one is in memory at full
    size. `captions` are lines of text below them.
    """
    cells: list[tuple[Image.Image, str]] = []
    seen: list[Labels] = []  # the labels of each mask
    for (image, ground_truth, prediction), caption in zip(
        rows, captions or itertools.repeat(""), strict=captions is not None
    ):
        cells.append((_fit(image), caption))
        for mask in (ground_truth, prediction):
            seen.append(np.unique(mask))
            cells.append((_fit(outlined(mask, info)), ""))
        cells.append((_fit(error_map(ground_truth, prediction, info)), ""))
    headings = ("image", "ground truth", "prediction", "errors")
    return _grid(cells, headings, [error_colours(info), legend_of(seen, info)])


def contact_sheet(
    samples: Sequence[tuple[UInt8, Labels]], info: DatasetInfo, captions: Sequence[str]
) -> Image.Image:
    """Draw images with their masks, two a row, each with its caption, and a legend of classes."""
    cells: list[tuple[Image.Image, str]] = []
    for (image, mask), caption in zip(samples, captions, strict=True):
        cells += [(_fit(image), caption), (_fit(outlined(mask, info)), "")]
    shown = legend_of((mask for _, mask in samples), info)
    return _grid(cells, ("image", "mask") * 2, [shown])


def _line_width(mask: Labels) -> int:
    """Return the width of outlines in pixels, which are thicker in larger images."""
    return max(1, round(max(mask.shape) / 500))


def _outline(mask: Labels, info: DatasetInfo, width: int) -> npt.NDArray[np.bool_]:
    """Mark the pixels of objects with another label within `width`, in their row or column."""
    near: npt.NDArray[np.bool_] = np.zeros(mask.shape, bool)
    for d in range(1, width + 1):
        for ahead, behind in ((np.s_[d:], np.s_[:-d]), (np.s_[:, d:], np.s_[:, :-d])):
            differs = mask[ahead] != mask[behind]
            near[ahead] |= differs
            near[behind] |= differs
    return near & (mask != VOID) & ((mask != 0) | (not info.background))


def _grid(
    cells: Sequence[tuple[Image.Image, str]],
    headings: Sequence[str],
    legends: Sequence[Mapping[str, tuple[int, ...]]],
) -> Image.Image:
    """Draw pictures in rows of four, each with a caption below it, and legends at the bottom."""
    rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    strips = [_strip(LINE), *map(_row, rows), *(_legend(colours) for colours in legends)]
    for column, heading in enumerate(headings):
        middle = column * (CELL + SPACE) + CELL // 2
        ImageDraw.Draw(strips[0]).text((middle, 0), heading, INK, _font(17), "ma")
    size = strips[0].width + 2 * LINE, sum(strip.height for strip in strips) + LINE
    grid, top = Image.new("RGB", size, "white"), LINE
    for strip in strips:
        grid.paste(strip, (LINE, top))
        top += strip.height
    return grid


def _fit(picture: UInt8) -> Image.Image:
    """Return a picture as large as a cell of the grid allows; enlarged pixels stay squares."""
    return ImageOps.contain(Image.fromarray(picture), (CELL, CELL), Image.Resampling.BOX)


def _row(cells: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Draw pictures side by side, each with a line below it."""
    strip = _strip(max(picture.height for picture, _ in cells) + 2 * LINE)
    for column, (picture, caption) in enumerate(cells):
        left = column * (CELL + SPACE)
        strip.paste(picture, (left + (CELL - picture.width) // 2, 0))
        ImageDraw.Draw(strip).text((left, picture.height + 3), caption, INK, _font(14))
    return strip


def _legend(colours: Mapping[str, tuple[int, ...]]) -> Image.Image:
    """Draw the names of colours, in as many columns as fit."""
    pitch = int(max(map(_font(14).getlength, colours))) + 2 * LINE
    columns = max(1, _strip(0).width // pitch)
    strip = _strip(-(-len(colours) // columns) * LINE + LINE // 2)
    draw = ImageDraw.Draw(strip)
    for index, (name, colour) in enumerate(colours.items()):
        x, y = index % columns * pitch, index // columns * LINE
        draw.rectangle((x, y, x + 14, y + 14), colour, FAINT)
        draw.text((x + LINE, y), name, INK, _font(14))
    return strip


def _strip(height: int) -> Image.Image:
    """Return a white strip as wide as a row of pictures."""
    return Image.new("RGB", (COLUMNS * (CELL + SPACE) - SPACE, height), "white")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's own font, which other pictures use too, in pixels."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
