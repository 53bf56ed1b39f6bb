"""Pixels as their file stores them, from opened images of Pillow or tifffile.

Where Pillow reduces or rescales values, as in colour PNGs of 16 bits, grey ones of 2 and 4, and
PGMs of another maximum than 255, they are decoded here.
"""

import math
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import dropwhile
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    EXTRASAMPLES,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
)

from fcn.errors import DataError

GDAL_METADATA = 42112  # a tag with the names of bands
RGB = ["red", "green", "blue"]
ALPHA = "alpha"  # a band that is used only if it is asked for
PREMULTIPLIED = "premultiplied alpha"  # where the colours are multiplied by it already
NAMES = dict.fromkeys("LIF1", "grey") | {"R": "red", "G": "green", "B": "blue", "A": ALPHA}
INVERTED = "white as 0, so that labels may be inverted"
FEW_BITS = "L;([24])"  # how Pillow calls grey pixels of 2 and 4 bits, which it scales to 255
LATE_TEXT = {b"eXIf", b"iTXt", b"tEXt", b"zTXt"}  # chunks of a PNG that may hold EXIF or XMP
Span = tuple[int, int] | None
Stored = tuple[np.ndarray, Span]
_pixel_limit = threading.Lock()  # held while Pillow's limit is lifted, which all threads share


@dataclass(frozen=True)
class Pixels:
    """The pixels of an image.

    Args:
        values: (H, W, bands), of any type.
        bands: their names, in lower case.
        span: values of black and white; the first is larger where white is 0. None: all of 8 or 16
            bits.
    """

    values: np.ndarray
    bands: list[str]
    span: Span = None

    @property
    def inverted(self) -> bool:
        """Whether white is 0."""
        return self.span is not None and self.span[0] > self.span[1]

    @property
    def white(self) -> int:
        """The largest value: of white, and of what is opaque."""
        dtype = self.values.dtype
        return max(self.span) if self.span else 1 if dtype.kind == "f" else np.iinfo(dtype).max


def upright_pixels(file: Any) -> Pixels:
    """Return the pixels of an opened image, turned by its EXIF orientation.

    Args:
        file: a tifffile.TiffFile or a Pillow image, which may be decoded in place.

    Raises:
        ValueError: Pillow has decoded the image before, and lost bits that its file has.
    """
    by_pillow = isinstance(file, Image.Image)
    if not by_pillow:
        pixels = stored_pixels(file)
        return replace(pixels, values=upright(pixels.values, exif_orientation(file)))
    undecoded = file.format == "TIFF" and file.tile and file.fp is not None
    if undecoded and not reads_all(file) and count_pages(file) in (1, None):
        file.fp.seek(0)
        with open_tiff(file.fp, "image") as tiff:
            return upright_pixels(tiff)
    if _has_lost_bits(file):
        raise ValueError(
            "Pillow has decoded this image and lost bits of its file; give the file's path, or "
            "the image as Image.open returns it"
        )
    picture = file
    if file.mode == "P" and "transparency" in file.info:
        picture = file.convert("RGBA")  # only this conversion knows a palette's transparency
    elif not re.fullmatch("1|L|LA|RGB|RGBA|I|F|I;.*", file.mode):
        picture = file.convert("RGB")
    values, span = _stored(picture)
    turned = 1 if file.format == "TIFF" else exif_orientation(file)  # a TIFF is upright by now
    colours = RGB if values.shape[2] > 2 else ["grey"]
    if file.format == "TIFF" and len(colours) == 1:
        colours = _named(colours, file.tag_v2.get(GDAL_METADATA))
    return Pixels(upright(values, turned), [*colours, ALPHA][: values.shape[2]], span)


def stored_pixels(file: Any) -> Pixels:
    """Return the pixels of an opened mask, not turned; of a palette the numbers."""
    if not isinstance(file, Image.Image):
        return _tiff_pixels(file)
    bands = [NAMES.get(name, name) for name in file.getbands()]
    values, span = _stored(file)
    return Pixels(values[..., : len(bands)], bands, span)  # a clear colour is a label too


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an array (H, W, ...) as its EXIF orientation says; a view."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return array[rows, columns]


def exif_orientation(file: Any) -> int:
    """Return the EXIF orientation of an opened image, 1..8; 1 is upright, or damaged EXIF."""
    if not isinstance(file, Image.Image):
        found = file.pages[0].tags.valueof(Base.Orientation, 1)
    else:
        if file.format == "PNG" and _has_late_text(file):
            file.load()
        try:
            found = Image.Image.getexif(file).get(Base.Orientation, 1)  # PNG's own would decode it
        except (SyntaxError, struct.error):
            found = 1
    return found if found in range(1, 9) else 1


def _has_late_text(png: Any) -> bool:
    """Return True if EXIF or XMP may follow the pixels of a PNG: Pillow finds it by decoding."""
    if not png.tile or png.fp is None:
        return False  # decoded by now
    place, kinds = png.fp.tell(), [b""]
    png.fp.seek(8)
    while kinds[-1] != b"IEND" and len(head := png.fp.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        kinds.append(kind)
        png.fp.seek(length + 4, 1)
    png.fp.seek(place)
    return not LATE_TEXT.isdisjoint(dropwhile(lambda kind: kind != b"IDAT", kinds))


def count_pages(tiff: Any) -> int | None:
    """Return the number of pages of a TIFF opened by Pillow.

    None: some are of a kind that Pillow does not know, as the masks that GDAL adds to images are.
    """
    try:
        return tiff.n_frames
    except SyntaxError:
        return None


def keeps_bits(tiff: Any) -> bool:
    """Return True if Pillow reads all of a TIFF's page: unsigned, no band without a meaning."""
    tags = tiff.tag_v2
    bits, samples = max(tags.get(BITSPERSAMPLE, (1,))), tags.get(SAMPLESPERPIXEL, 1)
    extra = tags.get(EXTRASAMPLES, (0,) if "A" in tiff.getbands() else ())  # any is alpha to Pillow
    return (
        samples == len(tiff.getbands())
        and bits <= (16 if samples == 1 else 8)
        and set(extra) <= {1, 2}  # transparency
        and set(tags.get(SAMPLEFORMAT, (1,))) == {1}  # unsigned
    )


def reads_all(tiff: Any) -> bool:
    """Return True if Pillow keeps the bits of a TIFF, and takes none of its bands for another.

    It calls three bands RGB, and a fourth one alpha, whatever names they have.
    """
    bands = [*RGB, ALPHA][: len(tiff.getbands())]
    plain = len(bands) < 3 or _named(bands, tiff.tag_v2.get(GDAL_METADATA)) == bands
    return keeps_bits(tiff) and plain


def _named(bands: list[str], metadata: Any) -> list[str]:
    """Return names of bands, or those in GDAL's metadata, in lower case.

    A name such as "Band 4" says nothing, and counts only for a band that has none but its number.
    """
    try:
        items = list(ElementTree.fromstring(str(metadata).strip("\0 \n")).iter("Item"))
    except ElementTree.ParseError:
        return bands
    named = [item for item in items if item.get("role") == "description" and item.text]
    names = {int(item.attrib["sample"]): str(item.text).casefold() for item in named}
    numbered = [n for n, name in names.items() if re.fullmatch(r"band[ _]?\d+", name)]
    kept = [n for n, band in enumerate(bands) if n in numbered and not band[-1].isdigit()]
    return [band if n in kept else names.get(n, band) for n, band in enumerate(bands)]


def _has_lost_bits(image: Image.Image) -> bool:
    """Return True if Pillow has decoded an image of more bits, as far as that can be known."""
    if image.format == "TIFF" and not reads_all(image):
        return True
    decoded = isinstance(image, ImageFile.ImageFile) and not image.tile
    if not decoded or image.format not in ("PNG", "PPM", "JPEG2000", "TIFF"):
        return False
    path = Path(str(getattr(image, "filename", "")))
    if not path.is_file():
        return image.format == "PPM" and image.mode == "I"  # whose maximum is forgotten
    with no_pixel_limit(), Image.open(path) as again:
        loses = re.match(FEW_BITS, _rawmode(again)) or _decoder(again) != _by_pillow
        return again.format == image.format and bool(loses)


def _stored(image: Image.Image) -> Stored:
    """Return the values of an image as its file stores them, (H, W, bands), and their span."""
    key, mode = image.info.get("transparency"), image.mode
    values, span = _decoder(image)(image)
    values = values.reshape(*values.shape[:2], -1)
    if mode in ("1", "L", "RGB", "I;16") and isinstance(key, int | tuple):  # one clear colour
        clear = np.array(key) // (255 if mode == "1" else 1)
        white = values.dtype.type(Pixels(values, [], span).white)
        alpha = (values != clear).any(-1, keepdims=True) * white
        values = np.concatenate([values, alpha], axis=2)
    return values, span


def _rawmode(image: Image.Image) -> str:
    """Return the arrangement of the pixels in the file; "" once they are decoded."""
    tile = getattr(image, "tile", None)
    args = tile[0].args if tile else ""
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _decoder(image: Image.Image) -> Callable[[Any], Stored]:
    """Return what decodes an image: a function for files of which Pillow would lose bits."""
    tile = getattr(image, "tile", None)
    if not tile:
        return _by_pillow
    if image.format == "PNG" and _rawmode(image) in ("LA;16B", "RGB;16B", "RGBA;16B"):
        return _png_16
    if image.format == "PPM" and tile[0].codec_name[:3] == "ppm" and image.mode != "1":
        return _by_pillow if tile[0].args[-1] == 255 else _pnm
    if image.format == "JPEG2000" and _bits_of_jpeg2000(image) > 8:
        return _jpeg2000
    return _by_pillow


def _by_pillow(image: Image.Image) -> Stored:
    """Decode an image by Pillow, and undo its scaling and inversion."""
    rawmode, span, deep = _rawmode(image), None, image.mode[:2] == "I;"
    image.load()
    values = np.array(image)
    tags: Any = getattr(image, "tag_v2", {})
    bits = max(tags.get(BITSPERSAMPLE, (16,)))
    if image.mode == "1":
        values, span = values.astype(np.uint8), (0, 1)
    elif few := re.match(FEW_BITS, rawmode):  # scaled to 255
        span = 0, 2 ** int(few[1]) - 1
        values = values // (255 // span[1])
    elif deep or (image.format == "PPM" and image.mode == "I"):
        values, span = values.astype(np.uint16), (0, 2**bits - 1) if deep and bits < 16 else None
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 and (rawmode or deep):  # white is 0
        top = span[1] if span else int(np.iinfo(values.dtype).max)
        values, span = values if deep else top - values, (top, 0)
    return values, span


def _png_16(image: Any) -> Stored:
    """Decode a PNG of 16 bits per colour: first the high bytes, then the low ones."""

    def decoded_as(rawmode: str) -> np.ndarray:
        image.fp.seek(0)
        with type(image)(image.fp) as again:
            again.tile = [again.tile[0]._replace(args=rawmode)]
            return np.array(again)

    rawmode = _rawmode(image)
    if rawmode == "LA;16B":  # the four bytes of a pixel
        four = decoded_as("RGBA")
        high, low = four[..., ::2], four[..., 1::2]
    else:
        high, low = decoded_as(rawmode), decoded_as(rawmode[:-1] + "L")  # little-endian
    return high.astype(np.uint16) * 256 + low, None


def _pnm(image: Any) -> Stored:
    """Decode a PGM or PPM, whose values Pillow scales from its maximum to 255 or 65535."""
    codec, _, offset, (*_, top) = image.tile[0]
    shape = (image.height, image.width, 3 if image.mode == "RGB" else 1)
    count, dtype = math.prod(shape), np.dtype(np.uint8 if top < 256 else np.uint16)
    image.fp.seek(offset)
    content = image.fp.read()
    if codec == "ppm_plain":
        values = np.array(re.sub(rb"#[^\r\n]*", b"", content).split()[:count], np.uint32)
    else:
        count_there = min(count, len(content) // dtype.itemsize)
        values = np.frombuffer(content, dtype.newbyteorder(">"), count_there)
    if values.size < count:
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


def _jpeg2000(image: Any) -> Stored:
    """Decode a grey JPEG 2000 image, whose values Pillow shifts to 16 bits."""
    bits = _bits_of_jpeg2000(image)
    if image.mode != "I;16":
        raise ValueError(f"JPEG 2000 of {bits} bits per colour; save it as PNG or TIFF")
    image.load()
    return np.array(image).astype(np.uint16) >> (16 - bits), (0, 2**bits - 1)


def _tiff_pixels(file: Any) -> Pixels:
    """Return the pixels of a tifffile.TiffFile; pages of one size are bands of one image."""
    first, bands, span = file.pages[0], [], None
    size, kind = (first.imagelength, first.imagewidth), first.photometric.name
    bits = first.bitspersample
    if kind == "YCBCR" and first.compression.name in ("OJPEG", "JPEG"):
        kind = "RGB"  # to which tifffile decodes it
    if kind in ("PALETTE", "YCBCR") or "LAB" in kind or "LOG" in kind:
        raise ValueError(f"TIFF of several pages or deep pixels in {kind}; save it as RGB or grey")
    for series in file.series:  # pages of one shape; smaller copies of an image do not count
        y, x = series.axes.index("Y"), series.axes.index("X")
        if (series.shape[y], series.shape[x]) == size and not series.keyframe.is_mask:
            bands.append(np.moveaxis(series.asarray(), (y, x), (0, 1)).reshape(*size, -1))
    values = np.concatenate(bands, axis=2)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype.kind == "u" and (bits < 8 * values.itemsize or kind == "MINISWHITE"):
        span = (2**bits - 1, 0) if kind == "MINISWHITE" else (0, 2**bits - 1)
    page = "page " if len(bands[0][0, 0]) > first.samplesperpixel == 1 else ""
    names = [f"{page}{number}" for number in range(values.shape[2])]
    if kind == "RGB":
        names[:3] = RGB
    if len(names) == first.samplesperpixel:
        for number, meaning in enumerate(reversed(first.extrasamples), start=1):
            if meaning.name != "UNSPECIFIED":
                names[-number] = PREMULTIPLIED if meaning.name == "ASSOCALPHA" else ALPHA
    if names[0] == "0" and all(name in (ALPHA, PREMULTIPLIED) for name in names[1:]):
        names[0] = "grey"
    return Pixels(values, _named(names, first.tags.valueof(GDAL_METADATA)), span)


def open_tiff(stream: Any, name: str) -> Any:
    """Open a TIFF with tifffile, of the extra [tiff]; `name` is for the error without it."""
    try:
        import tifffile
    except ImportError:
        raise DataError(
            f"{name}: a TIFF of several or named bands, or pages, or deep pixels; to read it: "
            'pip install "fcn-segmentation[tiff]"'
        ) from None
    return tifffile.TiffFile(stream)


def open_pillow(stream: BinaryIO) -> ImageFile.ImageFile:
    """Open an image of any size with Pillow, whose limit is for files of strangers."""
    with no_pixel_limit() as limit:
        try:
            image = Image.open(stream)
        except UnidentifiedImageError:
            stream.seek(4)
            if stream.read(4) != b"ftyp":
                raise
            with suppress(ImportError):
                import pillow_heif  # of the extra [heif]

                pillow_heif.register_heif_opener()
            image = Image.open(stream)
        if image.format == "TIFF" and limit and math.prod(image.size) > limit:
            image.load_prepare()  # its decoder checks the size again when it allocates
        return image


@contextmanager
def no_pixel_limit() -> Iterator[int | None]:
    """Lift Pillow's limit on the size of images, which is checked when one is opened."""
    with _pixel_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield limit
        finally:
            Image.MAX_IMAGE_PIXELS = limit
