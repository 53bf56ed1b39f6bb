"""The masks of annotation tools as arrays of values.

A value is a label, or COLOUR + 0xRRGGBB where colours are classes, or TRANSPARENT.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from fcn.data.dataset import Colours, palette_problem, used_colours
from fcn.data.images import file_errors, opened
from fcn.data.pixels import ALPHA, INVERTED, PREMULTIPLIED, Pixels, stored_pixels
from fcn.dataset_info import VOID
from fcn.errors import DataError

COLOUR = 1 << 24
TRANSPARENT = -COLOUR  # of pixels that are erased by an alpha channel
SMOOTHED = 0.1  # at most this share of the pixels is the smoothed boundary between others
FEW = 32  # labels; a smoothed boundary has more levels, or others
GREY = 48, 208  # levels that neither black nor white become by lossy compression
REACH = 5  # pixels, side of the window in which a smoothed boundary meets what it separates


@dataclass(frozen=True)
class Alpha:
    """What the alpha channel of masks means."""

    is_mask: bool = False
    is_black: bool = False  # all that it covers
    largest: int = 255  # in all masks


def read_values(
    path: Path, colours: bool = False, alpha: Alpha | None = None, lossless: bool = False
) -> np.ndarray:
    """Read a mask in any format.

    Args:
        path: a picture, or .npy.
        colours: return the colours of palettes and of files with three channels; otherwise the
            numbers in palettes, and labels where the three channels are equal.
        alpha: see `find_alpha`.
        lossless: refuse files whose compression changes values, even if they are black and white.

    Returns:
        int64 (H, W); TRANSPARENT where alpha is below half of the largest in all masks.

    Raises:
        DataError: unreadable; several pages; fractions; white as 0; a JPEG or another file of
            lossy compression that is not black and white.
    """
    alpha = alpha or Alpha()
    if path.suffix == ".npy":
        with file_errors(path, "mask"):
            pixels = np.load(path)
        if pixels.ndim != 2:
            raise DataError(f"{path}: an array {pixels.shape}; a mask must be (H, W)")
        return _whole(path, pixels)
    with _opened(path) as file:
        if kind := _lossy_format(path, file):
            grey = np.asarray(file.convert("RGB")).mean(2)
            return _black_and_white(path, grey, colours or lossless, kind)
        values, opacity = _values_and_opacity(path, file, colours)
    if alpha.is_mask and opacity is not None:
        return opacity
    if values.shape[2] < 3 or (not colours and (values == values[..., :1]).all()):
        values = values[..., 0]
    else:
        values = COLOUR + (_eight_bits(path, values) << (16, 8, 0)).sum(2)
    if opacity is not None:
        values = np.where(2 * opacity < alpha.largest, TRANSPARENT, values)
    return values


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open the file of one mask."""
    with opened(path, "mask") as file:
        pages = getattr(file, "n_frames", 1) if isinstance(file, Image.Image) else len(file.pages)
        if pages > 1:
            raise DataError(f"{path}: {pages} pages; save each as a mask of its own")
        yield file


def _values_and_opacity(
    path: Path, file: Any, colours: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return labels or colours, int64 (H, W, 1 or 3), and alpha of 0..255, if there is one."""
    mode = getattr(file, "mode", "")
    if mode == "PA" or (mode == "P" and colours):
        pixels = Pixels(np.asarray(file.convert("RGBA")), ["red", "green", "blue", ALPHA])
    else:
        pixels = stored_pixels(file)
    if pixels.inverted:
        raise DataError(f"{path}: a TIFF that stores {INVERTED}; save it as PNG")
    values, bands = _whole(path, pixels.values), pixels.bands
    has_alpha = len(bands) in (2, 4) and bands[-1] in (ALPHA, PREMULTIPLIED)
    if mode in ("CMYK", "YCbCr", "HSV", "LAB") or len(bands) - has_alpha not in (1, 3):
        raise DataError(f"{path}: a mask must be grey or RGB; its bands are {', '.join(bands)}")
    if not has_alpha:
        return values, None
    largest = max(pixels.span) if pixels.span else np.iinfo(pixels.values.dtype).max
    return values[..., :-1], values[..., -1] * 255 // largest


def _whole(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Return pixels as int64; fractions are an error."""
    values = pixels.astype(np.int64)
    if (values != pixels).any():
        raise DataError(f"{path}: fractional values; a mask must hold labels or colours")
    return values


def _eight_bits(path: Path, rgb: np.ndarray) -> np.ndarray:
    """Return colours of 0..255, which files of 16 bits hold as they are or 257 times as large."""
    if rgb.max(initial=0) < 256 and rgb.min(initial=0) >= 0:
        return rgb
    if (rgb % 257).any() or rgb.max() > 65535:
        raise DataError(f"{path}: colours beyond 8 bits; export the masks with 8 bits per channel")
    return rgb // 257


def _lossy_format(path: Path, file: Any) -> str:
    """Return the format of a file whose compression changes values, "" of others."""
    kind = str(getattr(file, "format", ""))
    if kind == "WEBP" and b"VP8L" not in path.read_bytes()[:1024]:
        return "lossy WebP"
    if kind == "JPEG2000":
        _, found, segment = path.read_bytes().partition(b"\xff\x52")  # the segment COD
        return "lossy JPEG 2000" if found and segment[11] == 0 else ""  # an irreversible wavelet
    return kind if kind in ("JPEG", "MPO", "AVIF", "HEIF") else ""


def _black_and_white(path: Path, grey: np.ndarray, exact: bool, kind: str) -> np.ndarray:
    """Return 0 and 255 of a file whose compression blurs edges, such as JPEG."""
    labels = 0 < grey.max() < 128
    area = minimum_filter((grey > GREY[0]) & (grey < GREY[1]), 3)  # more than a blurred edge
    if exact or labels or area.any():
        raise DataError(f"{path}: {kind} changes labels and colours; export the masks as PNG")
    return np.where(grey < 128, 0, 255)


def find_alpha(masks: Iterable[Path]) -> Alpha:
    """Read the alpha channels of all masks: they are the masks if all pixels have one colour."""
    seen, levels, others = set[bytes](), {0}, False
    for path in masks:
        if path.suffix == ".npy":
            return Alpha()
        opacity = None
        with _opened(path) as file:
            if getattr(file, "mode", "LA") in ("LA", "RGBA") and not _lossy_format(path, file):
                values, opacity = _values_and_opacity(path, file, False)
        if opacity is None:
            others = True
        else:
            colours = np.unique(values.reshape(-1, values.shape[2]), axis=0)
            seen |= {colour.tobytes() for colour in colours[:2]}
            levels |= {int(opacity.min()), int(opacity.max())}
    is_mask = len(seen) == 1 and len(levels) > 1 and not others
    return Alpha(is_mask, not any(map(any, seen)), max(levels) if seen else 255)


def check_palettes(masks: Iterable[Path]) -> None:
    """Raise a DataError if a number has two colours in the palettes of masks of labels."""

    def colours(path: Path) -> Colours:
        with _opened(path) as file:
            palette = file.getpalette() if isinstance(file, Image.Image) else None  # none in grey
            return used_colours(np.asarray(file), palette) if palette else {}

    if problem := palette_problem((p, colours(p)) for p in masks if p.suffix != ".npy"):
        raise DataError(problem)


def smoothed_pixels(values: np.ndarray, known: Sequence[int]) -> int:
    """Count the pixels of other values between two known ones, as smoothing makes them.

    Args:
        values: int64 (H, W).
        known: the values that are classes.
    """
    order = np.array(sorted(known))
    place = np.searchsorted(order, values).clip(0, len(order) - 1)
    is_known = order[place] == values
    highest = maximum_filter(np.where(is_known, place, -1), REACH)
    lowest = minimum_filter(np.where(is_known, place, len(order)), REACH)
    return int((~is_known & (lowest < highest)).sum())


def nearest(values: Iterable[int], known: Iterable[int]) -> dict[int, int]:
    """Return the known value whose level or colour is nearest to each value."""
    targets = np.array(sorted(known))
    return {v: int(targets[((_rgb(targets) - _rgb(v)) ** 2).sum(-1).argmin()]) for v in values}


def _rgb(values: np.ndarray | int) -> np.ndarray:
    """Return levels and colours as RGB, int64 (..., 3)."""
    values = np.asarray(values)[..., None]
    return np.where(values < COLOUR, values, values >> np.array([16, 8, 0]) & 255)


def covered_pixels(
    path: Path, alpha: Alpha, take_nearest: bool, size: tuple[int, int]
) -> np.ndarray:
    """Return the pixels that the mask of one class covers, bool (H, W).

    Args:
        path: of the mask.
        alpha: see `find_alpha`.
        take_nearest: cut smoothed boundaries at half of the largest level.
        size: (width, height) of the other masks of the image.

    Raises:
        DataError: it is not the mask of one class, or of another size.
    """
    values = read_values(path, alpha=alpha)
    covered = ~np.isin(values, (0, COLOUR, TRANSPARENT))
    levels, counts = np.unique(values[covered], return_counts=True)
    several = f"{len(levels) + 1} values"
    if values.shape != size[::-1]:
        problem = "has another size than the image's other masks; export them alike"
    elif len(levels) < 2:
        return covered
    elif len(levels) == 2 and levels[1] == VOID and levels[0] < FEW:
        problem = (
            f"the values 0, {levels[0]} and 255, of which 255 looks like an ignore label; put its "
            "pixels in a mask of their own, as those of a class called ignore, and 0 here"
        )
    elif levels[-1] >= COLOUR or counts.sum() - counts.max() > SMOOTHED * values.size:
        problem = (
            f"{several}, but the mask of one class of several has two; choose the masks with "
            "masks=FOLDER or a pattern, such as masks=*_labels.png"
        )
    elif not take_nearest:
        problem = f"the boundaries are smoothed ({several}); nearest=true cuts them at half of the "
        problem += "largest"
    else:
        return values * 2 >= levels[-1]
    raise DataError(f"{path}: {problem}")
