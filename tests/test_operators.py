"""The laws that `explain` tells, against SciPy, torch and autograd."""

import numpy as np
import scipy.ndimage
import scipy.signal
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fcn.explain import operators as op
from fcn.models.upsampling import bilinear_kernel, kernel_size

close = np.testing.assert_allclose
law = settings(deadline=None, max_examples=60)
sides, taps, strides = st.integers(1, 7), st.integers(1, 5), st.integers(1, 4)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)[None, None]


@law
@given(h=sides, w=sides, k=taps, m=taps)
def test_the_matrix_is_the_convolution_and_its_transpose_the_gradient(h, w, k, m) -> None:
    assume(k <= h and m <= w)
    kernel, x, y = random(k, m), random(h, w), random(h - k + 1, w - m + 1)
    matrix = op.convolution_matrix(kernel, (h, w))
    image = tensor(x).requires_grad_()
    result = F.conv2d(image, tensor(kernel))
    close(matrix @ x.ravel(), result.detach().numpy().ravel(), atol=1e-12)
    close(matrix @ x.ravel(), scipy.signal.correlate2d(x, kernel, "valid").ravel(), atol=1e-12)
    (gradient,) = torch.autograd.grad(result, image, tensor(y))
    close(matrix.T @ y.ravel(), gradient.numpy().ravel(), atol=1e-12)


@law
@given(n=sides, k=taps, s=strides, p=st.integers(0, 3))
def test_sizes_are_those_of_torch(n, k, s, p) -> None:
    assume(n + 2 * p >= k)
    down = F.conv1d(torch.ones(1, 1, n), torch.ones(1, 1, k), stride=s, padding=p)
    assert op.output_size(n, k, s, p) == down.shape[-1]
    assume(op.transposed_size(n, k, s, p) >= 1)
    up = F.conv_transpose1d(torch.ones(1, 1, n), torch.ones(1, 1, k), stride=s, padding=p)
    assert op.transposed_size(n, k, s, p) == up.shape[-1]


@law
@given(h=sides, w=sides, k=taps, m=taps, s=strides)
def test_stamping_and_zero_insertion_are_torchs_transposed_convolution(h, w, k, m, s) -> None:
    kernel, x = random(k, m), random(h, w)
    expected = F.conv_transpose2d(tensor(x), tensor(kernel), stride=s)[0, 0].numpy()
    close(op.transposed_by_insertion(x, kernel, s), expected, atol=1e-12)
    close(op.transposed_by_stamping(x, kernel, s)[0], expected, atol=1e-12)
    full = scipy.signal.convolve2d(op.insert_zeros(x, s), kernel, "full")
    close(expected, full, atol=1e-12)


def test_stamps_of_ones_by_hand() -> None:
    result, stamps = op.transposed_by_stamping(np.array([[1.0, 2], [3, 4]]), np.ones((3, 3)), 2)
    assert result[:4, :4].tolist() == [[1, 1, 3, 2], [1, 1, 3, 2], [4, 4, 10, 6], [3, 3, 7, 4]]
    assert [stamp.sum() for stamp in stamps] == [9, 18, 27, 36]


@law
@given(outputs=sides, k=taps, s=strides)
def test_strided_dilated_and_transposed_convolution_in_one_notation(outputs, k, s) -> None:
    """With D keeping every s-th value: strided D C, transposed C^T D^T, dilated kernel D^T."""
    n = (outputs - 1) * s + k
    kernel, x, y = random(1, k), random(1, n + k * s), random(1, outputs)
    dense, down = op.convolution_matrix(kernel, (1, n)), op.downsampling_matrix(outputs, s)
    strided = F.conv2d(tensor(x[:, :n]), tensor(kernel), stride=s)
    close(down @ dense @ x[0, :n], strided[0, 0, 0], atol=1e-12)
    transposed = F.conv_transpose2d(tensor(y), tensor(kernel), stride=s)
    close(dense.T @ down.T @ y[0], transposed[0, 0, 0], atol=1e-12)
    spread = op.downsampling_matrix(k, s).T @ kernel[0]
    dilated = op.convolution_matrix(spread[None], x.shape)
    expected = F.conv2d(tensor(x), tensor(kernel), dilation=s)
    close(dilated @ x[0], expected[0, 0, 0], atol=1e-12)


@law
@given(n=st.integers(1, 8), k=taps, f=st.integers(1, 5))
def test_repeating_then_convolving_is_one_transposed_convolution(n, k, f) -> None:
    q, x = random(k), random(1, n)
    repeated = F.interpolate(torch.from_numpy(x)[None], scale_factor=f, mode="nearest")
    expected = F.conv1d(repeated, torch.from_numpy(q)[None, None], padding=k - 1)
    kernel = op.repeat_then_convolve(q, f)[None]
    close(op.transposed_by_stamping(x, kernel, f)[0], expected[0].numpy(), atol=1e-12)


def test_repeating_by_two_then_three_taps_by_hand() -> None:
    assert op.repeat_then_convolve(np.array([1.0, 10, 100]), 2).tolist() == [100, 110, 11, 1]


@law
@given(f=st.sampled_from([1, 2, 3, 4, 8, 16, 32]), h=st.integers(1, 6), w=st.integers(1, 6))
def test_bilinear_is_scipys_zoom_with_zeros_around_the_image(f, h, w) -> None:
    x, kernel = random(h, w), bilinear_kernel(kernel_size(f)).double().numpy()
    close(kernel, np.outer(kernel.sum(0), kernel.sum(0)) / f**2, atol=1e-6)  # separable
    result = op.transposed_by_stamping(x, kernel, f)[0]
    zoomed = scipy.ndimage.zoom(np.pad(x, 2), f, order=1, mode="grid-constant", grid_mode=True)
    start = (3 * f + f % 2) // 2  # the result begins more than half an input before the first
    same = zoomed[start : start + result.shape[0], start : start + result.shape[1]]
    close(result, same, atol=1e-6)


@law
@given(k=st.integers(1, 12), s=st.integers(1, 6))
def test_the_ripple_of_a_constant_is_what_the_filter_lets_through(k, s) -> None:
    kernel = random(k)
    sums = op.phase_sums(kernel, s)
    constant = op.transposed_by_stamping(np.ones((1, 30)), kernel[None], s)[0][0]
    close(np.sort(constant[12 * s : 13 * s]), np.sort(sums), atol=1e-12)
    close(op.frequency_response(kernel, np.arange(s) / s), np.abs(np.fft.fft(sums)), atol=1e-12)
    w, h = scipy.signal.freqz(kernel, worN=16)
    close(op.frequency_response(kernel, w / 2 / np.pi), np.abs(h), atol=1e-12)


@law
@given(k=st.integers(1, 12), s=st.integers(1, 6))
def test_taps_overlap_evenly_if_and_only_if_the_stride_divides_the_kernel(k, s) -> None:
    counts = op.overlap(k, s, 30)[12 * s : 13 * s]
    assert (np.ptp(counts) == 0) == (k % s == 0)
