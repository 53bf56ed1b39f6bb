"""Topics 1 to 6, which need no network: what a transposed convolution computes."""

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
from fcn.models.upsampling import NearestConvUpsampling, bilinear_kernel


def matrix(s: Section) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 10, (4, 4)).astype(float), rng.integers(1, 10, (2, 2)).astype(float)
    kernel = np.array([[1.0, 2, 1], [0, 3, 0], [-1, -2, -1]])
    c = op.convolution_matrix(kernel, (4, 4))
    cx, cty = (c @ x.ravel()).reshape(2, 2), (c.T @ y.ravel()).reshape(4, 4)
    s.text("""A convolution layer slides a small kernel over an image; each output is a weighted sum
        of the pixels under it. The weights of the kernel are also called its taps. Write the pixels
        in one column, line by line, and the layer becomes a matrix *C* with one row for each
        output, as in a dense layer. But every row holds the same nine weights, shifted, and zeros
        elsewhere: that is all that makes it a convolution.""")
    shown = {"image x, 4 × 4": x, "kernel": kernel, "C: 4 outputs from 16 pixels": c, "C x": cx}
    s.panels("A 3 × 3 kernel over a 4 × 4 image, and the same as a matrix.", shown, 4.2)
    s.code(f"""
        x = torch.tensor({_whole(x)})
        x = x.float().view(1, 1, 4, 4)  # batch, channels, rows, columns
        kernel = torch.tensor({_whole(kernel)})
        kernel = kernel.float().view(1, 1, 3, 3)
        one = torch.eye(16).view(16, 1, 4, 4)  # one pixel is 1, all others 0
        C = F.conv2d(one, kernel).flatten(1).T  # a column for each pixel
        # In the picture: "C: 4 outputs from 16 pixels", "C x", "C x"
        C, C @ x.flatten(), F.conv2d(x, kernel)
    """)
    s.text("""Now transpose the matrix. *Cᵀ* has the same weights, but takes 4 numbers to 16: from
        2 × 2 up to 4 × 4. This layer is called transposed convolution, backwards convolution, or
        deconvolution. The last name misleads: elsewhere it means to remove the blur from an image,
        a true inverse. `ConvTranspose2d` computes the product without building the matrix.""")
    shown = {"y, 2 × 2": y, "Cᵀ: 16 outputs from 4": c.T, "Cᵀ y": cty}
    s.panels("Cᵀ takes four numbers to sixteen; it has one column for each input.", shown, 4.2)
    s.code(f"""
        y = torch.tensor([[{_whole(y)}]]).float()
        layer = nn.ConvTranspose2d(1, 1, 3, bias=False)
        layer.weight.data = kernel
        C.T @ y.flatten(), layer(y)  # both: "Cᵀ y"
    """)
    settings = f"n=2&k=3&x={_listed(y)}&w={_listed(kernel)}&view=matrix"
    s.explore("Point at the entries of this matrix in the explorer", settings)
    both = cx.ravel() @ y.ravel(), x.ravel() @ cty.ravel()
    s.claim("Here (*C x*) · *y* = *x* · (*Cᵀy*), the equation that defines a transpose.", *both)
    s.text("""You have used *Cᵀ* before: to train a convolution, back-propagation multiplies the
        gradient at its outputs by *Cᵀ* to get the gradient at its inputs. The forward pass of one
        layer is the backward pass of the other: hence *backwards convolution*. Both are trained by
        back-propagation, like any layer.""")
    s.code("""
        x.requires_grad_()
        F.conv2d(x, kernel).backward(y)
        y.requires_grad_()
        layer(y).backward(x.detach())
        x.grad, y.grad  # "Cᵀ y", "C x"
    """)
    again = (c.T @ cx.ravel()).reshape(4, 4)
    again *= (x * again).sum() / (again**2).sum()  # least squares
    missed = float(np.linalg.norm(x - again) / np.linalg.norm(x))
    s.text(f"""The transpose does not undo the convolution: no layer can recover sixteen pixels from
        four numbers. Even *CᵀC x* times the best possible factor is far from *x*: as vectors,
        their difference is {100 * missed:.0f} % as long as *x*. The transpose reverses the shapes
        and the connections, not the values. Those depend on the weights, which can be chosen, or
        learned.""")
    shown = {"x": x, "C x": cx, "Cᵀ C x, scaled to fit": again.round(1)}
    s.panels("There and back: the shape returns, the values do not.", shown, 2.6)
    s.code("""
        back = C.T @ (C @ x.detach().flatten())
        back *= (x.flatten() @ back) / (back @ back)  # least squares
        back.round(decimals=1)  # "Cᵀ C x, scaled to fit"
    """)


def arithmetic(s: Section) -> None:
    x, ones = np.array([[1.0, 2], [3, 4]]), np.ones((3, 3))
    result, stamps = op.transposed_by_stamping(x, ones, 2)
    s.text("""A convolution of stride *s* moves its kernel by *s* pixels at a time, and so shrinks
        the image *s* times. A transposed convolution moves it by *s* pixels in the *output*, and
        so enlarges: every input stamps the kernel, times the input's value, onto the output, *s*
        pixels from its neighbour's stamp. Where stamps overlap, they add.""")
    shown = {f"stamp of {v:.0f}": stamp for v, stamp in zip(x.ravel(), stamps, strict=True)}
    shown = {"input": x} | shown | {"their sum, 5 × 5": result}
    s.panels("A 3 × 3 kernel of ones at stride 2 on a 2 × 2 input.", shown, 1.7, limit=10)
    s.code("""
        x = torch.tensor([[1.0, 2], [3, 4]])
        kernel = torch.ones(3, 3)
        total = torch.zeros(5, 5)
        for i in range(2):
            for j in range(2):
                under = total[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                under += x[i, j] * kernel
        layer = nn.ConvTranspose2d(1, 1, 3, stride=2, bias=False)
        layer.weight.data = kernel.view(1, 1, 3, 3)
        total, layer(x.view(1, 1, 2, 2))  # both: "their sum, 5 × 5"
    """)
    s.explore("Play these stamps in the explorer", "n=2&k=3&s=2&x=count&view=stamps")
    g = np.arange(25.0).reshape(5, 5)  # a gradient at the outputs
    under = [x[i, j] * g[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] for i, j in np.ndindex(2, 2)]
    back = vjp(lambda k: F.conv_transpose2d(_tensor(x), k, stride=2), _tensor(ones), _tensor(g))[1]
    words = """The gradient that trains the kernel is a sum over the inputs: each input times the
        gradient at the outputs under its stamp."""
    s.claim(words, np.sum(under, axis=0), back)
    s.text("""The same result can be computed output by output. Put *s* − 1 zeros between the inputs
        and *k* − 1 around them, turn the *k* × *k* kernel by 180°, and run an ordinary convolution
        of stride 1. The zeros are not data. A convolution of stride *s* has no outputs at the
        *s* − 1 places that it skips, so on the way back nothing comes from there: a tap that meets
        a zero adds nothing. Libraries do not store the zeros. Measured in input pixels, the kernel
        now moves by 1/*s*: hence the name *fractionally strided* convolution.""")
    kernel = np.arange(1.0, 10).reshape(3, 3)
    spread, turned = np.pad(op.insert_zeros(x, 2), 2), kernel[::-1, ::-1]
    shown = {"input": x, "zeros between": op.insert_zeros(x, 2)}
    shown |= {"zeros around": spread, "kernel, turned": turned}
    for i, j in ((0, 0), (0, 1), (1, 1), (2, 2)):
        seen = spread[i : i + 3, j : j + 3]
        shown[f"output {i, j}: {(seen * turned).sum():.0f}"] = seen
    shown["all outputs"] = op.transposed_by_insertion(x, kernel, 2)
    words = """A kernel of 1 to 9. Second row: what the turned kernel sees at four places, and the
        output there. Only the taps that fall on real inputs count."""
    s.panels(words, shown, 2.0, columns=4)
    s.code("""
        kernel = torch.arange(1.0, 10).view(1, 1, 3, 3)
        spread = torch.zeros(1, 1, 7, 7)
        spread[..., 2:5:2, 2:5:2] = x
        layer.weight.data = kernel  # so it stamps this kernel
        F.conv2d(spread, kernel.flip(-2, -1)), layer(x[None, None])  # both: "all outputs"
    """)
    s.explore("Slide this window in the explorer", "n=2&k=3&s=2&x=count&w=count&view=windows")
    s.text("""The sizes follow. Along each axis, a convolution takes *n* inputs to
        ⌊(*n* + 2*p* − *k*) / *s*⌋ + 1 outputs, the transposed one to (*n* − 1) *s* + *k* − 2*p*.
        Padding *p* adds *p* rows and columns of zeros on each side of a convolution's input, but
        cuts them off a transposed convolution's output.""")
    rows, formula, measured = [], [], []
    layers = ((4, 3, 1, 0), (5, 3, 2, 1), (6, 3, 2, 1), (12, 4, 2, 1), (16, 16, 8, 4))
    for n, k, stride, p in layers:
        down = op.output_size(n, k, stride, p)
        up = op.transposed_size(down, k, stride, p)
        rows.append((f"k {k}, s {stride}, p {p}", n, down, up))
        small = _conv2d(np.ones((n, n)), np.ones((k, k)), stride=stride, padding=p)
        large = _transposed(small, np.ones((k, k)), stride=stride, padding=p)
        formula += [down, up]
        measured += [len(small), len(large)]
    s.table(("layer", "inputs", "convolution gives", "transposed back"), rows)
    s.claim("PyTorch's layers have the sizes of this table.", formula, measured, 0)
    s.text("""Because ⌊ ⌋ rounds down, several input sizes lead to one output size: with kernel 3,
        stride 2 and padding 1, both 5 and 6 become 3. Back from 3, PyTorch gives the smaller size,
        5: the full result, 7 × 7, without its first and last row and column. If 6 is wanted, say
        `output_padding=1`: in spite of the name it adds no zeros to this output, but keeps the last
        row and column. This project's layers need neither argument: they crop (topic 7).""")
    full, _ = op.transposed_by_stamping(ones, ones, 2)
    shown = {"full, 7 × 7": full, "padding=1: 5 × 5": full[1:-1, 1:-1]}
    shown["output_padding=1: 6 × 6"] = full[1:, 1:]
    s.panels("3 × 3 inputs, all 1, and a 3 × 3 kernel of ones at stride 2.", shown, 2.4, limit=8)
    s.code("""
        ones = torch.ones(1, 1, 3, 3)
        options = {"stride": 2, "padding": 1}
        five = F.conv_transpose2d(ones, ones, **options)
        options["output_padding"] = 1
        six = F.conv_transpose2d(ones, ones, **options)
        # In the picture: "padding=1: 5 × 5", "output_padding=1: 6 × 6"
        five, six
    """)
    s.explore("Try output padding in the explorer", "preset=outputpadding")


def operators(s: Section) -> None:
    rng = np.random.default_rng(3)
    kernel = np.array([[1.0, 2, 3]])
    c, d = op.convolution_matrix(kernel, (1, 9)), op.downsampling_matrix(4, 2)
    spread = op.downsampling_matrix(3, 2).T @ kernel[0]
    dilated = op.convolution_matrix(spread[None], (1, 9))
    s.text("""Two matrices are enough for all three; here they are in one dimension. *C* is a
        convolution of stride 1. *D* keeps every second value; its transpose *Dᵀ* puts zeros between
        values.""")
    shown = {"C: kernel 1 2 3": c, "D: every second": d, "D C: stride 2": d @ c}
    shown |= {"Dᵀ: zeros between": d.T, "CᵀDᵀ: transposed": (d @ c).T}
    shown |= {"kernel Dᵀk: dilated": dilated}
    words = "Strided, transposed and dilated convolution with one kernel, as matrices."
    s.panels(words, shown, 2.6, columns=3, limit=3)
    s.code("""
        kernel = torch.tensor([[[1.0, 2, 3]]])
        one = torch.eye(9)[:, None]  # one input is 1, the others 0
        strided = F.conv1d(one, kernel, stride=2)[:, 0].T  # "D C: stride 2"
        dilated = F.conv1d(one, kernel, dilation=2)[:, 0].T  # "kernel Dᵀk: dilated"
        one = torch.eye(4)[:, None]
        transposed = F.conv_transpose1d(one, kernel, stride=2)[:, 0].T
        strided, dilated, transposed  # "CᵀDᵀ: transposed"
    """)
    s.text("""A strided convolution is *D C*: convolve everywhere, keep every second. The transposed
        one is *CᵀDᵀ*: zeros between the pixels, then a convolution with the kernel turned. A
        dilated one has zeros between the weights of its kernel: it sees further, and the image does
        not shrink. A sub-pixel convolution computes *s*² maps and arranges their values as
        *s* × *s* pixels (`PixelShuffle`). It is the transposed convolution again, with its weights
        in another order.""")
    taps, z = torch.from_numpy(rng.normal(size=(4, 4))), _tensor(rng.normal(size=(5, 6)))
    phases = torch.stack([taps[None, i::2, j::2] for i in (0, 1) for j in (0, 1)]).flip(-2, -1)
    words = """A 2 × 2 convolution to four maps, arranged as 2 × 2 pixels, equals the transposed
        convolution with a 4 × 4 kernel and stride 2, away from the edges."""
    inside = F.conv_transpose2d(z, taps[None, None], stride=2)[..., 2:-2, 2:-2]
    s.claim(words, F.pixel_shuffle(F.conv2d(z, phases), 2), inside)
    s.explore("See dilation in the explorer", "preset=dilation")


def bilinear(s: Section) -> None:
    tents = {f: bilinear_kernel(2 * f).double().numpy() for f in (2, 8, 16, 32)}
    s.text("""Linear interpolation draws straight lines between neighbours. Every input then counts
        most at its own place and less and less towards its neighbours, where its weight reaches
        zero: a tent. Stamp a tent for each input; their sum is the interpolated signal. For a
        factor *f* the kernel has 2*f* taps; for *f* = 2 these are 1/4, 3/4, 3/4, 1/4. New pixels
        lie between the old ones, so no tap falls on the tent's peak or on its feet. In two
        dimensions the kernel is the tent across times the tent down.""")
    curves = {}
    for f, kernel in tents.items():
        curves[f"factor {f}"] = (np.arange(0.5, 2 * f) / f - 1, kernel.sum(0) / f)
    words = "One tent for all the factors of the FCN paper, with 4, 16, 32 and 64 taps (dots)."
    s.lines(words, curves, "distance from the input, in inputs")
    s.code("""
        def bilinear(f):
            k = 2 * f
            tent = 1 - (torch.arange(k) - (k - 1) / 2).abs() / f
            return torch.outer(tent, tent)

        bilinear(8).sum(0) / 8  # the tent: "factor 8"
    """)
    x = np.array([[0.0, 4, 2], [6, 1, 3], [2, 5, 0]])
    result, (_, four, _, six, *_) = op.transposed_by_stamping(x, tents[8], 8)
    shown = {"factor 2, in sixteenths": 16 * tents[2], "input, 3 × 3": x, "tent of the 4": four}
    shown |= {"tent of the 6": six, "both": four + six, "all nine: upsampled by 8": result}
    words = """The kernel of factor 2; then, with factor 8, the stamps of two inputs, both together,
        and the sum of all nine. It fades towards the edges: no neighbours lie outside."""
    s.panels(words, shown, 1.5, limit=8)
    s.code(f"""
        K = 3  # classes; 21 in the paper
        layer = nn.ConvTranspose2d(K, K, 16, stride=8, bias=False)
        nn.init.zeros_(layer.weight)
        for c in range(K):  # a class is enlarged by itself
            layer.weight.data[c, c] = bilinear(8)
        x = torch.tensor({_whole(x)}).float()
        layer(x.expand(1, K, 3, 3))[0, 0]  # "all nine: upsampled by 8"
    """)
    settings = f"n=3&k=16&s=8&x={_listed(x)}&w=bilinear"
    s.explore("Stamp these tents in the explorer", settings)
    differences = []
    for f, kernel in tents.items():
        zoomed = ndimage.zoom(np.pad(x, 2), f, order=1, mode="grid-constant", grid_mode=True)
        same = slice(3 * f // 2, 3 * f // 2 + 4 * f)
        ours = op.transposed_by_stamping(x, kernel, f)[0]
        differences.append(np.abs(ours - zoomed[same, same]).max())
    words = """For factors 2, 8, 16 and 32 the layer gives what SciPy's linear `ndimage.zoom` gives
        for the input surrounded by zeros."""
    s.claim(words, max(differences), limit=1e-6)
    s.text("""Since it is a layer like any other, it can be trained. In the FCN of CVPR 2015 all
        upsampling layers start as bilinear; the last one stays so, the others are learned
        (`upsampling=cvpr15`). In the networks that the authors released, all are fixed. Topic 8
        shows what learning changes.""")


def repeat(s: Section) -> None:
    q, x = np.array([[1.0, 2, 1]]) / 4, np.array([[2.0, 6, 4, 8]])
    kernel = op.repeat_then_convolve(q[0], 2)[None]
    repeated = x.repeat(2, axis=1)
    convolved = _conv2d(repeated, q, padding=(0, 2))
    at_once = op.transposed_by_stamping(x, kernel, 2)[0]
    s.text("""Another common way to enlarge an image is to repeat every pixel and convolve the
        result (`nn.Upsample`, then `nn.Conv2d`). Repeat every input twice and convolve with three
        taps *q*₀, *q*₁, *q*₂: an input reaches four outputs, with the weights *q*₂, *q*₂ + *q*₁,
        *q*₁ + *q*₀ and *q*₀. These are the kernel of one transposed convolution of stride 2. With
        *q* = 1/4, 1/2, 1/4 they are 1/4, 3/4, 3/4, 1/4: bilinear interpolation.""")
    shown = {"x, each twice": repeated, "q": q, "convolved with q": convolved}
    shown |= {"x": x, "q₂, q₂+q₁, q₁+q₀, q₀": kernel, "stamped at stride 2": at_once}
    words = "Four numbers doubled: above by repeating and convolving, below at once."
    s.panels(words, shown, 3.6, columns=3)
    s.code("""
        x = torch.tensor([[[2.0, 6, 4, 8]]])
        two_steps = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv1d(1, 1, 3, padding=2, bias=False),
        )
        two_steps[1].weight.data = torch.tensor([[[1.0, 2, 1]]]) / 4
        at_once = nn.ConvTranspose1d(1, 1, 4, stride=2, bias=False)
        at_once.weight.data = torch.tensor([[[1.0, 3, 3, 1]]]) / 4
        two_steps(x), at_once(x)  # both: "convolved with q"
    """)
    s.text("""This project's `upsampling=nearest_conv` is computed at once too. Not every transposed
        convolution can be written this way, since its 4 taps come from 3 numbers. In return, no
        choice of *q* makes checkerboards, as the next topic shows.""")
    s.explore("Edit this kernel in the explorer", "preset=repeat")


def checkerboards(s: Section) -> None:
    s.text("""Where the stride does not divide the kernel's size, more stamps overlap at some
        outputs than at others. Unless the weights balance this, the output has a pattern of its
        own, a checkerboard, even if the input is constant. Count the taps that meet at each
        output:""")
    shown = {}
    for k, stride in ((3, 2), (4, 2), (5, 3), (6, 3)):
        taps, even = op.overlap(k, stride, 6), "uneven" if k % stride else "even"
        shown[f"kernel {k}, stride {stride}\n{even}"] = np.outer(taps, taps)
    words = "How many taps meet at each output pixel, for 6 × 6 inputs; darker is more."
    s.panels(words, shown, 1.35, numbers=False)
    s.code("""
        def taps(k, s):
            x, kernel = torch.ones(1, 1, 6, 6), torch.ones(1, 1, k, k)
            return F.conv_transpose2d(x, kernel, stride=s)

        # In the picture: "kernel 3, stride 2 uneven", "kernel 4, stride 2 even"
        taps(3, 2), taps(4, 2)
    """)
    s.explore("Change kernel and stride in the explorer", "preset=checkerboard&n=6&view=overlap")
    s.text("""Equal counts are not enough: different taps meet at neighbouring outputs, and random
        weights give them different sums. Give the layer a constant input and look at the ripple:
        the largest output minus the smallest, over the mean. Bilinear taps have equal sums. After
        repeating, all of *q* meets at every output, so the sums are equal whatever *q* is.""")
    s.text("""To avoid checkerboards, Odena et al. 2016 advise a kernel size that the stride divides
        or, better, repeating and then convolving. FCNs start from bilinear weights, which have no
        ripple; training may bring some back (topic 8).""")
    rng = np.random.default_rng(6)
    three, four = rng.uniform(size=(3, 3)), rng.uniform(size=(4, 4))
    resize = NearestConvUpsampling(2, 2)
    resize.weight.data = torch.from_numpy(rng.uniform(size=(2, 2, 3, 3)))
    kernels = {
        "random, 3 taps": three,
        "random, 4 taps": four,
        "bilinear, 4 taps": bilinear_kernel(4).double().numpy(),
        "repeat, then 3 random taps": resize.kernels()[0, 0].detach().numpy(),
    }
    shown, gains = {}, {}
    frequencies = np.linspace(0, 1, 61)  # 1: the copy of a constant
    for name, kernel in kernels.items():
        flat = op.transposed_by_stamping(np.ones((12, 12)), kernel, 2)[0][8:16, 8:16]
        flat /= flat.mean()
        shown[f"{name}\nripple {100 * np.ptp(flat):.0f} %"] = flat - 1
        gain = op.frequency_response(kernel.sum(0), frequencies / 2) / kernel.sum()
        gains[name] = (frequencies, gain)
        if name.startswith(("bilinear", "repeat")):
            s.claim(f"{name.capitalize()}: a constant stays constant.", flat, 1)
    words = """What a constant becomes at stride 2, relative to its mean; 30 % has the strongest
        colour."""
    s.panels(words, shown, 1.6, limit=0.3, numbers=False)
    s.code(f"""
        three = np.random.default_rng(6).uniform(size=(3, 3))
        kernel = torch.from_numpy(three).float()[None, None]
        flat = F.conv_transpose2d(torch.ones(1, 1, 12, 12), kernel, stride=2)
        flat = flat[..., 8:16, 8:16]  # far from the edges
        flat / flat.mean() - 1  # "{" ".join(next(iter(shown)).split())}"
    """)
    s.text("""The rest of this topic is for readers who know spectra; others may skip to topic 7.
        Zeros between the pixels repeat the image's spectrum every 1/*s* cycles per pixel, and the
        kernel has to remove those copies. A constant has only the frequency 0; its copies lie at
        multiples of 1/*s*. What a kernel lets through there is the checkerboard.""")
    words = """The gain at each frequency, relative to that of a constant. At 1 lies the copy of a
        constant: bilinear and repeat-then-convolve remove it, random kernels do not."""
    s.lines(words, gains, "frequency times stride (1: the copy of a constant)")
    s.code("""
        row = three.sum(0)  # the taps of one direction
        np.abs(np.fft.rfft(row, 120)) / row.sum()  # "random, 3 taps"
    """)
    row = rng.normal(size=9)
    gain, sums = op.frequency_response(row, np.arange(4) / 4), op.phase_sums(row, 4)
    words = """The gains at the copies are the Fourier transform of the sums of the taps that meet
        at each place. So there is no ripple exactly where these gains are 0."""
    s.claim(words, gain, np.abs(np.fft.fft(sums)))


def _listed(array: Floats) -> str:
    """Return numbers as they stand in an address."""
    return ",".join(f"{number:g}" for number in array.flat)


def _whole(array: Floats) -> list[Any]:
    """Return numbers as they stand in code: nested lists of integers."""
    return array.astype(int).tolist()


def _tensor(array: Floats) -> Tensor:
    """Convert (h, w) to (1, 1, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(array))[None, None]


def _conv2d(x: Floats, kernel: Floats, **options: Any) -> Floats:
    """Return PyTorch's convolution of two arrays."""
    return F.conv2d(_tensor(x), _tensor(kernel), **options)[0, 0].numpy()


def _transposed(x: Floats, kernel: Floats, **options: Any) -> Floats:
    """Return PyTorch's transposed convolution of two arrays."""
    return F.conv_transpose2d(_tensor(x), _tensor(kernel), **options)[0, 0].numpy()
