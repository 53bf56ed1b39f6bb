"""The network: its parts, its sizes, its input, and what must not change its scores."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.vgg import cfgs, make_layers

from fcn.models import fast_forms as speed
from fcn.models.fcn import FCN
from fcn.models.upsampling import UPSAMPLINGS
from fcn.models.vgg import VARIANTS, WideConv2d
from tests.conftest import random_model, small

SIZES = [(1, 1), (1, 33), (2, 7), (31, 32), (33, 47), (64, 64), (97, 131)]


@pytest.mark.parametrize("padding", ["aligned", 100])
@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_scores_have_the_images_own_size(stride: int, padding: int | str, upsampling: str) -> None:
    model = small(stride=stride, padding=padding, upsampling=upsampling).eval()
    with torch.inference_mode():
        for height, width in SIZES:
            assert model(torch.rand(1, 3, height, width)).shape == (1, 5, height, width)


@pytest.mark.parametrize(
    ("stride", "parts"),
    [
        (32, ["score_fr", "upscore"]),
        (16, ["score_fr", "upscore2", "score_pool4", "upscore16"]),
        (8, ["score_fr", "upscore2", "score_pool4", "upscore_pool4", "score_pool3", "upscore8"]),
    ],
)
def test_parts_are_named_as_in_the_paper(stride: int, parts: list[str]) -> None:
    model = small(stride=stride)
    assert [name for name, _ in model.named_children()] == ["backbone", "head", *parts]
    assert model.upscore_final is model.get_submodule(parts[-1])


@pytest.mark.parametrize("backbone", VARIANTS)
def test_every_backbone_has_torchvisions_layers(backbone: str) -> None:
    model, plain = small(backbone=backbone, width=8), backbone.removesuffix("_bn")
    layout = {"mini": "A", "vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}[plain]
    with torch.device("meta"):
        theirs = make_layers(cfgs[layout], batch_norm=backbone.endswith("_bn") or plain == "mini")
    nets = (model.backbone, theirs)
    ours, wanted = (" ".join(type(layer).__name__ for layer in net) for net in nets)
    assert ours == wanted.replace("ReLU MaxPool2d", "MaxPool2d ReLU")
    for own, other in zip(model.backbone, theirs, strict=True):
        if isinstance(own, nn.Conv2d):
            assert (8 * own.out_channels, own.kernel_size) == (other.out_channels, (3, 3))
    convolutions = [n for n, m in model.backbone.named_children() if isinstance(m, nn.Conv2d)]
    if backbone == "vgg16":
        stages = [(1, 2), (2, 2), (3, 3), (4, 3), (5, 3)]
        assert convolutions == [f"conv{s}_{i}" for s, n in stages for i in range(1, n + 1)]


def test_the_full_network_has_the_papers_parameters() -> None:
    with torch.device("meta"):
        model = FCN(stride=8, padding=100, upsampling="learned")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["head.fc6.weight"] == (4096, 512, 7, 7)
    assert shapes["head.fc7.weight"] == (4096, 4096, 1, 1)
    assert shapes["score_fr.weight"] == (21, 4096, 1, 1)
    assert shapes["score_pool4.weight"] == (21, 512, 1, 1)
    assert shapes["score_pool3.weight"] == (21, 256, 1, 1)
    assert shapes["upscore2.weight"] == shapes["upscore_pool4.weight"] == (21, 21, 4, 4)
    assert shapes["upscore8.weight"] == (21, 21, 16, 16)
    vgg16, scores = 134_260_544, 21 * (4096 + 512 + 256) + 3 * 21
    assert sum(p.numel() for p in model.parameters()) == vgg16 + scores + 21 * 21 * (16 + 16 + 256)


def test_scores_start_at_zero() -> None:
    assert torch.equal(small()(torch.rand(1, 3, 40, 50)), torch.zeros(1, 5, 40, 50))


def test_uint8_images_score_as_floats_of_0_to_1_do() -> None:
    model = random_model()
    image = torch.randint(256, (2, 3, 45, 70), dtype=torch.uint8)
    torch.testing.assert_close(model(image), model(image / 255), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="255"):
        model(image.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_float_outside_0_to_1_is_an_error(dtype: torch.dtype) -> None:
    """One pixel of it is enough; what rounds to a level of 8 bits is none."""
    model, image = small(), torch.rand(2, 3, 9, 8).to(dtype)
    for value in (-1.0, -0.01, 1.01, 255.0, torch.nan, -torch.inf, torch.inf):
        image[1, 2, 3, 4] = value
        with pytest.raises(ValueError, match=r"a float image must be in \[0, 1\], got") as error:
            model(image)
        assert "\n" not in str(error.value)
    for value in (-0.001, 1.001):
        image[1, 2, 3, 4] = value
        assert model(image).shape == (2, 5, 9, 8)


def test_another_shape_than_a_batch_or_another_type_is_an_error() -> None:
    model, shapes = small(), [(3, 40, 50), (40, 50), (1, 1, 3, 9, 9), (1, 4, 40, 50), (1, 9, 9, 3)]
    others: list[Any] = [np.zeros((1, 3, 9, 9), np.uint8), np.zeros((9, 9, 3)), [[0.5]], None]
    for image in [*map(torch.rand, shapes), *others]:
        with pytest.raises(ValueError, match=r"image must be \(B, 3, H, W\), got") as error:
            model(image)
        assert "\n" not in str(error.value)
    for dtype in (torch.int64, torch.int16, torch.uint16, torch.bool):
        with pytest.raises(ValueError, match="must be uint8, or float"):
            model(torch.ones(1, 3, 8, 8, dtype=dtype))


def test_an_image_in_a_batch_scores_as_it_does_alone() -> None:
    model = random_model()
    images = torch.rand(3, 3, 45, 70)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, atol=1e-5, rtol=1e-5)


def test_at_once_scales_its_skips() -> None:
    """The scaled network equals an unscaled one whose skip layers are scaled instead."""
    scales = {"pool4": 0.01, "pool3": 0.0001}
    plain, scaled = random_model(), small(skip_scales=scales).eval()
    scaled.load_state_dict(plain.state_dict())
    for pool, scale in scales.items():
        plain.get_submodule(f"score_{pool}").weight.data *= scale
    image = torch.rand(1, 3, 64, 80)
    torch.testing.assert_close(scaled(image), plain(image), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_arguments_and_weights_give_the_same_network_again(upsampling: str) -> None:
    """The mean and std of images are stored with the weights."""
    model = random_model(
        stride=16, upsampling=upsampling, padding=100, backbone="vgg11_bn", mean=(0.1, 0.2, 0.3)
    )
    again = FCN(**model.arguments).eval()
    again.load_state_dict(model.state_dict())
    assert again.arguments == model.arguments
    image = torch.rand(1, 3, 32, 40)
    assert torch.equal(again(image), model(image))


@pytest.mark.parametrize(
    "arguments",
    [
        {"stride": 12},
        {"padding": 50},
        {"backbone": "resnet50"},
        {"width": 0},
        {"head_width": 0},
        {"mean": (0.5, 0.5)},
        {"num_classes": 1},
        {"stride": 16, "skip_scales": {"pool3": 0.1}},
    ],
)
def test_an_argument_outside_its_range_is_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=list(arguments)[-1]):
        small(**arguments)


@pytest.mark.parametrize(("side", "pad"), [(7, 3), (7, 0), (1, 0)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_wide_convolution_is_a_convolution(
    side: int, pad: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "WIDE", 9)  # so that this one is computed as a product
    layer = WideConv2d(5, 9, side, padding=pad)
    layer.to(memory_format=layout)
    for height, width in ((7, 7), (8, 13), (20, 7)):
        image = torch.randn(3, 5, height, width).to(memory_format=layout).requires_grad_()
        found, wanted = layer(image), F.conv2d(image, layer.weight, layer.bias, padding=pad)
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)
        inputs, slope = (image, *layer.parameters()), torch.randn_like(wanted)
        ours, theirs = (torch.autograd.grad(y, inputs, slope) for y in (found, wanted))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_a_mean_and_std_of_integers_change_nothing() -> None:
    image = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(
        FCN(backbone="mini", mean=(0, 0, 0), std=(1, 1, 1)).normalise(image), image
    )
