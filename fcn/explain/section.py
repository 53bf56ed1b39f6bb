"""One topic of the explanation: prose, pictures, and claims that are checked as they are made."""

import re
from collections.abc import Mapping, Sequence
from textwrap import dedent
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fcn.errors import UserError
from fcn.pictures.page import figure
from fcn.pictures.plots import DPI, FAINT, GRID, INK, LINES, axes_row, render

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
IMPORTS = """import numpy as np
import torch
from torch import nn
from torch.nn import functional as F"""
CELL, TITLE, LETTER, EDGE = 0.34, 0.45, 0.08, 0.03  # inches
Array = npt.NDArray[Any]
Values = Array | Sequence[int] | Tensor | float


class ClaimError(UserError, AssertionError):
    """A claim does not hold, so no page is written."""


class Section:
    """One topic, written from top to bottom.

    Attributes:
        blocks: its HTML.
        claims: how many were checked.
        shown: title of a panel or line -> its numbers.
        scope: what the topic's Python code has defined so far.
    """

    def __init__(self, key: str) -> None:
        self.key, self.title, self.number = key, TOPICS[key], list(TOPICS).index(key) + 1
        self.blocks: list[Markup] = []
        self.claims = 0
        self.shown: dict[str, Array] = {}
        self.scope: dict[str, Any] = {}
        exec(IMPORTS, self.scope)

    def text(self, words: str) -> None:
        """Add a paragraph; `code` and *italics* are marked as in Markdown."""
        self.blocks.append(Markup("<p>{}</p>").format(_markdown(words)))

    def claim(self, words: str, left: Values, right: Values = 0, limit: float = 1e-10) -> None:
        """State that two results are equal, up to a limit of their largest difference.

        Raises:
            ClaimError: they are not.
        """
        html = '<p class="claim">{} <span class="soft">Computed just now: {}.</span></p>'
        found = self._compare(words, left, right, limit)
        self.blocks.append(Markup(html).format(_markdown(words), found))

    def code(self, lines: str) -> None:
        """Run Python code and add it, beside the picture if it follows one.

        A topic's code runs like a notebook, after `IMPORTS`. The last line must give what the
        panels show whose titles stand, in double quotes, in the comments: each value of a tuple its
        own, or all the same.

        Raises:
            ClaimError: it is not.
        """
        lines = dedent(lines).strip()
        *before, last = lines.splitlines()
        exec("\n".join(before), self.scope)
        value = eval(last, self.scope)
        titles = re.findall('"(.+?)"', " ".join(re.findall("#.*", lines)))
        results = value if isinstance(value, tuple) else (value,)
        left = np.concatenate([_array(result) for result in results])
        right = np.concatenate([_array(self.shown[title]) for title in titles])
        right = np.tile(right, len(results) // len(titles))
        limit = 2e-6 * max(1.0, float(np.abs(right).max()))  # float32
        found = self._compare(last, left, right, limit)
        html = """<div class="code"><pre tabindex="0"><code>{}</code></pre>
            <p class="soft">Run just now; the picture shows the same: {}.</p></div>"""
        block = Markup(html).format(lines, found)
        if self.blocks[-1].startswith("<figure"):
            block = Markup('<div class="pair">{}{}</div>').format(self.blocks.pop(), block)
        self.blocks.append(block)

    def explore(self, words: str, settings: str) -> None:
        """Add a link to the explorer; explorer.html says what its settings mean."""
        html = '<p><a href="explorer.html#{}">{}</a></p>'
        self.blocks.append(Markup(html).format(settings, words))

    def _compare(self, words: str, left: Values, right: Values, limit: float) -> str:
        """Count a claim that holds and say how well; see `claim`."""
        difference = float(np.abs(_array(left) - _array(right)).max())
        if not difference <= limit:  # NaN too
            found = f"the results differ by {difference:.3g}, limit {limit:g}"
            raise ClaimError(f"explain={self.key}: not true: {words} ({found})")
        self.claims += 1
        return f"largest difference {difference:.1e}" if difference else "exactly equal"

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table; the first column holds words, the others numbers."""
        html = Markup("")
        for tag, row in [("th", head), *(("td", row) for row in rows)]:
            cells = [Markup("<{0}>{1}</{0}>").format(tag, cell) for cell in row]
            html += Markup("<tr>{}</tr>").format(Markup("").join(cells))
        self.blocks.append(Markup('<div class="scroll"><table>{}</table></div>').format(html))

    def picture(
        self, caption: str, rows: Sequence[Mapping[str, Image.Image]], *, plot: bool = True
    ) -> None:
        """Add a picture.

        Args:
            caption: plain text.
            rows: alternative text -> image; a narrow page breaks rows.
            plot: as in `fcn.pictures.page.figure`.
        """
        html = Markup("")
        for row in rows:
            parts = (figure(image, " ".join(alt.split()), plot=plot) for alt, image in row.items())
            html += Markup('<div class="row">{}</div>').format(Markup("").join(parts))
        whole = Markup("<figure>{}<figcaption>{}</figcaption></figure>")
        self.blocks.append(whole.format(html, " ".join(caption.split())))

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
            caption: plain text.
            panels: title -> numbers (H, W), red above zero, blue below; or colours (H, W, 3) uint8.
            largest: width and height of a panel in inches, at most.
            columns: panels in a row.
            limit: the number with the strongest colour; None: each array's largest.
            numbers: write the numbers into the cells of small arrays.
        """
        self.shown |= {" ".join(title.split()): array for title, array in panels.items()}
        drawn = [(key, _panel(key, panels[key], largest, limit, numbers)) for key in panels]
        rows = [dict(drawn[i : i + columns]) for i in range(0, len(drawn), columns)]
        self.picture(caption, rows, plot=all(array.ndim == 2 for array in panels.values()))

    def lines(self, caption: str, curves: Mapping[str, tuple[Array, Array]], xlabel: str) -> None:
        """Add a line plot: label -> (x, y)."""
        self.shown |= {label: y for label, (_, y) in curves.items()}
        (axes,) = axes_row(5, 2.8)
        for (label, (x, y)), colour in zip(curves.items(), LINES, strict=False):
            axes.plot(x, y, ".-", label=label, color=colour, linewidth=1, markersize=4)
        axes.set_xlabel(xlabel)
        axes.set_ylim(bottom=0)
        axes.grid(color=GRID, linewidth=0.8)
        axes.legend(fontsize=9, frameon=False, labelcolor=INK)
        self.picture(caption, [{caption: render(axes)}])


def _panel(
    title: str, array: Array, largest: float, limit: float | None, numbers: bool
) -> Image.Image:
    """Draw one array; see `Section.panels`."""
    cell = min(CELL, largest / max(array.shape[:2]))
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


def _array(values: Values) -> Array:
    return np.ravel(values.detach().numpy() if isinstance(values, Tensor) else values)


def _markdown(words: str) -> Markup:
    """Convert plain text with `code` and *italics* to HTML; sizes and percentages do not break."""
    text = str(escape(" ".join(words.split())))
    text = re.sub(" ([×−]) ", "\u00a0\\1\u00a0", text.replace(" %", "\u00a0%"))
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
    return Markup(re.sub(r"\*(.+?)\*", r"<i>\1</i>", text))
