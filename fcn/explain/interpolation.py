"""Topic 4: bilinear interpolation as a transposed convolution."""

import time
from functools import partial
from statistics import median

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from fcn.explain import operators as op
from fcn.explain.figures import Panel, lines, tiles
from fcn.explain.operators import Floats
from fcn.explain.story import Section
from fcn.models.upsampling import FixedUpsampling, bilinear_kernel

FACTORS = (2, 8, 16, 32)  # of the paper's layers


def bilinear() -> Section:
    section = Section(4, "bilinear", "Bilinear interpolation is such a layer")
    tents = {f: bilinear_kernel(2 * f).double().numpy() for f in FACTORS}
    section.text(
        """Enlarging by drawing straight lines between neighbours is linear interpolation. Every
        input then matters most at its own place and less and less towards its neighbours, where
        its weight reaches zero: a tent. Stamp tents of the right width, one an input, and their
        sum is the interpolated signal. In two dimensions the kernel is the tent across times the
        tent down. For a factor <i>f</i> it has 2<i>f</i> taps a side; for <i>f</i> = 2 these are
        1, 3, 3, 1 over 4, and in two dimensions 9/16 inside, 3/16 along the edges and 1/16 at the
        corners. New pixels lie between the old ones, so taps stand beside the tent's tip and feet,
        never on them."""
    )
    section.picture(
        "tents",
        lines(
            {f"factor {f}": {"taps": (np.arange(2 * f), tents[f].sum(0) / f)} for f in FACTORS},
            "tap",
            "weight",
            marker="o",
        ),
        "The kernel in one dimension for the paper's factors: tents of 4, 16, 32 and 64 taps.",
    )
    section.picture(
        "kernels",
        tiles(
            [
                Panel(16 * tents[2], "factor 2, in sixteenths", "{:.0f}", 9),
                *(Panel(tents[f], f"factor {f}, {2 * f} × {2 * f}") for f in (8, 16, 32)),
            ],
            largest=1.7,
        ),
        "The same in two dimensions.",
    )
    x = np.array([[0.0, 4, 2], [6, 1, 3], [2, 5, 0]])
    result, stamps = op.transposed_by_stamping(x, tents[8], 8)
    section.picture(
        "sum_of_tents",
        tiles(
            [
                Panel(x, "scores, 3 × 3", "{:.0f}", 6),
                Panel(stamps[1], "tent of the 4", limit=6),
                Panel(stamps[3], "tent of the 6", limit=6),
                Panel(stamps[1] + stamps[3], "both", limit=6),
                Panel(result, "all nine: upsampled by 8", limit=6),
            ],
            largest=1.6,
        ),
        "Nine tents and their sum. At the border the sum fades towards zero, since no neighbours "
        "lie outside.",
    )
    inside, border = _against_scipy(x, tents)
    section.claim(
        """Inside, for factors 2, 8, 16 and 32, the layer gives what SciPy's
        <code>ndimage.zoom</code> of order 1 does;""",
        inside,
        1e-6,
    )
    section.claim(
        "and at the borders too, where SciPy is told that zeros lie outside.", border, 1e-6
    )
    score = torch.from_numpy(np.random.default_rng(4).normal(size=(1, 2, 6, 9)))
    dense = F.conv_transpose2d(
        score, bilinear_kernel(64).double().repeat(2, 1, 1, 1), stride=32, groups=2
    )
    layer = FixedUpsampling(32)
    rows = layer.matrix(6, 0, dense.shape[-2], score)
    columns = layer.matrix(9, 0, dense.shape[-1], score)
    section.text(
        """Because the kernel is one tent times another, the two directions can be taken one after
        the other: <i>U<sub>h</sub> S U<sub>w</sub></i><sup>T</sup>, with <i>S</i> the scores and
        <i>U</i> the one-dimensional layer's matrix. This project's <code>upsampling=fixed</code>
        does so, borders included."""
    )
    section.claim(
        "Two matrix products equal the transposed convolution by 32.",
        float((rows @ score @ columns.T - dense).abs().max()),
        1e-6,
    )
    section.table(("×32 to 416 × 544, 21 classes", "multiplications", "ms, here and now"), _costs())
    section.text(
        """Two products multiply more often than one kernel a class would, mostly by zero, and are
        fast all the same: multiplying matrices is what processors do best."""
    )
    section.text(
        """And since it is a layer like any other, it can be trained. The paper starts its
        upsampling at bilinear and lets it learn; the authors' released nets keep it fixed. Topic 8
        looks at what learning changes."""
    )
    return section


def _costs() -> list[tuple[str, str, str]]:
    """Ways to upsample 21 classes by 32: multiplications, and the median time of five calls."""
    classes, h, w, f = 21, 12, 16, 32
    score, layer = torch.randn(1, classes, h, w), FixedUpsampling(f)
    height, width = layer.full_size(score)
    one = bilinear_kernel(2 * f).expand(classes, 1, -1, -1)
    every = torch.eye(classes)[..., None, None] * one[:1]
    stamps = h * w * (2 * f) ** 2 * classes
    ways = (
        (
            "a kernel for each pair of classes",
            stamps * classes,
            partial(F.conv_transpose2d, score, every),
        ),
        ("one kernel a class", stamps, partial(F.conv_transpose2d, score, one, groups=classes)),
        ("two matrix products", classes * (height * h * w + height * w * width), None),
    )
    rows = []
    for name, multiplications, convolve in ways:
        taken = []
        for _ in range(6):
            started = time.perf_counter()
            layer(score) if convolve is None else convolve(stride=f)
            taken.append(time.perf_counter() - started)
        rows.append((name, f"{multiplications:,}", f"{1000 * median(taken[1:]):.1f}"))
    return rows


def _against_scipy(x: Floats, kernels: dict[int, Floats]) -> tuple[float, float]:
    """Largest differences from SciPy's interpolation: inside, and everywhere with zeros
    outside."""
    inside = border = 0.0
    for f, kernel in kernels.items():
        result = op.transposed_by_stamping(x, kernel, f)[0]
        # The layer's result begins half an input before the first pixel: f/2 of f + f/2 there.
        ours = result[f // 2 : f // 2 + 3 * f, f // 2 : f // 2 + 3 * f]
        theirs = ndimage.zoom(x, f, order=1, mode="nearest", grid_mode=True)
        middle = slice(f // 2, -f // 2)  # between the outermost inputs' centres
        inside = max(inside, float(np.abs(ours - theirs)[middle, middle].max()))
        zeros = ndimage.zoom(np.pad(x, 2), f, order=1, mode="grid-constant", grid_mode=True)
        begin = 3 * f // 2
        whole = zeros[begin : begin + len(result), begin : begin + len(result)]
        border = max(border, float(np.abs(result - whole).max()))
    return inside, border
