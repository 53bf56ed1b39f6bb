"""How the files of a data set lie: one function per layout, named by `data.layout`.

Beside the data, dataset.yaml may say what is known about it: the keys of `DatasetInfo`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from yaml import MappingNode, SafeLoader, YAMLError, load

from fcn.config import DataConfig, check, unknown_key
from fcn.data import shapes
from fcn.data.dataset import CONVERT, Pair, SegmentationDataset, read_list
from fcn.data.files import finder, is_image, nfc, unread_note, walk
from fcn.data.groups import check_pattern, draw_folds, group_in
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


class NoSplit(DataError):
    """A data set has no split of this name."""


@dataclass
class Listing:
    """One split of a data set, as its layout finds it."""

    pairs: list[Pair]
    own: dict[str, Any]  # what the set says of itself, by the keys of `DatasetInfo`
    name: str  # for messages
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
        ConfigError: unknown data.layout; settings of folds that do not fit together.
        DataError: a file or folder is missing; says what to do.
    """
    if data.layout not in LAYOUTS:
        raise ConfigError(f"data.layout={data.layout} is unknown; choose from {', '.join(LAYOUTS)}")
    check_folds(data)
    if data.fold is None or split not in (data.train_split, data.val_split):
        found = LAYOUTS[data.layout](data, split)
    else:
        found = fold_listing(data, split)
    info, notes = merge_info(data, found.own, known)
    if len(info.classes) < 2:
        raise DataError(
            f"{Path(data.root, data.folder, 'classes.txt')}: {len(info.classes)} class names; list "
            f"them there, one per line, or in {DESCRIPTION}, or set data.classes=[background,...]"
        )
    notes = found.notes + notes
    return SegmentationDataset(
        found.pairs, info, found.name, problems=found.problems, notes=notes, strict=strict
    )


def check_folds(data: DataConfig) -> None:
    """Raise a ConfigError if the settings of folds do not fit together."""
    for key in ("folds", "fold_seed", "group"):
        if data.fold is None and (value := getattr(data, key)) != getattr(DataConfig, key):
            raise ConfigError(
                f"data.{key}={value} needs data.fold=0, 1, ...: which one to validate"
            )
    if data.fold is None:
        return
    if data.fold >= data.folds:
        raise ConfigError(f"data.fold={data.fold}: must be 0 to {data.folds - 1}, see data.folds")
    if data.train_split == data.val_split:
        raise ConfigError("data.fold: data.train_split and data.val_split need two names")
    check_pattern(data.group)


def fold_listing(data: DataConfig, split: str) -> Listing:
    """List one side of a fold: the images to validate, or all others, of both splits together.

    A set without a validation split is divided alone. Other splits, such as test, stay apart.

    Args:
        data: the data set; `check_folds` has passed it.
        split: data.train_split or data.val_split.

    Raises:
        DataError: fewer groups than folds.
        ConfigError: data.group is in no image's name.
    """
    layout = LAYOUTS[data.layout]
    pooled, names = layout(data, data.train_split), [data.train_split]
    try:
        val = layout(data, data.val_split)
    except NoSplit:
        if data.val_split != DataConfig.val_split:  # it was asked for
            raise
        val = replace(pooled, pairs=[], problems=[], notes=[])
    if val.pairs:
        names.append(data.val_split)
    pairs, pattern = pooled.pairs + val.pairs, check_pattern(data.group)
    found = [group_in(PurePosixPath(pair.id), pattern) for pair in pairs]
    alone = found.count(None)
    if data.group and alone == len(pairs):
        raise ConfigError(f"data.group={data.group}: is in no image's name, such as {pairs[0].id}")
    groups = [group or pair.id for group, pair in zip(found, pairs, strict=True)]
    held_out = [fold == data.fold for fold in draw_folds(groups, data.folds, data.fold_seed)]
    by = "each image alone; data.group=REGEX keeps those of one film or scene together"
    if alone < len(pairs):
        by = f"by data.group={data.group}" if data.group else "by names before .rf."
        by += f", {alone} images alone" if alone else ""
    validates = split == data.val_split
    return replace(
        pooled,
        pairs=[pair for pair, held in zip(pairs, held_out, strict=True) if held == validates],
        name=f"{data.name} {split}, fold {data.fold} of {data.folds} ({pooled.name})",
        problems=pooled.problems + val.problems,
        notes=[
            *pooled.notes,
            *val.notes,
            f"fold {data.fold} of {data.folds} of {' and '.join(names)}: of {len(pairs)} images in "
            f"{len(set(groups))} groups, {len(pairs) - sum(held_out)} to train on and "
            f"{sum(held_out)} to validate ({by}; data.fold_seed={data.fold_seed})",
        ],
    )


# Settings that say which images a run is trained on; its checkpoints keep them.
DIVISION = ("train_split", "val_split", "fold", "folds", "fold_seed", "group")


def division(data: DataConfig) -> dict[str, Any]:
    """Return how a data set is divided into images to train on and to validate."""
    return {key: getattr(data, key) for key in DIVISION}


def seen_problem(data: DataConfig, dataset: SegmentationDataset, about: Mapping[str, Any]) -> str:
    """Return that a checkpoint was trained on images of a split, if folds make them differ.

    Args:
        data: the settings with which the split was opened.
        dataset: the split.
        about: what the checkpoint knows; its "data" holds `division` of its run, and the
            fingerprint of its validation images, which tells whether this is the same data set.

    Returns:
        The problem and what to do; "" if there is none, or it is not known.
    """
    kept = about.get("data") or {}
    own = kept.get("division", division(data))
    if own == division(data) or (own["fold"] is None and data.fold is None):
        return ""
    try:
        train, val = (open_split(replace(data, **own), own[key]) for key in DIVISION[:2])
    except (ConfigError, DataError):
        return ""  # another data set
    seen = set(train.ids) & set(dataset.ids)
    if not seen or val.fingerprint() != kept.get("val"):
        return ""
    settings = " ".join(f"data.{key}={'null' if v is None else v}" for key, v in own.items())
    return (
        f"the checkpoint was trained on {len(seen)} of the {len(dataset)} images of {dataset.name}"
        f"; divide the data as its run did: {settings}"
    )


# Who says what is so, key by key: the first that says anything. Classes, colours and the ignored
# label describe masks, so a checkpoint of another set has no say in the last two. The range and
# the bands are what its network was trained to take, also where that is none.
PRIORITY = {
    "classes": ("settings", "set", "checkpoint"),
    "colours": ("settings", "set"),
    "ignore_index": ("settings", "set"),
    "background": ("settings", "set"),
    "value_range": ("settings", "checkpoint", "set"),
    "bands": ("settings", "checkpoint", "set"),
}
NETWORK = {"value_range": "all of 8 or 16 bits", "bands": "RGB"}  # what none of them means


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

    A checkpoint always says what its network takes: without a range or bands it was trained on all
    of 8 or 16 bits, or RGB, as `Predictor` gives them to it, and the set's do not apply.

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
        if known and key in NETWORK:
            order = order[: order.index("checkpoint") + 1]
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
    for key, none in NETWORK.items():
        own, used = says["set"].get(key), getattr(info, key)
        if settings[key] or not own or own == says["checkpoint"][key]:
            continue
        notes.append(
            f"{key}={used or none}, as the checkpoint was trained, not {own}, as the data set "
            f"says; data.{key} overrides both"
        )
    trained, key = says["checkpoint"]["ignore_index"], "ignore_index"
    if trained != info.ignore_index and settings[key] is None:
        notes.append(
            f"label {info.ignore_index} is ignored in these masks; the checkpoint was trained on "
            f"masks that ignore {trained}: if these do too, set data.ignore_index={trained}"
        )
    return notes


class UniqueKeys(SafeLoader):
    """Reads YAML in which no key may stand twice, of which the last would win otherwise."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for (key, _), name in zip(node.value, keys, strict=True):
            if keys.count(name) > 1 and name != "<<":
                line = key.start_mark.line + 1
                raise ConfigError(f"{name} is given twice (line {line}); keep one of them")
        return super().construct_mapping(node, deep)


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
            content = load(path.read_text(encoding="utf-8-sig"), UniqueKeys) or {}
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


def voc(data: DataConfig, split: str, classes: Sequence[str] = VOC_CLASSES) -> Listing:
    """List a split in Pascal VOC's layout.

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
        raise NoSplit(f"{ids}: no such list; available splits: {there}")
    find = finder()
    pairs = [Pair(i, find(images / f"{i}.jpg"), find(masks / f"{i}.png")) for i in read_list(ids)]
    own = {"classes": classes} | _own(data, folder)
    return Listing(pairs, own, f"{data.name} {split} ({ids})")


def sbd(data: DataConfig, split: str) -> Listing:
    """List a split of the paper's data: SBD's "train", or "seg11valid".

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
        val = voc(replace(data, folder=str(VOC2011)), "val").pairs
        seen = set(train)
        pairs = [pair for pair in val if pair.id not in seen]
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
    _check_classes(data, VOC_CLASSES, str(root))
    return Listing(pairs, {"classes": VOC_CLASSES}, f"sbd {split} ({root})", problems)


def folder(data: DataConfig, split: str) -> Listing:
    """List a split of a folder of images and masks, paired by name.

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
            kind = NoSplit if part == images and not masks.is_dir() else DataError
            raise kind(
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
    return Listing(pairs, _own(data, root), f"folder {split} ({images})", problems, notes)


def _by_stem(masks: Path) -> dict[str, Path]:
    """Return the PNG files of a folder by their names without suffix, composed."""
    files = sorted(masks.iterdir())
    return {
        nfc(path.stem): path
        for path in files
        if path.suffix.lower() == ".png" and not path.name.startswith(".")
    }


def sample(data: DataConfig, split: str) -> Listing:
    """List a split of the sample data set, drawn into data.root/shapes on first use."""
    drawn = shapes.prepare(Path(data.root))
    return voc(replace(data, folder=drawn.name), split, list(shapes.CLASSES))


def shards(data: DataConfig, split: str) -> Listing:
    """List a split of a set that `prepare_data shards=FOLDER` has written."""
    dataset = open_shards(data.root, split)
    own = asdict(dataset.info)
    _check_classes(data, own["classes"], dataset.name)
    if data.ignore_index not in (None, own["ignore_index"]):
        raise DataError(
            f"data.ignore_index={data.ignore_index}: {dataset.name} has {own['ignore_index']}; "
            "leave it out"
        )
    return Listing(dataset.pairs, own, dataset.name)


LAYOUTS: dict[str, Callable[[DataConfig, str], Listing]] = {
    "voc": voc,
    "sbd": sbd,
    "folder": folder,
    "shapes": sample,
    "shards": shards,
}
