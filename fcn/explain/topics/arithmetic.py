# %% [markdown]
# # Stride, padding and size: zeros between the pixels
#
# A convolution of stride *s* moves its kernel by *s* pixels at a time, and so shrinks the image *s*
# times. A transposed convolution moves it by *s* pixels in the *output*, and so enlarges: every
# input stamps the kernel, times the input's value, onto the output, *s* pixels from its neighbour's
# stamp. Where stamps overlap, they add.
#
# One dimension is the simplest case. Three inputs, a kernel of four taps, stride 2:

# %%
import torch
from torch import nn
from torch.nn import functional as F

from fcn.explain.show import show

x, kernel, stride = torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 3, 3, 1]), 2
stamps = torch.zeros(3, 8)  # a row for each input
for i in range(3):
    stamps[i, stride * i : stride * i + 4] = x[i] * kernel
total = stamps.sum(0)
assert torch.equal(total, F.conv_transpose1d(x[None], kernel[None, None], stride=stride)[0])
show(
    {"x": x[:, None], "the stamp of each input": stamps, "their sum": total},
    "A row for each input: its stamp begins two outputs after its neighbour's.",
    2.7,
)

# %% [markdown]
# The same in two dimensions:

# %%
x, kernel = torch.tensor([[1.0, 2], [3, 4]]), torch.ones(3, 3)
stamps = torch.zeros(2, 2, 5, 5)
for i in range(2):
    for j in range(2):
        stamps[i, j, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] = x[i, j] * kernel
total = stamps.sum((0, 1))
layer = nn.ConvTranspose2d(1, 1, 3, stride=2, bias=False)
layer.weight.data = kernel.view(1, 1, 3, 3)
assert torch.equal(total, layer(x.view(1, 1, 2, 2))[0, 0])
show(
    {"input": x}
    | {f"stamp of {v:.0f}": s for v, s in zip(x.flatten(), stamps.flatten(0, 1), strict=True)}
    | {"their sum, 5 × 5": total},
    "A 3 × 3 kernel of ones at stride 2 on a 2 × 2 input.",
    1.7,
    limit=10,
)

# %% [markdown]
# [Play these stamps in the explorer](explorer.html#n=2&k=3&s=2&p=0&x=count&w=ones&view=stamps).
#
# The gradient that trains the kernel is a sum over the inputs: each input times the gradient at the
# outputs under its stamp.

# %%
gradient = torch.arange(25.0).view(5, 5)  # at the outputs
total = torch.zeros(3, 3)
for i in range(2):
    for j in range(2):
        total += x[i, j] * gradient[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
layer(x.view(1, 1, 2, 2)).backward(gradient.view(1, 1, 5, 5))
assert layer.weight.grad is not None
assert torch.equal(layer.weight.grad[0, 0], total)

# %% [markdown]
# ## Why zeros?
#
# The same result can be computed output by output. Put *s* − 1 zeros between the inputs and *k* − 1
# around them, turn the *k* × *k* kernel by 180°, and run an ordinary convolution of stride 1. The
# zeros are not data. A convolution of stride *s* has no outputs at the *s* − 1 places that it
# skips, so on the way back nothing comes from there: a tap that meets a zero adds nothing.
# Libraries do not store the zeros. Measured in input pixels, the kernel now moves by 1/*s*: hence
# the name *fractionally strided* convolution.

# %%
kernel = torch.arange(1.0, 10).view(3, 3)
between = torch.zeros(3, 3)
between[::2, ::2] = x
spread, turned = F.pad(between, (2, 2, 2, 2)), kernel.flip(0, 1)
everywhere = F.conv2d(spread[None, None], turned[None, None])[0, 0]
assert torch.equal(
    everywhere, F.conv_transpose2d(x[None, None], kernel[None, None], stride=2)[0, 0]
)
windows = {
    f"output {i}, {j}: {everywhere[i, j]:.0f}": spread[i : i + 3, j : j + 3]
    for i, j in ((0, 0), (0, 1), (1, 1), (2, 2))
}
show(
    {"input": x, "zeros between": between, "zeros around": spread, "kernel, turned": turned}
    | windows
    | {"all outputs": everywhere},
    """A kernel of 1 to 9. Second row: what the turned kernel sees at four places, and the output
    there. Only the taps that fall on real inputs count.""",
    columns=4,
)

# %% [markdown]
# [Slide this window in the explorer](explorer.html#n=2&k=3&s=2&p=0&x=count&w=count&view=windows).
#
# ## The size of the output
#
# Along each axis, a convolution takes *n* inputs to ⌊(*n* + 2*p* − *k*) / *s*⌋ + 1 outputs, the
# transposed one to (*n* − 1) *s* + *k* − 2*p*. Padding *p* adds *p* rows and columns of zeros on
# each side of a convolution's input, but cuts them off a transposed convolution's output.

# %%
print("kernel stride padding: inputs -> convolution -> transposed")
for n, k, s, p in ((4, 3, 1, 0), (5, 3, 2, 1), (6, 3, 2, 1), (12, 4, 2, 1), (16, 16, 8, 4)):
    weight = torch.ones(1, 1, k, k)
    small = F.conv2d(torch.ones(1, 1, n, n), weight, stride=s, padding=p)
    large = F.conv_transpose2d(small, weight, stride=s, padding=p)
    assert small.shape[-1] == (n + 2 * p - k) // s + 1
    assert large.shape[-1] == (small.shape[-1] - 1) * s + k - 2 * p
    print(f"{k:6} {s:6} {p:7}: {n:6} -> {small.shape[-1]:11} -> {large.shape[-1]:10}")

# %% [markdown]
# ## Why output padding?
#
# Because ⌊ ⌋ rounds down, several input sizes lead to one output size: with kernel 3, stride 2 and
# padding 1, both 5 and 6 become 3. Back from 3, PyTorch gives the smaller size, 5: the full result,
# 7 × 7, without its first and last row and column. If 6 is wanted, say `output_padding=1`: in spite
# of the name it adds no zeros to this output, but keeps the last row and column. (Where it is
# larger than padding, too little is left to keep, and the new places hold the bias alone.) This
# project's network needs neither argument: it crops (see "In the network").

# %%
ones = torch.ones(1, 1, 3, 3)
full = F.conv_transpose2d(ones, ones, stride=2)[0, 0]
five = F.conv_transpose2d(ones, ones, stride=2, padding=1)[0, 0]
six = F.conv_transpose2d(ones, ones, stride=2, padding=1, output_padding=1)[0, 0]
assert torch.equal(five, full[1:-1, 1:-1])
assert torch.equal(six, full[1:, 1:])
show(
    {"full, 7 × 7": full, "padding=1: 5 × 5": five, "output_padding=1: 6 × 6": six},
    "3 × 3 inputs, all 1, and a 3 × 3 kernel of ones at stride 2.",
    2.4,
    limit=8,
)

# %% [markdown]
# [Try output padding in the explorer](explorer.html#output-padding).
#
# To double a size exactly, without output padding, people use kernel 4, stride 2 and padding 1: it
# takes *n* to (*n* − 1) · 2 + 4 − 2 = 2*n*. [The explorer opens with this layer](explorer.html).

# %%
for n in range(1, 20):
    doubled = F.conv_transpose1d(torch.ones(1, 1, n), torch.ones(1, 1, 4), stride=2, padding=1)
    assert doubled.shape[-1] == 2 * n
