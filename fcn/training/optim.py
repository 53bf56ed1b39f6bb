"""What a recipe means: loss, parameter groups, update rule and schedule."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR

from fcn.config import VOID, RecipeConfig
from fcn.models.upsampling import Upsampling

POLY_POWER = 0.9  # Liu et al. 2015 (ParseNet); DeepLab's since


def segmentation_loss(score: Tensor, target: Tensor, reduction: str) -> Tensor:
    """Return the softmax cross entropy over the pixels that are not ignored.

    Args:
        score: float (B, K, H, W).
        target: int64 (B, H, W), 0..K-1, 255 = ignored.
        reduction: "sum" (Caffe's SoftmaxWithLoss with normalize: false) or "mean".

    Returns:
        float scalar, in nats; 0 with zero gradients where every pixel is ignored.
    """
    # A GPU's own sum adds in any order, and raises where results must be deterministic.
    kind = "none" if torch.are_deterministic_algorithms_enabled() else "sum"
    total = F.cross_entropy(score.float(), target, ignore_index=VOID, reduction=kind).sum()
    if reduction == "sum":
        return total
    return total / (target != VOID).sum().clamp(min=1)


def parameter_groups(model: nn.Module, recipe: RecipeConfig, lr: float) -> list[dict[str, Any]]:
    """Return the paper's groups: weights with decay; biases at their own rate without decay.

    Batch norm's scales and shifts have the plain rate and no decay; so have upsampling kernels,
    which decay would pull from bilinear towards zero.

    Args:
        model: its trainable parameters.
        recipe: weight_decay, bias_lr_factor.
        lr: the learning rate of weights.
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
    bias_lr = lr * recipe.bias_lr_factor
    groups = [
        {"name": "weights", "params": weights, "lr": lr, "weight_decay": recipe.weight_decay},
        {"name": "biases", "params": biases, "lr": bias_lr, "weight_decay": 0.0},
        {"name": "plain", "params": plain, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    model: nn.Module, recipe: RecipeConfig, lr: float, *, fused: bool = True
) -> torch.optim.Optimizer:
    """Return SGD or AdamW over the paper's parameter groups.

    PyTorch's SGD keeps v <- m v + g and steps by lr v; Caffe keeps v <- m v + lr g and steps by v.
    At a constant rate, which `heavy` and `accumulated` use, the two are the same.

    Args:
        model: its trainable parameters.
        recipe: optimizer, momentum, weight_decay, bias_lr_factor.
        lr: the learning rate of weights.
        fused: update in one pass over weights, gradients and momenta instead of four.
    """
    groups = parameter_groups(model, recipe, lr)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=lr, betas=(recipe.momentum, 0.999), fused=fused)


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


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: RecipeConfig, max_steps: int
) -> LambdaLR:
    """Return the recipe's schedule over a run of `max_steps` optimiser steps."""
    return LambdaLR(optimizer, lambda step: rate_at(step, recipe, max_steps))
