"""What annotation tools export: a file for each tool, whose readers find images, masks, classes.

A reader is a function (folder, settings) -> AnnotationSet, or None if it is another format.
If the tool stores shapes, return `drawn_set`; if it stores mask files and a list of classes,
return `listed_set`.

To add a format, write its file (labelme.py has a short reader of each kind), put its reader into
READ_MASKS or READ_SHAPES (those before it are asked first), and the words by which a file of shapes
is known into WORDS; take it out of foreign.py, and add a writer to tests/export_files.py and a row
to data/README.md.
"""

from pathlib import Path

from fcn.config import PrepareDataConfig
from fcn.convert.annotation_folder import AnnotationFolder, has_words, shown_files
from fcn.convert.annotation_set import AnnotationSet
from fcn.convert.formats import (
    cityscapes_camvid,
    coco,
    cvat,
    label_studio,
    labelme,
    plain,
    roboflow,
    supervisely,
    yolo,
)
from fcn.errors import DataError

WORDS = [module.WORDS for module in (labelme, supervisely, coco, label_studio, cvat)]
READ_MASKS = (
    roboflow.read, cvat.read_masks, labelme.read_masks, supervisely.read_masks,
    cityscapes_camvid.read_cityscapes, cityscapes_camvid.read_camvid,
)  # fmt: skip
READ_SHAPES = (
    labelme.read_shapes, supervisely.read_shapes, coco.read_panoptic, coco.read, label_studio.read,
    cvat.read_shapes, yolo.read,
)  # fmt: skip


def recognise(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet:
    """Return what an export holds, by the first reader that knows it.

    Shapes are not looked for if a setting says where the masks are.

    Raises:
        DataError: no masks, masks without an image, unreadable lists.
    """
    shapes = () if folder.masks_are_given else READ_SHAPES
    for read in (*READ_MASKS, *shapes, plain.read):
        try:
            annotations = read(folder, cfg)
        except DataError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder.root}: its files of {read.__module__.rpartition('.')[2]} do not have "
                f"that format ({error!r}); export it again, or say where the files are with "
                "images= and masks="
            ) from error
        if annotations and annotations.items:  # none of a list of classes beside shapes
            annotations.notes += _not_used(folder, annotations)
            return annotations
    raise DataError(f"{folder.root}: no images with masks")


def _not_used(folder: AnnotationFolder, annotations: AnnotationSet) -> list[str]:
    """Return a note on the annotation files that the export leaves out, if there are any."""
    if folder.masks_are_given:
        return []
    found = [p for p in folder.files if p not in annotations.sources and _is_annotation(p)]
    return [f"annotations that are not used: {shown_files(found)}"] if found else []


def _is_annotation(path: Path) -> bool:
    if path.suffix == ".txt":
        return yolo.is_annotation(path)
    has_shapes = path.suffix.lower() in (".json", ".xml")
    return has_shapes and any(has_words(path, words) for words in WORDS)
