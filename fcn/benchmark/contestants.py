"""Who runs: this project's net as configured, the same net as the known ports have it, others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.segmentation import fcn_resnet50

from fcn.checks import learning_rate
from fcn.config import BenchmarkConfig
from fcn.inference.evaluation import computes_bf16, predict
from fcn.models.fcn import FCN, MEAN, STD
from fcn.models.upsampling import Upsampling
from fcn.training.loss import segmentation_loss
from fcn.training.module import SegmentationModule
from fcn.training.recipe import make_optimizer

# Of the recipe's learning rate. A step costs the same at any; at so low a one, many steps on random
# targets leave the weights, and so the numbers that are computed with, about as they were drawn.
DAMPED = 1e-4


@dataclass(frozen=True)
class Contestant:
    """A net and how it is run; plain values, so that another process can build it too.

    Args:
        about: what it is, in a few words.
        arguments: of FCN; None: torchvision's fcn_resnet50.
        ours: whether it is run by this project's own training and prediction, or plainly.
    """

    name: str
    about: str
    arguments: Mapping[str, Any] | None
    num_classes: int
    bf16: bool = False
    channels_last: bool = False
    ours: bool = False
    compiled: bool = False

    @property
    def precision(self) -> str:
        return "bf16-mixed" if self.bf16 else "32-true"

    @property
    def layout(self) -> str:
        return "channels_last" if self.channels_last else "contiguous"

    def net(self) -> nn.Module:
        """With random weights, those of score layers too, which would start at zero."""
        if self.arguments is None:
            return Normalised(self.num_classes)
        net = FCN(**self.arguments)
        for name, layer in net.named_children():
            if name.startswith("score_"):
                assert isinstance(layer, nn.Conv2d)
                layer.reset_parameters()
        if not self.ours:  # ports keep their bilinear kernels as they are
            for layer in net.modules():
                if isinstance(layer, Upsampling):
                    layer.requires_grad_(False)
        return net


class Normalised(nn.Module):
    """torchvision's fcn_resnet50, given images and giving scores as FCN does.

    forward: float (B, 3, H, W), RGB in [0, 1] -> score, float (B, K, H, W).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # Without the auxiliary classifier: training it as well would only cost more.
        self.net = fcn_resnet50(weights=None, weights_backbone=None, num_classes=num_classes)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.net((image - self.mean) / self.std)["out"]


def contestants(cfg: BenchmarkConfig, device: torch.device) -> list[Contestant]:
    """This project's net first, then what it is compared with."""
    own = default(cfg, device)
    compiled = replace(own, name="this project, compiled", about="torch.compile", compiled=True)
    resnet = Contestant("fcn_resnet50", "torchvision's, as it comes", None, cfg.num_classes)
    alike = replace(
        resnet,
        name="fcn_resnet50, run alike",
        about="torchvision's, run as this project's",
        bf16=own.bf16,
        channels_last=True,
    )
    return [own, *([compiled] if cfg.compile else []), reference(own), resnet, alike]


def default(
    cfg: BenchmarkConfig, device: torch.device, num_classes: int | None = None
) -> Contestant:
    """This project's net. Args: num_classes: None for the benchmark's own."""
    num_classes = num_classes or cfg.num_classes
    arguments = {
        "stride": cfg.model.stride,
        "num_classes": num_classes,
        "backbone": cfg.backbone.name,
        "upsampling": cfg.upsampling.name,
        "padding": cfg.model.padding,
        "skip_scales": cfg.model.skip_scales,
        "width": cfg.backbone.width,
        "head_width": cfg.backbone.head_width,
        "dropout": cfg.model.dropout,
    }
    bf16 = computes_bf16(device) if cfg.precision == "auto" else cfg.precision == "bf16-mixed"
    about = f"{cfg.model.name} on {cfg.backbone.name}, upsampling {cfg.upsampling.name}"
    return Contestant(
        "this project", about, arguments, num_classes, bf16, channels_last=True, ours=True
    )


def reference(default: Contestant) -> Contestant:
    """The same net as the known ports have it: the authors' padding of 100, bilinear upsampling as
    dense transposed convolutions of K x K kernels, float32, contiguous memory."""
    assert default.arguments is not None
    arguments = {**default.arguments, "padding": 100, "upsampling": "learned"}
    about = "the same net, padding 100, dense bilinear deconvolutions"
    return Contestant("as known ports", about, arguments, default.num_classes)


class Runner:
    """A contestant on a device, ready to run.

    Its images are uint8 (B, 3, H, W) on the device, RGB; its targets uint8 (B, H, W).
    """

    def __init__(self, contestant: Contestant, cfg: BenchmarkConfig, device: torch.device) -> None:
        self.contestant, self.recipe, self.device = contestant, cfg.recipe, device
        net, self.module = contestant.net().to(device), None
        rate = DAMPED * learning_rate(cfg.recipe, cfg.model)
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
        self.loss(image, target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def floats(self, image: Tensor) -> Tensor:
        """Bytes as RGB in [0, 1]."""
        last = self.contestant.channels_last
        layout = torch.channels_last if last else torch.contiguous_format
        return image.to(torch.float32, memory_format=layout).div_(255)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.contestant.bf16)


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
