"""Pascal VOC's layout: JPEGImages, a folder of palette masks, and lists of ids."""

from collections.abc import Sequence
from pathlib import Path

from fcn.data.files import Pair, SegmentationFiles, read_ids
from fcn.data.reading import DataError

CLASSES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]


def voc(
    folder: Path,
    split: str,
    *,
    masks: str = "SegmentationClass",
    classes: Sequence[str] = CLASSES,
    ignore_index: int = 255,
    name: str = "voc",
    strict: bool = True,
) -> SegmentationFiles:
    """A split of a data set in VOC layout.

    Args: folder: holds JPEGImages/, `masks`/ and ImageSets/Segmentation/`split`.txt. VOC keeps
            the masks of its split "test" to itself, so that one does without.
        strict: as for SegmentationFiles.
    Raises: DataError: the folder or a part of it is not there; says what should be.
    """
    listing = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such data set; unpack Pascal VOC there (the official archive holds "
            "VOCdevkit/VOC2012) or let data.download=true fetch it, or set data.root to the folder "
            "that holds VOCdevkit"
        )
    for part in ("JPEGImages",) if split == "test" else ("JPEGImages", masks):
        if not (folder / part).is_dir():
            raise DataError(f"{folder / part}: no such folder; data={name} needs it")
    if not listing.is_file():
        there = ", ".join(sorted(p.stem for p in listing.parent.glob("*.txt"))) or "none"
        raise DataError(f"{listing}: no such list; splits there: {there}")
    return SegmentationFiles(
        [
            Pair(i, folder / "JPEGImages" / f"{i}.jpg", folder / masks / f"{i}.png")
            for i in read_ids(listing)
        ],
        classes,
        ignore_index,
        f"{name} {split} ({listing})",
        strict=strict,
    )
