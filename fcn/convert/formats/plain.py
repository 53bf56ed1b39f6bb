"""Images and masks of no tool in particular, which the names of folders and files tell apart.

They lie in folders of their own or side by side. If there is one mask for each class, its folder or
the end of its name is the class.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fcn.config import PrepareDataConfig
from fcn.convert.annotation_folder import AnnotationFolder
from fcn.convert.annotation_set import AnnotationSet, Drawing, drawn_set, with_background
from fcn.convert.drawing import Shape
from fcn.convert.formats.class_lists import ClassList, listed_set, paired
from fcn.convert.formats.foreign import describe_foreign
from fcn.convert.masks import COLOUR, TRANSPARENT, covered_pixels, find_alpha, read_values
from fcn.data.dataset import read_list
from fcn.data.description import DESCRIPTION, read_description
from fcn.data.images import image_size
from fcn.dataset_info import IGNORED
from fcn.errors import DataError

# Names, without suffix, of files that may list classes in a form that is not read.
LISTS = {"classes", "class", "labels", "label", "obj", "names", "categories", "class_names"}
LISTS |= {"label2id", "label_map", "labelmap", "class_dict", "colormap", "palette"}
Matches = dict[Path, list[Path]]  # the images of each mask


def read(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet:
    if not folder.masks:
        raise DataError(
            describe_foreign(folder)
            or f"{folder.root}: no annotations of a known tool, and no masks by the names of "
            "folders (masks, labels, annotations) or files (NAME_mask); set images=FOLDER "
            "masks=FOLDER, or patterns such as images=*.jpg masks=*.png"
        )
    if files := [*folder.documents(name="id2label.json")]:  # of data sets for transformers
        tables = [ClassList(p, {int(k): str(v) for k, v in c.items()}) for p, c in files]
        return listed_set("masks with id2label.json", folder, tables, cfg)
    own = class_settings(folder, cfg)
    known = cfg.labels or cfg.data.colours or cfg.data.classes or own
    lists = [path for path in folder.files if path.stem.lower() in LISTS]
    lists = [p for p in lists if p not in folder.pictures and p != folder.root / "classes.txt"]
    if lists and not known:
        folder.notes.append(
            f"{', '.join(map(str, lists))}: if this names the classes, it is in no form that is "
            'read here; give them with data.classes=[...] or "labels={0: NAME, 1: NAME}"'
        )
    named = [] if cfg.labels or cfg.data.colours else cfg.data.classes or own.get("classes", [])
    matches = folder.match()
    class_of = _classes_by_folder(folder, matches, named)
    if not class_of and not any(matches.values()):
        matches, class_of = _classes_by_name(folder, matches)
    if len(set(class_of.values())) > 1:
        return _one_mask_for_each_class(folder, cfg, matches, class_of)
    # If there is a class, all names end alike, so that the end means mask.
    return AnnotationSet("images and masks", paired(folder, cfg, matches=matches))


def class_settings(folder: AnnotationFolder, cfg: PrepareDataConfig) -> dict[str, Any]:
    """Return what dataset.yaml or classes.txt says of masks; YOLO's dataset.yaml is another one.

    Raises:
        DataError: several classes.txt differ, and no setting names the classes.
    """
    lists = folder.files_named("classes.txt")
    other = next((path for path in lists if read_list(path) != read_list(lists[0])), None)
    if other and not cfg.labels and not cfg.data.classes:
        raise DataError(
            f"{other} and {lists[0]} name classes differently; convert their folders one by one, "
            "or give data.classes=[...]"
        )
    path = folder.root / DESCRIPTION
    is_yolo = path.is_file() and re.search("^names:", path.read_text("utf-8", "replace"), re.M)
    return {} if is_yolo else read_description(folder.root)


def _classes_by_folder(
    folder: AnnotationFolder, matches: Matches, named: Sequence[str]
) -> dict[Path, str]:
    """Return the class of each mask by its folder, if an image has masks in several.

    If each image has one mask, the folders are classes if `named`, the given classes, has them all
    and the masks hold nothing but 0 and one other value.
    """
    classes, pairs = dict[Path, str](), list[tuple[Path, str]]()
    for mask, images in matches.items():
        for image in images:
            outer = folder.info(image).folders
            inner = [name for name in folder.info(mask).folders if name not in outer]
            if len(images) > 1 or not inner:
                return {}
            classes[mask] = inner[-1]
            pairs.append((image, inner[-1]))
    if len(set(pairs)) < len(pairs):
        return {}
    if len({image for image, _ in pairs}) < len(pairs):
        return classes
    if not {*classes.values()} <= {*named}:
        return {}
    alpha = find_alpha(classes)
    values = {v for mask in classes for v in np.unique(read_values(mask, alpha=alpha)).tolist()}
    return classes if len(values - {0, COLOUR, TRANSPARENT}) == 1 else {}


def _classes_by_name(folder: AnnotationFolder, matches: Matches) -> tuple[Matches, dict[Path, str]]:
    """Return image and class of each mask called IMAGE_CLASS or CLASS_IMAGE, if all are."""
    photos = defaultdict[str, list[Path]](list)
    for photo in folder.photos:
        photos[folder.info(photo).stems[0]].append(photo)
    found, classes = Matches(), dict[Path, str]()
    for mask in folder.masks:
        info = folder.info(mask)
        words = info.stems[0].split("_")
        ends = [(words[:k], words[k:]) for k in range(len(words) - 1, 0, -1)]
        ends += [(words[k:], words[:k]) for k in range(1, len(words))]
        for image, name in ends:  # the longest name of an image that fits counts
            images = photos["_".join(image)]
            images = [p for p in images if info.split in ("", folder.info(p).split)]
            if len(images) == 1:
                found[mask], classes[mask] = images, "_".join(name)
                break
    pairs = Counter((*found[mask], classes[mask]) for mask in found)
    objects = any(name.isdecimal() for name in classes.values())  # masks of single objects
    return (found, classes) if len(pairs) == len(folder.masks) and not objects else (matches, {})


def _one_mask_for_each_class(
    folder: AnnotationFolder,
    cfg: PrepareDataConfig,
    matches: Mapping[Path, list[Path]],
    classes: Mapping[Path, str],
) -> AnnotationSet:
    """Return an export whose masks are drawn over each other, in the order of their names."""
    folder.note_bare(matches)
    order = sorted({*classes.values()}, key=lambda name: (name.lower() in IGNORED, name))
    names = with_background(order)  # ignored pixels are drawn last
    by_image = defaultdict[Path, list[Path]](list)
    for mask in sorted(classes, key=lambda mask: names.index(classes[mask])):
        by_image[matches[mask][0]].append(mask)
    alpha, drawings = find_alpha(classes), list[Drawing]()
    for image, masks in sorted(by_image.items()):
        is_array = masks[0].suffix == ".npy"
        size = read_values(masks[0]).shape[::-1] if is_array else image_size(masks[0])
        areas = [partial(covered_pixels, mask, alpha, cfg.nearest, size) for mask in masks]
        shapes = [
            Shape(classes[mask], "mask", [(0, 0)], mask=area)
            for mask, area in zip(masks, areas, strict=True)
        ]
        drawings.append(Drawing(masks[0], image.name, image, shapes, size))
    notes = []
    if any(len(masks) > 1 for masks in by_image.values()):
        notes.append(f"{', '.join(names[1:])} are drawn over each other in this order")
    annotations = drawn_set("one mask for each class", folder, drawings, names, notes=notes)
    folder.masks = [mask for mask in folder.masks if mask not in classes]  # the rest is left out
    return annotations
