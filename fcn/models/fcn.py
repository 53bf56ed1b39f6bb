"""Fully convolutional networks: FCN-32s, FCN-16s and FCN-8s as one class.

Long, Shelhamer & Darrell, CVPR 2015 (arXiv 1411.4038), figure 3; PAMI 2016 (arXiv 1605.06211).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fcn.models.alignment import CoordinateMap, coordinate_map
from fcn.models.upsampling import Upsampling, make_upsampling
from fcn.models.vgg import VGG, WideConv2d, head, variant

# torchvision's normalisation of ImageNet images, RGB in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Which skips each stride fuses, coarse to fine, and the last upsampling's name (the paper's).
SKIPS = {32: (), 16: ("pool4",), 8: ("pool4", "pool3")}
FINAL = {32: "upscore", 16: "upscore16", 8: "upscore8"}
UPSCORE = {"pool4": "upscore2", "pool3": "upscore_pool4"}  # what brings scores to a skip's grid


@dataclass(frozen=True)
class Skip:
    """One fusion: pool -> scale -> score layer, added to the upsampled coarser scores."""

    pool: str
    scale: float  # 1 in staged training; the at-once net damps each skip (PAMI 2016, sec. 4.3)
    score_crop: int  # rows and columns to drop from the upsampled scores
    skip_crop: int  # rows and columns to drop from the skip's scores

    @property
    def upscore(self) -> str:
        return UPSCORE[self.pool]


class FCN(nn.Module):
    """A VGG whose classifier is convolutions, with scores fused over strides 32, 16 and 8.

    Args:
        stride: 32, 16 or 8, of the finest scores fused.
        num_classes: K, background included.
        backbone: a name in `fcn.models.vgg.VARIANTS`.
        upsampling: a name in `fcn.models.upsampling.UPSAMPLINGS`.
        padding: "aligned" pads conv1_1 by 1 and fc6 by 3; 100 pads conv1_1 by 100 and fc6 by 0,
            as the authors' nets do. Either way the scores lie on the image's own pixels.
        skip_scales: factor for a skip's features, by pool; {"pool4": 0.01, "pool3": 0.0001} is
            the authors' at-once net. A pool left out has 1.
        width, head_width: channels of the first stage, of fc6 and fc7; None for the backbone's own.
        dropout: after fc6 and fc7.
        mean, std: three each, RGB in [0, 1]; buffers, stored with the weights.

    forward: float (B, 3, H, W), RGB in [0, 1] -> score, float (B, K, H, W), for every H, W >= 1.
    reach: a pixel's score depends on the pixels up to this many rows and columns away.
    period: shifted by a multiple of this, an image has its scores shifted alike.
    Raises: ValueError: an argument outside the above.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        stride: int = 8,
        num_classes: int = 21,
        backbone: str = "vgg16",
        upsampling: str = "fixed",
        padding: int | str = "aligned",
        skip_scales: Mapping[str, float] | None = None,
        width: int | None = None,
        head_width: int | None = None,
        dropout: float = 0.5,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        super().__init__()
        if stride not in SKIPS:
            raise ValueError(f"stride must be 32, 16 or 8, got {stride}")
        if padding not in ("aligned", 100):
            raise ValueError(f"padding must be 'aligned' or 100, got {padding!r}")
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        skip_scales = {pool: float(scale) for pool, scale in (skip_scales or {}).items()}
        if unknown := set(skip_scales) - set(SKIPS[stride]):
            raise ValueError(f"skip_scales names {sorted(unknown)}, which stride {stride} lacks")
        spec = variant(backbone)
        width = width or spec.width
        head_width = head_width or spec.head_width
        # What builds this architecture again; the normalisation is among the weights.
        self.arguments: dict[str, Any] = {
            "stride": stride,
            "num_classes": num_classes,
            "backbone": backbone,
            "upsampling": upsampling,
            "padding": padding,
            "skip_scales": skip_scales,
            "width": width,
            "head_width": head_width,
            "dropout": dropout,
        }
        conv1_padding, fc6_padding = (100, 0) if padding == 100 else (1, 3)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.backbone = VGG(backbone, padding=conv1_padding, width=width)
        channels = self.backbone.channels
        self.head = head(
            backbone,
            channels["pool5"],
            padding=fc6_padding,
            width=head_width,
            dropout=dropout,
        )
        self.score_fr = score_layer(head_width, num_classes)
        grid = coordinate_map(self.backbone).then(coordinate_map(self.head))
        self.period = int(grid.scale)
        self.skips: list[Skip] = []
        for pool in SKIPS[stride]:
            upscore = make_upsampling(upsampling, 2, num_classes, final=False)
            self.add_module(UPSCORE[pool], upscore)
            self.add_module(f"score_{pool}", score_layer(channels[pool], num_classes))
            upsampled = grid.then(coordinate_map(upscore))
            skip_grid = coordinate_map(self.backbone.until(pool))
            # Whichever begins further out is cropped to where the other begins.
            shift = upsampled.index_in(skip_grid)
            scale = skip_scales.get(pool, 1.0)
            self.skips.append(Skip(pool, scale, max(-shift, 0), max(shift, 0)))
            reach = max(upsampled.reach, skip_grid.reach)
            grid = replace(upsampled if shift > 0 else skip_grid, reach=reach)
        final = make_upsampling(upsampling, stride, num_classes, final=True)
        self.add_module(FINAL[stride], final)
        pixels = grid.then(coordinate_map(final))
        self.offset = CoordinateMap().index_in(pixels)
        self.reach = int(pixels.reach)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        pool3, pool4, pool5 = self.backbone((image - self.mean) / self.std)
        score = self.score_fr(self.head(pool5))  # B,4096,h,w -> B,K,h,w at stride 32
        for skip in self.skips:  # pool4, then pool3: coarse to fine
            pool = {"pool4": pool4, "pool3": pool3}[skip.pool]
            score = self.fuse(skip, score, pool)  # half the stride
        return self.upscore_final(score, self.offset, (height, width))

    def fuse(self, skip: Skip, score: Tensor, pool: Tensor) -> Tensor:
        """The coarser scores, upsampled by 2, plus the skip's own, where both see one place."""
        if skip.scale != 1:
            pool = pool * skip.scale
        skip_score = self.get_submodule(f"score_{skip.pool}")(pool)
        upscore = self.get_submodule(skip.upscore)
        if skip.skip_crop:
            score = upscore(score)
            height, width = score.shape[-2:]
            crop = slice(skip.skip_crop, skip.skip_crop + height)
            skip_score = skip_score[..., crop, skip.skip_crop : skip.skip_crop + width]
        else:
            size = skip_score.shape[-2], skip_score.shape[-1]
            score = upscore(score, skip.score_crop, size)
        return score + skip_score

    @property
    def upscore_final(self) -> Upsampling:
        layer = self.get_submodule(FINAL[self.arguments["stride"]])
        assert isinstance(layer, Upsampling)
        return layer

    @property
    def crops(self) -> dict[str, int]:
        """The paper's crop offsets, by what is cropped ("score_pool4", ..., "score")."""
        offsets = {f"score_{skip.pool}": skip.skip_crop - skip.score_crop for skip in self.skips}
        return offsets | {"score": self.offset}


def lay_out(model: nn.Module, device: torch.device) -> None:
    """Moves a net in place, with its weights in the memory layout that `device` is fastest with.

    Images are best channels_last everywhere; weights too on a GPU, but contiguous on a CPU, whose
    convolutions lay them out for themselves and whose optimiser copies any other layout.
    """
    layout = torch.contiguous_format if device.type == "cpu" else torch.channels_last
    model.to(device).to(memory_format=layout)


def score_layer(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1 x 1 convolution to class scores, zero at the start (PAMI 2016, sec. 4.3)."""
    layer = WideConv2d(channels, num_classes, 1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
