"""Predict the mask of an image, whole or in tiles (`fcn.models.tiles`) that give the same mask."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fcn import checkpoint
from fcn.data.images import as_tensor, read_image, to_uint8
from fcn.data.pixels import upright_pixels
from fcn.dataset_info import DatasetInfo
from fcn.device import InferenceModel, pick_device, resolve_precision
from fcn.errors import ConfigError
from fcn.models.tiles import TILE
from fcn.pictures import visualize

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


class Predictor:
    """A checkpoint, ready to segment images of any size.

    Args:
        path: a .ckpt, a .safetensors, a run's folder, or hf://USER/NAME.
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
        info: their colours, and what else is known about the data, see `DatasetInfo`.

    Raises:
        CheckpointError: the path holds no model.
        ConfigError: an argument outside its range; a tile too small for the network.
        UserError: the Hub cannot be reached, or has no such model.
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
        if isinstance(tile, str) and tile != "auto":
            raise ConfigError(f"tile must be auto, null or a number of pixels, got {tile}")
        trained = checkpoint.read(path)
        self.info, self.classes = trained.info, trained.classes
        chosen = pick_device(device)
        as_trained = trained.metadata.get("precision")
        computed = resolve_precision(precision, chosen, trained=as_trained, key="precision")
        side = TILE if isinstance(tile, str) else tile
        self.model = InferenceModel(
            trained.model(), chosen, computed, tile=side, flip=flip, scales=scales
        )
        self.model.tiles((2**20, 1))  # an error now if the tile is too small

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
        """Return every class's probability at every pixel, float16 (K, H, W) in 0..1.

        They sum to 1 over K, up to rounding. Arguments and errors: see `__call__`.
        """
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
        for rows, columns, score in self.model.each_tile(image[None]):
            mask[rows, columns] = score[0].max(0).indices.to("cpu", torch.uint8)
            if probabilities:
                score = score if self.model.averages else score.softmax(1)
                kept[:, rows, columns] = score[0].to("cpu", torch.float16)
            del score  # not to be kept while the next ones are computed
        return mask.numpy(), kept.numpy() if probabilities else None

    def _as_tensor(self, image: ImageLike) -> Tensor:
        """Return what `read_any` does, if it has the model's channels."""
        channels, tensor = self.model.model.in_channels, read_any(image, self.info)
        if tensor.ndim != 3 or len(tensor) != channels:
            raise ValueError(
                f"image must be an array (H, W, {channels}) or a tensor ({channels}, H, W); "
                f"channels first, this is {tuple(tensor.shape)}"
            )
        return tensor


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
        return as_tensor(upright_pixels(image), info)
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
            turns it; an array (H, W) or (H, W, C), or a tensor (C, H, W), C = 1, 3 or more: uint8,
            uint16 up to 65535, or float in [0, 1], unless info.value_range says otherwise.
        mask: integers (H, W) in 0..255, such as `Predictor` returns, or bool: labels 0 and 1.
        alpha: weight of the colour, 0..1; ignored pixels get a third of it, background none.
        info: names and colours of the labels, range and bands of the image; `Predictor.info`.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DataError: the file cannot be read, or lacks the bands of `info`.
        ValueError: image and mask differ in size, or mask or alpha is outside the above.
        TypeError: an image of another type.
    """
    if isinstance(image, np.ndarray) and image.ndim == 2:
        image = image[..., None]
    pixels = read_any(image, info)
    if pixels.is_floating_point():
        pixels = (pixels * 255).round().clamp(0, 255).byte()
    return visualize.overlay(visualize.as_rgb(pixels), mask, alpha, info)
