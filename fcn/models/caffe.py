"""Read .caffemodel files, and import the FCN authors' published networks blob by blob.

Three things differ between their networks (shelhamer/fcn.berkeleyvision.org) and ours: theirs take
BGR of 0..255, ours RGB in [0, 1], with the normalisation stored as weights; their interpolation is
stored as kernels, ours is not where it is bilinear; and the at-once network's factors are layers
there and an argument here. Convolutions and transposed convolutions have the same layout in both.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcn.dataset_info import MEAN_BGR
from fcn.errors import UserError
from fcn.models.fcn import FCN, FINAL, SKIPS, UPSCORE
from fcn.models.surgery import Report, TensorReport
from fcn.models.upsampling import LearnedUpsampling

# Their networks -> stride, and whether the skips are scaled ("at once").
MODELS = {
    "fcn32s": (32, False),
    "fcn16s": (16, False),
    "fcn8s": (8, False),
    "fcn8s_atonce": (8, True),
}
VGG16 = [f"conv{stage}_{i + 1}" for stage, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(n)]
VGG16 += ["fc6", "fc7"]
PARTS = ("weight", "bias")  # a layer's blobs

# BVLC/caffe's src/caffe/proto/caffe.proto. NetParameter's fields that hold layers (LayerParameter
# and, before 2015, V1LayerParameter) -> numbers of the name and the blobs within a layer.
LAYERS = {100: (1, 7), 2: (4, 6)}
# BlobProto's fields: num, channels, height and width of before 2015, the values, and the shape.
LEGACY_SHAPE, DATA, SHAPE = (1, 2, 3, 4), 5, 7


class CaffeError(UserError, ValueError):
    """A file that is not a caffemodel, or a network that an FCN here cannot be."""


def read_caffemodel(path: str | Path) -> dict[str, list[Tensor]]:
    """Read the blobs of every layer that has any.

    The file is parsed here rather than by protobuf's library, which would hold each blob twice: an
    FCN is half a gigabyte, three quarters of it one blob (fc6).

    Args:
        path: a .caffemodel file.

    Returns:
        Layer name -> float32 tensors, in four dimensions in files of before 2015.

    Raises:
        CaffeError: the file is missing, cut short, damaged or not a caffemodel.
    """
    blobs: dict[str, list[Tensor]] = {}
    try:
        network = _fields(memoryview(np.memmap(path, np.uint8, mode="r")))  # type: ignore[arg-type]
        for number, (names, messages) in LAYERS.items():
            for layer in map(_fields, network[number]):
                if layer[messages]:
                    name = str(layer[names][0], "utf-8", "replace")
                    blobs[name] = [_blob(_fields(blob)) for blob in layer[messages]]
    except OSError as error:
        raise CaffeError(f"{path}: {error.strerror}") from error
    except (IndexError, TypeError, ValueError) as error:
        raise CaffeError(f"{path}: damaged, cut short or not a .caffemodel ({error})") from error
    if not blobs:
        raise CaffeError(f"{path}: it has no layers with weights; is it a .caffemodel?")
    return blobs


def _fields(message: memoryview) -> dict[int, list[Any]]:
    """Parse one protobuf message: field number -> its values, each an integer or bytes."""
    fields, at = defaultdict[int, list[Any]](list), 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        value, end = _varint(message, at) if wire in (0, 2) else (0, at)
        if wire != 0:  # fixed 64 bits, a length and as many bytes, fixed 32 bits
            start, end = end, end + {1: 8, 2: value, 5: 4}.get(wire, len(message))
            if end > len(message):
                raise ValueError("a field reaches beyond its message")
            fields[number].append(message[start:end])
        else:
            fields[number].append(value)
        at = end
    return fields


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return an integer stored as seven bits per byte, lowest first, and where it ends."""
    value = shift = 0
    while message[at] >= 128:
        value |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1


def _blob(fields: dict[int, list[Any]]) -> Tensor:
    """Return a blob as float32 in its own shape."""
    shape = [size for number in LEGACY_SHAPE for size in fields[number]]
    if fields[SHAPE]:
        shape, at, packed = [], 0, _fields(fields[SHAPE][0])[1]
        while packed and at < len(packed[0]):
            size, at = _varint(packed[0], at)
            shape.append(size)
    return torch.from_numpy(np.frombuffer(fields[DATA][0], "<f4").astype(np.float32).reshape(shape))


def import_fcn(
    blobs: Mapping[str, Sequence[Tensor]],
    model: str = "fcn8s",
    *,
    mean_bgr: Sequence[float] = MEAN_BGR,
    name: str = "caffemodel",
) -> tuple[FCN, Report]:
    """Build an FCN with the scores of one of the authors' networks, for RGB in [0, 1].

    Widths and the number of classes come from the blobs. Upsampling kernels that are bilinear to
    the last bit become `fixed` and are not stored; otherwise all are kept, as `learned`.

    Args:
        blobs: from `read_caffemodel`; the model shares their memory.
        model: a name in `MODELS`.
        mean_bgr: what the network subtracts from images of 0..255. NYUD's color network subtracts
            116.190, 97.203, 92.318; its HHA network has the same layers, but takes no RGB.
        name: of the source, in the report and in errors.

    Returns:
        The model in evaluation mode, and what became of every blob.

    Raises:
        CaffeError: a layer or blob is missing, unknown or of the wrong size.
    """
    stride, at_once = MODELS[model]
    source = _Source(name, blobs)
    source.check_layers(model)
    classes = blobs["score_fr"][1].numel()
    scales = {pool: source.scale(f"scale_{pool}") for pool in SKIPS[stride] if at_once}
    upsampling = source.upsampling(
        {UPSCORE[pool]: 2 for pool in SKIPS[stride]} | {FINAL[stride]: stride}, classes
    )
    network = source.empty_model(
        stride=stride, num_classes=classes, upsampling=upsampling, skip_scales=scales
    )
    network.load_state_dict(source.state(network.state_dict(), mean_bgr), assign=True)
    return network.eval(), source.report


def import_vgg(
    blobs: Mapping[str, Sequence[Tensor]],
    *,
    mean_bgr: Sequence[float] = MEAN_BGR,
    name: str = "caffemodel",
) -> tuple[dict[str, Tensor], Report]:
    """Convert the VGG16 of ILSVRC to weights for an FCN to start from, as the authors' did.

    Args:
        blobs: from `read_caffemodel`.
        mean_bgr: as in `import_fcn`. The default is what the authors' FCNs subtract; this VGG16
            was trained with 103.939, 116.779, 123.68.
        name: of the source, in the report and in errors.

    Returns:
        A state dict for `surgery.transplant` under FCN's names (mean, std, the backbone, fc6 and
        fc7), and what became of every blob. The classifier's last layer, fc8, is left over.

    Raises:
        CaffeError: as `import_fcn`.
    """
    source = _Source(name, blobs)
    source.check_layers("vgg16")
    every = source.empty_model(stride=32, num_classes=2).state_dict()
    wanted = {key: tensor for key, tensor in every.items() if not key.startswith("score")}
    state = source.state(wanted, mean_bgr)
    for part, blob in zip(PARTS, blobs["fc8"], strict=True):
        source.record(f"fc8.{part}", "left over", blob)
    return state, source.report


def _layers(model: str) -> dict[str, int]:
    """Return the layers of a published network that have blobs -> how many each has."""
    if model == "vgg16":
        return dict.fromkeys([*VGG16, "fc8"], 2)
    stride, at_once = MODELS[model]
    layers = dict.fromkeys([*VGG16, "score_fr"], 2) | {FINAL[stride]: 1}
    for pool in SKIPS[stride]:
        layers |= {f"score_{pool}": 2, UPSCORE[pool]: 1}
        if at_once:
            layers[f"scale_{pool}"] = 1
    return layers


@dataclass
class _Source:
    """A caffemodel's blobs, and what becomes of each."""

    name: str
    blobs: Mapping[str, Sequence[Tensor]]
    report: Report = field(init=False)

    def __post_init__(self) -> None:
        self.report = Report(self.name)

    def error(self, layer: str, reason: str) -> CaffeError:
        return CaffeError(f"{self.name}: layer {layer}: {reason}")

    def record(self, name: str, status: str, tensor: Tensor, note: str = "") -> None:
        self.report.tensors.append(TensorReport(name, status, tuple(tensor.shape), note))

    def check_layers(self, model: str) -> None:
        """Raise a CaffeError unless the layers and their numbers of blobs are those of `model`."""
        layers = _layers(model)
        missing = [layer for layer in layers if layer not in self.blobs]
        unknown = [layer for layer in self.blobs if layer not in layers]
        if missing or unknown:
            fitting = [m for m in (*MODELS, "vgg16") if _layers(m).keys() == self.blobs.keys()]
            raise CaffeError(
                f"{self.name}: not the layers of {model}; missing: {', '.join(missing) or 'none'}; "
                f"unknown: {', '.join(unknown) or 'none'}"
                + "".join(f"; its layers are those of model={m}" for m in fitting)
            )
        for layer, count in layers.items():
            if len(self.blobs[layer]) != count:
                found = len(self.blobs[layer])
                raise self.error(layer, f"it has {found} blobs, but should have {count}")

    def take(self, layer: str, index: int, shape: Sequence[int]) -> Tensor:
        """Return one blob in `shape`; old files have four dimensions, VGG's fc6 and fc7 two."""
        blob = self.blobs[layer][index]
        if blob.numel() != math.prod(shape):
            given, wanted = tuple(blob.shape), tuple(shape)
            raise self.error(layer, f"its {PARTS[index]} is {given}, but should be {wanted}")
        return blob.reshape(tuple(shape))

    def scale(self, layer: str) -> float:
        """Return the factor of a Scale layer, which stores it once per channel."""
        (blob,) = self.blobs[layer]
        factor = np.float32(blob.flatten()[0].item())
        if (blob != factor.item()).any():
            raise self.error(layer, "its channels have different factors, but a skip here has one")
        self.record(layer, "recognised", blob, f"the skip's factor: {factor}")
        return float(str(factor))  # 0.01 rather than 0.009999999776: the same as float32

    def upsampling(self, factors: Mapping[str, int], classes: int) -> str:
        """Return which of our upsamplings the network has, from its layers and their factors."""
        kernels, bilinear = {}, True
        for layer, factor in factors.items():
            # Bilinear values are fractions that float32 holds exactly: no tolerance is needed.
            ideal = LearnedUpsampling(factor, classes).weight
            kernels[layer] = self.take(layer, 0, ideal.shape)
            bilinear &= torch.equal(kernels[layer], ideal)
        if not bilinear:
            return "learned"
        for layer, kernel in kernels.items():
            self.record(f"{layer}.weight", "recognised", kernel, "bilinear: fixed, not stored")
        return "fixed"

    def empty_model(self, **arguments: Any) -> FCN:
        """Return an FCN of the blobs' widths, without memory for its weights."""
        width, head_width = (self.blobs[layer][1].numel() for layer in ("conv1_1", "fc6"))
        with torch.device("meta"):
            return FCN(padding=100, width=width, head_width=head_width, **arguments)

    def state(self, wanted: Mapping[str, Tensor], mean_bgr: Sequence[float]) -> dict[str, Tensor]:
        """Return a tensor for each of `wanted`, in its shape; record their tensors."""
        mean = torch.tensor(mean_bgr, dtype=torch.float64).flip(0) / 255
        state = {"mean": mean.float().view(3, 1, 1), "std": torch.full((3, 1, 1), 1 / 255)}
        self.record("mean", "set", state["mean"], f"{', '.join(map(str, mean_bgr))} (BGR) of 255")
        self.record("std", "set", state["std"], "1 of 255")
        for name in [name for name in wanted if name not in state]:
            layer, part = name.split(".")[-2:]
            index = PARTS.index(part)
            value, given = self.take(layer, index, wanted[name].shape), self.blobs[layer][index]
            status, note = "copied", ""
            if value.shape != given.shape:
                status, note = "reshaped", f"{tuple(given.shape)} before"
            if name == "backbone.conv1_1.weight":
                value, status, note = value.flip(1), "folded", "BGR to RGB"
            state[name] = value
            self.record(name, status, value, note)
        return state
