"""How the files of a data set lie: one function per layout, named by `data.layout`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fcn.config import DataConfig
from fcn.data import shapes
from fcn.data.dataset import CONVERT, Listing, Pair, SegmentationDataset, read_list, same_files
from fcn.data.description import DESCRIPTION, check_classes, merge_info, read_description
from fcn.data.files import finder, is_image, nfc, unread_note, walk
from fcn.data.groups import check_folds, choose_fold
from fcn.data.shards import open_shards
from fcn.dataset_info import DatasetInfo
from fcn.errors import ConfigError, DataError, MissingData

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
]  # fmt: skip
VOC2011, SBD = Path("VOCdevkit/VOC2011"), Path("benchmark_RELEASE/dataset")  # below data.root
# Number of images of SBD train, VOC2011 segmentation val, and seg11valid, as published.
SBD_TRAIN, VOC2011_VAL, SEG11VALID = 8498, 1111, 736
# Settings that say which images a run is trained on, and where they are; its checkpoints keep them.
SPLIT_SETTINGS = ("train_split", "val_split", "fold", "folds", "fold_seed", "group")
PLACE_SETTINGS = ("layout", "root", "folder", "masks")


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
        found = choose_fold(data, split, _both_splits(data))
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


def _both_splits(data: DataConfig) -> list[Listing]:
    """List train and val; only train where a set has no validation split and none was named."""
    found = [LAYOUTS[data.layout](data, data.train_split)]
    try:
        found.append(LAYOUTS[data.layout](data, data.val_split))
    except MissingData:
        if data.val_split != DataConfig.val_split:
            raise
    return found


def split_settings(data: DataConfig) -> dict[str, Any]:
    """Return where a data set is, and how it is divided into images to train on and to validate."""
    return {key: getattr(data, key) for key in (*SPLIT_SETTINGS, *PLACE_SETTINGS)}


def overlap_with_training(
    data: DataConfig, dataset: SegmentationDataset, metadata: Mapping[str, Any]
) -> str:
    """Return a problem if a split holds images that a checkpoint was trained on.

    The training split is opened again, if it is still there. Images are recognised by their ids in
    one data set, and of VOC, whose images SBD has too; otherwise by their bytes.

    Args:
        data: the settings with which the split was opened.
        dataset: the split.
        metadata: metadata of the checkpoint; its "data" holds `division` of its run, and the
            fingerprint of its validation images, by which the data set is recognised.

    Returns:
        The problem and what to do; "" if there is none, it is not known, or the training split is
        evaluated on purpose.
    """
    kept, here = metadata.get("data") or {}, split_settings(data)
    own = here | kept.get("division", {})
    if own == here and data.split in (None, data.train_split, data.val_split):
        return ""
    if own["fold"] is None and data.split == own["train_split"]:
        return ""
    run = DataConfig(data.name, classes=metadata.get("classes", []), **own)
    is_there = Path(run.root, shapes.FOLDER if run.layout == "shapes" else ".").is_dir()
    if not (is_there or "://" in run.root):  # the sample would be drawn
        return ""
    places = [(of.root, _is_voc(of) or (of.layout, of.folder)) for of in (run, data)]
    try:
        train, val = (open_split(run, split) for split in (run.train_split, run.val_split))
        if val.fingerprint() != kept.get("val"):
            return ""
        common = set(train.ids) & set(dataset.ids) if places[0] == places[1] else ()
        seen = len(common) or len(list(same_files(train, dataset)))
    except (ConfigError, DataError, OSError):
        return ""  # it has changed
    if not seen:
        return ""
    remedy = "use images that it has not seen"
    if run.fold is not None or data.fold is not None:
        settings = {key: "null" if own[key] is None else own[key] for key in SPLIT_SETTINGS}
        remedy = "divide the data as its run did: "
        remedy += " ".join(f"data.{key}={value}" for key, value in settings.items())
    return (
        f"the checkpoint was trained on {seen} of the {len(dataset)} images of {dataset.name}; "
        f"{remedy}"
    )


def _is_voc(data: DataConfig) -> bool:
    """Return True for Pascal VOC and SBD, in which an id always is the same image."""
    return data.layout == "sbd" or Path(data.folder).parent == VOC2011.parent


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
        raise MissingData(f"{ids}: no such list; available splits: {there}")
    find = finder()
    pairs = [Pair(i, find(images / f"{i}.jpg"), find(masks / f"{i}.png")) for i in read_list(ids)]
    own = read_description(folder)
    check_classes(data, own.get("classes", []), str(folder))
    return Listing(pairs, {"classes": classes} | own, f"{data.name} {split} ({ids})")


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
    check_classes(data, VOC_CLASSES, str(root))
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
    _check_folders(data, split, images, masks, convert)
    files = sorted(images.iterdir())
    pngs = [path for path in sorted(masks.iterdir()) if path.suffix.lower() == ".png"]
    by_name = {nfc(path.stem): path for path in pngs if not path.name.startswith(".")}
    pairs, bare = [], []
    for path in filter(is_image, files):
        mask = by_name.pop(nfc(path.stem), masks / f"{path.stem}.png")
        pairs.append(Pair(f"{split}/{path.stem}", path, mask))
        if not mask.exists():
            bare.append(f"{path}: no mask at {mask}")
    problems, notes = [], []
    if note := unread_note(path for path in files if path.is_file()):
        notes.append(f"{images}: {note}")
    if bare:
        there = min((path.name for path in masks.iterdir()), default="nothing")
        problems.append(
            f"{bare[0]} ({len(bare)} of {len(pairs)} images have none, {masks} holds {there}); add "
            f"or rename masks, or run {convert}"
        )
    elif by_name:
        lonely = min(by_name.values())
        notes.append(f"{masks}: {len(by_name)} masks have no image, such as {lonely.name}")
    below = (path for inner in files if inner.is_dir() for path in walk(inner))
    if inner := list(filter(is_image, below)):
        text = f"{images}: {len(inner)} images lie in folders, such as {inner[0]}"
        if pairs:
            notes.append(f"{text}, and are left out")
        else:
            problems.append(f"{text}; run {convert}")
    own = read_description(root)
    check_classes(data, own.get("classes", []), str(root))
    return Listing(pairs, own, f"folder {split} ({images})", problems, notes)


def _check_folders(data: DataConfig, split: str, images: Path, masks: Path, convert: str) -> None:
    """Raise an error if the folder of the images or of the masks of a split is missing."""
    missing = next((part for part in (images, masks) if not part.is_dir()), None)
    if missing is None:
        return
    fix = f"for files that lie otherwise, run {convert}"
    if split == data.val_split and (images.parent / data.train_split).is_dir():
        names = ", ".join(sorted(path.name for path in images.parent.iterdir()))
        fix = (
            f"images holds {names}: choose with data.val_split=NAME, or to draw a "
            f"validation split from {data.train_split}, run {convert}"
        )
    kind = MissingData if missing == images and not masks.is_dir() else DataError
    raise kind(
        f"{missing}: no such folder; data=folder needs images/{split}/NAME.jpg (or .png) and "
        f"annotations/{split}/NAME.png in data.root; {fix}"
    )


def sample(data: DataConfig, split: str) -> Listing:
    """List a split of the sample data set, drawn into data.root/shapes on first use."""
    drawn = shapes.prepare(Path(data.root))
    return voc(replace(data, folder=drawn.name), split, list(shapes.CLASSES))


def shards(data: DataConfig, split: str) -> Listing:
    """List a split of a set that `prepare_data shards=FOLDER` has written."""
    dataset = open_shards(data.root, split)
    own = asdict(dataset.info)
    check_classes(data, own["classes"], dataset.name)
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
