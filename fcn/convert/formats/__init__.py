"""What annotation tools export: a file for each format, whose `read` finds images, masks, classes.

A new format is a file with `read(folder, reading) -> Export | None`, None if the folder holds
another one, and an entry here. Readers of shapes return `drawn_export`, readers of mask files with
a list of classes `listed_export`.
"""

from fcn.convert.export import Export, Reading
from fcn.convert.export_folder import ExportFolder
from fcn.convert.formats import (
    camvid,
    cityscapes,
    coco,
    coco_panoptic,
    cvat,
    cvat_masks,
    label_studio,
    labelme,
    labelme_masks,
    plain,
    roboflow,
    supervisely,
    supervisely_masks,
    yolo,
)
from fcn.errors import DataError

OF_MASKS = (roboflow, cvat_masks, labelme_masks, supervisely_masks, cityscapes, camvid)
OF_SHAPES = (labelme, supervisely, coco_panoptic, coco, label_studio, cvat, yolo)


def recognise(folder: ExportFolder, reading: Reading) -> Export:
    """Return what an export holds, by the first format that knows it.

    Shapes are not looked for if a setting says where the masks are.

    Raises:
        DataError: no masks, masks without an image, unreadable lists.
    """
    for form in (*OF_MASKS, *(() if folder.masks_are_given else OF_SHAPES), plain):
        try:
            export = form.read(folder, reading)
        except DataError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            name = form.__name__.rpartition(".")[2]
            raise DataError(
                f"{folder.root}: its files of {name} do not have that format ({error!r}); export "
                "it again, or say where the files are with images= and masks="
            ) from error
        if export:
            break
    if not export.items:
        raise DataError(f"{folder.root}: {export.format}, but no masks")
    return export
