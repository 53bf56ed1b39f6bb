"""Cutting an image into tiles whose scores are those of the whole image.

A score depends on no pixel beyond the network's reach, and shifting an image by a multiple of the
network's period shifts its scores alike. So a window that starts on such a multiple and contains
the reach around a tile gives that tile the same scores as the whole image does. At the image's
edges the window ends with the image and meets the same padding. The functions work along one axis:
rows and columns are cut in the same way.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fcn.errors import ConfigError
from fcn.models.fcn import FCN

TILE = 1280  # pixels: longest side that goes through the network at once


def tiles(length: int, side: int | None, model: FCN, scale: float = 1) -> list[slice]:
    """Cut 0..length into the fewest tiles whose windows are at most `side` long.

    All but the last are of one size, a multiple of the period, so that most windows are of one size
    too: PyTorch's kernels keep memory for every size that they have met.

    Args:
        length: rows or columns of the image.
        side: longest side of a window; None gives one tile.
        model: the network, whose reach and period decide the overlap.
        scale: largest factor by which the image is resized; a window counts at that size.

    Raises:
        ConfigError: side leaves no room for a tile next to its surroundings.
    """
    if side is None or length * max(scale, 1) <= side:
        return [slice(0, length)]
    surroundings = 2 * model.reach + model.period + 1  # 1: the neighbour that interpolation reads
    room = int((side - surroundings) / max(scale, 1)) // model.period * model.period
    if room < model.period:
        least = surroundings + math.ceil(model.period * max(scale, 1))
        raise ConfigError(
            f"tile={side} is too small: a score of this network depends on {model.reach} pixels to "
            f"each side; use at least {least}, or tile=null for whole images"
        )
    count = -(-length // room)
    step = -(-length // (count * model.period)) * model.period
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def window(part: slice, length: int, model: FCN) -> slice:
    """Return the pixels of an image `length` long that decide the scores of a part of it."""
    start = max(0, part.start - model.reach) // model.period * model.period
    return slice(start, min(length, part.stop + model.reach))


def positions(tile: slice, length: int, scaled: int) -> Tensor:
    """Return where a tile's pixels lie in the image resized from `length` to `scaled`: float64."""
    pixels = torch.arange(tile.start, tile.stop, dtype=torch.float64)
    return ((pixels + 0.5) * (scaled / length) - 0.5).clamp(0, scaled - 1)


def score_tile(
    score: Callable[[Tensor], Tensor],
    model: FCN,
    view: Tensor,
    rows: slice,
    columns: slice,
    size: tuple[int, int],
) -> Tensor:
    """Return the scores (B, K, h, w) of one tile, computed from a view of the images of `size`.

    Args:
        score: computes scores from images, with the model.
        model: the network.
        view: the images (B, C, H', W'), resized or not.
        rows: of the tile, in the images.
        columns: likewise.
        size: (H, W).
    """
    places, windows = [], []
    for tile, length, scaled in zip((rows, columns), size, view.shape[-2:], strict=True):
        at = positions(tile, length, scaled)
        read = slice(int(at[0]), min(int(at[-1]) + 2, scaled))  # with interpolation's neighbour
        places.append(at)
        windows.append(window(read, scaled, model))
    result = score(view[..., windows[0], windows[1]])
    for dim, at, seen in zip((-2, -1), places, windows, strict=True):
        if view.shape[-2:] == size:
            result = result.narrow(dim, int(at[0]) - seen.start, len(at))
        else:
            result = interpolate(result, at - seen.start, dim)
    return result


def interpolate(score: Tensor, at: Tensor, dim: int) -> Tensor:
    """Return the values of `score` at fractional indices along a dim, interpolated linearly.

    Args:
        score: float, of any shape with `dim`.
        at: float64 (N,), indices along `dim`.
        dim: negative.

    Returns:
        float, N long along `dim`.
    """
    low = at.long()
    high = (low + 1).clamp(max=score.shape[dim] - 1)
    weight = (at - low).to(score).view(-1, *[1] * (-1 - dim))
    low, high = low.to(score.device), high.to(score.device)
    return torch.lerp(score.index_select(dim, low), score.index_select(dim, high), weight)


def resize(images: Tensor, scale: float) -> Tensor:
    """Resize images (B, C, H, W), bilinear with antialiasing, in their own dtype."""
    height, width = images.shape[-2:]
    size = max(1, round(height * scale)), max(1, round(width * scale))
    if size == (height, width):
        return images
    resized = F.interpolate(images, size, mode="bilinear", antialias=True)
    return resized.clamp(max=1) if resized.is_floating_point() else resized  # white is rounded up
