# %% [markdown]
# # Bilinear interpolation is such a layer
#
# Linear interpolation draws straight lines between neighbours. Every input then counts most at its
# own place and less and less towards its neighbours, where its weight reaches zero: a tent. Stamp a
# tent for each input; their sum is the interpolated signal. For an even factor *f* the kernel has
# 2*f* taps; for *f* = 2 these are 1/4, 3/4, 3/4, 1/4. New pixels lie between the old ones, so no
# tap falls on the tent's peak or on its feet. In two dimensions the kernel is the tent across times
# the tent down.

# %%
import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from fcn.explain.show import show, show_lines
from fcn.models.upsampling import bilinear_kernel


def tent(f: int) -> torch.Tensor:
    """Return the 2f taps of linear interpolation by an even factor."""
    k = 2 * f
    return 1 - (torch.arange(k) - (k - 1) / 2).abs() / f


for f in (2, 8, 16, 32):  # this project's kernel is the same
    assert torch.allclose(bilinear_kernel(2 * f), torch.outer(tent(f), tent(f)))
assert tent(2).tolist() == [1 / 4, 3 / 4, 3 / 4, 1 / 4]
show_lines(
    {f"factor {f}": ((torch.arange(2 * f) + 0.5) / f - 1, tent(f)) for f in (2, 8, 16, 32)},
    "One tent for all the factors of the FCN paper, with 4, 16, 32 and 64 taps (dots).",
    "distance from the input, in inputs",
)

# %%
x = torch.tensor([[0.0, 4, 2], [6, 1, 3], [2, 5, 0]])
kernel = torch.outer(tent(8), tent(8))[None, None]
one = torch.eye(9).view(9, 1, 3, 3) * x.view(9, 1, 1, 1)  # each input alone
stamps = F.conv_transpose2d(one, kernel, stride=8)[:, 0]
upsampled = F.conv_transpose2d(x[None, None], kernel, stride=8)[0, 0]
assert torch.allclose(stamps.sum(0), upsampled, atol=1e-5)
show(
    {"factor 2, in sixteenths": 16 * torch.outer(tent(2), tent(2)), "input, 3 × 3": x}
    | {"tent of the 4": stamps[1], "tent of the 6": stamps[3], "both": stamps[1] + stamps[3]}
    | {"all nine: upsampled by 8": upsampled},
    """The kernel of factor 2; then, with factor 8, the stamps of two inputs, both together, and the
    sum of all nine. It fades towards the edges: no neighbours lie outside.""",
    1.5,
    limit=8,
)

# %% [markdown]
# [Stamp these tents in the
# explorer](explorer.html#n=3&k=16&s=8&p=0&x=0,4,2,6,1,3,2,5,0&w=bilinear&view=stamps).
#
# For factors 2, 8, 16 and 32 the layer gives what SciPy's linear `ndimage.zoom` gives for the input
# surrounded by zeros.

# %%
for f in (2, 8, 16, 32):
    ours = F.conv_transpose2d(x[None, None], bilinear_kernel(2 * f)[None, None], stride=f)[0, 0]
    zoomed = ndimage.zoom(np.pad(x, 2), f, order=1, mode="grid-constant", grid_mode=True)
    same = slice(3 * f // 2, 3 * f // 2 + 4 * f)  # it begins half an input before the first
    assert np.allclose(ours, zoomed[same, same], atol=1e-5)

# %% [markdown]
# As a layer for *K* classes, each class is enlarged by itself ("Channels"):

# %%
K = 3  # classes; 21 in the paper
layer = nn.ConvTranspose2d(K, K, 16, stride=8, bias=False)
nn.init.zeros_(layer.weight)
layer.weight.data[range(K), range(K)] = bilinear_kernel(16)
assert torch.allclose(layer(x.expand(1, K, 3, 3))[0, 2], upsampled, atol=1e-5)

# %% [markdown]
# ## Must it be learned?
#
# Since it is a layer like any other, it can be trained. In the FCN of CVPR 2015 all upsampling
# layers start as bilinear; the last one stays so, the others are learned (`upsampling=cvpr15`). In
# the networks that the authors released, all are fixed: they found no significant difference.
# "What training changes" shows what learning does to the kernels.
