"""Upsampling layers against torch's own operators, scipy, and each other."""

import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fcn.device import InferenceModel
from fcn.models.alignment import coordinate_map
from fcn.models.upsampling import (
    UPSAMPLINGS,
    FixedUpsampling,
    InterpolateUpsampling,
    LearnedUpsampling,
    NearestConvUpsampling,
    NonlinearUpsampling,
    Upsampling,
    bilinear_kernel,
    kernel_size,
    make_upsampling,
)
from tests.conftest import small


def test_bilinear_kernel_of_4_by_hand() -> None:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    assert torch.equal(bilinear_kernel(4) * 16, taps.outer(taps))


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8, 16, 32])
def test_taps_that_meet_a_pixel_sum_to_one(factor: int) -> None:
    kernel = bilinear_kernel(kernel_size(factor))
    for y in range(factor):
        for x in range(factor):
            assert kernel[y::factor, x::factor].sum() == pytest.approx(1, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    factor=st.sampled_from([1, 2, 3, 8, 16, 32]),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    classes=st.integers(1, 4),
    data=st.data(),
)
def test_fixed_is_the_dense_transposed_convolution(
    factor: int, height: int, width: int, classes: int, data: st.DataObject
) -> None:
    """At the boundary too, and for any window of it; forward and backward."""
    score = torch.randn(2, classes, height, width, requires_grad=True)
    kernel = bilinear_kernel(kernel_size(factor)).repeat(classes, 1, 1, 1)
    dense = F.conv_transpose2d(score, kernel, stride=factor, groups=classes)
    offset = data.draw(st.integers(0, min(dense.shape[2:]) - 1))
    size = (dense.shape[2] - offset, dense.shape[3] - offset)
    expected = dense[..., offset:, offset:]
    layer = FixedUpsampling(factor)
    result = layer(score, offset, size)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    with torch.no_grad():  # computed in another form
        torch.testing.assert_close(layer(score, offset, size), result, atol=1e-5, rtol=0)
    upstream = torch.randn_like(result)
    ours, theirs = (torch.autograd.grad(y, score, upstream)[0] for y in (result, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("choice", ["learned", "learned_channelwise", "cvpr15", "nearest_conv"])
@pytest.mark.parametrize("factor", [2, 3, 8, 32])
def test_learned_layers_start_as_bilinear(choice: str, factor: int) -> None:
    score = torch.randn(2, 3, 5, 4)
    learned, fixed = make_upsampling(choice, factor, 3, final=False), FixedUpsampling(factor)
    torch.testing.assert_close(learned(score), fixed(score), atol=1e-5, rtol=0)
    window = fixed(score)[..., 1:7, 1:6]
    torch.testing.assert_close(learned(score, 1, (6, 5)), window, atol=1e-5, rtol=0)


@pytest.mark.parametrize("choice", UPSAMPLINGS)
@pytest.mark.parametrize("factor", [2, 8])
def test_a_ramp_stays_a_ramp_where_the_coordinate_map_says(choice: str, factor: int) -> None:
    """All start bilinear inside, and each output lies where alignment.py places it."""
    layer = make_upsampling(choice, factor, 2, final=True)
    there = coordinate_map(layer)
    score = torch.arange(12.0).repeat(1, 2, 12, 1)
    result = layer(score)[0, 1, 6 * factor]
    assert result.numel() == 11 * factor + layer.kernel
    x = torch.arange(result.numel()) * float(there.scale) + float(there.offset)
    inside = (x > 2) & (x < 9)
    torch.testing.assert_close(result[inside], x[inside].float(), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=40)
@given(
    factor=st.sampled_from([2, 3, 4, 8]), h=st.integers(1, 5), w=st.integers(1, 5), data=st.data()
)
def test_nearest_conv_is_nearest_neighbour_then_a_convolution(
    factor: int, h: int, w: int, data: st.DataObject
) -> None:
    layer = NearestConvUpsampling(factor, 3).double()
    torch.nn.init.normal_(layer.weight)
    score = torch.randn(2, 3, h, w, dtype=torch.float64, requires_grad=True)
    repeated = F.interpolate(score, scale_factor=factor, mode="nearest")
    expected = F.conv2d(repeated, layer.weight, padding=layer.weight.shape[-1] - 1)
    offset = data.draw(st.integers(0, factor))
    result, expected = layer(score, offset), expected[..., offset:, offset:]
    torch.testing.assert_close(result, expected)
    upstream = torch.randn_like(result)
    inputs = (score, layer.weight)
    ours, theirs = (torch.autograd.grad(y, inputs, upstream) for y in (result, expected))
    torch.testing.assert_close(ours, theirs)


def test_nearest_conv_cannot_produce_the_checkerboards_that_a_transposed_convolution_can() -> None:
    constant = torch.ones(1, 3, 6, 6)
    for layer, even in ((NearestConvUpsampling(4, 3), True), (LearnedUpsampling(4, 3), False)):
        torch.nn.init.normal_(layer.weight)
        inside = layer(constant)[..., 8:-8, 8:-8]
        unevenness = (inside.amax((-2, -1)) - inside.amin((-2, -1))).max()
        assert (unevenness < 1e-4) == even


@settings(deadline=None, max_examples=30)
@given(factor=st.sampled_from([2, 3, 8]), h=st.integers(1, 6), w=st.integers(1, 6))
def test_interpolate_repeats_the_outermost_scores_and_equals_fixed_inside(
    factor: int, h: int, w: int
) -> None:
    score = torch.randn(1, 2, h, w, dtype=torch.float64)
    result = InterpolateUpsampling(factor)(score)
    margin = (result.shape[-1] - w * factor) // 2
    inner = result[..., margin : margin + h * factor, margin : margin + w * factor]
    zoomed = scipy.ndimage.zoom(
        score.numpy(), (1, 1, factor, factor), order=1, mode="nearest", grid_mode=True
    )
    torch.testing.assert_close(inner, torch.from_numpy(zoomed))
    fixed = FixedUpsampling(factor)(score)
    assert fixed.shape == result.shape
    inside = slice(factor, -factor)
    torch.testing.assert_close(result[..., inside, inside], fixed[..., inside, inside])


def test_nonlinear_is_doublings_in_a_row_until_a_score_falls_below_the_knee() -> None:
    layer, double = NonlinearUpsampling(8, 3), FixedUpsampling(2)
    high, low = torch.rand(1, 3, 4, 5), -1 - torch.rand(1, 3, 4, 5)
    torch.testing.assert_close(layer(high, 2, (9, 7)), double(double(double(high)))[..., 2:11, 2:9])
    inside = slice(14, -14)
    torch.testing.assert_close(layer(low)[..., inside, inside], -torch.ones(1, 3, 18, 26))


def test_nonlinear_learns_from_scores_of_zero() -> None:
    """A network's scores start at zero: ReLUs that bend there would pass no gradient."""
    score, layer = torch.zeros(1, 3, 4, 4, requires_grad=True), NonlinearUpsampling(8, 3)
    slope, *knees = torch.autograd.grad(layer(score).sum(), [score, *layer.knees])
    assert (slope > 60).all()
    assert len(knees) == 2


def test_choices_train_and_store_what_they_say() -> None:
    expected = {
        "fixed": [0, 0],
        "learned": [5 * 5 * 4 * 4, 5 * 5 * 16 * 16],
        "learned_channelwise": [5 * 4 * 4, 5 * 16 * 16],
        "cvpr15": [5 * 5 * 4 * 4, 0],
        "nonlinear": [5 * 5 * 4 * 4, 3 * 5 * 5 * 4 * 4 + 2 * 5],
        "nearest_conv": [5 * 5 * 3 * 3, 5 * 5 * 9 * 9],
        "interpolate": [0, 0],
    }
    for name in UPSAMPLINGS:
        layers = [make_upsampling(name, 2, 5, final=False), make_upsampling(name, 8, 5, final=True)]
        counts = [sum(p.numel() for p in layer.parameters()) for layer in layers]
        assert counts == expected[name], name
        assert bool(layers[1].state_dict()) == bool(counts[1])


def test_drift_is_zero_at_the_start_and_relative_to_the_bilinear_kernels() -> None:
    for channelwise in (False, True):
        layer = LearnedUpsampling(2, 3, channelwise=channelwise)
        assert layer.drift() == 0
        with torch.no_grad():
            layer.diagonal().mul_(1.5)
        assert layer.drift() == pytest.approx(0.5)


def test_unknown_choices_and_factors_are_errors() -> None:
    with pytest.raises(ValueError, match=r"fixed, learned.*'bicubic'.*upsampling\.py"):
        make_upsampling("bicubic", 2, 5, final=False)
    with pytest.raises(ValueError, match="got 0"):
        bilinear_kernel(0)
    with pytest.raises(ValueError, match="got 12"):
        NonlinearUpsampling(12, 5)


class Doubled(Upsampling):
    """Breaks the contract: its result is twice the size of the scores."""

    def full(self, score: Tensor) -> Tensor:
        return F.interpolate(score, scale_factor=2)


def test_a_registered_layer_is_a_choice_if_it_keeps_the_contract(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(UPSAMPLINGS, "mine", lambda factor, classes, final: FixedUpsampling(factor))
    assert isinstance(make_upsampling("mine", 3, 4, final=False), FixedUpsampling)
    monkeypatch.setitem(UPSAMPLINGS, "mine", lambda factor, classes, final: Doubled(factor))
    with pytest.raises(ValueError, match=r"Doubled\.full"):
        make_upsampling("mine", 2, 3, final=True)


class Smoothed(LearnedUpsampling):
    """A learned layer with a convolution after it, as a user may write one."""

    def __init__(self, factor: int, num_classes: int) -> None:
        super().__init__(factor, num_classes)
        self.smooth = nn.Conv2d(num_classes, num_classes, 1)

    def full(self, score: Tensor) -> Tensor:
        return self.smooth(super().full(score))


def test_a_convolution_inside_a_layer_stays_float32_at_bf16_inference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(UPSAMPLINGS, "smoothed", lambda f, k, final: Smoothed(f, k))
    model = InferenceModel(small(upsampling="smoothed"), torch.device("cpu"), "bf16-mixed")
    assert model.model.backbone.get_submodule("conv1_1").weight.dtype == torch.bfloat16
    assert model.model.upscore8.smooth.weight.dtype == torch.float32
    assert model.score(torch.rand(1, 3, 33, 40)).shape == (1, 5, 33, 40)
