"""Reading an image or a mask, wherever its bytes lie; saying by name what is wrong with it."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fcn.config import VOID, UserError
from fcn.data.mat import segmentation

# No larger image is trained on: the limit past which Pillow warns of a decompression bomb.
MAX_PIXELS = 89_478_485
LARGE = 2**29  # pixels; satellite images are no bombs: up to this many are segmented, in tiles
Image.MAX_IMAGE_PIXELS = LARGE  # of Pillow, which would warn; what is too large is judged below
LARGEST_FILE = 8 * LARGE  # bytes: such an image, unpacked, with four channels of 16 bits
ROWS = 1024  # of an image that are copied at a time: a large one is never held a third time


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


def read_image(source: Source, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Any image Pillow reads, turned upright by its EXIF orientation: uint8 (3, H, W), RGB.

    16-bit grey is scaled to 8 bits; transparency is left out.
    Raises: DataError: missing, unreadable, or of more than `max_pixels`.
    """
    with _image(hold(source, "image"), "image", max_pixels) as file:
        array = upright_rgb(file)
    return torch.from_numpy(array).permute(2, 0, 1)


def upright_rgb(image: Image.Image) -> np.ndarray:
    """An image of any mode, turned upright by its EXIF orientation: uint8 (H, W, 3), RGB.

    The image itself may be turned.
    Raises: ValueError: fractions, or more than 16 bits, whose range nothing tells.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):  # convert() would clip 16 bits to 255, not scale them
        deep = np.asarray(image)
        if image.mode == "F" or deep.min() < 0 or deep.max() > 65535:
            raise ValueError("pixels of more than 16 bits, or fractions; save it with 8 or 16 bits")
        grey = (deep.astype(np.uint32) + 128) // 257  # v / 257, rounded
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # which alone knows a palette's transparency
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.height <= ROWS:
        return np.array(image)
    array = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, ROWS):
        box = (0, top, image.width, min(top + ROWS, image.height))
        array[top : box[3]] = np.asarray(image.crop(box))
    return array


def image_size(source: Source, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of an image as `read_image` gives it, from its header alone.

    Raises: DataError: missing, unreadable, or of more than `max_pixels`.
    """
    with _image(source, "image", max_pixels) as file:
        width, height = file.size
        # Pillow gives a TIFF's size upright already, and would decode a PNG to look for EXIF.
        without = file.format == "TIFF" or (file.format == "PNG" and "exif" not in file.info)
        turned = not without and file.getexif().get(0x0112, 1) >= 5  # on its side
    return (height, width) if turned else (width, height)


def read_mask(source: Source, num_classes: int, ignore_index: int) -> Tensor:
    """A single-channel mask of labels, or SBD's .mat file: uint8 (H, W), `ignore_index` as 255.

    Raises: DataError: missing, unreadable, of more than MAX_PIXELS, not single-channel 8-bit, or a
        label out of range.
    """
    labels = mat_labels(source) if source.suffix == ".mat" else _image_labels(source)
    void = labels == ignore_index
    wrong = (labels >= num_classes) & ~void
    if wrong.any():
        raise DataError(
            f"{source}: label {labels[wrong].min()} is out of range: {num_classes} classes are 0.."
            f"{num_classes - 1}, void is {ignore_index} (data.classes, data.ignore_index)"
        )
    if ignore_index != VOID:
        labels[void] = VOID
    return torch.from_numpy(labels)


def mat_labels(source: Source) -> np.ndarray:
    """The labels of one of SBD's .mat files, uint8 (H, W).

    Raises: DataError: missing, unreadable, or of another kind.
    """
    with _opened(source, "mask") as stream:
        return segmentation(stream.read())


def hold(source: Source, kind: str) -> Held:
    """Its bytes, as they are; decoders are quicker over memory than over a file.

    Raises: DataError: missing or unreadable; `kind` says of what.
    """
    if isinstance(source, Held):
        return source
    with _opened(source, kind) as stream:
        return Held(str(source), stream.read())


def refuse_endless(path: Path, kind: str) -> None:
    """Raises: DataError: a device or a pipe, which may never end, or a file larger than any image.
    OSError: it is not there.
    """
    about, reason = path.stat(), None
    if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
        reason = "a device or a pipe, not a file"
    elif about.st_size > LARGEST_FILE:
        reason = f"{about.st_size:,} bytes, more than any image has"
    if reason is not None:
        raise DataError(f"{path}: unreadable {kind} ({reason}); replace it or take it off the list")


def missing(source: Source, kind: str) -> DataError:
    """What to say of a file that is not there."""
    link = ""
    if isinstance(source, Path) and source.is_symlink():
        link = f" (a symbolic link to {os.readlink(source)}, which is gone)"
    return DataError(f"{source}: {kind} not found{link}; put it there or take it off the list")


def _image_labels(source: Source) -> np.ndarray:
    with _image(hold(source, "mask"), "mask", MAX_PIXELS) as file:
        if file.mode not in ("P", "L"):
            raise DataError(
                f"{source}: a mask must be a palette or grey 8-bit image of labels, this one is "
                f"{file.mode}; save it as such, or take it off the list"
            )
        return np.array(file)


@contextmanager
def _image(source: Source, kind: str, max_pixels: int) -> Iterator[Image.Image]:
    """An image file, its header read. Raises: DataError: also if it is too large."""
    with _opened(source, kind) as stream:
        try:
            with Image.open(stream) as file:
                if file.format == "EPS":
                    raise ValueError("PostScript, a program: Ghostscript would run it")
                if file.width * file.height > max_pixels:
                    raise Image.DecompressionBombError
                yield file
                if file.width * file.height > max_pixels:  # an icon's size is its picture's own
                    raise Image.DecompressionBombError
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise DataError(
                f"{source}: {kind} of more than {max_pixels:,} pixels, too large to read; scale it "
                "down, cut it up, or take it off the list"
            ) from None


@contextmanager
def _opened(source: Source, kind: str) -> Iterator[BinaryIO]:
    """Its bytes to read; whatever goes wrong until they are closed comes out as a DataError."""
    try:
        if isinstance(source, Path):
            refuse_endless(source, kind)
        with source.open("rb") as stream:
            yield stream
    except DataError:
        raise
    except FileNotFoundError:
        raise missing(source, kind) from None
    except Exception as error:  # a damaged file makes a decoder raise almost anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            empty = isinstance(source, Held) and not source.data
            reason = "empty file" if empty else "not an image file"
        raise DataError(
            f"{source}: unreadable {kind} ({reason}); replace it or take it off the list"
        ) from None
