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
from fcn.plots import FAINT, GRID, INK, LINES, axes_row, render

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
CELL, TITLE, LETTER, GAP = 0.34, 0.45, 0.075, 0.3  # inches
Array = npt.NDArray[Any]
Values = Array | Sequence[int] | Tensor | float


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
        for tag, row in [("th", head), *(("td", row) for row in rows)]:
            cells = [Markup("<{0}>{1}</{0}>").format(tag, cell) for cell in row]
            html += Markup("<tr>{}</tr>").format(Markup("").join(cells))
        self.blocks.append(Markup('<div class="scroll"><table>{}</table></div>').format(html))

    def picture(self, caption: str, image: Image.Image, *, plot: bool = True) -> None:
        """Add a picture; its caption is its alternative text too."""
        self.pictures[f"{self.number:02d}_{len(self.pictures) + 1}_{self.key}.png"] = image
        caption = " ".join(caption.split())
        self.blocks.append(figure(image, caption, caption, plot=plot))

    def panels(
        self,
        caption: str,
        panels: Mapping[str, Array],
        largest: float,
        *,
        columns: int = 8,
        limit: float | None = None,
        numbers: bool = True,
    ) -> None:
        """Add a picture of arrays; cells of small arrays have one size.

        Args:
            caption: also the alternative text.
            panels: title -> numbers (H, W), red above zero, blue below; or colours (H, W, 3) uint8.
            largest: width and height of a panel in inches, at most.
            columns: panels in a row.
            limit: the number with the strongest colour; None: each array's largest.
            numbers: write the numbers into the cells of small arrays.
        """
        whole = Figure((1, 1))  # its coordinates are inches; `render` cuts out what is drawn
        left = top = bottom = 0.0
        for i, (title, array) in enumerate(panels.items()):
            if i % columns == 0:
                left, top = 0.0, bottom - TITLE
            rows, across = array.shape[:2]
            cell = min(CELL, largest / max(rows, across))
            axes = whole.add_axes((left, top - rows * cell, across * cell, rows * cell))
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
            bottom = min(bottom, top - rows * cell)
            left += GAP + max(across * cell, LETTER * max(map(len, title.split("\n"))))
        self.picture(caption, render(axes), plot=array.ndim == 2)

    def lines(self, caption: str, curves: Mapping[str, tuple[Array, Array]], xlabel: str) -> None:
        """Add a line plot: label -> (x, y)."""
        (axes,) = axes_row(5, 2.8)
        for (label, (x, y)), colour in zip(curves.items(), LINES, strict=False):
            axes.plot(x, y, ".-", label=label, color=colour, linewidth=1, markersize=4)
        axes.set_xlabel(xlabel)
        axes.set_ylim(bottom=0)
        axes.grid(color=GRID, linewidth=0.8)
        axes.legend(fontsize=9, frameon=False, labelcolor=INK)
        self.picture(caption, render(axes))


def _array(values: Values) -> Array:
    return np.ravel(values.detach().numpy() if isinstance(values, Tensor) else values)


def _markdown(words: str) -> Markup:
    """Convert plain text with `code` and *italics* to HTML; sizes and percentages do not break."""
    text = str(escape(" ".join(words.split())))
    text = re.sub(" ([×−]) ", "\u00a0\\1\u00a0", text.replace(" %", "\u00a0%"))
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
    return Markup(re.sub(r"\*(.+?)\*", r"<i>\1</i>", text))
