"""Where outputs lie and how far they see: by hand, and measured on whole networks."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from fcn.models.alignment import CoordinateMap, coordinate_map
from fcn.models.fcn import FCN
from fcn.models.upsampling import FixedUpsampling


@pytest.mark.parametrize(
    ("stride", "crops"),
    [
        (32, {"score": 19}),
        (16, {"score_pool4": 5, "score": 27}),
        (8, {"score_pool4": 5, "score_pool3": 9, "score": 31}),
    ],
)
def test_the_authors_crop_offsets_come_out(stride: int, crops: dict[str, int]) -> None:
    assert FCN(stride=stride, padding=100, width=4, head_width=8).crops == crops


def test_maps_of_single_layers_by_hand() -> None:
    assert coordinate_map(nn.Conv2d(1, 1, 3, padding=1)) == CoordinateMap()
    assert coordinate_map(nn.MaxPool2d(2, 2)) == CoordinateMap(Fraction(2), Fraction(1, 2))
    assert coordinate_map(nn.Conv2d(1, 1, 7)) == CoordinateMap(Fraction(1), Fraction(3))
    dilated = nn.Conv2d(1, 1, 3, dilation=2)
    assert coordinate_map(dilated) == CoordinateMap(Fraction(1), Fraction(2))
    upsampled = coordinate_map(FixedUpsampling(2))
    assert upsampled == CoordinateMap(Fraction(1, 2), Fraction(-3, 4))
    assert upsampled.reach == Fraction(3, 4)


@pytest.mark.parametrize("padding", ["aligned", 100])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_scores_lie_on_their_pixels(stride: int, padding: int | str) -> None:
    """If every feature is the pixel's own coordinate, so is the score, away from the boundary.

    Pools average over their window, so a shift by one pixel anywhere shows.
    """
    model = FCN(stride=stride, num_classes=2, padding=padding, width=1, head_width=1).eval()
    model.mean.zero_()
    model.std.fill_(1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            middle = module.kernel_size[0] // 2
            module.weight.data[:, :1, middle, middle] = 1
            nn.init.zeros_(module.bias)
    model.backbone = Averaging(model.backbone)
    ramp = torch.arange(416.0).repeat(416, 1) / 416  # an image is in [0, 1]
    score = model(ramp.expand(1, 3, 416, 416))[0, 0] / len(model.crops)
    inside = slice(128, -128)
    torch.testing.assert_close(score[inside, inside], ramp[inside, inside], atol=2e-5, rtol=0)


@pytest.mark.parametrize("padding", ["aligned", 100])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_a_score_sees_as_far_as_its_reach_and_no_further(stride: int, padding: int | str) -> None:
    """With every weight positive, the gradient of a score shows which pixels it depends on."""
    model = FCN(stride=stride, num_classes=2, padding=padding, width=1, head_width=1)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 1)
    model.eval().double().backbone = Averaging(model.backbone)
    image = torch.rand(1, 3, 1, 640, dtype=torch.float64, requires_grad=True)
    score = model(image)[0, 0, 0]
    furthest = []
    for x in range(304, 304 + model.period):
        (gradient,) = torch.autograd.grad(score[x], image, retain_graph=True)
        seen = gradient[0, 0, 0].nonzero().flatten()
        furthest.append(int((seen - x).abs().max()))
    assert max(furthest) == model.reach
    assert model.period == 32


def test_the_reach_of_fc6_is_half_its_receptive_field() -> None:
    """404 pixels for VGG16, as in the paper."""
    model = FCN(width=1, head_width=1)
    grid = coordinate_map(model.backbone).then(coordinate_map(model.head))
    assert (grid.scale, 2 * grid.reach + 1) == (32, 404)


class Averaging(nn.Module):
    """A backbone with mean instead of max pooling: linear, so that a ramp stays a ramp."""

    def __init__(self, backbone: nn.Sequential) -> None:
        super().__init__()
        self.layers = backbone

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        pools = []
        for layer in self.layers:
            if isinstance(layer, nn.MaxPool2d):
                layer = nn.AvgPool2d(2, 2, ceil_mode=True)
                pools.append(image := layer(image))
            else:
                image = layer(image)
        return pools[2:]


def test_grids_that_cannot_meet_are_an_error() -> None:
    with pytest.raises(ValueError, match="do not lie on one grid"):
        CoordinateMap(Fraction(2)).index_in(CoordinateMap(Fraction(4)))
    with pytest.raises(TypeError, match="LSTM"):
        coordinate_map(nn.LSTM(1, 1))
