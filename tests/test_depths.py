"""No bit is lost between a file and its tensor: a grid over formats, depths and modes.

Files are written here from their stored values, by hand where Pillow would scale them, and read as
images and as masks, by path and as Pillow images: the values come back, or one line says why not.
"""

import re
import struct
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from fcn.data.dataset import read_labels
from fcn.data.images import as_tensor, read_image
from fcn.data.pixels import upright_pixels
from fcn.dataset_info import MEAN_COLOUR, DatasetInfo
from fcn.errors import DataError

H, W = 6, 9
PALETTE = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)


@dataclass
class Case:
    """A file, and what it means."""

    content: bytes
    stored: np.ndarray  # (H, W, C): values in the file
    top: int  # the value of white
    alpha: np.ndarray | None = None  # (H, W, 1), 0..1
    colours: np.ndarray | None = None  # (H, W, 3), 0..1, if they are not stored / top
    labels: str = ""  # why its values are no labels; "": they are
    refused: str = ""  # why it is no image

    def picture(self, low: float, high: float) -> np.ndarray:
        """The levels 0..255 to expect, not yet rounded, (H, W, 3)."""
        share = ((self.stored - low) / (high - low)).clip(0, 1)
        share = share if self.colours is None else self.colours
        levels = np.broadcast_to(np.rint(share * 255), (H, W, 3))
        if self.alpha is None:
            return levels
        return levels * self.alpha + (1 - self.alpha) * np.array(MEAN_COLOUR)


def values(top: int, channels: int = 1) -> np.ndarray:
    drawn = np.random.default_rng(top).integers(0, top + 1, (H, W, channels))
    drawn[0, 0], drawn[0, 1] = 0, top
    return drawn


def packed(stored: np.ndarray, bits: int) -> list[bytes]:
    """The rows of an image, highest bit first."""
    rows = []
    for row in stored.reshape(len(stored), -1):
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        rows.append(int(digits, 2).to_bytes(len(digits) // 8, "big"))
    return rows


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(stored: np.ndarray, bits: int, colour: int, before: bytes = b"") -> bytes:
    height, width = stored.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in packed(stored, bits)))
    chunks = chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_case(bits: int, colour: int, clear: bool = False) -> Case:
    """A PNG of colour type 0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGB + alpha."""
    top, channels = 2**bits - 1, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    stored, before = values(top, channels), b""
    why = "" if channels == 1 and bits <= 8 else "mode "
    case = Case(b"", stored, top, labels=why)
    if colour == 3:
        case.colours = PALETTE[stored[..., 0]] / 255
        before = chunk(b"PLTE", PALETTE[: top + 1].tobytes())
        if clear:
            before += chunk(b"tRNS", bytes([0, 199]))
            case.alpha = np.select([stored == 0, stored == 1], [0, 199 / 255], 1.0)
    elif colour in (4, 6):
        case.stored, case.alpha = stored[..., :-1], stored[..., -1:] / top
    elif clear:
        before = chunk(b"tRNS", b"".join(struct.pack(">H", v) for v in stored[2, 3]))
        case.alpha = 1.0 - (stored == stored[2, 3]).all(-1, keepdims=True)
    case.content = png(stored, bits, colour, before)
    return case


def pnm_case(kind: int, top: int) -> Case:
    stored = values(top, 3 if kind in (3, 6) else 1)
    head = b"P%d\n# a comment\n%d %d\n" % (kind, W, H) + (
        b"%d\n" % top if kind not in (1, 4) else b""
    )
    if kind == 4:
        content = b"".join(packed(stored, 1))
    elif kind > 4:
        content = stored.astype(np.uint8 if top < 256 else ">u2").tobytes()
    else:
        content = b" #2\n".join(b" ".join(b"%d" % v for v in row) for row in stored.reshape(H, -1))
    why = "" if kind in (2, 5) and top < 256 else "mode "
    if kind in (1, 4):  # 1 is black
        return Case(head + content, 1 - stored, 1, labels="labels may be inverted")
    return Case(head + content, stored, top, labels=why)


def tiff_case(
    bits: int, photometric: str = "minisblack", channels: int = 1, **more: object
) -> Case:
    stored, file = values(2**bits - 1, channels), BytesIO()
    array = stored.astype(np.uint8 if bits <= 8 else np.uint16)
    if bits == 1:
        array = array.astype(bool)
    array = array if channels > 1 else array[..., 0]
    packing = {} if bits in (8, 16) else {"bitspersample": bits}
    tifffile.imwrite(file, array, photometric=photometric, metadata=None, **packing, **more)
    case = Case(file.getvalue(), stored, 2**bits - 1)
    case.labels = "" if channels == 1 and bits <= 8 else "mode |bands of uint16"
    if photometric == "miniswhite":
        case.colours = 1 - stored / case.top
        case.labels = "labels may be inverted" if bits <= 8 else "mode |uint16"
    elif photometric == "palette":
        case.colours = PALETTE[stored[..., 0]] / 255
    elif photometric == "separated":
        c = stored / 255
        case.colours = (1 - c[..., :3]) * (1 - c[..., 3:])
        case.refused = "TIFF of 4 bands" if bits > 8 else ""
    elif "extrasamples" in more:
        case.stored, case.alpha = stored[..., :-1], stored[..., -1:] / case.top
    return case


def pillow_case(
    array: np.ndarray, kind: str, mode: str = "", labels: str = "", **options: object
) -> Case:
    """A file that Pillow writes without loss."""
    image, file = Image.fromarray(array.astype(np.uint8)), BytesIO()
    if mode == "P":
        image.putpalette(PALETTE.tobytes())
    image.save(file, kind, **options)
    stored = array.reshape(H, W, -1)
    case = Case(file.getvalue(), stored, 255, labels=labels)
    if stored.shape[2] > 1:
        case.labels = "mode "
    if mode == "P":
        case.colours = PALETTE[array] / 255
    if stored.shape[2] == 4:
        case.stored, case.alpha = stored[..., :3], stored[..., 3:] / 255
    return case


def jpeg(array: np.ndarray) -> Case:
    """A JPEG, whose pixels are what another program decodes."""
    content = cv2.imencode(".jpg", array.astype(np.uint8))[1].tobytes()
    pixels = imagecodecs.jpeg8_decode(content).reshape(H, W, -1).astype(int)
    return Case(content, pixels, 255, labels="format JPEG")


def jpeg2000(bits: int, channels: int) -> Case:
    stored = values(2**bits - 1, channels)
    array = stored.astype(np.uint8 if bits <= 8 else np.uint16)
    content = imagecodecs.jpeg2k_encode(
        array if channels > 1 else array[..., 0], level=0, bitspersample=bits, reversible=True
    )
    refused = f"JPEG 2000 of {bits} bits per colour" if bits > 8 and channels > 1 else ""
    why = "" if bits <= 8 and channels == 1 else "mode "
    return Case(content, stored, 2**bits - 1, labels=why, refused=refused)


def bmp_1(first: int) -> Case:
    """A BMP of 1 bit: black and white, or white and black."""
    stored = values(1)
    rows = [row.ljust(4, b"\0") for row in packed(stored[::-1], 1)]
    colours = [b"\0\0\0\0", b"\xff\xff\xff\0"]
    head = struct.pack("<IiiHHIIiiII", 40, W, H, 1, 1, 0, 4 * H, 0, 0, 2, 0)
    content = head + colours[first] + colours[1 - first] + b"".join(rows)
    file = b"BM" + struct.pack("<IHHI", 14 + len(content), 0, 0, 14 + 40 + 8) + content
    case = Case(file, stored, 1)
    case.colours = 1.0 - stored if first else stored / 1
    return case


RGB, RGBA, GREY = values(255, 3), values(255, 4), values(255)[..., 0]
FEW = GREY % 5
CASES: dict[str, Callable[[], Case]] = {
    **{f"png-grey-{b}": lambda b=b: png_case(b, 0) for b in (1, 2, 4, 8, 16)},
    **{f"png-grey-clear-{b}": lambda b=b: png_case(b, 0, True) for b in (1, 2, 4, 8, 16)},
    **{f"png-grey-alpha-{b}": lambda b=b: png_case(b, 4) for b in (8, 16)},
    **{f"png-rgb-{b}": lambda b=b: png_case(b, 2) for b in (8, 16)},
    **{f"png-rgb-clear-{b}": lambda b=b: png_case(b, 2, True) for b in (8, 16)},
    **{f"png-rgba-{b}": lambda b=b: png_case(b, 6) for b in (8, 16)},
    **{f"png-palette-{b}": lambda b=b: png_case(b, 3) for b in (1, 2, 4, 8)},
    **{f"png-palette-clear-{b}": lambda b=b: png_case(b, 3, True) for b in (1, 2, 4, 8)},
    "pbm-plain": lambda: pnm_case(1, 1),
    "pbm": lambda: pnm_case(4, 1),
    **{
        f"{name}-{top}": lambda kind=kind, top=top: pnm_case(kind, top)
        for name, kind in {"pgm-plain": 2, "ppm-plain": 3, "pgm": 5, "ppm": 6}.items()
        for top in (1, 15, 100, 255, 1023, 4095, 65535)
    },
    **{f"tif-grey-{b}": lambda b=b: tiff_case(b) for b in (1, 2, 4, 8, 12, 16)},
    **{f"tif-white0-{b}": lambda b=b: tiff_case(b, "miniswhite") for b in (1, 2, 4, 8, 12, 16)},
    **{f"tif-rgb-{b}": lambda b=b: tiff_case(b, "rgb", 3) for b in (8, 16)},
    **{
        f"tif-rgba-{b}": lambda b=b: tiff_case(b, "rgb", 4, extrasamples=["unassalpha"])
        for b in (8, 16)
    },
    **{
        f"tif-grey-alpha-{b}": lambda b=b: tiff_case(
            b, "minisblack", 2, extrasamples=["unassalpha"], planarconfig="contig"
        )
        for b in (8, 16)
    },
    **{f"tif-cmyk-{b}": lambda b=b: tiff_case(b, "separated", 4) for b in (8, 16)},
    "tif-palette-8": lambda: tiff_case(
        8, "palette", colormap=np.ascontiguousarray(PALETTE.T.astype(np.uint16) * 257)
    ),
    "jpg-grey": lambda: jpeg(GREY),
    "jpg-rgb": lambda: jpeg(RGB),
    **{f"jp2-{b}-{c}": lambda b=b, c=c: jpeg2000(b, c) for b in (8, 10, 12, 16) for c in (1, 3)},
    "webp-rgb": lambda: pillow_case(RGB, "WEBP", lossless=True),
    "webp-rgba": lambda: pillow_case(RGBA, "WEBP", lossless=True, exact=True),
    "gif-palette": lambda: pillow_case(FEW, "GIF", "P", labels="format GIF"),
    "gif-grey": lambda: pillow_case(GREY, "GIF", labels="format GIF"),
    "bmp-grey-8": lambda: pillow_case(GREY, "BMP"),
    "bmp-palette-8": lambda: pillow_case(FEW, "BMP", "P"),
    "bmp-rgb": lambda: pillow_case(RGB, "BMP"),
    "bmp-black-white": lambda: bmp_1(0),
    "bmp-white-black": lambda: bmp_1(1),
}  # fmt: skip


def made(name: str, folder: Path) -> tuple[Case, Path]:
    case, path = CASES[name](), folder / f"a.{name.split('-')[0]}"
    path.write_bytes(case.content)
    return case, path


UNKNOWN = {"tif-white0-12", "tif-grey-alpha-16"}  # to Pillow
# Pillow forgets the depth or the maximum of these when it has decoded them.
LOST = {
    *(name for name in CASES if re.match(r"p[gp]m-(plain-)?(1|15|100|1023|4095)$", name)),
    *(name for name in CASES if re.match(r"(png|tif)-(grey|white0)(-clear)?-[24]$", name)),
    *(name for name in CASES if re.match("png-(grey-alpha|rgb|rgb-clear|rgba)-16|jp2-1", name)),
    "tif-rgb-16",
    "tif-rgba-16",
    "pgm-plain-65535",
    "ppm-plain-65535",
    "ppm-65535",
}


@pytest.mark.parametrize("window", ["none", "all", "window"])
@pytest.mark.parametrize("name", CASES)
def test_images_have_the_values_of_their_file(tmp_path: Path, name: str, window: str) -> None:
    case, path = made(name, tmp_path)
    low, high = (case.top // 4, case.top // 2 + 1) if window == "window" else (0, case.top)
    info = DatasetInfo(value_range=None if window == "none" else [low, high])
    if window == "window" and (case.colours is not None or (high > 255 and case.top <= 255)):
        pytest.skip("a range applies to grey or RGB values; 8 bits may lie below it")
    if window == "all" and case.colours is not None and "white0" not in name:
        pytest.skip("a range applies to the colours of a palette")
    if case.refused:
        with pytest.raises(DataError, match=case.refused) as error:
            read_image(path, info)
        assert "\n" not in str(error.value)
        return
    expected = case.picture(low, high)
    by_path = read_image(path, info).permute(1, 2, 0).numpy()
    assert np.abs(by_path - expected).max() <= (1 if "cmyk" in name else 0.501)
    if name in UNKNOWN:
        return
    with Image.open(path) as image:
        again = as_tensor(upright_pixels(image), info).permute(1, 2, 0).numpy()
        assert np.array_equal(again, by_path)
        image.load()  # now the same, unless Pillow has lost bits, which is said
        said = pytest.raises(ValueError, match="give the file's path")
        with said if name in LOST else nullcontext():
            again = as_tensor(upright_pixels(image), info).permute(1, 2, 0).numpy()
            assert np.array_equal(again, by_path)


@pytest.mark.parametrize("name", CASES)
def test_masks_have_the_labels_of_their_file(tmp_path: Path, name: str) -> None:
    case, path = made(name, tmp_path)
    if not case.labels:
        labels = read_labels(path)
        assert labels.dtype == np.uint8
        assert np.array_equal(labels, case.stored[..., 0])
        return
    with pytest.raises(DataError, match=rf"a\.\w+: .*({case.labels})") as error:
        read_labels(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "uint64", "complex64"])
@pytest.mark.parametrize("more", [{}, {"bigtiff": True}, {"byteorder": ">"}])
def test_masks_of_types_that_pillow_does_not_know_are_named(
    tmp_path: Path, dtype: str, more: dict
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values(3)[..., 0].astype(dtype), **more)
    with pytest.raises(DataError, match=rf"a\.tif: .*bands of {dtype}; ") as read:
        read_labels(path)
    assert "\n" not in str(read.value)
