"""What a mask file remembers: of which image, and with which settings, it was predicted.

So a later call knows its own masks from those of another image and from those that a person has
corrected, whatever the times of the files say. Only checksums are stored.
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from fcn.data.dataset import read_labels
from fcn.data.pixels import open_pillow
from fcn.errors import DataError

KEY = "fcn"  # of the text in a PNG; in a TIFF it is the description


@dataclass(frozen=True)
class Origin:
    """Checksums, each of 16 hexadecimal digits."""

    settings: str
    path: str  # of the image, as seen from its mask
    image: str = ""  # of its content
    labels: str = ""  # of the mask that was written

    def with_labels(self, mask: np.ndarray) -> "Origin":
        """Return it for a mask, uint8 (H, W)."""
        return replace(self, labels=checksum(str(mask.shape).encode() + mask.tobytes()))

    def as_png(self) -> PngInfo:
        """Return it as Pillow writes it to a PNG: `pnginfo`."""
        info = PngInfo()
        info.add_text(KEY, " ".join(astuple(self)))
        return info

    def as_tiff(self, tags: ImageFileDirectory_v2) -> ImageFileDirectory_v2:
        """Return the tags of a TIFF with it: `tiffinfo`."""
        tags[Base.ImageDescription] = " ".join((KEY, *astuple(self)))
        return tags


def checksum(content: bytes) -> str:
    """Return 16 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def origin_of(image: Path, mask: Path, settings: str) -> Origin:
    """Return what a mask is to remember of its image and settings.

    Args:
        image: the file.
        mask: its file, there or not.
        settings: checksum of those on which masks depend.
    """
    place = image.resolve()
    with suppress(ValueError):  # on another drive of Windows
        place = Path(os.path.relpath(place, mask.parent.resolve()))
    with image.open("rb") as stream:
        content = hashlib.file_digest(stream, partial(hashlib.blake2b, digest_size=8))
    return Origin(settings, checksum(place.as_posix().encode()), content.hexdigest())


def read_origin(mask: Path) -> Origin | None:
    """Return what a mask file remembers; None if a program that drops it has written the file."""
    try:
        with mask.open("rb") as stream, open_pillow(stream) as picture:
            words = f"{KEY} {picture.info.get(KEY, '')}".split()
            if picture.format == "TIFF":
                words = str(picture.getexif().get(Base.ImageDescription, "")).split()
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return Origin(*words[1:]) if len(words) == 5 and words[0] == KEY else None


def is_changed(mask: Path, origin: Origin) -> bool:
    """Return True if the labels in a file are no longer those that were written."""
    try:
        return origin.with_labels(read_labels(mask)).labels != origin.labels
    except DataError:  # in colours now, for example
        return True
