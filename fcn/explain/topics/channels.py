# %% [markdown]
# # Channels: a kernel for every pair of input and output
#
# So far there was one map of numbers in and one out. Real layers have many: an image has 3
# channels, the layers inside a network have hundreds, and the last ones have a channel for each
# class. A layer with *I* input channels and *O* output channels has *I* × *O* kernels. Output
# channel *o* is the sum, over all input channels *i*, of channel *i* enlarged by kernel (*i*, *o*),
# plus one number for the channel, its bias. So "*n* filters" means *n* output channels, each with a
# kernel for every input channel. Stride, padding and size are those of one channel.

# %%
import torch
from torch import nn
from torch.nn import functional as F

from fcn.explain.show import show

torch.manual_seed(0)
layer = nn.ConvTranspose2d(in_channels=2, out_channels=3, kernel_size=4, stride=2, padding=1)
assert layer.weight.shape == (2, 3, 4, 4)  # PyTorch: (in, out, height, width)
assert layer.bias is not None
assert layer.bias.shape == (3,)

x = torch.randint(1, 5, (1, 2, 2, 2)).float()
layer.weight.data = torch.randint(-1, 2, layer.weight.shape).float()
layer.bias.data = torch.tensor([0.0, 10, -10])
parts = torch.zeros(2, 3, 4, 4)
for i in range(2):
    for o in range(3):
        kernel = layer.weight.data[i, o, None, None]
        parts[i, o] = F.conv_transpose2d(x[:, i, None], kernel, stride=2, padding=1)[0, 0]
y = layer(x)[0]
assert torch.equal(y, parts.sum(0) + layer.bias.view(3, 1, 1))
show(
    {"x, channel 0": x[0, 0]}
    | {f"through kernel 0, {o}": parts[0, o] for o in range(3)}
    | {"x, channel 1": x[0, 1]}
    | {f"through kernel 1, {o}": parts[1, o] for o in range(3)}
    | {"bias: 0, 10, −10": layer.bias[:, None]}
    | {f"sum + bias: y, channel {o}": y[o] for o in range(3)},
    """Two channels in, three out: six kernels. Each column of the last row is the sum of the two
    above it, plus the bias of its channel.""",
    1.5,
    columns=4,
)

# %% [markdown]
# [Change the numbers of channels in the explorer](explorer.html#channels).
#
# As a matrix, the layer has *I* × *O* blocks, one for each kernel: topic 1 holds for the whole. Its
# transpose is again the convolution that goes the other way, with *O* channels in and *I* out and
# the very same weight array: a `Conv2d` keeps its weights as (out, in, height, width), so the array
# of a `ConvTranspose2d` from 2 to 3 channels is that of a `Conv2d` from 3 to 2.

# %%
down = nn.Conv2d(3, 2, 4, stride=2, padding=1, bias=False)
assert down.weight.shape == layer.weight.shape
z = torch.randn(1, 3, 4, 4)
forward = F.conv_transpose2d(x, layer.weight, stride=2, padding=1)
backward = F.conv2d(z, layer.weight, stride=2, padding=1)
assert torch.allclose((forward * z).sum(), (x * backward).sum(), atol=1e-5)

# %% [markdown]
# ## Groups, and why bilinear weights stand on the diagonal
#
# With `groups=g` the channels are divided into *g* groups which do not see each other: the weights
# are (*I*, *O*/*g*, *k*, *k*). With as many groups as channels, every channel has one kernel of its
# own.
#
# To interpolate a map of scores, each class must be enlarged by itself: output *c* may depend on
# input *c* alone. In a full *I* × *O* layer, as in the authors' files, bilinear kernels therefore
# stand on the diagonal, and all other kernels are zero. A bilinear kernel in every one of the
# *I* × *O* places, a common mistake, gives every class the sum of all classes.

# %%
classes = 3
tent = torch.tensor([1.0, 3, 3, 1]) / 4
bilinear = torch.outer(tent, tent)
full = torch.zeros(classes, classes, 4, 4)
full[range(classes), range(classes)] = bilinear
scores = torch.randn(1, classes, 5, 5)
grouped = F.conv_transpose2d(
    scores, bilinear.expand(classes, 1, 4, 4), stride=2, padding=1, groups=classes
)
diagonal = F.conv_transpose2d(scores, full, stride=2, padding=1)
spread = bilinear.expand(classes, classes, 4, 4)
everywhere = F.conv_transpose2d(scores, spread, stride=2, padding=1)
assert torch.allclose(grouped, diagonal, atol=1e-6)
assert torch.allclose(everywhere[0, 0], diagonal[0].sum(0), atol=1e-5)
show(
    {
        f"from class {i} to {o}": full[i, o] * 16 if i == o else full[i, o]
        for i in range(classes)
        for o in range(classes)
    },
    "The 3 × 3 kernels of a layer that interpolates three classes, in sixteenths.",
    0.9,
    columns=3,
    numbers=False,
)

# %% [markdown]
# The paper's last layer, upscore8, thus has 21 × 21 kernels of 16 × 16 taps, of which 21 are not
# zero. If it is learned, the others may become anything, and classes mix. This project's
# `upsampling=learned_channelwise` has one kernel for each class.
#
# ## Weights from Keras, TensorFlow and JAX
#
# | library | layer | weights | stamped |
# |---|---|---|---|
# | PyTorch | `ConvTranspose2d` | (in, out/groups, h, w) | as it is |
# | Keras, TensorFlow | `Conv2DTranspose`, `conv2d_transpose` | (h, w, out, in) | as it is |
# | JAX | `lax.conv_transpose(transpose_kernel=True)` | (h, w, out, in) | as it is |
# | JAX, Flax | without `transpose_kernel` | (h, w, in, out) | turned by 180° |
#
# PyTorch's images are (batch, channel, h, w), those of the others (batch, h, w, channel).
#
# - **Axes.** From Keras, TensorFlow, and JAX with `transpose_kernel=True`, to PyTorch:
#   `weight.permute(3, 2, 0, 1)`; and back: `weight.permute(2, 3, 1, 0)`.
# - **Turning.** JAX without `transpose_kernel`, and Flax, put zeros between inputs and slide the
#   kernel as it is, so what they stamp is turned: `weight.flip(0, 1).permute(2, 3, 0, 1)`.
# - **SAME.** `padding="same"` of Keras and TensorFlow promises a transposed layer an output of
#   *n* · *s*. The full output has (*n* − 1) *s* + *k*, so *k* − *s* rows and columns go: half of
#   them, rounded down, at the start and the rest at the end. Kernel 3 at stride 2 loses nothing at
#   the start and one row at the end. Where *k* − *s* is odd, no `padding` of PyTorch does this by
#   itself: crop the full output, as below. (Keras' own PyTorch backend was one pixel off there,
#   which was reported in 2026.) JAX's "SAME" cuts the same.
# - Caffe's weights are (in, out, h, w), like PyTorch's; `scripts/import_caffe.py` reads them.


# %%
def keras_same(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """Compute Keras' Conv2DTranspose(padding="same") with its weights (h, w, out, in)."""
    n, k = x.shape[-1], len(weight)
    full = F.conv_transpose2d(x, weight.permute(3, 2, 0, 1), stride=stride)
    full = F.pad(full, (0, max(0, stride - k)) * 2)  # where the kernel is smaller than the stride
    start = max(0, k - stride) // 2
    return full[..., start : start + n * stride, start : start + n * stride]


ones = keras_same(torch.tensor([[[[1.0, 2], [3, 4]]]]), torch.ones(3, 3, 1, 1), 2)
assert ones[0, 0].tolist() == [[1, 1, 3, 2], [1, 1, 3, 2], [4, 4, 10, 6], [3, 3, 7, 4]]
show({"SAME, 4 × 4": ones}, "Kernel 3 of ones at stride 2 on 1 2 3 4, as TensorFlow gives it.")

# %% [markdown]
# [See SAME in the explorer](explorer.html#tf-same).
