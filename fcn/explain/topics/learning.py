# %% [markdown]
# # What training changes
#
# A learned upsampling layer can have a kernel from every class to every class ("Channels"). At the
# start those from a class to itself are bilinear, the others zero. Training then changes them like
# any other weights. A network with fixed upsampling has nothing to show here.

# %%
import numpy as np
import torch

from fcn.explain import demo
from fcn.explain.show import Pictures, show
from fcn.models.upsampling import TransposedConvolution, bilinear_kernel
from fcn.pictures import plots

subject = demo.load()
model, classes = subject.model, subject.classes
layers = {n: m for n, m in model.named_modules() if isinstance(m, TransposedConvolution)}
if not layers:
    print("This network has none of this project's learned transposed convolutions.")
    print("Train one with upsampling=learned.")
for name, layer in layers.items():
    print(f"{name}: enlarges {layer.factor} times, {layer.kernel} × {layer.kernel} taps")

# %% [markdown]
# The kernels from each class to itself: at the start, as trained, and the change alone. ± names the
# number with the strongest colour.

# %%
SHOWN = 8  # classes
drawn = {}
for name, layer in layers.items():
    start, own = bilinear_kernel(layer.kernel).double(), layer.diagonal().double()
    for i in range(0, min(SHOWN, len(classes)), 4):
        some = classes[i : i + 4]
        title = f"{name}, ×{layer.factor}: {', '.join(some)}"
        drawn[title] = plots.kernel_plot(own[i : i + 4].numpy(), start.numpy(), some, title)
Pictures(drawn, "Kernels at the start, as trained, and the change.", columns=2)

# %% [markdown]
# *Drift*: with all weights of a layer as one vector, the length of its change relative to its
# length at the start. *Between classes*: the share of that change (as a sum of squares) in kernels
# that connect two different classes, which were zero at the start.

# %%
lengths = {}
for name, layer in layers.items():
    start, own, every = bilinear_kernel(layer.kernel).double(), layer.diagonal(), layer.kernels()
    norms = every.double().flatten(2).norm(dim=2)
    norms = norms[:, 0].diag() if layer.groups > 1 else norms
    between = (norms - norms.diag().diag()).square().sum()
    change = between + (own - start).square().sum()
    assert abs(float((change / len(classes)).sqrt() / start.norm()) - layer.drift()) < 1e-4
    share = float(between / change) if change else 0.0
    print(f"{name}: drift {100 * layer.drift():.2f} %, between classes {100 * share:.0f} %")
    lengths[name] = (norms / start.norm()).numpy()

# %% [markdown]
# The length of every kernel as a vector, from a class (row) to a class (column), relative to the
# bilinear kernel. Off the diagonal lies what a layer adds to the scores of one class from those of
# another.

# %%
largest = max([float((a - np.diag(np.diag(a))).max()) for a in lengths.values()], default=0.0)
caption = f"The lengths; {100 * largest:.3g} % has the strongest colour."
show(lengths, caption, 2.4, limit=largest or 1.0, numbers=False)

# %% [markdown]
# What a layer makes of scores that are 1 everywhere, relative to the mean. A pattern is a
# checkerboard ("When stamps overlap unevenly"); bilinear would be flat. 10 % has the strongest
# colour.

# %%
ripples = {}
for name, layer in sorted(layers.items(), key=lambda item: -item[1].drift())[:1]:
    inside = slice(4 * layer.factor, 6 * layer.factor)
    flat = layer(torch.ones(1, len(classes), 9, 9))[0, :SHOWN, inside, inside]
    flat = flat / flat.mean((1, 2), keepdim=True) - 1
    print("layer:", name)
    ripples = dict(zip(classes, flat, strict=False))
show(ripples, "The ripple of each class.", 1.1, limit=0.1, numbers=False)

# %% [markdown]
# ## Must it be learned?
#
# The authors found no significant difference on their data, and fix the kernels. This project's
# README has measurements of three seeds each. On its small sample, trained from nothing for a
# minute, learned kernels were ahead: mean IoU 84.2 against 82.7 %, difference +1.6, 95 % interval
# +0.9 to +2.2. From an ImageNet VGG16 on part of Pascal VOC they were not: FCN-8s −0.2, interval
# −0.4 to 0.0; FCN-32s −0.2, interval −0.4 to −0.1. To answer for other data, train several networks
# for each choice and compare them:
#
# ```sh
# python scripts/train.py -m upsampling=fixed,learned seed=0,1,2
# python scripts/compare.py sweep=outputs/sweep/DATE_TIME
# ```
