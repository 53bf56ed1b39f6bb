# %% [markdown]
# # Strided, dilated and transposed convolution in one notation
#
# Two matrices are enough for all three; here they are in one dimension. *C* is a convolution of
# stride 1. *D* keeps every second value; its transpose *Dᵀ* puts zeros between values.

# %%
import torch
from torch.nn import functional as F

from fcn.explain.show import show

kernel = torch.tensor([1.0, 2, 3])


def matrix(weights: torch.Tensor, inputs: int) -> torch.Tensor:
    """Return the matrix of a convolution of stride 1 over some inputs."""
    one = torch.eye(inputs)[:, None]  # one input is 1, the others are 0
    return F.conv1d(one, weights.view(1, 1, -1))[:, 0].T


C = matrix(kernel, 9)
D = torch.eye(7)[::2]
spread = torch.eye(5)[::2].T @ kernel  # Dᵀk: 1 0 2 0 3
dilated = matrix(spread, 9)
show(
    {"C: kernel 1 2 3": C, "D: every second": D, "D C: stride 2": D @ C}
    | {"Dᵀ: zeros between": D.T, "CᵀDᵀ: transposed": (D @ C).T, "kernel Dᵀk: dilated": dilated},
    "Strided, transposed and dilated convolution with one kernel, as matrices.",
    2.6,
    columns=3,
    limit=3,
)

# %%
one, four, weights = torch.eye(9)[:, None], torch.eye(4)[:, None], kernel.view(1, 1, 3)
assert torch.equal(F.conv1d(one, weights, stride=2)[:, 0].T, D @ C)
assert torch.equal(F.conv1d(one, weights, dilation=2)[:, 0].T, dilated)
assert torch.equal(F.conv_transpose1d(four, weights, stride=2)[:, 0].T, (D @ C).T)

# %% [markdown]
# A strided convolution is *D C*: convolve everywhere, keep every second. The transposed one is
# *CᵀDᵀ*: zeros between the pixels, then a convolution with the kernel turned. A dilated one has
# zeros between the weights of its kernel: it sees further, and the image keeps its resolution.
#
# [See dilation in the explorer](explorer.html#dilation).
#
# A sub-pixel convolution computes *s*² maps and arranges their values as *s* × *s* pixels
# (`PixelShuffle`). It is the transposed convolution again, with its weights in another order: a
# 2 × 2 convolution to four maps, arranged as 2 × 2 pixels, equals the transposed convolution with a
# 4 × 4 kernel and stride 2, away from the edges.

# %%
torch.manual_seed(3)
taps, z = torch.randn(4, 4), torch.randn(1, 1, 5, 6)
phases = torch.stack([taps[None, i::2, j::2] for i in (0, 1) for j in (0, 1)]).flip(-2, -1)
shuffled = F.pixel_shuffle(F.conv2d(z, phases), 2)
transposed = F.conv_transpose2d(z, taps[None, None], stride=2)
assert torch.allclose(shuffled, transposed[..., 2:-2, 2:-2], atol=1e-5)

# %% [markdown]
# The same four maps answer how to compute the layer fast: no zero is ever multiplied.
