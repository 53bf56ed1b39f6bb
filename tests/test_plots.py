"""What plots show, read from their axes; and how they are drawn."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcn.pictures import plots


@pytest.fixture
def axes_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes plots return their axes instead of a picture."""
    monkeypatch.setattr(plots, "render", lambda axes: axes)


def has_ink(picture: Any) -> bool:
    assert isinstance(picture, Image.Image)
    return len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize("k", [2, 21, 60])
def test_confusion_plot_fits_a_screen(k: int) -> None:
    counts = np.random.default_rng(k).integers(0, 50, (k, k)) + 500 * np.eye(k, dtype=int)
    picture = plots.confusion_plot(counts, [*map(str, range(k))])
    assert has_ink(picture)
    assert 300 < min(picture.size) <= max(picture.size) < 2000


@pytest.mark.usefixtures("axes_kept")
def test_confusion_plot_is_normalised_by_row_and_writes_iou() -> None:
    # a: 3 / (4 + 0) = 75 %; b: 4 / (4 + 1) = 80 %; c is neither there nor predicted.
    axes: Any = plots.confusion_plot(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), ["a", "b", "c"])
    written = [text.get_text() for text in axes.texts]
    assert written == ["IoU (%)", "75.0", "80.0", "absent", "75", "25", "100"]
    assert axes.get_title().startswith("mean IoU 77.5 %")
    shares = np.ma.filled(axes.images[0].get_array(), np.nan)
    assert np.array_equal(shares, [[75, 25, 0], [0, 100, 0], [np.nan] * 3], equal_nan=True)


@pytest.mark.usefixtures("axes_kept")
def test_iou_bars_are_sorted_and_as_long_as_their_values() -> None:
    axes: Any = plots.iou_bars([0.25, None, 1.0, 0.5], ["a", "b", "c", "d"])
    assert [bar.get_width() for bar in axes.patches] == [100, 50, 25, 0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "d", "a", "b"]
    assert axes.texts[-1].get_text() == "absent"


@pytest.mark.usefixtures("axes_kept")
def test_curves_smooth_and_scale_the_loss_and_mark_the_best_iou() -> None:
    scored = {"a": [(1, 0.2), (2, 0.655), (3, 0.5)], "b": [(1, 0.8)]}
    level: Any = plots.curve_plot({"a": [(i, 3.0 + i % 2) for i in range(1000)]}, scored)
    raw, smooth = (line.get_ydata() for line in level.lines)
    assert raw[:3].tolist() == [3, 4, 3]
    assert np.abs(smooth - 3.5).max() < 0.05  # at the ends as well
    assert level.get_yscale() == "linear"
    right = level.figure.axes[1]
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == ["a, best 65.5", "b, best 80.0"]
    assert right.get_ylim()[1] > 80  # nothing is cut off
    falling: Any = plots.curve_plot({"a": [(i, 0.9**i) for i in range(100)]}, scored)
    assert falling.get_yscale() == "log"


@pytest.mark.usefixtures("axes_kept")
def test_legends_lie_outside_the_curves_and_every_run_has_its_own_line() -> None:
    names = [chr(ord("A") + i) for i in range(12)]
    curves: Any = plots.curve_plot({n: [(1, 1.0), (9, 0.5)] for n in names},
                               {n: [(9, 0.5)] for n in names})  # fmt: skip
    for axes in (*curves.figure.axes, plots.trimap_plot(dict.fromkeys(names, (0.1, 0.5)))):
        axes.figure.canvas.draw()
        legend = axes.get_legend()
        assert legend.get_window_extent().y1 < axes.xaxis.label.get_window_extent().y0
        lines = {(line.get_color(), line.get_linestyle()) for line in legend.get_lines()}
        assert len(lines) == len(names)


@pytest.mark.usefixtures("axes_kept")
def test_trimap_plot_draws_each_run_and_leaves_gaps() -> None:
    axes: Any = plots.trimap_plot({"a": [0.2, None, 0.5], "b": [0.4, 0.4, 0.4]})
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3]
    assert np.array_equal(axes.lines[0].get_ydata(), [20, np.nan, 50], equal_nan=True)


@pytest.mark.usefixtures("axes_kept")
def test_dots_show_every_value_and_the_mean() -> None:
    axes: Any = plots.dot_plot({"fixed": [0.5, 0.7], "learned": [0.25]}, "mean IoU (%)")
    assert [list(line.get_xdata()) for line in axes.lines] == [[50, 70], [60, 60], [25], [25, 25]]
    assert [text.get_text() for text in axes.texts] == ["60.0", "25.0"]


def test_kernels_show_a_change() -> None:
    start = np.outer([0.5, 1, 0.5], [0.5, 1, 0.5])
    still = np.stack([start] * 3)
    pictures = [
        plots.kernel_plot(now, start, ["a", "b", "c"], "upscore2") for now in (still, 2 * still)
    ]
    assert all(map(has_ink, pictures))
    assert pictures[0] != pictures[1]


def test_names_with_dollar_signs_are_no_formulas() -> None:
    """matplotlib refuses formulas such as this one while it draws."""
    names = ["$\\foo$", "a$b$c", "x_$^$"]
    counts = np.eye(3, dtype=int)
    assert has_ink(plots.confusion_plot(counts, names))
    assert has_ink(plots.iou_bars([0.5, 0.2, None], names))
    assert has_ink(plots.trimap_plot({name: [0.5, 0.6] for name in names}))
    assert has_ink(plots.dot_plot({name: [0.5, 0.6] for name in names}, names[0]))
    assert has_ink(plots.kernel_plot(np.ones((3, 4, 4)), np.ones((4, 4)), names, names[0]))
    points = {name: [(1, 1.0), (2, 100.0), (3, 0.01)] for name in names}
    assert has_ink(plots.curve_plot(points, {name: [(1, 0.5)] for name in names}))
