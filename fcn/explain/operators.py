"""Convolutions and their transposes as matrices and as index arithmetic, in plain NumPy.

Written apart from torch, so that one can check the other. "Convolution" is what nets call so, the
kernel not flipped (a cross-correlation). Arrays are single-channel.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Size = tuple[int, int]


def output_size(n: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """Outputs of a convolution over n inputs, along one axis."""
    return (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def transposed_size(n: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Outputs of a transposed convolution over n inputs, along one axis."""
    return (n - 1) * stride + kernel - 2 * padding


def convolution_matrix(
    kernel: Floats, size: Size, *, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Floats:
    """The matrix C with C x = convolution of x, both written as columns in reading order.

    Args: kernel: (k, l). size: (h, w) of x.
    Returns: (outputs, h * w). Row o holds the kernel's taps at the inputs that output o sees.
    Raises: ValueError: the kernel does not fit into the input.
    """
    (k, width), (h, w) = kernel.shape, size
    rows = output_size(h, k, stride, padding, dilation)
    columns = output_size(w, width, stride, padding, dilation)
    if rows < 1 or columns < 1:
        raise ValueError(f"a {k} x {width} kernel does not fit into {h} x {w}")
    matrix = np.zeros((rows, columns, h, w))
    for y, x, dy, dx in np.ndindex(rows, columns, k, width):
        at_y, at_x = y * stride - padding + dy * dilation, x * stride - padding + dx * dilation
        if 0 <= at_y < h and 0 <= at_x < w:  # a tap on the padding meets a zero
            matrix[y, x, at_y, at_x] = kernel[dy, dx]
    return matrix.reshape(rows * columns, h * w)


def downsampling_matrix(n: int, step: int, size: int | None = None) -> Floats:
    """D: keeps every step-th of `size` values, n of them. Its transpose puts zeros between n."""
    size = (n - 1) * step + 1 if size is None else size
    matrix = np.zeros((n, size))
    matrix[np.arange(n), np.arange(n) * step] = 1
    return matrix


def insert_zeros(x: Floats, stride: int) -> Floats:
    """x (h, w) with stride - 1 zeros between neighbours: ((h-1) stride + 1, (w-1) stride + 1)."""
    h, w = x.shape
    result = np.zeros(((h - 1) * stride + 1, (w - 1) * stride + 1))
    result[::stride, ::stride] = x
    return result


def transposed_by_insertion(x: Floats, kernel: Floats, stride: int, padding: int = 0) -> Floats:
    """A transposed convolution as an ordinary one: zeros between, zeros round, the kernel flipped.

    Raises: ValueError: padding takes off more than there is.
    """
    k, width = kernel.shape
    spread = np.pad(insert_zeros(x, stride), ((k - 1,) * 2, (width - 1,) * 2))
    inner = tuple(slice(padding, n - padding) for n in spread.shape)
    spread = spread[inner]
    matrix = convolution_matrix(kernel[::-1, ::-1], (spread.shape[0], spread.shape[1]))
    rows, columns = spread.shape[0] - k + 1, spread.shape[1] - width + 1
    return (matrix @ spread.ravel()).reshape(rows, columns)


def transposed_by_stamping(
    x: Floats, kernel: Floats, stride: int, padding: int = 0
) -> tuple[Floats, list[Floats]]:
    """A transposed convolution as one pictures it: each input stamps its multiple of the kernel.

    Returns: the sum, and what each input adds to it, in reading order.
    """
    (h, w), (k, width) = x.shape, kernel.shape
    full = transposed_size(h, k, stride), transposed_size(w, width, stride)
    stamps = []
    for y, at in np.ndindex(h, w):
        stamp = np.zeros(full)
        stamp[y * stride : y * stride + k, at * stride : at * stride + width] = x[y, at] * kernel
        stamps.append(stamp[padding : full[0] - padding, padding : full[1] - padding])
    return np.sum(stamps, axis=0), stamps


def repeat_then_convolve(q: Floats, factor: int) -> Floats:
    """The taps of the one transposed convolution that equals repeating, then convolving with q.

    Args: q: taps (n,), used as a net uses them, not flipped.
    Returns: (n + factor - 1,): for factor 2 and three taps, mirrored: q0, q0 + q1, q1 + q2, q2.
    """
    return np.convolve(q[::-1], np.ones(factor))


def overlap(kernel: int, stride: int, inputs: int) -> Floats:
    """How many taps meet each output of a transposed convolution, along one axis."""
    return transposed_by_stamping(np.ones((1, inputs)), np.ones((1, kernel)), stride)[0][0]


def phase_sums(taps: Floats, stride: int) -> Floats:
    """What a constant 1 becomes at each of the `stride` places that outputs take between inputs.

    All equal: a constant stays one. Not equal: a pattern that repeats every `stride` pixels, the
    checkerboard.
    """
    return np.array([taps[phase::stride].sum() for phase in range(stride)])


def frequency_response(taps: Floats, frequencies: Floats) -> Floats:
    """|H| of a filter. Args: frequencies: in cycles a pixel, 0..1/2."""
    turns = np.exp(-2j * np.pi * np.outer(frequencies, np.arange(len(taps))))
    return np.abs(turns @ taps)
