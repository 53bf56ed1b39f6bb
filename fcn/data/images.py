"""Reading image files: any format of Pillow, and TIFFs of any bands and depth through tifffile."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, Protocol
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from fcn.dataset_info import DatasetInfo
from fcn.errors import DataError

RGB = DatasetInfo()  # nothing is known: RGB over all of 8 or 16 bits
ORIENTATION, GDAL_METADATA = 274, 42112  # tags of EXIF and TIFF
ALPHA = "alpha"  # a band that is used only if it is asked for
NAMES = {"R": "red", "G": "green", "B": "blue", "A": ALPHA, "L": "grey", "I": "grey", "F": "grey"}
LOOKED_AT = 20  # images of a split that `range_note` reads at most
_pixel_limit = threading.Lock()  # held while Pillow's limit is lifted, which all threads share


class Source(Protocol):
    """Where an image or a mask is stored: a Path or a member of a shard; str() is its location."""

    @property
    def suffix(self) -> str: ...

    def open(self, mode: Literal["rb"]) -> BinaryIO: ...


@dataclass(frozen=True)
class Pixels:
    """An image as its file stores it, but upright."""

    values: np.ndarray  # (H, W, bands), of any type
    bands: list[str]  # names


def read_image(source: Source, info: DatasetInfo = RGB, *, large: bool = False) -> Tensor:
    """Read an image in any format of Pillow, or any TIFF, upright by its EXIF orientation.

    Without `info.bands` the result is RGB: grey is repeated, transparency is dropped. Deeper
    pixels than 8 bits are scaled, see `to_uint8`; only what Pillow itself decodes to 8 bits, such
    as a colour JPEG 2000, has lost its depth before.

    Args:
        source: the file.
        info: of the data set: its value_range and its bands.
        large: also read images beyond Pillow's limit against decompression bombs.

    Returns:
        uint8 (C, H, W), with C = 3 or the number of bands.

    Raises:
        DataError: the file is missing or unreadable, or does not fit the info.
    """
    pixels = _read(source, large)
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
    levels = np.ascontiguousarray(to_uint8(_chosen(pixels, info), info.value_range))
    return torch.from_numpy(levels).permute(2, 0, 1)


def _chosen(pixels: Pixels, info: DatasetInfo) -> np.ndarray:
    """Return the bands to use, (H, W, C)."""
    chosen = _choose(pixels.bands, info.bands)
    whole = chosen == list(range(len(pixels.bands)))
    return pixels.values if whole else pixels.values[..., chosen]


def _choose(names: list[str], wanted: Sequence[int | str]) -> list[int]:
    """Return the numbers of the wanted bands; without any, of those that make RGB."""
    colours = [number for number, name in enumerate(names) if name != ALPHA]
    if not wanted and len(colours) not in (1, 3):
        raise ValueError(
            f"TIFF of {len(names)} bands ({', '.join(names)}); 3 are needed: set data.bands=[...], "
            "by number from 0 or by name"
        )
    for band in wanted:
        if band not in (names if isinstance(band, str) else range(len(names))):
            has = f"{len(names)} bands ({', '.join(names)})"
            raise ValueError(f"data.bands={list(wanted)}: no band {band}; the image has {has}")
    if wanted:
        return [names.index(band) if isinstance(band, str) else band for band in wanted]
    return colours if len(colours) == 3 else colours * 3


def to_uint8(values: np.ndarray, value_range: Sequence[float] | None) -> np.ndarray:
    """Scale pixels to 8 bits: 256 levels over their range remain, as in radiology's windows.

    Args:
        values: of any type and shape.
        value_range: the values that become 0 and 255; beyond them pixels are black or white. None
            takes all of 8 or 16 bits. A range beyond 255 leaves 8-bit pixels as they are.

    Returns:
        uint8, rounded.

    Raises:
        ValueError: another type than uint8 or uint16 without a range; NaN.
    """
    if values.dtype == np.uint8 and (value_range is None or value_range[1] > 255):
        return values
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ValueError("NaN pixels; replace them by a number")
    if value_range is None and values.dtype != np.uint16:
        sign = "negative values, " if values.min() < 0 else ""
        raise ValueError(
            f"{values.dtype} pixels ({sign}{values.min():g}..{values.max():g}); set "
            "data.value_range=[FROM,TO], the values that become black and white"
        )
    low, high = value_range or (0, 65535)
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
    found = []
    if info.value_range is None:
        for source in sources[:: -(-len(sources) // LOOKED_AT) or 1]:
            pixels = _read(source)
            if pixels.values.dtype != np.uint16:
                return ""
            with file_errors(source, "image"):
                values = _chosen(pixels, info)
            found += [int(values.min()), int(values.max())]
    if not found or max(found) > 32767:
        return ""
    return (
        f"16-bit images use only {min(found)}..{max(found)} of 0..65535 and lose detail; set "
        f"data.value_range=[0,{2 ** max(found).bit_length() - 1}] or the range of your sensor"
    )


def image_size(source: Source) -> tuple[int, int]:
    """Return (width, height) of an image as `read_image` returns it, from the file header alone."""
    with _opened(source) as file:
        if isinstance(file, Image.Image):
            width, height = file.size
            if file.format == "TIFF":  # of which Pillow returns the upright size
                return width, height
        else:
            width, height = file.pages[0].imagewidth, file.pages[0].imagelength
        on_its_side = _orientation(file) >= 5
    return (height, width) if on_its_side else (width, height)


def orientation(source: Source) -> int:
    """Return the EXIF orientation of an image, 1..8; 1 is upright."""
    with _opened(source) as file:
        return _orientation(file)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an array (H, W, ...) as its EXIF orientation says; a view."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return array[rows, columns]


def _orientation(image: Any) -> int:
    """Return the EXIF orientation of an image before it is decoded, of Pillow's or tifffile's."""
    if not isinstance(image, Image.Image):
        return image.pages[0].tags.valueof(ORIENTATION, 1)
    if image.format == "PNG" and "exif" not in image.info:  # getexif would decode it to look there
        return 1
    return image.getexif().get(ORIENTATION, 1)


def _read(source: Source, large: bool = False) -> Pixels:
    with _opened(source, large) as file:
        return from_pillow(file) if isinstance(file, Image.Image) else _from_tiff(file)


def from_pillow(image: Image.Image) -> Pixels:
    """Return the pixels of a Pillow image, upright; it is decoded in place."""
    low = _low_bytes(image)  # before the image itself is decoded
    image.load()
    turned = image.getexif().get(ORIENTATION, 1)  # a TIFF is upright by now
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # only this conversion knows a palette's transparency
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "LA", "RGB", "RGBA", "I", "F") and image.mode[:2] != "I;":
        image = image.convert("RGB")
    values = np.array(image)
    if low is not None:
        values = values.astype(np.uint16) * 256 + low
    # Pillow has files of 16 bits as I;16, I;16B and so on, and those of PGM as I.
    if image.mode[:2] == "I;" or (image.format == "PPM" and image.mode == "I"):
        values = values.astype(np.uint16)
    values = values.reshape(*values.shape[:2], -1)
    return Pixels(upright(values, turned), [NAMES.get(band, band) for band in image.getbands()])


def _low_bytes(image: Image.Image) -> np.ndarray | None:
    """Return the low bytes of a PNG of 16 bits per colour, of which Pillow decodes the high ones.

    Read as little-endian, the same file gives them.
    """
    tile = getattr(image, "tile", None)
    if image.format != "PNG" or not tile or tile[0].args not in ("RGB;16B", "RGBA;16B"):
        return None
    assert isinstance(image, ImageFile.ImageFile)
    assert image.fp is not None
    image.fp.seek(0)
    with type(image)(image.fp) as again:
        again.tile = [again.tile[0]._replace(args=tile[0].args[:-1] + "L")]
        return np.array(again)


def _is_plain(image: Any) -> bool:
    """Return whether Pillow reads all of a TIFF: one page, unsigned, no band without a meaning."""
    tags = image.tag_v2
    bits, samples = max(tags.get(258, (1,))), tags.get(277, 1)
    extra = tags.get(338, (0,) if "A" in image.getbands() else ())  # Pillow takes any for alpha
    return (
        image.n_frames == 1
        and samples == len(image.getbands())
        and bits <= (16 if samples == 1 else 8)
        and set(extra) <= {1, 2}  # extra samples: transparency
        and set(tags.get(339, (1,))) == {1}  # sample format: unsigned
    )


def _from_tiff(file: Any) -> Pixels:
    """Return the bands of a tifffile.TiffFile; pages of one size are bands of one image."""
    first, bands = file.pages[0], []
    size = first.imagelength, first.imagewidth
    for series in file.series:  # pages of one shape; smaller copies of an image do not count
        y, x = series.axes.index("Y"), series.axes.index("X")
        if (series.shape[y], series.shape[x]) == size and not series.keyframe.is_mask:
            bands.append(np.moveaxis(series.asarray(), (y, x), (0, 1)).reshape(*size, -1))
    values = np.concatenate(bands, axis=2)
    page = "page " if len(bands[0][0, 0]) > first.samplesperpixel == 1 else ""
    names = [f"{page}{number}" for number in range(values.shape[2])]
    if first.photometric.name == "RGB":
        names[:3] = ["red", "green", "blue"]
    if len(names) == first.samplesperpixel:
        for number, meaning in enumerate(reversed(first.extrasamples), start=1):
            if meaning.name != "UNSPECIFIED":
                names[-number] = ALPHA
    for item in ElementTree.fromstring(first.tags.valueof(GDAL_METADATA, "<none/>")).iter("Item"):
        if item.get("role") == "description" and item.text:
            names[int(item.attrib["sample"])] = item.text
    return Pixels(upright(values, _orientation(file)), names)


@contextmanager
def _opened(source: Source, large: bool = False) -> Iterator[Any]:
    """Open an image to read its header or decode it: a Pillow image or a tifffile.TiffFile."""
    with file_errors(source, "image"), source.open("rb") as stream:
        is_tiff = stream.read(4)[:2] in (b"II", b"MM")
        stream.seek(0)
        try:
            image = _open_pillow(stream, large)
        except UnidentifiedImageError:
            if not is_tiff:
                raise
        else:
            with image:
                if image.format != "TIFF" or _is_plain(image):
                    yield image
                    return
        stream.seek(0)
        try:
            import tifffile  # of the extra [tiff]
        except ImportError:
            raise DataError(
                f"{source}: a TIFF of several bands or pages, or with deep or signed pixels; to "
                'read it: pip install "fcn-segmentation[tiff]"'
            ) from None
        with tifffile.TiffFile(stream) as file:
            yield file


def _open_pillow(stream: BinaryIO, large: bool = False) -> Image.Image:
    """Open an image with Pillow; a large one may exceed its limit of pixels."""
    with _no_pixel_limit() if large else nullcontext():
        image = Image.open(stream)
        if large and image.format == "TIFF":  # its decoder checks the size when it allocates
            image.load_prepare()
        return image


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
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image file, or empty"
        raise DataError(
            f"{source}: unreadable {kind} ({reason}); replace it or remove it from the list"
        ) from None
