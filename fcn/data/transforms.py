"""Paired operations on image and mask, on torchvision.transforms.v2.

Images are interpolated, masks never: a mask holds only labels that were there, and void. Every
random draw comes from torch's global generator, which the loader seeds per sample.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fcn.config import VOID

Paired = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
MEAN_COLOUR = (124, 116, 104)  # ImageNet's, RGB: what the padding round a small image looks like
GREY = (0.2989, 0.587, 0.114)  # of R, G and B in a grey value, as torchvision weighs them
TRIES = 10  # draws of a crop before one that holds only void is taken after all


def train_transform(crop: int | None, scale: Sequence[float], flip: bool, jitter: float) -> Paired:
    """What a recipe does to a training sample.

    Args: as in RecipeConfig. Without `crop` the image stays whole.
    Returns: (image uint8 (3, H, W), target uint8 (H, W)) -> the same kinds, crop x crop if given.
    """
    return partial(_transformed, crop=crop, scale=scale, flip=flip, jitter=jitter)


def _transformed(
    image: Tensor,
    target: Tensor,
    *,
    crop: int | None,
    scale: Sequence[float],
    flip: bool,
    jitter: float,
) -> tuple[Tensor, Tensor]:
    """Of the module, not of a function: a worker that is spawned, not forked, has it pickled."""
    if crop is not None:
        image, target = random_scaled_crop(image, target, crop, scale)
    if flip and torch.rand(()) < 0.5:
        image, target = F.horizontal_flip(image), F.horizontal_flip(target)
    if jitter:
        image = adjust_colours(image, *(1 - jitter + 2 * jitter * torch.rand(3)).tolist())
    return image, target


def adjust_colours(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """torchvision's three adjustments in a row, saturation first, as one linear map of colours.

    Rounded and clamped once, at the end; a fifth of the time of the three.
    Args: image: uint8 (3, H, W), RGB. The factors: 1 changes nothing.
    """
    pixels = image.flatten(1).float()  # 3,N
    grey = torch.tensor(GREY)
    mean = float(grey @ pixels.mean(1))  # which saturation leaves as it is
    mixed = saturation * torch.eye(3) + (1 - saturation) * grey.expand(3, 3)
    shift = torch.full((3, 1), brightness * (1 - contrast) * mean + 0.5)  # the rest is cut off
    result = torch.addmm(shift, brightness * contrast * mixed, pixels)
    return result.clamp_(0, 255).to(torch.uint8).view_as(image)


def random_scaled_crop(
    image: Tensor, target: Tensor, side: int, scale: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Resizes by a random factor and crops a square of `side`, at a random place.

    Only the part of the image that the crop shows is resized. Where the crop reaches beyond the
    image, the image is padded with the mean colour and the mask with void. A crop that holds only
    void is drawn again.
    """
    for _ in range(TRIES):
        factor = scale[0] * (scale[1] / scale[0]) ** float(torch.rand(()))  # uniform in its log
        reach = max(round(side / factor), 1)  # side of the crop in the image's own pixels
        top, left = (_place(length, reach) for length in target.shape)
        part = target[max(top, 0) : top + reach, max(left, 0) : left + reach]
        if part[0, 0] != VOID or not bool((part == VOID).all()):
            break
    seen = image[:, max(top, 0) : top + reach, max(left, 0) : left + reach]
    # The crop's inside, in its own pixels: at least one each way.
    height, width = (min(side, max(1, round(n * side / reach))) for n in part.shape)
    before_y, before_x = (
        min(round(max(-start, 0) * side / reach), side - inside)
        for start, inside in ((top, height), (left, width))
    )
    seen = F.resize(seen, [height, width], InterpolationMode.BILINEAR, antialias=True)
    part = F.resize(part[None], [height, width], InterpolationMode.NEAREST_EXACT)[0]
    if (height, width) == (side, side):
        return seen, part
    return pad(seen, part, side, side, before_y, before_x)


def pad(
    image: Tensor, target: Tensor, height: int, width: int, top: int = 0, left: int = 0
) -> tuple[Tensor, Tensor]:
    """Image (3, h, w) and target (h, w), at (top, left) of mean colour and void, height x width."""
    wide = torch.tensor(MEAN_COLOUR, dtype=torch.uint8).view(3, 1, 1).repeat(1, height, width)
    void = torch.full((height, width), VOID, dtype=torch.uint8)
    h, w = target.shape
    wide[:, top : top + h, left : left + w] = image
    void[top : top + h, left : left + w] = target
    return wide, void


def pad_collate(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Images of any sizes as one batch: each padded, below and to the right, to the largest.

    Args: samples: (image uint8 (3, h, w), target uint8 (h, w)).
    Returns: image (B, 3, H, W), target (B, H, W); H and W are the greatest h and w.
    """
    height, width = (max(target.shape[axis] for _, target in samples) for axis in (0, 1))
    if any(target.shape != (height, width) for _, target in samples):
        samples = [pad(image, target, height, width) for image, target in samples]
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(targets)


def _place(length: int, reach: int) -> int:
    """Where a window of `reach` starts on an axis: inside it, or round all of it."""
    low, high = min(0, length - reach), max(0, length - reach)
    return int(torch.randint(low, high + 1, ()))
