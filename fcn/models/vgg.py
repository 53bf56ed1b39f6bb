"""VGG as the paper uses it: named stages, and fc6/fc7 as convolutions."""

import string
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn.models.fast_forms import image_layout, uses_matrix_product

RGB = ("red", "green", "blue")
Bands = Sequence[int | str]  # of images, by name or number; empty: RGB
# Convolutions in each stage: columns A, B, D and E of Simonyan & Zisserman 2015, table 1.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


@dataclass(frozen=True)
class Variant:
    """A backbone: how many convolutions its five stages have, and its default widths."""

    stages: tuple[int, ...]
    batch_norm: bool
    width: int = 64  # channels of the first stage; the others have 2, 4, 8 and 8 times as many
    head_width: int = 4096  # channels of fc6 and fc7


VARIANTS = {
    f"vgg{depth}{'_bn' if batch_norm else ''}": Variant(stages, batch_norm)
    for depth, stages in STAGES.items()
    for batch_norm in (False, True)
}
# For the sample and for training from random weights on a CPU; with batch norm in the head too,
# since a VGG without pretrained weights hardly trains without it.
VARIANTS["mini"] = Variant(STAGES[11], batch_norm=True, width=16, head_width=256)


def variant(name: str) -> Variant:
    """Return the variant called `name`; raise a ValueError for an unknown one."""
    if name not in VARIANTS:
        raise ValueError(f"backbone must be one of {', '.join(VARIANTS)}, got {name!r}")
    return VARIANTS[name]


class VGG(nn.Sequential):
    """The convolutional part, conv1_1 to pool5, under the paper's names.

    Pools round up (ceil mode), as Caffe's do: no pixel of any image size is dropped. A stage's last
    ReLU follows its pool: the values and gradients are the same, for a quarter of the work.

    Args:
        name: a name in `VARIANTS`.
        padding: of conv1_1, in pixels.
        width: channels of the first stage.
        in_channels: C, of the images.
    """

    def __init__(self, name: str, *, padding: int, width: int, in_channels: int = 3) -> None:
        super().__init__()
        spec = variant(name)
        self.width = width
        self.channels = {f"pool{s}": width * n for s, n in enumerate((1, 2, 4, 8, 8), start=1)}
        stages = zip(spec.stages, self.channels.values(), strict=True)
        inputs, pad = in_channels, padding
        for stage, (convolutions, channels) in enumerate(stages, start=1):
            for index in range(1, convolutions + 1):
                part = f"{stage}_{index}"
                self.add_module(f"conv{part}", nn.Conv2d(inputs, channels, 3, padding=pad))
                if spec.batch_norm:
                    self.add_module(f"bn{part}", nn.BatchNorm2d(channels))
                if index == convolutions:
                    self.add_module(f"pool{stage}", nn.MaxPool2d(2, ceil_mode=True))
                # In place would be slower on a CPU and save no memory here.
                self.add_module(f"relu{part}", nn.ReLU())
                inputs, pad = channels, 1
        self.frozen_norms: list[nn.Module] = []
        _initialise(self)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return pool3, pool4 and pool5 of normalised images, float (B, C, H, W).

        They are float (B, 4w, ...), (B, 8w, ...) and (B, 8w, ...), w = `width`, at strides 8, 16
        and 32; each pool halves the size, rounded up.
        """
        ends = {}
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d):
                image = image.contiguous(memory_format=image_layout(layer, image, self.width))
            image = ends[stage_of(name)] = layer(image)
        return ends[3], ends[4], ends[5]

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
        """Return the layers that compute `pool`, its ReLU included."""
        stage = int(pool.removeprefix("pool"))
        layers = self.named_children()
        return nn.Sequential(OrderedDict((n, m) for n, m in layers if stage_of(n) <= stage))


def stage_of(name: str) -> int:
    """Return the stage, 1 to 5, that a layer such as conv3_1 or pool3 belongs to."""
    return int(name.lstrip(string.ascii_lowercase)[0])


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

    Its time goes into its weights, so that one matrix product with the image's k x k patches may be
    faster, see `uses_matrix_product`: the same sums in another order.
    """

    def forward(self, image: Tensor) -> Tensor:
        if not uses_matrix_product(self, image):  # a CPU computes it faster from contiguous images
            return super().forward(image.contiguous() if image.device.type == "cpu" else image)
        assert self.bias is not None
        side, pad = self.kernel_size[0], int(self.padding[0])
        height, width = (n + 2 * pad - side + 1 for n in image.shape[-2:])
        pixelwise = side == 1 and pad == 0
        patches = image.flatten(2) if pixelwise else F.unfold(image, side, padding=pad)  # B,ckk,hw
        patches = patches.transpose(0, 1).flatten(1)  # B,ckk,hw -> ckk,Bhw
        score = torch.addmm(self.bias[:, None], self.weight.flatten(1), patches)
        return score.view(-1, len(image), height, width).transpose(0, 1)  # C,B,h,w -> B,C,h,w


def match_bands(
    source: int, channels: int, source_bands: Bands, bands: Bands
) -> list[int | None] | None:
    """Match the bands of images with those of a source by name, in any case.

    Args:
        source: channels of the source.
        channels: C, of the images.
        source_bands: of the source.
        bands: of the images.

    Returns:
        The source's channel of each band; None where it lacks the band. None in place of the list
        if one side has numbers alone, or bands that are not known.
    """
    theirs, own = (
        [band.casefold() if isinstance(band, str) else band for band in side or RGB]
        for side in (source_bands, bands)
    )
    named = all(any(isinstance(band, str) for band in side) for side in (theirs, own))
    if not named or (len(theirs), len(own)) != (source, channels):
        return None
    return [theirs.index(band) if band in theirs else None for band in own]


def for_channels(
    values: Tensor, channels: int, dim: int, places: Sequence[int | None] | None = None
) -> Tensor:
    """Return values for images of other channels than those of a source.

    Args:
        values: of the source.
        channels: C.
        dim: of the channels in `values`.
        places: see `match_bands`; a channel without a place gets the mean of all. Without a list,
            the first three channels keep the values of RGB, of images with one or two channels
            none has a place, and values of other numbers of channels are returned unchanged.
    """
    same = list(range(values.shape[dim]))
    if places == same or (places is None and (len(same) != 3 or channels == 3)):
        return values
    if places is None:
        places = [0, 1, 2, *[None] * (channels - 3)] if channels > 3 else [None] * channels
    mean = values.mean(dim, keepdim=True)
    return torch.cat([mean if n is None else values.narrow(dim, n, 1) for n in places], dim)


def _initialise(module: nn.Module) -> None:
    """Draw random weights as torchvision's VGG does (He et al. 2015, fan out)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
