"""Images and masks on disk as pairs: listed, read, and checked when read."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from fcn.config import VOID, UserError


class DataError(UserError, ValueError):
    """A data set that is not there, or a file of it that cannot be used."""


@dataclass(frozen=True)
class Pair:
    """One image and its mask; `id` is the name that predictions and lists go by."""

    id: str
    image: Path
    mask: Path


class SegmentationFiles(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of files as (image, target).

    Args:
        pairs: in the order of the split's list.
        classes: names, background first; their number is K.
        ignore_index: the masks' void label.
        name: of data set and split, for messages.
    Item: image uint8 (3, H, W), RGB; target uint8 (H, W), 0..K-1 and 255 = void.
    Raises: DataError: no pairs, or an id twice; when read: a file missing or unreadable, sizes that
        differ, a label out of range.
    """

    def __init__(
        self, pairs: Sequence[Pair], classes: Sequence[str], ignore_index: int, name: str
    ) -> None:
        if not pairs:
            raise DataError(f"{name}: no images listed")
        self.pairs, self.classes, self.name = list(pairs), list(classes), name
        self.ids = [pair.id for pair in pairs]
        if len(set(self.ids)) < len(self.ids):
            twice = next(i for i in self.ids if self.ids.count(i) > 1)
            raise DataError(f"{name}: {twice} is listed twice; a list must name each image once")
        self.ignore_index = ignore_index

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.pairs[index]
        image = read_image(pair.image)
        target = read_mask(pair.mask, len(self.classes), self.ignore_index)
        if image.shape[1:] != target.shape:
            (h, w), (mh, mw) = image.shape[1:], target.shape
            raise DataError(
                f"{pair.mask}: mask is {mw} x {mh} but its image {pair.image} is {w} x {h}; "
                "they must be of one size"
            )
        return image, target

    def labelled(self) -> bool:
        """Whether there are masks: of a test split, none may be."""
        return any(pair.mask.is_file() for pair in self.pairs)

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of every image as stored, from the files' headers alone."""
        return [_header(pair.image) for pair in self.pairs]

    def fingerprint(self) -> str:
        """sha256 of the id list, one a line: says which images a number was measured on."""
        return hashlib.sha256("".join(f"{i}\n" for i in self.ids).encode()).hexdigest()


def read_image(path: Path) -> Tensor:
    """Any image Pillow reads, turned upright by its EXIF orientation: uint8 (3, H, W), RGB.

    Raises: DataError: missing or unreadable.
    """
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            array = np.array(upright.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"{path}: image not found") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, "image", error) from None
    return torch.from_numpy(array).permute(2, 0, 1)


def read_mask(path: Path, num_classes: int, ignore_index: int) -> Tensor:
    """A single-channel mask of labels, or SBD's .mat file: uint8 (H, W), `ignore_index` as 255.

    Raises: DataError: missing, unreadable, not single-channel 8-bit, or a label out of range.
    """
    labels = _mat_labels(path) if path.suffix == ".mat" else _image_labels(path)
    table = np.full(256, VOID, np.uint8)
    table[:num_classes] = np.arange(num_classes)
    target = table[labels]
    void = labels == ignore_index
    if np.any((target == VOID) != void):
        bad = sorted(set(np.unique(labels)) - set(range(num_classes)) - {ignore_index})
        if bad:
            raise DataError(
                f"{path}: label {bad[0]} is out of range: {num_classes} classes are 0.."
                f"{num_classes - 1}, void is {ignore_index} (data.classes, data.ignore_index)"
            )
        target[void] = VOID  # a void label below the number of classes
    return torch.from_numpy(target)


def _image_labels(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as file:
            mode = file.mode
            labels = np.array(file)
    except FileNotFoundError:
        raise DataError(f"{path}: mask not found") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, "mask", error) from None
    if mode not in ("P", "L"):
        raise DataError(
            f"{path}: a mask must be a palette or grey 8-bit image of labels, this one is {mode}"
        )
    return labels


def _mat_labels(path: Path) -> np.ndarray:
    from scipy.io import loadmat  # slow to import, and only SBD needs it

    try:
        labels = loadmat(path)["GTcls"]["Segmentation"][0, 0]
    except FileNotFoundError:
        raise DataError(f"{path}: mask not found") from None
    except Exception as error:  # a damaged .mat file makes scipy raise almost anything
        raise _unreadable(path, "mask", error) from None
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise DataError(f"{path}: GTcls.Segmentation must be 2-D uint8, got {labels.dtype}")
    return labels


def _header(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as file:
            width, height = file.size
            turned = file.getexif().get(0x0112, 1) >= 5  # EXIF orientation 5..8: on its side
    except FileNotFoundError:
        raise DataError(f"{path}: image not found") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, "image", error) from None
    return (height, width) if turned else (width, height)


def _unreadable(path: Path, kind: str, error: Exception) -> DataError:
    reason = "not an image file" if isinstance(error, UnidentifiedImageError) else str(error)
    return DataError(f"{path}: unreadable {kind} ({reason}); replace it or take it off the list")
