"""Arrays in, pictures out: masks in the VOC colours, overlays, error maps, panels and plots.

Nothing here reads a file, prints or saves: masks come back as uint8 arrays, finished pictures as
`PIL.Image.Image`, and the caller saves them. Class 0 is the background, 255 is void, as in VOC.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence, Sized
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:  # matplotlib is slow to import, so each plot imports it when it is drawn
    from matplotlib.axes import Axes

UInt8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Points = Sequence[tuple[int, float]]  # (step, value)

VOID = 255
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
DPI = 130
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito


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
    weight = np.where(labels == ignore_index, alpha / 3, alpha) * (labels != 0)
    blend = weight[..., None]
    result: UInt8 = (image * (1 - blend) + voc_palette()[labels] * blend).round().astype(np.uint8)
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
    height, wide = (max(1, round(n * cell / max(t.shape))) for n in t.shape)
    band = Image.new("RGB", (width, height + (GAP if caption is None else 34)), "white")

    def scaled(picture: UInt8, how: Image.Resampling) -> UInt8:
        return np.asarray(Image.fromarray(picture).resize((wide, height), how))

    image = scaled(image, Image.Resampling.LANCZOS)
    t, p = scaled(t, Image.Resampling.NEAREST), scaled(p, Image.Resampling.NEAREST)
    masks = [colorize(t), colorize(p)]
    for labels, mask in zip((t, p), masks, strict=True):  # VOC's dark colours are lost on black
        mask[_outline(labels, 1, ignore_index)] = 255
    for i, picture in enumerate((image, *masks, errors(t, p, ignore_index))):
        left = MARGIN + i * (cell + GAP) + (cell - wide) // 2
        band.paste(Image.fromarray(picture), (left, 0))
    if caption is not None:
        text = _shorten(caption, width - 2 * MARGIN)
        ImageDraw.Draw(band).text((MARGIN, height + 14), text, INK, _font(14), anchor="lm")
    return band


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


def confusion_plot(confusion: npt.NDArray[Any], classes: Sequence[str]) -> Image.Image:
    """Heat map of a confusion matrix, each row in percent of its class, with IoU at the right.

    Args: confusion: (K, K) integers >= 0, pixels of class i predicted as j. classes: K names.
    Returns: an RGB image. A class without truth pixels has a blank row; one that is not predicted
        either has no IoU and is left out of the mean. Cells carry numbers where K <= 25.
    Raises: ValueError: confusion is not so, or classes are not K.
    """
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.dtype.kind not in "iu":
        rule = "confusion must be (K, K) integers"
        raise ValueError(f"{rule}, got shape {counts.shape} of {counts.dtype}")
    if (counts < 0).any():
        raise ValueError(f"confusion must hold counts >= 0, got {counts.min()}")
    _one_name_each("confusion", counts, classes)
    k, hit, pixels = len(counts), np.diag(counts), counts.sum(axis=1)
    union = pixels + counts.sum(axis=0) - hit
    iou = [h / u if u else None for h, u in zip(hit.tolist(), union.tolist(), strict=True)]
    share = np.full((k, k), np.nan)
    np.divide(100.0 * counts, pixels[:, None], out=share, where=pixels[:, None] > 0)

    from matplotlib.colors import PowerNorm

    numbers = k <= 25
    cell = max(0.36, 2.4 / k) if numbers else max(0.17, 8 / k)  # inches
    size = min(9.0, 72 * cell * 0.6)  # points
    (axes,) = _axes(cell * k, cell * k)
    # A square-root scale: confusions of a few percent are what the reader looks for.
    heat = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    axes.set_xticks(range(k), classes, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(k), classes, fontsize=size, parse_math=False)
    axes.set(xlabel="prediction", ylabel="truth")
    for i, j in np.argwhere(counts > 0) if numbers else ():
        ink = "white" if share[i, j] > 35 else INK
        axes.text(j, i, f"{share[i, j]:.0f}", color=ink, fontsize=8, ha="center", va="center")
    right, top = k - 0.5 + 0.1 / cell, -0.5 - 0.05 / cell  # in cells, which start at -0.5
    axes.text(right, top, "IoU (%)", color=INK, fontsize=size, va="bottom")
    for i, value in enumerate(iou):
        label, ink = _percent(value)
        axes.text(right, i, label, color=ink, fontsize=size, va="center")
    axes.set_title(_mean(iou) + "\ncells: % of the true class", fontsize=11, color=INK, pad=20)
    if not numbers:
        colours = axes.inset_axes((1 + 0.6 / (cell * k), 0, 0.02, 1))
        axes.figure.colorbar(heat, colours, ticks=[0, 1, 5, 10, 25, 50, 100], format="%d %%")
        colours.tick_params(length=0, labelsize=8, labelcolor=INK)
        colours.spines[:].set_visible(False)
    return _render(axes)


def iou_bars(iou: Sequence[float | None], classes: Sequence[str]) -> Image.Image:
    """Horizontal bars of IoU, best class on top, absent classes (None) last; the mean is dashed.

    Args: iou: K values in 0..1 or None. classes: K names.
    Returns: an RGB image.
    Raises: ValueError: iou is empty or a value is outside 0..1, or classes are not K.
    """
    _one_name_each("iou", iou, classes)
    for value in iou:
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"iou must be in 0..1 or None, got {value}")
    bars = zip(iou, classes, strict=True)
    ranked = sorted(bars, key=lambda bar: -1 if bar[0] is None else bar[0], reverse=True)
    (axes,) = _axes(5.5, 0.26 * len(ranked) + 0.1)
    axes.barh(range(len(ranked)), [100 * (v or 0) for v, _ in ranked], 0.72, color=LINES[0])
    for row, (value, _) in enumerate(ranked):
        label, ink = _percent(value)
        text = axes.text(100 * (value or 0) + 1, row, label, color=ink, fontsize=9, va="center")
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set_yticks(range(len(ranked)), [n for _, n in ranked], fontsize=9, parse_math=False)
    axes.set(xlim=(0, 108), ylim=(len(ranked) - 0.4, -0.6), xlabel="IoU (%)")
    present = [100 * value for value in iou if value is not None]
    if present:
        mean = sum(present) / len(present)
        axes.axvline(mean, color=FAINT, linestyle="--", linewidth=1, zorder=0)
    axes.set_title(_mean(iou), fontsize=11, color=INK)
    return _render(axes)


def curves(loss: Mapping[str, Points], mean_iou: Mapping[str, Points]) -> Image.Image:
    """Loss and validation mean IoU over steps, side by side; either may be empty, not both.

    Args: each maps a label ("training", or a run's name) to its (step, value) points; mean_iou
        is in 0..1. A value that is not finite leaves a gap, and the title counts it.
    Returns: an RGB image. Loss is drawn faint with its running mean over it, on a log scale if
        that mean spans more than a factor of 20; the best mean IoU is marked.
    Raises: ValueError: there are no points, or a mean IoU is above 1 or below 0.
    """
    iou_title = "validation mean IoU (%)"
    groups = [(loss, "loss", _draw_loss), (mean_iou, iou_title, _draw_mean_iou)]
    plots = [entry for entry in groups if any(map(len, entry[0].values()))]
    if not plots:
        raise ValueError("loss and mean_iou must hold at least one point, got none")
    every_axes = _axes(5.2, 3.4, len(plots))
    for axes, (group, title, draw) in zip(every_axes, plots, strict=True):
        gaps = 0
        for i, (label, points) in enumerate(group.items()):
            by_step = sorted(points, key=lambda point: point[0])
            step, value = np.array(by_step, dtype=float).reshape(-1, 2).T
            value = np.where(np.isfinite(value), value, np.nan)
            gaps += int(np.isnan(value).sum())
            draw(axes, step, value, label, LINES[i % len(LINES)])
        axes.set_title(title + (f", {gaps} not finite" if gaps else ""), fontsize=11, color=INK)
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5, integer=True, min_n_ticks=1)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        if draw is _draw_mean_iou or len(group) > 1:
            axes.legend(fontsize=9, frameon=False, labelcolor=INK)
    return _render(every_axes[0])


def _draw_loss(axes: Axes, step: Floats, value: Floats, label: str, colour: str) -> None:
    if not len(value):
        return
    known, window = np.isfinite(value), np.ones(max(1, len(value) // 25))
    total = np.convolve(np.where(known, value, 0), window, "same")
    count = np.convolve(known, window, "same")
    mean = np.where(known, total / np.maximum(count, 1), np.nan)
    axes.plot(step, value, color=colour, alpha=0.25, linewidth=0.8)
    marker = "o" if len(step) == 1 else None
    axes.plot(step, mean, color=colour, linewidth=1.6, label=label, marker=marker)
    mean = mean[known]
    if mean.size and 0 < 20 * mean.min() < mean.max():
        axes.set_yscale("log")


def _draw_mean_iou(axes: Axes, step: Floats, value: Floats, label: str, colour: str) -> None:
    if ((value < 0) | (value > 1)).any():
        raise ValueError(f"mean_iou must be in 0..1, got {value.tolist()} for {label}")
    if np.isfinite(value).any():
        best = np.nanargmax(value)
        axes.plot(step[best], 100 * value[best], "o", color=colour, markersize=9, fillstyle="none")
        label += f", best {100 * value[best]:.1f}"
    axes.plot(step, 100 * value, "o-", color=colour, markersize=3.5, linewidth=1.6, label=label)
    axes.set_ylim(bottom=0)


def _axes(width: float, height: float, count: int = 1) -> list[Axes]:
    """count axes of width x height inches, side by side in one figure that pyplot never sees."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pitch = width + 0.7
    figure = Figure((pitch * count, height))
    FigureCanvasAgg(figure)
    share = (width / (pitch * count), 1.0)
    every = [figure.add_axes((i / count, 0.0, *share)) for i in range(count)]
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(which="both", length=0, labelsize=9, labelcolor=INK)
        axes.xaxis.label.set(color=INK, fontsize=10)
        axes.yaxis.label.set(color=INK, fontsize=10)
        axes.set_axisbelow(True)
    return every


def _render(axes: Axes) -> Image.Image:
    """The figure of axes as an RGB image, cut to what is drawn, whatever sticks out of it."""
    buffer = io.BytesIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.2)
    return Image.open(buffer).convert("RGB")


def _percent(iou: float | None) -> tuple[str, str]:
    """What to write for iou, and in which colour."""
    return ("absent", FAINT) if iou is None else (f"{100 * iou:.1f}", INK)


def _mean(iou: Sequence[float | None]) -> str:
    present = [value for value in iou if value is not None]
    return f"mean IoU {100 * sum(present) / len(present):.1f} %" if present else "no class present"


def _one_name_each(name: str, values: Sized, classes: Sequence[str]) -> None:
    if not len(values) or len(values) != len(classes):
        raise ValueError(
            f"classes must be one a class of {name}, got {len(classes)} names for {len(values)}"
        )
