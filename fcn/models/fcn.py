"""Fully convolutional networks: FCN-32s, FCN-16s and FCN-8s as one class.

Long, Shelhamer & Darrell, CVPR 2015 (arXiv 1411.4038), figure 3; PAMI 2016 (arXiv 1605.06211).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fcn.models.alignment import CoordinateMap, coordinate_map
from fcn.models.upsampling import Upsampling, make_upsampling
from fcn.models.vgg import VGG, WideConv2d, for_channels, head, variant

# torchvision's normalisation of ImageNet images, RGB in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The pools that each stride fuses, coarse to fine, and the paper's names of upsampling layers.
SKIPS = {32: (), 16: ("pool4",), 8: ("pool4", "pool3")}
TOLERANCE = 0.5 / 255  # a float this far outside [0, 1] still rounds to one of the 256 levels
UPSCORE = {"pool4": "upscore2", "pool3": "upscore_pool4"}
FINAL = {32: "upscore", 16: "upscore16", 8: "upscore8"}


class FCN(nn.Module):
    """A VGG whose classifier is convolutions, with scores fused over strides 32, 16 and 8.

    Its parts have the paper's names: backbone, head (fc6, fc7), score_fr, score_pool4, score_pool3,
    upscore2, upscore_pool4, and, for the last upsampling, upscore, upscore16 or upscore8.

    Args:
        stride: 32, 16 or 8, of the finest scores fused.
        num_classes: K, background included.
        in_channels: C, of the images; 3 is RGB.
        backbone: a name in `fcn.models.vgg.VARIANTS`.
        upsampling: a name in `fcn.models.upsampling.UPSAMPLINGS`, or PACKAGE.CLASS.
        padding: "aligned" pads conv1_1 by 1 and fc6 by 3; 100 pads conv1_1 by 100 and fc6 by 0, as
            the authors' networks do. Either way the scores lie on the image's own pixels.
        skip_scales: factor on a skip's features, by pool; {"pool4": 0.01, "pool3": 0.0001} is the
            authors' at-once network. A pool left out has 1.
        width: channels of the first stage; None: the backbone's own.
        head_width: channels of fc6 and fc7; None: the backbone's own.
        dropout: probability after fc6 and fc7.
        mean: C values, or those of RGB, which `for_channels` extends; of images in [0, 1]; a
            buffer, stored with the weights.
        std: likewise.

    Attributes:
        arguments: what builds this architecture again.
        in_channels: C.
        crops: the paper's crop offsets, by what is cropped; derived from the layers.
        offset: the last crop: index of the image's first pixel in the upsampled scores.
        reach: a pixel's score depends on pixels up to this many rows and columns away.
        period: an image shifted by a multiple of this has its scores shifted likewise.

    Raises:
        ValueError: an argument outside the above.
    """

    mean: Tensor
    std: Tensor
    score_pool4: nn.Conv2d
    score_pool3: nn.Conv2d
    upscore2: Upsampling
    upscore_pool4: Upsampling
    upscore: Upsampling
    upscore16: Upsampling
    upscore8: Upsampling

    def __init__(
        self,
        *,
        stride: int = 8,
        num_classes: int = 21,
        in_channels: int = 3,
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
        scales = {pool: float(scale) for pool, scale in (skip_scales or {}).items()}
        if unknown := set(scales) - set(SKIPS[stride]):
            raise ValueError(f"skip_scales names {sorted(unknown)}, which stride {stride} lacks")
        spec = variant(backbone)
        width = spec.width if width is None else width
        head_width = spec.head_width if head_width is None else head_width
        if min(width, head_width, in_channels) < 1:
            raise ValueError("width, head_width and in_channels must be at least 1")
        self.arguments: dict[str, Any] = {
            "stride": stride,
            "num_classes": num_classes,
            "in_channels": in_channels,
            "backbone": backbone,
            "upsampling": upsampling,
            "padding": padding,
            "skip_scales": scales,
            "width": width,
            "head_width": head_width,
            "dropout": dropout,
        }
        self.stride, self.in_channels = stride, in_channels
        conv1_padding, fc6_padding = (100, 0) if padding == 100 else (1, 3)
        for name, values in (("mean", mean), ("std", std)):
            own = for_channels(
                torch.as_tensor(values, dtype=torch.get_default_dtype()).clone(), in_channels, 0
            )
            if len(own) != in_channels:
                raise ValueError(f"{name} must have {in_channels} values, got {values}")
            self.register_buffer(name, own.view(-1, 1, 1))
        self.backbone = VGG(backbone, padding=conv1_padding, width=width, in_channels=in_channels)
        channels = self.backbone.channels
        self.head = head(
            backbone, channels["pool5"], padding=fc6_padding, width=head_width, dropout=dropout
        )
        self.score_fr = score_layer(head_width, num_classes)
        for pool in SKIPS[stride]:
            upscore = make_upsampling(upsampling, 2, num_classes, final=False)
            self.add_module(UPSCORE[pool], upscore)
            self.add_module(f"score_{pool}", score_layer(channels[pool], num_classes))
        final = make_upsampling(upsampling, stride, num_classes, final=True)
        self.add_module(FINAL[stride], final)
        self._align()

    def forward(self, image: Tensor) -> Tensor:
        """Return the scores of images.

        Args:
            image: uint8, or float in [0, 1], (B, C, H, W), for every H, W >= 1; C = 3 is RGB.

        Returns:
            float (B, K, H, W).

        Raises:
            ValueError: another shape or type; a float image has NaN, or values outside [0, 1] by
                more than `TOLERANCE`.
        """
        pool3, pool4, pool5 = self.backbone(self.normalise(image))
        size = image.shape[-2:]
        score = self.score_fr(self.head(pool5))  # B,K,h,w at stride 32
        if self.stride == 32:
            return self.upscore(score, self.offset, size)
        skip = self.score_pool4(self.skip_scale("pool4") * pool4)
        score = fuse(self.upscore2, score, skip, self.crops["score_pool4"])  # stride 16
        if self.stride == 16:
            return self.upscore16(score, self.offset, size)
        skip = self.score_pool3(self.skip_scale("pool3") * pool3)
        score = fuse(self.upscore_pool4, score, skip, self.crops["score_pool3"])  # stride 8
        return self.upscore8(score, self.offset, size)

    def normalise(self, image: Tensor) -> Tensor:
        """Return images minus `mean`, divided by `std`; bytes become floats in [0, 1] first."""
        if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[1] != self.in_channels:
            is_tensor = isinstance(image, Tensor)
            got = tuple(image.shape) if is_tensor else f"{type(image).__name__}, not a tensor"
            raise ValueError(f"image must be (B, {self.in_channels}, H, W), got {got}")
        if image.dtype == torch.uint8:
            image = image.to(self.mean.dtype) / 255
        elif not image.is_floating_point():
            raise ValueError(f"image must be uint8, or float in [0, 1], got {image.dtype}")
        elif not torch.compiler.is_compiling() and image.numel():
            low, high = image.detach().aminmax()
            if not ((low >= -TOLERANCE) & (high <= 1 + TOLERANCE)):  # nor if they are NaN
                raise ValueError(
                    f"a float image must be in [0, 1], got {low:g} to {high:g}; divide bytes by "
                    "255 or pass them as uint8, undo any normalisation, since the network has its "
                    "own, replace NaN, and clamp(0, 1) what interpolation has overshot"
                )
        return (image.to(self.mean.dtype) - self.mean) / self.std

    def skip_scale(self, pool: str) -> float:
        """Return the factor on a skip's features, pool4 or pool3."""
        return self.arguments["skip_scales"].get(pool, 1.0)

    @property
    def upscore_final(self) -> Upsampling:
        """The last upsampling: upscore, upscore16 or upscore8."""
        return getattr(self, FINAL[self.stride])

    def _align(self) -> None:
        """Derive the crop offsets, the reach and the period from the layers' own geometry."""
        grid = coordinate_map(self.backbone).then(coordinate_map(self.head))
        self.period = int(grid.scale)
        self.crops: dict[str, int] = {}
        for pool in SKIPS[self.stride]:
            upsampled = grid.then(coordinate_map(self.get_submodule(UPSCORE[pool])))
            skip_grid = coordinate_map(self.backbone.until(pool))
            crop = upsampled.index_in(skip_grid)
            self.crops[f"score_{pool}"] = crop
            reach = max(upsampled.reach, skip_grid.reach)
            grid = replace(upsampled if crop > 0 else skip_grid, reach=reach)
        pixels = grid.then(coordinate_map(self.upscore_final))
        self.offset = self.crops["score"] = CoordinateMap().index_in(pixels)
        self.reach = int(pixels.reach)


def fuse(upscore: Upsampling, score: Tensor, skip: Tensor, crop: int) -> Tensor:
    """Return the coarser scores, upsampled by 2, plus a skip's, cropped to where both have values.

    Args:
        upscore: doubles the resolution of `score`.
        score: float (B, K, h, w).
        skip: float (B, K, h', w').
        crop: rows and columns to drop from the start of the skip; if negative, of the upsampled
            scores.
    """
    if crop <= 0:
        return upscore(score, -crop, skip.shape[-2:]) + skip
    score = upscore(score)
    height, width = score.shape[-2:]
    return score + skip[..., crop : crop + height, crop : crop + width]


def score_layer(channels: int, num_classes: int) -> nn.Conv2d:
    """Return a 1 x 1 convolution to class scores, zero at the start (PAMI 2016, sec. 4.3)."""
    layer = WideConv2d(channels, num_classes, 1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
