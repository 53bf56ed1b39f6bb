"""Topics 7 and 8: the layers at work in a trained net, and what training makes of them."""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from fcn import plots, visualize
from fcn.config import VOID
from fcn.explain.figures import Panel, tiles
from fcn.explain.story import Section
from fcn.metrics import confusion_matrix, scores
from fcn.models.alignment import coordinate_map
from fcn.models.fcn import FCN, SKIPS
from fcn.models.surgery import transplant
from fcn.models.upsampling import (
    TransposedConvolution,
    Upsampling,
    bilinear_kernel,
)
from fcn.training.loss import segmentation_loss

CROPS = {32: (19,), 16: (5, 27), 8: (5, 9, 31)}  # what the authors' prototxts type in
SHOWN = 8  # classes whose kernels are drawn


def network(model: FCN, image: Tensor, target: Tensor, classes: Sequence[str]) -> Section:
    """Args: image: uint8 (3, H, W). target: uint8 (H, W), 255 = void."""
    section = Section(7, "network", "In the net: from a few scores to every pixel")
    batch = image[None].float() / 255
    final, passed = _watch(model, batch)
    height, width = target.shape
    coarse = passed[0][1].shape[-2:]
    shown = _largest_object(target)
    section.text(
        f"""An FCN's backbone halves the image five times. For this image of {height} × {width}
        pixels, its last layer scores every class on a grid of only {coarse[0]} × {coarse[1]}.
        FCN-32s enlarges those scores by 32 at once. FCN-16s doubles them, adds scores made from
        pool4, the finer map after the fourth halving, and enlarges the sum by 16. FCN-8s doubles
        once more, adds scores from pool3, after the third, and enlarges by 8."""
    )
    panels = []
    for name, before, after in passed:
        panels.append(Panel(before[shown].numpy(), f"into {name}\n{_size(before)}"))
        panels.append(Panel(after[shown].numpy(), f"out of {name}\n{_size(after)}"))
    section.picture(
        "scores",
        tiles(panels, columns=6, largest=1.5),
        f"Scores of one class, {classes[shown]}, before and after each upsampling; between one "
        "layer's output and the next one's input, the skip's scores are added. A learned layer may "
        "turn signs, since it mixes classes.",
    )
    if model.skips and model.arguments["upsampling"] != "nonlinear":
        parts = _parts(model, batch)
        drawn = {f"from {name}": part[shown].numpy() for name, part in parts.items()}
        drawn["their sum: the score"] = final[0, shown].numpy()
        most = max(float(np.abs(part).max()) for part in drawn.values())
        section.text(
            """All that is linear. So the final score is a sum of what each pool brings to it, each
            part
            upsampled on its own. One sees which of them speaks for what in this net."""
        )
        section.picture(
            "parts",
            tiles([Panel(part, name, limit=most) for name, part in drawn.items()], largest=1.9),
            f"The final score of {classes[shown]} and its parts, pool by pool, on one scale.",
        )  # fmt: skip
        total = torch.stack(list(parts.values())).sum(0)
        error = float((total - final[0]).abs().max() / final.abs().max())
        section.claim("The parts sum to the net's own score, relative to its largest.", error, 1e-4)
    rows: list[tuple[str, str]] = []
    readings = [Panel(image.permute(1, 2, 0).numpy(), "image"),
                Panel(visualize.colorize(target.numpy()), "truth")]  # fmt: skip
    for stride in (s for s in SKIPS if s >= model.arguments["stride"]):
        prediction = _read_out(model, stride, batch)
        mean_iou = _mean_iou(prediction, target, len(classes))
        readings.append(
            Panel(visualize.colorize(prediction.numpy()), f"read out at stride {stride}")
        )
        rows.append((f"stride {stride}", f"{100 * mean_iou:.1f} %"))
    section.picture(
        "strides",
        tiles(readings, largest=1.9),
        "The same trained net, read out before its skips, after the first, and whole. Nothing in "
        "its training asked the coarse scores to be right alone.",
        plot=False,
    )
    section.table(("this image, read out at", "mean overlap (IoU)"), rows)
    section.text(
        """For sums to make sense, each score must lie on the pixels it speaks of. Every layer
        moves the grid by a known amount: the first output of a convolution or pooling of <i>k</i>
        taps without padding lies (<i>k</i> − 1)/2 pixels inside its input, that of a transposed
        convolution as far outside. Composed along the net, these moves say how many rows and
        columns to cut before a sum and at the end. The authors, who pad the image by 100 pixels,
        typed them into their nets' files; here they come out of the layers, for their padding and
        for the project's own. "score_pool4 5" says that the skip from pool4 loses 5 rows and
        columns on each side that begins; where the number is negative, the upsampled scores lose
        them instead; "score" is the cut at the end."""
    )
    section.table(
        ("net", "crops with the authors' padding", "with this project's"),
        [(f"FCN-{s}s", *(_crops(s, padding) for padding in (100, "aligned"))) for s in SKIPS],
    )
    derived = {s: tuple(_small(s, 100).crops.values()) for s in SKIPS}
    section.claim(
        "The crops derived for the authors' padding are the numbers in their nets' files.",
        max(abs(a - b) for s in SKIPS for a, b in zip(derived[s], CROPS[s], strict=True)),
        0,
    )
    net = _small(32, 100)
    grid = coordinate_map(net.backbone).then(coordinate_map(net.head))
    whole = grid.then(coordinate_map(net.upscore_final))
    section.text(
        f"""FCN-32s, for example: score <i>i</i> lies at pixel 32 <i>i</i> + {grid.offset} of the
        image; after the upsampling, output <i>j</i> lies at pixel <i>j</i> − {-whole.offset}. So
        {-whole.offset} rows and columns come off, and output 0 lies on pixel 0."""
    )
    return section


def learning(model: FCN, image: Tensor, target: Tensor, classes: Sequence[str]) -> Section:
    """Args: as `network`."""
    section = Section(8, "learning", "What training changes")
    layers = {
        name: layer for name, layer in model.named_modules()
        if isinstance(layer, TransposedConvolution)
    }  # fmt: skip
    if not layers:
        section.text(
            """The upsampling of this net is fixed: it has no weights, and training changes nothing
            in it. To see what learning does, take a net that was trained with
            <code>upsampling=learned</code>."""
        )
        return section
    section.text(
        """At the start every kernel that takes a class to itself is bilinear, and those that would
        mix classes are zero. The loss then pulls at them as at any weight. The pictures show each
        class's kernel onto itself; the last row is the change alone."""
    )
    model.zero_grad()
    score = model(image[None].float() / 255)
    segmentation_loss(score, target[None].long(), "mean").backward()
    rows = []
    for name, layer in layers.items():
        start = bilinear_kernel(layer.kernel).double().numpy()
        own = layer.diagonal().detach().double().numpy()
        section.picture(
            f"kernels_{name}",
            plots.kernels(own[:SHOWN], start, list(classes)[:SHOWN], f"{name}, ×{layer.factor}"),
            f"{name}: kernels of the first classes at the start, as trained, and the change.",
        )
        change = np.linalg.norm(own - start, axis=(1, 2)) / np.linalg.norm(start)
        gradient = next(layer.parameters()).grad
        rows.append(
            (
                name,
                f"{100 * layer.drift():.1f} %",
                f"{100 * change.min():.1f} % .. {100 * change.max():.1f} %",
                f"{100 * _across(layer):.1f} %",
                "-" if gradient is None else f"{float(gradient.norm()):.1e}",
            )
        )
    model.zero_grad()
    head = ("layer", "drift from bilinear", "of single classes", "of it between classes",
            "gradient now")  # fmt: skip
    section.table(head, rows)
    section.text(
        """Drift is the length of the change, all weights of a layer taken as one vector, over the
        length of what it was. <em>Between classes</em> is the share of its square that lies in
        kernels from one class to another, which interpolation cannot have. The last column is the
        gradient's length on this one image, which comes to a layer through the transposes of those
        behind it, that is, through convolutions; where it is not zero, training would go on
        changing the kernels. The next picture has all kernels, each as its length: off the
        diagonal lies what the layer adds to one class's scores from another's."""
    )
    section.picture(
        "pairs",
        tiles([Panel(_lengths(layer), name) for name, layer in layers.items()], largest=2.4),
        "The length of every kernel, from a class (row) to a class (column), over bilinear's.",
    )
    name, layer = max(layers.items(), key=lambda item: item[1].drift())
    flat = layer(torch.ones(1, len(classes), 9, 9)).detach()[0].numpy()
    inner = slice(4 * layer.factor, 6 * layer.factor)
    patches = flat[:SHOWN, inner, inner]
    section.picture(
        "flat",
        tiles([Panel(p - p.mean(), n, limit=max(0.1 * float(abs(p.mean())), 1e-6))
               for p, n in zip(patches, classes, strict=False)], columns=SHOWN, largest=1.1),
        f"What {name} now makes of scores that are 1 everywhere: a pattern that repeats with every "
        "score. Full colour is 10 % of the mean. Bilinear would be flat.",
    )  # fmt: skip
    section.text(
        """Does it help? That takes several runs a choice, each from another seed:
        <code>scripts/ablate.py</code> trains them, and the README gives what came out."""
    )
    return section


@torch.no_grad()
def _watch(model: FCN, batch: Tensor) -> tuple[Tensor, list[tuple[str, Tensor, Tensor]]]:
    """The scores, and (name, before, after), float (K, h, w), of each upsampling on the way."""
    passed: list[tuple[str, Tensor, Tensor]] = []
    handles = []
    for name, layer in model.named_children():
        if isinstance(layer, Upsampling):

            def note(
                _: nn.Module, given: tuple[Tensor, ...], result: Tensor, name: str = name
            ) -> None:
                passed.append((name, given[0][0], result[0]))

            handles.append(layer.register_forward_hook(note))
    score = model(batch)
    for handle in handles:
        handle.remove()
    return score, passed


@torch.no_grad()
def _parts(model: FCN, batch: Tensor) -> dict[str, Tensor]:
    """What each pool adds to the scores (K, H, W): the net with all other score layers
    silenced."""
    scoring = {"pool5": "score_fr"} | {skip.pool: f"score_{skip.pool}" for skip in model.skips}
    parts = {}
    for pool, own in scoring.items():
        net = deepcopy(model)
        for name in set(scoring.values()) - {own}:
            for parameter in net.get_submodule(name).parameters():
                parameter.zero_()
        parts[pool] = net(batch)[0]
    return parts


@torch.no_grad()
def _read_out(model: FCN, stride: int, batch: Tensor) -> Tensor:
    """The labels (H, W) that the net's scores give when they are enlarged from `stride` on."""
    scales = {
        pool: s for pool, s in model.arguments["skip_scales"].items() if pool in SKIPS[stride]
    }
    coarser = FCN(**model.arguments | {"stride": stride, "skip_scales": scales})
    transplant(coarser, model.state_dict())
    return coarser.eval()(batch)[0].max(0).indices


def _mean_iou(prediction: Tensor, target: Tensor, num_classes: int) -> float:
    confusion = confusion_matrix(num_classes)
    confusion.update(prediction[None], target[None].long())
    return scores(confusion.compute()).mean_iou


def _largest_object(target: Tensor) -> int:
    """The label that most pixels of target have, background and void apart."""
    counts = torch.bincount(target.flatten().long(), minlength=256)
    counts[0] = counts[VOID] = 0
    return int(counts.argmax())


def _across(layer: TransposedConvolution) -> float:
    """The share of a layer's squared change that lies in kernels between different classes."""
    kernels, own = layer.kernels().detach(), layer.diagonal().detach()
    between = float(kernels.square().sum() - own.square().sum())
    within = float((own - bilinear_kernel(layer.kernel)).square().sum())
    return 0.0 if layer.groups > 1 or between <= 0 else between / (between + within)


def _lengths(layer: TransposedConvolution) -> np.ndarray:
    """(K, K): the norm of the kernel from each class to each, over that of bilinear."""
    kernels = layer.kernels().detach().flatten(2).norm(dim=2).double()
    if layer.groups > 1:
        kernels = kernels[:, 0].diag()
    return (kernels / bilinear_kernel(layer.kernel).norm()).numpy()


def _small(stride: int, padding: int | str) -> FCN:
    return FCN(stride=stride, padding=padding, num_classes=2, width=8, head_width=8)


def _crops(stride: int, padding: int | str) -> str:
    return ", ".join(f"{name} {crop}" for name, crop in _small(stride, padding).crops.items())


def _size(score: Tensor) -> str:
    return f"{score.shape[-2]} × {score.shape[-1]}"
