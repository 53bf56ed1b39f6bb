"""Masks as pictures: VOC colours, overlays, error maps, and grids of examples.

Nothing here reads or writes a file: masks become uint8 arrays, finished pictures PIL images.
Class 0 is the background and 255 marks ignored pixels, as in VOC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcn.config import VOID
from fcn.plots import DPI, FAINT, INK, add_legend, render, shorten

UInt8 = npt.NDArray[np.uint8]
Labels = npt.NDArray[Any]  # (H, W) integers in 0..255

# Okabe & Ito's colours: distinct in lightness as well as in hue, for every kind of colour vision.
ERROR_COLOURS = {
    "correct": (38, 38, 42),
    "false object": (213, 94, 0),  # background in the ground truth
    "missed object": (86, 180, 233),  # background in the prediction
    "wrong class": (240, 228, 66),
    "ignored": (128, 128, 128),
}
CELL = 2.5  # inches: width of a column of pictures, and height of an upright picture


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


def palette_image(mask: Labels) -> Image.Image:
    """Return a mode "P" image: its pixel values are the labels, its palette VOC's."""
    image = Image.fromarray(np.asarray(mask).astype(np.uint8))
    image.putpalette(voc_palette().tobytes())  # turns mode "L" into "P" and keeps pixel values
    return image


def colorize(mask: Labels) -> UInt8:
    """Return the VOC colours of a mask, uint8 (H, W, 3)."""
    return voc_palette()[mask]


def overlay(image: UInt8, mask: Labels, alpha: float = 0.55, ignore_index: int = VOID) -> UInt8:
    """Blend the colours of a mask over its image, with a white line along the inside of objects.

    Args:
        image: uint8 (H, W, 3).
        mask: integers (H, W) in 0..255.
        alpha: weight of the colour, 0..1; ignored pixels get a third of it, background none.
        ignore_index: label of ignored pixels.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: image and mask differ in size, or image is not uint8 (H, W, 3).
    """
    if image.dtype != np.uint8 or image.shape != (*mask.shape, 3):
        raise ValueError(
            f"image must be uint8 (H, W, 3) of the mask's size {mask.shape}, "
            f"got {image.dtype} {image.shape}"
        )
    label = np.arange(256)
    weight = (np.where(label == ignore_index, alpha / 3, alpha) * (label != 0))[:, None]
    tint = voc_palette() * weight
    result = (image * (1 - weight)[mask] + tint[mask]).round().astype(np.uint8)
    result[_outline(mask, ignore_index)] = 255
    return result


def errors(ground_truth: Labels, prediction: Labels, ignore_index: int = VOID) -> UInt8:
    """Return where and how a prediction is wrong, uint8 (H, W, 3) in `ERROR_COLOURS`.

    Args:
        ground_truth: integers (H, W); pixels equal to ignore_index are not compared.
        prediction: integers (H, W).
        ignore_index: label of ignored pixels.
    """
    result: UInt8 = np.empty((*ground_truth.shape, 3), np.uint8)
    result[...] = ERROR_COLOURS["wrong class"]
    result[ground_truth == 0] = ERROR_COLOURS["false object"]
    result[prediction == 0] = ERROR_COLOURS["missed object"]
    result[ground_truth == prediction] = ERROR_COLOURS["correct"]
    result[ground_truth == ignore_index] = ERROR_COLOURS["ignored"]
    return result


def outlined(mask: Labels, ignore_index: int = VOID) -> UInt8:
    """Return the colours of a mask with objects outlined: VOC's dark colours are lost on black.

    A small mask is enlarged first, by a whole factor, so that the line is thin.
    """
    scale = max(1, 320 // max(mask.shape))
    mask = mask.repeat(scale, 0).repeat(scale, 1)
    colours = colorize(mask)
    colours[_outline(mask, ignore_index)] = 255
    return colours


def legend_of(masks: Iterable[Labels], classes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return name -> colour of the labels that occur in masks; 255 is named "ignored"."""
    labels = sorted({int(label) for mask in masks for label in np.unique(mask)})
    colours = voc_palette().tolist()
    return {"ignored" if k == VOID else classes[k]: tuple(colours[k]) for k in labels}


def panel(
    rows: Sequence[tuple[UInt8, Labels, Labels]],
    classes: Sequence[str],
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """Draw rows of image | ground truth | prediction | errors, with legends of their colours.

    Args:
        rows: (image, ground truth, prediction); each row may have its own size.
        classes: name of each label.
        captions: a line of text below each row.
    """
    pictures = [[image, outlined(t), outlined(p), errors(t, p)] for image, t, p in rows]
    below = [[text] for text in captions or [""] * len(rows)]
    shown = legend_of((mask for _, *masks in rows for mask in masks), classes)
    headings = ("image", "ground truth", "prediction", "errors")
    return _grid(pictures, headings, below, [ERROR_COLOURS, shown])


def contact_sheet(
    samples: Sequence[tuple[UInt8, Labels]], classes: Sequence[str], captions: Sequence[str]
) -> Image.Image:
    """Draw images with their masks, two a row, each with its caption, and a legend of classes.

    Args:
        samples: (image, mask).
        classes: name of each label.
        captions: a line of text for each sample.
    """
    firsts = range(0, len(samples), 2)
    pairs = [(image, outlined(mask)) for image, mask in samples]
    pictures = [list(chain(*pairs[i : i + 2])) for i in firsts]
    below = [captions[i : i + 2] for i in firsts]
    shown = legend_of((mask for _, mask in samples), classes)
    return _grid(pictures, ("image", "mask") * 2, below, [shown])


def _outline(mask: Labels, ignore_index: int) -> npt.NDArray[np.bool_]:
    """Mark the pixels of objects that have another label close to them, in their row or column."""
    near: npt.NDArray[np.bool_] = np.zeros(mask.shape, bool)
    for d in range(1, max(1, round(max(mask.shape) / 500)) + 1):  # thicker in larger images
        for ahead, behind in ((np.s_[d:], np.s_[:-d]), (np.s_[:, d:], np.s_[:, :-d])):
            differs = mask[ahead] != mask[behind]
            near[ahead] |= differs
            near[behind] |= differs
    return near & (mask != 0) & (mask != ignore_index)


def _grid(
    pictures: Sequence[Sequence[UInt8]],
    headings: Sequence[str],
    captions: Sequence[Sequence[str]],
    legends: Sequence[Mapping[str, tuple[int, ...]]],
) -> Image.Image:
    """Draw rows of four pictures; a row's captions share its width, legends stand below."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    heights = [CELL * min(1.0, max(p.shape[0] / p.shape[1] for p in row)) for row in pictures]
    gap = 0.34 if any(map(any, captions)) else 0.1  # inches between rows
    width, height = 4 * CELL + 0.3, sum(heights) + gap * (len(heights) - 1)
    figure = Figure((width, height), dpi=DPI)
    spacing = {"hspace": gap * len(heights) / sum(heights), "wspace": 0.1 / CELL}
    place = {"left": 0, "right": 1, "bottom": 0, "top": 1, "height_ratios": heights}
    every = figure.subplots(len(pictures), 4, squeeze=False, gridspec_kw=place | spacing)
    for axes in every.flat:
        axes.set_axis_off()
    for axes, heading in zip(every[0], headings, strict=True):
        axes.set_title(heading, fontsize=11, color=INK, pad=6)
    a_row = len(captions[0])
    for row, row_pictures, texts in zip(every, pictures, captions, strict=True):
        for axes, picture in zip(row, row_pictures, strict=False):
            axes.imshow(picture)
            axes.set_anchor("N")
        for axes, text in zip(row[:: 4 // a_row], texts, strict=False):
            line = shorten(text, 130 // a_row)
            axes.annotate(
                line, (0, 0), (0, -4), xycoords="axes fraction", textcoords="offset points",
                va="top", fontsize=9, color=INK, parse_math=False, annotation_clip=False,
            )  # fmt: skip
    below = gap + 0.05  # inches
    for entries in legends:
        names = [shorten(name, 40) for name in entries]
        columns = max(1, int(width / (0.5 + 0.075 * max(map(len, names)))))
        patches = [
            Patch(facecolor="#{:02x}{:02x}{:02x}".format(*colour), edgecolor=FAINT, label=name)
            for name, colour in zip(names, entries.values(), strict=True)
        ]
        where = {"loc": "upper left", "bbox_to_anchor": (0, -below / height), "borderpad": 0}
        add_legend(figure, handles=patches, ncols=columns, borderaxespad=0, **where)
        below += 0.1 + 0.19 * -(-len(patches) // columns)
    return render(every[0, 0])
