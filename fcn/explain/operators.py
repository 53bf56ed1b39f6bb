"""Convolutions and their transposes as matrices and as index arithmetic, in plain NumPy.

Independent of torch, so that each can check the other. As in neural networks, a convolution does
not flip its kernel (it is a cross-correlation). Arrays have a single channel.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def output_size(n: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Return the number of outputs of a convolution over n inputs, along one axis."""
    return (n + 2 * padding - kernel) // stride + 1


def transposed_size(n: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Return the number of outputs of a transposed convolution over n inputs, along one axis."""
    return (n - 1) * stride + kernel - 2 * padding


def convolution_matrix(kernel: Floats, size: tuple[int, int]) -> Floats:
    """Return the matrix C with C x = convolution of x, both as columns in reading order.

    Args:
        kernel: (k, m).
        size: (h, w) of x.

    Returns:
        (outputs, h * w); row o holds the kernel's weights at the inputs that output o sees.
    """
    (k, m), (h, w) = kernel.shape, size
    rows, columns = output_size(h, k), output_size(w, m)
    matrix = np.zeros((rows, columns, h, w))
    for i, j in np.ndindex(rows, columns):
        matrix[i, j, i : i + k, j : j + m] = kernel
    return matrix.reshape(rows * columns, h * w)


def downsampling_matrix(n: int, step: int) -> Floats:
    """Return D (n, (n - 1) step + 1), which keeps every step-th value; D^T inserts zeros."""
    matrix = np.zeros((n, (n - 1) * step + 1))
    matrix[np.arange(n), np.arange(n) * step] = 1
    return matrix


def insert_zeros(x: Floats, stride: int) -> Floats:
    """Return x with stride - 1 zeros between neighbours: ((h-1) stride + 1, (w-1) stride + 1)."""
    h, w = x.shape
    return downsampling_matrix(h, stride).T @ x @ downsampling_matrix(w, stride)


def transposed_by_insertion(x: Floats, kernel: Floats, stride: int) -> Floats:
    """Return a transposed convolution, computed as an ordinary one.

    Zeros are inserted between the inputs and around them, and the kernel is turned by 180 degrees.
    """
    k, m = kernel.shape
    spread = np.pad(insert_zeros(x, stride), ((k - 1, k - 1), (m - 1, m - 1)))
    h, w = spread.shape
    matrix = convolution_matrix(kernel[::-1, ::-1], (h, w))
    return (matrix @ spread.ravel()).reshape(output_size(h, k), output_size(w, m))


def transposed_by_stamping(x: Floats, kernel: Floats, stride: int) -> tuple[Floats, list[Floats]]:
    """Return a transposed convolution, and what each input adds to it, in reading order.

    Each input stamps the kernel, times its own value, onto the output.
    """
    (h, w), (k, m) = x.shape, kernel.shape
    stamps = []
    for i, j in np.ndindex(h, w):
        stamp = np.zeros((transposed_size(h, k, stride), transposed_size(w, m, stride)))
        stamp[i * stride : i * stride + k, j * stride : j * stride + m] = x[i, j] * kernel
        stamps.append(stamp)
    return np.sum(stamps, axis=0), stamps


def repeat_then_convolve(q: Floats, factor: int) -> Floats:
    """Return the one transposed kernel that equals repeating, then convolving with q.

    Args:
        q: (n,), the weights as a network uses them, not flipped.
        factor: how often each value is repeated.

    Returns:
        (n + factor - 1,); for factor 2 and three weights q2, q2 + q1, q1 + q0, q0.
    """
    return np.convolve(q[::-1], np.ones(factor))


def overlap(kernel: int, stride: int, inputs: int) -> Floats:
    """Return how many weights meet each output of a transposed convolution, along one axis."""
    return transposed_by_stamping(np.ones((1, inputs)), np.ones((1, kernel)), stride)[0][0]


def phase_sums(taps: Floats, stride: int) -> Floats:
    """Return what a constant 1 becomes at each of the `stride` places between two inputs.

    If they differ, the output repeats a pattern every `stride` pixels: the checkerboard.
    """
    return np.array([taps[phase::stride].sum() for phase in range(stride)])


def frequency_response(taps: Floats, frequencies: Floats) -> Floats:
    """Return |H| of a filter at frequencies in cycles per pixel, 0 to 1/2."""
    return np.abs(np.exp(-2j * np.pi * np.outer(frequencies, np.arange(len(taps)))) @ taps)
