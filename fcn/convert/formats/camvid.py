"""Masks with a list of colours: label_colors.txt of "r g b name", or class_dict.csv.

CamVid's own masks are called NAME_L.png. SegNet's copy of it has labels and no list.
"""

from dataclasses import replace

from fcn.convert.export import IGNORE, Export, Reading
from fcn.convert.export_folder import ExportFolder
from fcn.convert.formats.class_lists import colour_list, colour_rows, listed_export, paired

FILMS = ("0001TP", "0006R0", "0016E5", "Seq05VD")
SEGNET = [  # the classes of SegNet's copy; 11 is ignored
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "cyclist", IGNORE,
]  # fmt: skip


def read(folder: ExportFolder, reading: Reading) -> Export | None:
    paths = folder.named("label_colors.txt", "class_dict.csv")
    if not paths and any(
        path.name.startswith(FILMS) and "trainannot" in path.parts for path in folder.masks
    ):
        return Export("CamVid of SegNet", paired(folder, reading), dict(enumerate(SEGNET)))
    if not paths:
        return None
    lists = [colour_list(path, colour_rows(path)) for path in paths]
    folder.select_masks("_L")
    reading = replace(reading, colours=any(entry.colours for entry in lists))
    return listed_export(f"masks with {paths[0].name}", folder, lists, reading)
