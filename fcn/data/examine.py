"""One image and its mask, read as training reads them, and what there is to say of them.

Beside `audit`, since each of its processes imports this room, and should start quickly.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from fcn.data.files import Pair, refuse_mismatch
from fcn.data.reading import DataError, hold, read_image, read_mask


@dataclass(frozen=True)
class Examined:
    """What one image and its mask came to. Without problems, nothing of it is None."""

    problems: list[str]
    size: tuple[int, int] | None = None  # width, height, upright
    moments: np.ndarray | None = None  # float64 (2, 3): sums of RGB in [0, 1], and of its squares
    labels: np.ndarray | None = None  # int64 (256,): pixels of each label, void last
    hashes: tuple[bytes, ...] = ()  # of the image's bytes, and of its pixels


def examine(pair: Pair, num_classes: int, ignore_index: int) -> Examined:
    """Reads one pair as training would, and goes on where training would stop."""
    problems: list[str] = []
    image = target = None
    try:
        held = hold(pair.image, "image")
        image = read_image(held)
    except DataError as error:
        problems.append(str(error))
    try:
        target = read_mask(pair.mask, num_classes, ignore_index)
    except DataError as error:
        problems.append(str(error))
    if image is None:
        return Examined(problems)
    if target is not None:
        try:
            pair.check(image)
            refuse_mismatch(pair, image, target)
        except DataError as error:
            problems.append(str(error))
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())  # H,W,3
    of_pixels = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    hashes = (hashlib.blake2b(held.data).digest(), of_pixels)
    if problems or target is None:
        return Examined(problems, hashes=hashes)
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(3)], 1)
    return Examined(
        problems,
        (pixels.shape[1], pixels.shape[0]),
        np.stack([levels @ counts, levels**2 @ counts]),
        np.bincount(target.numpy().ravel(), minlength=256),
        hashes,
    )
