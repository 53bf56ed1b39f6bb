"""The losses: cross entropy as in the paper, and choices for rare classes.

All take scores (B, K, H, W) and targets (B, H, W), leave out ignored pixels, and are 0 with zero
gradients where every pixel is ignored.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn.config import LossConfig
from fcn.dataset_info import VOID
from fcn.errors import ConfigError
from fcn.targets import build, reason_of

RARE = 100  # a class whose pixels have more than this many times the average weight is noted


class Loss(nn.Module):
    """Calls the function of `cfg.name` in `LOSSES`; the class weights are a buffer not saved.

    Args:
        cfg: the choice and its arguments.
        reduction: sum or mean over pixels; every choice but cross_entropy is a mean.
        weight: (K,), of the classes, or None.
    """

    weight: Tensor | None

    def __init__(self, cfg: LossConfig, reduction: str, weight: Tensor | None = None) -> None:
        super().__init__()
        self.cfg, self.reduction = cfg, reduction
        weight = None if weight is None else weight.float()
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, score: Tensor, target: Tensor) -> Tensor:
        return LOSSES[self.cfg.name](self, score, target)


def make_loss(
    cfg: LossConfig, reduction: str, weight: Tensor | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss that the settings name: one of `LOSSES`, or a class of the user's.

    Args:
        cfg: the choice, or a `_target_` and its arguments.
        reduction: sum or mean over pixels; a class of the user's knows its own.
        weight: (K,), of the classes, or None.

    Raises:
        ConfigError: an unknown choice; a class that cannot be imported, or does not take its
            arguments.
    """
    if cfg._target_ is None and cfg.name not in LOSSES:
        raise ConfigError(f"loss.name={cfg.name}: must be one of {', '.join(LOSSES)}")
    if cfg._target_ is None:
        return Loss(cfg, reduction, weight)

    def complete(parameters: set[str], given: dict[str, Any]) -> dict[str, Any]:
        known = {"ignore_index": VOID, "weight": weight}
        if weight is not None and "weight" not in parameters:
            raise TypeError("loss.class_weights needs a class with an argument weight")
        return {key: value for key, value in known.items() if key in parameters} | given

    try:
        return build({"_target_": cfg._target_, **cfg.arguments}, complete)
    except ConfigError as error:
        raise ConfigError(f"loss: {error}") from error


def check_loss(cfg: LossConfig, reduction: str, num_classes: int) -> None:
    """Compute a loss of the user's on made-up scores, so that a bad one fails before a run.

    Raises:
        ConfigError: it raises an error, or returns no number that gradients come from.
    """
    weight = None if cfg.class_weights is None else torch.ones(num_classes)
    loss = make_loss(cfg, reduction, weight)
    if cfg._target_ is None:
        return
    score = torch.linspace(-1, 1, 60 * num_classes).view(2, num_classes, 5, 6).requires_grad_()
    target = torch.arange(60).view(2, 5, 6) % num_classes
    target[:, 0] = VOID
    try:
        value = loss(score, target)
        value.backward()
    except Exception as error:  # of whatever library it is
        raise ConfigError(f"loss: {cfg._target_}: {reason_of(error)}") from error
    if value.ndim or score.grad is None:
        raise ConfigError(
            f"loss: {cfg._target_}: must return one number of the scores, got {tuple(value.shape)}"
        )


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Return weights by which every class that occurs has the same share of the pixels' weight.

    w_k = N / (K n_k), of N pixels in all, and n_k in each of the K classes that occur, so that the
    mean over pixels is 1 (scikit-learn's "balanced"; King & Zeng 2001). A class without pixels has
    weight 0: nothing is known of it.

    Args:
        counts: pixels of each class in the training masks.

    Raises:
        ConfigError: there are no pixels at all.
    """
    total, present = sum(counts), sum(n > 0 for n in counts)
    if not present:
        raise ConfigError(
            "loss.class_weights=balanced: the training masks hold no pixel of any class; leave it "
            "out"
        )
    return [total / (present * n) if n > 0 else 0.0 for n in counts]


def check_class_weights(weights: Any, classes: Sequence[str]) -> list[float]:
    """Return given class weights as floats.

    Raises:
        ConfigError: not one number for each class, a negative or infinite one, or all zero.
    """
    given = weights if isinstance(weights, list | tuple) else []
    if len(given) != len(classes) or not all(type(w) in (int, float) for w in given):
        raise ConfigError(
            f"loss.class_weights={weights}: must be balanced, or one number for each of "
            f"{', '.join(classes)}"
        )
    limits = torch.finfo(torch.float32)
    if not all(w == 0 or limits.tiny <= w <= limits.max for w in weights) or not any(weights):
        raise ConfigError(
            f"loss.class_weights={list(weights)}: must be 0 or more, finite, and not all 0"
        )
    return [float(w) for w in weights]


def rare_note(weights: Sequence[float], counts: Sequence[int], classes: Sequence[str]) -> str:
    """Return a note on classes so rare that balance lets few pixels decide, or "".

    Balanced weights have no bound: a class with 9 of 100,000 pixels gets thousands of times the
    weight of others, and the network is fitted to those 9 pixels. `counts` are the pixels of each
    class in the training masks.
    """
    mean = sum(w * n for w, n in zip(weights, counts, strict=True)) / max(sum(counts), 1)
    rare = [
        f"{name} ({n:,} pixels, each with {w / mean:.3g} times the average weight)"
        for name, n, w in zip(classes, counts, weights, strict=True)
        if n and w > RARE * mean
    ]
    if not rare:
        return ""
    return (
        f"few pixels decide what is learned of {', '.join(rare)}; if the mean IoU suffers, give "
        "loss.class_weights as a list with smaller numbers for them"
    )


def cross_entropy_loss(
    score: Tensor,
    target: Tensor,
    reduction: str,
    *,
    weight: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the softmax cross entropy over the pixels that are not ignored.

    A class's weight counts its pixels several times, whatever their smoothed targets are. PyTorch's
    own cross entropy spreads smoothing in proportion to the weights instead, so that rare classes,
    and even absent ones, get most of every pixel's target (pytorch#104776).

    Args:
        score: float (B, K, H, W).
        target: int64 (B, H, W), 0..K-1, 255 = ignored.
        reduction: "sum" (Caffe's SoftmaxWithLoss with normalize: false) or "mean"; with weights,
            the weighted mean.
        weight: float (K,), of the classes.
        smoothing: share of every target that is spread evenly over all classes, 0..1 (Szegedy et
            al. 2016, sec. 7).

    Returns:
        float scalar, in nats.
    """
    loss, mass = _cross_entropy_per_pixel(score, target, weight, smoothing)
    total = (loss * mass).sum()
    if reduction == "sum":
        return total
    mass = mass.sum()
    return total / torch.where(mass > 0, mass, 1)


def dice_loss(score: Tensor, target: Tensor) -> Tensor:
    """Return one minus the soft Dice coefficient, averaged over the classes in the batch.

    Args:
        score: float (B, K, H, W).
        target: int64 (B, H, W), 255 = ignored.

    Returns:
        float (), 0..1.

    Source: Milletari et al. 2016 (V-Net).
    """
    seen = (target != VOID)[:, None]
    labels = torch.where(target != VOID, target, 0)
    one_hot = F.one_hot(labels, score.shape[1]).permute(0, 3, 1, 2) * seen
    probability = _at_least_float32(score).softmax(1) * seen
    both, each = (probability * one_hot).sum((0, 2, 3)), (probability + one_hot).sum((0, 2, 3))
    present = one_hot.sum((0, 2, 3)) > 0
    dice = 2 * both / each.clamp(min=1e-6)
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def focal_loss(score: Tensor, target: Tensor, gamma: float, weight: Tensor | None = None) -> Tensor:
    """Return the mean cross entropy, each pixel weighted by (1 - p)^gamma.

    p is the probability of the pixel's true class.

    Args:
        score: float (B, K, H, W).
        target: int64 (B, H, W), 255 = ignored.
        gamma: exponent >= 0; 0 is plain cross entropy.
        weight: float (K,), of the classes.

    Returns:
        float (), in nats; the mean is over all pixels that are not ignored.

    Source: Lin et al. 2017.
    """
    loss, mass = _cross_entropy_per_pixel(score, target, weight)
    # Below gamma = 1 the power has an infinite gradient where p rounds to 1.
    miss = (-torch.expm1(-loss)).clamp(min=torch.finfo(loss.dtype).eps)
    return (miss**gamma * loss * mass).sum() / (target != VOID).sum().clamp(min=1)


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
    loss, mass = _cross_entropy_per_pixel(score, target, weight)
    loss = (loss * mass)[target != VOID]
    count = max(1, math.ceil(hardest * len(loss)))
    return loss.topk(min(count, len(loss))).values.sum() / count


def _cross_entropy(loss: Loss, score: Tensor, target: Tensor) -> Tensor:
    smoothing = loss.cfg.label_smoothing
    return cross_entropy_loss(
        score, target, loss.reduction, weight=loss.weight, smoothing=smoothing
    )


def _dice(loss: Loss, score: Tensor, target: Tensor) -> Tensor:
    """Return cross entropy and soft Dice together, as in nnU-Net (Isensee et al. 2021)."""
    return _cross_entropy(loss, score, target) + loss.cfg.dice_weight * dice_loss(score, target)


def _focal(loss: Loss, score: Tensor, target: Tensor) -> Tensor:
    return focal_loss(score, target, loss.cfg.gamma, loss.weight)


def _ohem(loss: Loss, score: Tensor, target: Tensor) -> Tensor:
    return hard_example_loss(score, target, loss.cfg.hardest, loss.weight)


# The function of each loss.name, of (loss, score, target); `loss` has settings and class weights.
LOSSES = {"cross_entropy": _cross_entropy, "dice": _dice, "focal": _focal, "ohem": _ohem}


def _cross_entropy_per_pixel(
    score: Tensor, target: Tensor, weight: Tensor | None = None, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return each pixel's cross entropy, and its weight; both (B, H, W), 0 where ignored.

    Pixel by pixel: a GPU's own sum adds in any order, and raises where results must be
    deterministic.
    """
    score = _at_least_float32(score)
    loss = F.cross_entropy(
        score, target, ignore_index=VOID, reduction="none", label_smoothing=smoothing
    )
    mass = (target != VOID).to(loss.dtype)
    if weight is not None:
        mass = mass * weight.to(loss.dtype)[torch.where(target != VOID, target, 0)]
    return loss, mass


def _at_least_float32(score: Tensor) -> Tensor:
    return score if score.dtype == torch.float64 else score.float()
