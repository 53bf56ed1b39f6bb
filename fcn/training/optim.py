"""What a recipe means: parameter groups, update rule and schedule."""

import inspect
import math
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fcn.config import RecipeConfig
from fcn.errors import ConfigError
from fcn.models.fcn import FCN
from fcn.models.upsampling import Upsampling

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
POLY_POWER = 0.9  # Liu et al. 2015 (ParseNet); DeepLab's since


def parameter_groups(model: nn.Module, recipe: RecipeConfig, lr: float) -> list[dict[str, Any]]:
    """Return the paper's groups: weights with decay; biases at their own rate without decay.

    Batch norm's scales and shifts have the plain rate and no decay; so have upsampling kernels,
    which decay would pull from bilinear towards zero. A backbone with a rate of its own has groups
    of its own. Frozen parameters are in none.

    Args:
        model: its trainable parameters.
        recipe: weight_decay, bias_lr_factor, backbone_lr_factor.
        lr: the learning rate of weights.
    """
    groups: dict[str, dict[str, Any]] = {}
    for prefix, factor in (("", 1.0), ("backbone ", recipe.backbone_lr_factor)):
        for kind, rate, decay in (
            ("weights", lr, recipe.weight_decay),
            ("biases", lr * recipe.bias_lr_factor, 0.0),
            ("plain", lr, 0.0),
        ):
            name = prefix + kind
            groups[name] = {"name": name, "params": [], "lr": factor * rate, "weight_decay": decay}
    upsampling = [layer for layer in model.modules() if isinstance(layer, Upsampling)]
    in_upsampling = {id(p) for layer in upsampling for p in layer.parameters()}
    for path, module in model.named_modules():
        own_rate = path.startswith("backbone.") and recipe.backbone_lr_factor != 1
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            kind = "biases" if name == "bias" else "weights"
            if isinstance(module, NORMS) or id(parameter) in in_upsampling:
                kind = "plain"
            groups[f"backbone {kind}" if own_rate else kind]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def make_optimizer(
    model: nn.Module, recipe: RecipeConfig, lr: float, *, fused: bool = True
) -> torch.optim.Optimizer:
    """Return an optimiser over the paper's parameter groups.

    PyTorch's SGD keeps v <- m v + g and steps by lr v; Caffe keeps v <- m v + lr g and steps by v.
    At a constant rate, which `heavy` and `accumulated` use, the two are the same.

    Args:
        model: its trainable parameters.
        recipe: optimizer and its arguments, momentum, weight_decay, bias_lr_factor.
        lr: the learning rate of weights.
        fused: update in one pass over weights, gradients and momenta instead of four, if the
            optimiser can.

    Raises:
        ConfigError: an unknown optimiser, or arguments that it does not take.
    """
    groups, kind = parameter_groups(model, recipe, lr), optimizer_class(recipe.optimizer)
    accepted = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {"lr": lr}
    if "momentum" in accepted:
        arguments["momentum"] = recipe.momentum
    if "betas" in accepted:
        arguments["betas"] = (recipe.momentum, 0.999)
    # These two exclude the fused form, and whoever names them wants them.
    given = recipe.optimizer_arguments
    if own := sorted({"lr", "weight_decay"} & given.keys()):
        raise ConfigError(f"recipe.optimizer_arguments.{own[0]}: use recipe.{own[0]}")
    if "fused" in accepted and fused and not (given.get("foreach") or given.get("differentiable")):
        arguments["fused"] = True
    if given.get("fused") and not fused:
        raise ConfigError(
            "recipe.optimizer_arguments.fused=true does not fit trainer.gradient_clip_val under "
            "mixed precision; leave it out"
        )
    try:
        return kind(groups, **arguments | given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"recipe.optimizer={recipe.optimizer}: {error}") from error


def clips_gradients(limit: float | None, precision: str) -> bool:
    """Return whether Lightning clips gradients in mixed precision, which no fused optimiser can."""
    return bool(limit) and precision.endswith("-mixed")


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Return an optimiser of torch.optim by its name, in any case.

    Raises:
        ConfigError: there is none of this name.
    """
    known = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
    }
    known.pop("optimizer")  # their base class
    if name.lower() not in known:
        near = get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {known[near[0]].__name__}?" if near else "see torch.optim"
        raise ConfigError(f"recipe.optimizer={name}: no such optimiser; {hint}")
    return known[name.lower()]


def rate_at(step: int, recipe: RecipeConfig, max_steps: int) -> float:
    """Return the schedule's factor on the learning rate at an optimiser step, in 0..1."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    done = min(step / max(max_steps, 1), 1.0)
    decay = {
        "constant": 1.0,
        "poly": (1 - done) ** POLY_POWER,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
    }[recipe.schedule]
    return warm * decay


def warmup_note(recipe: RecipeConfig, max_steps: int) -> str:
    """Return a note if a run of `max_steps` steps ends before its warm-up does, or ""."""
    if recipe.warmup_steps <= max_steps:
        return ""
    return (
        f"recipe.warmup_steps={recipe.warmup_steps} is longer than the run of {max_steps} steps: "
        f"the learning rate is never reached; use recipe.warmup_steps={max_steps // 10}"
    )


def check_batch_norm(recipe: RecipeConfig, model: FCN) -> None:
    """Check that batch norm will see more than one value per channel, which it cannot normalise.

    Args:
        recipe: crop and batch_size; whole images (crop=null) are not checked.
        model: on the meta device, which computes sizes alone.

    Raises:
        ConfigError: crops so small that a map is a single pixel, in batches of one.
    """
    if recipe.crop is None:
        return
    shape = recipe.batch_size, model.in_channels, recipe.crop, recipe.crop
    try:
        model.head(model.backbone(torch.empty(shape, device="meta"))[2])
    except ValueError:
        raise ConfigError(
            f"recipe.batch_size=1 with recipe.crop={recipe.crop} leaves batch norm (backbone="
            f"{model.arguments['backbone']}) a single value per channel; use recipe.batch_size=2, "
            "or recipe.crop=64"
        ) from None


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: RecipeConfig, max_steps: int
) -> LambdaLR:
    """Return the recipe's schedule over a run of `max_steps` optimiser steps."""
    return LambdaLR(optimizer, lambda step: rate_at(step, recipe, max_steps))
