"""GeoTIFF: where the pixels of an image lie on the map, and how large they are on the ground.

Source: OGC GeoTIFF standard 1.1 (OGC 19-008), whose numbers of tags, keys and units these are.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import TiffTags
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from fcn.data.images import tiff_tags
from fcn.errors import DataError

SCALE, TIE_POINTS, TRANSFORMATION, KEYS, DOUBLES, TEXT = 33550, 33922, 34264, 34735, 34736, 34737
TYPES = dict.fromkeys((SCALE, TIE_POINTS, TRANSFORMATION, DOUBLES), TiffTags.DOUBLE)
TYPES |= {KEYS: TiffTags.SHORT, TEXT: TiffTags.ASCII}
MODEL, SYSTEM, UNIT = 1024, 3072, 3076  # keys
PROJECTED, GEOGRAPHIC, WEB_MERCATOR = 1, 2, 3857  # values of the first two
METRES = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937}  # metre, foot, US survey foot


@dataclass(frozen=True)
class Georeference:
    """The tags of a GeoTIFF that say where it lies, for a mask of the same pixels.

    GDAL's own two tags are not among them: names and statistics of bands, and the value without
    data, hold for the image and not for labels.

    Args:
        tags: their values by number.
    """

    tags: dict[int, Any]

    def directory(self) -> ImageFileDirectory_v2:
        """Return the tags as Pillow writes them: `tiffinfo`."""
        directory = ImageFileDirectory_v2()
        for number, value in self.tags.items():
            directory.tagtype[number] = TYPES[number]
            directory[number] = value
        return directory

    def pixel_area(self) -> tuple[float | None, str]:
        """Return the square metres of a pixel on the map; None and why, where they are unknown."""
        words = self.tags[KEYS]
        entries = (words[start : start + 4] for start in range(4, len(words) - 3, 4))
        keys = {key: value for key, place, _, value in entries if place == 0}
        unit = METRES.get(keys.get(UNIT, 0))
        if keys.get(MODEL) == GEOGRAPHIC:
            return None, "with coordinates in degrees"
        if keys.get(SYSTEM) == WEB_MERCATOR:
            return None, "in Web Mercator, which is not true to scale"
        if keys.get(MODEL) != PROJECTED or unit is None:
            return None, "with coordinates in an unknown unit"
        if SCALE in self.tags:
            width, height, *_ = self.tags[SCALE]
            area = width * height
        elif TRANSFORMATION in self.tags:
            a, b, _, _, d, e, *_ = self.tags[TRANSFORMATION]
            area = a * e - b * d
        else:
            return None, "with ground control points alone"
        return abs(area) * unit**2, ""


def read_georeference(path: Path) -> Georeference | None:
    """Return where an image lies on the map; None if it is no GeoTIFF, or cannot be read.

    A TIFF that is stored turned or mirrored has none: the tags would not fit its upright mask.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    try:
        tags = tiff_tags(path, (*TYPES, Base.Orientation))
    except DataError:
        return None
    upright = tags.pop(Base.Orientation, 1) == 1
    return Georeference(tags) if KEYS in tags and upright else None
