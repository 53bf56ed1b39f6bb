"""A recipe as an optimiser: parameter groups, update rule and schedule."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR

from fcn.config import RecipeConfig
from fcn.models.upsampling import Upsampling

POLY_POWER = 0.9  # Liu et al. 2015 (ParseNet); DeepLab's since


def parameter_groups(model: nn.Module, recipe: RecipeConfig, lr: float) -> list[dict[str, Any]]:
    """The paper's: weights with decay; biases at `bias_lr_factor` times the rate, without decay.

    Batch norm's scales and shifts go without decay at the plain rate; so do upsampling kernels,
    which decay would pull from bilinear towards zero.
    """
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if isinstance(module, _BatchNorm | Upsampling):
                plain.append(parameter)
            else:
                (biases if name == "bias" else weights).append(parameter)
    groups = [
        {"name": "weights", "params": weights, "lr": lr, "weight_decay": recipe.weight_decay},
        {
            "name": "biases",
            "params": biases,
            "lr": lr * recipe.bias_lr_factor,
            "weight_decay": 0.0,
        },
        {"name": "plain", "params": plain, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    model: nn.Module, recipe: RecipeConfig, lr: float, *, fused: bool = True
) -> torch.optim.Optimizer:
    """SGD or AdamW over the paper's parameter groups.

    torch's SGD keeps v <- m v + g and steps by lr v; Caffe keeps v <- m v + lr g and steps by v.
    At a constant rate the two are the same, which is all that `heavy` and `accumulated` use.
    Fused: one pass over weights, gradients and momenta instead of four.
    """
    groups = parameter_groups(model, recipe, lr)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=lr, betas=(recipe.momentum, 0.999), fused=fused)


def rate_at(step: int, recipe: RecipeConfig, max_steps: int) -> float:
    """The schedule's factor on the learning rate at an optimiser step, in 0..1."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    done = min(step / max(max_steps, 1), 1.0)
    decay = {
        "constant": 1.0,
        "poly": (1 - done) ** POLY_POWER,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
    }[recipe.schedule]
    return warm * decay


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: RecipeConfig, max_steps: int
) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: rate_at(step, recipe, max_steps))
