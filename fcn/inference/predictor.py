"""From an image to its mask."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fcn.data.reading import read_image
from fcn.inference import checkpoint


class Predictor:
    """A checkpoint, ready to segment images of any size.

    Args: path: a .ckpt or .safetensors of this project. device: where to run.
    Attributes: model; classes, the names of the labels.
    Raises: CheckpointError: the file holds no model.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        trained = checkpoint.read(path)
        self.classes = trained.classes
        self.device = torch.device(device)
        self.model = trained.model().to(self.device)

    @torch.inference_mode()
    def __call__(self, image: str | Path | Image.Image | np.ndarray | Tensor) -> np.ndarray:
        """The label of every pixel.

        Args: image: a file; a PIL image; an array uint8 (H, W, 3); or a tensor (3, H, W), uint8 or
            float in [0, 1]. All RGB.
        Returns: uint8 (H, W), 0..K-1.
        Raises: DataError: an unreadable file. ValueError: another shape or kind.
        """
        pixels = self._pixels(image)
        return self.model(pixels[None].to(self.device))[0].argmax(0).to(torch.uint8).cpu().numpy()

    def _pixels(self, image: str | Path | Image.Image | np.ndarray | Tensor) -> Tensor:
        if isinstance(image, str | Path):
            image = read_image(Path(image))
        elif isinstance(image, Image.Image):
            upright = ImageOps.exif_transpose(image) or image
            image = np.array(upright.convert("RGB"))
        if isinstance(image, np.ndarray):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(f"image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
            image = torch.from_numpy(image).permute(2, 0, 1)
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"image must be (3, H, W), got {tuple(image.shape)}")
        return image.float() / 255 if image.dtype == torch.uint8 else image.float()
