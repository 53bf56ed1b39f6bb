"""Predict the mask of an image, in one pass or in tiles that give the same mask.

A score depends on no pixel beyond the network's reach, and shifting an image by a multiple of the
network's period shifts its scores alike. So a window that starts on such a multiple and contains
the reach around a tile gives that tile the same scores as the whole image does. At the image's
edges the window ends with the image and meets the same padding. The functions below work along one
axis: rows and columns are cut in the same way.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fcn import checkpoint
from fcn.data.images import as_tensor, from_pillow, read_image, to_uint8
from fcn.dataset_info import DatasetInfo
from fcn.device import InferenceModel, pick_device, resolve_precision
from fcn.errors import ConfigError
from fcn.models.fcn import FCN
from fcn.pictures import visualize

TILE = 2048  # pixels: longest side that goes through the network at once
ImageLike = str | Path | Image.Image | np.ndarray | Tensor


class Predictor:
    """A checkpoint, ready to segment images of any size.

    Args:
        path: a .ckpt, a .safetensors or a run's folder.
        device: auto, cpu, cuda, mps; auto is a GPU where there is one.
        precision: a name in `fcn.device.PRECISIONS`; auto: as the model was trained, where the
            device computes so.
        tile: longest side, in pixels, that goes through the network at once; larger images are cut
            into overlapping windows, for the same scores in bounded memory. auto is `TILE`, None
            never cuts.
        flip: average over the image and its mirror image.
        scales: average over the image resized by each of these factors.

    Attributes:
        model: the `InferenceModel`.
        classes: the names of the labels.
        info: their colours, and what else is known about the data, see `fcn.config.DatasetInfo`.

    Raises:
        CheckpointError: the path holds no model.
        ConfigError: an argument outside its range.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "auto",
        *,
        precision: str = "auto",
        tile: int | str | None = "auto",
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        if not scales or min(scales) <= 0:
            raise ConfigError(f"scales must be positive factors, got {list(scales)}")
        if isinstance(tile, str) and tile != "auto":
            raise ConfigError(f"tile must be auto, null or a number of pixels, got {tile}")
        trained = checkpoint.read(path)
        self.info, self.classes = trained.info, trained.classes
        chosen = pick_device(device)
        computed = resolve_precision(
            precision, chosen, trained=trained.about.get("precision"), key="precision"
        )
        self.model = InferenceModel(trained.model(), chosen, computed)
        self.tile = TILE if isinstance(tile, str) else tile
        self.flip, self.scales = flip, list(scales)
        self._tiles(2**20)  # raises an error at once if the tile is too small for this network

    def __call__(self, image: ImageLike) -> np.ndarray:
        """Return the label of every pixel of one image.

        Args:
            image: a file; a PIL image as Image.open returns it, since Pillow reduces deep colours
                to 8 bits; an array (H, W, C) or a tensor (C, H, W) of the model's channels, RGB if
                C = 3. Deeper pixels than 8 bits are scaled by the value_range of the model's data;
                without one, uint16 counts to 65535, and floats are in [0, 1].

        Returns:
            uint8 (H, W), 0..K-1.

        Raises:
            DataError: the file cannot be read, or lacks the bands that the model takes.
            ValueError: an invalid shape or range.
            TypeError: any other type.
        """
        return self.segment(self._as_tensor(image))[0]

    def probabilities(self, image: ImageLike) -> np.ndarray:
        """Return every class's probability at every pixel, float16 (K, H, W); see `__call__`."""
        kept = self.segment(self._as_tensor(image), probabilities=True)[1]
        assert kept is not None
        return kept

    @torch.inference_mode()
    def segment(
        self, image: Tensor, *, probabilities: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return labels, uint8 (H, W), and if asked for probabilities, float16 (K, H, W).

        Args:
            image: (C, H, W) on the CPU, uint8 or float in [0, 1].
            probabilities: return them; otherwise None.
        """
        height, width = image.shape[-2:]
        mask = torch.empty((height, width), dtype=torch.uint8)
        shape = (len(self.classes) if probabilities else 0, height, width)
        kept = torch.empty(shape, dtype=torch.float16)
        resized = [resize(image[None], scale) for scale in self.scales]
        views = [[view, view.flip(-1)] if self.flip else [view] for view in resized]
        averaged = self.flip or len(views) > 1
        for rows in self._tiles(height):
            for columns in self._tiles(width):
                if averaged:
                    score = self._mean_probabilities(views, rows, columns, (height, width))
                else:
                    score = self._score(views[0][0], rows, columns, (height, width))
                mask[rows, columns] = score[0].max(0).indices.to("cpu", torch.uint8)
                if probabilities:
                    score = score if averaged else score.softmax(1)
                    kept[:, rows, columns] = score[0].to("cpu", torch.float16)
        return mask.numpy(), kept.numpy() if probabilities else None

    def _as_tensor(self, image: ImageLike) -> Tensor:
        """Return any image that `__call__` takes as (C, H, W) on the CPU, uint8 or float32."""
        channels, tensor = self.model.model.in_channels, read_any(image, self.info)
        if tensor.ndim != 3 or len(tensor) != channels:
            raise ValueError(
                f"image must be an array (H, W, {channels}) or a tensor ({channels}, H, W); "
                f"channels first, this is {tuple(tensor.shape)}"
            )
        return tensor

    def _tiles(self, length: int) -> list[slice]:
        return tiles(length, self.tile, self.model.model, max(self.scales))

    def _mean_probabilities(
        self, views: list[list[Tensor]], rows: slice, columns: slice, size: tuple[int, int]
    ) -> Tensor:
        """Return the probabilities (1, K, h, w) of a tile, averaged over scales and flips."""
        mirrored = slice(size[1] - columns.stop, size[1] - columns.start)
        total = torch.zeros((), device=self.model.device)
        for view, *flipped in views:
            one = self._score(view, rows, columns, size).softmax(1)
            for mirror in flipped:
                one += self._score(mirror, rows, mirrored, size).softmax(1).flip(-1)
            total = total + one
        return total / (len(views) * (1 + self.flip))

    def _score(self, view: Tensor, rows: slice, columns: slice, size: tuple[int, int]) -> Tensor:
        """Return the scores (1, K, h, w) of a tile of an image of `size`, seen in a view of it."""
        places, windows = [], []
        for tile, length, scaled in zip((rows, columns), size, view.shape[-2:], strict=True):
            at = positions(tile, length, scaled)
            read = slice(int(at[0]), min(int(at[-1]) + 2, scaled))  # with interpolation's neighbour
            places.append(at)
            windows.append(window(read, scaled, self.model.model))
        score = self.model.score(view[..., windows[0], windows[1]])
        for dim, at, seen in zip((-2, -1), places, windows, strict=True):
            if view.shape[-2:] == size:
                score = score.narrow(dim, int(at[0]) - seen.start, len(at))
            else:
                score = interpolate(score, at - seen.start, dim)
        return score


def read_any(image: ImageLike, info: DatasetInfo) -> Tensor:
    """Return an image as (C, H, W) on the CPU, uint8 or float in [0, 1].

    Raises:
        DataError: the file cannot be read, or lacks the bands of `info`.
        ValueError: values that do not fit `info`.
        TypeError: any other type.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image), info)
    if isinstance(image, Image.Image):
        return as_tensor(from_pillow(image), info)
    if isinstance(image, np.ndarray):
        # A copy, as PyTorch takes neither read-only arrays nor negative strides.
        image = torch.from_numpy(image.copy()).movedim(-1, 0)
    if not isinstance(image, Tensor):
        raise TypeError(
            "image must be a path, a PIL image, an array (H, W, C) or a tensor (C, H, W), "
            f"got {type(image).__name__}; call the predictor once for each image"
        )
    if image.is_floating_point():
        image = image.cpu().float()
        if info.value_range is None:
            return image
    return torch.from_numpy(to_uint8(image.cpu().numpy(), info.value_range))


def overlay(
    image: ImageLike,
    mask: np.ndarray,
    alpha: float = 0.55,
    info: DatasetInfo = visualize.PLAIN,
) -> np.ndarray:
    """Blend the colours of a mask over its image, with a white line along the inside of objects.

    Args:
        image: a file or a PIL image, which is turned by its EXIF orientation as the predictor
            turns it; an array (H, W) or (H, W, C), or a tensor (C, H, W), C = 1, 3 or more.
        mask: integers (H, W) in 0..255, such as `Predictor` returns.
        alpha: weight of the colour, 0..1; ignored pixels get a third of it, background none.
        info: names and colours of the labels, range and bands of the image; `Predictor.info`.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DataError: the file cannot be read.
        ValueError: image and mask differ in size.
    """
    if isinstance(image, np.ndarray) and image.ndim == 2:
        image = image[..., None]
    pixels = read_any(image, info)
    if pixels.is_floating_point():
        pixels = (pixels * 255).round().clamp(0, 255).byte()
    return visualize.overlay(visualize.as_rgb(pixels), mask, alpha, info)


def tiles(length: int, side: int | None, model: FCN, scale: float = 1) -> list[slice]:
    """Cut 0..length into the fewest tiles, of equal size within a pixel, that fit their windows.

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
    room = int((side - surroundings) / max(scale, 1))
    if room < model.period:
        least = surroundings + math.ceil(model.period * max(scale, 1))
        raise ConfigError(
            f"tile={side} is too small: a score of this network depends on {model.reach} pixels to "
            f"each side; use at least {least}, or tile=null for whole images"
        )
    count = -(-length // room)
    return [slice(*ends) for ends in pairwise(length * i // count for i in range(count + 1))]


def window(part: slice, length: int, model: FCN) -> slice:
    """Return the pixels of an image `length` long that decide the scores of a part of it."""
    start = max(0, part.start - model.reach) // model.period * model.period
    return slice(start, min(length, part.stop + model.reach))


def positions(tile: slice, length: int, scaled: int) -> Tensor:
    """Return where a tile's pixels lie in the image resized from `length` to `scaled`: float64."""
    pixels = torch.arange(tile.start, tile.stop, dtype=torch.float64)
    return ((pixels + 0.5) * (scaled / length) - 0.5).clamp(0, scaled - 1)


def interpolate(score: Tensor, at: Tensor, dim: int) -> Tensor:
    """Return the values of `score` at fractional indices `at` along a negative dim, bilinear."""
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
