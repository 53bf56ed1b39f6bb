# %% [markdown]
# # Checkerboards: when stamps overlap unevenly
#
# Where the stride does not divide the kernel's size, more stamps overlap at some outputs than at
# others. Unless the weights balance this, the output has a pattern of its own, a checkerboard, even
# if the input is constant. Count the taps that meet at each output:

# %%
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fcn.explain.show import show, show_lines
from fcn.models.upsampling import NearestConvUpsampling, bilinear_kernel


def taps_that_meet(k: int, s: int) -> torch.Tensor:
    """Count them at each output, for 6 x 6 inputs."""
    return F.conv_transpose2d(torch.ones(1, 1, 6, 6), torch.ones(1, 1, k, k), stride=s)[0, 0]


for k in range(1, 9):  # even if and only if the stride divides the size, away from the edges
    for s in range(1, k + 1):
        inside = F.conv_transpose1d(torch.ones(1, 1, 30), torch.ones(1, 1, k), stride=s)
        inside = inside[..., 12 * s : 13 * s]
        assert (inside.min() == inside.max()) == (k % s == 0)
show(
    {
        f"kernel {k}, stride {s}\n{'uneven' if k % s else 'even'}": taps_that_meet(k, s)
        for k, s in ((3, 2), (4, 2), (5, 3), (6, 3))
    },
    "How many taps meet at each output pixel, for 6 × 6 inputs; darker is more.",
    1.35,
    numbers=False,
)

# %% [markdown]
# [Change kernel and stride in the explorer](explorer.html#checkerboards).
#
# Equal counts are not enough: different taps meet at neighbouring outputs, and random weights give
# them different sums. Give the layer a constant input and look at the ripple: the largest output
# minus the smallest, over the mean. Bilinear taps have equal sums. After repeating, all of *q*
# meets at every output, so the sums are equal whatever *q* is.

# %%
rng = np.random.default_rng(6)
three, four = (torch.from_numpy(rng.uniform(size=(k, k))).float() for k in (3, 4))
resize = NearestConvUpsampling(2, num_classes=1)
nn.init.uniform_(resize.weight, generator=torch.Generator().manual_seed(6))
kernels = {
    "random, 3 taps": three,
    "random, 4 taps": four,
    "bilinear, 4 taps": bilinear_kernel(4),
    "repeat, then 3 random taps": resize.kernels()[0, 0].detach(),
}
ripples = {}
for name, kernel in kernels.items():
    flat = F.conv_transpose2d(torch.ones(1, 1, 12, 12), kernel[None, None], stride=2)[0, 0]
    flat = flat[8:16, 8:16]  # far from the edges
    flat = flat / flat.mean() - 1
    ripple = float(flat.max() - flat.min())
    ripples[f"{name}\nripple {100 * ripple:.0f} %"] = flat
    assert (ripple < 1e-5) == name.startswith(("bilinear", "repeat"))
show(
    ripples,
    "What a constant becomes at stride 2, relative to its mean; 30 % has the strongest colour.",
    1.6,
    limit=0.3,
    numbers=False,
)

# %% [markdown]
# To avoid checkerboards, Odena et al. 2016 advise a kernel size that the stride divides or, better,
# repeating and then convolving. FCNs start from bilinear weights, which have no ripple; training
# may bring some back ("What training changes").
#
# [Enlarge a photograph with such kernels in the
# explorer](explorer.html#checkerboards&view=picture).
#
# ## In frequencies
#
# This part is for readers who know spectra. Zeros between the pixels repeat the image's spectrum
# every 1/*s* cycles per pixel, and the kernel has to remove those copies. A constant has only the
# frequency 0; its copies lie at multiples of 1/*s*. What a kernel lets through there is the
# checkerboard.

# %%
gains = {}
for name, kernel in kernels.items():
    row = kernel.sum(0).numpy()  # the taps of one direction
    gain = np.abs(np.fft.rfft(row, 120)) / row.sum()
    gains[name] = (np.linspace(0, 1, 61), gain)
    assert (gain[-1] < 1e-5) == name.startswith(("bilinear", "repeat"))
show_lines(
    gains,
    """The gain at each frequency, relative to that of a constant. At 1 lies the copy of a constant:
    bilinear and repeat-then-convolve remove it, random kernels do not.""",
    "frequency times stride (1: the copy of a constant)",
)

# %% [markdown]
# The gains at 0 and at the copies are the absolute values of the Fourier transform of the sums of
# the taps that meet at each place. So there is no ripple exactly where those at the copies are 0.

# %%
row, stride = rng.normal(size=9), 4
sums = np.array([row[phase::stride].sum() for phase in range(stride)])
gain = np.abs(np.fft.fft(row, 4 * 60)[::60])  # at 0, 1/4, 2/4 and 3/4 cycles per pixel
assert np.allclose(gain, np.abs(np.fft.fft(sums)))
