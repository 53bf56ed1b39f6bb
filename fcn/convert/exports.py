"""What annotation tools export: one function per format, which finds images, masks and classes.

A mask is an array of values: labels, or COLOUR + 0xRRGGBB where its colours are classes.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fcn.data.dataset import read_list
from fcn.data.images import file_errors
from fcn.errors import DataError

COLOUR = 1 << 24
IGNORE = "ignore"  # class name of pixels without a class
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "dev": "val"}
SPLITS |= {"validation": "val", "test": "test", "testing": "test"}
SUFFIXES = {*Image.registered_extensions(), ".npy"}
# First or last words of folders and files that tell a mask from its image.
MASK_WORDS = {
    "annotation", "annotations", "annot", "label", "labels", "labelids", "mask", "masks", "machine",
    "gt", "gtfine", "gtcoarse", "ground", "truth", "groundtruth", "seg", "segmentation", "semantic",
    "segmentationclass", "segmentationclasspng", "segmentationclassnpy", "segmentationclassaug",
}  # fmt: skip
IMAGE_WORDS = {"image", "images", "img", "imgs", "jpegimages", "leftimg8bit", "photo", "photos"}
IMAGE_WORDS |= {"rgb", "sat"}
# Folders of pictures of masks, and of masks of single objects.
UNUSED = {"SegmentationObject", "SegmentationObjectPNG", "SegmentationClassVisualization"}
UNUSED |= {"SegmentationObjectVisualization", "masks_human", "masks_instances", "__MACOSX"}
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
CAMVID = ("0001TP", "0006R0", "0016E5", "Seq05VD")  # its film sequences
SEGNET = [  # CamVid's classes in SegNet's copy, which does not list them; 11 is ignored
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "cyclist", IGNORE,
]  # fmt: skip


@dataclass(frozen=True)
class Item:
    """An image and its mask."""

    image: Path
    split: str  # train, val or test; "" if the export does not say
    name: str  # with its folders, where several images have the same name
    mask: Path  # the file that holds the mask
    read: Callable[[], np.ndarray]  # the mask's values, int64 (H, W)


@dataclass
class Export:
    """What a tool has written."""

    format: str
    items: list[Item]
    names: dict[int, str] = field(default_factory=dict)  # class of each value; empty: unknown
    colours: dict[str, list[int]] = field(default_factory=dict)  # RGB of classes
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """What a path says; an image and its mask have all but `is_mask` in common."""

    stem: str
    split: str
    folders: tuple[str, ...]
    is_mask: bool

    def key(self, parts: int) -> tuple[Any, ...]:
        return (self.stem, self.split, self.folders)[:parts]

    def name(self) -> str:
        return "_".join(filter(None, (*self.folders, self.stem)))


class Tree:
    """The files of an export.

    Args:
        root: its folder.
        images: folder of the images, if they lie elsewhere or look like masks.
        masks: folder of the masks, if they look like images.
        colours: the colours of the masks are classes, even in palettes and in grey.

    Raises:
        DataError: no such folder.
    """

    def __init__(self, root: Path, images: Path | None, masks: Path | None, colours: bool) -> None:
        self.images, self.root, self.colours = images or root, root, colours
        self.roots = [folder for folder in (images, masks, root) if folder]
        for folder in self.roots:
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder; unpack an archive first")
        self.files = _files(root)
        self.pictures = _pictures(_files(masks) if masks else self.files)
        self.masks = [path for path in self.pictures if masks or self.place(path).is_mask]
        photos = _pictures(_files(images)) if images else _pictures(self.files)
        self.photos = sorted(set(photos) - set(self.masks))

    def named(self, *names: str) -> list[Path]:
        """Return the files of these names."""
        return [path for path in self.files if path.name in names]

    def ending(self, word: str) -> list[Path]:
        """Return the masks: if there are any, the pictures whose names end so, and no others."""
        if masks := [path for path in self.pictures if path.stem.endswith(word)]:
            self.photos = sorted({*self.photos, *self.masks} - set(masks))
            self.masks = masks
        return self.masks

    def place(self, path: Path) -> Place:
        """Take a path apart; the nearest name that says so tells whether it is a mask."""
        root = next(folder for folder in self.roots if path.is_relative_to(folder))
        *parents, name = path.relative_to(root).parts
        while Path(name).suffix.lower() in SUFFIXES:  # also NAME.jpg.png
            name = Path(name).stem
        stem, is_mask = _strip(name)
        if stem and not is_mask:  # masks are called IMG_1234 too
            is_mask = None
        split, folders = "", list[str]()
        for parent in reversed(parents):
            rest, says = _strip(parent)
            is_mask = says if is_mask is None else is_mask
            if known := SPLITS.get(rest.lower().rstrip("0123456789")):
                split = split or known
            elif rest:
                folders.insert(0, rest)
        return Place(stem, split, tuple(folders), bool(is_mask))

    def pair(self, masks: Sequence[Path], *, colours: bool = False) -> list[Item]:
        """Find the image of each mask by name, split and folders; by fewer, if they suffice.

        Args:
            masks: the mask files.
            colours: as of the tree.

        Raises:
            DataError: a mask has no image, or several.
        """
        places = {path: self.place(path) for path in (*masks, *self.photos)}
        matches = []
        for parts in (3, 2, 1):
            by_key = defaultdict[Any, list[Path]](list)
            for path in self.photos:
                by_key[places[path].key(parts)].append(path)
            matches.append([by_key[places[mask].key(parts)] for mask in masks])
        found = min(matches, key=lambda match: sum(len(images) != 1 for images in match))
        lists = {  # VOC's, of paths below the folder of the masks
            line.strip('"'): SPLITS[path.stem.lower()]
            for path in self.files
            if "ImageSets" in path.parts and path.suffix == ".txt" and path.stem.lower() in SPLITS
            for line in read_list(path)
        }
        items = []
        for mask, images in zip(masks, found, strict=True):
            if len(images) != 1:
                raise DataError(
                    f"{mask}: {len(images) or 'no'} images belong to this mask; rename files, or "
                    "set images=FOLDER masks=FOLDER"
                )
            here, there = places[mask], places[images[0]]
            steps = mask.with_suffix("").parts
            ends = ("/".join(steps[start:]) for start in range(len(steps)))
            listed = next((lists[end] for end in ends if end in lists), "")
            read = partial(read_values, mask, colours or self.colours)
            items.append(
                Item(images[0], here.split or there.split or listed, there.name(), mask, read)
            )
        if len({item.image for item in items}) < len(items):
            raise DataError(f"{self.root}: several masks belong to one image; set masks=FOLDER")
        return items


def _files(folder: Path) -> list[Path]:
    """Return the files in a folder and those below it, without hidden ones."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [p for p in files if not any(name[0] == "." for name in p.relative_to(folder).parts)]


def _pictures(files: Iterable[Path]) -> list[Path]:
    return [p for p in files if p.suffix.lower() in SUFFIXES and not UNUSED.intersection(p.parts)]


def _strip(name: str) -> tuple[str, bool | None]:
    """Return a name without the words for masks and images, and whether these say mask."""
    words = re.split("[-_. ]", re.sub("annot$", "_annot", name))  # trainannot
    known, removed = MASK_WORDS | IMAGE_WORDS | {"", "l"}, set[str]()  # CamVid's _L
    numbered = re.fullmatch(r"([a-z]+)(\d+)", words[0], re.IGNORECASE)
    if numbered and numbered[1].lower() in known:  # image7 and mask7
        words[:1] = numbered.groups()
    for end in (-1, 0):
        while words and words[end].lower() in known:
            removed.add(words.pop(end).lower())
    is_mask = True if removed & MASK_WORDS else False if removed & IMAGE_WORDS else None
    return "_".join(words), is_mask


def read_values(path: Path, colours: bool) -> np.ndarray:
    """Read a mask in any format.

    Args:
        path: a picture, or .npy.
        colours: return the colours of palettes and of files with three channels; otherwise the
            numbers in palettes, and labels where the three channels are equal.

    Returns:
        int64 (H, W).

    Raises:
        DataError: fractional values; a JPEG that is not black and white.
    """
    if path.suffix == ".npy":
        return np.load(path).astype(np.int64)
    with Image.open(path) as image:
        is_jpeg = image.format == "JPEG"
        pixels = np.asarray(image.convert("RGB") if image.mode == "P" and colours else image)
    if is_jpeg:  # compression blurs edges
        grey = pixels.reshape(*pixels.shape[:2], -1).mean(2)
        labels = 0 < grey.max() < 128
        if colours or labels or ((grey > 64) & (grey < 192)).mean() > 0.1:
            raise DataError(f"{path}: JPEG changes labels and colours; export the masks as PNG")
        return np.where(grey < 128, 0, 255)
    values = pixels.astype(np.int64)
    if (values != pixels).any():
        raise DataError(f"{path}: fractional values; a mask must hold labels or colours")
    if values.ndim == 2:
        return values
    rgb = values[..., :3]  # without transparency
    if rgb.shape[2] < 3 or (not colours and (rgb == rgb[..., :1]).all()):
        return rgb[..., 0]
    return COLOUR + (rgb << (16, 8, 0)).sum(2)


def check_palettes(masks: Iterable[Path]) -> None:
    """Raise a DataError if a number has two colours in the palettes of masks of labels."""
    seen = dict[int, tuple[list[int], Path]]()
    for path in (path for path in masks if path.suffix != ".npy"):
        with Image.open(path) as image:
            palette = image.getpalette() or []  # none in grey
            for number in np.unique(np.asarray(image)).tolist() if palette else ():
                colour = palette[3 * number : 3 * number + 3]
                other, first = seen.setdefault(number, (colour, path))
                if colour != other:
                    raise DataError(
                        f"{path}: {number} has the colour {colour}, but {other} in {first}; if "
                        "colours are the classes, list them: data.classes=[...] "
                        'data.colours=[[r,g,b],...]; if numbers are, "labels={0: NAME, ...}"'
                    )


def colour_names(rows: Sequence[tuple[str, list[int]]]) -> dict[int, str]:
    """Return the class of each value of masks in colours, from pairs of name and RGB.

    A mask of one channel holds grey levels if all colours are grey, otherwise the numbers of rows.
    """
    grey = all(len(set(rgb)) == 1 for _, rgb in rows)
    numbers = {rgb[0] if grey else number: name for number, (name, rgb) in enumerate(rows)}
    return numbers | {COLOUR + (r << 16) + (g << 8) + b: name for name, (r, g, b) in rows}


def roboflow(tree: Tree) -> Export | None:
    """Semantic masks: SPLIT/_classes.csv, NAME.jpg, NAME_mask.png."""
    tables = tree.named("_classes.csv")
    if not tables or not read_list(tables[0])[0].startswith("Pixel"):
        return None
    rows = [line.split(",", 1) for line in read_list(tables[0])[1:]]
    names = {int(value): name.strip() for value, name in rows}
    return Export("Roboflow semantic masks", tree.pair(tree.ending("_mask")), names)


def cvat(tree: Tree) -> Export | None:
    """Segmentation mask 1.1: labelmap.txt of name:r,g,b:parts:actions, SegmentationClass."""
    lists = tree.named("labelmap.txt")
    if not lists:
        return None
    lines = [line.split(":") for line in read_list(lists[0]) if not line.startswith("#")]
    rows = [(line[0], [int(value) for value in line[1].split(",")]) for line in lines]
    items = tree.pair(tree.masks, colours=True)
    return Export("CVAT segmentation masks", items, colour_names(rows), dict(rows))


def labelme(tree: Tree) -> Export | None:
    """labelme2voc: class_names.txt, JPEGImages, masks in PNG, or in .npy with -1 for ignored."""
    lists = tree.named("class_names.txt")
    if not lists:
        return None
    names = [name for name in read_list(lists[0]) if name != "__ignore__"]
    masks = [path for path in tree.masks if path.suffix != ".npy"] or tree.masks
    return Export("labelme's VOC export", tree.pair(masks), dict(enumerate(names)))


def supervisely(tree: Tree) -> Export | None:
    """Masks: obj_class_to_machine_color.json, DATASET/img/NAME, DATASET/masks_machine/NAME.png."""
    tables = tree.named("obj_class_to_machine_color.json")
    if not tables:
        return None
    rows = {"background": [0, 0, 0]} | json.loads(tables[0].read_text("utf-8"))
    colours = {"background": [0, 0, 0]}
    for path in tree.named("meta.json"):  # the colours that people see
        for entry in json.loads(path.read_text("utf-8")).get("classes", []):
            colours[entry["title"]] = list(bytes.fromhex(entry["color"].lstrip("#")))
    items = tree.pair(tree.masks, colours=True)
    return Export("Supervisely masks", items, colour_names([*rows.items()]), colours)


def cityscapes(tree: Tree) -> Export | None:
    """gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png, leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png."""
    masks = [path for path in tree.pictures if path.stem.endswith("_labelIds")]
    if not masks:
        return None
    names = dict.fromkeys(range(-1, 34), IGNORE) | {k: name for k, (name, _) in CITYSCAPES.items()}
    return Export("Cityscapes", tree.pair(masks), names, dict(CITYSCAPES.values()))


def camvid(tree: Tree) -> Export | None:
    """Colour masks with a list: label_colors.txt of "r g b name", or class_dict.csv.

    CamVid's own masks are called NAME_L.png. SegNet's copy of it has labels and no list.
    """
    lists = tree.named("label_colors.txt", "class_dict.csv")
    if not lists and any(
        path.name.startswith(CAMVID) and "trainannot" in path.parts for path in tree.masks
    ):
        return Export("CamVid of SegNet", tree.pair(tree.masks), dict(enumerate(SEGNET)))
    if not lists:
        return None
    rows = []
    for line in read_list(lists[0]):
        if numbers := re.search(r"(?:^|,)\s*(\d+)[\s,]+(\d+)[\s,]+(\d+)", line):
            name = line.replace(numbers[0], "").strip(" \t,")
            name = IGNORE if name.lower() == "void" else name
            rows.append((name, [int(number) for number in numbers.groups()]))
    items = tree.pair(tree.ending("_L"), colours=True)
    return Export(f"colour masks with {lists[0].name}", items, colour_names(rows), dict(rows))


def coco(tree: Tree) -> Export | None:
    """COCO: JSON files with polygons or RLE; what is not annotated is background."""
    contents = {}
    for path in (path for path in tree.files if path.suffix == ".json"):
        with file_errors(path, "file"):
            text = path.read_text("utf-8-sig")
            content = json.loads(text) if '"categories"' in text else None
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            contents[path] = content
    if any("instances" in path.name for path in contents):  # other files annotate the same images
        contents = {path: c for path, c in contents.items() if "instances" in path.name}
    if not contents:
        return None
    annotations = [a for content in contents.values() for a in content["annotations"]]
    for annotation in annotations:
        if isinstance(rings := annotation.get("segmentation"), list):
            annotation["segmentation"] = [ring for ring in rings if len(ring) >= 6]  # 3 corners
    if not any(annotation.get("segmentation") for annotation in annotations):
        raise DataError(f"{min(contents)}: no polygons or RLE; boxes are not enough")
    classes = _categories(contents.values())
    items, empty, known = [], 0, set(tree.photos)
    by_name = defaultdict[str, list[Path]](list)
    for photo in (*tree.photos, *tree.masks):  # whatever the names of images say
        by_name[photo.name].append(photo)
    for path, content in contents.items():
        rows = content["categories"]
        labels = {row["id"]: classes.index(row["name"]) for row in rows if row["name"] in classes}
        outlines = defaultdict[Any, list[dict[str, Any]]](list)
        for annotation in content["annotations"]:
            if annotation.get("segmentation"):
                outlines[annotation["image_id"]].append(annotation)
        words = re.split("[^a-z]+", path.stem.lower())
        split = next((SPLITS[w] for w in words if w in SPLITS), tree.place(path).split)
        for image in content["images"]:
            parts = tuple(re.split(r"[\\/]", image["file_name"]))
            photos = by_name[parts[-1]]
            photos = [p for p in photos if p.parts[-len(parts) :] == parts] or photos
            photos = [p for p in photos if tree.place(p).split in (split, "")] or photos
            photos = [p for p in photos if p in known] or photos
            if len(photos) != 1:
                raise DataError(
                    f"{path}: {len(photos) or 'no'} images called {image['file_name']} in "
                    f"{tree.images}; set images=FOLDER"
                )
            read = partial(rasterise, image, outlines[image["id"]], labels)
            empty += not outlines[image["id"]]
            place = tree.place(photos[0])
            items.append(Item(photos[0], split or place.split, place.name(), path, read))
    boxes = sum(not annotation.get("segmentation") for annotation in annotations)
    notes = [f"{boxes} annotations without an outline are left out"] if boxes else []
    if empty:
        notes.append(f"{empty} images without annotations are all background")
    return Export("COCO", items, dict(enumerate(classes)), notes=notes)


def _categories(contents: Iterable[dict[str, Any]]) -> list[str]:
    """Return the classes of files of COCO, which may number them differently."""
    names = ["background"]
    for content in contents:
        used = {annotation["category_id"] for annotation in content["annotations"]}
        # Roboflow adds a category above the others, which no annotation has.
        above = {row.get("supercategory") for row in content["categories"]}
        rows = sorted(content["categories"], key=lambda row: row["id"])
        names += [row["name"] for row in rows if row["id"] in used or row["name"] not in above]
    return list(dict.fromkeys(names))


def rasterise(
    image: dict[str, Any], annotations: Sequence[dict[str, Any]], labels: dict[int, int]
) -> np.ndarray:
    """Draw the outlines of an image of COCO, small ones over large ones and over crowd regions.

    Returns:
        int64 (H, W); 0 where nothing is annotated.
    """
    try:
        from pycocotools import mask as rle  # of the extra [coco]
    except ImportError:
        raise DataError('COCO needs pycocotools: pip install "fcn-segmentation[coco]"') from None
    height, width = image["height"], image["width"]
    layers = []
    for annotation in annotations:
        shape = annotation["segmentation"]
        if isinstance(shape, list):  # polygons
            shape = rle.merge(rle.frPyObjects(shape, height, width))
        elif isinstance(shape["counts"], list):  # not compressed
            shape = rle.frPyObjects(shape, height, width)
        size = (bool(annotation.get("iscrowd")), int(rle.area(shape)))
        layers.append((size, rle.decode(shape) > 0, labels[annotation["category_id"]]))
    values = np.zeros((height, width), np.int64)
    for _, inside, label in sorted(layers, key=lambda layer: layer[0], reverse=True):
        values[inside] = label
    return values


def folders(tree: Tree) -> Export:
    """Images and masks in folders of their own or side by side, which their names tell apart."""
    if not tree.masks:
        raise DataError(
            f"{tree.root}: not an export of a known tool (labelme: of labelme2voc), and no masks "
            "by the names of folders (masks, labels, annotations) or files (NAME_mask); set "
            "images=FOLDER masks=FOLDER"
        )
    return Export("images and masks", tree.pair(tree.masks))


FORMATS = (roboflow, cvat, labelme, supervisely, cityscapes, camvid, coco)


def recognise(tree: Tree) -> Export:
    """Return what an export holds, by the first format that knows it.

    Raises:
        DataError: no masks, masks without an image, unreadable lists.
    """
    export = next((found for read in FORMATS if (found := read(tree))), None) or folders(tree)
    if not export.items:
        raise DataError(f"{tree.root}: {export.format}, but no masks")
    return export
