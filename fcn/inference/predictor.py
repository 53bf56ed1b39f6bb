"""From an image to its mask."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fcn.config import ConfigError
from fcn.data.reading import LARGE, read_image, upright_rgb
from fcn.inference import checkpoint
from fcn.inference.evaluation import pick_device, ready, uses_bf16
from fcn.inference.tiles import around, parts, places, sample, window

TILE = 2048  # pixels: side of the largest image, or part of one, that goes through the net at once
ImageLike = str | Path | Image.Image | np.ndarray | Tensor


class Predictor:
    """A checkpoint, ready to segment images of any size.

    Args:
        path: a .ckpt or .safetensors of this project.
        device: where to run: auto, cpu, cuda, mps; auto is a GPU where there is one.
        precision: 32-true, bf16-mixed; auto: as it was trained.
        tile: an image with a longer side than this goes through the net in overlapping windows of
            at most this side, for the same scores in bounded memory; auto is `TILE`; None: never.
        flip: average over the image and its mirror image.
        scales: average over the image resized by each of these.
    Attributes: model; classes, the names of the labels.
    Raises: CheckpointError: the file holds no model. ConfigError: an argument outside the above.
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
        self.classes = trained.classes
        self.device = pick_device(device)
        self.bf16 = uses_bf16(precision, trained.about, self.device)
        self.model = trained.model()
        ready(self.model, self.device, self.bf16)
        self.tile = TILE if isinstance(tile, str) else tile
        self.flip, self.scales = flip, list(scales)
        parts(2**20, self.tile, self.model, max(scales))  # a tile too small is refused at once

    def __call__(self, image: ImageLike) -> np.ndarray:
        """The label of every pixel.

        Args: image: a file; a PIL image; an array uint8 (H, W, 3); or a tensor (3, H, W), uint8 or
            float in [0, 1]. Arrays and tensors are RGB.
        Returns: uint8 (H, W), 0..K-1.
        Raises: DataError: an unreadable file. ValueError: a shape, dtype or range is not so.
            TypeError: something else.
        """
        return self.segment(pixels(image)[None])[0][0].numpy()

    def probabilities(self, image: ImageLike) -> np.ndarray:
        """The probability of every class at every pixel: float16 (K, H, W). Else as the call."""
        kept = self.segment(pixels(image)[None], probabilities=True)[1]
        assert kept is not None
        return kept[0].numpy()

    @torch.inference_mode()
    def segment(
        self, images: Tensor, *, probabilities: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The labels, and if asked for the probabilities, of images of one size.

        Args: images: uint8, or float in [0, 1], (B, 3, H, W), RGB, on the CPU.
        Returns: uint8 (B, H, W); float16 (B, K, H, W) or None. Both on the CPU.
        """
        if self.device.type == "cpu" and len(images) > 1:  # as fcn.inference.evaluation.predict
            each = [self.segment(one, probabilities=probabilities) for one in images.split(1)]
            kept = torch.cat([k for _, k in each if k is not None]) if probabilities else None
            return torch.cat([mask for mask, _ in each]), kept
        count, _, height, width = images.shape
        masks = torch.empty((count, height, width), dtype=torch.uint8)
        shape = (count, len(self.classes), height, width)
        kept = torch.empty(shape, dtype=torch.float16) if probabilities else None
        views = [resize(images, scale) for scale in self.scales]
        for rows in parts(height, self.tile, self.model, max(self.scales)):
            for columns in parts(width, self.tile, self.model, max(self.scales)):
                score = self._averaged(views, rows, columns, (height, width))
                masks[:, rows, columns] = score.max(1).indices.to("cpu", torch.uint8)
                if kept is not None:
                    score = score if self._averages else score.softmax(1)
                    kept[:, :, rows, columns] = score.to("cpu", torch.float16)
        return masks, kept

    @property
    def _averages(self) -> bool:
        return self.flip or len(self.scales) > 1

    def _averaged(
        self, views: list[Tensor], rows: slice, columns: slice, size: tuple[int, int]
    ) -> Tensor:
        """(B, K, h, w) of a part of the image: mean probabilities, or the scores of one view."""
        if not self._averages:
            return self._score(views[0], rows, columns, size)
        mirrored = slice(size[1] - columns.stop, size[1] - columns.start)
        total: Tensor | None = None
        for view in views:
            one = self._score(view, rows, columns, size).softmax(1)
            if self.flip:
                one += self._score(view, rows, mirrored, size, mirror=True).softmax(1).flip(-1)
            total = one if total is None else total.add_(one)
        assert total is not None
        return total.div_(len(views) * (1 + self.flip))

    def _score(
        self,
        view: Tensor,
        rows: slice,
        columns: slice,
        size: tuple[int, int],
        *,
        mirror: bool = False,
    ) -> Tensor:
        """The scores (B, K, h, w) of a part of an image of `size`, as seen in a view of it.

        Args: view: the image, resized or not. rows, columns: the part; if `mirror`, of the mirror
            image.
        """
        height, width = view.shape[-2:]
        at = places(rows, size[0], height), places(columns, size[1], width)
        needed = around(at[0], height), around(at[1], width)
        y, x = window(needed[0], height, self.model), window(needed[1], width, self.model)
        cut = slice(width - x.stop, width - x.start) if mirror else x
        image = view[..., y, cut]
        # Only the window becomes floating-point: an image of many megapixels stays in bytes.
        if image.dtype == torch.uint8:
            image = image.to(self.device, torch.float32).div_(255)
        image = image.flip(-1) if mirror else image
        image = image.to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            score = self.model(image)
        score = score[
            ...,
            needed[0].start - y.start : needed[0].stop - y.start,
            needed[1].start - x.start : needed[1].stop - x.start,
        ]
        if (height, width) == size:
            return score[..., : len(at[0]), : len(at[1])]
        for dim in (-2, -1):
            score = sample(score, at[dim] - needed[dim].start, dim)
        return score


def resize(images: Tensor, scale: float) -> Tensor:
    """(B, 3, H, W), bilinear with antialiasing, in the images' own dtype."""
    height, width = images.shape[-2:]
    size = max(1, round(height * scale)), max(1, round(width * scale))
    if size == (height, width):
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def pixels(image: ImageLike) -> Tensor:
    """Anything that `Predictor` takes as (3, H, W) on the CPU, uint8, or float32 in [0, 1]."""
    if isinstance(image, str | Path):
        return read_image(Path(image), LARGE)
    if isinstance(image, Image.Image):
        image = upright_rgb(image.copy())
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if not isinstance(image, Tensor):
        raise TypeError(
            "image must be a path, a PIL image, an array uint8 (H, W, 3) or a tensor (3, H, W), "
            f"got {type(image).__name__}"
        )
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"image must be (3, H, W), got {tuple(image.shape)}")
    if image.dtype == torch.uint8:
        return image.cpu()
    if not image.is_floating_point() or image.min() < 0 or image.max() > 1:
        raise ValueError(
            f"image must be uint8 or float in [0, 1], got {image.dtype} in "
            f"{image.min():g}..{image.max():g}"
        )
    return image.cpu().float()
