"""The FCN authors' published nets (shelhamer/fcn.berkeleyvision.org) as ours, blob by blob.

Three things differ: Caffe's nets take BGR of 0..255, ours RGB in [0, 1] and the normalisation with
the weights; their interpolation is stored as kernels, ours, where it is bilinear, is not; and the
at-once net's factors are layers there and an argument here. Convolutions and transposed
convolutions have the same layout in both.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcn.config import MEAN_BGR
from fcn.models.caffemodel import CaffeError
from fcn.models.fcn import FCN, FINAL, SKIPS, UPSCORE
from fcn.models.surgery import Fate, Report
from fcn.models.upsampling import kernel_size, make_upsampling

# Their nets -> stride, and whether the skips are scaled ("at once").
MODELS = {
    "fcn32s": (32, False),
    "fcn16s": (16, False),
    "fcn8s": (8, False),
    "fcn8s_atonce": (8, True),
}
VGG16 = [f"conv{stage}_{i + 1}" for stage, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(n)]
VGG16 += ["fc6", "fc7"]
# Names in the authors' first releases (fcn-8s-pascal, fcn-8s-pascalcontext) -> names since 2016.
OLD_NAMES = {
    "score-fr": "score_fr",
    "score59": "score_fr",
    "score2": "upscore2",
    "score-pool4": "score_pool4",
    "score4": "upscore_pool4",
    "upsample-fused-16": "upscore_pool4",
    "score-pool3": "score_pool3",
}
# Layers that only nets of another architecture have, by how a name ends -> why they are refused.
OTHERS = {
    "_sem": "a net of two heads, semantic and geometric (SIFT Flow); an FCN here has one",
    "_geo": "a net of two heads, semantic and geometric (SIFT Flow); an FCN here has one",
    "_bgrd": "a net that takes color and depth (NYUD, early fusion); an FCN here takes RGB",
    "hha": "a net of two streams, color and HHA (NYUD, late fusion); an FCN here has one",
}

PARTS = ("weight", "bias")  # a layer's blobs


def import_fcn(
    blobs: Mapping[str, Sequence[Tensor]],
    model: str = "fcn8s",
    *,
    mean_bgr: Sequence[float] = MEAN_BGR,
    name: str = "caffemodel",
) -> tuple[FCN, Report]:
    """The authors' net as an FCN that gives its very scores, taking RGB in [0, 1].

    Widths and the number of classes come from the blobs. Upsampling kernels that are bilinear to
    the last bit become `fixed` and are not stored; if any is not, all are kept, as `learned` or,
    with one kernel a class, `learned_channelwise`.

    Args: blobs: of `read_caffemodel`; the net takes them over. model: a name in `MODELS`.
        mean_bgr: what was subtracted from the net's images of 0..255 (NYUD's color net:
        116.190, 97.203, 92.318; its HHA net has the same layers, but takes no RGB).
        name: of the source, in the report and in errors.
    Returns: the net, in evaluation mode, and every blob's fate.
    Raises: CaffeError: a layer missing, unknown, misshapen, not finite, or beyond an FCN here.
        ValueError: an unknown model.
    """
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}")
    stride, at_once = MODELS[model]
    pools = SKIPS[stride]
    source = _Source(name, _present_names(blobs, FINAL[stride], name))
    source.check(model)
    classes = source.blobs["score_fr"][1].numel()
    if classes < 2:
        raise source.error("score_fr", f"{classes} class, but an FCN here has at least 2")
    scales = {pool: source.scale(f"scale_{pool}") for pool in pools if at_once}
    upsampling, kernels = _upsampling(source, stride, classes)
    net = source.empty_net(
        stride=stride, num_classes=classes, upsampling=upsampling, skip_scales=scales
    )
    state = source.state(net.state_dict(), mean_bgr, kernels)
    for layer, score in (*((UPSCORE[p], f"score_{p}.bias") for p in pools), (FINAL[stride], "")):
        if len(source.blobs[layer]) == 1:
            continue
        # Only the first releases have biases here. Those added to a skip's scores become theirs.
        bias = source.take(layer, 1, (classes,))
        if score:
            state[score] = state[score] + bias
        elif bias.any():
            raise source.error(layer, "a bias, which the last upsampling here cannot have")
        source.tell(f"{layer}.bias", "folded", bias, f"into {score}" if score else "zero")
    net.load_state_dict(state, assign=True)
    return net.eval(), source.report


def import_vgg(
    blobs: Mapping[str, Sequence[Tensor]],
    *,
    mean_bgr: Sequence[float] = MEAN_BGR,
    name: str = "caffemodel",
) -> tuple[dict[str, Tensor], Report]:
    """The VGG16 of ILSVRC as weights for an FCN to start from, as the authors' did.

    Args: as of `import_fcn`. By default the mean is the one the authors start from this net with;
        it was trained with (103.939, 116.779, 123.68).
    Returns: a state dict for `surgery.transplant`, under FCN's names: mean, std, the backbone, fc6
        and fc7; and every blob's fate. The classifier's last layer, fc8, is left over.
    Raises: CaffeError: as `import_fcn`.
    """
    source = _Source(name, {layer: list(tensors) for layer, tensors in blobs.items()})
    source.check("vgg16")
    net = source.empty_net(stride=32, num_classes=2)
    wanted = {key: t for key, t in net.state_dict().items() if not key.startswith("score")}
    state = source.state(wanted, mean_bgr, {})
    for part, blob in zip(PARTS, source.blobs["fc8"], strict=True):
        source.tell(f"fc8.{part}", "left over", blob)
    return state, source.report


def _layers(model: str) -> dict[str, tuple[int, ...]]:
    """The layers of a published net that have blobs -> how many they may have."""
    if model == "vgg16":
        return dict.fromkeys([*VGG16, "fc8"], (2,))
    stride, at_once = MODELS[model]
    layers: dict[str, tuple[int, ...]] = dict.fromkeys([*VGG16, "score_fr"], (2,))
    for pool in SKIPS[stride]:
        layers |= {f"score_{pool}": (2,), UPSCORE[pool]: (1, 2)}
        layers |= {f"scale_{pool}": (1,)} if at_once else {}
    return layers | {FINAL[stride]: (1, 2)}


def _present_names(
    blobs: Mapping[str, Sequence[Tensor]], final: str, name: str
) -> dict[str, list[Tensor]]:
    renamed: dict[str, list[Tensor]] = {}
    for layer, tensors in blobs.items():
        present = (OLD_NAMES | {"upsample": final}).get(layer, layer)
        if present in renamed:
            raise CaffeError(f"{name}: layer {layer} is {present} by its old name; it has both")
        renamed[present] = list(tensors)
    return renamed


def _upsampling(source: "_Source", stride: int, classes: int) -> tuple[str, dict[str, Tensor]]:
    """Which of our upsamplings the net has, and the kernels to keep."""
    choices, kernels, bilinear = set(), {}, True
    for layer, factor in (*((UPSCORE[pool], 2) for pool in SKIPS[stride]), (FINAL[stride], stride)):
        side = kernel_size(factor)
        grouped = source.blobs[layer][0].numel() == classes * side**2
        choice = "learned_channelwise" if grouped else "learned"
        kernels[layer] = source.take(layer, 0, (classes, 1 if grouped else classes, side, side))
        # Bilinear values are fractions that float32 holds exactly: no tolerance is needed.
        ideal = make_upsampling(choice, factor, classes, final=False).state_dict()["weight"]
        bilinear &= torch.equal(kernels[layer], ideal)
        choices.add(choice)
    if bilinear:
        for layer, kernel in kernels.items():
            source.tell(f"{layer}.weight", "recognised", kernel, "bilinear: fixed, not stored")
        return "fixed", {}
    if len(choices) > 1:
        raise CaffeError(
            f"{source.name}: some upsampling layers have one kernel a class, others one a pair; "
            "an FCN here has either throughout"
        )
    return choices.pop(), kernels


@dataclass
class _Source:
    """A caffemodel's blobs, under the authors' present names, and what becomes of them."""

    name: str
    blobs: dict[str, list[Tensor]]
    report: Report = field(init=False)

    def __post_init__(self) -> None:
        self.report = Report(self.name)

    def error(self, layer: str, reason: str) -> CaffeError:
        return CaffeError(f"{self.name}: layer {layer}: {reason}")

    def tell(self, name: str, fate: str, tensor: Tensor, note: str = "") -> None:
        self.report.fates.append(Fate(name, fate, tuple(tensor.shape), note))

    def check(self, model: str) -> None:
        """Refuses any layer more, any less, and any with another number of blobs."""
        for layer in self.blobs:
            for ending, reason in OTHERS.items():
                if layer.endswith(ending):
                    raise self.error(layer, reason)
        layers = _layers(model)
        missing = [layer for layer in layers if layer not in self.blobs]
        surplus = [layer for layer in self.blobs if layer not in layers]
        if missing or surplus:
            fitting = [m for m in (*MODELS, "vgg16") if _layers(m).keys() == self.blobs.keys()]
            raise CaffeError(
                f"{self.name}: not the layers of {model}; missing: {', '.join(missing) or 'none'}; "
                f"unknown: {', '.join(surplus) or 'none'}"
                + "".join(f"; its layers are those of model={m}" for m in fitting)
            )
        for layer, counts in layers.items():
            if len(self.blobs[layer]) not in counts:
                count = " or ".join(map(str, counts))
                raise self.error(
                    layer, f"{len(self.blobs[layer])} blobs, but it should have {count}"
                )

    def take(self, layer: str, index: int, shape: tuple[int, ...]) -> Tensor:
        """One blob in the shape it is to have here, finite."""
        blob = self.blobs[layer][index]
        fits = [_significant(shape)]
        if layer in ("fc6", "fc7"):  # a VGG's are fully connected: (outputs, inputs)
            fits.append(_significant((shape[0], math.prod(shape[1:]))))
        if _significant(blob.shape) not in fits:
            given = tuple(blob.shape)
            raise self.error(layer, f"its {PARTS[index]} is {given}, but should be {shape}")
        if not all(math.isfinite(extreme) for extreme in blob.aminmax()):
            raise self.error(layer, f"its {PARTS[index]} holds values that are not finite")
        return blob.reshape(shape)

    def scale(self, layer: str) -> float:
        """The one factor of a Scale layer, which has it once, or once a channel."""
        blob = self.take(layer, 0, tuple(self.blobs[layer][0].shape))
        factor = np.float32(blob.flatten()[0].item())
        channels = self.blobs[f"conv{layer[-1]}_3"][1].numel()
        if blob.numel() not in (1, channels) or (blob != factor.item()).any():
            raise self.error(layer, "more than one factor, but a skip here has one")
        self.tell(layer, "recognised", blob, f"the skip's factor: {factor}")
        return float(str(factor))  # 0.01 rather than 0.009999999776; as float32 they are one

    def empty_net(self, **arguments: Any) -> FCN:
        """An FCN of the blobs' widths, without memory for its weights."""
        conv1_1, fc6 = self.blobs["conv1_1"], self.blobs["fc6"]
        if conv1_1[0].ndim == 4 and conv1_1[0].shape[1] != 3:
            channels = conv1_1[0].shape[1]
            raise self.error("conv1_1", f"takes {channels} channels, but an FCN here takes RGB")
        with torch.device("meta"):
            return FCN(
                padding=100, width=conv1_1[1].numel(), head_width=fc6[1].numel(), **arguments
            )

    def state(
        self, wanted: Mapping[str, Tensor], mean_bgr: Sequence[float], kernels: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """A tensor for each of `wanted`, in its shape, and their fates."""
        mean = torch.tensor(mean_bgr, dtype=torch.float64).flip(0) / 255
        state = {"mean": mean.float().view(3, 1, 1), "std": torch.full((3, 1, 1), 1 / 255)}
        self.tell("mean", "set", state["mean"], f"{', '.join(map(str, mean_bgr))} (BGR) of 255")
        self.tell("std", "set", state["std"], "1 of 255")
        for name, like in wanted.items():
            if name in state:
                continue
            layer, part = name.split(".")[-2:]
            index = PARTS.index(part)
            shape, given = tuple(like.shape), self.blobs[layer][index].shape
            value = kernels[layer] if layer in kernels else self.take(layer, index, shape)
            fate, note = "copied", ""
            if value.shape != given:
                fate, note = "reshaped", f"{tuple(given)} before"
            if (layer, part) == ("conv1_1", "weight"):
                value, fate, note = value.flip(1), "folded", "BGR to RGB"
            state[name] = value
            self.tell(name, fate, value, note)
        return state


def _significant(shape: Sequence[int]) -> tuple[int, ...]:
    """Without leading ones, which files of before 2015 fill four dimensions with."""
    leading = next((i for i, size in enumerate(shape) if size != 1), len(shape))
    return tuple(shape[leading:])
