"""Colours by hand, and the laws that masks, overlays and grids of pictures obey."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import fcn
from fcn.dataset_info import DatasetInfo
from fcn.pictures import visualize

# The colours of labels 0..20 as VOCdevkit's documentation lists them.
VOC_COLOURS = """0 0 0, 128 0 0, 0 128 0, 128 128 0, 0 0 128, 128 0 128, 0 128 128, 128 128 128,
    64 0 0, 192 0 0, 64 128 0, 192 128 0, 64 0 128, 192 0 128, 64 128 128, 192 128 128,
    0 64 0, 128 64 0, 0 192 0, 128 192 0, 0 64 128"""
INFO = DatasetInfo(["background", "a", "b", "c"])


def square(label: int = 3, size: int = 40) -> np.ndarray:
    """Return a mask: background, with a square of label in the middle half."""
    mask = np.zeros((size, size), np.uint8)
    mask[size // 4 : -size // 4, size // 4 : -size // 4] = label
    return mask


def noise(height: int = 40, width: int = 40) -> np.ndarray:
    """Return an image without white pixels."""
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def colours_of(picture: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.unique(np.asarray(picture).reshape(-1, 3), axis=0)}


def test_palette_is_vocs() -> None:
    palette = visualize.voc_palette()
    assert palette[:21].tolist() == [[*map(int, c.split())] for c in VOC_COLOURS.split(",")]
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
    ground_truth = np.array([[0, 4, 0, 4, 4, 255, 255]])
    prediction = np.array([[0, 4, 4, 0, 5, 0, 5]])
    names = ["correct", "correct", "false object", "missed object", "wrong class"] + 2 * ["ignored"]
    expected = [list(visualize.ERROR_COLOURS[name]) for name in names]
    assert visualize.error_map(ground_truth, prediction)[0].tolist() == expected


def test_overlay_leaves_background_and_outlines_objects_on_the_inside() -> None:
    image, mask = noise(), square()
    picture = visualize.overlay(image, mask, alpha=0.5)
    assert np.array_equal(picture[mask == 0], image[mask == 0])
    # The square spans 10..29: its boundary is white, its inside half image, half (128, 128, 0).
    boundary = mask != 0
    boundary[11:29, 11:29] = False
    assert np.array_equal((picture == 255).all(axis=2), boundary)
    inside = image[11:29, 11:29] * 0.5 + np.array([64, 64, 0])
    assert np.abs(picture[11:29, 11:29] - inside).max() <= 0.5


def test_overlay_of_ignored_pixels_is_fainter_and_has_no_outline() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    picture = visualize.overlay(image, square(label=255), alpha=0.6)
    assert colours_of(Image.fromarray(picture)) == {(0, 0, 0), (45, 45, 38)}  # 0.2 of the palette


def test_alpha_0_shows_the_image_and_alpha_1_the_mask() -> None:
    image, mask, inside = noise(), square(), np.s_[12:28, 12:28]
    assert np.array_equal(visualize.overlay(image, mask, alpha=0)[inside], image[inside])
    assert (visualize.overlay(image, mask, alpha=1)[inside] == (128, 128, 0)).all()


@pytest.mark.parametrize("image", [noise() / 255, noise(39), noise()[..., :2]])
def test_overlay_of_another_size_or_type_is_an_error(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="image must be uint8"):
        visualize.overlay(image, square())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (square().astype(int) - 1, "labels in 0..255, got -1 to 2"),
        (square().astype(int) + 297, "labels in 0..255, got 297 to 300"),
        (square() / 3, "integers or bool"),
        (square()[..., None], "integers or bool"),
        (square().tolist()[0], "integers or bool"),
    ],
)
def test_what_is_no_mask_is_an_error_in_every_picture(mask: Any, message: str) -> None:
    for draw in (
        lambda: visualize.overlay(noise(), mask),
        lambda: fcn.overlay(noise(), mask),
        lambda: visualize.colorize(mask),
        lambda: visualize.palette_image(mask),
    ):
        with pytest.raises(ValueError, match=message):
            draw()


def test_a_weight_outside_0_to_1_is_an_error() -> None:
    for alpha in (-0.1, 1.1, 55, float("nan")):
        with pytest.raises(ValueError, match=r"alpha must be in 0\.\.1"):
            fcn.overlay(noise(), square(), alpha)


@pytest.mark.parametrize("make", [lambda m: m, np.ndarray.tolist, torch.from_numpy])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.int64])
def test_masks_of_any_integers_and_of_bool_are_labels(make: Any, dtype: type) -> None:
    image, mask = noise(), square(1)
    expected = visualize.overlay(image, mask)
    assert np.array_equal(fcn.overlay(image, make(mask.astype(dtype))), expected)


def test_panel_draws_four_pictures_a_row_and_legends_of_what_occurs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide, upright = square(3)[:20], square(2)[:, :20]
    rows = [(noise(20, 40), wide, wide), (noise(40, 20), upright, np.zeros_like(upright))]
    texts: list[tuple[int, str]] = []  # and where they begin
    write = ImageDraw.ImageDraw.text

    def note(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, *style: Any) -> None:
        texts.append((place[0], text))
        write(draw, place, text, *style)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    seen = colours_of(visualize.panel(rows, INFO, ["v0", "v1"]))
    assert {(128, 128, 0), (0, 128, 0), (255, 255, 255)} <= seen
    assert set(visualize.ERROR_COLOURS.values()) <= seen
    assert (128, 0, 0) not in seen  # class a does not occur
    headings = ["image", "ground truth", "prediction", "errors"]
    legends = [*visualize.ERROR_COLOURS, "background", "b", "c"]
    assert sorted(t for _, t in texts if t) == sorted([*headings, "v0", "v1", *legends])
    assert [x for x, text in texts if text in ("v0", "v1")] == [0, 0]
    columns = [x for x, text in texts if text in headings]
    assert np.ptp(np.diff(columns)) == 0 < columns[0]


def test_a_grid_shows_every_pixel_of_a_small_picture() -> None:
    picture = noise(32, 40)
    grid = np.asarray(visualize.panel([(picture, *[square(0, 40)[:32]] * 2)], INFO))
    side = visualize.CELL // 40
    seen = grid[2 * visualize.LINE :][: 32 * side, visualize.LINE :][:, : 40 * side]
    assert np.array_equal(seen[side // 2 :: side, side // 2 :: side], picture)


def test_panel_survives_one_pixel_and_sixty_classes() -> None:
    mask, dot = np.arange(60).reshape(6, 10), square(0, 1)
    rows = [(noise(6, 10), mask, mask), (noise(1, 1), dot, dot)]
    seen = colours_of(visualize.panel(rows, DatasetInfo([f"class {i}" for i in range(60)])))
    assert {tuple(colour) for colour in visualize.voc_palette(60).tolist()} <= seen


def test_contact_sheet_shows_two_samples_a_row() -> None:
    sample = (noise(20, 40), square(1)[:20])
    sheets = [visualize.contact_sheet([sample] * n, INFO, ["t0"] * n) for n in (1, 2, 3)]
    assert sheets[0].height == sheets[1].height < sheets[2].height
    assert (128, 0, 0) in colours_of(sheets[0])


@pytest.mark.parametrize("shape", [(1, 1), (37, 900), (700, 41)])
@pytest.mark.parametrize("strip", [1, 3000])
def test_an_overlay_in_strips_is_that_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], strip: int
) -> None:
    """Outlines are two pixels wide in the larger ones, so strips need their neighbours."""
    rng = np.random.default_rng(0)
    mask = rng.choice([0, 1, 2, 255], (shape[0] // 9 + 1, shape[1] // 9 + 1)).astype(np.uint8)
    mask = mask.repeat(9, 0).repeat(9, 1)[: shape[0], : shape[1]]
    image = noise(*shape)
    monkeypatch.setattr(visualize, "STRIP", 2**30)
    whole = visualize.overlay(image, mask)
    monkeypatch.setattr(visualize, "STRIP", strip)
    assert len(list(visualize.overlay_strips(image, mask))) > 1 or shape == (1, 1)
    assert np.array_equal(visualize.overlay(image, mask), whole)
