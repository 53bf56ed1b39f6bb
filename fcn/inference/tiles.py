"""Large images in parts whose scores are, pixel for pixel, those of the whole image.

A score depends on no pixel beyond the net's reach, and the net's pooling windows fall alike at
every multiple of its period. So a window of the image that begins on such a multiple, and holds
the reach around a part, scores that part as the whole image does; where the image ends, the window
ends with it, and meets the same padding. Everything here is along one axis: rows and columns are
cut alike.
"""

from itertools import pairwise
from math import ceil

import torch
from torch import Tensor

from fcn.config import ConfigError
from fcn.models.fcn import FCN


def parts(length: int, side: int | None, model: FCN, scale: float = 1) -> list[slice]:
    """Cuts 0..length into the fewest parts, even to a pixel, whose windows are at most `side` long.

    Args: side: None, or at least the length, for one part. scale: the largest that a part is to be
        looked at in; its window counts at that size.
    Raises: ConfigError: side leaves no room for a part beside its surroundings.
    """
    if side is None or length * max(scale, 1) <= side:
        return [slice(0, length)]
    surroundings = 2 * model.reach + model.period + 1  # 1: of `sample`
    room = int((side - surroundings) / max(scale, 1))
    if room < model.period:
        least = surroundings + ceil(model.period * max(scale, 1))
        raise ConfigError(
            f"tile={side} is too small: scores of this net depend on {model.reach} pixels to each "
            f"side; give at least {least}, or tile=null for whole images"
        )
    count = -(-length // room)
    cuts = [length * i // count for i in range(count + 1)]
    return [slice(*ends) for ends in pairwise(cuts)]


def window(part: slice, length: int, model: FCN) -> slice:
    """What of an image `length` long decides the scores of a part of it."""
    start = max(0, part.start - model.reach) // model.period * model.period
    return slice(start, min(length, part.stop + model.reach))


def places(part: slice, length: int, scaled: int) -> Tensor:
    """Where the pixels of a part lie in the image resized from `length` to `scaled`: float64."""
    pixels = torch.arange(part.start, part.stop, dtype=torch.float64)
    return ((pixels + 0.5) * (scaled / length) - 0.5).clamp(0, scaled - 1)


def around(places: Tensor, scaled: int) -> slice:
    """The pixels that values at these places, in ascending order, are interpolated from."""
    return slice(int(places[0]), min(int(places[-1]) + 2, scaled))


def sample(score: Tensor, places: Tensor, dim: int) -> Tensor:
    """Values of `score` at fractional indices along an axis, bilinear."""
    low = places.long()
    high = (low + 1).clamp(max=score.shape[dim] - 1)
    weight = (places - low).to(score).view(-1, *[1] * (-1 - dim))
    low, high = low.to(score.device), high.to(score.device)
    return torch.lerp(score.index_select(dim, low), score.index_select(dim, high), weight)
