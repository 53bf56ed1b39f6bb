"""Topics 7 to 9, about a trained network."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from fcn.dataset_info import VOID, DatasetInfo
from fcn.explain.section import Section
from fcn.inference.metrics import image_confusions, scores
from fcn.models.alignment import coordinate_map
from fcn.models.fcn import FCN, SKIPS
from fcn.models.upsampling import TransposedConvolution, Upsampling, bilinear_kernel
from fcn.output import percent
from fcn.pictures import plots
from fcn.pictures.visualize import as_rgb, colorize

CROPS = {32: (19,), 16: (5, 27), 8: (5, 9, 31)}  # in the authors' prototxt files
SHOWN, UNITS = 8, 3  # classes whose kernels are drawn; channels of each pool


@dataclass(frozen=True)
class Subject:
    """A trained network in evaluation mode, its data's info, an image, a network to compare."""

    model: FCN
    info: DatasetInfo
    image: Tensor  # uint8 (C, H, W)
    target: Tensor  # uint8 (H, W), VOID = ignored
    coarse: FCN | None = None  # an FCN-32s, say

    @property
    def classes(self) -> list[str]:
        return self.info.classes


@torch.no_grad()
def network(s: Section, subject: Subject) -> None:
    model, target, batch = subject.model, subject.target, subject.image[None]
    s.scope |= {"model": model, "image": batch, "info": subject.info}
    final, passed = _watch(model, batch)
    coarse = passed[0][1]
    counts = torch.bincount(target.flatten().long(), minlength=VOID)
    first = int(subject.info.background)
    shown = int(counts[first:VOID].argmax()) + first  # the largest object's class
    s.text(f"""An FCN begins with convolutions and poolings that halve the image five times. Then a
        1 × 1 convolution gives every class a score at each place: the larger, the more the place
        looks like the class. For this image of {_size(target)} pixels there are only
        {_size(coarse)} places. FCN-32s enlarges these scores by 32 at once, and each pixel gets the
        class of its largest score. FCN-16s first doubles them (upscore2), adds scores made from
        pool4, the finer maps after the fourth halving, and enlarges the sum by 16 (upscore16). Such
        a connection, past the deeper layers, is called a skip. FCN-8s doubles once more
        (upscore_pool4), adds scores made from pool3, after the third halving, and enlarges by 8
        (upscore8).""")
    panels = {}
    for name, before, after in passed:
        panels[f"into {name}\n{_size(before)}"] = before[shown].numpy()
        panels[f"out of {name}\n{_size(after)}"] = after[shown].numpy()
    caption = f"""Scores of one class, {subject.classes[shown]}, before and after each upsampling.
        Between one layer and the next, the scores of the skip are added. A learned layer mixes
        classes, so it may change signs."""
    s.panels(caption, panels, 1.5, numbers=False)
    s.code(f"""
        # model = fcn.load(RUN); image: uint8 (1, 3, H, W)
        pool3, pool4, pool5 = model.backbone(model.normalise(image))
        model.score_fr(model.head(pool5))[0, {shown}]  # "{" ".join(next(iter(panels)).split())}"
    """)
    s.explore("Double scores in the explorer, as upscore2 does", "preset=upscore2")
    if model.stride < 32 and model.arguments["upsampling"] != "nonlinear":
        s.text("""Adding and upsampling are linear. So the final score is a sum of parts: the scores
            from each pool, upsampled on their own.""")
        parts = contributions(model, batch)
        panels = {f"from {pool}": part[shown].numpy() for pool, part in parts.items()}
        panels["their sum: the score"] = final[shown].numpy()
        limit = max(float(np.abs(array).max()) for array in panels.values())
        s.panels("The final score and its parts, on one scale.", panels, 1.9, limit=limit)
        s.code(f"""
            from fcn.explain.net import contributions

            contributions(model, image)["pool5"][{shown}]  # "from pool5"
        """)
        rounding = 1e-4 * float(final.abs().max())
        s.claim("The parts sum to the network's score.", sum(parts.values()), final, rounding)
    panels = {"image": as_rgb(subject.image)}
    panels["ground truth"] = colorize(target.numpy(), subject.info)
    for net in filter(None, (subject.coarse, model)):
        prediction = net(batch)[0].argmax(0)
        confusion = image_confusions(prediction[None], target[None], len(subject.classes))[0]
        title = f"FCN-{net.stride}s\nmean IoU {percent(scores(confusion).mean_iou)} %"
        panels[title] = colorize(prediction.numpy(), subject.info)
    caption = """The classes that networks give to the pixels. FCN-32s has one score for 32 × 32
        pixels; skips add scores for 16 × 16 and 8 × 8. On this project's sample FCN-32s also learns
        more slowly: fcn32s=RUN shows one that was trained for longer."""
    s.panels(caption, panels, 1.9)
    s.code(f"""
        from fcn.pictures.visualize import colorize

        labels = model(image)[0].argmax(0)  # the class of the largest score
        colorize(labels.numpy(), info)  # "{" ".join(title.split())}"
    """)
    s.text("""Scores that are added must belong to the same pixels. But enlarged scores reach past
        the image, or past the scores of the skip, on all sides. Cropping cuts off the rows and
        columns that lie outside. Nothing in it is learned: how many they are follows from the
        layers. The first output of a convolution or pooling with *k* taps lies in the middle of its
        first *k* inputs, (*k* − 1)/2 steps inside; padding *p* moves it *p* steps outwards. The
        first output of a transposed convolution lies (*k* − 1)/2 of its own steps outside. Add up
        all these moves, here for FCN-32s, which the authors pad by 100 pixels:""")
    fcn32s = _small(32, 100)
    scored = coordinate_map(fcn32s.backbone).then(coordinate_map(fcn32s.head))
    offset = float(scored.then(coordinate_map(fcn32s.upscore_final)).offset)
    words = """1 − 100 (first convolution: 3 taps, padding 100) + 0 (the others: 3 taps, padding 1)
        + 15.5 (five poolings: 2 taps, steps of 1, 2, 4, 8 and 16 pixels) + 96 (fc6: 7 taps, steps
        of 32 pixels) − 31.5 (upsampling: 64 taps, steps of 1 pixel) = −19. The first output lies
        19 pixels outside the image, so 19 rows and columns are cut off."""
    s.claim(words, 1 - 100 + 15.5 + 96 - 31.5, offset, 0)
    s.text("""In the table "score" is the last crop, to the image's size. "score_pool4 5" means: the
        skip from pool4 loses its first 5 rows and columns. Where the number is negative, the
        upsampled scores lose them instead.""")
    rows, derived = [], list[int]()
    for stride in SKIPS:
        small = {p: _small(stride, p).crops for p in (100, "aligned")}
        cells = [", ".join(f"{k}\u00a0{v}" for k, v in crops.items()) for crops in small.values()]
        rows.append((f"FCN-{stride}s", *(cell.replace("-", "−") for cell in cells)))
        derived += small[100].values()
    s.table(("network", "crops with the authors' padding", "with this project's padding"), rows)
    published = [crop for stride in SKIPS for crop in CROPS[stride]]
    s.claim("For their padding, these are the crops in the authors' files.", derived, published, 0)


@torch.no_grad()
def learning(s: Section, subject: Subject) -> None:
    model, classes = subject.model, subject.classes
    layers = {n: m for n, m in model.named_modules() if isinstance(m, TransposedConvolution)}
    if not layers:
        s.text("""This network has no transposed convolution with weights of its own, so there is
            nothing to see here. Take a network that was trained with `upsampling=learned`.""")
        return
    s.text("""A learned layer can have a kernel from every class to every class. At the start those
        from a class to itself are bilinear, the others zero. Training then changes them like any
        other weights. The pictures show the kernels from each class to itself. Their last row is
        the change alone; ± names the number with the strongest colour.""")
    s.scope |= {"model": model}
    rows, lengths = [], {}
    for name, layer in layers.items():
        start = bilinear_kernel(layer.kernel).double()
        own, every = layer.diagonal().double(), layer.kernels().double()
        drawn = {}
        for i in range(0, min(SHOWN, len(classes)), 4):
            part, shown = own[i : i + 4].numpy(), classes[i : i + 4]
            title = f"{name}, ×{layer.factor}: {', '.join(shown)}"
            drawn[title] = plots.kernels(part, start.numpy(), shown, title)
        s.picture(f"{name}: kernels at the start, as trained, and the change.", [drawn])
        norms = every.flatten(2).norm(dim=2)
        norms = norms[:, 0].diag() if layer.groups > 1 else norms
        between = (norms - norms.diag().diag()).square().sum()
        share = between / (between + (own - start).square().sum())
        rows.append((name, percent(layer.drift()), percent(float(share))))
        lengths[name] = (norms / start.norm()).numpy()
    first = next(iter(layers))
    s.shown[f"{first}, now"] = layers[first].diagonal().numpy()
    s.code(f"""
        # model = fcn.load(RUN)
        layer = model.get_submodule("{first}")
        layer.diagonal()  # from each class to itself: "{first}, now"
    """)
    if layers[first].kernel == 4:
        numbers = ",".join(f"{weight:.3f}" for weight in layers[first].diagonal()[1].flatten())
        words = f"Look at the kernel of {classes[1]} in the explorer"
        s.explore(words, f"preset=upscore2&w={numbers}&view=overlap")
    s.table(("layer", "drift from bilinear, %", "between classes, %"), rows)
    s.text("""*Drift*: with all weights of a layer as one vector, the length of its change relative
        to its length at the start. *Between classes*: how much of that change, squared, lies in
        kernels from one class to another, which were zero at the start.""")
    limit = max((a - np.diag(np.diag(a))).max() for a in lengths.values()) or 1.0  # off-diagonal
    caption = f"""The length of every kernel as a vector, from a class (row) to a class (column),
        relative to the bilinear kernel; {100 * limit:.3g} % has the strongest colour. Off the
        diagonal lies what a layer adds to the scores of one class from those of another."""
    s.panels(caption, lengths, 2.4, limit=limit, numbers=False)
    name, layer = max(layers.items(), key=lambda item: item[1].drift())
    inside = slice(4 * layer.factor, 6 * layer.factor)
    flat = layer(torch.ones(1, len(classes), 9, 9))[0, :SHOWN, inside, inside].numpy()
    ripple = flat / flat.mean((1, 2), keepdims=True) - 1
    caption = f"""What {name} makes of scores that are 1 everywhere, relative to the mean: a
        checkerboard (topic 6). Bilinear would be flat. 10 % has the strongest colour."""
    s.panels(caption, dict(zip(classes, ripple, strict=False)), 1.1, limit=0.1, numbers=False)
    s.shown[f"{name}, first class"] = ripple[0]  # no class's name stands in code that runs
    s.code(f"""
        layer = model.get_submodule("{name}")
        flat = layer(torch.ones(1, {len(classes)}, 9, 9))[0, 0]
        flat = flat[{inside.start} : {inside.stop}, {inside.start} : {inside.stop}]
        flat / flat.mean() - 1  # "{name}, first class"
    """)
    s.text("""Does it help? The authors found no significant difference on their data, and fix the
        kernels. To answer for other data, train several networks for each choice, from different
        seeds, and compare them: the README shows how, and what came out.""")


def deconvnet(s: Section, subject: Subject) -> None:
    s.text("""The name deconvolution came to neural networks with Zeiler et al. 2010, whose
        deconvolutional networks learn features from which an image can be rebuilt. Zeiler and
        Fergus 2014 then used one to look into another network: which pixels does a unit deep inside
        respond to? Keep that unit's value, set all others to zero, and go back. A max pooling, the
        largest of each 2 × 2 values, is reversed by putting each value back where it was found. A
        ReLU stays a ReLU, and a convolution is replaced by its transpose: the *Cᵀ* of topic 1, with
        the weights of the forward pass. Nothing more is trained.""")
    s.scope |= {"model": subject.model, "image": subject.image[None]}
    s.explore("See a gradient go through a convolution in the explorer", "preset=gradient")
    pixels = as_rgb(subject.image)
    normalised = subject.model.normalise(subject.image[None])
    panels, patterns = {}, {}
    for pool in ("pool3", "pool4", "pool5"):
        responses = strongest(subject.model.backbone.until(pool), normalised, UNITS)
        for channel, value, pattern in responses:
            seen = ndimage.find_objects((pattern != 0).any(0).int().numpy())
            box = seen[0] if seen else ...  # where nothing comes back, the image
            signal = as_rgb(pattern)[box]
            limit = max(float(np.quantile(np.abs(signal), 0.998)), 1e-9)  # few values stand out
            grey = (255 * (0.5 + 0.5 * signal / limit).clip(0, 1)).astype(np.uint8)
            panels[f"{pool}, {channel}: {value:.1f}"] = pixels[box]
            panels[f"{pool}, {channel}: back"] = grey
            patterns[f"{pool}, {channel}: back"] = pattern.numpy()
    caption = f"""The channels with the largest values in each pool: the image where the value lies,
        and what comes back from it. "{next(iter(panels))}" names pool, channel and value."""
    s.panels(caption, panels, 1.15, columns=2 * UNITS)
    s.shown |= patterns  # before they became grey
    s.code(f"""
        # model = fcn.load(RUN); image: uint8 (1, 3, H, W)
        from fcn.explain.net import strongest

        layers, pixels = model.backbone.until("pool3"), model.normalise(image)
        channel, value, pattern = strongest(layers, pixels, {UNITS})[0]
        pattern  # "{next(iter(patterns))}"
    """)
    s.text("""Deeper units see more of the image. How much the way back shows depends on the
        network: Zeiler and Fergus, whose network was trained on a million photographs, see eyes,
        wheels and letters; a small network trained for a minute shows little more than edges.""")


@torch.no_grad()
def strongest(
    backbone: nn.Sequential, image: Tensor, units: int
) -> list[tuple[int, float, Tensor]]:
    """Find the channels that respond most to an image and project each back to the pixels.

    Args:
        backbone: convolutions, batch norms in evaluation mode, ReLUs and 2 x 2 max poolings.
        image: float (1, 3, H, W), normalised.
        units: number of channels.

    Returns:
        For each, its index, its largest value, and the projected pattern (C, H, W).

    Source: Zeiler & Fergus 2014 (arXiv 1311.2901), sec. 2.
    """
    x, ways = image, []
    for layer in backbone:
        x, back = _step(layer, x)
        ways.append(back)
    top = x[0].flatten(1).max(1).values.topk(min(units, x.shape[1]))
    responses = []
    for value, channel in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        signal = torch.zeros_like(x)
        signal[0, channel].view(-1)[x[0, channel].argmax()] = value
        for back in reversed(ways):
            signal = back(signal)
        responses.append((channel, value, signal[0]))
    return responses


def _step(layer: nn.Module, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return a layer's output, and the function that takes a signal back through it."""
    if isinstance(layer, nn.MaxPool2d):
        y, switches = F.max_pool2d(x, 2, ceil_mode=layer.ceil_mode, return_indices=True)
        return y, lambda signal: F.max_unpool2d(signal, switches, (2, 2), output_size=x.shape[-2:])
    if isinstance(layer, nn.ReLU):
        return layer(x), F.relu
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_var is not None
        gain = (layer.weight / (layer.running_var + layer.eps).sqrt()).view(-1, 1, 1)
        return layer(x), lambda signal: signal * gain
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(layer.padding, tuple)
    return layer(x), partial(F.conv_transpose2d, weight=layer.weight, padding=layer.padding)


def _watch(model: FCN, batch: Tensor) -> tuple[Tensor, list[tuple[str, Tensor, Tensor]]]:
    """Return the scores, and (name, before, after) of each upsampling; float (K, h, w) all."""
    passed: list[tuple[str, Tensor, Tensor]] = []
    names = {layer: name for name, layer in model.named_children()}

    def note(layer: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        passed.append((names[layer], given[0][0], result[0]))

    handles = [m.register_forward_hook(note) for m in names if isinstance(m, Upsampling)]
    score = model(batch)[0]
    for handle in handles:
        handle.remove()
    return score, passed


def contributions(model: FCN, batch: Tensor) -> dict[str, Tensor]:
    """Return what each pool adds to the scores (K, H, W): the other score layers give zeros."""
    layers = {pool: getattr(model, f"score_{pool}") for pool in SKIPS[model.stride]}
    layers = {"pool5": model.score_fr} | layers
    parts = {}
    for pool in layers:
        others = [layer for name, layer in layers.items() if name != pool]
        handles = [o.register_forward_hook(lambda *call: torch.zeros_like(call[2])) for o in others]
        parts[pool] = model(batch)[0]
        for handle in handles:
            handle.remove()
    return parts


def _small(stride: int, padding: int | str) -> FCN:
    return FCN(stride=stride, padding=padding, num_classes=2, width=8, head_width=8)


def _size(scores: Tensor) -> str:
    return f"{scores.shape[-2]} × {scores.shape[-1]}"
