"""Masks with a list of colours: label_colors.txt of "r g b name", or class_dict.csv.

CamVid's own masks are called NAME_L.png. SegNet's copy of it has labels and no list.
"""

from fcn.config import PrepareDataConfig
from fcn.convert.export import IGNORE, Export
from fcn.convert.export_folder import ExportFolder
from fcn.convert.formats.class_lists import colour_list, colour_rows, listed_export, paired

FILMS = ("0001TP", "0006R0", "0016E5", "Seq05VD")
SEGNET = [  # the classes of SegNet's copy; 11 is ignored
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "cyclist", IGNORE,
]  # fmt: skip


def read(folder: ExportFolder, cfg: PrepareDataConfig) -> Export | None:
    if lists := folder.named("label_colors.txt", "class_dict.csv"):
        folder.select_masks("_L")
        tables = [colour_list(path, colour_rows(path)) for path in lists]
        return listed_export(f"masks with {lists[0].name}", folder, tables, cfg)
    if any(p.name.startswith(FILMS) and "trainannot" in p.parts for p in folder.masks):
        return Export("CamVid of SegNet", paired(folder, cfg), dict(enumerate(SEGNET)))
    return None
