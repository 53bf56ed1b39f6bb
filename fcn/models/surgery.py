"""Moving weights between networks, with a report of what became of every tensor.

Shelhamer et al. 2016, sec. 4.1: the classifier's fully connected layers become convolutions, and
each FCN starts from the next coarser one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fcn.models.fcn import FCN


@dataclass(frozen=True)
class Fate:
    """What became of one tensor.

    Args:
        name: in the model; of a tensor left over, in the source.
        fate: copied, reshaped, initialised or left over.
        shape: of the tensor.
        note: why, or how.
    """

    name: str
    fate: str
    shape: tuple[int, ...]
    note: str = ""


@dataclass
class Report:
    """Every tensor's fate, in the model's order, then what the source had left over."""

    source: str
    fates: list[Fate] = field(default_factory=list)

    def count(self, fate: str) -> int:
        """Return how many tensors met a fate."""
        return len(self.named(fate))

    def named(self, fate: str) -> list[str]:
        """Return the names of the tensors that met a fate."""
        return [entry.name for entry in self.fates if entry.fate == fate]


class SurgeryError(ValueError):
    """Weights that do not fit the model they are meant for."""


def convolutionalize(weight: Tensor, kernel: int) -> Tensor:
    """Return a fully connected layer's weight as that of a convolution.

    Args:
        weight: (outputs, C * kernel * kernel), over features (C, kernel, kernel).
        kernel: side of the convolution.

    Returns:
        (outputs, C, kernel, kernel), the same numbers: one output on a kernel x kernel input.

    Raises:
        SurgeryError: the inputs are not C * kernel * kernel for any C.
    """
    outputs, inputs = weight.shape
    if inputs % kernel**2:
        raise SurgeryError(f"a layer of {inputs} inputs is no {kernel} x {kernel} convolution")
    return weight.view(outputs, inputs // kernel**2, kernel, kernel)


def torchvision_names(model: FCN) -> dict[str, str]:
    """Return our name of each backbone and head tensor -> its name in torchvision's VGG."""
    names = {}
    for index, (name, layer) in enumerate(model.backbone.named_children()):
        for key in layer.state_dict():
            names[f"backbone.{name}.{key}"] = f"features.{index}.{key}"
    for name, index in (("fc6", 0), ("fc7", 3)):
        for key in ("weight", "bias"):
            names[f"head.{name}.{key}"] = f"classifier.{index}.{key}"
    return names


@torch.no_grad()
def transplant(
    model: FCN,
    source: Mapping[str, Tensor],
    name: str = "source",
    *,
    classes: Sequence[str] | None = None,
    source_classes: Sequence[str] | None = None,
) -> Report:
    """Copy weights into a model: from an FCN by name, or from torchvision's VGG by position.

    Fully connected weights are reshaped to convolutions. Score and upscore layers are copied class
    by class where both lists of names are known; classes that the source lacks keep their
    initialisation (scores zero, upsampling bilinear). The model changes only if everything fits.

    Args:
        model: changed in place.
        source: a state dict.
        name: of the source, for the report and errors.
        classes: the model's class names.
        source_classes: the source's class names.

    Raises:
        SurgeryError: a tensor of the backbone or head has no source of its size, or one with
            values that are not finite.
    """
    theirs = torchvision_names(model) if any(k.startswith("features.") for k in source) else {}
    names = (list(classes or []), list(source_classes or []))
    by_class = all(names) and names[0] != names[1]
    report, taken, copies = Report(name), set[str](), list[tuple[Tensor, Tensor]]()
    for own, tensor in model.state_dict().items():
        key, shape = theirs.get(own, own), tuple(tensor.shape)
        needed = own.startswith(("backbone.", "head."))
        if key not in source:
            if needed and not own.endswith("num_batches_tracked"):
                raise SurgeryError(f"{name}: no {key} in it, which {own} {shape} needs")
            report.fates.append(Fate(own, "initialised", shape, "not in the source"))
            continue
        taken.add(key)
        given, note = source[key], ""
        if given.ndim == 2 and tensor.ndim == 4:
            note = f"{tuple(given.shape)} before"
            given = convolutionalize(given, tensor.shape[-1])
        if not bool(torch.isfinite(given).all()):
            raise SurgeryError(f"{name}: {key} holds values that are not finite")
        fate = "reshaped" if note else "copied"
        if by_class and own.startswith(("score", "upscore")):
            given, note = match_classes(tensor, given, *names)
            fate = "initialised" if given is tensor else "copied"
        elif given.shape != tensor.shape and needed:
            raise SurgeryError(f"{name}: {key} is {tuple(given.shape)}, but {own} is {shape}")
        elif given.shape != tensor.shape:
            given, fate, note = tensor, "initialised", f"the source has {tuple(given.shape)}"
        copies.append((tensor, given))
        report.fates.append(Fate(own, fate, shape, note))
    for tensor, given in copies:
        tensor.copy_(given)
    report.fates += [
        Fate(key, "left over", tuple(source[key].shape)) for key in source if key not in taken
    ]
    return report


def match_classes(
    initial: Tensor, given: Tensor, classes: Sequence[str], source_classes: Sequence[str]
) -> tuple[Tensor, str]:
    """Return a score or upscore tensor with the rows of the classes that the source knows.

    Args:
        initial: (K, ...), kept for classes that the source lacks.
        given: (K', ...), the source's.
        classes: K names.
        source_classes: K' names.

    Returns:
        The tensor, `initial` itself where nothing fits, and a note for the report.
    """
    known = [k for k in classes if k in source_classes]
    new = torch.tensor([list(classes).index(k) for k in known], dtype=torch.long)
    old = torch.tensor([list(source_classes).index(k) for k in known], dtype=torch.long)
    by_pair = len(classes) == initial.shape[1:2].numel() and initial.shape[2:] != (1, 1)
    rest = (given.shape[2:], initial.shape[2:]) if by_pair else (given.shape[1:], initial.shape[1:])
    if not known or len(initial) != len(classes) or rest[0] != rest[1]:
        return initial, f"the source has the classes {', '.join(source_classes)}"
    result = initial.clone()
    if by_pair:  # kernels from each class to each class
        result[new[:, None], new] = given[old[:, None], old]
    else:
        result[new] = given[old]
    lacking = [k for k in classes if k not in known]
    return result, f"{len(known)} classes by name" + f"; new: {', '.join(lacking)}" * bool(lacking)
