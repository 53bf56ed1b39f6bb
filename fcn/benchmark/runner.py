"""Contestants at work: labels of images, and training steps.

Images are uint8 (B, 3, H, W), RGB, and targets uint8 (B, H, W), on the device.
"""

from typing import Any

import torch
from torch import Tensor

from fcn.benchmark.contestants import Contestant
from fcn.checks.training import learning_rate
from fcn.config import BenchmarkConfig
from fcn.inference.evaluation import predict, ready
from fcn.models.fcn import FCN, lay_out
from fcn.training.loss import segmentation_loss
from fcn.training.module import SegmentationModule
from fcn.training.recipe import make_optimizer

Shape = tuple[int, int, int]  # images, height, width


class Labels:
    """A contestant that predicts. Called: the label of every pixel, int64 (B, H, W)."""

    def __init__(self, contestant: Contestant, cfg: BenchmarkConfig, device: torch.device) -> None:
        self.contestant, self.device = contestant, device
        self.net = contestant.net().eval().to(device)
        if contestant.alike:
            ready(self.net, device, contestant.bf16)
        if contestant.compiled:
            self.net.compile()

    def __call__(self, image: Tensor, target: Tensor | None = None) -> Tensor:
        if self.contestant.alike:
            return predict(self.net, image, device=self.device, bf16=self.contestant.bf16)
        with torch.inference_mode(), autocast(self.contestant, self.device):
            return self.net(floats(self.contestant, image)).max(1).indices


class Steps:
    """A contestant that learns. Called: one step, which is forward, loss, backward, update."""

    def __init__(self, contestant: Contestant, cfg: BenchmarkConfig, device: torch.device) -> None:
        self.contestant, self.device, self.recipe = contestant, device, cfg.recipe
        self.net, self.module = contestant.net().train().to(device), None
        rate = low_rate(cfg)
        if contestant.alike:
            lay_out(self.net, device)
        if contestant.ours:
            assert isinstance(self.net, FCN)
            self.module = Unlogged(
                self.net, cfg.recipe, rate, cfg.seed, {}, compile=contestant.compiled
            )
        self.optimizer = make_optimizer(self.net, cfg.recipe, rate)

    def __call__(self, image: Tensor, target: Tensor) -> None:
        try:
            self.loss(image, target).backward()
            self.optimizer.step()
        finally:  # where memory ran out, too
            self.optimizer.zero_grad(set_to_none=True)

    def loss(self, image: Tensor, target: Tensor) -> Tensor:
        with autocast(self.contestant, self.device):
            if self.module is not None:
                return self.module.training_step(
                    self.module.on_after_batch_transfer((image, target), 0), 0
                )
            score = self.net(floats(self.contestant, image))
            return segmentation_loss(score, target.long(), self.recipe.loss_reduction)


RUNNERS: dict[str, type[Labels] | type[Steps]] = {"inference": Labels, "training": Steps}


class Unlogged(SegmentationModule):
    """The step that Lightning runs, without Lightning."""

    def log(self, *_: Any, **__: Any) -> None:
        """There is no trainer to log to."""


def low_rate(cfg: BenchmarkConfig) -> float:
    """A fraction of the recipe's learning rate: a step costs the same at any, and at so low a one,
    many steps on random targets leave the weights about as they were drawn."""
    return 1e-4 * learning_rate(cfg.recipe, cfg.model)


def floats(contestant: Contestant, image: Tensor) -> Tensor:
    """Bytes as RGB in [0, 1]."""
    layout = torch.channels_last if contestant.alike else torch.contiguous_format
    return image.to(torch.float32, memory_format=layout).div_(255)


def autocast(contestant: Contestant, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=contestant.bf16)


def batch(shape: Shape, num_classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images and targets."""
    images, height, width = shape
    generator = torch.Generator().manual_seed(0)
    size = (images, 3, height, width)
    image = torch.randint(256, size, dtype=torch.uint8, generator=generator)
    target = torch.randint(num_classes, shape, dtype=torch.uint8, generator=generator)
    return image.to(device), target.to(device)
