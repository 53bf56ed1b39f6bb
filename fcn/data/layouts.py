"""How the files of a data set lie: one function per layout, named by `data.layout`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from fcn.config import ConfigError, DataConfig
from fcn.data import shapes
from fcn.data.dataset import DataError, Pair, SegmentationDataset, read_list
from fcn.data.shards import open_shards

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
]  # fmt: skip
VOC2011, SBD = Path("VOCdevkit/VOC2011"), Path("benchmark_RELEASE/dataset")  # below data.root
# Number of images of SBD train, VOC2011 segmentation val, and seg11valid, as published.
SBD_TRAIN, VOC2011_VAL, SEG11VALID = 8498, 1111, 736


def open_split(data: DataConfig, split: str, *, strict: bool = True) -> SegmentationDataset:
    """Open one split of a data set.

    Args:
        data: the data set.
        split: name of the split.
        strict: raise an error if its list has problems; see `SegmentationDataset`.

    Raises:
        ConfigError: unknown data.layout.
        DataError: a file or folder is missing; says what to do.
    """
    if data.layout not in LAYOUTS:
        raise ConfigError(f"data.layout={data.layout} is unknown; choose from {', '.join(LAYOUTS)}")
    return LAYOUTS[data.layout](data, split, strict)


def voc(data: DataConfig, split: str, strict: bool) -> SegmentationDataset:
    """Open a split in Pascal VOC's layout.

    root/folder holds JPEGImages/ID.jpg, SegmentationClass/ID.png (or another data.masks) and
    ImageSets/Segmentation/SPLIT.txt with one id per line. The split "test" may lack masks, which
    VOC does not publish.
    """
    folder = Path(data.root, data.folder)
    images, masks = folder / "JPEGImages", folder / data.masks
    ids = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such data set; add data.download=true, or set data.root to the folder "
            "that holds VOCdevkit"
        )
    if split != "test" and not masks.is_dir():
        raise DataError(f"{masks}: no such folder; data={data.name} needs it")
    if not ids.is_file():
        known = ", ".join(sorted(path.stem for path in ids.parent.glob("*.txt"))) or "none"
        raise DataError(f"{ids}: no such list; available splits: {known}")
    return SegmentationDataset(
        [Pair(i, images / f"{i}.jpg", masks / f"{i}.png") for i in read_list(ids)],
        data.classes or VOC_CLASSES,
        data.ignore_index,
        f"{data.name} {split} ({ids})",
        strict=strict,
    )


def sbd(data: DataConfig, split: str, strict: bool) -> SegmentationDataset:
    """Open a split of the paper's data: SBD's "train", or "seg11valid".

    Hariharan et al. 2011 label 8,498 training images, some of which are in VOC2011's segmentation
    val. Long et al. validate on the rest of VOC2011 val, seg11valid: 736 images, computed here.
    """
    root = Path(data.root)
    ids = root / SBD / "train.txt"
    if not ids.is_file():
        raise DataError(
            f"{ids}: no such list; add data.download=true, or unpack SBD's benchmark.tgz so that "
            f"data.root holds {SBD} (and VOC2011 as {VOC2011})"
        )
    train = read_list(ids)
    problems = []
    if split == "train":
        images, masks = root / SBD / "img", root / SBD / "cls"
        pairs = [Pair(i, images / f"{i}.jpg", masks / f"{i}.mat") for i in train]
    elif split == "seg11valid":
        val = voc(replace(data, folder=str(VOC2011)), "val", strict)
        seen = set(train)
        pairs = [pair for pair in val.pairs if pair.id not in seen]
        # Lists of official length must leave the official number; those of subsets need not.
        official = len(train) == SBD_TRAIN or len(val) == VOC2011_VAL
        if official and len(pairs) != SEG11VALID:
            problems.append(
                f"{root}: VOC2011 val ({len(val)} images, officially {VOC2011_VAL}) minus SBD "
                f"train ({len(train)}, officially {SBD_TRAIN}) leaves {len(pairs)} images, but "
                f"seg11valid has {SEG11VALID}; unpack the archives again"
            )
    else:
        raise DataError(f"data.split={split}: data=sbd has the splits train and seg11valid")
    name = f"sbd {split} ({root})"
    return SegmentationDataset(
        pairs, VOC_CLASSES, data.ignore_index, name, problems=problems, strict=strict
    )


def folder(data: DataConfig, split: str, strict: bool) -> SegmentationDataset:
    """Open a split of a folder of images and masks, paired by name.

    data.root holds images/SPLIT/NAME.* (any format of Pillow), annotations/SPLIT/NAME.png, and
    classes.txt with one name per line, background first, unless data.classes is given. Ids are
    SPLIT/NAME, since the same name in two splits is usually another image.
    """
    root = Path(data.root)
    images, masks = root / "images" / split, root / "annotations" / split
    for part in (images, masks):
        if not part.is_dir():
            raise DataError(
                f"{part}: no such folder; data=folder needs images/{split}/NAME.jpg (or .png) and "
                f"annotations/{split}/NAME.png in data.root"
            )
    known = Image.registered_extensions()
    pairs = [
        Pair(f"{split}/{path.stem}", path, masks / f"{path.stem}.png")
        for path in sorted(images.iterdir())
        if path.suffix.lower() in known and not path.name.startswith(".")
    ]
    there = set(masks.iterdir())
    if strict and (bare := [pair for pair in pairs if pair.mask not in there]):
        raise DataError(
            f"{bare[0].image}: no mask at {bare[0].mask} ({len(bare)} of {len(pairs)} images have "
            f"none, {masks} holds {min(there).name if there else 'nothing'}); add or rename masks"
        )
    classes, listed = data.classes, root / "classes.txt"
    if not classes:
        classes = read_list(listed) if listed.is_file() else []
        if len(classes) < 2:
            raise DataError(
                f"{listed}: {len(classes)} class names; list them there, one per line, background "
                "first, or set data.classes=[background,...]"
            )
    name = f"folder {split} ({images})"
    return SegmentationDataset(pairs, classes, data.ignore_index, name, strict=strict)


def sample(data: DataConfig, split: str, strict: bool) -> SegmentationDataset:
    """Open a split of the sample data set, drawn into data.root/shapes on first use."""
    drawn = shapes.prepare(Path(data.root))
    classes = data.classes or list(shapes.CLASSES)
    return voc(replace(data, folder=drawn.name, classes=classes), split, strict)


def shards(data: DataConfig, split: str, strict: bool) -> SegmentationDataset:
    """Open a split of a set that `prepare_data shards=FOLDER` has written."""
    return open_shards(data.root, split, classes=data.classes, ignore_index=data.ignore_index)


LAYOUTS: dict[str, Callable[[DataConfig, str, bool], SegmentationDataset]] = {
    "voc": voc,
    "sbd": sbd,
    "folder": folder,
    "shapes": sample,
    "shards": shards,
}
