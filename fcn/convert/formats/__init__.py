"""What annotation tools export: a file for each tool, whose readers find images, masks, classes.

A reader is a function (folder, settings) -> Export | None, None if the folder holds another format.
If the tool stores shapes, return `drawn_export`; if it stores mask files and a list of classes,
return `listed_export`.

To add a format, write its file (labelme.py has a short reader of each kind), put its reader into
READ_MASKS or READ_SHAPES (those before it are asked first), take it out of foreign.py, and add a
writer to tests/export_files.py and a row to data/README.md.
"""

from fcn.config import PrepareDataConfig
from fcn.convert.export import Export
from fcn.convert.export_folder import ExportFolder
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

READ_MASKS = (
    roboflow.read, cvat.read_masks, labelme.read_masks, supervisely.read_masks,
    cityscapes_camvid.read_cityscapes, cityscapes_camvid.read_camvid,
)  # fmt: skip
READ_SHAPES = (
    labelme.read_shapes, supervisely.read_shapes, coco.read_panoptic, coco.read, label_studio.read,
    cvat.read_shapes, yolo.read,
)  # fmt: skip


def recognise(folder: ExportFolder, cfg: PrepareDataConfig) -> Export:
    """Return what an export holds, by the first reader that knows it.

    Shapes are not looked for if a setting says where the masks are.

    Raises:
        DataError: no masks, masks without an image, unreadable lists.
    """
    shapes = () if folder.masks_are_given else READ_SHAPES
    for read in (*READ_MASKS, *shapes, plain.read):
        try:
            export = read(folder, cfg)
        except DataError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder.root}: its files of {read.__module__.rpartition('.')[2]} do not have "
                f"that format ({error!r}); export it again, or say where the files are with "
                "images= and masks="
            ) from error
        if export:
            break
    if not export or not export.items:
        raise DataError(f"{folder.root}: no images with masks")
    return export
