"""Images and masks as pairs: listed, read, and checked when read."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import BinaryIO, Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from fcn.config import VOID, UserError

Errors = type[Exception] | tuple[type[Exception], ...]
# What Pillow raises of a file that it cannot read.
OF_PILLOW = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class DataError(UserError, ValueError):
    """A data set that is not there, or a file of it that cannot be used."""


class Source(Protocol):
    """Where one image or mask lies: a Path, or a part of something larger; str() names it."""

    @property
    def name(self) -> str: ...

    @property
    def suffix(self) -> str: ...

    def open(self, mode: Literal["rb"]) -> BinaryIO: ...


@dataclass(frozen=True)
class Held:
    """A file's bytes in memory; `where` they came from names them."""

    where: str
    data: bytes

    def __str__(self) -> str:
        return self.where

    @property
    def name(self) -> str:
        return PurePosixPath(self.where).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.where).suffix

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        return BytesIO(self.data)


@dataclass(frozen=True)
class Pair:
    """One image and its mask; `id` is the name that predictions and lists go by."""

    id: str
    image: Source
    mask: Source


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
        return read_pair(self.fetch(index), len(self.classes), self.ignore_index)

    def fetch(self, index: int) -> Pair:
        """The pair to read from; one that lies far away comes whole, at once."""
        return self.pairs[index]

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of every image as stored, from the files' headers alone."""
        return [image_size(pair.image) for pair in self.pairs]

    def fingerprint(self) -> str:
        """sha256 of the id list, one a line: says which images a number was measured on."""
        return hashlib.sha256("".join(f"{i}\n" for i in self.ids).encode()).hexdigest()


def read_pair(pair: Pair, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Image and mask as `read_image` and `read_mask` give them, of one size.

    Raises: DataError: one of them cannot be used, or their sizes differ.
    """
    image = read_image(pair.image)
    target = read_mask(pair.mask, num_classes, ignore_index)
    if image.shape[1:] != target.shape:
        (h, w), (mh, mw) = image.shape[1:], target.shape
        raise DataError(
            f"{pair.mask}: mask is {mw} x {mh} but its image {pair.image} is {w} x {h}; "
            "they must be of one size"
        )
    return image, target


def read_image(source: Source) -> Tensor:
    """Any image Pillow reads, turned upright by its EXIF orientation: uint8 (3, H, W), RGB.

    Raises: DataError: missing or unreadable.
    """
    with _opened(source, "image") as stream, Image.open(stream) as file:
        upright = ImageOps.exif_transpose(file)
        array = np.array(upright.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1)


def image_size(source: Source) -> tuple[int, int]:
    """(width, height) of an image as `read_image` gives it, from its header alone.

    Raises: DataError: missing or unreadable.
    """
    with _opened(source, "image") as stream, Image.open(stream) as file:
        width, height = file.size
        turned = file.getexif().get(0x0112, 1) >= 5  # EXIF orientation 5..8: on its side
    return (height, width) if turned else (width, height)


def read_mask(source: Source, num_classes: int, ignore_index: int) -> Tensor:
    """A single-channel mask of labels, or SBD's .mat file: uint8 (H, W), `ignore_index` as 255.

    Raises: DataError: missing, unreadable, not single-channel 8-bit, or a label out of range.
    """
    labels = mat_labels(source) if source.suffix == ".mat" else _image_labels(source)
    table = np.full(256, VOID, np.uint8)
    table[:num_classes] = np.arange(num_classes)
    target = table[labels]
    void = labels == ignore_index
    if np.any((target == VOID) != void):
        bad = sorted(set(np.unique(labels)) - set(range(num_classes)) - {ignore_index})
        if bad:
            raise DataError(
                f"{source}: label {bad[0]} is out of range: {num_classes} classes are 0.."
                f"{num_classes - 1}, void is {ignore_index} (data.classes, data.ignore_index)"
            )
        target[void] = VOID  # a void label below the number of classes
    return torch.from_numpy(target)


def _image_labels(source: Source) -> np.ndarray:
    with _opened(source, "mask") as stream, Image.open(stream) as file:
        mode = file.mode
        labels = np.array(file)
    if mode not in ("P", "L"):
        raise DataError(
            f"{source}: a mask must be a palette or grey 8-bit image of labels, this one is {mode}"
        )
    return labels


def mat_labels(source: Source) -> np.ndarray:
    """The labels of one of SBD's .mat files, uint8 (H, W).

    Raises: DataError: missing, unreadable, or of another kind.
    """
    from scipy.io import loadmat  # slow to import, and only SBD needs it

    with _opened(source, "mask", Exception) as stream:  # damaged, it makes scipy raise anything
        labels = loadmat(stream)["GTcls"]["Segmentation"][0, 0]
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise DataError(f"{source}: GTcls.Segmentation must be 2-D uint8, got {labels.dtype}")
    return labels


def hold(source: Source, kind: str) -> Held:
    """Its bytes, as they are. Raises: DataError: missing or unreadable; `kind` says of what."""
    with _opened(source, kind) as stream:
        return Held(str(source), stream.read())


@contextmanager
def _opened(source: Source, kind: str, errors: Errors = OF_PILLOW) -> Iterator[BinaryIO]:
    """Its bytes to read; those `errors` of whoever reads them come out as a DataError."""
    try:
        with source.open("rb") as stream:
            yield stream
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{source}: {kind} not found") from None
    except errors as error:
        reason = "not an image file" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(
            f"{source}: unreadable {kind} ({reason}); replace it or take it off the list"
        ) from None
