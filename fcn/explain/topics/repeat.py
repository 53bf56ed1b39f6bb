# %% [markdown]
# # Repeat every pixel, then convolve: the same layer again
#
# Another common way to enlarge an image is to repeat every pixel and convolve the result
# (`nn.Upsample`, then `nn.Conv2d`). Repeat every input twice and convolve with three taps *q*₀,
# *q*₁, *q*₂: an input reaches four outputs, with the weights *q*₂, *q*₂ + *q*₁, *q*₁ + *q*₀ and
# *q*₀. These are the kernel of one transposed convolution of stride 2. With *q* = 1/4, 1/2, 1/4
# they are 1/4, 3/4, 3/4, 1/4: bilinear interpolation.

# %%
import torch
from torch import nn
from torch.nn import functional as F

from fcn.explain.show import show
from fcn.models.upsampling import NearestConvUpsampling

x = torch.tensor([[[2.0, 6, 4, 8]]])
repeated = nn.Upsample(scale_factor=2)(x)
q = torch.tensor([1.0, 2, 1]) / 4
two_steps = F.conv1d(repeated, q.view(1, 1, 3), padding=2)
kernel = torch.stack([q[2], q[2] + q[1], q[1] + q[0], q[0]])
at_once = F.conv_transpose1d(x, kernel.view(1, 1, 4), stride=2)
assert torch.equal(two_steps, at_once)
assert kernel.tolist() == [1 / 4, 3 / 4, 3 / 4, 1 / 4]
show(
    {"x, each twice": repeated, "q": q, "convolved with q": two_steps}
    | {"x": x, "q₂, q₂+q₁, q₁+q₀, q₀": kernel, "stamped at stride 2": at_once},
    "Four numbers doubled: above by repeating and convolving, below at once.",
    3.6,
    columns=3,
)

# %% [markdown]
# This project's `upsampling=nearest_conv` is computed at once too:

# %%
layer = NearestConvUpsampling(2, num_classes=3)
nn.init.normal_(layer.weight)
scores = torch.randn(1, 3, 5, 6)
two_steps = F.conv2d(nn.Upsample(scale_factor=2)(scores), layer.weight, padding=2)
assert torch.allclose(layer.full(scores), two_steps, atol=1e-5)

# %% [markdown]
# Not every transposed convolution can be written this way, since its 4 taps come from 3 numbers. In
# return, no choice of *q* makes checkerboards, as the next topic shows.
#
# If *q* is the single number 1, the kernel is 1 1: repeating alone. Up to a factor that is the
# transpose of average pooling, so "pooling backwards" is right for this one kernel.
#
# [Edit this kernel in the explorer](explorer.html#repeat-convolve).

# %%
pooled = F.avg_pool1d(repeated.requires_grad_(), 2)
(back,) = torch.autograd.grad(pooled, repeated, x)
assert torch.equal(2 * back, repeated)
