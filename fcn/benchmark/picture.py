"""The measured speeds at a glance: the nets, their share of the ceiling, and sizes of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from fcn.benchmark.nets import MODES
from fcn.benchmark.tables import digits
from fcn.plots import INK, LINES, axes_row, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, OTHERS = LINES[0], "#b8b8b8"
LIGHTER = {"inference": 1.0, "training": 0.55}  # opacity, where both share axes
Row = dict[str, Any]


def picture(parts: Mapping[str, Any]) -> Image.Image | None:
    """Of the parts `nets` and `sizes` of a report; None where it has neither."""
    draws: list[Callable[[Axes], None]] = []
    if "nets" in parts:
        draws += [partial(bars, parts["nets"], mode) for mode in MODES]
        draws.append(partial(shares, parts["nets"]))
    if "sizes" in parts:
        draws.append(partial(curves, parts["sizes"]))
    bands = []
    for first in range(0, len(draws), 2):  # two a row
        pair = draws[first : first + 2]
        every = axes_row(4.2, 2.4, len(pair), gap=1.9)
        for axes, draw in zip(every, pair, strict=True):
            draw(axes)
        bands.append(render(every[0]))
    if not bands:
        return None
    canvas = Image.new("RGB", (max(b.width for b in bands), sum(b.height for b in bands)), "white")
    for number, band in enumerate(bands):
        canvas.paste(band, (0, sum(above.height for above in bands[:number])))
    return canvas


def bars(report: Row, mode: str, axes: Axes) -> None:
    """Milliseconds of each net, the quartiles as a whisker, and how many times the first's."""
    rows = report["rows"]
    for place, row in enumerate(rows):
        seconds = row[mode]["seconds"]
        middle, (low, high) = seconds["median"], seconds["quartiles"]
        axes.barh(place, 1e3 * middle, 0.7, color=OURS if row["ours"] else OTHERS)
        axes.plot([1e3 * low, 1e3 * high], [place, place], color=INK, linewidth=1)
        label = f"{digits(1e3 * middle)} ms"
        if place:
            label += f", {digits(row[mode]['slower'])} times"
        _label(axes, 1e3 * max(middle, high), place, label)
    height, width = report["size"]
    _nets(axes, rows, f"{mode}, {report['batch']} x {height} x {width} (ms)")
    axes.set_xlim(0, 1.3 * axes.get_xlim()[1])  # room for the labels


def shares(report: Row, axes: Axes) -> None:
    """What each net makes of the machine: inference over training."""
    rows = report["rows"]
    for place, row in enumerate(rows):
        for mode, shift in zip(MODES, (-0.19, 0.19), strict=True):
            share = 100 * row[mode]["share_of_ceiling"]
            colour = OURS if row["ours"] else OTHERS
            axes.barh(place + shift, share, 0.36, color=colour, alpha=LIGHTER[mode])
            _label(axes, share, place + shift, f"{share:.0f} % {mode if not place else ''}", 8)
    _nets(axes, rows, "share of the speed of matrix products (%)")
    axes.set_xlim(0, max(100, 1.1 * axes.get_xlim()[1]))


def curves(rows: Sequence[Row], axes: Axes) -> None:
    """Milliseconds over the side of a square image, both on log scales."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    for name, colour in zip(names, (OURS, "#7f7f7f"), strict=True):
        for mode, line in zip(MODES, ("o-", "o--"), strict=True):
            own = [row for row in rows if row["name"] == name and row[mode]]
            axes.plot(
                [row["side"] for row in own],
                [1e3 * row[mode]["seconds"]["median"] for row in own],
                line,
                color=colour,
                markersize=3.5,
                linewidth=1.6,
                label=f"{name}, {mode}",
            )
    sides = sorted({row["side"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sides, [str(side) for side in sides])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("side of the image (pixels)")
    axes.set_title("time over image size (ms)", fontsize=11, color=INK)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    # Beside the axes: wherever curves of another machine lie, it hides none.
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(1, 1))


def _nets(axes: Axes, rows: Sequence[Row], title: str) -> None:
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title(title, fontsize=11, color=INK)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.locator_params(axis="x", nbins=5)


def _label(axes: Axes, x: float, y: float, text: str, size: float = 9) -> None:
    """At the end of a bar, over the grid."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    axes.annotate(
        text, (x, y), (4, 0), textcoords="offset points", fontsize=size, color=INK, va="center",
        bbox=box,
    )  # fmt: skip
