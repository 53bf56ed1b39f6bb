"""Who runs: this project's net as configured, the same net as the known ports have it, others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import fcn_resnet50

from fcn.config import BenchmarkConfig, TrainConfig
from fcn.inference.evaluation import computes_bf16
from fcn.models.fcn import FCN, MEAN, STD
from fcn.models.upsampling import Size, TransposedConvolution, window
from fcn.training.run import build_model

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Contestant:
    """A net and how it is run; plain values, so that another process can build it too.

    Args:
        about: what it is, in a few words.
        arguments: of FCN; None: torchvision's fcn_resnet50.
        alike: whether it is run as this project runs its nets, or plainly.
    """

    name: str
    about: str
    arguments: Mapping[str, Any] | None
    num_classes: int
    bf16: bool = False
    alike: bool = False
    compiled: bool = False

    @property
    def ours(self) -> bool:
        return self.alike and self.arguments is not None

    @property
    def precision(self) -> str:
        return "bf16-mixed" if self.bf16 else "32-true"

    @property
    def layout(self) -> str:
        """Of images and features in memory."""
        return "channels_last" if self.alike else "contiguous"

    def net(self) -> nn.Module:
        """With random weights, those of score layers too, which would start at zero."""
        if self.arguments is None:
            return Normalised(self.num_classes)
        net = FCN(**self.arguments)
        for name, layer in net.named_children():
            if name.startswith("score_"):
                assert isinstance(layer, nn.Conv2d)
                layer.reset_parameters()
        return net if self.alike else plain(net)


def plain(net: Module) -> Module:
    """Has a net compute with torch's layers as they come, and keep its kernels: as ports do."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.forward = MethodType(nn.Conv2d.forward, layer)  # type: ignore[method-assign]
        elif isinstance(layer, nn.ReLU):
            layer.inplace = True
        elif isinstance(layer, TransposedConvolution):
            layer.forward = MethodType(deconvolve, layer)  # type: ignore[method-assign]
            layer.requires_grad_(False)
    return net


def deconvolve(
    layer: TransposedConvolution, score: Tensor, offset: int = 0, size: Size | None = None
) -> Tensor:
    """`TransposedConvolution.forward` and nothing else: the whole map, then its window."""
    kernels = layer.kernels()
    full = F.conv_transpose2d(score, kernels, stride=layer.factor, groups=layer.groups)
    return window(full, offset, size)


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
        alike=True,
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
    return Contestant("this project", about, arguments, num_classes, bf16, alike=True)


def reference(default: Contestant) -> Contestant:
    """The same net as the known ports have it: the authors' padding of 100, bilinear upsampling as
    dense transposed convolutions of K x K kernels, float32, contiguous memory."""
    assert default.arguments is not None
    arguments = {**default.arguments, "padding": 100, "upsampling": "learned"}
    about = "the same net, padding 100, dense bilinear deconvolutions"
    return Contestant("as known ports", about, arguments, default.num_classes)
