"""Topics 5 and 6: repeating and convolving, and the checkerboards that it cannot draw."""

import numpy as np
import torch
from torch.nn import functional as F

from fcn.explain import operators as op
from fcn.explain.arithmetic import differ, tensor
from fcn.explain.figures import Panel, lines, tiles
from fcn.explain.operators import Floats
from fcn.explain.story import Section
from fcn.models.upsampling import NearestConvUpsampling, bilinear_kernel

PAIRS = ((3, 2), (4, 2), (5, 3), (6, 3), (2, 2), (5, 2))  # kernel, stride


def repeat() -> Section:
    section = Section(5, "repeat", "Repeat every pixel, then convolve: the same layer again")
    q = np.array([1.0, 2, 1]) / 4
    kernel = op.repeat_then_convolve(q, 2)
    x = np.array([[2.0, 6, 4, 8]])
    repeated = x.repeat(2, axis=1)
    after = F.conv2d(tensor(repeated), tensor(q[None]), padding=(0, 2))
    at_once = op.transposed_by_stamping(x, kernel[None], 2)[0]
    section.text(
        """Another common way to enlarge is to repeat every pixel and convolve the result: nearest-
        neighbour upsampling, then an ordinary layer. By 2 with three taps <i>q</i><sub>0</sub>,
        <i>q</i><sub>1</sub>, <i>q</i><sub>2</sub>, each input is met by <i>q</i><sub>0</sub> alone
        at one end, by <i>q</i><sub>0</sub> + <i>q</i><sub>1</sub>, by <i>q</i><sub>1</sub> +
        <i>q</i><sub>2</sub>, and by <i>q</i><sub>2</sub> alone. Those four sums are the kernel of
        one transposed convolution of stride 2. With <i>q</i> = 1/4, 1/2, 1/4 they are 1/4, 3/4,
        3/4, 1/4: bilinear interpolation."""
    )
    section.picture(
        "repeat",
        tiles(
            [
                Panel(x, "x", "{:.3g}", 8),
                Panel(repeated, "x, each twice", "{:.3g}", 8),
                Panel(q[None], "q", "{:.2f}", 1),
                Panel(kernel[None], "q0, q0+q1, q1+q2, q2", "{:.2f}", 1),
                Panel(after[0, 0].numpy(), "repeated, then convolved with q", "{:.3g}", 8),
                Panel(at_once, "those four taps stamped at stride 2", "{:.3g}", 8),
            ],
            columns=2,
            largest=3.6,
        ),
        "Four numbers doubled: by repeating and convolving, and at once.",
    )
    section.claim(
        "Repeating, then convolving, is the one transposed convolution.",
        differ(at_once, after),
    )
    layer = NearestConvUpsampling(8, 3).double()
    torch.manual_seed(0)
    torch.nn.init.normal_(layer.weight)
    score = torch.randn(1, 3, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        two_steps = F.conv2d(F.interpolate(score, scale_factor=8), layer.weight, padding=8)
        difference = float((layer(score) - two_steps).abs().max())
    section.claim(
        """This project's <code>upsampling=nearest_conv</code> is computed so, in two dimensions,
        with classes mixed and by 8: equal to repeating and convolving, without the map between.""",
        difference,
    )
    section.text(
        """Not every transposed convolution can be had this way: 4 taps come from 3 free numbers.
        Among what is given up is all that makes checkerboards, as the next topic shows."""
    )
    return section


def checkerboards(learned: Floats | None = None) -> Section:
    """Args: learned: taps (k, k) of a trained kernel of stride k / 2, if there is one."""
    section = Section(6, "checkerboards", "Checkerboards: when stamps overlap unevenly")
    section.text(
        """Where the stride does not divide the kernel, some outputs are met by more taps than
        others. With random or freely learned weights the output then shows a pattern of its own, a
        checkerboard, whatever the input. Count the taps that meet each output:"""
    )
    counts = {
        f"kernel {k}, stride {s}\n{'even' if k % s == 0 else 'uneven'}": op.overlap(k, s, 6)
        for k, s in PAIRS
    }
    section.picture(
        "overlap",
        tiles(
            [Panel(np.outer(taps, taps), title) for title, taps in counts.items()],
            columns=6,
            largest=1.35,
        ),
        "How many taps meet each output pixel, 6 × 6 inputs; darker is more.",
    )
    rng = np.random.default_rng(6)
    section.text(
        """Equal counts do not suffice: with random weights, the taps that meet at one place sum to
        something else than those next door. Give the layer a constant input and look. Two kernels
        keep a constant constant: bilinear, by its values, and repeat-then-convolve, by its
        construction, whatever its weights, because every output meets all of <i>q</i>. The ripple
        is the range of the values over their mean."""
    )
    random_layer = NearestConvUpsampling(2, 2)
    torch.manual_seed(6)
    torch.nn.init.uniform_(random_layer.weight)
    resized = random_layer.kernels()[0, 0].detach().double().numpy()
    kernels = {
        "random, 3 taps at stride 2": (rng.uniform(size=(3, 3)), 2),
        "random, 4 taps at stride 2": (rng.uniform(size=(4, 4)), 2),
        "bilinear, 4 taps": (bilinear_kernel(4).double().numpy(), 2),
        "repeat, then random 3 taps": (resized, 2),
    }
    if learned is not None:
        kernels[f"learned here, {len(learned)} taps"] = (learned, len(learned) // 2)
    panels = []
    for name, (kernel, stride) in kernels.items():
        flat = op.transposed_by_stamping(np.ones((12, 12)), kernel, stride)[0]
        side = max(8, 2 * stride)  # pixels to show
        middle = flat[4 * stride : 4 * stride + side, 4 * stride : 4 * stride + side]
        ripple = np.ptp(middle) / max(abs(float(middle.mean())), 1e-9)
        panels.append(
            Panel(
                middle - middle.mean(),
                f"{name}\nripple {100 * ripple:.0f} %",
                limit=max(0.3 * abs(float(middle.mean())), 1e-9),
            )
        )
        if name.startswith(("bilinear", "repeat")):
            section.claim(f"{name.capitalize()}: a constant stays constant.", np.ptp(middle), 1e-5)
    section.picture(
        "constant",
        tiles(panels, columns=5, largest=1.6),
        "What a constant input becomes, less its mean: flat, or a pattern. Full colour is 30 % of "
        "the mean.",
    )
    section.text(
        """The same in frequencies, for readers who know spectra; others may go on to topic 7.
        Zeros between the pixels repeat the image's spectrum once every 1/<i>s</i> cycles a pixel,
        and the kernel has to take those copies away again. A constant has only the frequency 0;
        its copies lie at multiples of 1/<i>s</i>. What a kernel lets through there is the
        checkerboard."""
    )
    frequencies = np.linspace(0, 0.5, 400)
    series = {}
    for name, (kernel, stride) in kernels.items():
        row = kernel.sum(0)
        gain = op.frequency_response(row, frequencies * 2 / stride) / max(abs(row.sum()), 1e-9)
        series[name] = (frequencies * 2, np.minimum(gain, 3))
    section.picture(
        "frequencies",
        lines(
            {"gain, relative to that of a constant": series},
            "frequency, in copies' distance (1 = the copy of a constant)",
            "gain",
        ),
        "At 0 the gain is 1. At 1 lies the copy of a constant, which bilinear and repeat-then-"
        "convolve take away and random kernels let through.",
    )
    kernel = rng.normal(size=9)
    gains = op.frequency_response(kernel, np.arange(4) / 4)
    section.claim(
        "The gains at the copies are the Fourier transform of what the taps that meet at each "
        "place sum to: no gain there and no ripple are the same thing.",
        float(np.abs(gains - np.abs(np.fft.fft(op.phase_sums(kernel, 4)))).max()),
    )
    return section
