import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fcn
from fcn.config import ConfigError
from fcn.inference.predictor import pixels, resize
from fcn.models.fcn import FCN
from tests.test_checkpoint import lightning_file
from tests.test_fcn import small, with_random_scores


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return lightning_file(tmp_path / "m.ckpt", lively())


def lively(**arguments: object) -> FCN:
    """A net whose scores change from place to place, so that masks hold several classes."""
    model = with_random_scores(small(**arguments)).eval()
    with torch.inference_mode():
        score = model(torch.rand(1, 3, 96, 96))
    model.score_fr.bias.data -= score.mean((0, 2, 3))
    return model


def noise(height: int, width: int) -> np.ndarray:
    """Smooth enough to survive pooling, uint8 (H, W, 3)."""
    coarse = torch.rand(1, 3, height // 8 + 2, width // 8 + 2)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (image[0].permute(1, 2, 0) * 255).byte().numpy()


def double(predictor: fcn.Predictor) -> fcn.Predictor:
    """Where two ways to compute one thing differ by rounding alone, labels then do not."""
    predictor.model.double()
    return predictor


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
def test_tiles_give_the_mask_of_the_whole_image(
    tmp_path: Path, padding: int | str, options: dict[str, object], size: tuple[int, int]
) -> None:
    path = lightning_file(tmp_path / "m.ckpt", lively(padding=padding))
    whole = double(fcn.Predictor(path, tile=None, **options))  # type: ignore[arg-type]
    tiled = double(fcn.Predictor(path, tile=704, **options))  # type: ignore[arg-type]
    image = torch.from_numpy(noise(*size)).permute(2, 0, 1)[None]
    mask, probabilities = whole.segment(image, probabilities=True)
    again, likewise = tiled.segment(image, probabilities=True)
    assert len(mask.unique()) > 2
    assert torch.equal(again, mask)
    torch.testing.assert_close(likewise, probabilities, atol=1e-3, rtol=0)


def test_a_large_image_is_cut_of_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = fcn.Predictor(path)
    sizes: list[tuple[int, ...]] = []
    predictor.model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2:]))
    predictor(noise(8, 2048))
    predictor(noise(8, 2049))
    assert sizes[0] == (8, 2048)
    assert len(sizes) == 3
    assert all(width < 1600 for _, width in sizes[1:])


def test_flipping_a_symmetric_image_gives_a_symmetric_answer(path: Path) -> None:
    half = noise(45, 35)
    image = np.concatenate([half, half[:, ::-1]], axis=1)
    plain = fcn.Predictor(path).probabilities(image)
    assert not np.array_equal(plain, plain[..., ::-1])  # 70 columns: the net's grid is lopsided
    flipped = fcn.Predictor(path, flip=True, scales=[1, 0.7]).probabilities(image)
    np.testing.assert_array_equal(flipped, flipped[..., ::-1])


def test_a_mirrored_image_gives_the_mirrored_mask(path: Path) -> None:
    image = noise(45, 71)
    predictor = fcn.Predictor(path, flip=True)
    np.testing.assert_array_equal(predictor(image[:, ::-1]), predictor(image)[:, ::-1])


def test_scales_and_flips_are_averaged_as_probabilities(path: Path) -> None:
    """Against plain PyTorch: resize, score, resize back, softmax, mean."""
    image = torch.from_numpy(noise(45, 71)).permute(2, 0, 1)
    predictor = fcn.Predictor(path, flip=True, scales=[0.75, 1, 1.25])
    model, views = fcn.load(path), []
    for scale in predictor.scales:
        seen = resize(image[None], scale).float() / 255
        for view, back in ((seen, (lambda s: s)), (seen.flip(-1), (lambda s: s.flip(-1)))):
            with torch.inference_mode():
                score = model(view)
            score = torch.nn.functional.interpolate(score, (45, 71), mode="bilinear")
            views.append(back(score.softmax(1))[0])
    expected = torch.stack(views).mean(0)
    found = torch.from_numpy(predictor.probabilities(image))
    torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=0)
    assert (predictor(image) == expected.argmax(0).numpy()).mean() > 0.999
    assert not torch.allclose(views[0], views[2], atol=1e-2)


def test_probabilities_are_of_each_class_and_sum_to_one(path: Path) -> None:
    image = noise(33, 47)
    predictor = fcn.Predictor(path)
    found = predictor.probabilities(image)
    assert (found.shape, found.dtype) == ((5, 33, 47), np.float16)
    np.testing.assert_allclose(found.astype(float).sum(0), 1, atol=3e-3)
    with torch.inference_mode():
        expected = fcn.load(path)(pixels(image)[None] / 255)[0].softmax(0)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)


def test_predictor_takes_files_pictures_arrays_and_tensors(path: Path, tmp_path: Path) -> None:
    predictor = fcn.Predictor(path, "cpu")
    array = noise(33, 47)
    Image.fromarray(array).save(file := tmp_path / "image.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = fcn.load(path)(tensor[None] / 255)[0].argmax(0).numpy()
    assert len(np.unique(expected)) > 2
    picture = Image.open(file)
    for image in (file, str(file), picture, array, tensor, tensor / 255, tensor.double() / 255):
        mask = predictor(image)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, expected)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(array).rotate(90, expand=True).save(file, exif=exif)
    turned = Image.open(file)
    np.testing.assert_array_equal(predictor(turned), expected)
    assert turned.size == (33, 47)  # the caller's own picture is left as it was


def test_what_is_no_image_is_refused_with_what_is_one(path: Path) -> None:
    predictor = fcn.Predictor(path)
    for thing in (None, 5, [[0, 1]], b"bytes"):
        with pytest.raises(TypeError, match=r"a path, a PIL image, an array uint8 .* got \w+"):
            predictor(thing)  # type: ignore[arg-type]
    array = noise(8, 9)
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\), got float64"):
        predictor(array / 255)
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\), got uint8 \(8, 9\)"):
        predictor(array[..., 0])
    with pytest.raises(ValueError, match=r"\(3, H, W\), got \(8, 9, 3\)"):
        predictor(torch.from_numpy(array))
    with pytest.raises(ValueError, match=r"float in \[0, 1\], got torch.float32 in 0..255"):
        predictor(torch.tensor([0.0, 255.0]).repeat(3, 2, 1))


def test_settings_outside_their_range_are_refused(path: Path) -> None:
    for scales in ([], [1, 0], [-1], [math.nan], [math.inf]):
        with pytest.raises(ConfigError, match="scales must be positive"):
            fcn.Predictor(path, scales=scales)
    with pytest.raises(ConfigError, match="tile must be auto, null or a number of pixels, got big"):
        fcn.Predictor(path, tile="big")
    with pytest.raises(ConfigError, match=r"tile=64 is too small: .* 245 pixels"):
        fcn.Predictor(path, tile=64)
    with pytest.raises(ConfigError, match=r"device must be one of auto, .* got 'nowhere'"):
        fcn.Predictor(path, "nowhere")


def test_overlay_is_at_hand(path: Path) -> None:
    image = noise(33, 47)
    assert fcn.overlay(image, fcn.Predictor(path)(image)).shape == (33, 47, 3)
