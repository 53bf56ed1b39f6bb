"""What annotation tools export: one function per format, which finds images, masks and classes."""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fcn.convert.export_folder import SPLITS, ExportFolder, Item
from fcn.convert.masks import COLOUR, TRANSPARENT, combine, find_alpha, read_values
from fcn.data.dataset import read_list
from fcn.data.files import nfc
from fcn.data.images import file_errors
from fcn.dataset_info import BACKGROUND, IGNORED, VOID
from fcn.errors import DataError

IGNORE = "ignore"  # class name of pixels without a class
# Ids of the classes that are evaluated; Cityscapes' others, -1 to 33, are ignored.
CITYSCAPES = {
    7: ("road", [128, 64, 128]), 8: ("sidewalk", [244, 35, 232]), 11: ("building", [70, 70, 70]),
    12: ("wall", [102, 102, 156]), 13: ("fence", [190, 153, 153]), 17: ("pole", [153, 153, 153]),
    19: ("traffic light", [250, 170, 30]), 20: ("traffic sign", [220, 220, 0]),
    21: ("vegetation", [107, 142, 35]), 22: ("terrain", [152, 251, 152]),
    23: ("sky", [70, 130, 180]), 24: ("person", [220, 20, 60]), 25: ("rider", [255, 0, 0]),
    26: ("car", [0, 0, 142]), 27: ("truck", [0, 0, 70]), 28: ("bus", [0, 60, 100]),
    31: ("train", [0, 80, 100]), 32: ("motorcycle", [0, 0, 230]), 33: ("bicycle", [119, 11, 32]),
}  # fmt: skip
CITYSCAPES_NAME = re.compile(r"[a-z-]+_\d{6}_\d{6}_gt(Fine|Coarse)_labelIds")
CAMVID = ("0001TP", "0006R0", "0016E5", "Seq05VD")  # its film sequences
SEGNET = [  # CamVid's classes in SegNet's copy, which does not list them; 11 is ignored
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "cyclist", IGNORE,
]  # fmt: skip
# Suffix and content of files that cannot be read here, and what to export instead.
FOREIGN = (
    (".json", '"shapes"', "labelme's polygons: run labelme2voc, or export COCO"),
    (".json", '"classTitle"', "Supervisely's own format: export masks, or COCO"),
    (".xml", "<annotations", "CVAT's XML: export Segmentation mask 1.1, or COCO"),
    (".txt", r"^\d+( [\d.]+){6,}$", "YOLO's polygons: export masks, or COCO"),
)


@dataclass(frozen=True)
class Reading:
    """How the settings want masks to be read."""

    colours: bool = False  # the colours of masks are classes, even in palettes and in grey
    nearest: bool = False  # smoothed boundaries go to the nearest class
    mapped: bool = False  # settings say what the values mean, whatever the export says
    lossless: bool = False  # values other than black and white count


@dataclass(frozen=True)
class ClassList:
    """A file that names the classes of masks."""

    path: Path
    names: dict[int, str]  # class of each value
    colours: dict[str, list[int]] = field(default_factory=dict)  # RGB of classes


@dataclass
class Export:
    """What a tool has written."""

    format: str
    items: list[Item]
    names: dict[int, str] = field(default_factory=dict)  # class of each value; empty: unknown
    colours: dict[str, list[int]] = field(default_factory=dict)  # RGB of classes
    notes: list[str] = field(default_factory=list)
    overlaps: dict[str, int] = field(default_factory=dict)  # pixels of several classes, by image
    check: Callable[[Iterable[int]], None] = lambda values: None  # raises if they do not fit


def recognise(folder: ExportFolder, reading: Reading) -> Export:
    """Return what an export holds, by the first format that knows it.

    Raises:
        DataError: no masks, masks without an image, unreadable lists.
    """
    export = None
    for read in FORMATS:
        try:
            export = export or read(folder, reading)
        except DataError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder.root}: its files of {read.__name__} do not have that format "
                f"({error!r}); export it again, or say where the files are with images= and masks="
            ) from error
    export = export or images_and_masks(folder, reading)
    if not export.items:
        raise DataError(f"{folder.root}: {export.format}, but no masks")
    return export


def roboflow(folder: ExportFolder, reading: Reading) -> Export | None:
    """Semantic masks: SPLIT/_classes.csv, NAME.jpg, NAME_mask.png."""
    tables = {path: read_list(path) for path in folder.named("_classes.csv")}
    tables = {path: lines for path, lines in tables.items() if "Pixel" in "".join(lines[:1])}
    if not tables:
        return None
    lists = []
    for path, lines in tables.items():
        names = dict[int, str]()
        for cells in map(_cells, lines[1:]):
            value, name = int(cells[0]), ", ".join(cells[1:])
            if names.setdefault(value, name) != name:
                raise DataError(f"{path}: {value} is {names[value]} and {name}; remove one of them")
        lists.append(ClassList(path, names))
    folder.select_masks("_mask")
    return _with_lists("Roboflow semantic masks", _pair(folder, reading), lists, reading)


def cvat(folder: ExportFolder, reading: Reading) -> Export | None:
    """Segmentation mask 1.1: labelmap.txt of name:r,g,b:parts:actions, SegmentationClass."""
    lists = []
    for path in folder.named("labelmap.txt"):
        rows = list[tuple[str, list[int]]]()
        for line in read_list(path):
            coloured = re.match(r"(.+):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:|$)", line)
            if coloured:
                rows.append((coloured[1], [int(value) for value in coloured.groups()[1:4]]))
            elif not line.startswith("#"):
                rows.append((line.rsplit(":", 3)[0], []))
        lists.append(_colour_list(path, rows))
    if not lists:
        return None
    items = _pair(folder, replace(reading, colours=any(entry.colours for entry in lists)))
    return _with_lists("CVAT segmentation masks", items, lists, reading)


def labelme(folder: ExportFolder, reading: Reading) -> Export | None:
    """labelme2voc: class_names.txt, JPEGImages, masks in PNG, or in .npy with -1 for ignored."""
    lists = [_numbered_list(path) for path in folder.named("class_names.txt")]
    if not lists:
        return None
    folder.masks = [path for path in folder.masks if path.suffix != ".npy"] or folder.masks
    return _with_lists("labelme's VOC export", _pair(folder, reading), lists, reading)


def supervisely(folder: ExportFolder, reading: Reading) -> Export | None:
    """Masks: obj_class_to_machine_color.json, DATASET/img/NAME, DATASET/masks_machine/NAME.png."""
    lists, colours = [], {"background": [0, 0, 0]}
    for path in folder.named("obj_class_to_machine_color.json"):
        rows = {"background": [0, 0, 0]} | _json(path)
        lists.append(_colour_list(path, [*rows.items()]))
    if not lists:
        return None
    for path in folder.named("meta.json"):  # the colours that people see
        for entry in _json(path).get("classes", []):
            colours[entry["title"]] = list(bytes.fromhex(entry["color"].lstrip("#")))
    items = _pair(folder, replace(reading, colours=True))
    return replace(_with_lists("Supervisely masks", items, lists, reading), colours=colours)


def cityscapes(folder: ExportFolder, reading: Reading) -> Export | None:
    """gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png, leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png.

    CVAT and datumaro write their own classes so, numbered by the rows of label_colors.txt.
    """
    masks = [path for path in folder.pictures if path.stem.endswith("_labelIds")]
    if not masks:
        return None
    folder.masks = masks
    items = _pair(folder, replace(reading, colours=False))
    if lists := [_numbered_list(path) for path in folder.named("label_colors.txt")]:
        return _with_lists("Cityscapes' layout", items, lists, reading)
    if not all(CITYSCAPES_NAME.fullmatch(mask.stem) for mask in masks):
        return Export("Cityscapes' layout", items)  # of a team's own classes
    names = dict.fromkeys(range(-1, 34), IGNORE) | {k: name for k, (name, _) in CITYSCAPES.items()}

    def check(values: Iterable[int]) -> None:
        ids = sorted({*values} - {-1, VOID})
        # Whole sets hold nearly all of 0..33, and single images always some of the later ids.
        own = bool(ids) and (
            not CITYSCAPES.keys() & ids
            or (ids[0] <= 1 and ids[-1] < 33 and len(ids) > ids[-1] - ids[0])
            or (ids[-1] < 21 and 2 * len(ids) > ids[-1])
        )
        if own and not reading.mapped:
            given = ", ".join(f"{value}: NAME" for value in ids)
            raise DataError(
                f"{masks[0]}: the ids {ids[0]} to {ids[-1]} look like classes of your own, not "
                f'like those of Cityscapes; name them: "labels={{{given}}}"'
            )

    return Export("Cityscapes", items, names, dict(CITYSCAPES.values()), check=check)


def camvid(folder: ExportFolder, reading: Reading) -> Export | None:
    """Colour masks with a list: label_colors.txt of "r g b name", or class_dict.csv.

    CamVid's own masks are called NAME_L.png. SegNet's copy of it has labels and no list.
    """
    paths = folder.named("label_colors.txt", "class_dict.csv")
    if not paths and any(
        path.name.startswith(CAMVID) and "trainannot" in path.parts for path in folder.masks
    ):
        return Export("CamVid of SegNet", _pair(folder, reading), dict(enumerate(SEGNET)))
    if not paths:
        return None
    lists = [_colour_list(path, _colour_rows(path)) for path in paths]
    folder.select_masks("_L")
    items = _pair(folder, replace(reading, colours=any(entry.colours for entry in lists)))
    return _with_lists(f"masks with {paths[0].name}", items, lists, reading)


def images_and_masks(folder: ExportFolder, reading: Reading) -> Export:
    """Images and masks in folders of their own or side by side, which their names tell apart.

    If there is one mask for each class, its folder or the end of its name is the class.
    """
    if not folder.masks:
        raise DataError(
            f"{_foreign(folder)}, and no masks by the names of folders (masks, labels, "
            "annotations) or files (NAME_mask); set images=FOLDER masks=FOLDER, or patterns such "
            "as images=*.jpg masks=*.png"
        )
    matches = folder.match(folder.masks)
    classes = classes_by_folder(folder, matches)
    if not classes and not any(matches.values()):
        matches, classes = classes_by_name(folder)
    if len(set(classes.values())) > 1:
        return _one_mask_for_each_class(folder, reading, matches, classes)
    if classes:  # all names end alike, so that the end means mask
        read = _reader(folder, reading)
        items = [folder.item(images[0], mask, read(mask)) for mask, images in matches.items()]
        return Export("images and masks", items)
    return Export("images and masks", _pair(folder, reading))


def _foreign(folder: ExportFolder) -> str:
    """Return what an export that cannot be read is."""
    for path in folder.files:
        for suffix, content, advice in FOREIGN:
            if path.suffix == suffix and re.search(
                content, path.read_text("utf-8", "replace"), re.M
            ):
                return f"{path}: {advice}"
    return f"{folder.root}: not an export of a known tool"


def classes_by_folder(folder: ExportFolder, matches: Mapping[Path, list[Path]]) -> dict[Path, str]:
    """Return the class of each mask by its folder, if an image has masks in several."""
    by_image, classes = defaultdict[Path, list[str]](list), dict[Path, str]()
    for mask, images in matches.items():
        for image in images:
            outer = folder.info(image).folders
            inner = [name for name in folder.info(mask).folders if name not in outer]
            if len(images) > 1 or not inner:
                return {}
            classes[mask] = inner[-1]
            by_image[image].append(inner[-1])
    several = any(len(names) > 1 for names in by_image.values())
    alone = all(len(set(names)) == len(names) for names in by_image.values())
    return classes if several and alone else {}


def classes_by_name(folder: ExportFolder) -> tuple[dict[Path, list[Path]], dict[Path, str]]:
    """Return the image and the class of each mask called IMAGE_CLASS or CLASS_IMAGE, or nothing."""
    photos = defaultdict[str, list[Path]](list)
    for photo in folder.photos:
        photos[folder.info(photo).image_stems[0]].append(photo)
    matches, classes = dict[Path, list[Path]](), dict[Path, str]()
    for mask in folder.masks:
        info = folder.info(mask)
        words = info.mask_stem.split("_")
        ends = [(words[:k], words[k:]) for k in range(len(words) - 1, 0, -1)]
        ends += [(words[k:], words[:k]) for k in range(1, len(words))]
        for image, name in ends:  # the longest name of an image that fits counts
            found = photos.get("_".join(image), [])
            found = [photo for photo in found if info.split in ("", folder.info(photo).split)]
            if len(found) == 1:
                matches[mask], classes[mask] = found, "_".join(name)
                break
    pairs = {(matches[mask][0], classes[mask]) for mask in matches}
    objects = any(name.isdecimal() for name in classes.values())  # masks of single objects
    return (matches, classes) if len(pairs) == len(folder.masks) and not objects else ({}, {})


def _one_mask_for_each_class(
    folder: ExportFolder,
    reading: Reading,
    matches: Mapping[Path, list[Path]],
    classes: Mapping[Path, str],
) -> Export:
    """Return an export whose masks are drawn over each other, in the order of their names."""
    folder.note_bare(matches)
    order = sorted(set(classes.values()))
    background = next((name for name in order if name.lower() in BACKGROUND), "background")
    order.sort(key=lambda name: name.lower() in IGNORED)  # drawn last
    names = [background, *(name for name in order if name != background)]
    layers = defaultdict[Path, list[tuple[int, Path]]](list)
    for mask, name in sorted(classes.items(), key=lambda pair: names.index(pair[1])):
        layers[matches[mask][0]].append((names.index(name), mask))
    alpha, overlaps = find_alpha(classes), dict[str, int]()
    items = [
        folder.item(image, rows[0][1], partial(combine, rows, alpha, reading.nearest, overlaps))
        for image, rows in sorted(layers.items())
    ]
    notes = [f"{', '.join(names[1:])} are drawn over each other in this order"]
    title = "one mask for each class"
    return Export(title, items, dict(enumerate(names)), notes=notes, overlaps=overlaps)


def coco(folder: ExportFolder, reading: Reading) -> Export | None:
    """COCO: JSON files with polygons or RLE; what is not annotated is background."""
    contents = _coco_files(folder)
    if not contents:
        return None
    annotations = [a for content in contents.values() for a in content["annotations"]]
    for annotation in annotations:
        if isinstance(rings := annotation.get("segmentation"), list):
            annotation["segmentation"] = [ring for ring in rings if len(ring) >= 6]  # 3 corners
    if not any(annotation.get("segmentation") for annotation in annotations):
        kind = "panoptic files" if any("segments_info" in a for a in annotations) else "boxes"
        raise DataError(f"{min(contents)}: {kind} without polygons or RLE; export instances")
    classes = _categories(contents.values())
    photos = defaultdict[str, list[Path]](list)  # by name, whatever the names of images say
    for photo in dict.fromkeys((*folder.photos, *folder.masks)):
        photos[nfc(photo.name)].append(photo)
    items, empty, overlaps, notes = list[Item](), 0, dict[str, int](), list[str]()
    for path, content in contents.items():
        labels = _coco_labels(path, content, classes)
        outlines = defaultdict[str, list[dict[str, Any]]](list)
        for annotation in content["annotations"]:
            if annotation.get("segmentation"):
                outlines[str(annotation["image_id"])].append(annotation)
        words = re.split("[^a-z]+", path.stem.lower())
        split = next((SPLITS[w] for w in words if w in SPLITS), folder.info(path).split)
        lost = outlines.keys() - {str(image["id"]) for image in content["images"]}
        if lost:
            notes.append(_lost_note(path, [a for key in sorted(lost) for a in outlines.pop(key)]))
        if lost and not outlines:
            raise DataError(f"{notes[-1]}; so are all others: export it again")
        for image in content["images"]:
            if not all(isinstance(image.get(key), int) for key in ("height", "width")):
                raise DataError(
                    f"{path}: image {image['file_name']} has no height and width in whole numbers; "
                    "add them there"
                )
            photo = _coco_photo(folder, photos, path, image["file_name"], split)
            own = outlines[str(image["id"])]
            read = partial(rasterise, path, image, own, labels, overlaps)
            empty += not own
            info = folder.info(photo)
            items.append(Item(photo, split or info.split, info.name, path, read))
    boxes = sum(not annotation.get("segmentation") for annotation in annotations)
    if boxes:
        notes.append(f"{boxes} annotations without an outline are left out")
    if empty:
        notes.append(f"{empty} images without annotations are all background")
    return Export("COCO", items, dict(enumerate(classes)), notes=notes, overlaps=overlaps)


def _coco_labels(path: Path, content: dict[str, Any], classes: list[str]) -> dict[str, int]:
    """Return the label of each category by its id; an annotation without one is an error."""
    rows = content["categories"]
    labels = {str(row["id"]): classes.index(row["name"]) for row in rows if row["name"] in classes}
    for entry in content["annotations"]:
        if entry.get("segmentation") and str(entry["category_id"]) not in labels:
            raise DataError(
                f"{path}: {_coco_entry(entry)} has category_id {entry['category_id']}, which no "
                "category of the file has; add the category there or export it again"
            )
    return labels


def _coco_entry(annotation: dict[str, Any]) -> str:
    """Return how messages call an annotation."""
    return f"annotation {annotation.get('id', '')} of image_id {annotation['image_id']}"


def _lost_note(path: Path, lost: Sequence[dict[str, Any]]) -> str:
    """Return a note on annotations without an image."""
    return (
        f"{path}: {len(lost)} annotations belong to none of its images and are left out, such as "
        f"{_coco_entry(lost[0])}"
    )


def _coco_files(folder: ExportFolder) -> dict[Path, dict[str, Any]]:
    """Return the content of the files of COCO, of instances alone if there are others."""
    contents = {}
    for path in (path for path in folder.files if path.suffix == ".json"):
        content = _json(path, '"categories"')
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            contents[path] = content
    instances = {path: c for path, c in contents.items() if "instances" in path.name}
    return instances or contents  # other files annotate the same images


def _coco_photo(
    folder: ExportFolder,
    by_name: Mapping[str, list[Path]],
    source: Path,
    file_name: str,
    split: str,
) -> Path:
    """Return the image of a name in COCO, the one with the same folders, split, or kind."""
    parts = tuple(re.split(r"[\\/]", nfc(file_name)))
    found = by_name.get(parts[-1], [])
    for rule in (
        lambda path: tuple(map(nfc, path.parts[-len(parts) :])) == parts,
        lambda path: folder.info(path).split in (split, ""),
        lambda path: path in folder.photos,
    ):
        found = list(filter(rule, found)) or found if len(found) > 1 else found
    if len(found) != 1:
        raise DataError(
            f"{source}: {len(found) or 'no'} images called {file_name} in {folder.root}; set "
            "images=FOLDER"
        )
    return found[0]


def _categories(contents: Iterable[dict[str, Any]]) -> list[str]:
    """Return the classes of files of COCO, which may number them differently."""
    contents = list(contents)
    rows = [row for content in contents for row in content["categories"]]
    names = [next((row["name"] for row in rows if row["name"].lower() in BACKGROUND), "background")]
    for content in contents:
        used = {str(annotation["category_id"]) for annotation in content["annotations"]}
        # Roboflow adds a category above the others, which no annotation has.
        above = {row.get("supercategory") for row in content["categories"]}
        rows = sorted(content["categories"], key=lambda row: row["id"])
        names += [row["name"] for row in rows if str(row["id"]) in used or row["name"] not in above]
    return list(dict.fromkeys(names))


def rasterise(
    path: Path,
    image: dict[str, Any],
    annotations: Sequence[dict[str, Any]],
    labels: dict[str, int],
    overlaps: dict[str, int],
) -> np.ndarray:
    """Draw the outlines of an image of COCO, small ones over large ones and over crowd regions.

    Args:
        path: the file.
        image: an entry of "images".
        annotations: those of the image.
        labels: of the categories, by their ids.
        overlaps: receives the number of pixels that several classes cover, by file name.

    Returns:
        int64 (H, W); 0 where nothing is annotated.

    Raises:
        DataError: an outline that is none, or RLE of another size than the image.
    """
    try:
        from pycocotools import mask as rle  # of the extra [coco]
    except ImportError:
        raise DataError('COCO needs pycocotools: pip install "fcn-segmentation[coco]"') from None
    height, width = image["height"], image["width"]
    layers = []
    for annotation in annotations:
        shape = annotation["segmentation"]
        where = f"{path}: {image['file_name']}: {_coco_entry(annotation)}"
        if isinstance(shape, dict) and list(shape.get("size", ())) != [height, width]:
            raise DataError(
                f"{where} is RLE of size {shape.get('size')}, but the image has height {height} "
                f"and width {width}; correct one of them or export it again"
            )
        try:
            if isinstance(shape, list):  # polygons
                shape = rle.merge(rle.frPyObjects(shape, height, width))
            elif isinstance(shape["counts"], list):  # not compressed
                shape = rle.frPyObjects(shape, height, width)
            size = (bool(annotation.get("iscrowd")), int(rle.area(shape)))
            inside = rle.decode(shape) > 0
        except Exception as error:  # whatever pycocotools makes of it
            raise DataError(f"{where}: no outline ({error}); export it again") from None
        layers.append((size, inside, labels[str(annotation["category_id"])]))
    values, shared = np.zeros((height, width), np.int64), np.zeros((height, width), bool)
    for _, inside, label in sorted(layers, key=lambda layer: layer[0], reverse=True):
        shared |= inside & (values > 0) & (values != label)
        values[inside] = label
    overlaps[image["file_name"]] = int(shared.sum())
    return values


FORMATS = (roboflow, cvat, labelme, supervisely, cityscapes, camvid, coco)


def _reader(folder: ExportFolder, reading: Reading) -> Callable[[Path], Callable[[], np.ndarray]]:
    """Return a function that returns the function that reads a mask."""
    alpha = find_alpha(folder.masks)
    if alpha.is_mask and reading.colours:
        if alpha.is_black:
            raise DataError(
                f"{folder.masks[0]}: all masks are black, and their alpha channel is the mask; "
                "leave out data.colours"
            )
        alpha = replace(alpha, is_mask=False)
    return lambda mask: partial(read_values, mask, reading.colours, alpha, reading.lossless)


def _pair(folder: ExportFolder, reading: Reading) -> list[Item]:
    return folder.pair(_reader(folder, reading))


def _with_lists(
    title: str, items: list[Item], lists: Sequence[ClassList], reading: Reading
) -> Export:
    """Return an export whose masks are read by lists of classes: by the nearest, if they differ.

    Raises:
        DataError: lists differ, and it is not clear which one belongs to a mask.
    """
    colours = {name: rgb for entry in lists for name, rgb in entry.colours.items()}
    first = lists[0]
    notes = [note for entry in lists for note in _twice_notes(entry)]
    other = next((entry for entry in lists if entry.names != first.names), None)
    if other is None or reading.mapped:
        return Export(title, items, first.names, colours, notes)
    classes = list(dict.fromkeys(name for entry in lists for name in entry.names.values()))
    renumbered = []
    for item in items:
        above = [entry for entry in lists if item.mask.is_relative_to(entry.path.parent)]
        depth = max((len(entry.path.parts) for entry in above), default=0)
        own = [entry for entry in above if len(entry.path.parts) == depth]
        if not own or any(entry.names != own[0].names for entry in own):
            one, two = own[:2] if len(own) > 1 else (first, other)
            raise DataError(
                f"{one.path} and {two.path} name classes differently, and {item.mask} may be "
                'read by either; say what its values mean: "labels={0: NAME, 1: NAME}"'
            )
        numbers = {value: classes.index(name) for value, name in own[0].names.items()}
        read = partial(_renumber, item, numbers, own[0].path)
        renumbered.append(replace(item, read=read))
    notes.append(
        f"{first.path} and {other.path} differ: each mask is read by the list in its folder"
    )
    return Export(title, renumbered, dict(enumerate(classes)), colours, notes)


def _twice_notes(entry: ClassList) -> list[str]:
    """Return notes on names that a list has in several rows, which become one class."""
    counts = Counter(name for value, name in entry.names.items() if value < COLOUR)
    twice = [n for n, count in counts.items() if count > 1 and n.lower() not in IGNORED]
    return [f"{entry.path}: {name} is in several rows, which become one class" for name in twice]


def _renumber(item: Item, numbers: Mapping[int, int], source: Path) -> np.ndarray:
    """Read a mask whose values have other numbers in a list of all classes."""
    values = item.read()
    found, places = np.unique(values, return_inverse=True)
    kept = (-1, TRANSPARENT, VOID)
    wrong = [v for v in found.tolist() if v not in numbers and v not in kept and v < COLOUR]
    if wrong:
        raise DataError(f"{item.mask}: the value {wrong[0]} has no class in {source}; add it there")
    table = np.array([numbers.get(value, value) for value in found.tolist()])
    return table[places].reshape(values.shape)


def colour_names(rows: Sequence[tuple[str, list[int]]], source: object) -> dict[int, str]:
    """Return the class of each value of masks in colours, from pairs of name and RGB.

    A mask of one channel holds grey levels if all colours are grey, otherwise the numbers of rows.

    Raises:
        DataError: two classes have one colour; `source` names the list.
    """
    owners = dict[tuple[int, ...], str]()
    for name, rgb in rows:
        if (owner := owners.setdefault(tuple(rgb), name)) != name:
            raise DataError(
                f"{source}: {owner} and {name} have one colour, {rgb}; give each its own, or, if "
                "they are one class, take one of them away"
            )
    grey = all(len(set(rgb)) == 1 for _, rgb in rows)
    numbers = {rgb[0] if grey else number: name for number, (name, rgb) in enumerate(rows)}
    return numbers | {COLOUR + (r << 16) + (g << 8) + b: name for name, (r, g, b) in rows}


def _colour_list(path: Path, rows: Sequence[tuple[str, list[int]]]) -> ClassList:
    """Return a list of classes and colours; rows without a colour are numbers."""
    coloured = [(name, rgb) for name, rgb in rows if rgb]
    if len(coloured) < len(rows):
        return ClassList(path, {number: name for number, (name, _) in enumerate(rows)})
    return ClassList(path, colour_names(rows, path), dict(rows))


def _numbered_list(path: Path) -> ClassList:
    """Return a list whose rows are numbers; label_colors.txt has colours before the names."""
    if path.name == "label_colors.txt":
        rows = _colour_rows(path)
    else:
        rows = [(name, []) for name in read_list(path) if name != "__ignore__"]
    colours = {name: rgb for name, rgb in rows if rgb}
    return ClassList(path, {number: name for number, (name, _) in enumerate(rows)}, colours)


def _colour_rows(path: Path) -> list[tuple[str, list[int]]]:
    """Return name and colour, if there is one, in each row of a list of CamVid or Cityscapes."""
    head, *lines = read_list(path) or [""]
    names = [name.lower() for name in _cells(head)] if path.suffix == ".csv" else []
    rgb = [names.index(name) for name in "rgb" if name in names]
    place = next((k for k, name in enumerate(names) if name in ("name", "class")), None)
    if len(rgb) == 3 and place is not None:  # columns with a head, in any order
        rows = [cells for cells in map(_cells, lines) if len(cells) == len(names)]
        if len(rows) == len(lines):
            return [(row[place], [int(row[k]) for k in rgb]) for row in rows]
    found = []
    for line in (head, *lines):
        numbers = re.search(r"(?:^|,)\s*(\d+)[\s,]+(\d+)[\s,]+(\d+)", line.replace('"', ""))
        if path.suffix == ".csv" and not numbers:
            continue  # the head
        name = line.replace('"', "").replace(numbers[0], "") if numbers else line
        found.append((name.strip(" \t,"), [int(n) for n in numbers.groups()] if numbers else []))
    return found


def _cells(line: str) -> list[str]:
    """Return the cells of a line of CSV, without their quotes."""
    return [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))]


def _json(path: Path, word: str = "") -> Any:
    """Return the content of a JSON file, None if it lacks a word."""
    with file_errors(path, "file"):
        text = path.read_text("utf-8-sig")
        return json.loads(text) if word in text else None
