"""Plots of numbers: the confusion matrix, IoU per class and near borders, the curves of a run.

Like `fcn.visualize`: finished pictures come back as `PIL.Image.Image`, and the caller saves them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:  # matplotlib is slow to import, so each plot imports it when it is drawn
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
Points = Sequence[tuple[int, float]]  # (step, value)

INK, FAINT = "#333333", "#8a8a8a"
DPI = 130
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito


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
    (axes,) = axes_row(cell * k, cell * k)
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
    return render(axes)


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
    (axes,) = axes_row(5.5, 0.26 * len(ranked) + 0.1)
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
    return render(axes)


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
    every_axes = axes_row(5.2, 3.4, len(plots))
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
            _legend(axes)
    return render(every_axes[0])


def dots(groups: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> Image.Image:
    """Every value as a dot, a row a choice, a panel a group; the mean of each row is a bar.

    Args: groups: group -> choice -> values in 0..1, at least one each. Written in percent.
    Returns: an RGB image. Each panel has its own scale: rows compare, panels do not.
    Raises: ValueError: there are no values.
    """
    if not groups or not all(rows and all(map(len, rows.values())) for rows in groups.values()):
        raise ValueError("groups must each hold a choice with at least one value")
    rows = max(map(len, groups.values()))
    every_axes = axes_row(4.2, 0.38 * rows + 0.2, len(groups), gap=1.9)
    for axes, (group, choices) in zip(every_axes, groups.items(), strict=True):
        for row, values in enumerate(choices.values()):
            shown, mean = [100 * v for v in values], 100 * sum(values) / len(values)
            axes.plot(shown, [row] * len(shown), "o", color=LINES[0], markersize=6, alpha=0.6)
            axes.plot([mean, mean], [row - 0.3, row + 0.3], color=LINES[1], linewidth=2)
            axes.text(
                1.01, row, f"{mean:.1f}", transform=axes.get_yaxis_transform(),
                fontsize=9, color=INK, va="center",
            )  # fmt: skip
        axes.set_yticks(range(len(choices)), list(choices), fontsize=9, parse_math=False)
        axes.set_ylim(rows - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axes.set_title(group, fontsize=11, color=INK, parse_math=False)
        axes.set_xlabel(title)
    return render(every_axes[0])


def kernels(now: Floats, start: Floats, classes: Sequence[str], title: str = "") -> Image.Image:
    """Upsampling kernels as they are, as they began, and the difference: a column a class.

    Args: now: (K, k, k), of each class onto itself. start: (k, k). classes: K names.
    Returns: an RGB image; red is positive, blue negative, one scale for the first two rows and one
        for the differences, both in their titles.
    Raises: ValueError: classes are not K.
    """
    _one_name_each("now", now, classes)
    change = now - start
    limit, changed = max(np.abs(now).max(), start.max()), max(float(np.abs(change).max()), 1e-9)
    rows = (("start", np.broadcast_to(start, now.shape), limit), ("now", now, limit))
    count, k, _ = now.shape
    (whole,) = axes_row(0.9 * count, 2.7)
    whole.set_axis_off()
    for i, (name, arrays, most) in enumerate((*rows, ("change", change, changed))):
        axes = whole.inset_axes((0, (2 - i) / 3, 1, 0.31))
        strip = np.pad(arrays, ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)  # a gap between
        strip = strip.transpose(1, 0, 2).reshape(k, -1)[:, :-1]
        axes.imshow(strip, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        axes.spines[:].set_visible(False)
        middles = np.arange(count) * (k + 1) + (k - 1) / 2
        axes.set_xticks(middles, classes if i == 0 else [""] * count, fontsize=8, parse_math=False)
        axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False, labelcolor=INK)
        axes.set_yticks([(k - 1) / 2], [f"{name}\n±{most:.2g}"], fontsize=8)
    whole.set_title(title, fontsize=11, color=INK, pad=24, parse_math=False)
    return render(whole)


def trimap_plot(mean_iou: Mapping[str, Sequence[float | None]]) -> Image.Image:
    """Mean IoU close to the borders of the truth, over the width of the band that is judged.

    Args: mean_iou: each maps a label (a run's name) to the values in bands of 1, 2, ... pixels on
        either side, in 0..1, None where nothing could be judged.
    Returns: an RGB image; a legend where there are several curves.
    Raises: ValueError: there is no value, or one is outside 0..1.
    """
    known = [value for values in mean_iou.values() for value in values if value is not None]
    if not known or not 0 <= min(known) <= max(known) <= 1:
        raise ValueError(f"mean_iou must hold values in 0..1 or None, got {known}")
    (axes,) = axes_row(5.2, 3.4)
    for i, (label, values) in enumerate(mean_iou.items()):
        percent = [math.nan if value is None else 100 * value for value in values]
        width = range(1, len(percent) + 1)
        colour = LINES[i % len(LINES)]
        axes.plot(width, percent, "o-", color=colour, markersize=3.5, linewidth=1.6, label=label)
    axes.set_ylim(bottom=0)
    axes.set_title("mean IoU near borders (%)", fontsize=11, color=INK)
    axes.set_xlabel("width of the band on either side of a border (pixels)")
    axes.locator_params(axis="x", integer=True)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    if len(mean_iou) > 1:
        _legend(axes)
    return render(axes)


def _legend(axes: Axes) -> None:
    """Of every curve, its label taken literally."""
    legend = axes.legend(fontsize=9, frameon=False, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)


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


def axes_row(width: float, height: float, count: int = 1, gap: float = 0.7) -> list[Axes]:
    """count axes of width x height inches, side by side in one figure that pyplot never sees."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pitch = width + gap
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


def render(axes: Axes) -> Image.Image:
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
