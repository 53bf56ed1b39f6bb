"""Topics 1 to 6, which need no network: what a transposed convolution computes."""

import timeit
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.autograd.functional import vjp  # vector-Jacobian product: the backward pass
from torch.nn import functional as F

from fcn.explain import operators as op
from fcn.explain.operators import Floats
from fcn.explain.section import Section
from fcn.models.upsampling import FixedUpsampling, NearestConvUpsampling, bilinear_kernel


def matrix(s: Section) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 10, (4, 4)).astype(float), rng.integers(1, 10, (2, 2)).astype(float)
    kernel = np.array([[1.0, 2, 1], [0, 3, 0], [-1, -2, -1]])
    c = op.convolution_matrix(kernel, (4, 4))
    cx, cty = (c @ x.ravel()).reshape(2, 2), (c.T @ y.ravel()).reshape(4, 4)
    s.text("""A convolution layer slides a small kernel over an image; each output is a weighted sum
        of the pixels under it. The weights of the kernel are also called its taps. Write the pixels
        in one column, line by line, and the layer becomes a matrix *C*: one row for each output,
        with the kernel's weights at the pixels that this output sees and zeros elsewhere. Every row
        holds the same nine weights, shifted: that is all that distinguishes a convolution from any
        other linear layer.""")
    shown = {"image x, 4 × 4": x, "kernel": kernel, "C: 4 outputs from 16 pixels": c, "C x": cx}
    s.panels("A 3 × 3 kernel over a 4 × 4 image, and the same as a matrix.", shown, 4.2)
    s.claim("*C x* is what PyTorch's `conv2d` computes.", cx, conv2d(x, kernel))
    s.text("""Now transpose the matrix. *Cᵀ* has the same weights, but takes 4 numbers to 16: from
        2 × 2 up to 4 × 4. This layer is called transposed convolution, backwards convolution, or
        deconvolution. The last name misleads: deconvolution long meant removing the blur from an
        image, a true inverse. Nobody builds the matrix; `ConvTranspose2d` computes the product
        without it.""")
    shown = {"y, 2 × 2": y, "Cᵀ: 16 outputs from 4": c.T, "Cᵀ y, 4 × 4": cty}
    s.panels("The transpose takes four numbers to sixteen: one column for each input.", shown, 4.2)
    s.claim("*Cᵀy* is PyTorch's `conv_transpose2d`, same kernel.", cty, transposed(y, kernel))
    both = cx.ravel() @ y.ravel(), x.ravel() @ cty.ravel()
    s.claim("Here (*C x*) · *y* = *x* · (*Cᵀy*), the equation that defines a transpose.", *both)
    s.text("""You have used *Cᵀ* before: to train a convolution, back-propagation takes the gradient
        at its outputs back to its inputs by a product with *Cᵀ*. The forward pass of one layer is
        the backward pass of the other, and the transposed layer is trained like any other.""")
    back = vjp(partial(F.conv2d, weight=tensor(kernel)), tensor(x), tensor(y))[1]
    s.claim("The backward pass of `conv2d` is *Cᵀy*;", cty, back)
    back = vjp(partial(F.conv_transpose2d, weight=tensor(kernel)), tensor(y), tensor(x))[1]
    s.claim("and that of `conv_transpose2d` is *C x*.", cx, back)
    again = (c.T @ cx.ravel()).reshape(4, 4)
    again *= (x * again).sum() / (again**2).sum()  # least squares
    missed = float(np.linalg.norm(x - again) / np.linalg.norm(x))
    s.text(f"""The transpose does not undo the convolution. Sixteen pixels went into four numbers,
        and no layer can recover the sixteen: *CᵀC x*, scaled to fit as well as possible, still
        misses *x* by {100 * missed:.0f} % of its length. The transpose reverses the shapes and the
        connections, not the values. Which values it gives depends on the weights, and those can be
        chosen, or learned.""")
    shown = {"x": x, "C x": cx, "Cᵀ C x, scaled to fit": again.round(1)}
    s.panels("There and back: the shape returns, the values do not.", shown, 2.6)


def arithmetic(s: Section) -> None:
    x, ones = np.array([[1.0, 2], [3, 4]]), np.ones((3, 3))
    result, stamps = op.transposed_by_stamping(x, ones, 2)
    s.text("""A convolution of stride *s* moves its kernel by *s* pixels at a time, and so shrinks
        the image *s* times. Transposed, it moves by *s* pixels in the *output* and enlarges. The
        simplest picture: every input stamps the kernel, times its own value, onto the output, *s*
        pixels from its neighbour's stamp. Where stamps overlap, they add.""")
    shown = {f"stamp of {v:.0f}": stamp for v, stamp in zip(x.ravel(), stamps, strict=True)}
    shown = {"input": x} | shown | {"their sum, 5 × 5": result}
    s.panels("A 3 × 3 kernel of ones at stride 2 on a 2 × 2 input.", shown, 1.7, limit=10)
    s.claim(
        "The sum of the stamps is what PyTorch computes.", result, transposed(x, ones, stride=2)
    )
    g = np.arange(25.0).reshape(5, 5)  # a gradient at the outputs
    under = [x[i, j] * g[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] for i, j in np.ndindex(2, 2)]
    back = vjp(lambda k: F.conv_transpose2d(tensor(x), k, stride=2), tensor(ones), tensor(g))[1]
    words = "The kernel's gradient sums each input times the output's gradient under its stamp."
    s.claim(words, np.sum(under, axis=0), back)
    s.text("""The same sum can be read from the output's side. Put *s* − 1 zeros between the inputs
        and *k* − 1 around them, turn the *k* × *k* kernel by 180°, and run an ordinary convolution
        of stride 1. Measured in input pixels it moves by a fraction, 1/*s*: hence the name
        *fractionally strided* convolution.""")
    kernel = np.arange(1.0, 10).reshape(3, 3)
    spread, turned = np.pad(op.insert_zeros(x, 2), 2), kernel[::-1, ::-1]
    shown = {"input": x, "zeros between": op.insert_zeros(x, 2), "zeros around": spread}
    shown["kernel, turned"] = turned
    for i, j in ((0, 0), (0, 1), (1, 1), (2, 2)):
        seen = spread[i : i + 3, j : j + 3]
        shown[f"output {i, j}: {(seen * turned).sum():.0f}"] = seen
    words = """Below, four of the windows that the turned kernel sees, and the output of each: only
        the taps that fall on real inputs count."""
    s.panels(words, shown, 2.0, columns=4, limit=10)
    inserted, stamped = (
        op.transposed_by_insertion(x, kernel, 2),
        op.transposed_by_stamping(x, kernel, 2),
    )
    s.claim("With nine different weights, zero insertion equals stamping,", inserted, stamped[0])
    s.claim("and equals PyTorch's `conv_transpose2d`.", inserted, transposed(x, kernel, stride=2))
    s.text("""Sizes follow. A convolution of *n* inputs has ⌊(*n* + 2*p* − *k*) / *s*⌋ + 1 outputs;
        the transposed one of *n* inputs has (*n* − 1) *s* + *k* − 2*p*. Padding *p* adds zeros
        around the input of a convolution, but removes rows and columns from the output of a
        transposed one.""")
    rows, formula, measured = [], [], []
    for n, k, stride, p in (
        (4, 3, 1, 0),
        (5, 3, 2, 1),
        (6, 3, 2, 1),
        (12, 4, 2, 1),
        (16, 16, 8, 4),
    ):
        down = op.output_size(n, k, stride, p)
        up = op.transposed_size(down, k, stride, p)
        rows.append((f"kernel {k}, stride {stride}, padding {p}", n, down, up))
        small = conv2d(np.ones((n, n)), np.ones((k, k)), stride=stride, padding=p)
        large = transposed(small[0, 0].numpy(), np.ones((k, k)), stride=stride, padding=p)
        formula += [down, up]
        measured += [small.shape[-1], large.shape[-1]]
    s.table(("layer", "inputs", "convolution gives", "transposed back"), rows)
    s.claim("PyTorch's sizes are these.", formula, measured, 0)
    s.text("""Because of the rounding ⌊ ⌋, several input sizes lead to one output size: with kernel
        3, stride 2 and padding 1, both 5 and 6 become 3. On the way back PyTorch gives the
        smallest, here 5; its argument `output_padding` adds the rows and columns of a larger one.
        This project's layers need neither: they do not pad, and the window that lies on the image
        is cut out of their result.""")
    six = transposed(np.ones((3, 3)), ones, stride=2, padding=1, output_padding=1).shape[-1]
    s.claim("With `output_padding=1` the 3 become 6.", six, 6, 0)


def operators(s: Section) -> None:
    rng = np.random.default_rng(3)
    kernel = np.array([[1.0, 2, 3]])
    c, d = op.convolution_matrix(kernel, (1, 9)), op.downsampling_matrix(4, 2, 7)
    spread = op.downsampling_matrix(3, 2).T @ kernel[0]
    dilated = op.convolution_matrix(spread[None], (1, 9))
    s.text("""Two building blocks give all three. *C* is a plain convolution. *D* keeps every second
        value; its transpose *Dᵀ* puts zeros between values. *D Dᵀ* is the identity, while *DᵀD*
        replaces every second value by zero. In one dimension the matrices are small enough to look
        at.""")
    shown = {"C: kernel 1 2 3": c, "D: every second": d, "D C: stride 2": d @ c}
    shown |= {"Dᵀ: zeros between": d.T, "Cᵀ Dᵀ = (D C)ᵀ: transposed": (d @ c).T}
    shown |= {"kernel Dᵀk: dilated": dilated}
    words = "Strided, transposed and dilated convolution with one kernel, as matrices."
    s.panels(words, shown, 2.6, columns=3, limit=3)
    x, y = rng.normal(size=(1, 9)), rng.normal(size=(1, 4))
    words = "Strided convolution is *D C*: convolve everywhere, keep every second."
    s.claim(words, d @ c @ x[0], conv2d(x, kernel, stride=2))
    words = "Transposed convolution is *CᵀDᵀ*: zeros between, then convolve with the kernel turned."
    s.claim(words, c.T @ d.T @ y[0], transposed(y, kernel, stride=2))
    words = "Dilated convolution is a plain one with zeros between the weights of the *kernel*."
    s.claim(words, dilated @ x[0], conv2d(x, kernel, dilation=2))
    s.claim("*D Dᵀ* is the identity.", d @ d.T, np.eye(4))
    s.text("""So zeros between the pixels of the image give a transposed convolution; zeros between
        the weights of the kernel give a dilated one, which sees further without shrinking anything.
        A sub-pixel convolution (compute *s*² channels, rearrange them as *s* × *s* pixels with
        `PixelShuffle`) is the transposed one again, its weights in another order in memory.""")
    taps, z = torch.from_numpy(rng.normal(size=(4, 4))), tensor(rng.normal(size=(5, 6)))
    phases = torch.stack([taps[None, i::2, j::2] for i in (0, 1) for j in (0, 1)]).flip(-2, -1)
    words = """A 2 × 2 convolution to four channels, rearranged as 2 × 2 pixels, is the inside of
        the transposed convolution with a 4 × 4 kernel and stride 2."""
    inside = F.conv_transpose2d(z, taps[None, None], stride=2)[..., 2:-2, 2:-2]
    s.claim(words, F.pixel_shuffle(F.conv2d(z, phases), 2), inside)


def bilinear(s: Section) -> None:
    tents = {f: bilinear_kernel(2 * f).double().numpy() for f in (2, 8, 16, 32)}
    s.text("""Linear interpolation draws straight lines between neighbours. Every input then counts
        most at its own place and less and less towards its neighbours, where its weight reaches
        zero: a tent. Stamp tents of the right width, one for each input, and their sum is the
        interpolated signal. In two dimensions the kernel is the tent across times the tent down.
        For a factor *f* it has 2*f* taps on each side; for *f* = 2 these are 1, 3, 3, 1 over 4, and
        in two dimensions 9/16 inside, 3/16 along the edges and 1/16 in the corners. New pixels lie
        between the old ones, so no tap falls on the tent's peak or on its feet.""")
    plots = {f"factor {f}": {"": (np.arange(2 * f), k.sum(0) / f)} for f, k in tents.items()}
    words = "The kernel in one dimension, for the FCN paper's factors: tents of 4 to 64 taps."
    s.lines(words, plots, "tap", "weight", marker="o", ms=3)
    shown = {f"factor {f}, {2 * f} × {2 * f}": tents[f] for f in (8, 16, 32)}
    shown = {"factor 2, in sixteenths": 16 * tents[2]} | shown
    s.panels("The same in two dimensions.", shown, 1.7)
    x = np.array([[0.0, 4, 2], [6, 1, 3], [2, 5, 0]])
    result, (_, four, _, six, *_) = op.transposed_by_stamping(x, tents[8], 8)
    shown = {"input, 3 × 3": x, "tent of the 4": four, "tent of the 6": six, "both": four + six}
    shown["all nine: upsampled by 8"] = result
    words = "Nine tents and their sum, which fades towards the edges: no neighbours lie outside."
    s.panels(words, shown, 1.6, limit=6)
    differences = []
    for f, kernel in tents.items():
        zoomed = ndimage.zoom(np.pad(x, 2), f, order=1, mode="grid-constant", grid_mode=True)
        same = slice(3 * f // 2, 3 * f // 2 + 4 * f)
        ours = op.transposed_by_stamping(x, kernel, f)[0]
        differences.append(np.abs(ours - zoomed[same, same]).max())
    words = """For factors 2, 8, 16 and 32, edges included, the layer gives what SciPy's
        `ndimage.zoom` of order 1 gives for the input surrounded by zeros."""
    s.claim(words, max(differences), limit=1e-6)
    s.text("""Because the kernel is one tent times another, the two directions can be computed one
        after the other: *V S Wᵀ*, where *S* is the input and *V* and *W* are the matrices of the
        one-dimensional layer, down and across. This project's `upsampling=fixed` does so.""")
    score = torch.from_numpy(np.random.default_rng(4).normal(size=(1, 2, 6, 9)))
    weight = torch.from_numpy(tents[32]).expand(2, 1, -1, -1)
    direct = F.conv_transpose2d(score, weight, stride=32, groups=2)
    words = "Two matrix products equal the transposed convolution by 32, edges included."
    s.claim(words, FixedUpsampling(32)(score), direct, 1e-6)
    s.table(("×32 to 416 × 544, 21 classes", "multiplications", "ms, here and now"), _costs())
    s.text("""Two products multiply more often than one kernel for each class would, mostly by zero,
        and yet are fast: multiplying matrices is what processors do best.""")
    s.text("""Since it is a layer like any other, it can be trained. The FCN of CVPR 2015 starts all
        its upsampling at bilinear, keeps the last layer fixed and learns the intermediate ones
        (`upsampling=cvpr15`); in the networks that the authors released, all are fixed. Topic 8
        shows what learning changes.""")


def _costs() -> list[tuple[str, str, str]]:
    """Return ways to upsample 21 classes by 32: multiplications, median time of five calls."""
    classes, h, w, f = 21, 12, 16, 32
    score, fixed = torch.randn(1, classes, h, w), FixedUpsampling(f)
    one = bilinear_kernel(2 * f).expand(classes, 1, -1, -1)
    pairs = torch.eye(classes)[..., None, None] * one[:1]
    stamps = h * w * (2 * f) ** 2 * classes
    products = classes * op.transposed_size(h, 2 * f, f) * w * (h + op.transposed_size(w, 2 * f, f))
    conv = partial(F.conv_transpose2d, score, stride=f)
    ways = (
        ("a kernel for each pair of classes", stamps * classes, lambda: conv(pairs)),
        ("one kernel for each class", stamps, lambda: conv(one, groups=classes)),
        ("two matrix products", products, lambda: fixed(score)),
    )
    times = [1000 * median(timeit.repeat(upsample, number=1, repeat=5)) for *_, upsample in ways]
    return [(way[0], f"{way[1]:,}", f"{ms:.1f}") for way, ms in zip(ways, times, strict=True)]


def repeat(s: Section) -> None:
    q, x = np.array([[1.0, 2, 1]]) / 4, np.array([[2.0, 6, 4, 8]])
    kernel = op.repeat_then_convolve(q[0], 2)[None]
    repeated = x.repeat(2, axis=1)
    convolved = conv2d(repeated, q, padding=(0, 2))[0, 0].numpy()
    at_once = op.transposed_by_stamping(x, kernel, 2)[0]
    s.text("""Another common way to enlarge an image is to repeat every pixel and convolve the
        result (`nn.Upsample`, then `nn.Conv2d`). By 2 with three taps *q*₀, *q*₁, *q*₂, an input
        reaches four outputs: the outermost through *q*₀ alone or *q*₂ alone, the two between
        through *q*₀ + *q*₁ and *q*₁ + *q*₂. Those four sums are the kernel of one transposed
        convolution of stride 2. With *q* = 1/4, 1/2, 1/4 they are 1/4, 3/4, 3/4, 1/4: bilinear
        interpolation.""")
    shown = {"x": x, "x, each twice": repeated, "q": q, "q₀, q₀+q₁, q₁+q₂, q₂": kernel}
    shown["repeated, then convolved with q"] = convolved
    shown["those four taps stamped at stride 2"] = at_once
    s.panels(
        "Four numbers doubled: by repeating and convolving, and at once.", shown, 3.6, columns=2
    )
    s.claim("Repeating, then convolving, is that one transposed convolution.", at_once, convolved)
    torch.manual_seed(0)
    layer, score = NearestConvUpsampling(8, 3).double(), torch.randn(1, 3, 5, 6).double()
    torch.nn.init.normal_(layer.weight)
    in_two_steps = F.conv2d(F.interpolate(score, scale_factor=8), layer.weight, padding=8)
    words = """This project's `upsampling=nearest_conv` is computed so, in two dimensions, by 8,
        with classes mixed: it equals repeating and convolving, without the large map between."""
    s.claim(words, layer(score), in_two_steps)
    s.text("""Not every transposed convolution can be written this way: 4 taps come from 3 free
        numbers. What is given up includes everything that makes checkerboards, as the next topic
        shows.""")


def checkerboards(s: Section, learned: Floats | None = None) -> None:
    """Explain checkerboards, also with a learned kernel (k, k) of stride k / 2 if there is one."""
    s.text("""Where the stride does not divide the kernel's size, some outputs receive more taps
        than others. With random or freely learned weights the output then shows a pattern of its
        own, a checkerboard, whatever the input. Count the taps that meet at each output:""")
    shown = {}
    for k, stride in ((3, 2), (4, 2), (5, 3), (6, 3), (2, 2), (5, 2)):
        taps = op.overlap(k, stride, 6)
        shown[f"kernel {k}, stride {stride}\n{'uneven' if k % stride else 'even'}"] = np.outer(
            taps, taps
        )
    words = "How many taps meet at each output pixel, for 6 × 6 inputs; darker is more."
    s.panels(words, shown, 1.35, numbers=False)
    s.text("""Equal counts are not enough: with random weights, the taps that meet at one output
        have another sum than those at the next. Give the layer a constant input and look at the
        ripple: the range of the output over its mean. Two kernels keep a constant constant:
        bilinear, because of its values, and repeat-then-convolve, whatever its weights, because all
        of *q* meets at every output.""")
    rng = np.random.default_rng(6)
    resize = NearestConvUpsampling(2, 2)
    resize.weight.data = torch.from_numpy(rng.uniform(size=(2, 2, 3, 3)))
    kernels = {
        "random, 3 taps at stride 2": (rng.uniform(size=(3, 3)), 2),
        "random, 4 taps at stride 2": (rng.uniform(size=(4, 4)), 2),
        "bilinear, 4 taps": (bilinear_kernel(4).double().numpy(), 2),
        "repeat, then 3 random taps": (resize.kernels()[0, 0].detach().numpy(), 2),
    }
    if learned is not None:
        kernels[f"learned here, {len(learned)} taps"] = (learned, len(learned) // 2)
    shown, gains = {}, {}
    frequencies = np.linspace(0, 1, 400)  # 1: the copy of a constant
    for name, (kernel, stride) in kernels.items():
        flat = op.transposed_by_stamping(np.ones((12, 12)), kernel, stride)[0]
        inside = slice(4 * stride, 4 * stride + max(8, 2 * stride))
        flat = flat[inside, inside] / flat[inside, inside].mean()
        shown[f"{name}\nripple {100 * np.ptp(flat):.0f} %"] = flat - 1
        gain = op.frequency_response(kernel.sum(0), frequencies / stride) / abs(kernel.sum())
        gains[name] = (frequencies, np.minimum(gain, 3))
        if name.startswith(("bilinear", "repeat")):
            s.claim(f"{name.capitalize()}: a constant stays constant.", flat, 1)
    words = "What a constant input becomes, relative to its mean; 30 % has the strongest colour."
    s.panels(words, shown, 1.6, limit=0.3, numbers=False)
    s.text("""The same in frequencies, for readers who know spectra; others may skip to topic 7.
        Zeros between the pixels repeat the image's spectrum every 1/*s* cycles per pixel, and the
        kernel has to remove those copies. A constant has only the frequency 0; its copies lie at
        multiples of 1/*s*. What a kernel lets through there is the checkerboard.""")
    words = """At 0 the gain is 1. At 1 lies the copy of a constant, which bilinear and
        repeat-then-convolve remove and random kernels let through."""
    plots = {"gain, relative to that of a constant": gains}
    s.lines(words, plots, "frequency, in multiples of 1/stride (1: the copy of a constant)", "gain")
    row = rng.normal(size=9)
    gain, sums = op.frequency_response(row, np.arange(4) / 4), op.phase_sums(row, 4)
    words = """The gains at the copies are the Fourier transform of the sums of the taps that meet
        at each place: no gain there and no ripple are the same thing."""
    s.claim(words, gain, np.abs(np.fft.fft(sums)))


def tensor(array: Floats) -> Tensor:
    """Convert (h, w) to (1, 1, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(array))[None, None]


def conv2d(x: Floats, kernel: Floats, **options: Any) -> Tensor:
    """Return PyTorch's convolution of two arrays."""
    return F.conv2d(tensor(x), tensor(kernel), **options)


def transposed(x: Floats, kernel: Floats, **options: Any) -> Tensor:
    """Return PyTorch's transposed convolution of two arrays."""
    return F.conv_transpose2d(tensor(x), tensor(kernel), **options)
