"""Images and their label masks: reading and checking the files, and the overlap of two splits."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat
from torch import Tensor
from torch.utils.data import Dataset

from fcn.data.files import nfc
from fcn.data.images import Source, file_errors, image_size, opened, orientation, read_image
from fcn.data.pixels import INVERTED, stored_pixels, upright
from fcn.dataset_info import VOID, DatasetInfo
from fcn.errors import ConfigError, DataError

# Turns what an annotation tool exported into masks that can be read here.
CONVERT = "scripts/prepare_data.py convert=FOLDER to=NEW"
SAMPLE = 2**16  # bytes of a file that are compared before all of it is
Colours = dict[int, list[int]]  # red, green and blue of each label that a mask uses


@dataclass(frozen=True)
class Pair:
    """An image and its mask; `id` names them in lists, predictions and reports."""

    id: str
    image: Source
    mask: Source
    size: tuple[int, int] | None = None  # (width, height) if known without opening the image


@dataclass
class Listing:
    """One split of a data set, as its layout finds it."""

    pairs: list[Pair]
    own: dict[str, Any]  # what the set says of itself, by the keys of `DatasetInfo`
    name: str  # for messages
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of image and mask files.

    An item is (image uint8 (C, H, W), target uint8 (H, W) with 0..K-1 and 255 = ignored).

    Args:
        pairs: in the order of the split.
        info: classes, label of ignored pixels, and what else is known; see `DatasetInfo`.
        name: data set and split, for messages.
        problems: known errors of the split; more may be added here.
        notes: what is no error, but the user may want to know.
        strict: raise an error if there are problems; prepare_data lists them all instead.

    Raises:
        DataError: no pairs, or an id occurs twice. When an item is read: a file is missing or
            unreadable, the sizes of image and mask differ, or a label is out of range.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        info: DatasetInfo,
        name: str,
        *,
        problems: Sequence[str] = (),
        notes: Sequence[str] = (),
        strict: bool = True,
    ) -> None:
        self.pairs, self.info, self.name, self.notes = list(pairs), info, name, list(notes)
        self.ids = [pair.id for pair in pairs]
        self.problems = [*problems, *_duplicates(self.pairs, name)]
        if not pairs:
            self.problems.append(f"{name}: no images; list one id per line, or add image files")
        if strict and self.problems:
            more = len(self.problems) - 1
            hint = f" (and {more} more; run prepare_data to see them all)" if more else ""
            raise DataError(self.problems[0] + hint)

    @property
    def classes(self) -> list[str]:
        """The names of the labels 0..K-1."""
        return self.info.classes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.pairs[index]
        image = read_image(pair.image, self.info)
        target = read_mask(pair.mask, len(self.classes), self.info.ignore_index)
        return image, fit_mask(pair, image, target)

    def part(self, indices: Iterable[int]) -> "SegmentationDataset":
        """Return a data set of some of the pairs."""
        pairs = [self.pairs[index] for index in indices]
        return SegmentationDataset(pairs, self.info, self.name, notes=self.notes)

    def limited(self, images: int, seed: int) -> "SegmentationDataset":
        """Return a data set of the first images of a permutation, in the order of the list.

        Fewer images are a part of more of the same seed, and all are the list itself.

        Raises:
            ConfigError: there are not so many.
        """
        if images > len(self):
            raise ConfigError(f"data.limit={images}: {self.name} has {len(self)} images")
        order = np.random.default_rng([seed, 0, 2]).permutation(len(self))  # no epoch's stream
        return self.part(sorted(order[:images].tolist()))

    def has_masks(self) -> bool:
        """Return whether any mask exists; a test split may have none."""
        masks = (pair.mask for pair in self.pairs)
        return any(not isinstance(mask, Path) or mask.is_file() for mask in masks)

    def sizes(self) -> list[tuple[int, int]]:
        """Return (width, height) of every upright image, read from the file headers alone."""
        return [pair.size or image_size(pair.image) for pair in self.pairs]

    def fingerprint(self) -> str:
        """Return the sha256 of the ids, one per line, by which a split is recognised."""
        return hashlib.sha256("".join(f"{i}\n" for i in self.ids).encode()).hexdigest()


def fit_mask(pair: Pair, image: Tensor, target: Tensor) -> Tensor:
    """Turn a target upright if EXIF turns its image by a quarter and the mask is stored unturned.

    Args:
        pair: the files.
        image: (C, H, W), upright.
        target: (H, W) as it is stored; (W, H) is turned if EXIF turns the image by a quarter.

    Returns:
        The target, (H, W).

    Raises:
        DataError: the sizes differ otherwise.
    """
    height, width = image.shape[1:]
    if check_size(pair, (width, height), target.shape):
        return torch.from_numpy(upright(target.numpy(), orientation(pair.image)).copy())
    return target


def check_size(pair: Pair, size: tuple[int, int], shape: Sequence[int]) -> bool:
    """Check that a mask has its image's size, upright or before EXIF turns it by a quarter.

    Args:
        pair: the files.
        size: (width, height) of the image, upright.
        shape: (height, width) of the mask as it is stored.

    Returns:
        True if the mask has to be turned like its image.

    Raises:
        DataError: the sizes differ otherwise.
    """
    (width, height), (mask_height, mask_width) = size, shape
    if (height, width) == (mask_height, mask_width):
        return False
    if (height, width) == (mask_width, mask_height) and orientation(pair.image) >= 5:
        return True
    raise DataError(
        f"{pair.mask}: mask is {mask_width} x {mask_height} but its image {pair.image} is "
        f"{width} x {height}; both must have the same size: export the masks at full size, or "
        f"enlarge them with Pillow's resize(({width}, {height}), resample=0), which invents no "
        "labels"
    )


def exif_kind(turn: int, shape: Sequence[int], turned: bool) -> str:
    """Return whether a mask is stored turned or upright, where EXIF turns or mirrors its image.

    Args:
        turn: the EXIF orientation of the image.
        shape: (height, width) of the mask as it is stored.
        turned: see `check_size`.

    Returns:
        As its size shows, "turned", since it is stored like the image, or "upright"; "unclear" if
        both have the same size.
    """
    if turned:
        return "turned"
    if turn == 1:
        return ""
    return "upright" if turn >= 5 and shape[0] != shape[1] else "unclear"


def exif_problem(masks: Iterable[tuple[Pair, str]]) -> str:
    """Return a problem if some masks are stored like images that EXIF turns, and others may be.

    Args:
        masks: each with its `exif_kind`.
    """
    first = dict[str, Pair]()
    for pair, kind in masks:
        first.setdefault(kind, pair)
    if not {"turned", "unclear"} <= first.keys():
        return ""
    turned, unclear = first["turned"], first["unclear"]
    return (
        f"{unclear.mask}: EXIF turns or mirrors its image {unclear.image}; its size does not tell "
        f"whether the mask is stored unturned, as {turned.mask} is; if all masks are, remove the "
        "orientation from the images (exiftool -r -Orientation= FOLDER), otherwise from the pixels "
        "of the images whose masks are upright (mogrify -auto-orient)"
    )


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
        raise DataError(wrong_label(source, int(wrong.min()), num_classes, ignore_index))
    labels[ignored] = VOID
    return torch.from_numpy(labels)


def wrong_label(source: Source, label: int, num_classes: int, ignore_index: int) -> str:
    """Return the message for a label that is neither a class, 0..K-1, nor ignored."""
    hint = "check data.classes and data.ignore_index"
    if label == num_classes:
        hint = f"is {label} your ignore label? set data.ignore_index={label}"
        hint += f"; or are the classes 1..{label}, and 0 is unlabelled? run {CONVERT}"
    return (
        f"{source}: label {label} is out of range for {num_classes} classes (0..{num_classes - 1}, "
        f"ignore_index {ignore_index}); {hint}"
    )


def read_labels(source: Source) -> np.ndarray:
    """Return the labels of a mask file as they are stored, uint8 (H, W)."""
    return read_labels_and_palette(source)[0]


def read_labels_and_palette(source: Source) -> tuple[np.ndarray, list[int]]:
    """Return what `read_labels` does, and red, green and blue of label 0, of 1, ...; [] of none."""
    if source.suffix == ".mat":
        with file_errors(source, "mask"), source.open("rb") as stream:
            labels = loadmat(BytesIO(stream.read()))["GTcls"]["Segmentation"][0, 0]
            if labels.ndim != 2 or labels.dtype != np.uint8:
                raise ValueError(f"GTcls.Segmentation is {labels.ndim}-D {labels.dtype}")
            return np.array(labels, order="C"), []
    with opened(source, "mask") as file:
        by_pillow = isinstance(file, Image.Image)
        if by_pillow and file.format in ("JPEG", "MPO", "GIF"):  # GIF's writers sort the palette
            problem = f"format {file.format}, which changes labels"
        elif by_pillow and file.mode not in ("P", "L", "1"):
            problem = f"mode {file.mode}"
        else:
            pixels = stored_pixels(file)
            bands, dtype = len(pixels.bands), pixels.values.dtype
            is_pbm = by_pillow and (file.format, file.mode) == ("PPM", "1")
            if bands > 1 or dtype != np.uint8:
                problem = f"{bands} bands of {dtype}"
            elif pixels.inverted or is_pbm:
                problem = INVERTED
            else:
                palette = file.getpalette() if by_pillow else None  # None of a grey image
                return pixels.values[..., 0], palette or []
    raise DataError(
        f"{source}: a mask must be a palette or grey image of class labels, of 8 bits at most, "
        f"but this one has {problem}; to convert it, run {CONVERT}"
    )


def used_colours(labels: np.ndarray, palette: Sequence[int]) -> Colours:
    """Return the colours that a palette gives to the labels of a mask."""
    used = np.unique(labels[labels < len(palette) // 3]).tolist() if palette else []
    return {label: list(palette[3 * label : 3 * label + 3]) for label in used}


def palette_problem(masks: Iterable[tuple[Source, Colours]]) -> str:
    """Return a problem if two masks use a label in two colours, or "".

    Programs that sort or shorten palettes give the labels other numbers.
    """
    seen = dict[int, tuple[list[int], Source]]()
    for mask, colours in masks:
        for label, colour in colours.items():
            other, first = seen.setdefault(label, (colour, mask))
            if colour != other:
                return (
                    f"{mask}: label {label} has the colour {colour}, but {other} in {first}; if "
                    f"colours are the classes, run {CONVERT} data.classes=[...] "
                    'data.colours=[[r,g,b],...]; if numbers are, with "labels={0: NAME, ...}"'
                )
    return ""


def read_bytes(source: Source, kind: str) -> bytes:
    """Return the content of a file; `kind` (image or mask) names it in the DataError it raises."""
    with file_errors(source, kind), source.open("rb") as stream:
        return stream.read()


def read_list(path: Path) -> list[str]:
    """Return the lines of a UTF-8 text file without blank ones; any line endings, BOM or not."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    return [line.strip() for line in lines if line.strip()]


def check_overlap(train: SegmentationDataset, val: SegmentationDataset) -> None:
    """Raise a DataError if an image is in both splits, by its id or with the same bytes."""
    remedy = "remove it from one; prepare_data lists all such images"
    if both := sorted(set(train.ids) & set(val.ids)):
        raise DataError(f"{both[0]} is in both {train.name} and {val.name}; {remedy}")
    for path, twin in same_files(train, val):
        raise DataError(
            f"{path} of {val.name} is the same file as {twin} of {train.name}; {remedy}"
        )


def same_files(train: SegmentationDataset, val: SegmentationDataset) -> Iterator[tuple[Path, Path]]:
    """Yield each image of `val` that has the same bytes as one of `train`, and that one.

    Only files of the same size are read, and none in shards, which may be far away.
    """
    by_size = defaultdict[int, list[Path]](list)
    for path, size in _file_sizes(train):
        by_size[size].append(path)
    # Uncompressed images of one camera all have one size: most differ in the middle already.
    middle = cache(lambda path, size: _digest(path, size // 2, SAMPLE))
    whole = cache(_digest)
    for path, size in _file_sizes(val):
        for twin in by_size.get(size, ()):
            if middle(twin, size) == middle(path, size) and whole(twin) == whole(path):
                yield path, twin
                break


def _digest(path: Path, start: int = 0, length: int = -1) -> bytes:
    """Return a checksum of a file, or of some bytes of it."""
    with file_errors(path, "image"), path.open("rb") as stream:
        stream.seek(start)
        return hashlib.blake2b(stream.read(length)).digest()


def _file_sizes(dataset: SegmentationDataset) -> Iterator[tuple[Path, int]]:
    """Yield each image that is a file of its own, and its size in bytes."""
    for pair in dataset.pairs:
        if isinstance(pair.image, Path):
            with file_errors(pair.image, "image"):
                size = pair.image.stat().st_size
            yield pair.image, size


def _duplicates(pairs: Sequence[Pair], name: str) -> list[str]:
    """Return one message for each id that occurs more than once."""
    by_id = defaultdict[str, list[Source]](list)
    for pair in pairs:
        by_id[nfc(pair.id)].append(pair.image)
    return [
        f"{name}: {i} is listed {len(images)} times; list every image once"
        if images[0] == images[1]
        else f"{images[1]}: has the same name as {images[0]}; rename or remove one"
        for i, images in by_id.items()
        if len(images) > 1
    ]
