"""Plots of numbers: confusion matrix, IoU per class and near boundaries, curves, kernels.

Every plot is an RGB image of PIL. matplotlib is slow to import, so each function imports it when it
draws, and never through pyplot, which would keep every figure in memory.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
Points = Sequence[tuple[int, float]]  # (step, value)

INK, FAINT, GRID = "#333333", "#8a8a8a", "#e6e6e6"
DPI = 130
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito
PENS: list[dict[str, Any]] = [
    {"color": colour, "linestyle": style} for style in ("-", "--", ":") for colour in LINES
]
LEGEND_COLUMNS = 3
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
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        iou = hit / (pixels + confusion.sum(axis=0) - hit)
        share = 100 * confusion / pixels[:, None]
    cell = max(0.36, 2.4 / k) if k <= NUMBERED else max(0.17, 8 / k)  # inches
    size = min(9.0, 72 * cell * 0.6)  # points
    (axes,) = axes_row(cell * k, cell * k)
    # A square-root scale shows confusions of a few percent, which are what the reader looks for.
    heat = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    axes.set_xticks(range(k), classes, rotation=90, fontsize=size)
    axes.set_yticks(range(k), classes, fontsize=size)
    axes.set(xlabel="prediction", ylabel="ground truth")
    right, top = k - 0.5 + 0.1 / cell, -0.5 - 0.05 / cell  # in cells, which start at -0.5
    axes.text(right, top, "IoU (%)", color=INK, fontsize=size, va="bottom")
    for i, value in enumerate(iou):
        axes.text(right, i, _percent(value), color=INK, fontsize=size, va="center")
    title = f"mean IoU {_percent(np.nanmean(iou))} %\ncells: % of the true class"
    axes.set_title(title, fontsize=11, color=INK, pad=20)
    if k <= NUMBERED:
        for i, j in np.argwhere(confusion > 0):
            ink = "white" if share[i, j] > 35 else INK
            axes.text(j, i, f"{share[i, j]:.0f}", color=ink, fontsize=8, ha="center", va="center")
    else:
        scale = axes.inset_axes((1 + 0.6 / (cell * k), 0, 0.02, 1))
        axes.figure.colorbar(heat, scale, ticks=[0, 1, 5, 10, 25, 50, 100], format="%d %%")
    return render(axes)


def iou_bars(iou: Sequence[float | None], classes: Sequence[str]) -> Image.Image:
    """Draw bars of IoU, best class on top, absent classes (None) last; the mean is dashed.

    Args:
        iou: K values in 0..1, or None.
        classes: K names.
    """
    values = np.array(iou, float)  # None becomes NaN
    order = np.argsort(-values, kind="stable")  # NaN last
    (axes,) = axes_row(5.5, 0.26 * len(order) + 0.1)
    widths = 100 * np.nan_to_num(values[order])
    axes.barh(range(len(order)), widths, 0.72, color=LINES[0])
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for row, (width, value) in enumerate(zip(widths, values[order], strict=True)):
        text = _percent(value)
        axes.text(width + 1, row, text, color=INK, fontsize=9, va="center", bbox=box)
    axes.set_yticks(range(len(order)), [classes[k] for k in order], fontsize=9)
    axes.set(xlim=(0, 108), ylim=(len(order) - 0.4, -0.6), xlabel="IoU (%)")
    mean = np.nanmean(values)
    axes.axvline(100 * mean, color=FAINT, linestyle="--", linewidth=1, zorder=0)
    axes.set_title(f"mean IoU {_percent(mean)} %", fontsize=11, color=INK)
    return render(axes)


def curve_plot(loss: Mapping[str, Points], mean_iou: Mapping[str, Points]) -> Image.Image:
    """Draw training loss and validation mean IoU over the steps, side by side.

    Args:
        loss: label -> points; drawn faint, with its running mean, on a logarithmic scale if that
            spans more than a factor of 20.
        mean_iou: label -> points in 0..1; the best one is marked.
    """
    left, right = axes_row(5.2, 3.4, 2)
    for (label, points), pen in zip(loss.items(), cycle(PENS), strict=False):
        _draw_loss(left, points, label, pen)
    for (label, points), pen in zip(mean_iou.items(), cycle(PENS), strict=False):
        _draw_mean_iou(right, points, label, pen)
    right.set_ylim(0, 1.1 * right.get_ylim()[1])
    _finish(left, "loss", "step")
    _finish(right, "validation mean IoU (%)", "step")
    return render(left)


def trimap_plot(mean_iou: Mapping[str, Sequence[float | None]]) -> Image.Image:
    """Draw mean IoU near the boundaries of the ground truth, over the width of the band.

    Args:
        mean_iou: label -> values in 0..1 of bands 1, 2, ... pixels wide; None leaves a gap.
    """
    (axes,) = axes_row(5.2, 3.4)
    for (label, values), pen in zip(mean_iou.items(), cycle(PENS), strict=False):
        shown = 100 * np.array(values, float)
        width = range(1, len(shown) + 1)
        axes.plot(width, shown, marker="o", markersize=3.5, linewidth=1.6, label=label, **pen)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    xlabel = "width of the band on either side of a boundary (pixels)"
    _finish(axes, "mean IoU near boundaries (%)", xlabel)
    return render(axes)


def dot_plot(groups: Mapping[str, Sequence[float]], title: str) -> Image.Image:
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
    axes.set_yticks(range(len(groups)), list(groups), fontsize=9)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_xlabel(title)
    return render(axes)


def kernel_plot(now: Floats, start: Floats, classes: Sequence[str], title: str) -> Image.Image:
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
    rows = (
        ("start", np.broadcast_to(start, now.shape), limit),
        ("now", now, limit),
        ("change", change, changed),
    )
    count, k, _ = now.shape
    (whole,) = axes_row(0.9 * count, 2.7)
    whole.set_axis_off()
    for i, (name, arrays, most) in enumerate(rows):
        axes = whole.inset_axes((0, (2 - i) / 3, 1, 0.31))
        strip = np.pad(arrays, ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)  # a gap between
        strip = strip.transpose(1, 0, 2).reshape(k, -1)[:, :-1]
        axes.imshow(strip, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        axes.spines[:].set_visible(False)
        middles = np.arange(count) * (k + 1) + (k - 1) / 2
        axes.set_xticks(middles, classes if i == 0 else [""] * count, fontsize=8)
        axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False, labelcolor=INK)
        axes.set_yticks([(k - 1) / 2], [f"{name}\n±{most:.2g}"], fontsize=8)
    whole.set_title(title, fontsize=11, color=INK, pad=24)
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
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # names may hold dollar signs
    fast = {"compress_level": 0}  # it is unpacked at once
    figure.savefig(
        buffer, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.2, pil_kwargs=fast
    )
    return Image.open(buffer).convert("RGB")


def _draw_loss(axes: Axes, points: Points, label: str, pen: dict[str, Any]) -> None:
    """Draw a loss and its running mean over a 25th of the points."""
    step, value = np.array(points, float).T
    window = np.ones(max(1, len(value) // 25))
    weight = np.convolve(np.ones_like(value), window, "same")
    mean = np.convolve(value, window, "same") / weight
    axes.plot(step, value, alpha=0.25, linewidth=0.8, **pen)
    axes.plot(step, mean, linewidth=1.6, label=label, **pen)
    if 0 < 20 * mean.min() < mean.max():
        from matplotlib.ticker import LogFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())  # plain numbers, no TeX
        axes.yaxis.set_minor_formatter(LogFormatter())


def _draw_mean_iou(axes: Axes, points: Points, label: str, pen: dict[str, Any]) -> None:
    """Draw mean IoU in percent and mark the best."""
    step, value = np.array(points, float).T
    best = value.argmax()
    label += f", best {_percent(value[best])}"
    axes.plot(step, 100 * value, marker="o", markersize=3.5, linewidth=1.6, label=label, **pen)
    ring: dict[str, Any] = {"color": pen["color"], "fillstyle": "none", "markersize": 9}
    axes.plot(step[best], 100 * value[best], "o", **ring)


def _finish(axes: Axes, title: str, xlabel: str) -> None:
    """Give a line plot its title, axes, grid, and a legend below it."""
    axes.set_title(title, fontsize=11, color=INK)
    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.grid(color=GRID, linewidth=0.8)
    below = -0.5 * axes.figure.dpi / axes.bbox.height  # half an inch, where no curve can be
    axes.legend(loc="upper left", bbox_to_anchor=(0, below), ncols=LEGEND_COLUMNS, fontsize=9,
                frameon=False, labelcolor=INK)  # fmt: skip


def _percent(iou: float) -> str:
    return "absent" if np.isnan(iou) else f"{100 * iou:.1f}"
