"""Plots of numbers: confusion matrix, IoU per class and near boundaries, curves, kernels.

Every plot is an RGB image of PIL. matplotlib is slow to import, so each function imports it when it
draws, and never through pyplot, which would keep every figure in memory.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Points = Sequence[tuple[int, float]]  # (step, value)

INK, FAINT, GRID = "#333333", "#8a8a8a", "#e6e6e6"
DPI = 130
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito
NUMBERED = 25  # classes up to which a confusion matrix has its numbers written in the cells


def confusion_plot(confusion: npt.NDArray[Any], classes: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix, each row in percent of its class, with IoU at the right.

    Args:
        confusion: integers (K, K), pixels of class i predicted as j.
        classes: K names.

    Returns:
        an RGB image; a class without ground truth has a blank row.
    """
    from matplotlib.colors import PowerNorm

    k, hit, pixels = len(confusion), np.diag(confusion), confusion.sum(axis=1)
    union = pixels + confusion.sum(axis=0) - hit
    iou = [h / u if u else None for h, u in zip(hit.tolist(), union.tolist(), strict=True)]
    share = np.full((k, k), np.nan)
    np.divide(100.0 * confusion, pixels[:, None], out=share, where=pixels[:, None] > 0)

    cell = max(0.36, 2.4 / k) if k <= NUMBERED else max(0.17, 8 / k)  # inches
    size = min(9.0, 72 * cell * 0.6)  # points
    (axes,) = axes_row(cell * k, cell * k)
    # A square-root scale shows confusions of a few percent, which are what the reader looks for.
    heat = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    axes.set_xticks(range(k), classes, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(k), classes, fontsize=size, parse_math=False)
    axes.set(xlabel="prediction", ylabel="ground truth")
    right, top = k - 0.5 + 0.1 / cell, -0.5 - 0.05 / cell  # in cells, which start at -0.5
    axes.text(right, top, "IoU (%)", color=INK, fontsize=size, va="bottom")
    for i, value in enumerate(iou):
        label, ink = _percent(value)
        axes.text(right, i, label, color=ink, fontsize=size, va="center")
    axes.set_title(_mean(iou) + "\ncells: % of the true class", fontsize=11, color=INK, pad=20)
    if k <= NUMBERED:
        for i, j in np.argwhere(confusion > 0):
            ink = "white" if share[i, j] > 35 else INK
            axes.text(j, i, f"{share[i, j]:.0f}", color=ink, fontsize=8, ha="center", va="center")
    else:
        scale = axes.inset_axes((1 + 0.6 / (cell * k), 0, 0.02, 1))
        axes.figure.colorbar(heat, scale, ticks=[0, 1, 5, 10, 25, 50, 100], format="%d %%")
        scale.tick_params(length=0, labelsize=8, labelcolor=INK)
        scale.spines[:].set_visible(False)
    return render(axes)


def iou_bars(iou: Sequence[float | None], classes: Sequence[str]) -> Image.Image:
    """Draw bars of IoU, best class on top, absent classes (None) last; the mean is dashed.

    Args:
        iou: K values in 0..1, or None.
        classes: K names.
    """
    bars = zip(iou, classes, strict=True)
    ranked = sorted(bars, key=lambda bar: -1 if bar[0] is None else bar[0], reverse=True)
    (axes,) = axes_row(5.5, 0.26 * len(ranked) + 0.1)
    axes.barh(range(len(ranked)), [100 * (v or 0) for v, _ in ranked], 0.72, color=LINES[0])
    for row, (value, _) in enumerate(ranked):
        label, ink = _percent(value)
        text = axes.text(100 * (value or 0) + 1, row, label, color=ink, fontsize=9, va="center")
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set_yticks(range(len(ranked)), [name for _, name in ranked], fontsize=9, parse_math=False)
    axes.set(xlim=(0, 108), ylim=(len(ranked) - 0.4, -0.6), xlabel="IoU (%)")
    present = [100 * value for value in iou if value is not None]
    if present:
        axes.axvline(float(np.mean(present)), color=FAINT, linestyle="--", linewidth=1, zorder=0)
    axes.set_title(_mean(iou), fontsize=11, color=INK)
    return render(axes)


def curves(loss: Mapping[str, Points], mean_iou: Mapping[str, Points]) -> Image.Image:
    """Draw training loss and validation mean IoU over the steps, side by side.

    Args:
        loss: label -> points; drawn faint, with its running mean. Values that are not finite leave
            gaps, and the scale is logarithmic if the mean spans more than a factor of 20.
        mean_iou: label -> points in 0..1; the best one is marked.

    Returns:
        an RGB image, of one plot if the other has no points.
    """
    plots = (("loss", loss, _draw_loss), ("validation mean IoU (%)", mean_iou, _draw_mean_iou))
    drawn = [(title, group, draw) for title, group, draw in plots if any(group.values())]
    every = axes_row(5.2, 3.4, len(drawn))
    for axes, (title, group, draw) in zip(every, drawn, strict=True):
        for i, (label, points) in enumerate(group.items()):
            if points:
                step, value = np.array(sorted(points), float).T
                draw(axes, step, value, label, LINES[i % len(LINES)])
        axes.set_title(title, fontsize=11, color=INK)
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5, integer=True, min_n_ticks=1)
        axes.grid(color=GRID, linewidth=0.8)
        if draw is _draw_mean_iou or len(group) > 1:
            add_legend(axes)
    return render(every[0])


def trimap_plot(mean_iou: Mapping[str, Sequence[float | None]]) -> Image.Image:
    """Draw mean IoU near the boundaries of the ground truth, over the width of the band.

    Args:
        mean_iou: label -> values in 0..1 of bands 1, 2, ... pixels wide; None leaves a gap.
    """
    (axes,) = axes_row(5.2, 3.4)
    for i, (label, values) in enumerate(mean_iou.items()):
        shown = [math.nan if value is None else 100 * value for value in values]
        width = range(1, len(shown) + 1)
        colour = LINES[i % len(LINES)]
        axes.plot(width, shown, "o-", color=colour, markersize=3.5, linewidth=1.6, label=label)
    axes.set_ylim(bottom=0)
    axes.set_title("mean IoU near boundaries (%)", fontsize=11, color=INK)
    axes.set_xlabel("width of the band on either side of a boundary (pixels)")
    axes.locator_params(axis="x", integer=True)
    axes.grid(color=GRID, linewidth=0.8)
    if len(mean_iou) > 1:
        add_legend(axes)
    return render(axes)


def dots(groups: Mapping[str, Sequence[float]], title: str) -> Image.Image:
    """Draw every value as a dot, a row for each group, and each group's mean as a bar.

    Args:
        groups: name -> values in 0..1.
        title: what the values are, in percent.
    """
    (axes,) = axes_row(5.5, 0.38 * len(groups) + 0.2)
    for row, values in enumerate(groups.values()):
        shown, mean = [100 * value for value in values], 100 * sum(values) / len(values)
        axes.plot(shown, [row] * len(shown), "o", color=LINES[0], markersize=6, alpha=0.6)
        axes.plot([mean, mean], [row - 0.3, row + 0.3], color=LINES[1], linewidth=2)
        margin = axes.get_yaxis_transform()  # x in 0..1 of the axes, y in rows
        axes.text(1.01, row, f"{mean:.1f}", transform=margin, fontsize=9, color=INK, va="center")
    axes.set_yticks(range(len(groups)), list(groups), fontsize=9, parse_math=False)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_xlabel(title)
    return render(axes)


def kernels(now: Floats, start: Floats, classes: Sequence[str], title: str = "") -> Image.Image:
    """Draw upsampling kernels as they started, as they are, and the change: a column a class.

    Args:
        now: (K, k, k), of each class onto itself.
        start: (k, k).
        classes: K names.
        title: of the picture.

    Returns:
        an RGB image; red is positive, blue negative, and each row names its scale.
    """
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


def axes_row(width: float, height: float, count: int = 1, gap: float = 0.7) -> list[Axes]:
    """Return `count` axes of width x height inches, `gap` inches apart, in one new figure."""
    from matplotlib.figure import Figure

    pitch = width + gap
    figure = Figure((pitch * count, height))
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
    """Return the figure of axes as an RGB image, cut to what is drawn."""
    buffer = io.BytesIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    with warnings.catch_warnings():  # names in a script that the font lacks are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.2)
    return Image.open(buffer).convert("RGB")


def add_legend(of: Axes | Figure, **options: Any) -> None:
    """Add a legend whose labels are taken literally: a "$" in a name is no formula."""
    legend = of.legend(fontsize=9, frameon=False, labelcolor=INK, **options)
    for text in legend.get_texts():
        text.set_parse_math(False)


def shorten(text: str, length: int) -> str:
    """Return text on one line, cut with an ellipsis if it is longer."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _draw_loss(axes: Axes, step: Floats, value: Floats, label: str, colour: str) -> None:
    """Draw a loss and its running mean over a 25th of the points."""
    finite, window = np.isfinite(value), np.ones(max(1, len(value) // 25))
    value = np.where(finite, value, np.nan)
    total = np.convolve(np.where(finite, value, 0), window, "same")
    mean = np.where(finite, total / np.maximum(np.convolve(finite, window, "same"), 1), np.nan)
    axes.plot(step, value, color=colour, alpha=0.25, linewidth=0.8)
    marker = "o" if len(step) == 1 else None
    axes.plot(step, mean, color=colour, linewidth=1.6, label=label, marker=marker)
    if finite.any() and 0 < 20 * np.nanmin(mean) < np.nanmax(mean):
        axes.set_yscale("log")


def _draw_mean_iou(axes: Axes, step: Floats, value: Floats, label: str, colour: str) -> None:
    """Draw mean IoU in percent and mark the best."""
    if np.isfinite(value).any():
        best = np.nanargmax(value)
        axes.plot(step[best], 100 * value[best], "o", color=colour, markersize=9, fillstyle="none")
        label += f", best {100 * value[best]:.1f}"
    axes.plot(step, 100 * value, "o-", color=colour, markersize=3.5, linewidth=1.6, label=label)
    axes.set_ylim(bottom=0)


def _percent(iou: float | None) -> tuple[str, str]:
    """Return what to write for an IoU, and in which colour."""
    return ("absent", FAINT) if iou is None else (f"{100 * iou:.1f}", INK)


def _mean(iou: Sequence[float | None]) -> str:
    """Return the title that states the mean over present classes."""
    present = [value for value in iou if value is not None]
    return f"mean IoU {100 * sum(present) / len(present):.1f} %" if present else "no class present"
