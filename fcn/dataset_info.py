"""Classes, colours, ignored label, bands and value range of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from unicodedata import category, normalize

VOID = 255  # ignored pixels in every target, whatever number the mask files use
# The image mean that the FCN authors subtract for VOC and PASCAL-Context: blue, green, red of 255.
MEAN_BGR = (104.00699, 116.66877, 122.67892)
MEAN_COLOUR = (124, 116, 104)  # the same, RGB: below transparent pixels, and beyond an image's edge
# Names of classes, in lower case: of what lies between objects, and of what counts nowhere.
BACKGROUND = ("background", "bg", "_background_", "unlabelled", "unlabeled")
IGNORED = ("ignore", "ignored", "__ignore__", "void")


@dataclass(frozen=True)
class DatasetInfo:
    """Classes, colours, ignore label, bands and value range of a data set; checkpoints keep it.

    Args:
        classes: names of the labels 0..K-1.
        colours: RGB of the labels 0..K-1; a label without one has Pascal VOC's.
        ignore_index: label of ignored pixels in the mask files.
        background: whether label 0 is background, which pictures leave without colour.
        value_range: pixel values that become black and white; None: all of 8 or 16 bits.
        bands: channels of the image files, by number from 0 or by name; empty: RGB.
    """

    classes: list[str] = field(default_factory=list)
    colours: list[list[int]] = field(default_factory=list)
    ignore_index: int = VOID
    background: bool = True
    value_range: list[float] | None = None
    bands: list[int | str] = field(default_factory=list)

    @property
    def channels(self) -> int:
        """C of the images."""
        return len(self.bands) or 3


INFO_KEYS = tuple(DatasetInfo.__dataclass_fields__)  # of dataset.yaml, and of DataConfig


def starts_with_background(classes: Sequence[str]) -> bool:
    """Return True if the name of class 0 says that it is background."""
    return bool(classes) and classes[0].lower() in (*BACKGROUND, *IGNORED)


def class_problem(classes: Sequence[str]) -> str:
    """Return why these cannot be the names of classes, in one line; "" if they can."""
    names = [normalize("NFC", name) for name in classes]
    for name in names:
        if any(category(character) in ("Cc", "Zl", "Zp") for character in name):
            return f"class name {name!r} has a line break or another control character"
        if not name.strip():
            return f"class name {name!r} is empty"
    if twice := [name for name in names if names.count(name) > 1]:
        return f"class {twice[0]} is named twice; every name must occur once"
    return ""
