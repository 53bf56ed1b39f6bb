"""What each output remembers: of which image, settings and labels it was made.

So a later call knows its own masks from those of another image and from those that a person has
corrected, and which overlays and probabilities are of an older mask, whatever the times of the
files say. Only checksums are stored.
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from fcn.data.dataset import read_labels
from fcn.data.images import file_errors
from fcn.data.pixels import open_pillow
from fcn.errors import DataError

KEY = "fcn"  # of the text in a PNG; it begins the description of a TIFF and the array of an npz
OVERLAY_KEY = "fcn-overlay"  # so that no mask is taken for the overlay of another image


@dataclass(frozen=True)
class Origin:
    """Checksums, each of 16 hexadecimal digits."""

    settings: str
    path: str  # of the image, as seen from its mask
    image: str = ""  # of its content
    labels: str = ""  # of the mask that was written, or drawn in an overlay

    def fits(self, now: "Origin", *, labels: bool = False) -> bool:
        """Return True if image and settings, and labels if they count, are the same."""
        same = (self.image, self.settings) == (now.image, now.settings)
        return same and (not labels or self.labels == now.labels)

    def with_labels(self, mask: np.ndarray) -> "Origin":
        """Return it for a mask, uint8 (H, W)."""
        return replace(self, labels=checksum(str(mask.shape).encode() + mask.tobytes()))

    def as_text(self) -> str:
        """Return it as the description of a TIFF, or the array `origin` of an npz."""
        return " ".join((KEY, *astuple(self)))

    def as_png(self, key: str = KEY) -> PngInfo:
        """Return it as Pillow writes it to a PNG: `pnginfo`."""
        info = PngInfo()
        info.add_text(key, " ".join(astuple(self)))
        return info

    def as_tiff(self, tags: ImageFileDirectory_v2) -> ImageFileDirectory_v2:
        """Return the tags of a TIFF with it: `tiffinfo`."""
        tags[Base.ImageDescription] = self.as_text()
        return tags


def checksum(content: bytes) -> str:
    """Return 16 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def origin_of(image: Path, mask: Path, settings: str) -> Origin:
    """Return what the outputs of an image are to remember of it and of the settings.

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


def read_origin(path: Path, key: str = KEY) -> Origin | None:
    """Return what an output remembers; None if it is of an earlier version or another program."""
    with suppress(DataError), file_errors(path, "output"):
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                words = str(arrays["origin"]).split()
        else:
            with path.open("rb") as stream, open_pillow(stream) as picture:
                words = [KEY, *picture.info.get(key, "").split()]
                if picture.format == "TIFF":
                    words = str(picture.getexif().get(Base.ImageDescription, "")).split()
        return Origin(*words[1:]) if len(words) == 5 and words[0] == KEY else None
    return None


def labels_checksum(mask: Path) -> str:
    """Return the checksum of the labels in a file as they are now; "" if it holds none."""
    try:
        return Origin("", "").with_labels(read_labels(mask)).labels
    except DataError:  # in colours now, for example
        return ""
