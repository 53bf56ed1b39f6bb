"""Colours by hand, round trips through PNG, and the laws that overlays, panels and plots obey."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fcn import panels, plots, visualize

# VOCdevkit's colours of labels 0..20, as its documentation lists them.
VOC_COLOURS = """0 0 0, 128 0 0, 0 128 0, 128 128 0, 0 0 128, 128 0 128, 0 128 128, 128 128 128,
    64 0 0, 192 0 0, 64 128 0, 192 128 0, 64 0 128, 192 0 128, 64 128 128, 192 128 128,
    0 64 0, 128 64 0, 0 192 0, 128 192 0, 0 64 128"""


def square(size: int = 40, label: int = 3) -> np.ndarray:
    """A (size, size) uint8 mask: background with a square of label in the middle half."""
    mask = np.zeros((size, size), np.uint8)
    mask[size // 4 : -size // 4, size // 4 : -size // 4] = label
    return mask


def noise(height: int = 40, width: int = 40) -> np.ndarray:
    """A (height, width, 3) uint8 image without white pixels."""
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def colours_of(picture: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in picture.getcolors(picture.width * picture.height)}


def has_ink(picture: Image.Image) -> bool:
    return picture.mode == "RGB" and len(colours_of(picture)) > 10


def test_palette_is_vocs() -> None:
    palette = visualize.voc_palette()
    expected = [[int(v) for v in colour.split()] for colour in VOC_COLOURS.split(",")]
    assert palette.dtype == np.uint8
    assert palette[:21].tolist() == expected
    assert palette[255].tolist() == [224, 224, 192]
    assert len(np.unique(palette, axis=0)) == 256
    assert np.array_equal(visualize.voc_palette(21), palette[:21])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_palette_image_keeps_labels_and_colours_through_png(dtype: type) -> None:
    mask = np.arange(256, dtype=dtype).reshape(8, 32)
    buffer = io.BytesIO()
    visualize.palette_image(mask).save(buffer, format="png")
    read = Image.open(buffer)
    assert read.mode == "P"
    assert np.array_equal(np.asarray(read), mask)
    assert np.array_equal(np.asarray(read.convert("RGB")), visualize.colorize(mask))


def test_errors_by_hand() -> None:
    #                  right, right, false object, missed, confused, void, void
    truth = np.array([[0, 4, 0, 4, 4, 255, 255]])
    prediction = np.array([[0, 4, 4, 0, 5, 0, 5]])
    names = ["right", "right", "false object", "missed object", "wrong class"] + 2 * ["not counted"]
    expected = [list(visualize.ERROR_COLOURS[name]) for name in names]
    assert visualize.errors(truth, prediction)[0].tolist() == expected


def test_errors_honours_ignore_index() -> None:
    picture = visualize.errors(np.array([[9, 255]]), np.array([[1, 1]]), ignore_index=9)
    assert tuple(picture[0, 0]) == visualize.ERROR_COLOURS["not counted"]
    assert tuple(picture[0, 1]) == visualize.ERROR_COLOURS["wrong class"]


def test_overlay_leaves_background_and_outlines_objects_on_the_inside() -> None:
    image, mask = noise(), square()
    picture = visualize.overlay(image, mask, alpha=0.5)
    assert np.array_equal(picture[mask == 0], image[mask == 0])
    # The square spans 10..29: its border is white, its inside half the image, half (128, 128, 0).
    white = (picture == 255).all(axis=2)
    border = square() != 0
    border[11:29, 11:29] = False
    assert np.array_equal(white, border)
    inside = image[11:29, 11:29] * 0.5 + np.array([64, 64, 0])
    assert np.abs(picture[11:29, 11:29] - inside).max() <= 0.5


def test_overlay_of_void_is_fainter_and_has_no_outline() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    picture = visualize.overlay(image, square(label=255), alpha=0.6)
    assert colours_of(Image.fromarray(picture)) == {(0, 0, 0), (45, 45, 38)}  # 0.2 of the palette


def test_overlay_bounds_of_alpha() -> None:
    image, mask = noise(), square()
    inside = np.s_[12:28, 12:28]
    assert np.array_equal(visualize.overlay(image, mask, alpha=0)[inside], image[inside])
    assert (visualize.overlay(image, mask, alpha=1)[inside] == (128, 128, 0)).all()


def test_panel_shows_each_row_at_one_cell_width_and_a_legend_of_what_occurs() -> None:
    wide, upright = square(40, 3)[:20], square(40, 2)[:, :20]
    rows = [(noise(20, 40), wide, wide), (noise(40, 20), upright, np.zeros_like(upright))]
    names = ["background", "a", "b", "c"]
    picture = panels.panel(rows, names, width=630)
    assert picture.width == 630
    cell = (630 - 2 * 20 - 3 * 10) // 4  # 140: rows are 70 and 140 high, from 48 down
    pixels = np.asarray(picture)
    x_truth, x_errors = 20 + cell + 10, 20 + 3 * (cell + 10)
    assert pixels[48 + 60, x_truth + 70].tolist() == [128, 128, 0]
    assert (pixels[48:118, x_errors : x_errors + cell] == visualize.ERROR_COLOURS["right"]).all()
    missed = pixels[48 + 70 + 10 + 70, x_errors + 70]
    assert tuple(missed) == visualize.ERROR_COLOURS["missed object"]
    seen = colours_of(picture)
    assert {(128, 128, 0), (0, 128, 0), *visualize.ERROR_COLOURS.values()} <= seen
    assert (128, 0, 0) not in seen  # class a does not occur
    captioned = panels.panel(rows, names, captions=["mean IoU 1.00", "x" * 500], width=630)
    assert captioned.height == picture.height + 2 * 24
    assert (np.asarray(captioned)[:, -19:] == 255).all()  # the long caption is cut, not run over


def test_panel_with_sixty_classes_and_one_pixel() -> None:
    mask = np.arange(60).reshape(6, 10)
    names = [f"class {i}" for i in range(60)]
    dot = np.zeros((1, 1), int)
    rows = [(noise(6, 10), mask, mask), (noise(1, 1), dot, dot)]
    picture = panels.panel(rows, names)
    assert {tuple(colour) for colour in visualize.voc_palette(60).tolist()} <= colours_of(picture)


@pytest.mark.parametrize("k", [2, 8, 21, 60])
def test_confusion_plot(k: int) -> None:
    counts = np.random.default_rng(k).integers(0, 50, (k, k)) + 500 * np.eye(k, dtype=int)
    names = ["a $name_ with ^ signs$"] + [f"class {i}" for i in range(1, k)]
    picture = plots.confusion_plot(counts, names)
    assert has_ink(picture)
    assert 300 < picture.width < 2000
    assert 300 < picture.height < 2000


def test_confusion_plot_is_normalised_by_row_on_a_square_root_scale() -> None:
    from matplotlib import colormaps

    picture = plots.confusion_plot(np.array([[1, 3], [0, 2]]), ["a", "b"])
    seen = colours_of(picture)
    for share in (0.25, 0.75, 0, 1):
        assert colormaps["Blues"](share**0.5, bytes=True)[:3] in seen


def test_confusion_plot_writes_iou(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "render", lambda axes: axes)
    # a: 3 / (4 + 0) = 75 %; b: 4 / (4 + 1) = 80 %; c is neither there nor predicted.
    counts = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    axes = plots.confusion_plot(counts, ["a", "b", "c"])
    cells = ["75", "25", "100"]
    assert [text.get_text() for text in axes.texts] == [*cells, "IoU (%)", "75.0", "80.0", "absent"]
    assert axes.get_title().startswith("mean IoU 77.5 %")


def test_confusion_plot_leaves_the_row_of_an_absent_class_blank() -> None:
    perfect = plots.confusion_plot(np.diag([5, 7]), ["a", "b"])
    absent = plots.confusion_plot(np.diag([5, 0]), ["a", "b"])
    full = (8, 48, 107)  # matplotlib's "Blues" at its end

    def area(picture: Image.Image) -> int:
        return int((np.asarray(picture) == full).all(axis=2).sum())

    assert area(absent) == pytest.approx(area(perfect) / 2, rel=0.02)
    assert has_ink(plots.confusion_plot(np.zeros((3, 3), int), ["a", "b", "c"]))


def test_iou_bars_are_sorted_and_as_long_as_their_values() -> None:
    picture = np.asarray(plots.iou_bars([0.25, None, 1.0, 0.5], ["a", "b", "c", "d"]))
    blue = (picture == (0, 0x72, 0xB2)).all(axis=2)
    lengths = blue.sum(axis=1)
    changes = lengths[np.flatnonzero(np.diff(lengths)) + 1]
    bars = changes[changes > 0]
    longest = lengths.max()
    # Edges of a bar are blended: its full-colour rows give its length.
    assert [round(bar / longest, 2) for bar in bars] == pytest.approx([1.0, 0.5, 0.25], abs=0.02)
    assert has_ink(plots.iou_bars([None, None], ["a", "b"]))


def test_curves() -> None:
    steps = range(0, 3000, 10)
    loss = [(step, 100 * 0.998**step + 0.1) for step in steps]
    iou = [(step, step / 4000) for step in range(0, 3000, 500)]
    both = plots.curves({"training": loss}, {"validation": iou})
    alone = plots.curves({"training": loss}, {})
    assert has_ink(both)
    assert has_ink(alone)
    assert both.width > 1.7 * alone.width
    broken = [(0, float("nan")), (1, float("inf")), (2, 1.0)]
    assert has_ink(plots.curves({"fixed": broken, "learned": loss, "none": []}, {}))
    assert has_ink(plots.curves({}, {"validation": [(1, float("nan"))]}))


def test_trimap_plot_draws_each_run_and_leaves_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_ink(plots.trimap_plot({"a": [0.2, None, 0.5]}))
    monkeypatch.setattr(plots, "render", lambda axes: axes)
    alone = plots.trimap_plot({"a": [0.2, None, 0.5]})
    (line,) = alone.lines
    assert list(line.get_xdata()) == [1, 2, 3]
    assert np.array_equal(line.get_ydata(), [20, np.nan, 50], equal_nan=True)
    assert alone.get_legend() is None
    several = plots.trimap_plot({"$a$": [0.2], "b": [0.4]})
    assert [text.get_text() for text in several.get_legend().get_texts()] == ["$a$", "b"]
    assert not any(text.get_parse_math() for text in several.get_legend().get_texts())


def test_curves_smooth_and_scale_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "render", lambda axes: axes)
    level = plots.curves({"a": [(i, 3.0 + (i % 2)) for i in reversed(range(1000))]}, {})
    raw, smooth = (line.get_ydata() for line in level.lines)
    assert raw[:3].tolist() == [3, 4, 3]  # in the order of steps, whatever that of the points
    assert np.abs(smooth - 3.5).max() < 0.05  # at the ends as well
    assert level.get_yscale() == "linear"
    falling = plots.curves({"a": [(i, 0.9**i) for i in range(100)]}, {})
    assert falling.get_yscale() == "log"
    scored = plots.curves({}, {"a": [(1, 0.2), (2, 0.655), (3, 0.5)]})
    assert [text.get_text() for text in scored.get_legend().get_texts()] == ["a, best 65.5"]


MASK, IMAGE = square(), noise()
EVERY_VALUE_ERROR = {
    "n must be in 1..256, got 257": lambda: visualize.voc_palette(257),
    r"mask must be \(H, W\) integers, got \(40, 40\) of float64": lambda: visualize.colorize(
        MASK.astype(float)
    ),
    r"mask must be .*, got \(40, 40\) of bool": lambda: visualize.palette_image(MASK > 0),
    r"mask must be .*, got \(0, 3\)": lambda: visualize.palette_image(np.zeros((0, 3), int)),
    r"mask must hold 0\.\.255, got -1\.\.2": lambda: visualize.colorize(np.array([[-1, 2]])),
    r"image must be \(H, W, 3\) uint8, got .* of float64": lambda: visualize.overlay(
        IMAGE / 255, MASK
    ),
    r"mask must have image's size \(40, 40\), got \(39, 40\)": lambda: visualize.overlay(
        IMAGE, MASK[1:]
    ),
    r"alpha must be in 0\.\.1, got 2": lambda: visualize.overlay(IMAGE, MASK, alpha=2),
    r"prediction must have truth's size": lambda: visualize.errors(MASK, MASK[1:]),
    "rows must hold at least one": lambda: panels.panel([], ["a"]),
    "classes must name label 3, got 3 names": lambda: panels.panel(
        [(IMAGE, MASK, MASK)], ["a", "b", "c"]
    ),
    "truth must have image's size": lambda: panels.panel([(IMAGE, MASK[1:], MASK)], "abcd"),
    "captions must be one a row, got 2 for 1": lambda: panels.panel(
        [(IMAGE, MASK, MASK)], "abcd", ["", ""]
    ),
    "width must be at least 600": lambda: panels.panel([(IMAGE, MASK, MASK)], "abcd", width=99),
    r"confusion must be \(K, K\) integers, got shape \(2, 3\)": lambda: plots.confusion_plot(
        np.ones((2, 3), int), ["a", "b"]
    ),
    "confusion must be .* of float64": lambda: plots.confusion_plot(np.eye(2), ["a", "b"]),
    "confusion must hold counts >= 0, got -1": lambda: plots.confusion_plot(
        np.array([[1, -1], [0, 1]]), ["a", "b"]
    ),
    "classes must be one a class of confusion, got 1 names for 2": lambda: plots.confusion_plot(
        np.eye(2, dtype=int), ["a"]
    ),
    r"iou must be in 0\.\.1 or None, got 65.5": lambda: plots.iou_bars([65.5], ["a"]),
    "classes must be one a class of iou": lambda: plots.iou_bars([], []),
    r"mean_iou must hold values in 0\.\.1 or None, got \[\]": lambda: plots.trimap_plot(
        {"a": [None]}
    ),
    r"mean_iou must hold values in 0\.\.1 or None, got \[65.5\]": lambda: plots.trimap_plot(
        {"a": [65.5]}
    ),
    "loss and mean_iou must hold at least one point": lambda: plots.curves({"a": []}, {}),
    r"mean_iou must be in 0\.\.1, got \[65.5\] for a": lambda: plots.curves({}, {"a": [(1, 65.5)]}),
}


@pytest.mark.parametrize("message", EVERY_VALUE_ERROR)
def test_errors_name_the_argument_and_the_rule(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EVERY_VALUE_ERROR[message]()


def test_importing_is_quick_and_drawing_leaves_pyplot_alone() -> None:
    program = (
        "import sys; from fcn import plots, panels, visualize\n"
        "assert not {'matplotlib', 'torch'} & set(sys.modules)\n"
        "plots.iou_bars([0.5], ['a']); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
