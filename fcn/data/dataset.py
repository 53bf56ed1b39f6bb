"""Images and their label masks: reading and checking the files, and the overlap of two splits."""

import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy.io import loadmat
from torch import Tensor
from torch.utils.data import Dataset

from fcn.config import VOID, UserError

EXIF_ORIENTATION = 0x0112
_pixel_limit = threading.Lock()  # held while Pillow's limit is lifted, which all threads share


class DataError(UserError, ValueError):
    """A data set is missing, or one of its files cannot be used."""


class Source(Protocol):
    """Where an image or a mask is stored: a Path or a member of a shard; str() is its location."""

    @property
    def suffix(self) -> str: ...

    def open(self, mode: Literal["rb"]) -> BinaryIO: ...


@dataclass(frozen=True)
class Pair:
    """An image and its mask; `id` names them in lists, predictions and reports."""

    id: str
    image: Source
    mask: Source
    size: tuple[int, int] | None = None  # (width, height) if known without opening the image


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of image and mask files.

    An item is (image uint8 (3, H, W) RGB, target uint8 (H, W) with 0..K-1 and 255 = ignored).

    Args:
        pairs: in the order of the split.
        classes: the K class names, background first.
        ignore_index: label of ignored pixels in the mask files.
        name: data set and split, for messages.
        problems: known errors of the split; more may be added here.
        strict: raise an error if there are problems; prepare_data lists them all instead.

    Raises:
        DataError: no pairs, or an id occurs twice. When an item is read: a file is missing or
            unreadable, the sizes of image and mask differ, or a label is out of range.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: Sequence[str],
        ignore_index: int,
        name: str,
        *,
        problems: Sequence[str] = (),
        strict: bool = True,
    ) -> None:
        self.pairs, self.classes, self.name = list(pairs), list(classes), name
        self.ids = [pair.id for pair in pairs]
        self.ignore_index = ignore_index
        self.problems = [*problems, *_duplicates(self.pairs, name)]
        if not pairs:
            self.problems.append(f"{name}: no images; list one id per line, or add image files")
        if strict and self.problems:
            more = len(self.problems) - 1
            hint = f" (and {more} more; run prepare_data to see them all)" if more else ""
            raise DataError(self.problems[0] + hint)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.pairs[index]
        image = read_image(pair.image)
        target = read_mask(pair.mask, len(self.classes), self.ignore_index)
        check_same_size(pair, image, target)
        return image, target

    def has_masks(self) -> bool:
        """Return whether any mask exists; a test split may have none."""
        masks = (pair.mask for pair in self.pairs)
        return any(not isinstance(mask, Path) or mask.is_file() for mask in masks)

    def sizes(self) -> list[tuple[int, int]]:
        """Return (width, height) of every upright image, read from the file headers alone."""
        return [pair.size or image_size(pair.image) for pair in self.pairs]

    def fingerprint(self) -> str:
        """Return the sha256 of the ids, one per line: it tells which images were evaluated."""
        return hashlib.sha256("".join(f"{i}\n" for i in self.ids).encode()).hexdigest()


def check_same_size(pair: Pair, image: Tensor, target: Tensor) -> None:
    """Raise a DataError if image (3, H, W) and target (H, W) differ in size."""
    (height, width), (mask_height, mask_width) = image.shape[1:], target.shape
    if (height, width) == (mask_height, mask_width):
        return
    hint = "both must have the same size"
    if (height, width) == (mask_width, mask_height):
        hint += "; if EXIF rotates the image, rotate the mask too or save the image upright"
    raise DataError(
        f"{pair.mask}: mask is {mask_width} x {mask_height} but its image {pair.image} is "
        f"{width} x {height}; {hint}"
    )


def read_image(source: Source, *, large: bool = False) -> Tensor:
    """Read an image in any format of Pillow, upright by its EXIF orientation.

    Args:
        source: the file.
        large: also read images beyond Pillow's limit against decompression bombs.

    Returns:
        uint8 (3, H, W), RGB; 16-bit grey is scaled to 8 bits, transparency is dropped.

    Raises:
        DataError: the file is missing or unreadable.
    """
    with _image(source, "image", large) as file:
        array = upright_rgb(file)
    return torch.from_numpy(array).permute(2, 0, 1)


def upright_rgb(image: Image.Image) -> np.ndarray:
    """Convert an image of any mode to RGB, upright by its EXIF orientation.

    Args:
        image: may be rotated in place.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: floating-point or negative pixels, or more than 16 bits: their range is unknown.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):  # convert() would clip 16 bits to 255, not scale them
        deep = np.asarray(image)
        if image.mode == "F" or deep.min() < 0 or deep.max() > 65535:
            raise ValueError("floating-point, negative or 32-bit pixels; save it with 8 or 16 bits")
        grey = (deep.astype(np.uint32) + 128) // 257  # v / 257, rounded
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # only this conversion knows a palette's transparency
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def image_size(source: Source) -> tuple[int, int]:
    """Return (width, height) of an image as `read_image` returns it, from the file header alone."""
    with _image(source, "image") as file:
        width, height = file.size
        # Pillow returns the upright size of a TIFF, and would decode a PNG to look for EXIF.
        if file.format == "TIFF" or (file.format == "PNG" and "exif" not in file.info):
            return width, height
        on_its_side = file.getexif().get(EXIF_ORIENTATION, 1) >= 5
    return (height, width) if on_its_side else (width, height)


def read_mask(source: Source, num_classes: int, ignore_index: int) -> Tensor:
    """Read a mask of labels: a palette or grey 8-bit image, or one of SBD's .mat files.

    Args:
        source: the file.
        num_classes: K; the labels are 0..K-1.
        ignore_index: label of ignored pixels in the file.

    Returns:
        uint8 (H, W), 0..K-1 and 255 for ignored pixels.

    Raises:
        DataError: missing, unreadable, not such a file, or a label out of range.
    """
    labels = read_labels(source)
    ignored = labels == ignore_index
    wrong = labels[(labels >= num_classes) & ~ignored]
    if wrong.size:
        label = int(wrong.min())
        hint = "check data.classes and data.ignore_index"
        if label == num_classes:
            hint = f"is {label} your ignore label? set data.ignore_index={label}"
        raise DataError(
            f"{source}: label {label} is out of range for {num_classes} classes (0.."
            f"{num_classes - 1}, ignore_index {ignore_index}); {hint}"
        )
    labels[ignored] = VOID
    return torch.from_numpy(labels)


def read_labels(source: Source) -> np.ndarray:
    """Return the labels of a mask file as they are stored, uint8 (H, W)."""
    if source.suffix == ".mat":
        with _errors(source, "mask"), source.open("rb") as stream:
            labels = loadmat(BytesIO(stream.read()))["GTcls"]["Segmentation"][0, 0]
            if labels.ndim != 2 or labels.dtype != np.uint8:
                raise ValueError(f"GTcls.Segmentation is {labels.ndim}-D {labels.dtype}")
            return np.array(labels, order="C")
    with _image(source, "mask") as file:
        if file.mode not in ("P", "L"):
            raise DataError(
                f"{source}: a mask must be a palette or grey 8-bit image of class labels, but this "
                f"one has mode {file.mode}; convert it, or remove it from the list"
            )
        return np.array(file)


def read_bytes(source: Source, kind: str) -> bytes:
    """Return the content of a file; `kind` (image or mask) names it in the DataError it raises."""
    with _errors(source, kind), source.open("rb") as stream:
        return stream.read()


def read_list(path: Path) -> list[str]:
    """Return the lines of a UTF-8 text file without blank ones; any line endings, BOM or not."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    return [line.strip() for line in lines if line.strip()]


def check_overlap(train: SegmentationDataset, val: SegmentationDataset) -> None:
    """Raise a DataError if an image is in both splits, by its id or with the same bytes.

    Only files of the same size are read, and none in shards, which may be far away.
    """
    remedy = "remove it from one; prepare_data lists all such images"
    if both := sorted(set(train.ids) & set(val.ids)):
        raise DataError(f"{both[0]} is in both {train.name} and {val.name}; {remedy}")
    by_size = defaultdict[int, list[Path]](list)
    for path, size in _file_sizes(train):
        by_size[size].append(path)
    digest = cache(lambda path: hashlib.blake2b(read_bytes(path, "image")).digest())
    for path, size in _file_sizes(val):
        for twin in by_size.get(size, ()):
            if digest(twin) == digest(path):
                raise DataError(
                    f"{path} of {val.name} is the same file as {twin} of {train.name}; {remedy}"
                )


def _file_sizes(dataset: SegmentationDataset) -> Iterator[tuple[Path, int]]:
    """Yield each image that is a file of its own, and its size in bytes."""
    for pair in dataset.pairs:
        if isinstance(pair.image, Path):
            with _errors(pair.image, "image"):
                size = pair.image.stat().st_size
            yield pair.image, size


def _duplicates(pairs: Sequence[Pair], name: str) -> list[str]:
    """Return one message for each id that occurs more than once."""
    by_id = defaultdict[str, list[Source]](list)
    for pair in pairs:
        by_id[pair.id].append(pair.image)
    return [
        f"{name}: {i} is listed {len(images)} times; list every image once"
        if images[0] == images[1]
        else f"{images[1]}: has the same name as {images[0]}; rename or remove one"
        for i, images in by_id.items()
        if len(images) > 1
    ]


@contextmanager
def _image(source: Source, kind: str, large: bool = False) -> Iterator[Image.Image]:
    """Open an image to read its header or decode it."""
    with _errors(source, kind), source.open("rb") as stream:
        with _no_pixel_limit() if large else nullcontext():
            image = Image.open(stream)
            if large and image.format == "TIFF":  # its decoder checks the size when it allocates
                image.load_prepare()
        with image:
            yield image


@contextmanager
def _no_pixel_limit() -> Iterator[None]:
    """Lift Pillow's limit on the size of images, which is checked when one is opened."""
    with _pixel_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _errors(source: Source, kind: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file into a DataError with its path."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(
            f"{source}: {kind} not found; add the file or remove it from the list"
        ) from None
    except Exception as error:  # a damaged file makes a decoder raise almost anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image file, or empty"
        raise DataError(
            f"{source}: unreadable {kind} ({reason}); replace it or remove it from the list"
        ) from None
