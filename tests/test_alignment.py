"""Where outputs lie and how far they see: by hand, and measured on whole networks."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from fcn.models.alignment import CoordinateMap, coordinate_map, transposed, window
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
    assert window(3, 1, 1) == CoordinateMap()
    assert window(2, 2) == CoordinateMap(Fraction(2), Fraction(1, 2))
    assert window(7) == CoordinateMap(Fraction(1), Fraction(3))
    assert window(3, 1, 0, dilation=2) == CoordinateMap(Fraction(1), Fraction(2))
    assert transposed(4, 2) == CoordinateMap(Fraction(1, 2), Fraction(-3, 4))


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 1, 5, stride=3, padding=2), nn.MaxPool2d(2, 2)])
def test_an_impulse_lands_where_the_map_says(layer: nn.Module) -> None:
    """The outputs that see one input pixel are centred on it."""
    position = 21
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, position, position] = 1
    if isinstance(layer, nn.Conv2d):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    seen = layer(image)[0, 0].sum(0).nonzero().flatten().float()
    coordinates = coordinate_map(layer)
    places = seen * float(coordinates.scale) + float(coordinates.offset)
    assert (places - position).abs().max() <= 2.5


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
    assert transposed(4, 2).reach == Fraction(3, 4)


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
        window(2, 2).index_in(window(4, 4))
    with pytest.raises(TypeError, match="LSTM"):
        coordinate_map(nn.LSTM(1, 1))
    assert coordinate_map(FixedUpsampling(2)).scale == Fraction(1, 2)
