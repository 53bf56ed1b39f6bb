# %% [markdown]
# # In the network: from a few scores to every pixel
#
# An FCN begins with convolutions and poolings that halve the image five times. Then a 1 × 1
# convolution gives every class a score at each place: the larger, the more the place looks like the
# class. FCN-32s enlarges these scores by 32 at once, and each pixel gets the class of its largest
# score. FCN-16s first doubles them (upscore2), adds scores made from pool4, the finer maps after
# the fourth halving, and enlarges the sum by 16 (upscore16). Such a connection, past the deeper
# layers, is called a skip. FCN-8s doubles once more (upscore_pool4), adds scores made from pool3,
# after the third halving, and enlarges by 8 (upscore8).
#
# `model` below is a trained network, `image` an image as (1, C, H, W), and `target` its ground
# truth: the right class of every pixel, 255 where none is given.

# %%
import torch

from fcn.explain import demo
from fcn.explain.network import CROPS, contributions, mean_iou, upsampling_steps
from fcn.explain.show import show
from fcn.models.alignment import coordinate_map
from fcn.models.fcn import FCN, SKIPS
from fcn.pictures.visualize import as_rgb, colorize

subject = demo.load()
model, image, target = subject.model, subject.image, subject.target
print("classes:", ", ".join(subject.classes))
pool3, pool4, pool5 = model.backbone(model.normalise(image))
coarse = model.score_fr(model.head(pool5))
size, places = ("{} × {}".format(*tensor.shape[2:]) for tensor in (image, coarse))
print(f"{size} pixels; after five halvings {places} places with a score for each class")

# %% [markdown]
# ## Coarse to fine: FCN-32s, 16s, 8s
#
# FCN-32s has one score for 32 × 32 pixels, the skips add scores for 16 × 16 and for 8 × 8. In the
# paper each network is trained from the one before.

# %%
panels = {"image": as_rgb(image[0]), "ground truth": colorize(target.numpy(), subject.info)}
for net in subject.stages:
    name = f"FCN-{net.stride}s\nmean IoU {100 * mean_iou(net, [(image[0], target)]):.1f} %"
    panels[name] = colorize(net(image)[0].argmax(0).numpy(), subject.info)
images = [subject.data[i] for i in range(min(demo.MEASURED, len(subject.data)))]
for net in subject.stages:
    score = 100 * mean_iou(net, images)
    print(f"FCN-{net.stride}s: mean IoU {score:.1f} % on {len(images)} images")
show(panels, "The classes that networks give to the pixels; ignored pixels are pale.", 1.5)

# %% [markdown]
# ## What each upsampling layer does
#
# Scores of the class with most pixels, background aside, before and after each layer. Between one
# layer and the next, the scores of the skip are added. A learned layer may mix classes, and then
# change signs.

# %%
first = int(subject.info.background)
counts = torch.bincount(target.flatten().long(), minlength=255)[first:255]
shown = int(counts.argmax()) + first  # the class with most pixels, background aside
print("class:", subject.classes[shown])
steps = {}
for name, before, after in upsampling_steps(model, image):
    steps[f"into {name}\n{before.shape[1]} × {before.shape[2]}"] = before[shown]
    steps[f"out of {name}\n{after.shape[1]} × {after.shape[2]}"] = after[shown]
assert torch.allclose(next(iter(steps.values())), coarse[0, shown], atol=1e-4)
show(steps, "Scores of one class, from coarse to fine.", 1.5, numbers=False)

# %% [markdown]
# [Double scores in the explorer, as upscore2 does](explorer.html#upscore2).
#
# ## What each pool adds
#
# Adding and upsampling are linear, unless layers have ReLUs between them (`upsampling=nonlinear`)
# or are of another package. So the final score is a sum of parts: the scores from each pool,
# upsampled on their own.

# %%
score = model(image)[0]
parts = contributions(model, image)
choice = model.arguments["upsampling"]
if choice != "nonlinear" and "." not in choice:  # PACKAGE.CLASS may do anything
    together = torch.stack(list(parts.values())).sum(0)
    assert torch.allclose(together, score, atol=1e-4 * float(score.abs().max()))
total = sum(float(part.abs().mean()) for part in parts.values())
for pool, part in parts.items():
    print(f"{pool}: {100 * float(part.abs().mean()) / total:.0f} % of the parts' mean size")
drawn = {f"from {pool}": part[shown] for pool, part in parts.items()}
drawn["the score"] = score[shown]
limit = max(float(part.abs().max()) for part in drawn.values())
show(drawn, "The final score of the class and its parts, on one scale.", 1.9, limit=limit)

# %% [markdown]
# ## What does cropping do?
#
# Scores that are added must belong to the same pixels. But enlarged scores reach past the image, or
# past the scores of the skip, on all sides. Cropping cuts off the rows and columns that lie
# outside. Nothing in it is learned: how many they are follows from the layers. The first output of
# a convolution or pooling with *k* taps lies in the middle of its first *k* inputs, (*k* − 1)/2
# steps inside; padding *p* moves it *p* steps outwards. The first output of a transposed
# convolution lies (*k* − 1)/2 of its own steps outside. Add up all these moves, here for FCN-32s,
# which the authors pad by 100 pixels: 1 − 100 (first convolution: 3 taps, padding 100) + 0 (the
# others: 3 taps, padding 1) + 15.5 (five poolings: 2 taps, steps of 1, 2, 4, 8 and 16 pixels) + 96
# (fc6: 7 taps, steps of 32 pixels) − 31.5 (upsampling: 64 taps, steps of 1 pixel) = −19. The first
# output lies 19 pixels outside the image, so 19 rows and columns are cut off.


# %%
def small(stride: int, padding: int | str) -> FCN:
    """Return a narrow network; crops do not depend on the width."""
    return FCN(stride=stride, padding=padding, num_classes=2, width=8, head_width=8)


fcn32s = small(32, 100)
scored = coordinate_map(fcn32s.backbone).then(coordinate_map(fcn32s.head))
offset = scored.then(coordinate_map(fcn32s.upscore_final)).offset
assert offset == 1 - 100 + 15.5 + 96 - 31.5 == -19

# %% [markdown]
# The crops of all three networks; those with the authors' padding are the ones in their files.
# "score" is the last crop, to the image's size. "score_pool4 5" means: the skip from pool4 loses
# its first 5 rows and columns. Where the number is negative, the upsampled scores lose them
# instead.

# %%
for stride in SKIPS:
    print(f"FCN-{stride}s")
    for padding, whose in ((100, "the authors' padding"), ("aligned", "this project's")):
        crops = small(stride, padding).crops
        print(f"    {whose + ':':21}", ", ".join(f"{name} {crop}" for name, crop in crops.items()))
    assert tuple(small(stride, 100).crops.values()) == CROPS[stride]
