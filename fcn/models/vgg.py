"""torchvision's VGG as the paper uses it: named stages, and fc6/fc7 as convolutions."""

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.vgg import cfgs, make_layers


@dataclass(frozen=True)
class Variant:
    """A backbone: one of torchvision's layouts (A, B, D, E), and its default widths."""

    layout: str
    batch_norm: bool
    width: int = 64  # channels of the first stage; the others follow in torchvision's proportions
    head_width: int = 4096  # channels of fc6 and fc7


VARIANTS = {
    f"vgg{depth}{'_bn' if batch_norm else ''}": Variant(layout, batch_norm)
    for depth, layout in {11: "A", 13: "B", 16: "D", 19: "E"}.items()
    for batch_norm in (False, True)
}
# For the sample and for training from random weights on a CPU; with batch norm in the head too,
# since a VGG without pretrained weights hardly trains without it.
VARIANTS["mini"] = Variant("A", batch_norm=True, width=16, head_width=256)


def variant(name: str) -> Variant:
    """Return the variant called `name`; raise a ValueError for an unknown one."""
    if name not in VARIANTS:
        raise ValueError(f"backbone must be one of {', '.join(VARIANTS)}, got {name!r}")
    return VARIANTS[name]


class VGG(nn.Sequential):
    """The convolutional part, conv1_1 to pool5, under the paper's names.

    Pools round up (ceil mode), as Caffe's do: no pixel of any image size is dropped.

    Args:
        name: a name in `VARIANTS`.
        padding: of conv1_1, in pixels.
        width: channels of the first stage.
        in_channels: C, of the images.
    """

    def __init__(self, name: str, *, padding: int, width: int, in_channels: int = 3) -> None:
        spec = variant(name)
        layout = [c if isinstance(c, str) else c * width // 64 for c in cfgs[spec.layout]]
        super().__init__(_named(make_layers(layout, spec.batch_norm)))
        conv1_1 = self.get_submodule("conv1_1")
        assert isinstance(conv1_1, nn.Conv2d)
        conv1_1.padding = (padding, padding)
        if in_channels != 3:
            first = nn.Conv2d(in_channels, conv1_1.out_channels, 3, padding=padding)
            self.add_module("conv1_1", first)  # in the place of torchvision's, for RGB
        pooled = [int(c) for c, following in pairwise(layout) if following == "M"]
        self.channels = {f"pool{stage}": c for stage, c in enumerate(pooled, start=1)}
        self.frozen_norms: list[nn.Module] = []
        _initialise(self)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return pool3, pool4 and pool5, at strides 8, 16 and 32, of a normalised (B, C, H, W)."""
        pools = {}
        for name, layer in self.named_children():
            image = layer(image)
            if name.startswith("pool"):
                pools[name] = image
        return pools["pool3"], pools["pool4"], pools["pool5"]

    def freeze(self, stage: str) -> None:
        """Keep the weights up to a stage as they are: no gradient, no batch statistics.

        Args:
            stage: conv1 to conv5.
        """
        layers = self.until(stage.replace("conv", "pool")).requires_grad_(False)
        self.frozen_norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
        self.train(self.training)

    def train(self, mode: bool = True) -> "VGG":
        """Set the training mode, except of frozen batch norm, which keeps its statistics."""
        super().train(mode)
        for layer in self.frozen_norms:
            layer.eval()
        return self

    def until(self, pool: str) -> nn.Sequential:
        """Return the layers up to and including `pool`."""
        layers = list(self.named_children())
        return nn.Sequential(OrderedDict(layers[: [name for name, _ in layers].index(pool) + 1]))


def head(name: str, channels: int, *, padding: int, width: int, dropout: float) -> nn.Sequential:
    """Build fc6 (7 x 7) and fc7 (1 x 1), the classifier's two hidden layers as convolutions.

    Args:
        name: a name in `VARIANTS`.
        channels: of pool5.
        padding: of fc6.
        width: channels of fc6 and fc7.
        dropout: probability, after each.
    """
    layers = OrderedDict[str, nn.Module]()
    for index, kernel, inputs, pad in ((6, 7, channels, padding), (7, 1, width, 0)):
        layers[f"fc{index}"] = WideConv2d(inputs, width, kernel, padding=pad)
        if name == "mini":
            layers[f"bn{index}"] = nn.BatchNorm2d(width)
        layers[f"relu{index}"] = nn.ReLU()
        layers[f"drop{index}"] = nn.Dropout(dropout)  # elementwise, as Caffe's
    result = nn.Sequential(layers)
    _initialise(result)
    return result


class WideConv2d(nn.Conv2d):
    """A convolution of stride 1 with many channels and few output pixels: fc6, fc7, score layers.

    Its time goes into its weights (103 M in fc6), which a CPU's convolution copies to another
    layout at every call. On a CPU it is computed as one matrix product with the image's k x k
    patches instead: the same sums in another order. (oneDNN 3.13's convolution from 4096 channels
    to fewer than 16 in bfloat16 also writes out of bounds in the backward pass.)
    """

    def forward(self, image: Tensor) -> Tensor:
        if image.device.type != "cpu" or torch.compiler.is_exporting():
            return super().forward(image)
        assert self.bias is not None
        side, pad = self.kernel_size[0], int(self.padding[0])
        height, width = (n + 2 * pad - side + 1 for n in image.shape[-2:])
        pixelwise = side == 1 and pad == 0
        patches = image.flatten(2) if pixelwise else F.unfold(image, side, padding=pad)  # B,ckk,hw
        patches = patches.transpose(0, 1).flatten(1)  # B,ckk,hw -> ckk,Bhw
        score = torch.addmm(self.bias[:, None], self.weight.flatten(1), patches)
        return score.view(-1, len(image), height, width).transpose(0, 1)  # C,B,h,w -> B,C,h,w


def for_channels(rgb: Tensor, channels: int, dim: int) -> Tensor:
    """Return values for images of another number of channels than RGB's.

    The first three channels keep their values, and further ones get their mean. Images of one or
    two channels have nothing of RGB: each channel gets the mean.

    Args:
        rgb: has 3 entries along `dim`; others are returned unchanged.
        channels: C.
        dim: of the channels.
    """
    if rgb.shape[dim] != 3 or channels == 3:
        return rgb
    mean = rgb.mean(dim, keepdim=True)
    kept = [rgb] if channels > 3 else []
    return torch.cat([*kept, *[mean] * (channels - 3 * len(kept))], dim)


def _initialise(module: nn.Module) -> None:
    """Draw random weights as torchvision's VGG does (He et al. 2015, fan out)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _named(layers: nn.Sequential) -> "OrderedDict[str, nn.Module]":
    """Return torchvision's numbered layers under the paper's names: conv1_1, relu1_1, ..."""
    named = OrderedDict[str, nn.Module]()
    stage, index = 1, 0
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
            named[f"pool{stage}"] = layer
            stage, index = stage + 1, 0
            continue
        index += isinstance(layer, nn.Conv2d)
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # in place is slower on a CPU and saves no memory here
        kind = {nn.Conv2d: "conv", nn.BatchNorm2d: "bn", nn.ReLU: "relu"}[type(layer)]
        named[f"{kind}{stage}_{index}"] = layer
    return named
