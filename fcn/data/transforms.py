"""Paired transforms of image and mask, on torchvision.transforms.v2.

Images are interpolated, masks never: a mask holds only labels that were there before, and 255 for
ignored pixels. Every random draw comes from the global generators, which `seeded` sets per sample.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Image, Mask

from fcn.config import RecipeConfig
from fcn.dataset_info import MEAN_COLOUR, VOID
from fcn.errors import ConfigError
from fcn.targets import build, reason_of

GREY = (0.2989, 0.587, 0.114)  # weights of R, G and B in a grey value, as in torchvision
TRIES = 10  # draws of a crop before one that holds only ignored pixels is accepted
TRIALS, TRIED_PIXELS = 20, 2**20  # draws by which the transforms of a recipe are checked, at most


@dataclass(frozen=True)
class TrainTransform:
    """The augmentation of a recipe, from and to (image uint8 (C, H, W), target uint8 (H, W))."""

    crop: int | None  # side of the square crop in pixels; None: the image stays whole
    scale: Sequence[float]  # range of the random resize before the crop
    flip: bool  # mirror half of the images
    jitter: float  # brightness, contrast and saturation vary by factors in 1 - jitter..1 + jitter
    transforms: Sequence[Callable[..., Any]] = ()  # of (image, mask), as torchvision's v2 are

    @classmethod
    def of(cls, recipe: RecipeConfig, channels: int) -> "TrainTransform":
        """Return the augmentation of a recipe for images of C channels.

        Raises:
            ConfigError: one of recipe.transforms cannot be built.
        """
        transforms = make_transforms(recipe.transforms, channels)
        return cls(recipe.crop, recipe.scale, recipe.flip, recipe.jitter, transforms)

    def __call__(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.crop is not None:
            image, target = random_scaled_crop(image, target, self.crop, self.scale)
        if self.flip and torch.rand(()) < 0.5:
            image, target = F.horizontal_flip(image), F.horizontal_flip(target)
        if self.jitter:
            factors = 1 - self.jitter + 2 * self.jitter * torch.rand(3)
            image = adjust_colours(image, *factors.tolist())
        for transform in self.transforms:
            image, target = _apply(transform, image, target)
        return image, target


def make_transforms(entries: Sequence[dict[str, Any]], channels: int) -> list[Callable[..., Any]]:
    """Build the transforms of `recipe.transforms`.

    Whatever has an argument `fill` gets the mean colour for the image, unless the settings give
    another, and 255 for the mask: by torchvision's default, new pixels would be of class 0.

    Args:
        entries: settings, each with a `_target_`; may hold further ones, as RandomApply's do.
        channels: C, of the images.

    Raises:
        ConfigError: names the entry and what is wrong with it.
    """

    def complete(parameters: set[str], given: dict[str, Any]) -> dict[str, Any]:
        if "fill" in parameters:
            given["fill"] = {Image: given.get("fill", mean_colour(channels)), Mask: VOID}
        if isinstance(given.get("interpolation"), str):  # which older versions do not know
            given["interpolation"] = InterpolationMode(given["interpolation"])
        return given

    built = []
    for entry in entries:
        if "_target_" not in entry:
            raise ConfigError(
                f"recipe.transforms: {entry} has no _target_, the name of its class, such as "
                "torchvision.transforms.v2.RandomRotation"
            )
        try:
            transform = build(entry, complete)
        except ConfigError as error:
            raise ConfigError(f"recipe.transforms: {error}") from error
        if not callable(transform):
            raise ConfigError(f"recipe.transforms: {entry['_target_']} is no transform")
        built.append(transform)
    return built


def check_transforms(
    recipe: RecipeConfig, channels: int, num_classes: int, size: tuple[int, int] | None
) -> None:
    """Try the transforms of a recipe on a made-up image, so that a bad one fails before a run.

    Args:
        recipe: the transforms, and the crop that they get.
        channels: C, of the images.
        num_classes: K.
        size: (H, W) of an image, which counts where there is no crop; None: not known yet.

    Raises:
        ConfigError: a transform cannot be built, raises an error, or returns what training cannot
            use: another type, an image and a mask of two sizes, or labels that were not there.
    """
    transforms = make_transforms(recipe.transforms, channels)
    height, width = (recipe.crop, recipe.crop) if recipe.crop else size or (0, 0)
    if not transforms or not height:
        return
    target = torch.full((height, width), 1, dtype=torch.uint8)
    target[height // 3 : 2 * height // 3] = num_classes - 1
    image = target.expand(channels, -1, -1).contiguous()
    for seed in range(min(TRIALS, max(2, TRIED_PIXELS // (height * width)))):
        pixels, labels = image, target
        with seeded(seed):
            for entry, transform in zip(recipe.transforms, transforms, strict=True):
                try:
                    pixels, labels = _apply(transform, pixels, labels)
                except Exception as error:  # of whatever library it is
                    name = f"recipe.transforms: {entry['_target_']}"
                    raise ConfigError(f"{name}: {reason_of(error)}") from error
        types = pixels.dtype, labels.dtype
        if types != (torch.uint8,) * 2 or pixels.shape != (channels, *labels.shape):
            raise ConfigError(
                f"recipe.transforms: of an image {_shown(image)} and a mask {_shown(target)} they "
                f"make {_shown(pixels)} and {_shown(labels)}; both must stay uint8 and have one "
                f"height and width, and the image {channels} channels"
            )
        if invented := set(labels.unique().tolist()) - {1, num_classes - 1, VOID}:
            raise ConfigError(
                f"recipe.transforms: they write the label {min(invented)} where there was none: "
                f"give new pixels of a mask {VOID}, and take the nearest pixel, not a mean"
            )


def _apply(transform: Callable[..., Any], image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Apply a transform to image and mask, which it tells apart by their types."""
    result = transform(Image(image), Mask(target))
    kinds = [type(part).__name__ for part in result] if isinstance(result, tuple | list) else []
    if len(kinds) != 2 or not all(isinstance(part, Tensor) for part in result):
        got = f"({', '.join(kinds)})" if kinds else type(result).__name__
        raise TypeError(f"returns {got}, not image and mask as tensors")
    image, target = (part.as_subclass(Tensor) for part in result)
    return image, target


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators that transforms may draw from for a while: torch's, NumPy's, Python's."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed every accelerator, which takes half a millisecond.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002


def adjust_colours(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Apply torchvision's saturation, contrast and brightness adjustments as one linear map.

    The result is rounded and clamped once, at the end; this takes a fifth of the time of the three.

    Args:
        image: uint8 (C, H, W).
        brightness, contrast, saturation: factors; 1 changes nothing.

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


def mean_colour(channels: int) -> list[int]:
    """Return the colour of padding: the mean of RGB, or 115 in each of C other channels."""
    return list(MEAN_COLOUR) if channels == 3 else [115] * channels


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
    colour = torch.tensor(mean_colour(len(image)), dtype=torch.uint8)
    wide = colour.view(-1, 1, 1).repeat(1, height, width)
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
