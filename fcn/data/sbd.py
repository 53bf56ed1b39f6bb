"""The paper's data: SBD's own training images, and seg11valid to validate on.

Hariharan et al. 2011 label 8,498 training images; some of these are in VOC2011's segmentation val.
Long et al. validate on what is left of it, "seg11valid": computed here, 736 images when both
official data sets are whole.
"""

from pathlib import Path

from fcn.data.files import DataError, Pair, SegmentationFiles
from fcn.data.voc import CLASSES, voc

DATASET = Path("benchmark_RELEASE", "dataset")  # in the official benchmark.tgz
OFFICIAL_TRAIN, OFFICIAL_SEG11VALID = 8498, 736


def sbd(root: Path, split: str, *, ignore_index: int = 255) -> SegmentationFiles:
    """A split of the paper's data.

    Args:
        root: holds benchmark_RELEASE/dataset/ and, for seg11valid, VOCdevkit/VOC2011/.
        split: "train" (SBD's own) or "seg11valid" (VOC2011 segmentation val minus SBD train).
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
        )
    if split != "seg11valid":
        raise DataError(f"data.split: sbd has train and seg11valid, not {split!r}")
    files = voc(
        root / "VOCdevkit" / "VOC2011", "val", ignore_index=ignore_index, name="sbd seg11valid"
    )
    seen = set(train)
    left = [pair for pair in files.pairs if pair.id not in seen]
    if len(train) == OFFICIAL_TRAIN and len(left) != OFFICIAL_SEG11VALID:
        raise DataError(
            f"{root}: VOC2011 val minus SBD train leaves {len(left)} images, not "
            f"{OFFICIAL_SEG11VALID}; one of the two lists is not the official one"
        )
    return SegmentationFiles(left, CLASSES, ignore_index, f"sbd seg11valid ({root})")


def _ids(listing: Path) -> list[str]:
    if not listing.is_file():
        raise DataError(
            f"{listing}: no such list; unpack SBD's benchmark.tgz so that data.root holds "
            f"{DATASET} (and VOC2011 as VOCdevkit/VOC2011)"
        )
    return listing.read_text(encoding="utf-8-sig").split()
