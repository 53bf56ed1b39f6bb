"""Images and masks of no tool in particular, which the names of folders and files tell apart.

They lie in folders of their own or side by side. If there is one mask for each class, its folder or
the end of its name is the class.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from fcn.convert.drawing import Shape
from fcn.convert.export import Drawing, Export, Reading, drawn_export, with_background
from fcn.convert.export_folder import ExportFolder
from fcn.convert.formats.class_lists import ClassList, listed_export, mask_reader, paired
from fcn.convert.formats.foreign import describe_foreign
from fcn.convert.masks import covered_pixels, find_alpha, read_values
from fcn.data.images import image_size
from fcn.dataset_info import IGNORED
from fcn.errors import DataError

# Names, without suffix, of files that may list classes in a form that is not read.
LISTS = {"classes", "class", "labels", "label", "obj", "names", "categories", "class_names"}
LISTS |= {"label2id", "label_map", "labelmap", "class_dict", "colormap", "palette"}


def read(folder: ExportFolder, reading: Reading) -> Export:
    if not folder.masks:
        raise DataError(
            describe_foreign(folder)
            or f"{folder.root}: no annotations of a known tool, and no masks by the names of "
            "folders (masks, labels, annotations) or files (NAME_mask); set images=FOLDER "
            "masks=FOLDER, or patterns such as images=*.jpg masks=*.png"
        )
    if named := [*folder.json_files(name="id2label.json")]:  # of data sets for transformers
        tables = [ClassList(p, {int(k): str(v) for k, v in c.items()}) for p, c in named]
        return listed_export("masks with id2label.json", folder, tables, reading)
    lists = [path for path in folder.files if path.stem.lower() in LISTS]
    lists = [p for p in lists if p not in folder.pictures and p != folder.root / "classes.txt"]
    if lists and not reading.mapped and not reading.classes:
        folder.notes.append(
            f"{', '.join(map(str, lists))}: if this names the classes, it is in no form that is "
            'read here; give them with data.classes=[...] or "labels={0: NAME, 1: NAME}"'
        )
    matches = folder.match(folder.masks)
    classes = classes_by_folder(folder, matches)
    if not classes and not any(matches.values()):
        matches, classes = classes_by_name(folder)
    if len(set(classes.values())) > 1:
        return _one_mask_for_each_class(folder, reading, matches, classes)
    if classes:  # all names end alike, so that the end means mask
        reader = mask_reader(folder, reading)
        items = [folder.item(images[0], mask, reader(mask)) for mask, images in matches.items()]
        return Export("images and masks", items)
    return Export("images and masks", paired(folder, reading))


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
    order = sorted({*classes.values()}, key=lambda name: (name.lower() in IGNORED, name))
    names = with_background(order)  # ignored pixels are drawn last
    by_image = defaultdict[Path, list[Path]](list)
    for mask in sorted(classes, key=lambda mask: names.index(classes[mask])):
        by_image[matches[mask][0]].append(mask)
    alpha, drawings = find_alpha(classes), list[Drawing]()
    for image, masks in sorted(by_image.items()):
        is_array = masks[0].suffix == ".npy"
        size = read_values(masks[0]).shape[::-1] if is_array else image_size(masks[0])
        areas = [partial(covered_pixels, mask, alpha, reading.nearest, size) for mask in masks]
        shapes = [
            Shape(classes[mask], "mask", [(0, 0)], mask=area)
            for mask, area in zip(masks, areas, strict=True)
        ]
        drawings.append(Drawing(masks[0], image.name, image, shapes, size))
    notes = [f"{', '.join(names[1:])} are drawn over each other in this order"]
    return drawn_export("one mask for each class", folder, drawings, names, notes=notes)
