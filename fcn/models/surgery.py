"""Moving weights between nets, with a report of every tensor's fate.

Shelhamer et al. 2016, sec. 4.1: the classifier's fully connected layers become convolutions, and
each FCN starts from the next coarser one. Nothing is skipped in silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fcn.models.fcn import FCN


@dataclass(frozen=True)
class Fate:
    """What became of one tensor: copied, reshaped, initialised or left over."""

    name: str  # in the net; of a tensor left over, in the source
    fate: str
    shape: tuple[int, ...]
    note: str = ""


@dataclass
class Report:
    """Every tensor's fate, in the net's order, then what the source had left over."""

    source: str
    fates: list[Fate] = field(default_factory=list)

    def count(self, fate: str) -> int:
        return sum(entry.fate == fate for entry in self.fates)

    def named(self, fate: str) -> list[str]:
        return [entry.name for entry in self.fates if entry.fate == fate]


class SurgeryError(ValueError):
    """Weights that do not fit the net they are meant for."""


def convolutionalize(weight: Tensor, kernel: int) -> Tensor:
    """A fully connected layer's weight over (C, kernel, kernel) features as a convolution's.

    Args: weight: (outputs, C * kernel * kernel).
    Returns: (outputs, C, kernel, kernel), the same numbers: one output on a kernel x kernel input.
    Raises: SurgeryError: the inputs are not C * kernel * kernel for any C.
    """
    outputs, inputs = weight.shape
    if inputs % kernel**2:
        raise SurgeryError(f"a layer of {inputs} inputs is no {kernel} x {kernel} convolution")
    return weight.view(outputs, inputs // kernel**2, kernel, kernel)


def torchvision_names(model: FCN) -> dict[str, str]:
    """Our name of each backbone and head tensor -> torchvision's VGG's, in the net's order."""
    names = {}
    for index, (name, layer) in enumerate(model.backbone.named_children()):
        for key in layer.state_dict():
            names[f"backbone.{name}.{key}"] = f"features.{index}.{key}"
    for name, index in (("fc6", 0), ("fc7", 3)):
        for key in ("weight", "bias"):
            names[f"head.{name}.{key}"] = f"classifier.{index}.{key}"
    return names


@torch.no_grad()
def expand_score(model: FCN, num_classes: int) -> FCN:
    """A net for more classes that gives the old ones the scores it gave them.

    New classes come last; their scores start at zero, their upsampling at bilinear.
    Raises: SurgeryError: fewer classes than the model has.
    """
    old = model.arguments["num_classes"]
    if num_classes < old:
        raise SurgeryError(f"num_classes must be at least the model's {old}, got {num_classes}")
    expanded = FCN(**model.arguments | {"num_classes": num_classes})
    source = model.state_dict()
    for name, tensor in expanded.state_dict().items():
        given = source[name]
        tensor[tuple(slice(n) for n in given.shape)] = given
    return expanded.train(model.training)


@torch.no_grad()
def transplant(model: FCN, source: Mapping[str, Tensor], name: str = "source") -> Report:
    """Copies weights into `model`: from an FCN by name, or from torchvision's VGG by position.

    Fully connected weights are reshaped to convolutions where the numbers agree. Score and upscore
    layers that the source lacks, or has for other classes, keep their initialisation (zero,
    bilinear). The model is changed only if all fits.

    Args: source: a state dict. name: what to call it in the report and in errors.
    Raises: SurgeryError: a tensor of the backbone or its head found no source of its size, or one
        that is not finite.
    """
    theirs = torchvision_names(model) if any(k.startswith("features.") for k in source) else {}
    report, taken, copies = Report(name), set[str](), list[tuple[Tensor, Tensor]]()
    for own, tensor in model.state_dict().items():
        key = theirs.get(own, own)
        needed = own.startswith(("backbone.", "head."))
        if key not in source:
            if needed and not own.endswith("num_batches_tracked"):
                raise SurgeryError(
                    f"{name}: no {key} in it, which {own} {tuple(tensor.shape)} needs"
                )
            report.fates.append(Fate(own, "initialised", tuple(tensor.shape), "not in the source"))
            continue
        given = source[key]
        taken.add(key)
        reshaped = given.ndim == 2 and tensor.ndim == 4
        if reshaped:
            given = convolutionalize(given, tensor.shape[-1])
        if given.shape != tensor.shape:
            if needed:
                raise SurgeryError(
                    f"{name}: {key} is {tuple(given.shape)}, but {own} is {tuple(tensor.shape)}"
                )
            note = f"the source has {tuple(given.shape)}"
            report.fates.append(Fate(own, "initialised", tuple(tensor.shape), note))
            continue
        if not bool(torch.isfinite(given).all()):
            raise SurgeryError(f"{name}: {key} holds values that are not finite")
        copies.append((tensor, given))
        before = tuple(source[key].shape)
        fate, note = ("reshaped", f"{before} before") if reshaped else ("copied", "")
        report.fates.append(Fate(own, fate, tuple(tensor.shape), note))
    for tensor, given in copies:
        tensor.copy_(given)
    report.fates += [
        Fate(key, "left over", tuple(source[key].shape)) for key in source if key not in taken
    ]
    return report
