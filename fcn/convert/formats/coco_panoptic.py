"""COCO panoptic: a JSON file and a PNG for each image, whose colours number its segments.

A segment is a thing or stuff; its category is its class. Pixels of no segment are ignored.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from fcn.config import PrepareDataConfig
from fcn.convert.export import IGNORE, Export
from fcn.convert.export_folder import ExportFolder, Item
from fcn.convert.formats.coco import coco_files, split_of_file
from fcn.convert.masks import COLOUR, read_values
from fcn.errors import DataError


def read(folder: ExportFolder, cfg: PrepareDataConfig) -> Export | None:
    files = {
        path: content
        for path, content in coco_files(folder).items()
        if any("segments_info" in entry for entry in content["annotations"])
    }
    if not files:
        return None
    rows = [row for content in files.values() for row in content["categories"]]
    classes = list(dict.fromkeys(row["name"] for row in sorted(rows, key=lambda row: row["id"])))
    colours = {row["name"]: row["color"] for row in rows if "color" in row}
    by_name = defaultdict[str, list[Path]](list)
    for picture in folder.pictures:
        by_name[picture.name].append(picture)
    items, missing = list[Item](), list[str]()
    for path, content in files.items():
        labels = {row["id"]: classes.index(row["name"]) for row in content["categories"]}
        images = {image["id"]: image["file_name"] for image in content["images"]}
        split = split_of_file(path)
        for entry in content["annotations"]:
            image = folder.find_image(images[entry["image_id"]], path, split)
            found = [mask for mask in by_name[Path(entry["file_name"]).name] if mask != image]
            found = [mask for mask in found if mask.parent.name == path.stem] or found
            if image is None or not found:
                missing.append(entry["file_name"] if image else images[entry["image_id"]])
                continue
            segments = {part["id"]: labels[part["category_id"]] for part in entry["segments_info"]}
            read_mask = partial(_read, found[0], segments, len(classes))
            items.append(folder.item(image, found[0], read_mask, split))
    note = f"{len(missing)} images or PNGs are not there and are left out, such as "
    notes = [note + missing[0]] if missing else []
    folder.masks = [item.mask for item in items]
    folder.photos = [path for path in folder.photos if path not in set(folder.masks)]
    names = dict(enumerate([*classes, IGNORE]))
    return Export("COCO panoptic", items, names, colours, notes)


def _read(path: Path, segments: Mapping[int, int], ignored: int) -> np.ndarray:
    """Return the classes of the segments in a PNG, int64 (H, W)."""
    colours = read_values(path, colours=True) - COLOUR
    red, green, blue = (colours >> shift & 255 for shift in (16, 8, 0))
    found, places = np.unique(red + 256 * green + 65536 * blue, return_inverse=True)
    if unknown := [number for number in found.tolist() if number and number not in segments]:
        raise DataError(f"{path}: the file of COCO has no segment {unknown[0]}; export it again")
    table = np.array([segments.get(number, ignored) for number in found.tolist()])
    return table[places].reshape(colours.shape)
