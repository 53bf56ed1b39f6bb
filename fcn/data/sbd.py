"""The paper's data: SBD's own training images, and seg11valid to validate on.

Hariharan et al. 2011 label 8,498 training images; some of these are in VOC2011's segmentation val.
Long et al. validate on what is left of it, "seg11valid": computed here, 736 images when both
official data sets are whole.
"""

from pathlib import Path

from fcn.data.files import Pair, SegmentationFiles, read_ids
from fcn.data.reading import DataError
from fcn.data.voc import CLASSES, voc

DATASET = Path("benchmark_RELEASE", "dataset")  # in the official benchmark.tgz
OFFICIAL_TRAIN, OFFICIAL_VAL, OFFICIAL_SEG11VALID = 8498, 1111, 736  # images of each list


def sbd(
    root: Path, split: str, *, ignore_index: int = 255, strict: bool = True
) -> SegmentationFiles:
    """A split of the paper's data.

    Args:
        root: holds benchmark_RELEASE/dataset/ and, for seg11valid, VOCdevkit/VOC2011/.
        split: "train" (SBD's own) or "seg11valid" (VOC2011 segmentation val minus SBD train).
        strict: as for SegmentationFiles.
    Raises: DataError: a part is missing, or the official lists do not give the official number.
    """
    train = _ids(root / DATASET / "train.txt")
    if split == "train":
        return SegmentationFiles(
            [
                Pair(i, root / DATASET / "img" / f"{i}.jpg", root / DATASET / "cls" / f"{i}.mat")
                for i in train
            ],
            CLASSES,
            ignore_index,
            f"sbd train ({root / DATASET})",
            strict=strict,
        )
    if split != "seg11valid":
        raise DataError(f"data.split: sbd has train and seg11valid, not {split!r}")
    files = voc(
        root / "VOCdevkit" / "VOC2011",
        "val",
        ignore_index=ignore_index,
        name="sbd seg11valid",
        strict=strict,
    )
    seen = set(train)
    left = [pair for pair in files.pairs if pair.id not in seen]
    return SegmentationFiles(
        left,
        CLASSES,
        ignore_index,
        f"sbd seg11valid ({root})",
        problems=_not_official(root, len(seen), len(set(files.ids)), len(left)),
        strict=strict,
    )


def _not_official(root: Path, train: int, val: int, left: int) -> list[str]:
    """What to say if a list is as long as the official one, yet seg11valid is not.

    Where neither is, they are someone's own part of the data, of which nothing is known.
    """
    official = train == OFFICIAL_TRAIN or val == OFFICIAL_VAL
    if not official or left == OFFICIAL_SEG11VALID:
        return []
    return [
        f"{root}: VOC2011 val ({val} images, officially {OFFICIAL_VAL}) minus SBD train ({train}, "
        f"officially {OFFICIAL_TRAIN}) leaves {left}, not the {OFFICIAL_SEG11VALID} of seg11valid; "
        "unpack again the archive whose list differs"
    ]


def _ids(listing: Path) -> list[str]:
    if not listing.is_file():
        raise DataError(
            f"{listing}: no such list; unpack SBD's benchmark.tgz so that data.root holds "
            f"{DATASET} (and VOC2011 as VOCdevkit/VOC2011), or let data.download=true fetch them"
        )
    return read_ids(listing)
