"""A contestant at work: labels of images, and training steps."""

from typing import Any

import torch
from torch import Tensor

from fcn.benchmark.contestants import Contestant
from fcn.checks import learning_rate
from fcn.config import BenchmarkConfig
from fcn.inference.evaluation import predict
from fcn.models.fcn import FCN
from fcn.training.loss import segmentation_loss
from fcn.training.module import SegmentationModule
from fcn.training.recipe import make_optimizer


class Runner:
    """A contestant on a device, ready to run.

    Its images are uint8 (B, 3, H, W) on the device, RGB; its targets uint8 (B, H, W).
    """

    def __init__(self, contestant: Contestant, cfg: BenchmarkConfig, device: torch.device) -> None:
        self.contestant, self.recipe, self.device = contestant, cfg.recipe, device
        net, self.module = contestant.net().to(device), None
        rate = low_rate(cfg)
        if contestant.ours:
            assert isinstance(net, FCN)
            self.module = Unlogged(net, cfg.recipe, rate, cfg.seed, {}).to(device)
        elif contestant.channels_last:
            net = net.to(memory_format=torch.channels_last)
        self.net = net
        self.optimizer = make_optimizer(net, cfg.recipe, rate)
        if contestant.compiled:
            net.compile()

    def infer(self, image: Tensor) -> Tensor:
        """The label of every pixel, int64 (B, H, W)."""
        self.net.eval()
        if self.module is not None:
            return predict(self.net, image, device=self.device, bf16=self.contestant.bf16)
        with torch.inference_mode(), self.autocast():
            return self.net(self.floats(image)).max(1).indices

    def loss(self, image: Tensor, target: Tensor) -> Tensor:
        """What a training step minimises."""
        self.net.train()
        with self.autocast():
            if self.module is not None:
                batch = self.module.on_after_batch_transfer((image, target), 0)
                return self.module.training_step(batch, 0)
            score = self.net(self.floats(image))
            return segmentation_loss(score, target.long(), self.recipe.loss_reduction)

    def train(self, image: Tensor, target: Tensor) -> None:
        """One step: forward, loss, backward, update."""
        try:
            self.loss(image, target).backward()
            self.optimizer.step()
        finally:  # where memory ran out, too
            self.optimizer.zero_grad(set_to_none=True)

    def floats(self, image: Tensor) -> Tensor:
        """Bytes as RGB in [0, 1]."""
        last = self.contestant.channels_last
        layout = torch.channels_last if last else torch.contiguous_format
        return image.to(torch.float32, memory_format=layout).div_(255)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.contestant.bf16)


def low_rate(cfg: BenchmarkConfig) -> float:
    """A fraction of the recipe's learning rate: a step costs the same at any, and at so low a one,
    many steps on random targets leave the weights about as they were drawn."""
    return 1e-4 * learning_rate(cfg.recipe, cfg.model)


class Unlogged(SegmentationModule):
    """The step that Lightning runs, without Lightning."""

    def log(self, *_: Any, **__: Any) -> None:
        """There is no trainer to log to."""


def batch(
    size: tuple[int, int], count: int, num_classes: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Random images and targets: uint8 (B, 3, H, W) and (B, H, W)."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    shape = (count, *size)
    target = torch.randint(num_classes, shape, dtype=torch.uint8, generator=generator)
    return image.to(device), target.to(device)
