"""Who runs: this project's net as configured, the same net as the known ports have it, others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.segmentation import fcn_resnet50

from fcn.config import BenchmarkConfig, TrainConfig
from fcn.inference.evaluation import computes_bf16
from fcn.models.fcn import FCN, MEAN, STD
from fcn.models.upsampling import Upsampling
from fcn.training.run import build_model


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
    """This project's net.

    Args: num_classes: None for the benchmark's own.
    Raises: ConfigError: a setting of the net outside its choices.
    """
    num_classes = num_classes or cfg.num_classes
    described = TrainConfig(model=cfg.model, backbone=cfg.backbone, upsampling=cfg.upsampling)
    with torch.device("meta"):  # for its arguments alone
        arguments = build_model(described, num_classes).arguments
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
