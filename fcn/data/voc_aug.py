"""The 10,582-image convention: VOC2012's masks, and SBD's for images that VOC2012 leaves bare.

Training images are those of VOC2012's train and of all SBD, less VOC2012's val.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from fcn.config import VOID
from fcn.data.files import read_ids
from fcn.data.reading import DataError, read_mask
from fcn.data.shapes import voc_palette
from fcn.data.voc import CLASSES

MASKS, SPLIT = "SegmentationClassAug", "trainaug"
# Images of VOC2012 train and val, SBD train and val, and of trainaug: as published.
OFFICIAL, OFFICIAL_TRAINAUG = (1464, 1449, 8498, 2857), 10582


def is_built(voc2012: Path) -> bool:
    return (voc2012 / MASKS).is_dir() and _list(voc2012, SPLIT).is_file()


def build(voc2012: Path, sbd: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes SegmentationClassAug/ (train, val and SBD's) and trainaug.txt into VOC2012's folder.

    A trainaug.txt that is there already stays.
    Args: voc2012: VOCdevkit/VOC2012. sbd: benchmark_RELEASE/dataset. progress: called with the
        numbers of masks done and to do.
    Raises: DataError: masks are there without the list; a mask is missing; the lists are official,
        but their number is not. OSError: a list is missing.
    """
    if (voc2012 / MASKS).exists():
        raise DataError(
            f"{_list(voc2012, SPLIT)}: no such list, but {MASKS} is there; put the list there too, "
            "or move the masks away to have both made"
        )
    train, val = (read_ids(_list(voc2012, split)) for split in ("train", "val"))
    theirs = [read_ids(sbd / f"{split}.txt") for split in ("train", "val")]
    ids = sorted({*train, *theirs[0], *theirs[1]} - set(val))
    if (len(train), len(val), *map(len, theirs)) == OFFICIAL and len(ids) != OFFICIAL_TRAINAUG:
        raise DataError(
            f"{voc2012}, {sbd}: their lists give {len(ids)} images for trainaug, not "
            f"{OFFICIAL_TRAINAUG}; unpack both archives again"
        )
    if not _list(voc2012, SPLIT).exists():  # before the masks, which say that all is done
        part = _list(voc2012, SPLIT).with_suffix(".part")
        part.write_text("".join(f"{name}\n" for name in ids))
        part.replace(_list(voc2012, SPLIT))
    official = {*train, *val}
    names = sorted(official.union(ids))
    with tempfile.TemporaryDirectory(prefix=f".{MASKS}-", dir=voc2012) as scratch:
        new = Path(scratch) / "new"  # not scratch itself, which only its owner may read
        new.mkdir()
        for done, name in enumerate(names, 1):
            mask = voc2012 / "SegmentationClass" / f"{name}.png"
            if name in official:
                shutil.copyfile(mask, new / mask.name)
            else:
                labels = read_mask(sbd / "cls" / f"{name}.mat", len(CLASSES), VOID).numpy()
                coloured = Image.fromarray(labels)
                coloured.putpalette(voc_palette())
                coloured.save(new / mask.name)
            if progress is not None:
                progress(done, len(names))
        new.rename(voc2012 / MASKS)


def _list(voc2012: Path, split: str) -> Path:
    return voc2012 / "ImageSets" / "Segmentation" / f"{split}.txt"
