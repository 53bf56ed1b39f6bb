"""Masks as pictures: VOC colours, overlays, error maps, and grids of examples.

Nothing here reads or writes a file: masks become uint8 arrays, finished pictures PIL images.
255 marks ignored pixels. Colours, and whether class 0 is background, are a data set's `Facts`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcn.config import VOID, Facts
from fcn.plots import FAINT, INK, render

if TYPE_CHECKING:  # torch takes a second to import
    from torch import Tensor

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
PLAIN = Facts()  # VOC's colours, and label 0 is background
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


def as_rgb(image: "Tensor") -> UInt8:
    """Return an image (C, H, W) as a picture (H, W, 3): its first three channels, or first one."""
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return shown.permute(1, 2, 0).cpu().numpy()


def palette(facts: Facts) -> UInt8:
    """Return the colours of the labels 0..255, uint8 (256, 3): VOC's where there is no other."""
    colours = voc_palette()
    if facts.colours:
        colours[: len(facts.colours)] = facts.colours
    return colours


def palette_image(mask: Labels, facts: Facts = PLAIN) -> Image.Image:
    """Return a mode "P" image: its pixel values are the labels, its palette their colours."""
    image = Image.fromarray(np.asarray(mask).astype(np.uint8))
    image.putpalette(palette(facts).tobytes())  # turns mode "L" into "P" and keeps pixel values
    return image


def colorize(mask: Labels, facts: Facts = PLAIN) -> UInt8:
    """Return the colours of a mask, uint8 (H, W, 3)."""
    return palette(facts)[mask]


def overlay(image: UInt8, mask: Labels, alpha: float = 0.55, facts: Facts = PLAIN) -> UInt8:
    """Blend the colours of a mask over its image, with a white line along the inside of objects.

    Args:
        image: uint8 (H, W, 3).
        mask: integers (H, W) in 0..255.
        alpha: weight of the colour, 0..1; ignored pixels get a third of it, background none.
        facts: colours of the labels, and whether 0 is background; `Predictor` has them.

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
    weight[VOID] = alpha / 3
    if facts.background:
        weight[0] = 0
    tint = palette(facts) * weight
    result = (image * (1 - weight)[mask] + tint[mask]).round().astype(np.uint8)
    result[_outline(mask, facts)] = 255
    return result


def error_colours(facts: Facts) -> dict[str, tuple[int, ...]]:
    """Return name -> colour of the errors that occur: without background there are no objects."""
    objects = {} if facts.background else {"false object", "missed object"}
    return {name: colour for name, colour in ERROR_COLOURS.items() if name not in objects}


def errors(ground_truth: Labels, prediction: Labels, facts: Facts = PLAIN) -> UInt8:
    """Return where and how a prediction is wrong, uint8 (H, W, 3) in `error_colours`."""
    result: UInt8 = np.empty((*ground_truth.shape, 3), np.uint8)
    result[...] = ERROR_COLOURS["wrong class"]
    if facts.background:
        result[ground_truth == 0] = ERROR_COLOURS["false object"]
        result[prediction == 0] = ERROR_COLOURS["missed object"]
    result[ground_truth == prediction] = ERROR_COLOURS["correct"]
    result[ground_truth == VOID] = ERROR_COLOURS["ignored"]
    return result


def outlined(mask: Labels, facts: Facts = PLAIN) -> UInt8:
    """Return the colours of a mask with objects outlined: VOC's dark colours are lost on black.

    A small mask is enlarged first, by an integer factor, so that the line is thin.
    """
    scale = max(1, 320 // max(mask.shape))
    mask = mask.repeat(scale, 0).repeat(scale, 1)
    colours = colorize(mask, facts)
    colours[_outline(mask, facts)] = 255
    return colours


def legend_of(masks: Iterable[Labels], facts: Facts) -> dict[str, tuple[int, ...]]:
    """Return name -> colour of the labels that occur in masks; 255 is named "ignored"."""
    labels = sorted({int(label) for mask in masks for label in np.unique(mask)})
    colours = palette(facts).tolist()
    return {"ignored" if k == VOID else facts.classes[k]: tuple(colours[k]) for k in labels}


def panel(
    rows: Sequence[tuple[UInt8, Labels, Labels]],
    facts: Facts,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """Draw rows of image | ground truth | prediction | errors, with legends of their colours.

    Args:
        rows: (image, ground truth, prediction); each row may have its own size.
        facts: names and colours of the labels.
        captions: a line of text below each row.
    """
    cells: list[tuple[UInt8, str]] = []
    for (image, ground_truth, prediction), caption in zip(
        rows, captions or [""] * len(rows), strict=True
    ):
        masks = [outlined(mask, facts) for mask in (ground_truth, prediction)]
        masks.append(errors(ground_truth, prediction, facts))
        cells += [(image, caption), *((mask, "") for mask in masks)]
    shown = legend_of((mask for _, *masks in rows for mask in masks), facts)
    headings = ("image", "ground truth", "prediction", "errors")
    return _grid(cells, headings, [error_colours(facts), shown])


def contact_sheet(
    samples: Sequence[tuple[UInt8, Labels]], facts: Facts, captions: Sequence[str]
) -> Image.Image:
    """Draw images with their masks, two a row, each with its caption, and a legend of classes.

    Args:
        samples: (image, mask).
        facts: names and colours of the labels.
        captions: a line of text for each sample.
    """
    cells: list[tuple[UInt8, str]] = []
    for (image, mask), caption in zip(samples, captions, strict=True):
        cells += [(image, caption), (outlined(mask, facts), "")]
    shown = legend_of((mask for _, mask in samples), facts)
    return _grid(cells, ("image", "mask") * 2, [shown])


def _outline(mask: Labels, facts: Facts) -> npt.NDArray[np.bool_]:
    """Mark the pixels of objects that have another label close to them, in their row or column."""
    near: npt.NDArray[np.bool_] = np.zeros(mask.shape, bool)
    for d in range(1, max(1, round(max(mask.shape) / 500)) + 1):  # thicker in larger images
        for ahead, behind in ((np.s_[d:], np.s_[:-d]), (np.s_[:, d:], np.s_[:, :-d])):
            differs = mask[ahead] != mask[behind]
            near[ahead] |= differs
            near[behind] |= differs
    return near & (mask != VOID) & ((mask != 0) | (not facts.background))


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
