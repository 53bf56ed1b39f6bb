"""COCO: JSON files with polygons or RLE, and COCO panoptic."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fcn.config import PrepareDataConfig
from fcn.convert.annotation_folder import AnnotationFolder, Item, split_in
from fcn.convert.annotation_set import IGNORE, AnnotationSet, Drawing, drawn_set, with_background
from fcn.convert.drawing import Shape, as_points
from fcn.convert.formats.foreign import BOXES
from fcn.convert.masks import COLOUR, read_values
from fcn.errors import DataError

WORDS = ('"categories"', '"images"')  # in each file


def read(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet | None:
    """Read outlines; what is not annotated is background.

    Small objects are drawn over large ones, and both over crowd regions.
    """
    notes, files = list[str](), coco_files(folder)
    found = {path: _drawings(folder, path, content, notes) for path, content in files.items()}
    main = {d.image or d.name for p in found if "instances" in p.name for d in found[p]}
    # Other files annotate the same images: with sentences, with the parts of persons.
    drawings = [
        drawing
        for path in found
        for drawing in found[path]
        if "instances" in path.name or (drawing.image or drawing.name) not in main
    ]
    if not drawings:
        return None
    used = {drawing.source: files[drawing.source] for drawing in drawings}
    shapes = [shape for drawing in drawings for shape in drawing.shapes]
    if shapes and not any(shape.has_area for shape in shapes):
        raise DataError(f"{min(used)}: {BOXES}; annotate polygons or masks and export instances")
    classes = _classes(used.values())
    return drawn_set("COCO", folder, drawings, classes, small_on_top=True, notes=notes)


def coco_files(folder: AnnotationFolder) -> dict[Path, dict[str, Any]]:
    """Return the content of the files of COCO."""
    keys = {"images", "annotations", "categories"}
    found = folder.documents(*WORDS)
    return {path: c for path, c in found if isinstance(c, dict) and keys <= c.keys()}


def _drawings(
    folder: AnnotationFolder, path: Path, content: dict[str, Any], notes: list[str]
) -> list[Drawing]:
    """Return the images of a file with their shapes; notes may be added."""
    names = {str(row["id"]): row["name"] for row in content["categories"]}
    sizes = {str(image["id"]): _size(path, image) for image in content["images"]}
    shapes, lost = defaultdict[str, list[Shape]](list), list[str]()
    for entry in content["annotations"]:
        title = f"annotation {entry.get('id', '')} of image_id {entry['image_id']}"
        image, category = str(entry["image_id"]), str(entry["category_id"])
        outline = _outline(entry)
        if outline and category not in names:
            raise DataError(
                f"{path}: {title} has category_id {category}, which no category of the file has; "
                "add the category there or export it again"
            )
        if image not in sizes:
            lost.append(title)
        elif not outline:
            shapes[image].append(Shape("", "annotation without an outline", ()))
        else:
            name, layer = names[category], -1 if entry.get("iscrowd") else 0
            mask = partial(coco_mask, outline, sizes[image])
            shape = Shape(name, "mask", [(0, 0)], mask=mask, layer=layer, title=title)
            shapes[image].append(shape)
    if lost:
        notes.append(
            f"{path}: {len(lost)} annotations belong to none of its images and are left out, "
            f"such as {lost[0]}"
        )
        if not shapes:
            raise DataError(f"{notes[-1]}; so are all others: export it again")
    split, result = split_in(path.stem), list[Drawing]()
    for row in content["images"]:
        key, name = str(row["id"]), row["file_name"]
        photo = folder.find_image(name, path, split)
        result.append(Drawing(path, name, photo, shapes[key], sizes[key], split))
    return result


def _size(path: Path, image: dict[str, Any]) -> tuple[int, int]:
    """Return width and height of an image."""
    width, height = image.get("width"), image.get("height")
    if not isinstance(width, int) or not isinstance(height, int):
        raise DataError(
            f"{path}: image {image['file_name']} has no height and width in whole numbers; add "
            "them there"
        )
    return width, height


def _outline(annotation: dict[str, Any]) -> Any:
    """Return the polygons of three corners or more, or the RLE; nothing if it has none.

    A polygon may also be a list of pairs, and a single one may stand without a list around it.
    """
    found = annotation.get("segmentation")
    if not isinstance(found, list):
        return found
    rings = [found] if all(np.size(part) <= 2 for part in found) else found
    return [ring for ring in rings if np.size(ring) >= 6]


def coco_mask(outline: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the mask, bool (H, W), of polygons or RLE as COCO's own tool draws them.

    Args:
        outline: rings of x1, y1, x2, y2, ..., or RLE.
        size: (width, height) of the image.
    """
    try:
        from pycocotools import mask as rle  # of the extra [coco]
    except ImportError:
        raise DataError(
            'outlines of COCO and CVAT need pycocotools: pip install "fcn-segmentation[coco]"'
        ) from None
    width, height = size
    if isinstance(outline, list):
        rings = [as_points(ring).ravel().tolist() for ring in outline]
        return rle.decode(rle.merge(rle.frPyObjects(rings, height, width))) > 0
    if list(outline["size"]) != [height, width]:
        raise ValueError(
            f"RLE of size {outline['size']}, but the image has height {height} and width {width}"
        )
    if isinstance(outline["counts"], list):  # not compressed
        outline = rle.frPyObjects(outline, height, width)
    return rle.decode(outline) > 0


def _classes(contents: Iterable[dict[str, Any]]) -> list[str]:
    """Return the classes of files that may number them differently."""
    names = list[str]()
    for content in contents:
        used = {str(annotation["category_id"]) for annotation in content["annotations"]}
        # Roboflow adds a category above the others, which no annotation has.
        above = {row.get("supercategory") for row in content["categories"]}
        rows = sorted(content["categories"], key=lambda row: row["id"])
        names += [row["name"] for row in rows if str(row["id"]) in used or row["name"] not in above]
    return with_background(names)


def read_panoptic(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet | None:
    """Read COCO panoptic: a JSON file and a PNG for each image, whose colours number its segments.

    A segment is a thing or stuff; its category is its class. Pixels of no segment are ignored.
    """
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
        split = split_in(path.stem)
        for entry in content["annotations"]:
            image = folder.find_image(images[entry["image_id"]], path, split)
            found = [mask for mask in by_name[Path(entry["file_name"]).name] if mask != image]
            found = [mask for mask in found if mask.parent.name == path.stem] or found
            if image is None or not found:
                missing.append(entry["file_name"] if image else images[entry["image_id"]])
                continue
            segments = {part["id"]: labels[part["category_id"]] for part in entry["segments_info"]}
            read_mask = partial(_panoptic_mask, found[0], segments, len(classes))
            items.append(folder.item(image, found[0], read_mask, split))
    note = f"{len(missing)} images or PNGs are not there and are left out, such as "
    notes = [note + missing[0]] if missing else []
    folder.masks = [item.mask for item in items]
    folder.photos = [path for path in folder.photos if path not in set(folder.masks)]
    names = dict(enumerate([*classes, IGNORE]))
    return AnnotationSet(
        "COCO panoptic", items, names, colours, notes, numbered_here=True, sources={*files}
    )


def _panoptic_mask(path: Path, segments: Mapping[int, int], ignored: int) -> np.ndarray:
    """Return the classes of the segments in a PNG, int64 (H, W)."""
    colours = read_values(path, colours=True) - COLOUR
    red, green, blue = (colours >> shift & 255 for shift in (16, 8, 0))
    found, places = np.unique(red + 256 * green + 65536 * blue, return_inverse=True)
    if unknown := [number for number in found.tolist() if number and number not in segments]:
        raise DataError(f"{path}: the file of COCO has no segment {unknown[0]}; export it again")
    table = np.array([segments.get(number, ignored) for number in found.tolist()])
    return table[places].reshape(colours.shape)
