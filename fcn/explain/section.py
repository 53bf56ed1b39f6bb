"""One topic of the explanation: prose, pictures, and claims that are checked as they are made."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fcn.config import UserError
from fcn.page import figure
from fcn.plots import FAINT, INK, LINES, axes_row, render

TOPICS = {  # in the order of the page
    "matrix": "A convolution is a matrix, and a matrix has a transpose",
    "arithmetic": "Stride, padding and size: zeros between the pixels",
    "operators": "Strided, dilated and transposed convolution in one notation",
    "bilinear": "Bilinear interpolation is such a layer",
    "repeat": "Repeat every pixel, then convolve: the same layer again",
    "checkerboards": "Checkerboards: when stamps overlap unevenly",
    "network": "In the network: from a few scores to every pixel",
    "learning": "What training changes",
    "deconvnet": "Back to the pixels: the deconvnet",
}
CELL, TITLE, GAP = 0.34, 0.46, 0.3  # inches: a cell with a number, room for a title, between
SCROLLS = 700  # pixels; on a phone a wider picture scrolls instead of shrinking
Values = npt.NDArray[Any] | Sequence[int] | Tensor | float


class ClaimError(UserError, AssertionError):
    """A claim does not hold, so no page is written."""


class Section:
    """One topic, written from top to bottom.

    Attributes:
        blocks: its HTML.
        pictures: file name -> image.
        claims: how many were checked.
    """

    def __init__(self, key: str) -> None:
        self.key, self.title, self.number = key, TOPICS[key], list(TOPICS).index(key) + 1
        self.blocks: list[Markup] = []
        self.pictures: dict[str, Image.Image] = {}
        self.claims = 0

    def text(self, words: str) -> None:
        """Add a paragraph; `code` and *italics* are marked as in Markdown."""
        self.blocks.append(Markup("<p>{}</p>").format(_markdown(words)))

    def claim(self, words: str, left: Values, right: Values = 0, limit: float = 1e-10) -> None:
        """State that two results are equal, up to a limit of their largest difference.

        Raises:
            ClaimError: they are not.
        """
        difference = float(np.abs(_array(left) - _array(right)).max())
        if not difference <= limit:  # NaN too
            found = f"the results differ by {difference:.3g}, limit {limit:g}"
            raise ClaimError(f"explain={self.key}: not true: {words} ({found})")
        self.claims += 1
        found = f"largest difference {difference:.1e}" if difference else "exactly equal"
        html = '<p class="claim">{} <span class="soft">Computed just now: {}.</span></p>'
        self.blocks.append(Markup(html).format(_markdown(words), found))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table; the first column holds words, the others numbers."""
        html = Markup("")
        for tag, (words, *numbers) in (("th", head), *(("td", row) for row in rows)):
            cells = [Markup('<{0} class="number">{1}</{0}>').format(tag, n) for n in numbers]
            html += Markup("<tr><{0}>{1}</{0}>{2}</tr>").format(tag, words, Markup("").join(cells))
        self.blocks.append(Markup('<div class="scroll"><table>{}</table></div>').format(html))

    def picture(self, caption: str, image: Image.Image, *, plot: bool = True) -> None:
        """Add a picture; its caption is its alternative text too."""
        self.pictures[f"{self.number:02d}_{len(self.pictures) + 1}_{self.key}.png"] = image
        kind = "wide" if image.width > SCROLLS else ""
        caption = " ".join(caption.split())
        html = figure(image, caption, caption, plot=plot)
        self.blocks.append(Markup('<div class="{}">{}</div>').format(kind, html))

    def panels(
        self,
        caption: str,
        panels: Mapping[str, npt.NDArray[Any]],
        largest: float,
        *,
        columns: int | None = None,
        limit: float | None = None,
        numbers: bool = True,
    ) -> None:
        """Add a picture of arrays.

        Args:
            caption: see `picture`.
            panels: title -> numbers (H, W), red above zero, blue below; or colours (H, W, 3) uint8.
            largest: width and height of a panel in inches, at most.
            columns: panels in a row; all of them if None.
            limit: the number with the strongest colour; each array's largest if None.
            numbers: write the numbers into the cells of small arrays.
        """
        columns = columns or len(panels)
        sizes = [_size(array, largest) for array in panels.values()]
        room = [  # widths: of the panel or its title
            max(width, 0.075 * max(map(len, title.split("\n"))))
            for title, (width, _) in zip(panels, sizes, strict=True)
        ]
        widths = [max(room[i::columns]) + GAP for i in range(min(columns, len(panels)))]
        rows = [sizes[i : i + columns] for i in range(0, len(panels), columns)]
        heights = [max(height for _, height in row) + TITLE for row in rows]
        whole = Figure((sum(widths), sum(heights)))
        for i, ((title, array), (w, h)) in enumerate(zip(panels.items(), sizes, strict=True)):
            row, column = divmod(i, columns)
            x = sum(widths[:column]) + (widths[column] - w) / 2
            y = sum(heights[row:]) - TITLE - h  # from the bottom
            place = np.array([x, y, w, h]) / (2 * [sum(widths), sum(heights)])
            axes = whole.add_axes(tuple(place), xticks=[], yticks=[])
            axes.spines[:].set(color=FAINT, linewidth=0.6)
            axes.set_title(title, fontsize=9, color=INK, pad=4, parse_math=False)
            most = limit or float(np.abs(array).max()) or 1.0
            if numbers and array.size <= 81:
                most *= 2  # pale enough for dark numbers
                points = min(9.0, 72 * w / array.shape[1] * 0.36)
                for v, u in np.argwhere(array):
                    label = axes.text(u, v, f"{array[v, u]:.3g}", ha="center", va="center")
                    label.set(fontsize=points, color=INK)
            axes.imshow(array, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        plot = all(array.ndim == 2 for array in panels.values())
        self.picture(caption, render(whole.axes[0]), plot=plot)

    def lines(
        self,
        caption: str,
        plots: Mapping[str, Mapping[str, Any]],
        xlabel: str,
        ylabel: str,
        **style: Any,
    ) -> None:
        """Add line plots side by side: title -> label -> (x, y)."""
        every = axes_row(3.4, 2.5, len(plots))
        for axes, (title, series) in zip(every, plots.items(), strict=True):
            for (label, (x, y)), colour in zip(series.items(), LINES, strict=False):
                axes.plot(x, y, label=label, color=colour, lw=1.5, **style)
            axes.set_title(title, fontsize=11, color=INK)
            axes.set_xlabel(xlabel)
            axes.set_ylim(bottom=0)
            axes.grid(color="#e6e6e6", linewidth=0.8)
            if len(series) > 1:
                axes.legend(fontsize=8, frameon=False, labelcolor=INK)
        every[0].set_ylabel(ylabel)
        self.picture(caption, render(every[0]))


def _size(array: npt.NDArray[Any], largest: float) -> tuple[float, float]:
    """Return the width and height of a panel in inches; cells of small arrays have one size."""
    height, width = array.shape[:2]
    cell = largest / max(height, width)
    if array.ndim == 2 and max(height, width) <= 40:
        cell = min(cell, CELL)
    return max(width * cell, 0.3), max(height * cell, 0.06)


def _array(values: Values) -> npt.NDArray[Any]:
    return np.ravel(values.detach().numpy() if isinstance(values, Tensor) else values)


def _markdown(words: str) -> Markup:
    """Convert plain text with `code` and *italics* to HTML."""
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", str(escape(" ".join(words.split()))))
    return Markup(re.sub(r"\*(.+?)\*", r"<i>\1</i>", text))
