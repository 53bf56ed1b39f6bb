"""Images and masks on disk as pairs: listed, read, and checked when read."""

import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from fcn.config import VOID, UserError

# No larger image is decoded: Pillow's own limit, past which it warns of a decompression bomb.
MAX_PIXELS = 89_478_485


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
        problems: what is wrong with the list already; more may be added here.
        strict: refuse a list with problems. Only an audit, which names them all, does without.
    Item: image uint8 (3, H, W), RGB; target uint8 (H, W), 0..K-1 and 255 = void.
    Raises: DataError: no pairs, or an id twice; when read: a file missing or unreadable, sizes that
        differ, a label out of range.
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
        self.problems = [*problems, *_repeated(self.pairs, name)]
        if not pairs:
            self.problems.append(f"{name}: no images listed; name one a line, or add files")
        if strict and self.problems:
            raise DataError(_first(self.problems))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.pairs[index]
        image = read_image(pair.image)
        target = read_mask(pair.mask, len(self.classes), self.ignore_index)
        refuse_mismatch(pair, image, target)
        return image, target

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of every image as stored, from the files' headers alone."""
        return [_header(pair.image) for pair in self.pairs]

    def fingerprint(self) -> str:
        """sha256 of the id list, one a line: says which images a number was measured on."""
        return hashlib.sha256("".join(f"{i}\n" for i in self.ids).encode()).hexdigest()


def read_list(path: Path) -> list[str]:
    """The lines of a text file, without blank ones; any line endings, with a byte mark or not.

    Raises: DataError: not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text in UTF-8; save it as one") from None
    return [line.strip() for line in lines if line.strip()]


def read_image(path: Path) -> Tensor:
    """Any image Pillow reads, turned upright by its EXIF orientation: uint8 (3, H, W), RGB.

    16-bit grey is scaled to 8 bits; transparency is left out.
    Raises: DataError: missing, unreadable, or of more than MAX_PIXELS.
    """
    with _opened(path, "image") as file:
        array = _rgb(ImageOps.exif_transpose(file), path)
    return torch.from_numpy(array).permute(2, 0, 1)


def read_mask(path: Path, num_classes: int, ignore_index: int) -> Tensor:
    """A single-channel mask of labels, or SBD's .mat file: uint8 (H, W), `ignore_index` as 255.

    Raises: DataError: missing, unreadable, of more than MAX_PIXELS, not single-channel 8-bit, or a
        label out of range.
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


def refuse_mismatch(pair: Pair, image: Tensor, target: Tensor) -> None:
    """Raises: DataError: image (3, H, W) and target (H, W) differ in size."""
    (h, w), (mh, mw) = image.shape[1:], target.shape
    if (h, w) != (mh, mw):
        raise DataError(
            f"{pair.mask}: mask is {mw} x {mh} but its image {pair.image} is {w} x {h}; "
            "they must be of one size"
        )


def missing(path: Path, kind: str) -> DataError:
    """What to say of a file that is not there."""
    link = f" (a symbolic link to {os.readlink(path)}, which is gone)" if path.is_symlink() else ""
    return DataError(f"{path}: {kind} not found{link}; put it there or take it off the list")


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Image.Image]:
    """An image file, its header read; what goes wrong until it is closed becomes a DataError."""
    try:
        with warnings.catch_warnings():  # Pillow warns at MAX_PIXELS and raises at twice as many
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            file = Image.open(path)
        with file:
            if file.width * file.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield file
    except DataError:
        raise
    except FileNotFoundError:
        raise missing(path, kind) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"{path}: {kind} of more than {MAX_PIXELS:,} pixels, too large to read; scale it down, "
            "cut it up, or take it off the list"
        ) from None
    except Exception as error:  # a damaged file makes a decoder raise almost anything
        raise _unreadable(path, kind, error) from None


def _rgb(image: Image.Image, path: Path) -> np.ndarray:
    """uint8 (H, W, 3)."""
    if image.mode.startswith(("I", "F")):  # convert() would clip 16 bits to 255, not scale them
        deep = np.asarray(image).astype(np.float64)
        if image.mode == "F" or deep.min() < 0 or deep.max() > 65535:
            raise DataError(
                f"{path}: pixels of more than 16 bits, or fractions, have no known range; "
                "save it with 8 or 16 bits"
            )
        return np.repeat((deep / 257).round().astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # which alone knows a palette's transparency
    return np.array(image.convert("RGB"))


def _image_labels(path: Path) -> np.ndarray:
    with _opened(path, "mask") as file:
        if file.mode not in ("P", "L"):
            raise DataError(
                f"{path}: a mask must be a palette or grey 8-bit image of labels, this one is "
                f"{file.mode}; save it as such, or take it off the list"
            )
        return np.array(file)


def _mat_labels(path: Path) -> np.ndarray:
    from scipy.io import loadmat  # slow to import, and only SBD needs it

    try:
        labels = loadmat(path)["GTcls"]["Segmentation"][0, 0]
    except FileNotFoundError:
        raise missing(path, "mask") from None
    except Exception as error:  # a damaged .mat file makes scipy raise almost anything
        raise _unreadable(path, "mask", error) from None
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise DataError(f"{path}: GTcls.Segmentation must be 2-D uint8, got {labels.dtype}")
    return labels


def _header(path: Path) -> tuple[int, int]:
    with _opened(path, "image") as file:
        width, height = file.size
        turned = file.getexif().get(0x0112, 1) >= 5  # EXIF orientation 5..8: on its side
    return (height, width) if turned else (width, height)


def _unreadable(path: Path, kind: str, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image file" if path.stat().st_size else "empty file"
    return DataError(f"{path}: unreadable {kind} ({reason}); replace it or take it off the list")


def _repeated(pairs: Sequence[Pair], name: str) -> list[str]:
    """What to say of each id that comes more than once."""
    by_id = defaultdict[str, list[Path]](list)
    for pair in pairs:
        by_id[pair.id].append(pair.image)
    return [
        f"{name}: {i} is listed {'twice' if len(images) == 2 else f'{len(images)} times'}; "
        "a list must name each image once"
        if len(set(images)) == 1
        else f"{images[1]}: {images[0].name} has the same name; rename or remove one"
        for i, images in by_id.items()
        if len(images) > 1
    ]


def _first(problems: Sequence[str]) -> str:
    more = f" (and {len(problems) - 1} more: scripts/prepare_data.py names them all)"
    return problems[0] + more * (len(problems) > 1)
