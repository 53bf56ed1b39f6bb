# %% [markdown]
# # Back to the pixels: the deconvnet
#
# The name deconvolution came to neural networks with Zeiler et al. 2010, whose deconvolutional
# networks learn features from which an image can be rebuilt. Zeiler and Fergus 2014 then used one
# to look into another network: which pixels does a unit deep inside respond to? Keep that unit's
# value, set all others to zero, and go back. A max pooling, the largest of each 2 × 2 values, is
# reversed by putting each value back where it was found. A ReLU stays a ReLU, and a convolution is
# replaced by its transpose: the *Cᵀ* of topic 1, with the weights of the forward pass. Nothing more
# is trained.
#
# [See a gradient go through a convolution in the explorer](explorer.html#gradient).
#
# `strongest(layers, image, 3)` of `fcn/explain/network.py` does this for the three channels with
# the largest values.

# %%
import numpy as np
import torch
from scipy import ndimage

from fcn.explain import demo
from fcn.explain.network import strongest
from fcn.explain.show import show
from fcn.pictures.visualize import as_rgb

subject = demo.load()
model, image = subject.model, subject.image
pixels, normalised = as_rgb(image[0]), model.normalise(image)
panels = {}
for pool in ("pool3", "pool4", "pool5"):
    for channel, value, pattern in strongest(model.backbone.until(pool), normalised, 3):
        seen = ndimage.find_objects((pattern != 0).any(0).int().numpy())
        box = seen[0] if seen else ...  # where nothing comes back, the image
        signal = as_rgb(pattern)[box]
        limit = max(float(np.quantile(np.abs(signal), 0.998)), 1e-9)  # few values stand out
        panels[f"{pool}, {channel}: {value:.1f}"] = pixels[box]
        grey = 0.5 + 0.5 * signal / limit
        panels[f"{pool}, {channel}: back"] = (255 * grey.clip(0, 1)).astype(np.uint8)
show(
    panels,
    f"""The channels with the largest values in each pool: the image where the value lies, and what
    comes back from it. "{next(iter(panels))}" names pool, channel and value.""",
    1.15,
    columns=6,
)

# %% [markdown]
# Deeper units see more of the image. How much the way back shows depends on the network: Zeiler and
# Fergus, whose network was trained on a million photographs, see eyes, wheels and letters; a small
# network trained for a minute shows little more than edges.
#
# What comes back is no gradient: a gradient would pass a ReLU where its *input* was positive, the
# deconvnet passes where the returning *signal* is. Without the ReLUs the two are one:

# %%
layers = model.backbone.until("pool3")
linear = torch.nn.Sequential(*(layer for layer in layers if not isinstance(layer, torch.nn.ReLU)))
normalised.requires_grad_()
result = linear(normalised)
for channel, value, pattern in strongest(linear, normalised, 3):
    values = result[0, channel].flatten()
    top = values[values.argmax()]  # the gradient of `max` would be shared among equal values
    (gradient,) = torch.autograd.grad(top, normalised, torch.tensor(value), retain_graph=True)
    assert torch.allclose(gradient[0], pattern, atol=1e-4 * float(pattern.abs().max()))
