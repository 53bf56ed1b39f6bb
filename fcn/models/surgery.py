"""Moving weights between networks, with a report of what became of every tensor.

Shelhamer et al. 2016, sec. 4.1: the classifier's fully connected layers become convolutions, and
each FCN starts from the next coarser one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fcn.models.fcn import FCN
from fcn.models.vgg import for_channels


@dataclass(frozen=True)
class Fate:
    """The fate of one tensor."""

    name: str  # in the model; of a tensor left over, in the source
    fate: str  # copied, reshaped, adapted, initialised or left over
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


def _torchvision_names(model: FCN) -> dict[str, str]:
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

    Fully connected weights are reshaped to convolutions: the same numbers. Score and upscore layers
    are copied class by class where both lists of names are known; classes that the source lacks
    keep their initialisation (scores zero, upsampling bilinear). RGB's first convolution is adapted
    to other images, see `first_convolution`. The model changes only if everything fits.

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
    theirs = _torchvision_names(model) if any(k.startswith("features.") for k in source) else {}
    names, source_names = list(classes or []), list(source_classes or [])
    by_class = names and source_names and names != source_names
    report, copies = Report(name), list[tuple[Tensor, Tensor]]()
    left_over = dict(source)
    for own, tensor in model.state_dict().items():
        key, shape = theirs.get(own, own), tuple(tensor.shape)
        needed = own.startswith(("backbone.", "head."))
        if key not in source:
            if needed and not own.endswith("num_batches_tracked"):
                raise SurgeryError(f"{name}: no {key} in it, which {own} {shape} needs")
            report.fates.append(Fate(own, "initialised", shape, "not in the source"))
            continue
        given, fate, note = left_over.pop(key), "copied", ""
        if not given.isfinite().all():
            raise SurgeryError(f"{name}: {key} holds values that are not finite")
        if given.ndim == 2 and tensor.ndim == 4 and given.numel() == tensor.numel():
            fate, note = "reshaped", f"{tuple(given.shape)} before"
            given = given.reshape(shape)
        if given.shape != tensor.shape and own == "backbone.conv1_1.weight" and given.shape[1] == 3:
            fate, note = "adapted", f"from RGB to {shape[1]} channels"
            given = first_convolution(given, shape[1])
        elif own in ("mean", "std"):
            given = for_channels(given, len(tensor), 0)
        if by_class and own.startswith(("score", "upscore")):
            given, note = _match_classes(tensor, given, names, source_names)
            fate = "initialised" if given is tensor else "copied"
        elif given.shape != tensor.shape and needed:
            raise SurgeryError(f"{name}: {key} is {tuple(given.shape)}, but {own} is {shape}")
        elif given.shape != tensor.shape:
            given, fate, note = tensor, "initialised", f"the source has {tuple(given.shape)}"
        copies.append((tensor, given))
        report.fates.append(Fate(own, fate, shape, note))
    for tensor, given in copies:
        tensor.copy_(given)
    report.fates += [Fate(key, "left over", tuple(t.shape)) for key, t in left_over.items()]
    return report


def first_convolution(rgb: Tensor, channels: int) -> Tensor:
    """Return the kernels of an RGB image's first convolution for images of other channels.

    See `for_channels`. One or two channels are also weighted by 3 / C, so that the response to a
    grey image stays what it was in RGB.

    Args:
        rgb: (out, 3, k, k).
        channels: C.
    """
    return for_channels(rgb, channels, 1) * max(1, 3 / channels)


def _match_classes(
    initial: Tensor, given: Tensor, classes: list[str], source_classes: list[str]
) -> tuple[Tensor, str]:
    """Return `initial` (K, ...) with the rows of `given` for the classes both know, and a note.

    Where nothing fits, the tensor is `initial` itself.
    """
    known = [k for k in classes if k in source_classes]
    new = torch.tensor([classes.index(k) for k in known], dtype=torch.long)
    old = torch.tensor([source_classes.index(k) for k in known], dtype=torch.long)
    # Kernels from each class to each class, (K, K, k, k), unlike scores, (K, C, 1, 1).
    by_pair = initial.shape[1:2] == (len(classes),) and initial.shape[2:] != (1, 1)
    start = (len(source_classes),) * (2 if by_pair else 1)
    if not known or given.shape != (*start, *initial.shape[len(start) :]):
        return initial, f"the source has the classes {', '.join(source_classes)}"
    result = initial.clone()
    if by_pair:
        result[new[:, None], new] = given[old[:, None], old]
    else:
        result[new] = given[old]
    note = f"{len(known)} classes by name"
    if lacking := [k for k in classes if k not in known]:
        note += f"; new: {', '.join(lacking)}"
    return result, note
