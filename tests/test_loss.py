"""Losses against independent computations, with ignored pixels."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fcn.config import LossConfig
from fcn.training.loss import make_loss, pixel_loss

WEIGHTS = [0.5, 2.0, 1.5]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Scores of three classes, of which the second does not occur, and ignored pixels."""
    target = torch.tensor([0, 2])[torch.randint(0, 2, (2, 4, 5))]
    target[0, :2] = 255
    return torch.randn(2, 3, 4, 5, requires_grad=True), target


def pixels(score: Tensor, target: Tensor) -> list[tuple[list[float], int]]:
    """(probabilities, label) of every pixel that is not ignored."""
    probability = score.detach().double().softmax(1)
    where = (target != 255).nonzero().tolist()
    return [(probability[b, :, y, x].tolist(), int(target[b, y, x])) for b, y, x in where]


def test_the_loss_leaves_out_ignored_pixels() -> None:
    score = torch.randn(2, 3, 4, 5, requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 5))
    target[0, :2] = 255
    counted = [
        -float(F.log_softmax(score[b, :, y, x], 0)[target[b, y, x]].detach())
        for b, y, x in (target != 255).nonzero().tolist()
    ]
    total = pixel_loss(score, target, "sum")
    assert float(total.detach()) == pytest.approx(sum(counted), rel=1e-5)
    mean = pixel_loss(score, target, "mean")
    assert float(mean.detach()) == pytest.approx(sum(counted) / len(counted), rel=1e-5)
    (gradient,) = torch.autograd.grad(total, score)
    assert torch.equal(gradient[0, :, :2], torch.zeros(3, 2, 5))
    nothing = pixel_loss(score, torch.full_like(target, 255), "mean")
    assert float(nothing.detach()) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_weights_and_smoothing_are_those_of_torch(
    batch: tuple[Tensor, Tensor], weights: list[float] | None, smoothing: float
) -> None:
    weight = torch.tensor(weights) if weights else None
    loss = make_loss(LossConfig(label_smoothing=smoothing), "mean", weight)(*batch)
    expected = F.cross_entropy(*batch, weight=weight, ignore_index=255, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)


def test_dice_by_hand(batch: tuple[Tensor, Tensor]) -> None:
    found, seen = [], pixels(*batch)
    for k in (0, 2):  # the classes that occur
        both = sum(p[k] for p, label in seen if label == k)
        found.append(2 * both / sum(p[k] + (label == k) for p, label in seen))
    expected = 1 - sum(found) / 2 - sum(math.log(p[label]) for p, label in seen) / len(seen)
    loss = make_loss(LossConfig("dice"), "mean")(*batch)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_by_hand(batch: tuple[Tensor, Tensor], weights: list[float] | None) -> None:
    seen = pixels(*batch)
    each = [
        (weights[label] if weights else 1) * (1 - p[label]) ** 3 * -math.log(p[label])
        for p, label in seen
    ]
    loss = make_loss(
        LossConfig("focal", gamma=3), "mean", torch.tensor(weights) if weights else None
    )
    assert float(loss(*batch).detach()) == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_hard_examples_by_sorting(batch: tuple[Tensor, Tensor]) -> None:
    each = sorted((-math.log(p[label]) for p, label in pixels(*batch)), reverse=True)
    hardest = each[: math.ceil(0.3 * len(each))]
    loss = make_loss(LossConfig("ohem", hardest=0.3), "mean")(*batch)
    assert float(loss.detach()) == pytest.approx(sum(hardest) / len(hardest), rel=1e-5)


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "focal", "ohem"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ignored_pixels_get_no_gradient(
    batch: tuple[Tensor, Tensor], name: str, weights: list[float] | None
) -> None:
    score, target = batch
    loss = make_loss(LossConfig(name), "mean", torch.tensor(weights) if weights else None)
    (gradient,) = torch.autograd.grad(loss(score, target), score)
    assert not gradient[0, :, :2].any()
    assert gradient.isfinite().all()
    assert gradient.any()
    nothing = loss(score, torch.full_like(target, 255))
    assert float(nothing.detach()) == 0
    (gradient,) = torch.autograd.grad(nothing, score)
    assert not gradient.any()
