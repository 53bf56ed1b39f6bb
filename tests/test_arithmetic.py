"""Every form of every layer against float64, gradients included, with nothing left unwritten.

Fresh memory holds a large number here, where glibc is the C library: what a kernel leaves
uninitialised shows as a huge error.
"""

import copy
import ctypes
import sys
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn.device import M_MMAP_MAX, M_TRIM_THRESHOLD, keep_memory
from fcn.models.fast_forms import WIDE
from fcn.models.fcn import FCN
from fcn.models.upsampling import FixedUpsampling, bilinear_kernel, make_upsampling
from fcn.models.vgg import WideConv2d

M_PERTURB = -6  # of glibc's malloc.h: fresh memory is filled with the complement of a byte
LIMIT = {"32-true": 2e-5, "bf16-mixed": 0.01}  # of the largest value
PRECISIONS = [pytest.param("32-true", marks=pytest.mark.slow), "bf16-mixed"]
MAPS = [*product((1, 2, 3), (1, 2, 5)), (1, 40), (2, 40), (40, 1), (4, 7)]
IMAGES = [*product((1, 2, 33), (1, 2, 33)), (1, 97), (97, 1), (64, 97)]
FACTORS = {2: 21, 8: 5, 32: 2}  # and so many classes

# Inputs, outputs, kernel and padding of: fc6 of mini, of narrow and wide heads, and behind a
# padding of 100; fc7; scores.
WIDE_LAYERS = [
    (128, 256, 7, 3), (128, 16, 7, 3), (512, 24, 7, 3), (32, 8, 7, 3), (8, WIDE, 7, 3),
    (128, 16, 7, 0), (8, WIDE, 7, 0),
    (16, 16, 1, 0), (256, 256, 1, 0), (4096, 64, 1, 0), (64, 4096, 1, 0),
    (16, 5, 1, 0), (256, 2, 1, 0), (512, 21, 1, 0), (4096, 2, 1, 0), (4096, 15, 1, 0),
]  # fmt: skip
BACKBONE_LAYERS = [
    (3, 16, 3, 1), (3, 64, 3, 1), (1, 4, 3, 1), (12, 64, 3, 1), (16, 32, 3, 1), (128, 128, 3, 1),
    (3, 16, 3, 100), (12, 64, 3, 100),
]  # fmt: skip


def fill_fresh_memory(byte: int | None) -> None:
    """Let every allocation hold a byte, or whatever it holds."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(M_PERTURB, 0 if byte is None else byte ^ 0xFF)


@pytest.fixture
def dirty_memory() -> Iterator[None]:
    keep_memory()
    fill_fresh_memory(0x7F)  # 3.4e38, in float32 as in bfloat16
    if sys.platform == "linux":
        assert all(float(torch.empty(2**n)[-1]) > 3e38 for n in range(9, 22))
    yield
    fill_fresh_memory(None)
    if sys.platform == "linux":  # glibc's defaults
        ctypes.CDLL(None).mallopt(M_MMAP_MAX, 2**16)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2**17)


def convolution(layer: nn.Conv2d, image: Tensor) -> Tensor:
    return F.conv2d(image, layer.weight, layer.bias, padding=layer.padding)


def own_form(layer: nn.Module, image: Tensor) -> Tensor:
    return layer(image)


def bilinear(layer: FixedUpsampling, score: Tensor) -> Tensor:
    """Fixed upsampling as the paper has it: a transposed convolution."""
    kernels = bilinear_kernel(layer.kernel).to(score).expand(score.shape[1], 1, -1, -1)
    return F.conv_transpose2d(score, kernels, stride=layer.factor, groups=score.shape[1])


def with_gradients(form, layer, image, slope, *, bf16=False) -> dict:  # type: ignore[no-untyped-def,type-arg]
    image = image.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        result = form(layer, image)
    wanted = {"input": image, **dict(layer.named_parameters())}
    found = torch.autograd.grad(result, list(wanted.values()), slope.to(result.dtype))
    return {"output": result.detach()} | dict(zip(wanted, found, strict=True))


def worst_error(layer: nn.Module, image: Tensor, precision: str, reference) -> float:  # type: ignore[no-untyped-def]
    """The largest error of the output, in training and inference, and of all gradients.

    Each over the largest value in float64, where a layer meets the same rounded inputs and weights.
    """
    bf16 = precision == "bf16-mixed"
    dtype = torch.bfloat16 if bf16 else torch.float32
    rounded, image = copy.deepcopy(layer).to(dtype), image.to(dtype).float()
    exact, own = copy.deepcopy(rounded).double(), copy.deepcopy(rounded).float()
    with torch.no_grad():
        slope = torch.randn_like(reference(exact, image.double().contiguous())).to(dtype)
    expected = with_gradients(reference, exact, image.double().contiguous(), slope)
    found = with_gradients(own_form, own, image, slope, bf16=bf16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        at_inference = rounded if isinstance(layer, nn.Conv2d) else own
        found["inference"] = at_inference(image)
    expected["inference"] = expected["output"]
    errors = [
        (found[name].double() - value).abs().nan_to_num(nan=1e38, posinf=1e38).max()
        / value.abs().max().clamp(min=1e-30)
        for name, value in expected.items()
    ]
    return float(max(errors))


def worst_over(layers, maps, precision, reference, batches=(1, 3)) -> dict:  # type: ignore[no-untyped-def,type-arg]
    """The worst error over the grid, and every cell beyond the limit."""
    wrong, worst, cells = {}, 0.0, 0
    for (name, channels, layer), (h, w), batch in product(layers, maps, batches):
        side = layer.kernel_size[0] - 2 * layer.padding[0] if isinstance(layer, nn.Conv2d) else 1
        if min(h, w) < side:  # behind a padding of 100 maps are larger
            h, w = h + side - 1, w + side - 1
        image = torch.randn(batch, channels, h, w)
        if layout := cells % 2:
            image = image.contiguous(memory_format=torch.channels_last)
        error, cells = worst_error(layer, image, precision, reference), cells + 1
        if error > LIMIT[precision]:
            wrong[name, (batch, h, w), layout] = error
        else:
            worst = max(worst, error)
    print(f"{cells} cells in {precision}, worst error {worst:.2g}, {len(wrong)} wrong")
    return wrong


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.usefixtures("dirty_memory")
def test_wide_convolutions_are_exact_for_every_size(precision: str) -> None:
    layers = [(s, s[0], WideConv2d(s[0], s[1], s[2], padding=s[3])) for s in WIDE_LAYERS]
    small = [(s, c, layer) for s, c, layer in layers if layer.weight.numel() < 300_000]
    large = [(s, c, layer) for s, c, layer in layers if layer.weight.numel() >= 300_000]
    assert not worst_over(small, MAPS, precision, convolution)
    assert not worst_over(large, MAPS[::2], precision, convolution, batches=(2,))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.usefixtures("dirty_memory")
def test_convolutions_of_the_backbone_are_exact_in_either_layout(precision: str) -> None:
    layers = [(s, s[0], nn.Conv2d(s[0], s[1], s[2], padding=s[3])) for s in BACKBONE_LAYERS]
    padded = [(s, c, layer) for s, c, layer in layers if s[3] == 100]
    assert not worst_over(layers[: -len(padded)], IMAGES, precision, convolution, batches=(2,))
    assert not worst_over(padded, [(1, 1), (2, 33), (97, 3)], precision, convolution, batches=(1,))


@pytest.mark.parametrize("precision", list(LIMIT))
@pytest.mark.usefixtures("dirty_memory")
def test_upsampling_is_exact_for_every_size(precision: str) -> None:
    """Under autocast too it computes in float32, from scores of either precision."""
    # The other choices are made of these.
    for choice in ("fixed", "learned", "learned_channelwise", "nearest_conv", "interpolate"):
        layers = []
        for factor, classes in FACTORS.items():
            layer = make_upsampling(choice, factor, classes, final=True)
            for parameter in layer.parameters():
                nn.init.normal_(parameter)
            layers.append(((choice, factor), classes, layer))
        reference = bilinear if choice == "fixed" else own_form
        assert not worst_over(layers, [(1, 1), (1, 5), (2, 3), (4, 1)], precision, reference)


NETWORKS = [
    {"backbone": "mini"},
    {"backbone": "mini", "upsampling": "learned", "in_channels": 5, "stride": 16},
    {"backbone": "vgg11", "upsampling": "nonlinear", "head_width": 512},
    {"backbone": "vgg11", "head_width": WIDE, "num_classes": 21},
    {"backbone": "vgg11_bn", "upsampling": "nearest_conv", "stride": 32},
    {"backbone": "vgg16", "padding": 100, "upsampling": "cvpr15", "head_width": 64},
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("arguments", NETWORKS, ids=lambda a: a["backbone"])
@pytest.mark.usefixtures("dirty_memory")
def test_scores_and_gradients_do_not_depend_on_what_memory_held(
    arguments: dict, precision: str
) -> None:
    """Of whole networks in training, bit for bit."""
    model = FCN(**{"num_classes": 5, "width": 16, "head_width": 256, "dropout": 0.0} | arguments)
    for layer in (
        model.score_fr,
        *(getattr(model, f"score_{p}", None) for p in ("pool4", "pool3")),
    ):
        if layer is not None:
            nn.init.normal_(layer.weight, std=0.1)
    start = copy.deepcopy(model.state_dict())
    for batch, height, width in ((2, 1, 1), (2, 40, 97), (3, 64, 64), (2, 97, 2)):
        image = torch.randint(256, (batch, model.in_channels, height, width), dtype=torch.uint8)
        results = []
        for byte in (0x7F, 0x3F):  # 3.4e38 and 0.75
            fill_fresh_memory(byte)
            model.load_state_dict(start)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                score = model(image)
            found = torch.autograd.grad(score.square().mean(), list(model.parameters()))
            results.append((score.detach(), *found))
        names = ["score", *(name for name, _ in model.named_parameters())]
        differ = [n for n, a, b in zip(names, *results, strict=True) if not torch.equal(a, b)]
        assert not differ, (batch, height, width)
        assert all(tensor.isfinite().all() for tensor in results[0])
