"""The recipe: parameter groups, update rule, schedule, and what does not fit together."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F

from fcn.config import LossConfig, RecipeConfig
from fcn.errors import ConfigError
from fcn.models.fcn import FCN
from fcn.training.loss import make_loss
from fcn.training.module import SegmentationModule
from fcn.training.optim import (
    check_batch_norm,
    make_optimizer,
    make_schedule,
    optimizer_class,
    parameter_groups,
    rate_at,
    warmup_note,
)
from tests.conftest import small, with_random_scores

HEAVY = RecipeConfig(momentum=0.99, weight_decay=5e-4, bias_lr_factor=2, loss_reduction="sum")


def test_every_parameter_is_in_one_group_and_biases_learn_twice_as_fast() -> None:
    model = small(upsampling="learned", backbone="vgg11_bn")
    groups = {group["name"]: group for group in parameter_groups(model, HEAVY, 1e-3)}
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert groups["biases"]["lr"] == 2e-3
    assert groups["biases"]["weight_decay"] == 0
    assert groups["weights"]["weight_decay"] == 5e-4
    biases = {id(m.bias) for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert {id(p) for p in groups["biases"]["params"]} == biases
    assert any(p is model.upscore8.weight for p in groups["plain"]["params"])
    assert groups["plain"]["weight_decay"] == 0
    sizes = [len(group["params"]) for group in groups.values()]
    shared = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # with several processes
    assert [len(group["params"]) for group in parameter_groups(shared, HEAVY, 1e-3)] == sizes
    model = small(upsampling="nonlinear")  # whose weights lie in layers and lists of its own
    groups = {group["name"]: group for group in parameter_groups(model, HEAVY, 1e-3)}
    upscore = {id(p) for name, p in model.named_parameters() if name.startswith("upscore")}
    assert {id(p) for p in groups["plain"]["params"]} == upscore


def caffe_steps(model: FCN, batches: list, lr: float, recipe: RecipeConfig) -> list[torch.Tensor]:
    """Caffe's SGDSolver, written out: V <- m V + lr_mult lr (dW + decay_mult wd W); W <- W - V."""
    history = [torch.zeros_like(p) for p in model.parameters()]
    for image, target in batches:
        model.zero_grad()
        log_p = F.log_softmax(model(image), 1)
        counted = (target != 255).nonzero().tolist()
        torch.stack([-log_p[b, target[b, y, x], y, x] for b, y, x in counted]).sum().backward()
        with torch.no_grad():
            for (name, p), v in zip(model.named_parameters(), history, strict=True):
                bias = name.endswith("bias")
                decay = 0 if bias or name.startswith("upscore") else recipe.weight_decay
                v.mul_(recipe.momentum).add_((2 if bias else 1) * lr * (p.grad + decay * p))
                p.sub_(v)
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
def test_heavy_learning_is_caffes_update(upsampling: str) -> None:
    lr = 1e-6
    ours = with_random_scores(small(upsampling=upsampling, dropout=0.0)).double()
    theirs = copy.deepcopy(ours)
    batches = []
    for _ in range(4):
        target = torch.randint(0, 5, (1, 12, 17))
        target[torch.rand(target.shape) < 0.2] = 255
        batches.append((torch.rand(1, 3, 12, 17, dtype=torch.float64), target))
    expected = caffe_steps(theirs, batches, lr, HEAVY)
    optimizer = make_optimizer(ours, HEAVY, lr)
    start = [p.detach().clone() for p in ours.parameters()]
    for image, target in batches:
        optimizer.zero_grad()
        # `cross_entropy_loss` works in float32.
        F.cross_entropy(ours(image), target, ignore_index=255, reduction="sum").backward()
        optimizer.step()
    for p, e, s in zip(ours.parameters(), expected, start, strict=True):
        torch.testing.assert_close(p - s, e - s, atol=1e-15, rtol=1e-7)


def test_schedules_by_hand() -> None:
    poly = RecipeConfig(schedule="poly", warmup_steps=10)
    assert rate_at(0, poly, 100) == pytest.approx(0.1)
    assert rate_at(9, poly, 100) == pytest.approx(0.91**0.9)
    assert rate_at(50, poly, 100) == pytest.approx(0.5**0.9)
    cosine = RecipeConfig(schedule="cosine")
    assert rate_at(50, cosine, 100) == pytest.approx(0.5)
    assert rate_at(100, cosine, 100) == pytest.approx(0, abs=1e-12)
    model = small()
    optimizer = make_optimizer(model, HEAVY, 1.0)
    schedule = make_schedule(optimizer, cosine, 4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[1]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])


@pytest.mark.parametrize("name", ["RMSprop", "adam", "NAdam", "Adagrad"])
def test_any_optimiser_of_torch_goes_by_its_name(name: str) -> None:
    recipe = RecipeConfig(optimizer=name, optimizer_arguments={"eps": 1e-4})
    optimizer = make_optimizer(small(backbone="mini"), recipe, 1e-3)
    assert type(optimizer).__name__.lower() == name.lower()
    assert optimizer.defaults["eps"] == 1e-4
    optimizer.step()


def test_an_optimiser_that_does_not_exist_is_an_error_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean RMSprop\?"):
        optimizer_class("rmspropp")
    recipe = RecipeConfig(optimizer_arguments={"nesterovv": True})
    with pytest.raises(ConfigError, match="nesterovv"):
        make_optimizer(small(), recipe, 1e-3)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("clip", [None, 0, 1.0])
def test_an_optimiser_is_fused_wherever_lightning_can_clip_its_gradients(
    name: str, precision: str, clip: float | None
) -> None:
    recipe = RecipeConfig(optimizer=name, lr=1e-3)
    model = small(backbone="mini")
    module = SegmentationModule(model, recipe, make_loss(LossConfig(), "mean"), 0, {})
    module._trainer = SimpleNamespace(precision=precision, gradient_clip_val=clip)  # type: ignore[assignment]
    optimizer = module._make_optimizer()
    mixed = precision.endswith("-mixed")
    assert bool(optimizer.defaults["fused"]) == (not (mixed and clip))
    if mixed and clip:  # Lightning itself raises where it cannot
        MixedPrecision(precision, "cpu").clip_gradients(optimizer, clip)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["foreach", "differentiable"])
def test_other_forms_of_an_optimiser_take_the_place_of_the_fused_one(key: str) -> None:
    recipe = RecipeConfig(optimizer="adamw", optimizer_arguments={key: True})
    assert make_optimizer(small(), recipe, 1e-3).defaults[key]
    both = RecipeConfig(optimizer="adamw", optimizer_arguments={key: True, "fused": True})
    with pytest.raises(ConfigError, match="fused"):
        make_optimizer(small(), both, 1e-3)
    named = RecipeConfig(optimizer_arguments={"fused": True})
    with pytest.raises(ConfigError, match="gradient_clip_val"):
        make_optimizer(small(), named, 1e-3, fused=False)


def test_a_warm_up_beyond_the_end_of_the_run_is_named() -> None:
    recipe = RecipeConfig(warmup_steps=50)
    note = warmup_note(recipe, 49)
    assert "recipe.warmup_steps=50" in note
    recipe.warmup_steps = int(note.rpartition("=")[2])  # as it advises
    assert not warmup_note(recipe, 49)
    assert not warmup_note(RecipeConfig(warmup_steps=50), 50)
    assert max(rate_at(step, recipe, 49) for step in range(49)) == 1


@pytest.mark.parametrize("backbone", ["mini", "vgg11_bn", "vgg11"])
@pytest.mark.parametrize("padding", ["aligned", 100])
@pytest.mark.parametrize("batch", [1, 2])
def test_batch_norm_over_one_value_is_found_from_the_settings(
    backbone: str, padding: int | str, batch: int
) -> None:
    """Where training itself raises an error."""
    model = small(backbone=backbone, padding=padding).train()
    with torch.device("meta"):
        on_meta = small(backbone=backbone, padding=padding)
    for crop in (1, 16, 17, 26, 27, 32, 33, 64):
        recipe = RecipeConfig(crop=crop, batch_size=batch)
        map_of_one = False
        try:
            model(torch.zeros(batch, 3, crop, crop))
        except ValueError:  # torch's "Expected more than 1 value per channel when training"
            map_of_one = True
        with pytest.raises(ConfigError, match="batch norm") if map_of_one else nullcontext():
            check_batch_norm(recipe, on_meta)


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_arguments_that_the_recipe_sets_are_refused(key: str) -> None:
    recipe = RecipeConfig(optimizer_arguments={key: 0.3})
    with pytest.raises(ConfigError, match=f"use recipe.{key}"):
        make_optimizer(nn.Conv2d(1, 1, 1), recipe, 0.1)
