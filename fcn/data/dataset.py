"""Images and their label masks: reading and checking the files, and the overlap of two splits."""

import hashlib
import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
        problems: what is already known to be wrong with the split; more may be added here.
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
            more = ", run prepare_data to see them all" * (len(self.problems) > 1)
            raise DataError(self.problems[0] + _and_more(self.problems) + more)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return read_pair(self.pairs[index], len(self.classes), self.ignore_index)

    def has_masks(self) -> bool:
        """Return whether any mask is there; a test split may have none."""
        masks = (pair.mask for pair in self.pairs)
        return any(not isinstance(mask, Path) or mask.is_file() for mask in masks)

    def sizes(self) -> list[tuple[int, int]]:
        """Return (width, height) of every upright image, read from the file headers alone."""
        return [pair.size or image_size(pair.image) for pair in self.pairs]

    def fingerprint(self) -> str:
        """Return the sha256 of the ids, one per line: it tells which images were evaluated."""
        return hashlib.sha256("".join(f"{i}\n" for i in self.ids).encode()).hexdigest()


def read_pair(pair: Pair, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return image and target as `SegmentationDataset` does.

    Raises:
        DataError: a file cannot be used, or the two sizes differ.
    """
    image = read_image(pair.image)
    target = read_mask(pair.mask, num_classes, ignore_index)
    check_same_size(pair, image, target)
    return image, target


def check_same_size(pair: Pair, image: Tensor, target: Tensor) -> None:
    """Raise a DataError if image (3, H, W) and target (H, W) differ in size."""
    (height, width), (mask_height, mask_width) = image.shape[1:], target.shape
    if (height, width) != (mask_height, mask_width):
        turned = (height, width) == (mask_width, mask_height) and _orientation(pair.image) >= 5
        hint = "its EXIF orientation rotates it, so rotate the mask too or save the image upright"
        raise DataError(
            f"{pair.mask}: mask is {mask_width} x {mask_height} but its image {pair.image} is "
            f"{width} x {height}; {hint if turned else 'both must have the same size'}"
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
    """Return (width, height) of an image as `read_image` returns it, from the file header alone.

    Raises:
        DataError: the file is missing or unreadable.
    """
    with _image(source, "image") as file:
        width, height = file.size
        # Pillow returns the upright size of a TIFF, and would decode a PNG to look for EXIF.
        without = file.format == "TIFF" or (file.format == "PNG" and "exif" not in file.info)
        on_its_side = not without and file.getexif().get(EXIF_ORIENTATION, 1) >= 5
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
        hint = f"is {label} your ignore label? set data.ignore_index={label}"
        raise DataError(
            f"{source}: label {label} is out of range for {num_classes} classes (0.."
            f"{num_classes - 1}, ignore_index {ignore_index}); "
            f"{hint if label == num_classes else 'check data.classes and data.ignore_index'}"
        )
    labels[ignored] = VOID
    return torch.from_numpy(labels)


def read_labels(source: Source) -> np.ndarray:
    """Return the labels of a mask file as they are stored, uint8 (H, W).

    Raises:
        DataError: missing, unreadable, or not such a file.
    """
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
    """Check that no image is in both splits, by its id or with the same bytes.

    Raises:
        DataError: one is in both, or an image is missing.
    """
    if both := sorted(set(train.ids) & set(val.ids)):
        raise DataError(
            f"{both[0]}{_and_more(both)} is in both {train.name} and {val.name}; remove it from one"
        )
    if same := same_files(_paths(train), _paths(val)):
        one, other = same[0]
        raise DataError(
            f"{other}{_and_more(same)} of {val.name} is the same file as {one} of {train.name}; "
            "remove it from one"
        )


def same_files(some: Iterable[Path], others: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Return (one of some, one of others) for each of the others whose bytes are also in some.

    Only files of the same size are read.
    """
    by_size = defaultdict[int, list[Path]](list)
    for path in some:
        by_size[_file_size(path)].append(path)

    @cache
    def digest(path: Path) -> bytes:
        with _errors(path, "image"), path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()

    found = []
    for path in others:
        alike = by_size.get(_file_size(path), ())
        twins = [one for one in alike if digest(one) == digest(path)]
        found += [(twin, path) for twin in twins[:1]]
    return found


def _and_more(found: Sequence[object]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def _paths(dataset: SegmentationDataset) -> list[Path]:
    """Images that are files of their own; those in shards may be far away."""
    return [pair.image for pair in dataset.pairs if isinstance(pair.image, Path)]


def _file_size(path: Path) -> int:
    with _errors(path, "image"):
        return path.stat().st_size


def _orientation(source: Source) -> int:
    with _image(source, "image") as file:
        return file.getexif().get(EXIF_ORIENTATION, 1)


def _duplicates(pairs: Sequence[Pair], name: str) -> list[str]:
    """One message for each id that occurs more than once."""
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
        with _no_pixel_limit(large) as limit:
            image = Image.open(stream)
        # Some decoders check the limit again; only images beyond it are decoded one at a time.
        with image, _no_pixel_limit(large and image.width * image.height > limit):
            yield image


@contextmanager
def _no_pixel_limit(wanted: bool) -> Iterator[float]:
    """Lift Pillow's limit on the size of images, if wanted; return it."""
    if not wanted:
        yield math.inf
        return
    with _pixel_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield limit or math.inf
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
