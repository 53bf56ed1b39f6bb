import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fcn.config import ConfigError
from fcn.inference.tiles import around, parts, places, sample, window
from fcn.models.fcn import FCN
from fcn.models.upsampling import UPSAMPLINGS
from tests.test_fcn import small, with_random_scores

SIZES = [(1, 1203), (801, 37), (33, 832)]  # thin, as rows and columns are cut alike
TILE = 704  # not much more than the surroundings


def net(**arguments: object) -> FCN:
    """Random everywhere, batch norms included, and in float64, where nothing hides in rounding."""
    model = with_random_scores(small(**arguments)).eval().double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.bias, std=0.1)  # padding differs from a black image
    return model


def in_parts(model: FCN, image: Tensor, side: int) -> tuple[Tensor, int]:
    """Scores put together from those of windows, and how many there were."""
    height, width = image.shape[-2:]
    whole = torch.full((1, 5, height, width), torch.nan, dtype=torch.float64)
    count = 0
    for rows in parts(height, side, model):
        for columns in parts(width, side, model):
            y, x = window(rows, height, model), window(columns, width, model)
            assert max(y.stop - y.start, x.stop - x.start) <= side
            score = model(image[..., y, x])
            inner_rows = slice(rows.start - y.start, rows.stop - y.start)
            inner_columns = slice(columns.start - x.start, columns.stop - x.start)
            whole[..., rows, columns] = score[..., inner_rows, inner_columns]
            count += 1
    return whole, count


@pytest.mark.parametrize("padding", ["aligned", 100])
@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("backbone", ["vgg16", "mini"])
@torch.inference_mode()
def test_parts_score_as_the_whole(stride: int, padding: int | str, backbone: str) -> None:
    model = net(stride=stride, padding=padding, backbone=backbone)
    for size in SIZES:
        image = torch.rand(1, 3, *size, dtype=torch.float64)
        expected = model(image)
        scores, count = in_parts(model, image, TILE)
        assert count > 1
        assert expected.std() > 1e-3
        torch.testing.assert_close(scores, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@torch.inference_mode()
def test_parts_score_as_the_whole_however_it_is_upsampled(upsampling: str) -> None:
    model = net(stride=8, upsampling=upsampling)
    for name, parameter in model.named_parameters():
        if name.startswith("upscore"):
            torch.nn.init.normal_(parameter, std=0.1)
    image = torch.rand(1, 3, 40, 801, dtype=torch.float64)
    torch.testing.assert_close(in_parts(model, image, TILE)[0], model(image))


@torch.inference_mode()
def test_parts_score_as_the_whole_in_both_directions() -> None:
    model = net(stride=8, backbone="mini")
    image = torch.rand(1, 3, 705, 721, dtype=torch.float64)
    scores, count = in_parts(model, image, TILE)
    assert count == 3 * 3
    torch.testing.assert_close(scores, model(image))


@pytest.mark.parametrize("attribute", ["reach", "period"])
@torch.inference_mode()
def test_less_of_either_is_not_enough(attribute: str) -> None:
    """What the law above rests on: with half the reach, or half the period, seams appear."""
    model = net(stride=8)
    image = torch.rand(1, 3, 40, 1203, dtype=torch.float64)
    expected = model(image)
    setattr(model, attribute, getattr(model, attribute) // 2)
    difference = (in_parts(model, image, TILE)[0] - expected).abs().max()
    assert difference > 1e-4 * expected.std()


def test_parts_cover_a_length_once_and_evenly() -> None:
    model = small()
    for length in (577, 1000, 10_000, 12_345):
        for scale in (1.0, 1.5):
            cut = parts(length, 1024, model, scale)
            assert [p.start for p in cut] == [0, *(p.stop for p in cut[:-1])]
            assert cut[-1].stop == length
            sizes = {p.stop - p.start for p in cut}
            assert max(sizes) - min(sizes) <= 1
    assert parts(1024, 1024, model) == [slice(0, 1024)]
    assert len(parts(1025, 1024, model)) == 3
    assert parts(5000, None, model) == [slice(0, 5000)]


def test_a_tile_too_small_is_refused_with_the_least_that_will_do() -> None:
    model = small(stride=8)
    with pytest.raises(ConfigError, match=r"tile=500 is too small: .* 245 pixels .* least 555"):
        parts(10_000, 500, model)
    assert parts(10_000, 555, model)
    with pytest.raises(ConfigError, match="tile=554"):
        parts(10_000, 554, model)


@pytest.mark.parametrize("scaled", [37, 50, 71])
def test_sampling_is_bilinear_interpolation_whole_or_in_part(scaled: int) -> None:
    score = torch.rand(1, 2, scaled, 3, dtype=torch.float64)
    expected = F.interpolate(score, (50, 3), mode="bilinear")
    torch.testing.assert_close(sample(score, places(slice(0, 50), 50, scaled), -2), expected)
    part = slice(13, 29)
    at = places(part, 50, scaled)
    needed = around(at, scaled)
    torch.testing.assert_close(
        sample(score[..., needed, :], at - needed.start, -2), expected[..., part, :]
    )
