"""Moving weights between networks, with a report of what became of every tensor.

Shelhamer et al. 2016, sec. 4.1: the classifier's fully connected layers become convolutions, and
each FCN starts from the next coarser one. Layers that start new beside pretrained ones are fitted
to the size of the features that they read.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fcn.models.fcn import FCN, SKIPS
from fcn.models.vgg import RGB, Bands, for_channels, match_bands, variant

# Of pool5's response to plain grey over that to noise, see `normalisation_warning`.
LEAST_RATIO, MOST_RATIO = 0.01, 0.6


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor."""

    name: str  # in the model; of a tensor left over, in the source
    status: str  # copied, reshaped, adapted, initialised or left over
    shape: tuple[int, ...]
    note: str = ""


@dataclass
class Report:
    """What became of every tensor, in the model's order, then what the source had left over."""

    source: str
    tensors: list[TensorReport] = field(default_factory=list)
    warning: str = ""  # of weights that may not be what they seem

    def with_status(self, status: str) -> list[str]:
        """Return the names of the tensors with a status."""
        return [entry.name for entry in self.tensors if entry.status == status]

    def note(self, name: str, note: str) -> None:
        """Add a note to a tensor of the model."""
        names = [entry.name for entry in self.tensors]
        entry = self.tensors[names.index(name)]
        note = f"{entry.note}; {note}" if entry.note else note
        self.tensors[names.index(name)] = replace(entry, note=note)


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
    bands: Bands = (),
    source_bands: Bands = (),
    new_head: bool = False,
) -> Report:
    """Copy weights into a model: from an FCN by name, or from torchvision's VGG by position.

    Fully connected weights are reshaped to convolutions: the same numbers. Score and upscore layers
    are copied class by class where both lists of names are known; classes that the source lacks
    keep their initialisation (scores zero, upsampling bilinear). The first convolution is adapted
    to other bands, see `match_bands`. The model changes only if everything fits.

    Args:
        model: changed in place.
        source: a state dict.
        name: of the source, for the report and errors.
        classes: the model's class names.
        source_classes: the source's class names.
        bands: of the model's images, see `match_bands`.
        source_bands: of the source's images.
        new_head: fc6 and fc7 keep their initialisation, whatever the source holds.

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
        key, shape, in_head = theirs.get(own, own), tuple(tensor.shape), own.startswith("head.")
        needed = (in_head and not new_head) or own.startswith("backbone.")
        hint = "; backbone.head_weights=null starts fc6 and fc7 new" if in_head and theirs else ""
        absent = key not in source or source[key].isnan().all()  # torchvision's IMAGENET1K_FEATURES
        if absent and needed and not own.endswith("num_batches_tracked"):
            raise SurgeryError(f"{name}: no {key} in it, which {own} {shape} needs{hint}")
        if absent or (in_head and new_head):
            report.tensors.append(TensorReport(own, "initialised", shape))
            continue
        given, status, note = _fit(own, left_over.pop(key), shape, bands, source_bands)
        if not given.isfinite().all():
            raise SurgeryError(f"{name}: {key} holds values that are not finite")
        if by_class and own.startswith(("score", "upscore")):
            given, note = _match_classes(tensor, given, names, source_names)
            status = "initialised" if given is tensor else "copied"
        if given.shape != tensor.shape and needed:
            raise SurgeryError(f"{name}: {key} is {tuple(given.shape)}, but {own} is {shape}{hint}")
        if given.shape != tensor.shape:
            given, status, note = tensor, "initialised", f"the source has {tuple(given.shape)}"
        copies.append((tensor, given))
        report.tensors.append(TensorReport(own, status, shape, note))
    for tensor, given in copies:
        tensor.copy_(given)
    report.tensors += [
        TensorReport(key, "left over", tuple(t.shape)) for key, t in left_over.items()
    ]
    return report


def _fit(
    own: str, given: Tensor, shape: tuple[int, ...], bands: Bands, source_bands: Bands
) -> tuple[Tensor, str, str]:
    """Return a source tensor in the shape of ours, if it can be; how, and a note for the report."""
    if own in ("mean", "std"):
        places = match_bands(len(given), shape[0], source_bands, bands)
        return for_channels(given, shape[0], 0, places), "copied", ""
    if given.ndim == 2 and len(shape) == 4 and given.numel() == math.prod(shape):
        return given.reshape(shape), "reshaped", f"{tuple(given.shape)} before"
    if own == "backbone.conv1_1.weight":
        return _first_convolution(given, shape[1], bands, source_bands)
    return given, "copied", ""


def _first_convolution(
    given: Tensor, channels: int, bands: Bands, source_bands: Bands
) -> tuple[Tensor, str, str]:
    """Return a source's first convolution for images of other bands, see `for_channels`.

    Fewer channels than the source has, or none that it knows, are also weighted by the ratio of
    their numbers, so that the response to a grey image stays what it was.
    """
    source = given.shape[1]
    places = match_bands(source, channels, source_bands, bands)
    fitted = for_channels(given, channels, 1, places)
    if fitted is given:
        return given, "copied", ""
    note = f"from RGB to {channels} channels"
    if places is not None:
        named = [*zip(bands or RGB, places, strict=True)]
        known = ", ".join(str(band) for band, place in named if place is not None)
        others = ", ".join(str(band) for band, place in named if place is None)
        note = f"{known or 'no band'} by name" + (f"; {others}: the mean" if others else "")
    unknown = places is not None and not any(place is not None for place in places)
    return fitted * max(0 if unknown else 1, source / channels), "adapted", note


@torch.no_grad()
def fit_to_features(model: FCN, images: Sequence[Tensor], report: Report) -> None:
    """Fit layers that start new to the size of the pretrained features that they read.

    Features of a VGG without batch norm have any size: those of a network for images of 0..255 have
    a root mean square (RMS) of hundreds in pool3, and of about ten in pool5. A skip whose score
    layer is new is scaled to an RMS of 1, and the weights of a new fc6 as if pool5 had an RMS of 1.
    The authors' at-once network scales its skips for the same reason (PAMI 2016, sec. 4.3);
    measuring the size is data-dependent initialisation (Krähenbühl et al. 2016, arXiv 1511.06856).

    Args:
        model: changed in place: `skip_scales`, fc6.
        images: uint8 (3, H, W), some of the training images.
        report: of the surgery that filled the model; it gets a note about each change.
    """
    new = set(report.with_status("initialised"))
    if variant(model.arguments["backbone"]).batch_norm:
        return
    features = [model.backbone(model.normalise(image[None])) for image in images]
    pool3, pool4, pool5 = map(_rms, zip(*features, strict=True))
    sizes = {"pool3": pool3, "pool4": pool4, "pool5": pool5}
    for pool in SKIPS[model.stride]:
        if f"score_{pool}.weight" in new and pool not in model.arguments["skip_scales"]:
            model.arguments["skip_scales"][pool] = 1 / sizes[pool]
            report.note(f"score_{pool}.weight", f"reads {pool} / {sizes[pool]:.3g}")
    if "head.fc6.weight" in new:
        model.get_parameter("head.fc6.weight").div_(sizes["pool5"])
        report.note("head.fc6.weight", f"divided by {sizes['pool5']:.3g}, the size of pool5")


@torch.no_grad()
def normalisation_warning(model: FCN) -> str:
    """Return a warning if mean and std do not fit the weights of the backbone, or "".

    Where images reach the first layer too weak, the biases outweigh them, and pool5 responds to
    plain grey as it does to noise; where they are too strong, the biases count for nothing. In a
    VGG16 for images of 0..255 the ratio of the two responses is 0.13. It is 0.95 with a std of
    0.229 in place of 1/255, and 0.002 with one 57 times too small.
    """
    if variant(model.arguments["backbone"]).batch_norm:
        return ""
    side = 224  # pixels, of ImageNet's images
    grey = model.mean.expand(-1, side, side)
    noise = torch.rand(grey.shape, generator=torch.Generator().manual_seed(0))
    pool5 = [model.backbone(model.normalise(image[None]))[2] for image in (grey, noise)]
    ratio = _rms(pool5[:1]) / _rms(pool5[1:])
    if LEAST_RATIO < ratio < MOST_RATIO:
        return ""
    return (
        f"its mean and std (std {model.std.mean():.4f}) do not fit its weights: images reach the "
        f"first layer too {'weak' if ratio >= MOST_RATIO else 'strong'}, plain grey gives "
        f"{100 * ratio:.2g} % of the response to noise in pool5. Put the mean and std that it was "
        "trained with, for images in [0, 1], into the file: as safetensors metadata, or as tensors"
    )


def _rms(tensors: Sequence[Tensor]) -> float:
    """Return the root mean square of all values."""
    return float(torch.cat([tensor.flatten() for tensor in tensors]).square().mean().sqrt())


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
