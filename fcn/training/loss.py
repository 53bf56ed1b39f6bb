"""The losses: cross entropy as in the paper, and choices for rare classes.

All take scores (B, K, H, W) and targets (B, H, W), leave out ignored pixels, and are 0 with zero
gradients where every pixel is ignored.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fcn.config import LossConfig
from fcn.dataset_info import VOID
from fcn.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]


def make_loss(cfg: LossConfig, reduction: str, weight: Tensor | None = None) -> Loss:
    """Return a loss of (score, target).

    Args:
        cfg: the choice and its arguments.
        reduction: sum or mean over pixels; every choice but cross_entropy is a mean.
        weight: float (K,), of the classes, or None.

    Raises:
        ConfigError: an unknown choice.
    """
    if cfg.name not in LOSSES:
        raise ConfigError(f"loss.name={cfg.name}: must be one of {', '.join(LOSSES)}")
    choice = LOSSES[cfg.name]
    return lambda score, target: choice(score, target, cfg, reduction, weight)


def pixel_loss(
    score: Tensor,
    target: Tensor,
    reduction: str,
    *,
    weight: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the softmax cross entropy over the pixels that are not ignored.

    Args:
        score: float (B, K, H, W).
        target: int64 (B, H, W), 0..K-1, 255 = ignored.
        reduction: "sum" (Caffe's SoftmaxWithLoss with normalize: false) or "mean"; with weights,
            the weighted mean.
        weight: float (K,), of the classes.
        smoothing: share of every target that is spread over all classes, 0..1.

    Returns:
        float scalar, in nats.
    """
    # A GPU's own sum adds in any order, and raises where results must be deterministic.
    kind = "none" if torch.are_deterministic_algorithms_enabled() else "sum"
    total = F.cross_entropy(
        score.float(), target, weight, ignore_index=VOID, reduction=kind, label_smoothing=smoothing
    ).sum()
    if reduction == "sum":
        return total
    seen = target != VOID
    if weight is None:
        return total / seen.sum().clamp(min=1)
    mass = weight[target[seen]].sum()
    return total / torch.where(mass > 0, mass, 1)


def dice_loss(score: Tensor, target: Tensor) -> Tensor:
    """Return one minus the soft Dice coefficient, averaged over the classes in the batch.

    Source: Milletari et al. 2016 (V-Net); with cross entropy as in nnU-Net (Isensee et al. 2021).
    """
    seen = (target != VOID)[:, None]
    labels = torch.where(target != VOID, target, 0)
    one_hot = F.one_hot(labels, score.shape[1]).permute(0, 3, 1, 2) * seen
    probability = score.float().softmax(1) * seen
    both, each = (probability * one_hot).sum((0, 2, 3)), (probability + one_hot).sum((0, 2, 3))
    present = one_hot.sum((0, 2, 3)) > 0
    dice = 2 * both / each.clamp(min=1e-6)
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def focal_loss(score: Tensor, target: Tensor, gamma: float, weight: Tensor | None = None) -> Tensor:
    """Return the cross entropy, each pixel's times (1 - p)^gamma, p being its true class's score.

    Source: Lin et al. 2017.
    """
    loss, seen = _pixel_losses(score, target)
    factor = (1 - (-loss).exp()) ** gamma * seen
    if weight is not None:
        factor = factor * weight[torch.where(seen, target, 0)]
    return (factor * loss).sum() / seen.sum().clamp(min=1)


def hard_example_loss(
    score: Tensor, target: Tensor, hardest: float, weight: Tensor | None = None
) -> Tensor:
    """Return the mean cross entropy of the pixels with the largest one (OHEM).

    Args:
        score: float (B, K, H, W).
        target: int64 (B, H, W), 255 = ignored.
        hardest: share of the pixels that count, 0..1.
        weight: float (K,), of the classes.

    Source: Shrivastava et al. 2016.
    """
    loss, seen = _pixel_losses(score, target)
    if weight is not None:
        loss = loss * weight[torch.where(seen, target, 0)]
    count = int((hardest * seen.sum()).ceil().clamp(min=1))
    return loss[seen].topk(min(count, int(seen.sum()))).values.sum() / count


def _pixel_losses(score: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pixel's cross entropy (B, H, W), 0 where ignored, and which are not ignored."""
    loss = F.cross_entropy(score.float(), target, ignore_index=VOID, reduction="none")
    return loss, target != VOID


def _cross_entropy(
    score: Tensor, target: Tensor, cfg: LossConfig, reduction: str, weight: Tensor | None
) -> Tensor:
    return pixel_loss(score, target, reduction, weight=weight, smoothing=cfg.label_smoothing)


# Choice -> the loss, a scalar, of (score, target, its arguments, reduction, weight of classes).
LOSSES: dict[str, Callable[[Tensor, Tensor, LossConfig, str, Tensor | None], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "dice": lambda score, target, cfg, reduction, weight: (
        _cross_entropy(score, target, cfg, reduction, weight)
        + cfg.dice_weight * dice_loss(score, target)
    ),
    "focal": lambda score, target, cfg, _, weight: focal_loss(score, target, cfg.gamma, weight),
    "ohem": lambda score, target, cfg, _, weight: hard_example_loss(
        score, target, cfg.hardest, weight
    ),
}


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Return a weight for each class in inverse proportion to its pixels; 0 for an absent one."""
    return [sum(counts) / (len(counts) * n) if n else 0.0 for n in counts]


def check_class_weights(weights: Any, classes: Sequence[str]) -> list[float]:
    """Return loss.class_weights as floats, one for each class, or raise a ConfigError."""
    if not isinstance(weights, list) or len(weights) != len(classes):
        raise ConfigError(
            f"loss.class_weights={weights}: must be balanced, or one number for each of "
            f"{', '.join(classes)}"
        )
    return [float(weight) for weight in weights]
