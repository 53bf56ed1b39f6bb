"""Where a net's first weights come from: ImageNet, a file, a coarser FCN, or chance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import Weights, get_model_weights

from fcn.config import ConfigError, ModelConfig, UserError
from fcn.inference import checkpoint
from fcn.models.fcn import FCN
from fcn.models.surgery import Report, SurgeryError, expand_score, transplant


class WeightsError(UserError):
    """Weights that cannot be had, or do not fit."""


def initialise(
    model: FCN, config: ModelConfig, weights: str | None, classes: Sequence[str]
) -> Report | None:
    """Gives `model` its first weights: of `config.init_from`, else of `weights` (the backbone's).

    Where the model of `init_from` knows fewer classes and `classes` begins with them, their scores
    are kept; otherwise scores of another number of classes start anew.
    Returns: every tensor's fate; None if the weights stay random.
    Raises: WeightsError: they cannot be had, or do not fit.
    """
    if config.init_from is None and weights is None:
        return None
    source: Mapping[str, Tensor]
    if config.init_from is not None:
        name, source = config.init_from, _expanded(config.init_from, classes)
    elif Path(weights or "").suffix in (".pth", ".pt", ".ckpt", ".safetensors"):
        name, source = str(weights), checkpoint.state_dict(str(weights))
    else:
        name = str(weights)
        source = _torchvision(model, name)
    try:
        return transplant(model, source, name)
    except SurgeryError as error:
        raise WeightsError(str(error)) from error


def _expanded(path: str, classes: Sequence[str]) -> Mapping[str, Tensor]:
    """The weights of a checkpoint of ours, for `classes` if these begin with its own."""
    trained = checkpoint.read(path)
    known = trained.classes
    if len(known) < len(classes) and list(classes[: len(known)]) == known:
        return expand_score(trained.model(), len(classes)).state_dict()
    return trained.weights


def _torchvision(model: FCN, name: str) -> Mapping[str, Tensor]:
    """torchvision's weights by name, checked by hash; sets the model's mean and std to theirs."""
    backbone = model.arguments["backbone"]
    if backbone == "mini":
        raise ConfigError(
            f"backbone.weights={name}: the mini backbone has none; use null or a file"
        )
    published = get_model_weights(backbone)
    wanted = "IMAGENET1K_V1" if name.lower() == "imagenet" else name.upper()
    if wanted not in published.__members__:
        choices = ", ".join(["imagenet", *published.__members__])
        raise ConfigError(f"backbone.weights must be a file or one of {choices}, got {name}")
    weights: Weights = published[wanted]
    cache = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"backbone.weights={name}: could not fetch {weights.url} ({error}); put that file at "
            f"{cache}, give a local file, or set backbone.weights=null to start at random"
        ) from error
    transforms = weights.transforms()
    model.mean.copy_(torch.tensor(transforms.mean).view(3, 1, 1))
    model.std.copy_(torch.tensor(transforms.std).view(3, 1, 1))
    return state
