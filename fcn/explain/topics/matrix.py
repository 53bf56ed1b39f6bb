# %% [markdown]
# # A convolution is a matrix, and a matrix has a transpose
#
# A convolution layer slides a small kernel over an image; each output is a weighted sum of the
# pixels under it. The weights of the kernel are also called its taps. Write the pixels in one
# column, line by line, and the layer becomes a matrix *C* with one row for each output, as in a
# dense layer. But every row holds the same nine weights, shifted, and zeros elsewhere: that is all
# that makes it a convolution.

# %%
import torch
from torch import nn
from torch.nn import functional as F

from fcn.explain.show import show

x = torch.tensor([[8.0, 6, 5, 3], [3, 1, 1, 1], [2, 8, 6, 9], [5, 6, 9, 7]])
kernel = torch.tensor([[1.0, 2, 1], [0, 3, 0], [-1, -2, -1]])
one = torch.eye(16).view(16, 1, 4, 4)  # one pixel is 1, all others are 0
C = F.conv2d(one, kernel.view(1, 1, 3, 3)).flatten(1).T  # a column for each pixel
Cx = C @ x.flatten()
assert torch.equal(Cx, F.conv2d(x.view(1, 1, 4, 4), kernel.view(1, 1, 3, 3)).flatten())
show(
    {"image x, 4 × 4": x, "kernel": kernel, "C: 4 outputs from 16 pixels": C, "C x": Cx[:, None]},
    "A 3 × 3 kernel over a 4 × 4 image, and the same as a matrix.",
    4.2,
)

# %% [markdown]
# Now transpose the matrix. *Cᵀ* has the same weights, but takes 4 numbers to 16: from 2 × 2 up to
# 4 × 4. This layer is called transposed convolution, backwards convolution, or deconvolution. The
# last name misleads: elsewhere it means to remove the blur from an image, a true inverse.
# `ConvTranspose2d` computes the product without building the matrix.

# %%
y = torch.tensor([[7.0, 2], [4, 9]])
layer = nn.ConvTranspose2d(1, 1, 3, bias=False)
layer.weight.data = kernel.view(1, 1, 3, 3)
CTy = (C.T @ y.flatten()).view(4, 4)
assert torch.equal(CTy, layer(y.view(1, 1, 2, 2))[0, 0])
show(
    {"y, 2 × 2": y, "Cᵀ: 16 outputs from 4": C.T, "Cᵀ y": CTy},
    "Cᵀ takes four numbers to sixteen; it has one column for each input.",
    4.2,
)

# %% [markdown]
# [Point at the entries of this matrix in the
# explorer](explorer.html#n=2&k=3&s=1&p=0&x=7,2,4,9&w=1,2,1,0,3,0,-1,-2,-1&view=matrix).
#
# The equation that defines a transpose is (*C x*) · *y* = *x* · (*Cᵀy*), for any *x* and *y*:

# %%
assert Cx @ y.flatten() == x.flatten() @ CTy.flatten()

# %% [markdown]
# You have used *Cᵀ* before: to train a convolution, back-propagation multiplies the gradient at its
# outputs by *Cᵀ* to get the gradient at its inputs. The forward pass of one layer is the backward
# pass of the other: hence *backwards convolution*. Both are trained by back-propagation, like any
# layer.

# %%
image, scores = x.view(1, 1, 4, 4).requires_grad_(), y.view(1, 1, 2, 2).requires_grad_()
(dx,) = torch.autograd.grad(F.conv2d(image, layer.weight), image, scores)
(dy,) = torch.autograd.grad(layer(scores), scores, image)
assert torch.equal(dx.view(4, 4), CTy)
assert torch.equal(dy.flatten(), Cx)

# %% [markdown]
# The transpose does not undo the convolution: no layer can recover sixteen pixels from four
# numbers. Even *CᵀC x*, times the factor that brings it closest to *x*, is far from it. The
# transpose reverses the shapes and the connections, not the values. Those depend on the weights,
# which can be chosen, or learned.

# %%
back = C.T @ Cx
back *= (x.flatten() @ back) / (back @ back)  # least squares
missed = (x.flatten() - back).norm() / x.norm()
print(f"Scaled to fit best, it still misses x by {100 * missed:.0f} % of the length of x.")
assert missed > 0.5
show(
    {"x": x, "C x": Cx.view(2, 2), "Cᵀ C x, scaled to fit": back.view(4, 4).round(decimals=1)},
    "There and back: the shape returns, the values do not.",
    2.6,
)
