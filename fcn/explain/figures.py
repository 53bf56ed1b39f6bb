"""Arrays as small pictures side by side, and lines: what the topics draw with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcn.plots import FAINT, INK, LINES, axes_row, render

TITLE = 0.34  # inches above each panel
CELL, LARGEST = 0.34, 2.6  # inches: side of an array's cell, and of a panel at most


@dataclass
class Panel:
    """An array to draw: (H, W) numbers in colour, or (H, W, 3) uint8 as a picture.

    numbers: whether, and in which format, each cell says its value; "" draws none.
    limit: the value of the strongest colour; None: the array's own largest.
    """

    array: npt.NDArray[Any]
    title: str = ""
    numbers: str = ""
    limit: float | None = None


def tiles(
    panels: Sequence[Panel], columns: int | None = None, largest: float = LARGEST
) -> Image.Image:
    """Panels in rows of `columns`, red above zero and blue below, each on a scale of its own.

    Returns: an RGB image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = columns or len(panels)
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    sizes = [[_size(panel, largest) for panel in row] for row in rows]
    widths = [0.0] * min(columns, len(panels))  # of each column: its widest panel or title
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        widths[column] = max(widths[column], sizes[row][column][0], _title_width(panel))
    heights = [max(height for _, height in row) for row in sizes]
    gap = 0.3
    width = sum(widths) + gap * (len(widths) - 1)
    height = sum(heights) + len(rows) * (TITLE + 0.12)
    figure = Figure((width, height))
    FigureCanvasAgg(figure)
    top = height
    for panels_of_row, row_sizes, row_height in zip(rows, sizes, heights, strict=True):
        left = 0.0
        for panel, (w, h), room in zip(panels_of_row, row_sizes, widths, strict=False):
            x, y = left + (room - w) / 2, top - TITLE - h
            axes = figure.add_axes((x / width, y / height, w / width, h / height))
            _draw(axes, panel, w)
            left += room + gap
        top -= row_height + TITLE + 0.12
    return render(axes)


def lines(
    groups: Mapping[str, Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]],
    xlabel: str,
    ylabel: str,
    marker: str = "",
) -> Image.Image:
    """Line plots side by side. Args: groups: title -> label -> (x, y)."""
    every = axes_row(3.4, 2.5, len(groups))
    for axes, (title, series) in zip(every, groups.items(), strict=True):
        for i, (label, (x, y)) in enumerate(series.items()):
            colour = LINES[i % len(LINES)]
            axes.plot(
                np.asarray(x),
                np.asarray(y),
                marker=marker,
                lw=1.5,
                ms=3,
                color=colour,
                label=label,
            )
        axes.set_title(title, fontsize=11, color=INK)
        axes.set_xlabel(xlabel)
        axes.set_ylim(bottom=0)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        if len(series) > 1:
            axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    every[0].set_ylabel(ylabel)
    return render(every[0])


def _draw(axes: Any, panel: Panel, width: float) -> None:
    array = panel.array
    if array.ndim == 3:
        axes.imshow(array)
    else:
        limit = panel.limit or float(np.abs(array).max()) or 1.0

        # Half of the colours' range, where cells carry numbers: dark ink stays readable on them.

        limit *= 2 if panel.numbers else 1
        axes.imshow(array, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        if panel.numbers:
            size = min(9.0, 72 * width / array.shape[1] * 0.36)
            for (y, x), value in np.ndenumerate(array):
                if value:
                    text = panel.numbers.format(value)
                    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FAINT)
        spine.set_linewidth(0.6)
    axes.set_title(panel.title, fontsize=9, color=INK, pad=4)


def _size(panel: Panel, largest: float) -> tuple[float, float]:
    """Width and height in inches."""
    height, width = panel.array.shape[:2]
    cell = min(CELL, largest / max(height, width))
    if panel.array.ndim == 3 or max(height, width) > 40:
        cell = largest / max(height, width)
    return max(width * cell, 0.3), max(height * cell, 0.06)


def _title_width(panel: Panel) -> float:
    return 0.075 * max((len(line) for line in panel.title.split("\n")), default=0)
