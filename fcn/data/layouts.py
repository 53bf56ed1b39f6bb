"""How the files of a data set lie: one function per layout, named by `data.layout`.

Beside the data, dataset.yaml may say what is known about it: the keys of `DatasetInfo`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image
from yaml import YAMLError, safe_load

from fcn.config import DataConfig, check, unknown_key
from fcn.data import shapes
from fcn.data.dataset import CONVERT, Pair, SegmentationDataset, read_list
from fcn.data.shards import open_shards
from fcn.dataset_info import INFO_KEYS, DatasetInfo, starts_with_background
from fcn.errors import ConfigError, DataError
from fcn.pictures.visualize import voc_palette

DESCRIPTION = "dataset.yaml"  # beside the data
VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
]  # fmt: skip
VOC2011, SBD = Path("VOCdevkit/VOC2011"), Path("benchmark_RELEASE/dataset")  # below data.root
# Number of images of SBD train, VOC2011 segmentation val, and seg11valid, as published.
SBD_TRAIN, VOC2011_VAL, SEG11VALID = 8498, 1111, 736


def open_split(
    data: DataConfig, split: str, *, strict: bool = True, known: DatasetInfo | None = None
) -> SegmentationDataset:
    """Open one split of a data set.

    Args:
        data: the data set.
        split: name of the split.
        strict: raise an error if its list has problems; see `SegmentationDataset`.
        known: what a checkpoint knows, for all that neither `data` nor the data set says.

    Raises:
        ConfigError: unknown data.layout.
        DataError: a file or folder is missing; says what to do.
    """
    if data.layout not in LAYOUTS:
        raise ConfigError(f"data.layout={data.layout} is unknown; choose from {', '.join(LAYOUTS)}")
    return LAYOUTS[data.layout](data, split, strict, known)


def merge_info(
    data: DataConfig, own: Mapping[str, Any], known: DatasetInfo | None = None
) -> DatasetInfo:
    """Return all that is known about a data set.

    Args:
        data: the settings, which win.
        own: what the data set says of itself, by the keys of `DatasetInfo`.
        known: what a checkpoint knows, for all that neither of them says; what its model takes,
            value_range and bands, counts more than what the data set says.

    Raises:
        ConfigError: the values do not fit together.
    """
    given = {key: getattr(data, key) for key in INFO_KEYS}
    given = {key: value for key, value in given.items() if value not in (None, [])}
    says = {**own, **given}
    if known is not None:
        kept = asdict(known)
        if says.get("classes", known.classes) != known.classes:
            del kept["colours"], kept["background"]  # of other classes
        takes = {key: kept[key] for key in ("value_range", "bands") if kept[key]}
        says = kept | says | takes | given
    classes = says.setdefault("classes", [])
    says.setdefault("background", starts_with_background(classes))
    says["colours"] = says.get("colours") or voc_palette(len(classes)).tolist()
    info = DatasetInfo(**says)
    if len(set(classes)) < len(classes):
        raise ConfigError(f"data.classes={classes}: every name must occur once")
    if len(info.colours) != len(classes):
        raise ConfigError(
            f"data.colours has {len(info.colours)} colours for {len(classes)} classes"
        )
    if info.value_range and info.value_range[0] >= info.value_range[1]:
        raise ConfigError(f"data.value_range={info.value_range}: must be [from, to], from < to")
    return info


def described(folder: Path) -> dict[str, Any]:
    """Return what folder/dataset.yaml says, and the names in classes.txt where it has none.

    Raises:
        DataError: it is no such file: names the key and the rule.
    """
    path, listed = folder / DESCRIPTION, folder / "classes.txt"
    known = {"classes": read_list(listed)} if listed.is_file() else {}
    if not path.is_file():
        return known
    try:
        content = safe_load(path.read_text(encoding="utf-8-sig")) or {}
        if not isinstance(content, dict):
            raise ConfigError("must be keys with values, such as classes: [background, road]")
        if unknown := [key for key in content if key not in INFO_KEYS]:
            raise ConfigError(unknown_key(str(unknown[0]), list(INFO_KEYS)))
        checked = check({"name": DESCRIPTION, **content}, DataConfig)
    except (OSError, UnicodeDecodeError, YAMLError, ConfigError) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}") from None
    return known | {key: getattr(checked, key) for key in content}


def voc(
    data: DataConfig, split: str, strict: bool, known: DatasetInfo | None
) -> SegmentationDataset:
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
        there = ", ".join(sorted(path.stem for path in ids.parent.glob("*.txt"))) or "none"
        raise DataError(f"{ids}: no such list; available splits: {there}")
    return SegmentationDataset(
        [Pair(i, images / f"{i}.jpg", masks / f"{i}.png") for i in read_list(ids)],
        merge_info(data, {"classes": VOC_CLASSES} | described(folder), known),
        f"{data.name} {split} ({ids})",
        strict=strict,
    )


def sbd(
    data: DataConfig, split: str, strict: bool, known: DatasetInfo | None
) -> SegmentationDataset:
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
        val = voc(replace(data, folder=str(VOC2011)), "val", strict, known)
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
    info = merge_info(replace(data, classes=VOC_CLASSES), {}, known)
    return SegmentationDataset(pairs, info, name, problems=problems, strict=strict)


def folder(
    data: DataConfig, split: str, strict: bool, known: DatasetInfo | None
) -> SegmentationDataset:
    """Open a split of a folder of images and masks, paired by name.

    data.root holds images/SPLIT/NAME.* (any format of Pillow), annotations/SPLIT/NAME.png, and
    dataset.yaml, or classes.txt with one name per line, unless data.classes is given. Ids are
    SPLIT/NAME, since the same name in two splits is usually another image.
    """
    root = Path(data.root)
    images, masks = root / "images" / split, root / "annotations" / split
    convert = CONVERT.replace("FOLDER", str(root))
    for part in (images, masks):
        if not part.is_dir():
            fix = f"for files that lie otherwise, run {convert}"
            if split == data.val_split and (root / "images" / data.train_split).is_dir():
                names = ", ".join(sorted(path.name for path in (root / "images").iterdir()))
                fix = (
                    f"images holds {names}: choose with data.val_split=NAME, or to draw a "
                    f"validation split from {data.train_split}, run {convert}"
                )
            raise DataError(
                f"{part}: no such folder; data=folder needs images/{split}/NAME.jpg (or .png) and "
                f"annotations/{split}/NAME.png in data.root; {fix}"
            )
    suffixes = Image.registered_extensions()
    pairs = [
        Pair(f"{split}/{path.stem}", path, masks / f"{path.stem}.png")
        for path in sorted(images.iterdir())
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    ]
    there, problems = set(masks.iterdir()), []
    if bare := [pair for pair in pairs if pair.mask not in there]:
        problems.append(
            f"{bare[0].image}: no mask at {bare[0].mask} ({len(bare)} of {len(pairs)} images have "
            f"none, {masks} holds {min(there).name if there else 'nothing'}); add or rename masks, "
            f"or run {convert}"
        )
    if not pairs and (inner := sorted(path.name for path in images.iterdir() if path.is_dir())):
        problems.append(f"{images}: images lie in folders such as {inner[0]}; run {convert}")
    info = merge_info(data, described(root), known)
    if len(info.classes) < 2:
        raise DataError(
            f"{root / 'classes.txt'}: {len(info.classes)} class names; list them there, one per "
            f"line, or in {DESCRIPTION}, or set data.classes=[background,...]"
        )
    name = f"folder {split} ({images})"
    return SegmentationDataset(pairs, info, name, problems=problems, strict=strict)


def sample(
    data: DataConfig, split: str, strict: bool, known: DatasetInfo | None
) -> SegmentationDataset:
    """Open a split of the sample data set, drawn into data.root/shapes on first use."""
    drawn = shapes.prepare(Path(data.root))
    classes = data.classes or list(shapes.CLASSES)
    return voc(replace(data, folder=drawn.name, classes=classes), split, strict, known)


def shards(
    data: DataConfig, split: str, strict: bool, known: DatasetInfo | None
) -> SegmentationDataset:
    """Open a split of a set that `prepare_data shards=FOLDER` has written."""
    dataset = open_shards(data.root, split)
    own = dataset.info
    if data.classes and len(data.classes) != len(own.classes):
        raise DataError(
            f"data.classes has {len(data.classes)} names, but {dataset.name} has {len(own.classes)}"
        )
    if data.ignore_index not in (None, own.ignore_index):
        raise DataError(
            f"data.ignore_index={data.ignore_index}: {dataset.name} has {own.ignore_index}; leave "
            "it out"
        )
    says = {key: value for key, value in asdict(own).items() if value not in (None, [])}
    dataset.info = merge_info(data, says, known)
    return dataset


LAYOUTS: dict[str, Callable[[DataConfig, str, bool, DatasetInfo | None], SegmentationDataset]] = {
    "voc": voc,
    "sbd": sbd,
    "folder": folder,
    "shapes": sample,
    "shards": shards,
}
