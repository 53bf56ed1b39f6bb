"""Reading image files: any format of Pillow, and TIFFs of any bands and depth through tifffile."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fcn.data.files import HINTS
from fcn.data.pixels import (
    ALPHA,
    PREMULTIPLIED,
    Pixels,
    Span,
    count_pages,
    exif_orientation,
    open_pillow,
    open_tiff,
    reads_all,
    upright_pixels,
)
from fcn.dataset_info import MEAN_COLOUR, DatasetInfo
from fcn.errors import DataError

RGB = DatasetInfo()  # nothing is known: RGB over all of 8 or 16 bits
NOTE_IMAGES = 20  # images of a split that `range_note` reads at most


class Source(Protocol):
    """Where an image or a mask is stored: a Path or a member of a shard; str() is its location."""

    @property
    def suffix(self) -> str: ...

    def open(self, mode: Literal["rb"]) -> BinaryIO: ...


def read_image(source: Source, info: DatasetInfo = RGB) -> Tensor:
    """Read an image in any format of Pillow, or any TIFF, upright by its EXIF orientation.

    Without `info.bands` the result is RGB: grey is repeated, and transparent pixels are composed
    over the mean colour, since what lies under them is invisible. Deeper pixels than 8 bits are
    scaled, see `to_uint8`; AVIF and HEIC are pictures of 8 bits here, as Pillow decodes them.

    Args:
        source: the file.
        info: of the data set: its value_range and its bands.

    Returns:
        uint8 (C, H, W), with C = 3 or the number of bands.

    Raises:
        DataError: the file is missing or unreadable, or does not fit the info.
    """
    with opened(source, "image") as file:
        pixels = upright_pixels(file)
    try:
        return as_tensor(pixels, info)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from None


def as_tensor(pixels: Pixels, info: DatasetInfo) -> Tensor:
    """Choose the bands of an image and scale them to 8 bits.

    Returns:
        uint8 (C, H, W).

    Raises:
        ValueError: the image does not fit the info.
    """
    levels = to_uint8(_chosen(pixels, info), info.value_range, pixels.span)
    if not info.bands:
        levels = _composed(levels, pixels)
    return torch.from_numpy(np.ascontiguousarray(levels)).permute(2, 0, 1)


def _chosen(pixels: Pixels, info: DatasetInfo) -> np.ndarray:
    """Return the bands that `info` names, or else those that make RGB, (H, W, C)."""
    names, wanted = pixels.bands, info.bands
    colours = [n for n, name in enumerate(names) if name not in (ALPHA, PREMULTIPLIED)]
    has = f"{len(names)} bands ({', '.join(names)})"
    if not wanted and len(colours) not in (1, 3):
        raise ValueError(
            f"TIFF of {has}; 3 are needed: choose them by number from 0 or by name, "
            "data.bands=[...] (predict.py: bands=[...])"
        )
    chosen = []
    for band in wanted:
        key = band.casefold() if isinstance(band, str) else band
        if key not in (names if isinstance(key, str) else range(len(names))):
            raise ValueError(f"bands {list(wanted)}: no band {band}; the image has {has}")
        chosen.append(names.index(key) if isinstance(key, str) else key)
    chosen = chosen or (colours if len(colours) == 3 else colours * 3)
    whole = chosen == list(range(len(names)))
    return pixels.values if whole else pixels.values[..., chosen]


def _composed(levels: np.ndarray, pixels: Pixels) -> np.ndarray:
    """Return a picture, uint8 (H, W, 3), over the mean colour where it is transparent.

    Raises:
        ValueError: the largest alpha is above 0 and below half: the channel may hold labels, or
            count to 255 in 16 bits.
    """
    kind = next((name for name in (ALPHA, PREMULTIPLIED) if name in pixels.bands), None)
    if kind is None:
        return levels
    alpha = pixels.values[..., pixels.bands.index(kind), None]
    if (alpha == pixels.white).all():
        return levels
    if 0 < (largest := alpha.max().item()) < pixels.white / 2:
        colours = [name for name in pixels.bands if name != kind]
        raise ValueError(
            f"{kind} of {largest:g} at most, of {pixels.white}, hides the picture; to use its "
            f"colours as they are, data.bands=[{','.join(colours * (3 // len(colours)))}] "
            "(predict.py: bands=)"
        )
    share = (alpha / np.float32(pixels.white)).clip(0, 1)
    seen = levels * (share if kind == ALPHA else 1)
    composed = seen + (1 - share) * np.array(MEAN_COLOUR, np.float32)
    return np.rint(composed.clip(0, 255)).astype(np.uint8)


def to_uint8(
    values: np.ndarray, value_range: Sequence[float] | None, span: Span = None
) -> np.ndarray:
    """Scale pixels to 8 bits: 256 levels over their range remain, as in radiology's windows.

    Args:
        values: of any type and shape.
        value_range: the values that become 0 and 255; beyond them pixels are black or white. None
            takes the span. A range outside 0..255 leaves 8-bit pixels as they are.
        span: of the file, see `Pixels`; where white is stored as 0, a range is inverted too.

    Returns:
        uint8, rounded.

    Raises:
        ValueError: another type than uint8 or uint16 without a range; NaN.
    """
    if span is None and values.dtype in (np.uint8, np.uint16):
        span = 0, int(np.iinfo(values.dtype).max)
    if values.dtype == np.uint8 and value_range and (value_range[0] < 0 or value_range[1] > 255):
        value_range = None
    if values.dtype == np.uint8 and value_range is None and span == (0, 255):
        return values
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ValueError("NaN pixels; replace them by a number")
    if value_range is None and span is None:
        sign = "negative values, " if values.min() < 0 else ""
        raise ValueError(
            f"{values.dtype} pixels ({sign}{values.min():g}..{values.max():g}); set "
            "data.value_range=[FROM,TO], the values that become black and white"
        )
    low, high = value_range or span or (0, 0)
    if value_range and span and span[0] > span[1]:
        low, high = high, low
    levels = values.astype(np.result_type(values.dtype, np.float32))
    levels -= low
    levels *= 255 / (high - low)
    return np.rint(levels.clip(0, 255)).astype(np.uint8)


def range_note(sources: Sequence[Source], info: DatasetInfo) -> str:
    """Return a note if 16-bit images use less than half of their range and no other is set.

    Args:
        sources: images of a split; a few, evenly spaced, are read.
        info: of the data set.
    """
    if info.value_range is not None or not sources:
        return ""
    found = []
    for source in sources[:: -(-len(sources) // NOTE_IMAGES)]:
        with opened(source, "image") as file:
            pixels = upright_pixels(file)
            if pixels.values.dtype != np.uint16 or pixels.span:
                return ""
            values = _chosen(pixels, info)
        found += [int(values.min()), int(values.max())]
    if max(found) > 32767:
        return ""
    return (
        f"16-bit images use only {min(found)}..{max(found)} of 0..65535 and lose detail; set "
        f"data.value_range=[0,{2 ** max(found).bit_length() - 1}] or the range of your sensor"
    )


def size_and_orientation(source: Source) -> tuple[tuple[int, int], int]:
    """Return what `image_size` and `orientation` do, from one look at the file header."""
    with opened(source, "image") as file:
        turn = exif_orientation(file)
        if not isinstance(file, Image.Image):
            width, height = file.pages[0].imagewidth, file.pages[0].imagelength
        elif file.format == "TIFF":  # of which Pillow returns the upright size
            return file.size, turn
        else:
            width, height = file.size
        return (height, width) if turn >= 5 else (width, height), turn


def image_size(source: Source) -> tuple[int, int]:
    """Return (width, height) of an image as `read_image` returns it."""
    return size_and_orientation(source)[0]


def orientation(source: Source) -> int:
    """Return the EXIF orientation of an image, 1..8; 1 is upright."""
    return size_and_orientation(source)[1]


def tiff_tags(source: Source, numbers: Iterable[int]) -> dict[int, Any]:
    """Return those of these tags that the first page of a TIFF has, by their numbers."""
    with opened(source, "image") as file:
        by_pillow = isinstance(file, Image.Image)
        value = file.tag_v2.get if by_pillow else file.pages[0].tags.valueof
        return {number: found for number in numbers if (found := value(number)) is not None}


@contextmanager
def opened(source: Source, kind: str) -> Iterator[Any]:
    """Open an image to read its header or decode it: a Pillow image or a tifffile.TiffFile.

    Args:
        source: the file.
        kind: image or mask, for the DataError that `file_errors` raises.
    """
    with file_errors(source, kind), source.open("rb") as stream:
        try:
            image: Any = open_pillow(stream)
        except UnidentifiedImageError:
            stream.seek(0)
            if stream.read(2) not in (b"II", b"MM"):  # no TIFF
                raise
            image = None
        if image and (image.format != "TIFF" or (count_pages(image) == 1 and reads_all(image))):
            with image:
                yield image
        else:
            stream.seek(0)
            with open_tiff(stream, str(source)) as file:
                yield file


@contextmanager
def file_errors(source: Source, kind: str) -> Iterator[None]:
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
        suffix = source.suffix.lower()
        if isinstance(error, UnidentifiedImageError) and suffix in HINTS:
            reason = f"{source.suffix} files: {HINTS[suffix]}"
        elif isinstance(error, UnidentifiedImageError):
            reason = "not an image file of a kind that is read here, or empty"
        raise DataError(
            f"{source}: unreadable {kind} ({reason}); replace it or remove it from the list"
        ) from None
