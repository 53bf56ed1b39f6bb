"""The masks of annotation tools as arrays of values.

A value is a label, or COLOUR + 0xRRGGBB where colours are classes, or TRANSPARENT.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageFile
from scipy.ndimage import maximum_filter, minimum_filter

from fcn.data.images import file_errors, open_pillow
from fcn.errors import DataError

COLOUR = 1 << 24
TRANSPARENT = -2  # of pixels that are erased by an alpha channel
SMOOTHED = 0.1  # at most this share of the pixels is the smoothed boundary between others
REACH = 5  # pixels, side of the window in which a smoothed boundary meets what it separates


@dataclass(frozen=True)
class Alpha:
    """What the alpha channel of masks means."""

    is_mask: bool = False
    is_black: bool = False  # all that it covers
    largest: int = 255  # in all masks


OPAQUE = Alpha()


def read_values(path: Path, colours: bool = False, alpha: Alpha = OPAQUE) -> np.ndarray:
    """Read a mask in any format.

    Args:
        path: a picture, or .npy.
        colours: return the colours of palettes and of files with three channels; otherwise the
            numbers in palettes, and labels where the three channels are equal.
        alpha: see `find_alpha`.

    Returns:
        int64 (H, W); TRANSPARENT where alpha is below half of the largest in all masks.

    Raises:
        DataError: unreadable; several pages; fractions; a JPEG that is not black and white.
    """
    with file_errors(path, "mask"):
        if path.suffix == ".npy":
            pixels = np.load(path)
            if pixels.ndim != 2:
                raise DataError(f"{path}: an array {pixels.shape}; a mask must be (H, W)")
            return _whole(path, pixels)
        with path.open("rb") as stream, open_pillow(stream) as image:
            if (pages := getattr(image, "n_frames", 1)) > 1:
                raise DataError(f"{path}: {pages} pages; save each as a mask of its own")
            is_jpeg, step = image.format == "JPEG", _grey_step(image)
            as_rgba = image.mode == "PA" or (image.mode == "P" and colours)
            pixels = np.asarray(image.convert("RGBA") if as_rgba else image)
            has_alpha = as_rgba or image.mode in ("LA", "RGBA")
    if is_jpeg:
        return _black_and_white(path, pixels, colours)
    values = _whole(path, pixels) // step
    if values.ndim == 2:
        return values
    opacity = values[..., -1]
    if alpha.is_mask:
        return opacity
    rgb = values[..., :3]
    if rgb.shape[2] < 3 or (not colours and (rgb == rgb[..., :1]).all()):
        values = rgb[..., 0]
    else:
        values = COLOUR + (rgb << (16, 8, 0)).sum(2)
    if has_alpha:
        values = np.where(2 * opacity < alpha.largest, TRANSPARENT, values)
    return values


def _grey_step(image: ImageFile.ImageFile) -> int:
    """Return the factor by which Pillow scales labels in PNGs of 2 and 4 bits."""
    mode: Any = image.tile[0].args if image.tile else ""
    return {"L;2": 85, "L;4": 17}.get(mode if isinstance(mode, str) else "", 1)


def _whole(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Return pixels as int64; fractions are an error."""
    values = pixels.astype(np.int64)
    if (values != pixels).any():
        raise DataError(f"{path}: fractional values; a mask must hold labels or colours")
    return values


def _black_and_white(path: Path, pixels: np.ndarray, colours: bool) -> np.ndarray:
    """Return 0 and 255 of a JPEG, whose compression blurs edges."""
    grey = pixels.reshape(*pixels.shape[:2], -1).mean(2)
    labels = 0 < grey.max() < 128
    if colours or labels or ((grey > 64) & (grey < 192)).mean() > 0.1:
        raise DataError(f"{path}: JPEG changes labels and colours; export the masks as PNG")
    return np.where(grey < 128, 0, 255)


def find_alpha(masks: Iterable[Path]) -> Alpha:
    """Read the alpha channels of all masks: they are the masks if all pixels have one colour."""
    seen, levels, others = set[bytes](), {0}, False
    for path in masks:
        if path.suffix == ".npy":
            return Alpha()
        with file_errors(path, "mask"), path.open("rb") as stream, open_pillow(stream) as image:
            if image.mode not in ("LA", "RGBA"):
                others = True
                continue
            pixels = np.asarray(image)
        seen |= {
            colour.tobytes()
            for colour in np.unique(pixels[..., :-1].reshape(-1, pixels.shape[2] - 1), axis=0)[:2]
        }
        levels |= {int(pixels[..., -1].min()), int(pixels[..., -1].max())}
    is_mask = len(seen) == 1 and len(levels) > 1 and not others
    return Alpha(is_mask, not any(map(any, seen)), max(levels) if seen else 255)


def check_palettes(masks: Iterable[Path]) -> None:
    """Raise a DataError if a number has two colours in the palettes of masks of labels."""
    seen = dict[int, tuple[list[int], Path]]()
    for path in (path for path in masks if path.suffix != ".npy"):
        with file_errors(path, "mask"), path.open("rb") as stream, open_pillow(stream) as image:
            palette = image.getpalette() or []  # none in grey
            for number in np.unique(np.asarray(image)).tolist() if palette else ():
                colour = palette[3 * number : 3 * number + 3]
                other, first = seen.setdefault(number, (colour, path))
                if colour != other:
                    raise DataError(
                        f"{path}: {number} has the colour {colour}, but {other} in {first}; if "
                        "colours are the classes, list them: data.classes=[...] "
                        'data.colours=[[r,g,b],...]; if numbers are, "labels={0: NAME, ...}"'
                    )


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


def rims(values: np.ndarray) -> tuple[Counter[tuple[int, ...]], Counter[tuple[int, ...]]]:
    """Count the pixels of labels that lie as a thin line between a lower and a higher one.

    Args:
        values: int64 (H, W); only 0..254 are labels.

    Returns:
        The pixels of each (lower, label, higher), and the contacts of each (lower, higher).
    """
    labels = np.where((values < 0) | (values > 254), 255, values).astype(np.uint8)
    low, high = _of_nine(labels, np.minimum), _of_nine(labels, np.maximum)
    middle = labels[1:-1, 1:-1]
    inside = (low < middle) & (middle < high) & (high < 255)
    edges = []
    for one, other in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        edge = one != other
        pair = one[edge], other[edge]
        edges.append(np.stack([np.minimum(*pair), np.maximum(*pair)]))
    return _rows(low[inside], middle[inside], high[inside]), _rows(*np.concatenate(edges, axis=1))


def _of_nine(labels: np.ndarray, choose: np.ufunc) -> np.ndarray:
    """Return the lowest or highest of each pixel and its neighbours; SciPy's is much slower."""
    rows = choose(choose(labels[:-2], labels[1:-1]), labels[2:])
    return choose(choose(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def _rows(*columns: np.ndarray) -> Counter[tuple[int, ...]]:
    """Count the rows of some columns of 0..255."""
    codes = sum(column.astype(np.int64) << 8 * k for k, column in enumerate(columns))
    found, counts = np.unique(codes, return_counts=True)
    rows = zip(*((found >> 8 * k & 255).tolist() for k in range(len(columns))), strict=True)
    return Counter(dict(zip(rows, counts.tolist(), strict=True)))


def combine(
    layers: Sequence[tuple[int, Path]], alpha: Alpha, take_nearest: bool, overlaps: dict[str, int]
) -> np.ndarray:
    """Read the masks of an image, one for each class, later ones over earlier ones.

    Args:
        layers: the value to write and the mask file, for each class.
        alpha: see `find_alpha`.
        take_nearest: cut smoothed boundaries at half of the largest level.
        overlaps: receives the number of pixels that several masks cover, by the first mask.

    Returns:
        int64 (H, W), 0 where no mask has a pixel.

    Raises:
        DataError: a mask is not that of one class; sizes differ.
    """
    drawn = [(value, _covered(path, alpha, take_nearest), path) for value, path in layers]
    result, depth = np.zeros_like(drawn[0][1], np.int64), np.zeros_like(drawn[0][1], np.int64)
    for value, covered, path in drawn:
        if covered.shape != result.shape:
            raise DataError(f"{path}: has another size than {layers[0][1]}; export them alike")
        result[covered] = value
        depth += covered
    overlaps[str(layers[0][1])] = int((depth > 1).sum())
    return result


def _covered(path: Path, alpha: Alpha, take_nearest: bool) -> np.ndarray:
    """Return the pixels that the mask of one class covers, bool (H, W)."""
    values = read_values(path, alpha=alpha)
    covered = ~np.isin(values, (0, COLOUR, TRANSPARENT))
    levels, counts = np.unique(values[covered], return_counts=True)
    if len(levels) < 2:
        return covered
    rest = 1 - (counts.max() + (~covered).sum()) / values.size
    if levels[-1] >= COLOUR or rest > SMOOTHED:
        raise DataError(
            f"{path}: {len(levels) + 1} values, but the mask of one class of several has two; "
            "choose the masks with masks=FOLDER or a pattern, such as masks=*_labels.png"
        )
    if not take_nearest:
        raise DataError(
            f"{path}: the boundaries are smoothed ({len(levels) + 1} values); nearest=true cuts "
            "them at half of the largest"
        )
    return values * 2 >= levels[-1]
