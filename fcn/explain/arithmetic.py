"""Topics 1, 2 and 3: what a transposed convolution computes."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fcn.explain import operators as op
from fcn.explain.figures import Panel, tiles
from fcn.explain.operators import Floats
from fcn.explain.story import Section


def matrix() -> Section:
    section = Section(1, "matrix", "A convolution is a matrix, and a matrix has a transpose")
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 10, (4, 4)).astype(float), rng.integers(1, 10, (2, 2)).astype(float)
    kernel = np.array([[1.0, 2, 1], [0, 3, 0], [-1, -2, -1]])
    c = op.convolution_matrix(kernel, (4, 4))
    cx, ct_y = (c @ x.ravel()).reshape(2, 2), (c.T @ y.ravel()).reshape(4, 4)
    section.text(
        """A convolution layer slides a small kernel over an image; each output is a weighted sum
        of the pixels under it. Write the image's pixels in one column, line by line, and the layer
        becomes a matrix <i>C</i>: one row for each output, with the kernel's weights at the pixels
        that this output sees and zeros elsewhere. Every row holds the same nine weights, shifted.
        That sharing is all that tells a convolution from any other linear layer."""
    )
    section.picture(
        "matrix",
        tiles(
            [
                Panel(x, "image x, 4 × 4", "{:.0f}", 14),
                Panel(kernel, "kernel", "{:.0f}"),
                Panel(c, "C: 4 outputs from 16 pixels", "{:.0f}", largest(kernel)),
                Panel(cx, "C x, 2 × 2", "{:.0f}"),
            ],
            largest=4.2,
        ),
        "A 3 × 3 kernel over a 4 × 4 image, and the same as a matrix of 4 rows and 16 columns.",
    )
    section.claim(
        "<i>C x</i> is what PyTorch's <code>conv2d</code> computes.",
        differ(cx, F.conv2d(tensor(x), tensor(kernel))),
    )
    section.text(
        """Turn the matrix on its side. <i>C</i><sup>T</sup> has the same weights, but takes 4
        numbers to 16: from 2 × 2 up to 4 × 4. This is the layer that goes by the names transposed
        convolution, backwards convolution and, misleadingly, deconvolution. Nobody builds the
        matrix, of course; a <code>ConvTranspose2d</code> computes the product without it."""
    )
    section.picture(
        "transpose",
        tiles(
            [
                Panel(y, "y, 2 × 2", "{:.0f}", 14),
                Panel(c.T, "Cᵀ: 16 outputs from 4", "{:.0f}", largest(kernel)),
                Panel(ct_y, "Cᵀ y, 4 × 4", "{:.0f}"),
            ],
            largest=4.2,
        ),
        "The transposed matrix takes four numbers to sixteen: one column for each input.",
    )
    section.claim(
        "<i>C</i><sup>T</sup><i>y</i> is PyTorch's <code>conv_transpose2d</code>, same kernel.",
        differ(ct_y, F.conv_transpose2d(tensor(y), tensor(kernel))),
    )
    section.claim(
        """For any <i>x</i> and <i>y</i>, (<i>C x</i>) · <i>y</i> = <i>x</i> ·
        (<i>C</i><sup>T</sup> <i>y</i>): what makes one matrix the other's transpose.""",
        abs(float(cx.ravel() @ y.ravel() - x.ravel() @ ct_y.ravel())),
    )
    image = tensor(x).requires_grad_()
    (backward,) = torch.autograd.grad(F.conv2d(image, tensor(kernel)), image, tensor(y))
    small = tensor(y).requires_grad_()
    (again,) = torch.autograd.grad(F.conv_transpose2d(small, tensor(kernel)), small, tensor(x))
    section.text(
        """You have used <i>C</i><sup>T</sup> before. To train a convolution, back-propagation
        takes the gradient at its outputs back to its inputs, which is a product with
        <i>C</i><sup>T</sup>. So the forward pass of the one layer is the backward pass of the
        other, and the new layer needs no new code and no new theory of training."""
    )
    section.claim(
        "Autograd's backward pass of <code>conv2d</code> is <i>C</i><sup>T</sup><i>y</i>;",
        differ(ct_y, backward),
    )
    section.claim("and that of <code>conv_transpose2d</code> is <i>C x</i>.", differ(cx, again))
    back = (c.T @ cx.ravel()).reshape(4, 4)
    scale = float(x.ravel() @ back.ravel() / (back.ravel() @ back.ravel()))
    lost = float(np.linalg.norm(x - scale * back) / np.linalg.norm(x))
    section.text(
        f"""It does not undo the convolution. Sixteen pixels went into four numbers, and no layer
        can recover the sixteen: <i>C</i><sup>T</sup><i>C x</i>, scaled as well as can be, still
        misses <i>x</i> by {100 * lost:.0f} % of its length. What is turned round is the shape and
        who is connected to whom, not the values. Which values come out is a matter of the weights,
        and those can be chosen, or learned."""
    )
    section.picture(
        "no_inverse",
        tiles(
            [
                Panel(x, "x", "{:.0f}", 14),
                Panel(cx, "C x", "{:.0f}"),
                Panel(scale * back, "Cᵀ C x, scaled to fit", "{:.1f}", 14),
            ]
        ),
        "There and back: the shape returns, the values do not.",
    )
    return section


def arithmetic() -> Section:
    section = Section(2, "arithmetic", "Stride, padding and size: zeros between the pixels")
    x, ones = np.array([[1.0, 2], [3, 4]]), np.ones((3, 3))
    result, stamps = op.transposed_by_stamping(x, ones, 2)
    section.text(
        """A convolution of stride <i>s</i> moves its kernel by <i>s</i> pixels at a time, and so
        shrinks the image <i>s</i> times. Transposed, it moves by <i>s</i> pixels in the
        <em>output</em> and enlarges. The simplest way to see it: every input stamps the kernel,
        times its own value, onto the output, <i>s</i> pixels from its neighbour's stamp. Where
        stamps overlap, they add."""
    )
    section.picture(
        "stamps",
        tiles(
            [
                Panel(x, "input", "{:.0f}", 10),
                *(
                    Panel(stamp, f"stamp of {value:.0f}", "{:.0f}", 10)
                    for stamp, value in zip(stamps, x.ravel(), strict=True)
                ),
                Panel(result, "their sum, 5 × 5", "{:.0f}", 10),
            ],
            columns=6,
            largest=1.7,
        ),
        "A 3 × 3 kernel of ones at stride 2 on a 2 × 2 input. Cut to twice the input's size: "
        "1 1 3 2, 1 1 3 2, 4 4 10 6, 3 3 7 4.",
    )
    section.claim(
        "The stamps' sum is PyTorch's <code>conv_transpose2d</code> at stride 2.",
        differ(result, F.conv_transpose2d(tensor(x), tensor(ones), stride=2)),
    )
    weight = tensor(ones).requires_grad_()
    pull = np.arange(25.0).reshape(5, 5)  # a gradient at the outputs
    (learned,) = torch.autograd.grad(
        F.conv_transpose2d(tensor(x), weight, stride=2), weight, tensor(pull)
    )
    under = [pull[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] * x[i, j] for i, j in np.ndindex(2, 2)]
    section.claim(
        "It is trained through its stamps: the kernel's gradient is the sum, over the inputs, of "
        "the input times the output's gradient under its stamp.",
        differ(np.sum(under, axis=0), learned),
    )
    kernel = np.arange(1.0, 10).reshape(3, 3)
    spread = np.pad(op.insert_zeros(x, 2), 2)
    inserted = op.transposed_by_insertion(x, kernel, 2)
    section.text(
        """The same sum can be read from the output's side. Put <i>s</i> − 1 zeros between the
        inputs and <i>k</i> − 1 round them, turn the kernel by 180°, and run an ordinary
        convolution of stride 1. Its stride is a fraction of the original pixel's width: hence
        <em>fractionally strided</em> convolution, the paper's "input stride of 1/<i>f</i>"."""
    )
    places = ((0, 0), (0, 1), (1, 1), (2, 2))
    flipped = kernel[::-1, ::-1]
    section.picture(
        "zero_insertion",
        tiles(
            [
                Panel(x, "input", "{:.0f}", 10),
                Panel(op.insert_zeros(x, 2), "zeros between", "{:.0f}", 10),
                Panel(spread, "zeros round", "{:.0f}", 10),
                Panel(flipped, "kernel, turned", "{:.0f}", 18),
                *(
                    Panel(seen, f"output {at}: {(seen * flipped).sum():.0f}", "{:.0f}", 10)
                    for at in places
                    for seen in [spread[at[0] : at[0] + 3, at[1] : at[1] + 3]]
                ),
            ],
            columns=4,
            largest=2.0,
        ),
        "Zeros between, zeros round, the kernel turned. Below, four of the windows it then meets, "
        "and the output each gives: an output sees only the taps that fall on real inputs.",
    )
    section.claim(
        "Zero insertion, stamping and PyTorch agree, for a kernel with nine different weights.",
        max(
            differ(inserted, F.conv_transpose2d(tensor(x), tensor(kernel), stride=2)),
            float(np.abs(inserted - op.transposed_by_stamping(x, kernel, 2)[0]).max()),
        ),
    )
    section.text(
        """Sizes follow. A convolution of <i>n</i> inputs has ⌊(<i>n</i> + 2<i>p</i> − <i>k</i>) /
        <i>s</i>⌋ + 1 outputs; the transposed one of <i>n</i> inputs has (<i>n</i> − 1) <i>s</i> +
        <i>k</i> − 2<i>p</i>: padding, which adds zeros round a convolution's input, takes rows off
        a transposed one's output. Because of the ⌊ ⌋, several input sizes lead to one output size,
        and on the way back somebody must say which was meant. This project's nets pad nothing in
        their transposed layers and cut out the window that lies on the image."""
    )
    rows = []
    for n, k, s, p in ((4, 3, 1, 0), (5, 3, 2, 1), (6, 3, 2, 1), (12, 4, 2, 1), (16, 16, 8, 4)):
        down = op.output_size(n, k, s, p)
        up = op.transposed_size(down, k, s, p)
        weight = torch.ones(1, 1, k, k)
        measured = F.conv_transpose2d(
            F.conv2d(torch.ones(1, 1, n, n), weight, stride=s, padding=p),
            weight,
            stride=s,
            padding=p,
        )
        assert measured.shape[-1] == up, "the formula is not torch's"
        rows.append((f"kernel {k}, stride {s}, padding {p}", n, down, up))
    section.table(("layer", "inputs", "convolution gives", "transposed back"), rows)
    return section


def operators() -> Section:
    section = Section(3, "operators", "Strided, dilated and transposed convolution in one notation")
    rng = np.random.default_rng(3)
    kernel = np.array([[1.0, 2, 3]])
    c = op.convolution_matrix(kernel, (1, 9))
    down = op.downsampling_matrix(4, 2, 7)
    wide = op.downsampling_matrix(3, 2).T @ kernel[0]
    section.text(
        """Two building blocks give all three. <i>C</i> is a plain convolution. <i>D</i> keeps
        every second value and drops the others. Its transpose <i>D</i><sup>T</sup> puts zeros
        between values: going down and going up are each other's transposes, and <i>D
        D</i><sup>T</sup> = <i>I</i>, while <i>D</i><sup>T</sup><i>D</i> blanks every second value.
        In one dimension the matrices are small enough to look at."""
    )
    section.picture(
        "operators",
        tiles(
            [
                Panel(c, "C: kernel 1 2 3", "{:.0f}", 3),
                Panel(down, "D: every second", "{:.0f}", 3),
                Panel(down @ c, "D C: stride 2", "{:.0f}", 3),
                Panel(down.T, "Dᵀ: zeros between", "{:.0f}", 3),
                Panel(c.T @ down.T, "Cᵀ Dᵀ = (D C)ᵀ: transposed", "{:.0f}", 3),
                Panel(
                    op.convolution_matrix(wide[None], (1, 9)), "kernel Dᵀk: dilated", "{:.0f}", 3
                ),
            ],
            columns=3,
        ),
        "Strided, transposed and dilated convolution of one kernel as matrices.",
    )
    x, y = rng.normal(size=(1, 9)), rng.normal(size=(1, 4))
    section.claim(
        "Strided convolution is <i>D C</i>: convolve everywhere, keep every second.",
        differ(down @ c @ x[0], F.conv2d(tensor(x), tensor(kernel), stride=2)),
    )
    section.claim(
        "Transposed convolution is <i>C</i><sup>T</sup><i>D</i><sup>T</sup>: zeros between, then "
        "convolve with the kernel turned.",
        differ(c.T @ down.T @ y[0], F.conv_transpose2d(tensor(y), tensor(kernel), stride=2)),
    )
    section.claim(
        "Dilated convolution is plain, with zeros between the <em>kernel's</em> weights.",
        differ(
            op.convolution_matrix(wide[None], (1, 9)) @ x[0],
            F.conv2d(tensor(x), tensor(kernel), dilation=2),
        ),
    )
    section.claim(
        "<i>D D</i><sup>T</sup> is the identity.", float(np.abs(down @ down.T - np.eye(4)).max())
    )
    section.text(
        """So zeros between the pixels of the image give a transposed convolution; zeros between
        the weights of the kernel give a dilated one, which sees further without shrinking
        anything. A sub-pixel convolution (to <i>s</i>² channels, dealt out as <i>s</i> × <i>s</i>
        pixels) is the transposed one once more, its weights in another order in memory."""
    )
    taps = torch.from_numpy(rng.normal(size=(1, 1, 4, 4)))
    z = torch.from_numpy(rng.normal(size=(1, 1, 5, 6)))
    phases = torch.cat([taps[..., r::2, c::2] for r in (0, 1) for c in (0, 1)])
    interleaved = F.pixel_shuffle(F.conv2d(z, phases.flip(-2, -1)), 2)
    direct = F.conv_transpose2d(z, taps, stride=2)[..., 2:-2, 2:-2]
    section.claim(
        "A 2 × 2 convolution to four channels, dealt out as 2 × 2 pixels, is the inside of the "
        "transposed convolution with a 4 × 4 kernel and stride 2.",
        float((interleaved - direct).abs().max()),
    )
    return section


def tensor(array: Floats) -> Tensor:
    """(h, w) -> (1, 1, h, w), float64."""
    return torch.from_numpy(np.ascontiguousarray(array))[None, None]


def differ(array: Floats, result: Tensor) -> float:
    """The largest difference between NumPy's values and torch's, in reading order."""
    return float(np.abs(array.ravel() - result.detach().numpy().ravel()).max())


def largest(kernel: Floats) -> float:
    return float(np.abs(kernel).max())
