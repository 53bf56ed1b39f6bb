"""Masks as pictures: VOC colours, overlays, error maps, and grids of examples.

Nothing here reads or writes a file: masks become uint8 arrays, finished pictures PIL images.
Class 0 is the background and 255 marks ignored pixels, as in VOC.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcn.config import VOID
from fcn.plots import FAINT, INK, render

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
COLUMNS, CELL, GAP = 4, 2.5, 0.34  # of a grid of pictures; inches a picture, and between rows


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


def overlay(image: UInt8, mask: Labels, alpha: float = 0.55) -> UInt8:
    """Blend the colours of a mask over its image, with a white line along the inside of objects.

    Args:
        image: uint8 (H, W, 3).
        mask: integers (H, W) in 0..255.
        alpha: weight of the colour, 0..1; ignored pixels get a third of it, background none.

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
    weight = np.full((256, 1), alpha)
    weight[0], weight[VOID] = 0, alpha / 3
    tint = voc_palette() * weight
    result = (image * (1 - weight)[mask] + tint[mask]).round().astype(np.uint8)
    result[_outline(mask)] = 255
    return result


def errors(ground_truth: Labels, prediction: Labels) -> UInt8:
    """Return where and how a prediction is wrong, uint8 (H, W, 3) in `ERROR_COLOURS`."""
    result: UInt8 = np.empty((*ground_truth.shape, 3), np.uint8)
    result[...] = ERROR_COLOURS["wrong class"]
    result[ground_truth == 0] = ERROR_COLOURS["false object"]
    result[prediction == 0] = ERROR_COLOURS["missed object"]
    result[ground_truth == prediction] = ERROR_COLOURS["correct"]
    result[ground_truth == VOID] = ERROR_COLOURS["ignored"]
    return result


def outlined(mask: Labels) -> UInt8:
    """Return the colours of a mask with objects outlined: VOC's dark colours are lost on black.

    A small mask is enlarged first, by an integer factor, so that the line is thin.
    """
    scale = max(1, 320 // max(mask.shape))
    mask = mask.repeat(scale, 0).repeat(scale, 1)
    colours = colorize(mask)
    colours[_outline(mask)] = 255
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
    cells: list[tuple[UInt8, str]] = []
    for (image, ground_truth, prediction), caption in zip(
        rows, captions or [""] * len(rows), strict=True
    ):
        masks = outlined(ground_truth), outlined(prediction), errors(ground_truth, prediction)
        cells += [(image, caption), *((mask, "") for mask in masks)]
    shown = legend_of((mask for _, *masks in rows for mask in masks), classes)
    return _grid(cells, ("image", "ground truth", "prediction", "errors"), [ERROR_COLOURS, shown])


def contact_sheet(
    samples: Sequence[tuple[UInt8, Labels]], classes: Sequence[str], captions: Sequence[str]
) -> Image.Image:
    """Draw images with their masks, two a row, each with its caption, and a legend of classes.

    Args:
        samples: (image, mask).
        classes: name of each label.
        captions: a line of text for each sample.
    """
    cells: list[tuple[UInt8, str]] = []
    for (image, mask), caption in zip(samples, captions, strict=True):
        cells += [(image, caption), (outlined(mask), "")]
    shown = legend_of((mask for _, mask in samples), classes)
    return _grid(cells, ("image", "mask") * 2, [shown])


def _outline(mask: Labels) -> npt.NDArray[np.bool_]:
    """Mark the pixels of objects that have another label close to them, in their row or column."""
    near: npt.NDArray[np.bool_] = np.zeros(mask.shape, bool)
    for d in range(1, max(1, round(max(mask.shape) / 500)) + 1):  # thicker in larger images
        for ahead, behind in ((np.s_[d:], np.s_[:-d]), (np.s_[:, d:], np.s_[:, :-d])):
            differs = mask[ahead] != mask[behind]
            near[ahead] |= differs
            near[behind] |= differs
    return near & (mask != 0) & (mask != VOID)


def _grid(
    cells: Sequence[tuple[UInt8, str]],
    headings: Sequence[str],
    legends: Sequence[Mapping[str, tuple[int, ...]]],
) -> Image.Image:
    """Draw pictures in rows of four, each with a caption below it, and legends at the bottom."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    aspects = [max(picture.shape[0] / picture.shape[1] for picture, _ in row) for row in rows]
    heights = [CELL * min(1.0, aspect) for aspect in aspects]
    height = sum(heights) + GAP * (len(rows) - 1)
    figure = Figure((COLUMNS * CELL + 0.3, height))
    every = figure.subplots(len(rows), COLUMNS, squeeze=False, height_ratios=heights)
    spacing = {"hspace": GAP * len(rows) / sum(heights), "wspace": 0.1 / CELL}
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, **spacing)
    for axes in every.flat:
        axes.set_axis_off()
        axes.set_anchor("N")
    for axes, heading in zip(every[0], headings, strict=True):
        axes.set_title(heading, fontsize=11, color=INK)
    for axes, (picture, caption) in zip(every.flat, cells, strict=False):
        axes.imshow(picture)
        below = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
        axes.annotate(caption, (0, 0), (0, -4), fontsize=9, color=INK, **below)
    top = -GAP / height  # of the next legend, in heights of the figure
    for colours in legends:
        patches = [
            Patch(facecolor="#{:02x}{:02x}{:02x}".format(*colour), edgecolor=FAINT, label=name)
            for name, colour in colours.items()
        ]
        style = {"fontsize": 9, "frameon": False, "labelcolor": INK, "borderpad": 0}
        figure.legend(handles=patches, ncols=6, loc="upper left", bbox_to_anchor=(0, top), **style)
        top -= (0.1 + 0.19 * np.ceil(len(patches) / 6)) / height
    return render(every[0, 0])
