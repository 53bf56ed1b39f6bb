"""From an image to its mask: tiles, flips and scales against plain computations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import fcn
from fcn.checkpoint import info_metadata, load, write_safetensors
from fcn.data.images import read_image
from fcn.dataset_info import DatasetInfo
from fcn.device import InferenceModel
from fcn.errors import ConfigError
from fcn.inference.predictor import Predictor
from fcn.models.fcn import FCN
from fcn.models.tiles import TILE as LONGEST
from fcn.models.tiles import interpolate, positions, resize, tiles, window
from fcn.models.upsampling import UPSAMPLINGS
from fcn.pictures import visualize
from tests.conftest import random_model

SIZES = [(1, 1203), (801, 37), (33, 832)]  # thin, because rows and columns are cut alike
TILE = 704  # not much more than the surroundings of a tile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(tmp_path, random_model())


def saved(folder: Path, model: FCN) -> Path:
    write_safetensors(folder / "m.safetensors", model, {"classes": list("abcde")})
    return folder / "m.safetensors"


def photo(height: int, width: int) -> np.ndarray:
    """Colours smooth enough to survive pooling, uint8 (H, W, 3)."""
    coarse = torch.rand(1, 3, height // 8 + 2, width // 8 + 2)
    image = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (image[0].permute(1, 2, 0) * 255).byte().numpy()


def double(predictor: Predictor) -> Predictor:
    """In float64, where two ways to compute one thing cannot differ in a label by rounding."""
    predictor.model.model.double()
    return predictor


def score_in_tiles(model: FCN, image: Tensor, side: int) -> tuple[Tensor, int]:
    """Scores put together from those of tiles, and the number of tiles."""
    height, width = image.shape[-2:]
    whole = torch.full((1, 5, height, width), torch.nan, dtype=torch.float64)
    count = 0
    for rows in tiles(height, side, model):
        for columns in tiles(width, side, model):
            y, x = window(rows, height, model), window(columns, width, model)
            assert max(y.stop - y.start, x.stop - x.start) <= side
            score = model(image[..., y, x])
            top, left = rows.start - y.start, columns.start - x.start
            tile = whole[..., rows, columns]
            tile.copy_(score[..., top : top + tile.shape[-2], left : left + tile.shape[-1]])
            count += 1
    return whole, count


ARCHITECTURES = [
    *({"stride": s, "padding": p} for s in (32, 16, 8) for p in ("aligned", 100)),
    *({"stride": 8, "padding": p, "backbone": "mini"} for p in ("aligned", 100)),
    *({"upsampling": name, "backbone": "mini"} for name in UPSAMPLINGS),
]


@pytest.mark.parametrize("arguments", ARCHITECTURES, ids=str)
@torch.inference_mode()
def test_tiles_score_as_the_whole_image(arguments: dict[str, object]) -> None:
    model = random_model(**arguments).double()
    for size in SIZES if "stride" in arguments else SIZES[1:2]:
        image = torch.rand(1, 3, *size, dtype=torch.float64)
        expected = model(image)
        score, count = score_in_tiles(model, image, TILE)
        assert count > 1
        assert expected.std() > 1e-3
        torch.testing.assert_close(score, expected, atol=1e-12, rtol=1e-9)


@torch.inference_mode()
def test_tiles_score_as_the_whole_image_in_both_directions() -> None:
    model = random_model(backbone="mini").double()
    image = torch.rand(1, 3, 705, 721, dtype=torch.float64)
    score, count = score_in_tiles(model, image, TILE)
    assert count == 4 * 4
    torch.testing.assert_close(score, model(image))


@pytest.mark.parametrize("attribute", ["reach", "period"])
@torch.inference_mode()
def test_half_the_reach_or_period_leaves_seams(attribute: str) -> None:
    model = random_model().double()
    image = torch.rand(1, 3, 40, 1203, dtype=torch.float64)
    expected = model(image)
    setattr(model, attribute, getattr(model, attribute) // 2)
    difference = (score_in_tiles(model, image, TILE)[0] - expected).abs().max()
    assert difference > 1e-4 * expected.std()


def test_tiles_cover_a_length_once_with_windows_of_few_sizes() -> None:
    model = random_model()
    for length in (577, 1000, 10_000, 12_345):
        for scale in (1.0, 1.5):
            cut = tiles(length, 1024, model, scale)
            assert [tile.start for tile in cut] == [0, *(tile.stop for tile in cut[:-1])]
            assert cut[-1].stop == length
            *sizes, last = (tile.stop - tile.start for tile in cut)
            assert len({*sizes}) <= 1
            assert 0 < last <= max(sizes, default=last)
            windows = {w.stop - w.start for w in (window(t, length, model) for t in cut[1:-2])}
            assert len(windows) <= 2  # kernels keep memory for every size: a few sizes in all
    assert tiles(1024, 1024, model) == [slice(0, 1024)]
    assert len(tiles(1025, 1024, model)) == 3
    assert tiles(5000, None, model) == [slice(0, 5000)]


def test_a_tile_that_is_too_small_is_an_error_with_the_smallest_that_works() -> None:
    model = random_model()
    with pytest.raises(ConfigError, match="at least 555"):
        tiles(10_000, 554, model)
    assert tiles(10_000, 555, model)


@pytest.mark.parametrize(
    ("padding", "options", "size"),
    [
        ("aligned", {}, (709, 30)),
        ("aligned", {"flip": True}, (37, 801)),
        ("aligned", {"flip": True, "scales": [0.75, 1, 1.3]}, (37, 801)),
        ("aligned", {"scales": [0.75, 1.3]}, (709, 30)),
        (100, {"flip": True, "scales": [1.3]}, (9, 709)),
    ],
)
def test_tiles_predict_as_the_whole_image(
    tmp_path: Path, padding: int | str, options: dict[str, object], size: tuple[int, int]
) -> None:
    path = saved(tmp_path, random_model(padding=padding))
    image = torch.from_numpy(photo(*size)).permute(2, 0, 1)
    predictors = [double(Predictor(path, tile=tile, **options)) for tile in (None, TILE)]  # type: ignore[arg-type]
    (mask, kept), (again, also) = (p.segment(image, probabilities=True) for p in predictors)
    assert len(np.unique(mask)) > 2
    np.testing.assert_array_equal(again, mask)
    assert kept is not None
    assert also is not None
    np.testing.assert_allclose(also, kept, atol=1e-3)


def test_an_image_larger_than_a_tile_is_cut(path: Path) -> None:
    predictor = Predictor(path)
    sizes: list[tuple[int, ...]] = []
    hook = lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:]))  # noqa: E731
    predictor.model.model.register_forward_pre_hook(hook)
    predictor(photo(8, LONGEST))
    predictor(photo(8, LONGEST + 1))
    assert sizes[0] == (8, LONGEST)
    assert len(sizes) == 3
    assert all(width < 0.8 * LONGEST for _, width in sizes[1:])


@pytest.mark.parametrize("scaled", [37, 50, 71])
def test_interpolation_is_pytorchs_whole_or_in_part(scaled: int) -> None:
    score = torch.rand(1, 2, scaled, 3, dtype=torch.float64)
    expected = F.interpolate(score, (50, 3), mode="bilinear")
    for part in (slice(0, 50), slice(13, 29)):
        found = interpolate(score, positions(part, 50, scaled), -2)
        torch.testing.assert_close(found, expected[..., part, :])


def test_flipping_a_symmetric_image_gives_a_symmetric_answer(path: Path) -> None:
    half = photo(45, 35)
    image = np.concatenate([half, half[:, ::-1]], axis=1)
    plain = Predictor(path).probabilities(image)
    assert not np.array_equal(plain, plain[..., ::-1])  # 70 columns: the grid is not symmetric
    flipped = Predictor(path, flip=True, scales=[1, 0.7]).probabilities(image)
    np.testing.assert_array_equal(flipped, flipped[..., ::-1])


def test_scales_and_flips_are_averaged_as_probabilities(path: Path) -> None:
    """Against plain PyTorch: resize, score, resize back, softmax, mean."""
    image = torch.from_numpy(photo(45, 71)).permute(2, 0, 1)
    predictor = Predictor(path, flip=True, scales=[0.75, 1, 1.25])
    model, views = load(path), []
    for scale in (0.75, 1, 1.25):
        for dims in ([], [-1]):
            with torch.inference_mode():
                score = model(resize(image[None], scale).flip(dims))
            score = F.interpolate(score, (45, 71), mode="bilinear")
            views.append(score.softmax(1).flip(dims)[0])
    expected = torch.stack(views).mean(0).numpy()
    np.testing.assert_allclose(predictor.probabilities(image), expected, atol=1e-3)
    assert (predictor(image) == expected.argmax(0)).mean() > 0.999
    assert not torch.allclose(views[0], views[2], atol=1e-2)
    predictor(torch.ones(3, 45, 71))  # resizing must not make white brighter than 1


def test_files_pictures_arrays_and_tensors_give_the_same_mask(path: Path, tmp_path: Path) -> None:
    predictor = Predictor(path, "cpu")
    array = photo(33, 47)
    Image.fromarray(array).save(file := tmp_path / "image.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    with torch.inference_mode():
        score = load(path)(tensor[None])[0]
    expected = score.argmax(0).numpy()
    assert len(np.unique(expected)) > 2
    picture = Image.open(file)
    read_only = np.array(array)
    read_only.flags.writeable = False
    arrays = (array, read_only, array / 255, tensor, tensor / 255)
    for image in (file, str(file), picture, *arrays):
        mask = predictor(image)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, expected)
    probabilities = predictor.probabilities(array)
    assert probabilities.dtype == np.float16
    np.testing.assert_allclose(probabilities, score.softmax(0), atol=1e-3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(array).rotate(90, expand=True).save(file, exif=exif)
    turned = Image.open(file)
    np.testing.assert_array_equal(predictor(turned), expected)
    assert turned.size == (33, 47)  # the caller's own picture is unchanged


def test_what_is_not_an_image_is_an_error(path: Path) -> None:
    predictor = Predictor(path)
    for thing in (None, 5, [photo(8, 9), photo(8, 9)], b"bytes"):
        with pytest.raises(TypeError, match="once for each image"):
            predictor(thing)  # type: ignore[arg-type]
    array = photo(8, 9)
    bright = torch.tensor([0.0, 255.0]).repeat(3, 2, 1)
    for wrong in (array[..., 0], torch.from_numpy(array), bright):
        with pytest.raises(ValueError, match="must be"):
            predictor(wrong)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"scales": []}, "scales"),
        ({"scales": [1, 0]}, "scales"),
        ({"tile": "big"}, "tile"),
        ({"tile": 64}, "tile=64"),
        ({"device": "nowhere"}, "device"),
    ],
)
def test_settings_out_of_range_are_errors(path: Path, settings: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Predictor(path, **settings)


OVERLAID = {  # mode -> a photograph in it
    "RGB": lambda rgb: Image.fromarray(rgb),
    "L": lambda rgb: Image.fromarray(rgb).convert("L"),
    "LA": lambda rgb: Image.fromarray(rgb).convert("LA"),
    "RGBA": lambda rgb: Image.fromarray(rgb).convert("RGBA"),
    "P": lambda rgb: Image.fromarray(rgb).convert("P"),
    "I;16": lambda rgb: Image.fromarray(rgb[..., 0].astype(np.uint16) * 257),
}


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", OVERLAID)
def test_an_overlay_shows_the_photograph_as_the_predictor_sees_it(
    path: Path, tmp_path: Path, mode: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    OVERLAID[mode](photo(40, 56)).save(file := tmp_path / "photo.png", exif=exif)
    predictor = Predictor(path, "cpu")
    mask = predictor(file)
    picture = fcn.overlay(str(file), mask, info=predictor.info)
    upright = read_image(file).permute(1, 2, 0).numpy()
    assert upright.shape[:2] == mask.shape == ((56, 40) if orientation >= 5 else (40, 56))
    assert np.array_equal(picture, visualize.overlay(upright, mask, info=predictor.info))
    with Image.open(file) as image:
        assert np.array_equal(predictor(image), mask)
        assert np.array_equal(fcn.overlay(image, mask, info=predictor.info), picture)
    assert np.array_equal(fcn.overlay(upright, mask, info=predictor.info), picture)


def test_an_overlay_takes_arrays_of_any_channels() -> None:
    rgb, mask = photo(20, 30), np.eye(20, 30, dtype=np.uint8)
    expected, tensor = visualize.overlay(rgb, mask), torch.from_numpy(rgb).movedim(-1, 0)
    for image in (rgb, np.dstack([rgb, rgb]), tensor, tensor / 255):
        assert np.array_equal(fcn.overlay(image, mask), expected)
    grey = visualize.overlay(rgb[..., [0, 0, 0]], mask)
    for image in (rgb[..., 0], rgb[..., :1], rgb[..., 0].astype(np.uint16) * 257):
        assert np.array_equal(fcn.overlay(image, mask), grey)
    with pytest.raises(ValueError, match=r"of the mask's size \(20, 30\)"):
        fcn.overlay(rgb[:-1], mask)


def test_a_range_is_applied_once(tmp_path: Path) -> None:
    info = DatasetInfo(list("abcde"), value_range=[0, 100])
    write_safetensors(tmp_path / "m.safetensors", random_model(), info_metadata(info))
    predictor, dark = Predictor(tmp_path / "m.safetensors", "cpu"), photo(24, 32) // 3
    Image.fromarray(dark).save(file := tmp_path / "dark.png")
    expected = predictor._as_tensor(dark)
    assert 200 < expected.max() == round(float(dark.max()) * 2.55)
    with Image.open(file) as image:
        for form in (file, image, torch.from_numpy(dark).movedim(-1, 0)):
            assert torch.equal(predictor._as_tensor(form), expected)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_evaluation_and_prediction_in_small_tiles_give_the_labels_of_whole_images(
    precision: str,
) -> None:
    """A batch of images of one size, as evaluation has it."""
    model = random_model(backbone="mini")
    images = torch.stack([torch.from_numpy(photo(531, 570)).permute(2, 0, 1) for _ in range(2)])
    cpu = torch.device("cpu")
    whole = InferenceModel(model, cpu, precision, tile=None)
    tiled = InferenceModel(model, cpu, precision, tile=500)
    assert len(tiled.tiles((531, 570))) > 100
    expected = whole.predict(images)
    assert len(expected.unique()) > 2
    assert torch.equal(tiled.predict(images), expected)


@pytest.mark.parametrize(
    ("value", "settings"),
    [(-1.0, {}), (2.0, {"flip": True, "scales": [0.5, 1, 2]}), (np.nan, {"tile": TILE})],
)
def test_floats_outside_0_to_1_are_an_error_whole_and_in_tiles(
    path: Path, value: float, settings: dict
) -> None:
    image = np.full((900, 40, 3), value, np.float32)
    image[::2] = 0.5
    predictor = Predictor(path, "cpu", **settings)
    with pytest.raises(ValueError, match=r"a float image must be in \[0, 1\]"):
        predictor(image)
    image[1::2] = 1
    assert predictor(image).shape == (900, 40)


def test_a_network_of_other_channels_takes_the_first_bands_unless_it_knows_better(
    tmp_path: Path,
) -> None:
    four = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    Image.fromarray(four).save(tmp_path / "a.png")
    predictor = Predictor(saved(tmp_path, random_model(in_channels=4)), "cpu")
    assert predictor.info.bands == [0, 1, 2, 3]
    assert np.array_equal(predictor(tmp_path / "a.png"), predictor(four))
