"""Pictures for the topics: arrays as grids of colours and numbers, and line plots."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fcn.pictures.page import figure
from fcn.pictures.plots import DPI, FAINT, GRID, INK, LINES, axes_row, render

CELL, TITLE, LETTER, EDGE = 0.34, 0.45, 0.08, 0.03  # inches
Array = npt.NDArray[Any]
Values = Array | Tensor | Sequence[Any]


class Pictures:
    """Pictures under one caption, which notebooks show as the result of a cell.

    Args:
        images: title -> image; a narrow page breaks the row.
        caption: plain text.
        columns: images in a row.
        plot: as in `fcn.pictures.page.figure`.
    """

    def __init__(
        self, images: Mapping[str, Image.Image], caption: str, columns: int = 8, plot: bool = True
    ) -> None:
        self.images, self.caption = dict(images), " ".join(caption.split())
        self.columns, self.plot = columns, plot

    def _repr_html_(self) -> str:
        """Return HTML in which every text is escaped."""
        parts = [
            figure(image, " ".join(title.split()), plot=self.plot)
            for title, image in self.images.items()
        ]
        html = Markup("")
        for i in range(0, len(parts), self.columns):
            row = Markup("").join(parts[i : i + self.columns])
            html += Markup('<div class="row">{}</div>').format(row)
        caption = Markup("<figcaption>{}</figcaption>").format(self.caption)
        return Markup("<figure>{}{}</figure>").format(html, caption)


def show(
    panels: Mapping[str, Values],
    caption: str,
    size: float = 2.0,
    *,
    columns: int = 8,
    limit: float | None = None,
    numbers: bool = True,
) -> Pictures:
    """Draw arrays side by side.

    Args:
        panels: title -> numbers (..., H, W), leading dimensions of size 1, or (W,), red above zero
            and blue below; or colours (H, W, 3), uint8.
        caption: plain text.
        size: width and height of a panel in inches, at most.
        columns: panels in a row.
        limit: the number with the strongest colour; None: each array's largest.
        numbers: write the numbers into the cells of small arrays.
    """
    arrays = {title: as_array(values) for title, values in panels.items()}
    images = {title: _panel(title, array, size, limit, numbers) for title, array in arrays.items()}
    return Pictures(images, caption, columns, all(a.ndim == 2 for a in arrays.values()))


def show_lines(curves: Mapping[str, tuple[Values, Values]], caption: str, xlabel: str) -> Pictures:
    """Draw a line plot.

    Args:
        curves: label -> (x, y).
        caption: plain text.
        xlabel: what x is.
    """
    (axes,) = axes_row(5, 2.8)
    for (label, (x, y)), colour in zip(curves.items(), LINES, strict=False):
        axes.plot(x, y, ".-", label=label, color=colour, linewidth=1, markersize=4)
    axes.set_xlabel(xlabel)
    axes.set_ylim(bottom=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.legend(fontsize=9, frameon=False, labelcolor=INK)
    return Pictures({caption: render(axes)}, caption)


def as_array(values: Values) -> Array:
    """Return numbers as (H, W), or colours as (H, W, 3)."""
    array = values.detach().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim == 1:
        array = array[None]
    while array.ndim > 2 and len(array) == 1:
        array = array[0]
    return array


def _panel(
    title: str, array: Array, size: float, limit: float | None, numbers: bool
) -> Image.Image:
    """Draw one array; see `show`."""
    cell = min(CELL, size / max(array.shape[:2]))
    height, width = (cell * side for side in array.shape[:2])
    right = max(width, LETTER * max(map(len, title.split("\n")))) + 2 * EDGE
    top = height + TITLE
    whole = Figure((right, top), dpi=DPI)
    axes = whole.add_axes((EDGE / right, EDGE / top, width / right, height / top))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=FAINT, linewidth=0.6)
    axes.set_title(title, fontsize=9, color=INK, pad=4, loc="left", parse_math=False)
    most = limit or float(np.abs(array).max()) or 1.0
    if numbers and array.size <= 81:
        most *= 2  # pale enough for dark numbers
        for v, u in np.argwhere(array):
            label = axes.text(u, v, f"{array[v, u]:.3g}", ha="center", va="center")
            label.set(fontsize=26 * cell, color=INK)
    axes.imshow(array, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    canvas = FigureCanvasAgg(whole)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
