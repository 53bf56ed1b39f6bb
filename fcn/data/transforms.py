"""Paired transforms of image and mask, on torchvision.transforms.v2.

Images are interpolated, masks never: a mask holds only labels that were there before, and 255 for
ignored pixels. Every random draw comes from torch's global generator, which is seeded per sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fcn.dataset_info import MEAN_COLOUR, VOID

GREY = (0.2989, 0.587, 0.114)  # weights of R, G and B in a grey value, as in torchvision
# Images of other channels than RGB are padded with 115, and all their channels weigh the same.
TRIES = 10  # draws of a crop before one that holds only ignored pixels is accepted


@dataclass(frozen=True)
class TrainTransform:
    """The augmentation of a recipe, from and to (image uint8 (C, H, W), target uint8 (H, W))."""

    crop: int | None  # side of the square crop in pixels; None: the image stays whole
    scale: Sequence[float]  # range of the random resize before the crop
    flip: bool  # mirror half of the images
    jitter: float  # brightness, contrast and saturation vary by factors in 1 - jitter..1 + jitter

    def __call__(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.crop is not None:
            image, target = random_scaled_crop(image, target, self.crop, self.scale)
        if self.flip and torch.rand(()) < 0.5:
            image, target = F.horizontal_flip(image), F.horizontal_flip(target)
        if self.jitter:
            factors = 1 - self.jitter + 2 * self.jitter * torch.rand(3)
            image = adjust_colours(image, *factors.tolist())
        return image, target


def adjust_colours(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Apply torchvision's saturation, contrast and brightness adjustments as one linear map.

    The result is rounded and clamped once, at the end; this takes a fifth of the time of the three.

    Args:
        image: uint8 (C, H, W).
        brightness: factor; 1 changes nothing.
        contrast: factor; 1 changes nothing.
        saturation: factor; 1 changes nothing.

    Returns:
        uint8 (C, H, W).
    """
    pixels, c = image.flatten(1).float(), len(image)  # C,N
    grey = torch.tensor(GREY) if c == 3 else torch.full((c,), 1 / c)
    mean = float(grey @ pixels.mean(1))  # saturation does not change it
    mixed = saturation * torch.eye(c) + (1 - saturation) * grey.expand(c, c)
    shift = torch.full((c, 1), brightness * (1 - contrast) * mean + 0.5)  # + 0.5: to round below
    result = torch.addmm(shift, brightness * contrast * mixed, pixels)
    return result.clamp_(0, 255).to(torch.uint8).view_as(image)


def random_scaled_crop(
    image: Tensor, target: Tensor, side: int, scale: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Resize by a random factor and crop a square at a random place.

    Only the part of the image that the crop shows is resized. Where the crop reaches beyond the
    image, the image is padded with the mean colour and the target with 255. A crop of ignored
    pixels only is drawn again.

    Args:
        image: uint8 (C, H, W).
        target: uint8 (H, W).
        side: of the crop, in pixels.
        scale: (smallest, largest) factor; its logarithm is uniform.

    Returns:
        uint8 (C, side, side) and uint8 (side, side).
    """
    for _ in range(TRIES):
        factor = scale[0] * (scale[1] / scale[0]) ** float(torch.rand(()))
        reach = max(round(side / factor), 1)  # side of the crop in the image's own pixels
        top, left = (_place(length, reach) for length in target.shape)
        part = target[max(top, 0) : top + reach, max(left, 0) : left + reach]
        if not bool((part == VOID).all()):
            break
    seen = image[:, max(top, 0) : top + reach, max(left, 0) : left + reach]
    # Size of the visible part in the crop's pixels, at least 1, and the padding before it.
    height, width = (min(side, max(1, round(n * side / reach))) for n in part.shape)
    before_y, before_x = (
        min(round(max(-start, 0) * side / reach), side - inside)
        for start, inside in ((top, height), (left, width))
    )
    seen = F.resize(seen, [height, width], InterpolationMode.BILINEAR, antialias=True)
    part = F.resize(part[None], [height, width], InterpolationMode.NEAREST_EXACT)[0]
    return _pad(seen, part, side, side, before_y, before_x)


def _place(length: int, reach: int) -> int:
    """Draw where a window of `reach` pixels starts on an axis: inside it, or around all of it."""
    low, high = min(0, length - reach), max(0, length - reach)
    return int(torch.randint(low, high + 1, ()))


def _pad(
    image: Tensor, target: Tensor, height: int, width: int, top: int = 0, left: int = 0
) -> tuple[Tensor, Tensor]:
    """Place image (C, h, w) and target (h, w) at (top, left) of a padded height x width."""
    h, w = target.shape
    if (h, w) == (height, width):
        return image, target
    colour = MEAN_COLOUR if len(image) == 3 else (115,) * len(image)
    wide = torch.tensor(colour, dtype=torch.uint8).view(-1, 1, 1).repeat(1, height, width)
    ignored = torch.full((height, width), VOID, dtype=torch.uint8)
    wide[:, top : top + h, left : left + w] = image
    ignored[top : top + h, left : left + w] = target
    return wide, ignored


def pad_collate(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack images of any sizes, each padded below and to the right to the largest.

    Args:
        samples: (image uint8 (C, h, w), target uint8 (h, w)).

    Returns:
        image (B, C, H, W) and target (B, H, W), where H and W are the largest h and w.
    """
    height, width = (max(target.shape[axis] for _, target in samples) for axis in (0, 1))
    padded = [_pad(image, target, height, width) for image, target in samples]
    images, targets = zip(*padded, strict=True)
    return torch.stack(images), torch.stack(targets)
