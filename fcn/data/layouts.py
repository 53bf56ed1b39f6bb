"""How the files of a data set lie: one function per layout, named by `data.layout`.

Beside the data, dataset.yaml may say what is known about it: the keys of `DatasetInfo`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from yaml import YAMLError, safe_load

from fcn.config import DataConfig, check, unknown_key
from fcn.data import shapes
from fcn.data.dataset import CONVERT, Pair, SegmentationDataset, read_list
from fcn.data.files import finder, is_image, nfc, unread_note, walk
from fcn.data.shards import open_shards
from fcn.dataset_info import INFO_KEYS, DatasetInfo, class_problem, starts_with_background
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
        known: what a checkpoint knows; see `merge_info`.

    Raises:
        ConfigError: unknown data.layout.
        DataError: a file or folder is missing; says what to do.
    """
    if data.layout not in LAYOUTS:
        raise ConfigError(f"data.layout={data.layout} is unknown; choose from {', '.join(LAYOUTS)}")
    return LAYOUTS[data.layout](data, split, strict, known)


# Who says what is so, key by key: the first that says anything. Classes, colours and the ignored
# label describe masks, so a checkpoint of another set has no say in the last two; the range and
# the bands are what its network was trained to take.
PRIORITY = {
    "classes": ("settings", "set", "checkpoint"),
    "colours": ("settings", "set"),
    "ignore_index": ("settings", "set"),
    "background": ("settings", "set"),
    "value_range": ("settings", "checkpoint", "set"),
    "bands": ("settings", "checkpoint", "set"),
}


def merge_info(
    data: DataConfig, own: Mapping[str, Any], known: DatasetInfo | None = None
) -> tuple[DatasetInfo, list[str]]:
    """Merge what is known about a data set, key by key: the first that says anything wins.

    | key          | 1st      | 2nd          | 3rd          | or else               |
    |--------------|----------|--------------|--------------|-----------------------|
    | classes      | settings | the set      | a checkpoint | none                  |
    | colours      | settings | the set      |              | Pascal VOC's          |
    | ignore_index | settings | the set      |              | 255                   |
    | background   | settings | the set      |              | by the name of class 0|
    | value_range  | settings | a checkpoint | the set      | all of 8 or 16 bits   |
    | bands        | settings | a checkpoint | the set      | RGB                   |

    Args:
        data: the settings.
        own: what the set says of itself: dataset.yaml, or the index of shards.
        known: what a checkpoint knows.

    Returns:
        The info, and notes where a checkpoint and the set say different things.

    Raises:
        ConfigError: the values do not fit together.
    """
    says: dict[str, Mapping[str, Any]] = {
        "settings": {key: getattr(data, key) for key in INFO_KEYS},
        "set": own,
        "checkpoint": asdict(known) if known else {},
    }
    merged: dict[str, Any] = {}
    for key, order in PRIORITY.items():
        said = (says[source].get(key) for source in order)
        value = next((value for value in said if value not in (None, [])), None)
        if value is not None:
            merged[key] = value
    classes = merged.setdefault("classes", [])
    merged.setdefault("background", starts_with_background(classes))
    merged.setdefault("colours", voc_palette(len(classes)).tolist())
    info = DatasetInfo(**merged)
    if problem := class_problem(classes):
        raise ConfigError(f"data.classes={classes}: {problem}")
    if len(info.colours) != len(classes):
        raise ConfigError(
            f"data.colours has {len(info.colours)} colours for {len(classes)} classes"
        )
    if info.value_range and info.value_range[0] >= info.value_range[1]:
        raise ConfigError(f"data.value_range={info.value_range}: must be [from, to], from < to")
    return info, _notes(says, info) if known else []


def _notes(says: Mapping[str, Mapping[str, Any]], info: DatasetInfo) -> list[str]:
    """Return what a user may not expect where a checkpoint and the set say different things."""
    notes, settings = [], says["settings"]
    for key in ("value_range", "bands"):
        if says["set"].get(key) not in (None, [], getattr(info, key)) and not settings[key]:
            notes.append(
                f"{key}={getattr(info, key)}, as the checkpoint was trained, not "
                f"{says['set'][key]}, as the data set says"
            )
    trained, key = says["checkpoint"]["ignore_index"], "ignore_index"
    if trained != info.ignore_index and settings[key] is None:
        notes.append(
            f"label {info.ignore_index} is ignored in these masks; the checkpoint was trained on "
            f"masks that ignore {trained}: if these do too, set data.ignore_index={trained}"
        )
    return notes


def described(folder: Path) -> dict[str, Any]:
    """Return what folder/dataset.yaml says, and the names in classes.txt where it has none.

    A key without a value (null) says nothing.

    Raises:
        DataError: it is no such file: names the key and the rule.
    """
    path, listed = folder / DESCRIPTION, folder / "classes.txt"
    known: dict[str, Any] = {"classes": read_list(listed)} if listed.is_file() else {}
    if path.is_file():
        try:
            content = safe_load(path.read_text(encoding="utf-8-sig")) or {}
            if not isinstance(content, dict):
                raise ConfigError("must be keys with values, such as classes: [background, road]")
            content = {key: value for key, value in content.items() if value is not None}
            if unknown := [key for key in content if key not in INFO_KEYS]:
                raise ConfigError(unknown_key(str(unknown[0]), list(INFO_KEYS)))
            checked = check({"name": DESCRIPTION, **content}, DataConfig)
        except (OSError, UnicodeDecodeError, YAMLError, ConfigError) as error:
            raise DataError(f"{path}: {' '.join(str(error).split())}") from None
        known |= {key: getattr(checked, key) for key in content}
        listed = path if "classes" in content else listed
    if problem := class_problem(known.get("classes", [])):
        raise DataError(f"{listed}: {problem}")
    return known


def _own(data: DataConfig, folder: Path) -> dict[str, Any]:
    """Return what a data set says of itself, whose labels the settings cannot rename.

    Raises:
        DataError: it names other classes than `data`, or the same in another order.
    """
    own = described(folder)
    _check_classes(data, own.get("classes", []), str(folder))
    return own


def _check_classes(data: DataConfig, own: Sequence[str], place: str) -> None:
    if data.classes and own and data.classes != list(own):
        raise DataError(
            f"{place}: its labels 0, 1, ... are named {', '.join(own)}, but data.classes="
            f"[{','.join(data.classes)}]; leave data.classes out, or correct the names in the "
            "data set if they are wrong"
        )


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
    find = finder()
    info, notes = merge_info(data, {"classes": VOC_CLASSES} | _own(data, folder), known)
    return SegmentationDataset(
        [Pair(i, find(images / f"{i}.jpg"), find(masks / f"{i}.png")) for i in read_list(ids)],
        info,
        f"{data.name} {split} ({ids})",
        notes=notes,
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
    _check_classes(data, VOC_CLASSES, str(root))
    info, notes = merge_info(data, {"classes": VOC_CLASSES}, known)
    return SegmentationDataset(pairs, info, name, problems=problems, notes=notes, strict=strict)


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
    files, by_name = sorted(images.iterdir()), _by_stem(masks)
    pairs = []
    for path in filter(is_image, files):
        mask = by_name.pop(nfc(path.stem), masks / f"{path.stem}.png")
        pairs.append(Pair(f"{split}/{path.stem}", path, mask))
    problems, notes = [], []
    if note := unread_note(path for path in files if path.is_file()):
        notes.append(f"{images}: {note}")
    if bare := [
        pair for pair in pairs if not isinstance(pair.mask, Path) or not pair.mask.exists()
    ]:
        there = min((path.name for path in masks.iterdir()), default="nothing")
        problems.append(
            f"{bare[0].image}: no mask at {bare[0].mask} ({len(bare)} of {len(pairs)} images have "
            f"none, {masks} holds {there}); add or rename masks, or run {convert}"
        )
    elif by_name:
        lonely = min(by_name.values())
        notes.append(f"{masks}: {len(by_name)} masks have no image, such as {lonely.name}")
    if inner := [
        path for below in files if below.is_dir() for path in walk(below) if is_image(path)
    ]:
        text = f"{images}: {len(inner)} images lie in folders, such as {inner[0]}"
        if pairs:
            notes.append(f"{text}, and are left out")
        else:
            problems.append(f"{text}; run {convert}")
    info, more = merge_info(data, _own(data, root), known)
    if len(info.classes) < 2:
        raise DataError(
            f"{root / 'classes.txt'}: {len(info.classes)} class names; list them there, one per "
            f"line, or in {DESCRIPTION}, or set data.classes=[background,...]"
        )
    name = f"folder {split} ({images})"
    return SegmentationDataset(
        pairs, info, name, problems=problems, notes=notes + more, strict=strict
    )


def _by_stem(masks: Path) -> dict[str, Path]:
    """Return the PNG files of a folder by their names without suffix, composed."""
    files = sorted(masks.iterdir())
    return {
        nfc(path.stem): path
        for path in files
        if path.suffix.lower() == ".png" and not path.name.startswith(".")
    }


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
    _check_classes(data, own.classes, dataset.name)
    if data.ignore_index not in (None, own.ignore_index):
        raise DataError(
            f"data.ignore_index={data.ignore_index}: {dataset.name} has {own.ignore_index}; leave "
            "it out"
        )
    says = {key: value for key, value in asdict(own).items() if value not in (None, [])}
    dataset.info, notes = merge_info(data, says, known)
    dataset.notes += notes
    return dataset


LAYOUTS: dict[str, Callable[[DataConfig, str, bool, DatasetInfo | None], SegmentationDataset]] = {
    "voc": voc,
    "sbd": sbd,
    "folder": folder,
    "shapes": sample,
    "shards": shards,
}
