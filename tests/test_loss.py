"""Losses against independent computations, with ignored pixels."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn.config import LossConfig
from fcn.errors import ConfigError
from fcn.training.loss import (
    LOSSES,
    balanced_weights,
    check_class_weights,
    check_loss,
    cross_entropy_loss,
    make_loss,
    rare_note,
)

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


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_is_torchs_but_for_weights_and_smoothing_together(
    batch: tuple[Tensor, Tensor], weights: list[float] | None, smoothing: float, reduction: str
) -> None:
    """Together, a pixel's weight is that of its class, and its target is spread evenly."""
    weight = torch.tensor(weights) if weights else None
    loss = make_loss(LossConfig(label_smoothing=smoothing), reduction, weight)(*batch)
    expected = F.cross_entropy(
        *batch, weight=weight, ignore_index=255, label_smoothing=smoothing, reduction=reduction
    )
    if smoothing and weights:
        total = mass = 0.0
        for p, label in pixels(*batch):
            q = [smoothing / 3 + (1 - smoothing) * (k == label) for k in range(3)]
            cross = -sum(share * math.log(chance) for share, chance in zip(q, p, strict=True))
            total, mass = total + weights[label] * cross, mass + weights[label]
        expected = torch.tensor(total / mass if reduction == "mean" else total)
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
@pytest.mark.parametrize("gamma", [0.5, 3])
def test_focal_by_hand(
    batch: tuple[Tensor, Tensor], weights: list[float] | None, gamma: float
) -> None:
    seen = pixels(*batch)
    each = [
        (weights[label] if weights else 1) * (1 - p[label]) ** gamma * -math.log(p[label])
        for p, label in seen
    ]
    weight = torch.tensor(weights) if weights else None
    loss = make_loss(LossConfig("focal", gamma=gamma), "mean", weight)(*batch)
    assert float(loss.detach()) == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_hard_examples_by_sorting(batch: tuple[Tensor, Tensor]) -> None:
    each = sorted((-math.log(p[label]) for p, label in pixels(*batch)), reverse=True)
    hardest = each[: math.ceil(0.3 * len(each))]
    loss = make_loss(LossConfig("ohem", hardest=0.3), "mean")(*batch)
    assert float(loss.detach()) == pytest.approx(sum(hardest) / len(hardest), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
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


FORMS = [LossConfig(name) for name in LOSSES if name != "focal"]
FORMS += [LossConfig("focal", gamma=gamma) for gamma in (0.0, 0.1, 0.5, 1.0, 2.0)]


@pytest.mark.parametrize("cfg", FORMS, ids=lambda cfg: f"{cfg.name}-{cfg.gamma}")
@pytest.mark.parametrize("margin", [0.0, 1e-3, 10.0, 17.0, 60.0, 1e4])
def test_gradients_are_finite_however_sure_the_network_is(cfg: LossConfig, margin: float) -> None:
    """Right or wrong about a pixel, with an absent class, and weights of any size."""
    score = torch.zeros(1, 3, 1, 2)
    score[0, 0] = margin
    score.requires_grad_()
    loss = make_loss(cfg, "mean", torch.tensor([1e-3, 1e6, 0]))
    value = loss(score, torch.tensor([[[0, 1]]]))
    (gradient,) = torch.autograd.grad(value, score)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient[0, 1, 0, 1] < 0 or cfg.name == "focal"  # towards the label, where it is wrong


def test_balanced_weights_by_hand() -> None:
    """Each of the classes that occur gets the same weight in all; an absent one gets none."""
    counts = [700, 250, 50, 0]
    weights = balanced_weights(counts)
    totals = [w * n for w, n in zip(weights, counts, strict=True)]
    assert totals == pytest.approx([1000 / 3] * 3 + [0])
    with pytest.raises(ConfigError, match="no pixel"):
        balanced_weights([0, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_absent_class_draws_no_gradient_by_its_balanced_weight(smoothing: float) -> None:
    weight = torch.tensor(balanced_weights([700_000, 250_000, 50_000, 0]))
    score = torch.randn(2, 4, 16, 16, requires_grad=True)
    target = torch.randint(0, 3, (2, 16, 16))
    gradients = []
    for used in (weight, torch.tensor([*weight[:3].tolist(), 1e6])):
        loss = make_loss(LossConfig(label_smoothing=smoothing), "mean", used)(score, target)
        gradients.append(torch.autograd.grad(loss, score)[0])
        assert float(loss.detach()) < 5
    assert torch.equal(*gradients)


CLASSES = ["road", "pond", "snow"]


@pytest.mark.parametrize("weights", [[1, 2, 5], [1.0, 0, 5], [0, 0, 1e-3], (1, 1, 1)])
def test_class_weights_may_be_whole_numbers(
    weights: list[float], batch: tuple[Tensor, Tensor]
) -> None:
    checked = check_class_weights(weights, CLASSES)
    assert checked == [float(w) for w in weights]
    for name in LOSSES:
        loss = make_loss(LossConfig(name), "mean", torch.tensor(weights))  # as they are given
        assert loss(*batch).isfinite()


@pytest.mark.parametrize(
    "weights",
    [
        "balance", 3, None, {}, {"road": 1}, [], [1, 2], [1, 2, 3, 4], [1, "2", 3], [True, 1, 1],
        [1, None, 1], [-1, 1, 1], [0, 0, 0], [math.nan, 1, 1], [math.inf, 1, 1], [1e300, 1, 1],
        [1e-300, 0, 0], [10**400, 1, 1],
    ],
    ids=str,
)  # fmt: skip
def test_other_class_weights_are_an_error_in_one_line(weights: object) -> None:
    with pytest.raises(ConfigError, match=r"^loss\.class_weights=.*must be") as error:
        check_class_weights(weights, CLASSES)
    assert "\n" not in str(error.value)


def test_classes_of_a_few_pixels_are_named() -> None:
    counts = [90_000, 10_000, 9, 0]
    note = rare_note(balanced_weights(counts), counts, ["background", *CLASSES])
    assert "pond (9 pixels" in note
    assert "snow" not in note
    assert not rare_note(balanced_weights(counts[:2]), counts[:2], CLASSES[:2])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_weight_is_a_buffer_that_follows_the_module(name: str, dtype: torch.dtype) -> None:
    """Another device, here without data, or another type; checkpoints do not hold it."""
    outer = nn.Module()
    outer.loss = make_loss(LossConfig(name), "mean", torch.tensor(WEIGHTS))
    assert not outer.state_dict()
    outer.to(dtype)
    score = torch.randn(1, 3, 2, 2, dtype=dtype, requires_grad=True)
    loss = outer.loss(score, torch.tensor([[[0, 1], [2, 255]]]))
    assert loss.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert torch.autograd.grad(loss, score)[0].isfinite().all()
    outer.to("meta")
    assert outer.loss.weight.is_meta


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_a_loss_of_torch_leaves_out_ignored_pixels_and_takes_class_weights(
    weights: list[float] | None,
) -> None:
    own = LossConfig(_target_="torch.nn.CrossEntropyLoss", class_weights=weights)
    weight = torch.tensor(weights) if weights else None
    score = torch.randn(2, 3, 5, 7)
    target = torch.randint(3, (2, 5, 7))
    target[:, :2] = 255
    value = make_loss(own, "mean", weight)(score, target)
    torch.testing.assert_close(value, cross_entropy_loss(score, target, "mean", weight=weight))
    check_loss(own, "mean", 3)


class Own(torch.nn.Module):
    def __init__(self, returns: str = "mean") -> None:
        super().__init__()
        self.returns = returns

    def forward(self, score: Tensor, target: Tensor) -> Any:
        pixels = score.square().mean(1)
        return {"mean": pixels.mean(), "pixels": pixels, "constant": pixels.mean().detach()}[
            self.returns
        ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"_target_": "nowhere.Loss"}, "nowhere.Loss: No module named 'nowhere'"),
        ({"_target_": "torch.nn.MSELoss"}, "torch.nn.MSELoss: "),
        ({"_target_": f"{__name__}.Own", "arguments": {"returns": "pixels"}}, "scalar"),
        ({"_target_": f"{__name__}.Own", "arguments": {"returns": "constant"}}, "grad"),
        ({"_target_": f"{__name__}.Own", "arguments": {"return": "mean"}}, "'return'"),
        ({"_target_": f"{__name__}.Own", "class_weights": [1, 2, 3]}, "an argument weight"),
    ],
)
def test_what_is_no_loss_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_loss(LossConfig(**settings), "mean", 3)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    check_loss(LossConfig(_target_=f"{__name__}.Own"), "mean", 3)
