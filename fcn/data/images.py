"""Reading image files: any format of Pillow, and TIFFs of any bands and depth through tifffile.

Values are those that the file stores: where Pillow reduces or rescales them, as in colour PNGs of
16 bits, grey ones of 2 and 4, and PGMs of another maximum than 255, they are decoded here.
"""

import math
import re
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from fcn.data.files import HINTS
from fcn.dataset_info import MEAN_COLOUR, DatasetInfo
from fcn.errors import DataError

RGB = DatasetInfo()  # nothing is known: RGB over all of 8 or 16 bits
BITS, PHOTOMETRIC, ORIENTATION, GDAL_METADATA = 258, 262, 274, 42112  # tags of EXIF and TIFF
ALPHA = "alpha"  # a band that is used only if it is asked for
PREMULTIPLIED = "premultiplied alpha"  # where the colours are multiplied by it already
NAMES = {"R": "red", "G": "green", "B": "blue", "A": ALPHA, "L": "grey", "I": "grey", "F": "grey"}
NAMES["1"] = "grey"
FEW_BITS = "L;([24])"  # how Pillow calls grey pixels of 2 and 4 bits, which it scales to 255
LOOKED_AT = 20  # images of a split that `range_note` reads at most
INVERTED = "white as 0, so that labels may be inverted"
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
    span: tuple[int, int] | None = None  # values of black and white; None: all of 8 or 16 bits


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
    pixels = _read(source)
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


def _composed(levels: np.ndarray, pixels: Pixels) -> np.ndarray:
    """Return a picture, uint8 (H, W, 3), over the mean colour where it is transparent."""
    kind = next((name for name in (ALPHA, PREMULTIPLIED) if name in pixels.bands), None)
    if kind is None:
        return levels
    alpha, deep = pixels.values[..., pixels.bands.index(kind), None], pixels.values.dtype
    white = max(pixels.span) if pixels.span else 1 if deep.kind == "f" else np.iinfo(deep).max
    if (alpha == white).all():
        return levels
    share = (alpha / np.float32(white)).clip(0, 1)
    seen = levels * (share if kind == ALPHA else 1)
    composed = seen + (1 - share) * np.array(MEAN_COLOUR, np.float32)
    return np.rint(composed.clip(0, 255)).astype(np.uint8)


def _chosen(pixels: Pixels, info: DatasetInfo) -> np.ndarray:
    """Return the bands to use, (H, W, C)."""
    chosen = _choose(pixels.bands, info.bands)
    whole = chosen == list(range(len(pixels.bands)))
    return pixels.values if whole else pixels.values[..., chosen]


def _choose(names: list[str], wanted: Sequence[int | str]) -> list[int]:
    """Return the numbers of the wanted bands; without any, of those that make RGB."""
    colours = [n for n, name in enumerate(names) if name not in (ALPHA, PREMULTIPLIED)]
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


def to_uint8(
    values: np.ndarray,
    value_range: Sequence[float] | None,
    span: tuple[int, int] | None = None,
) -> np.ndarray:
    """Scale pixels to 8 bits: 256 levels over their range remain, as in radiology's windows.

    Args:
        values: of any type and shape.
        value_range: the values that become 0 and 255; beyond them pixels are black or white. None
            takes the span. A range beyond 255 leaves 8-bit pixels as they are.
        span: the file's values of black and white; the first is larger where white is 0, and a
            range is then turned round too. None: all of 8 or 16 bits.

    Returns:
        uint8, rounded.

    Raises:
        ValueError: another type than uint8 or uint16 without a range; NaN.
    """
    if span is None and values.dtype in (np.uint8, np.uint16):
        span = 0, int(np.iinfo(values.dtype).max)
    if values.dtype == np.uint8 and value_range and value_range[1] > 255:
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
    found = []
    if info.value_range is None:
        for source in sources[:: -(-len(sources) // LOOKED_AT) or 1]:
            pixels = _read(source)
            if pixels.values.dtype != np.uint16 or pixels.span:
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
    with opened(source, "image") as file:
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
    with opened(source, "image") as file:
        return _orientation(file)


def tiff_tags(source: Source, numbers: Iterable[int]) -> dict[int, Any]:
    """Return those of these tags that the first page of a TIFF has, by their numbers."""
    with opened(source, "image") as file:
        if isinstance(file, Image.Image):
            found = {number: getattr(file, "tag_v2", {}).get(number) for number in numbers}
        else:
            found = {number: file.pages[0].tags.valueof(number) for number in numbers}
    return {number: value for number, value in found.items() if value is not None}


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an array (H, W, ...) as its EXIF orientation says; a view."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return array[rows, columns]


def _orientation(image: Any) -> int:
    """Return the EXIF orientation of an image, of Pillow's or tifffile's."""
    if not isinstance(image, Image.Image):
        found = image.pages[0].tags.valueof(ORIENTATION, 1)
    elif image.format == "PNG" and not _has_late_text(image):
        found = Image.Image.getexif(image).get(ORIENTATION, 1)  # PNG's own would decode it
    else:
        found = image.getexif().get(ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def _has_late_text(image: Any) -> bool:
    """Return True if EXIF or XMP may follow the pixels of a PNG: Pillow finds it by decoding."""
    if not image.tile or image.fp is None:
        return False  # decoded by now
    place, kind, late = image.fp.tell(), b"", False
    image.fp.seek(8)
    while kind != b"IEND" and len(head := image.fp.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        late = late or kind == b"IDAT"
        if late and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
            break
        image.fp.seek(length + 4, 1)
    else:
        late = False
    image.fp.seek(place)
    return late


def _read(source: Source) -> Pixels:
    with opened(source, "image") as file:
        return from_pillow(file) if isinstance(file, Image.Image) else _from_tiff(file)


def read_stored(source: Source) -> tuple[np.ndarray, str]:
    """Read the values of a mask as its file stores them: labels, or indices of a palette.

    Returns:
        uint8 (H, W), and "" or why they are no labels.

    Raises:
        DataError: the file is missing or unreadable.
    """
    with opened(source, "mask") as file:
        mode = f"mode {file.mode}" if isinstance(file, Image.Image) else ""
        if mode and file.format in ("JPEG", "MPO", "GIF"):  # GIF's writers sort the palette
            return np.empty((0, 0), np.uint8), f"format {file.format}, which changes labels"
        if mode and file.mode not in ("P", "L", "1"):
            return np.empty((0, 0), np.uint8), mode
        pixels = stored_pixels(file)
        values, bands, span = pixels.values, len(pixels.bands), pixels.span
        if mode and file.format == "PPM" and file.mode == "1":
            span = 1, 0
        if bands > 1 or values.dtype != np.uint8:
            return np.empty((0, 0), np.uint8), mode or f"{bands} bands of {values.dtype}"
        if span and span[0] > span[1]:
            return np.empty((0, 0), np.uint8), INVERTED
        return values[..., 0], ""


def stored_pixels(file: Any) -> Pixels:
    """Return the values of an opened mask as its file stores them, not turned upright.

    Args:
        file: see `opened`; of a palette the numbers are returned.
    """
    if not isinstance(file, Image.Image):
        return _from_tiff(file, turn=False)
    bands = [NAMES.get(name, name) for name in file.getbands()]
    values, span = _stored(file)
    return Pixels(values[..., : len(bands)], bands, span)  # a clear colour is a label too


def from_pillow(image: Any) -> Pixels:
    """Return the pixels of a Pillow image, upright; it may be decoded in place.

    Raises:
        ValueError: Pillow has decoded it before, and lost bits that its file has.
    """
    if image.format == "TIFF" and not _keeps_bits(image) and _is_one_page(image):
        image.fp.seek(0)
        with _open_tiff(image.fp, "image") as file:
            return _from_tiff(file)
    if _has_lost_bits(image):
        raise ValueError(
            "Pillow has decoded this image and lost bits of its file; give the file's path, or "
            "the image as Image.open returns it"
        )
    picture = image
    if image.mode == "P" and "transparency" in image.info:
        picture = image.convert("RGBA")  # only this conversion knows a palette's transparency
    elif not re.fullmatch("1|L|LA|RGB|RGBA|I|F|I;.*", image.mode):
        picture = image.convert("RGB")
    values, span = _stored(picture)
    turned = 1 if image.format == "TIFF" else _orientation(image)  # a TIFF is upright by now
    colours = ["red", "green", "blue"] if values.shape[2] > 2 else ["grey"]
    return Pixels(upright(values, turned), [*colours, ALPHA][: values.shape[2]], span)


def _is_one_page(image: Any) -> bool:
    """Return True if a TIFF can still be read from its file, and is one image."""
    return bool(image.tile) and image.fp is not None and image.n_frames == 1


def _has_lost_bits(image: Image.Image) -> bool:
    """Return True if Pillow has decoded an image of more bits, as far as that can be known."""
    if image.format == "TIFF" and not _keeps_bits(image):
        return True
    if not isinstance(image, ImageFile.ImageFile) or image.tile:
        return False
    if image.format not in ("PNG", "PPM", "JPEG2000", "TIFF"):
        return False
    path = Path(str(image.filename))
    if not path.is_file():
        return image.format == "PPM" and image.mode == "I"  # whose maximum is forgotten
    with _no_pixel_limit(), Image.open(path) as again:
        few = re.match(FEW_BITS, _rawmode(again))
        return again.format == image.format and bool(few or _decoder(again))


def _stored(image: Image.Image) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Return the values of an image as its file stores them, (H, W, bands), and their span."""
    key, mode = image.info.get("transparency"), image.mode
    if (decode := _decoder(image)) is not None:
        values, span = decode(image)
    else:
        values, span = _stored_by_pillow(image)
    values = values.reshape(*values.shape[:2], -1)
    if mode in ("1", "L", "RGB", "I;16") and isinstance(key, int | tuple):  # one clear colour
        clear = np.array(key) // (255 if mode == "1" else 1)
        white = max(span) if span else np.iinfo(values.dtype).max
        alpha = (values != clear).any(-1, keepdims=True) * values.dtype.type(white)
        values = np.concatenate([values, alpha], axis=2)
    return values, span


def _stored_by_pillow(image: Image.Image) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Return the values that Pillow decodes, without its scaling and inversion, and their span."""
    rawmode, span = _rawmode(image), None
    image.load()
    values = np.array(image)
    if image.mode == "1":
        values, span = values.astype(np.uint8), (0, 1)
    elif few := re.match(FEW_BITS, rawmode):  # scaled to 255
        span = 0, 2 ** int(few[1]) - 1
        values = values // (255 // span[1])
    elif image.mode[:2] == "I;" or (image.format == "PPM" and image.mode == "I"):
        values = values.astype(np.uint16)
    tags: Any = getattr(image, "tag_v2", {})
    bits = max(tags.get(BITS, (16,)))
    if image.mode[:2] == "I;" and bits < 16:
        span = 0, 2**bits - 1
    if tags.get(PHOTOMETRIC) == 0 and (rawmode or image.mode[:2] == "I;"):  # white is 0
        top = span[1] if span else int(np.iinfo(values.dtype).max)
        values, span = values if image.mode[:2] == "I;" else top - values, (top, 0)
    return values, span


def _rawmode(image: Image.Image) -> str:
    """Return the arrangement of the pixels in the file; "" once they are decoded."""
    tile = getattr(image, "tile", None)
    args = tile[0].args if tile else ""
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _decoder(
    image: Image.Image,
) -> Callable[[Any], tuple[np.ndarray, tuple[int, int] | None]] | None:
    """Return what decodes a file of which Pillow would lose bits; None if it loses none."""
    tile = getattr(image, "tile", None)
    if not tile:
        return None
    if image.format == "PNG" and _rawmode(image) in ("LA;16B", "RGB;16B", "RGBA;16B"):
        return _png_16
    if image.format == "PPM" and tile[0].codec_name[:3] == "ppm" and image.mode != "1":
        return None if tile[0].args[-1] == 255 else _pnm
    if image.format == "JPEG2000" and _bits_of_jpeg2000(image) > 8:
        return _jpeg2000
    return None


def _png_16(image: Any) -> tuple[np.ndarray, None]:
    """Decode a PNG of 16 bits per colour: first the high bytes, then the low ones."""
    rawmode = _rawmode(image)

    def as_rawmode(rawmode: str) -> np.ndarray:
        image.fp.seek(0)
        with type(image)(image.fp) as again:
            again.tile = [again.tile[0]._replace(args=rawmode)]
            return np.array(again)

    if rawmode == "LA;16B":  # the four bytes of a pixel
        four = as_rawmode("RGBA")
        high, low = four[..., ::2], four[..., 1::2]
    else:
        high, low = as_rawmode(rawmode), as_rawmode(rawmode[:-1] + "L")  # little-endian
    return high.astype(np.uint16) * 256 + low, None


def _pnm(image: Any) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode a PGM or PPM, whose values Pillow scales from its maximum to 255 or 65535."""
    codec, _, offset, (*_, top) = image.tile[0]
    shape = (image.height, image.width, 3 if image.mode == "RGB" else 1)
    dtype = np.uint8 if top < 256 else np.uint16
    image.fp.seek(offset)
    content = image.fp.read()
    if codec == "ppm_plain":
        words = re.sub(rb"#[^\r\n]*", b"", content).split()
        values = np.array(words[: math.prod(shape)], np.uint32)
    else:
        stored = np.dtype(dtype).newbyteorder(">")
        values = np.frombuffer(
            content, stored, min(math.prod(shape), len(content) // stored.itemsize)
        )
    if values.size < math.prod(shape):
        raise ValueError("image file is truncated")
    if values.max() > top:
        raise ValueError(f"a value of {values.max()} above its own maximum, {top}")
    return values.astype(dtype).reshape(shape), (0, top)


def _bits_of_jpeg2000(image: Any) -> int:
    """Return the bits per colour of a JPEG 2000 image: of its SIZ segment, which comes first."""
    place = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(2**20)
    image.fp.seek(place)
    start = head.find(b"\xff\x4f\xff\x51") + 2
    return (head[start + 40] & 127) + 1 if 2 <= start < len(head) - 40 else 8


def _jpeg2000(image: Any) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode a grey JPEG 2000 image, whose values Pillow shifts to 16 bits."""
    bits = _bits_of_jpeg2000(image)
    if image.mode != "I;16":
        raise ValueError(f"JPEG 2000 of {bits} bits per colour; save it as PNG or TIFF")
    image.load()
    return np.array(image).astype(np.uint16) >> (16 - bits), (0, 2**bits - 1)


def _keeps_bits(image: Any) -> bool:
    """Return True if Pillow reads all of a TIFF's page: unsigned, no band without a meaning."""
    tags = image.tag_v2
    bits, samples = max(tags.get(BITS, (1,))), tags.get(277, 1)
    extra = tags.get(338, (0,) if "A" in image.getbands() else ())  # Pillow takes any for alpha
    return (
        samples == len(image.getbands())
        and bits <= (16 if samples == 1 else 8)
        and set(extra) <= {1, 2}  # extra samples: transparency
        and set(tags.get(339, (1,))) == {1}  # sample format: unsigned
    )


def _from_tiff(file: Any, turn: bool = True) -> Pixels:
    """Return the bands of a tifffile.TiffFile; pages of one size are bands of one image."""
    first, bands = file.pages[0], []
    size, kind = (first.imagelength, first.imagewidth), first.photometric.name
    if kind == "PALETTE" or "LAB" in kind or "LOG" in kind:
        raise ValueError(f"TIFF of several pages or deep pixels in {kind}; save it as RGB or grey")
    for series in file.series:  # pages of one shape; smaller copies of an image do not count
        y, x = series.axes.index("Y"), series.axes.index("X")
        if (series.shape[y], series.shape[x]) == size and not series.keyframe.is_mask:
            bands.append(np.moveaxis(series.asarray(), (y, x), (0, 1)).reshape(*size, -1))
    values, span, bits = np.concatenate(bands, axis=2), None, first.bitspersample
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype.kind == "u" and (bits < 8 * values.itemsize or kind == "MINISWHITE"):
        span = (2**bits - 1, 0) if kind == "MINISWHITE" else (0, 2**bits - 1)
    page = "page " if len(bands[0][0, 0]) > first.samplesperpixel == 1 else ""
    names = [f"{page}{number}" for number in range(values.shape[2])]
    if kind == "RGB":
        names[:3] = ["red", "green", "blue"]
    if len(names) == first.samplesperpixel:
        for number, meaning in enumerate(reversed(first.extrasamples), start=1):
            if meaning.name != "UNSPECIFIED":
                names[-number] = PREMULTIPLIED if meaning.name == "ASSOCALPHA" else ALPHA
    for item in ElementTree.fromstring(first.tags.valueof(GDAL_METADATA, "<none/>")).iter("Item"):
        if item.get("role") == "description" and item.text:
            names[int(item.attrib["sample"])] = item.text
    return Pixels(upright(values, _orientation(file)) if turn else values, names, span)


@contextmanager
def opened(source: Source, kind: str) -> Iterator[Any]:
    """Open an image to read its header or decode it: a Pillow image or a tifffile.TiffFile."""
    with file_errors(source, kind), source.open("rb") as stream:
        is_tiff = stream.read(4)[:2] in (b"II", b"MM")
        stream.seek(0)
        try:
            image: Any = open_pillow(stream)
        except UnidentifiedImageError:
            if not is_tiff:
                raise
        else:
            with image:
                if image.format != "TIFF" or (image.n_frames == 1 and _keeps_bits(image)):
                    yield image
                    return
        stream.seek(0)
        with _open_tiff(stream, str(source)) as file:
            yield file


def _tiff_pixels(source: Source) -> str:
    """Return what a TIFF that Pillow does not know holds; "" if it is none."""
    try:
        with source.open("rb") as stream, _open_tiff(stream, str(source)) as file:
            page = file.pages[0]
            return f"a TIFF of {page.samplesperpixel} bands of {page.dtype}; save it as 8 bits"
    except Exception:  # a damaged file makes a decoder raise almost anything
        return ""


def _open_tiff(stream: Any, name: str) -> Any:
    """Open a TIFF with tifffile."""
    try:
        import tifffile  # of the extra [tiff]
    except ImportError:
        raise DataError(
            f"{name}: a TIFF of several bands or pages, or with deep or signed pixels; to read it: "
            'pip install "fcn-segmentation[tiff]"'
        ) from None
    return tifffile.TiffFile(stream)


def open_pillow(stream: BinaryIO) -> ImageFile.ImageFile:
    """Open an image of any size with Pillow, whose limit is for files of strangers."""
    with _no_pixel_limit() as limit:
        try:
            image = Image.open(stream)
        except UnidentifiedImageError:
            if not _register_heif(stream):
                raise
            image = Image.open(stream)
        if image.format == "TIFF" and limit and math.prod(image.size) > limit:
            image.load_prepare()  # its decoder checks the size again when it allocates
        return image


def _register_heif(stream: BinaryIO) -> bool:
    """Let Pillow read HEIC files if this may be one and pillow-heif is installed."""
    stream.seek(0)
    if stream.read(12)[4:8] != b"ftyp":
        return False
    try:
        import pillow_heif  # of the extra [heif]
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    stream.seek(0)
    return True


@contextmanager
def _no_pixel_limit() -> Iterator[int | None]:
    """Lift Pillow's limit on the size of images, which is checked when one is opened."""
    with _pixel_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield limit
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
            reason = (
                _tiff_pixels(source) or "not an image file of a kind that is read here, or empty"
            )
            if source.suffix.lower() in HINTS:
                reason = f"{source.suffix} files: {HINTS[source.suffix.lower()]}"
        raise DataError(
            f"{source}: unreadable {kind} ({reason}); replace it or remove it from the list"
        ) from None
