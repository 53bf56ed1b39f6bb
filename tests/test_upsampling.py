import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fcn.models.upsampling import (
    UPSAMPLINGS,
    FixedUpsampling,
    LearnedUpsampling,
    bilinear_kernel,
    kernel_size,
    make_upsampling,
)


def test_bilinear_kernel_of_4_by_hand() -> None:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    assert torch.equal(bilinear_kernel(4) * 16, taps.outer(taps))
    assert {float(v * 16) for v in bilinear_kernel(4).flatten()} == {1.0, 3.0, 9.0}


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
    """Borders included, and for any window of it; forward and backward."""
    score = torch.randn(2, classes, height, width, requires_grad=True)
    kernel = bilinear_kernel(kernel_size(factor)).repeat(classes, 1, 1, 1)
    dense = F.conv_transpose2d(score, kernel, stride=factor, groups=classes)
    offset = data.draw(st.integers(0, min(dense.shape[2:]) - 1))
    size = (dense.shape[2] - offset, dense.shape[3] - offset)
    expected = dense[..., offset:, offset:]
    result = FixedUpsampling(factor)(score, offset, size)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    upstream = torch.randn_like(result)
    ours, theirs = (torch.autograd.grad(y, score, upstream)[0] for y in (result, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("channelwise", [False, True])
@pytest.mark.parametrize("factor", [2, 3, 8])
def test_learned_starts_as_bilinear(channelwise: bool, factor: int) -> None:
    score = torch.randn(2, 3, 5, 4)
    learned = LearnedUpsampling(factor, 3, channelwise=channelwise)
    torch.testing.assert_close(learned(score, 1, (6, 5)), FixedUpsampling(factor)(score, 1, (6, 5)))


def test_a_linear_ramp_stays_a_ramp_inside() -> None:
    ramp = torch.arange(8.0).repeat(8, 1)[None, None]
    up = FixedUpsampling(4)(ramp)[0, 0, 16, 8:-8]
    torch.testing.assert_close(up.diff(), torch.full((up.numel() - 1,), 0.25))


def test_choices_train_what_they_say() -> None:
    trainable = {
        name: [
            sum(p.numel() for p in make_upsampling(name, factor, 5, final=final).parameters())
            for factor, final in ((2, False), (8, True))
        ]
        for name in UPSAMPLINGS
    }
    assert trainable["fixed"] == [0, 0]
    assert trainable["learned"] == [5 * 5 * 4 * 4, 5 * 5 * 16 * 16]
    assert trainable["learned_channelwise"] == [5 * 4 * 4, 5 * 16 * 16]
    assert trainable["cvpr15"] == [5 * 5 * 4 * 4, 0]


def test_fixed_stores_nothing() -> None:
    assert not FixedUpsampling(8).state_dict()


def test_errors_name_the_value_and_the_choices() -> None:
    with pytest.raises(ValueError, match=r"fixed, learned.*got 'bicubic'"):
        make_upsampling("bicubic", 2, 5, final=False)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        bilinear_kernel(0)
