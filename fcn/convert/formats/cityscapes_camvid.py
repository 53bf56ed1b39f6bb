"""Cityscapes, KITTI and CamVid, as they are published, and sets of the same layouts."""

import re
from collections.abc import Iterable

from fcn.config import PrepareDataConfig
from fcn.convert.annotation_folder import AnnotationFolder
from fcn.convert.annotation_set import IGNORE, AnnotationSet
from fcn.convert.formats.class_lists import (
    ClassList,
    colour_list,
    colour_rows,
    listed_set,
    paired,
)
from fcn.dataset_info import VOID
from fcn.errors import DataError

# Ids of the classes that are evaluated; the others, -1 to 33, are ignored.
CLASSES = {
    7: ("road", [128, 64, 128]), 8: ("sidewalk", [244, 35, 232]), 11: ("building", [70, 70, 70]),
    12: ("wall", [102, 102, 156]), 13: ("fence", [190, 153, 153]), 17: ("pole", [153, 153, 153]),
    19: ("traffic light", [250, 170, 30]), 20: ("traffic sign", [220, 220, 0]),
    21: ("vegetation", [107, 142, 35]), 22: ("terrain", [152, 251, 152]),
    23: ("sky", [70, 130, 180]), 24: ("person", [220, 20, 60]), 25: ("rider", [255, 0, 0]),
    26: ("car", [0, 0, 142]), 27: ("truck", [0, 0, 70]), 28: ("bus", [0, 60, 100]),
    31: ("train", [0, 80, 100]), 32: ("motorcycle", [0, 0, 230]), 33: ("bicycle", [119, 11, 32]),
}  # fmt: skip
NAME = re.compile(r"[a-z-]+_\d{6}_\d{6}_gt(Fine|Coarse)_labelIds|\d{6}_\d\d")  # also KITTI's

FILMS = ("0001TP", "0006R0", "0016E5", "Seq05VD")
SEGNET = [  # the classes of SegNet's copy; 11 is ignored
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "cyclist", IGNORE,
]  # fmt: skip


def read_cityscapes(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet | None:
    """Read gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png, leftImg8bit/SPLIT/CITY/NAME_....png.

    KITTI has the same ids: training/image_2/NAME.png and training/semantic/NAME.png. CVAT and
    datumaro write a team's own classes in this layout, numbered by the rows of label_colors.txt.
    """
    title = "Cityscapes"
    masks = [path for path in folder.pictures if path.stem.endswith("_labelIds")]
    if not masks:
        title = "KITTI"
        masks = [path for path in folder.masks if path.parent.name == "semantic"]
        if not masks or not all(NAME.fullmatch(path.stem) for path in masks):
            return None
    folder.masks = masks
    if paths := folder.files_named("label_colors.txt"):
        lists = []
        for path, rows in ((path, colour_rows(path)) for path in paths):
            numbers = dict(enumerate(name for name, _ in rows))
            lists.append(ClassList(path, numbers, {name: rgb for name, rgb in rows if rgb}))
        return listed_set("Cityscapes' layout", folder, lists, cfg)
    items = paired(folder, cfg)
    if not all(NAME.fullmatch(mask.stem) for mask in masks):
        return AnnotationSet("Cityscapes' layout", items)  # of a team's own classes
    names = dict.fromkeys(range(-1, 34), IGNORE) | {k: name for k, (name, _) in CLASSES.items()}

    def check(values: Iterable[int]) -> None:
        ids = sorted({*values} - {-1, VOID})
        # Whole sets hold nearly all of 0..33, and single images always some of the later ids.
        own = bool(ids) and (
            not CLASSES.keys() & ids
            or (ids[0] <= 1 and ids[-1] < 33 and len(ids) > ids[-1] - ids[0])
            or (ids[-1] < 21 and 2 * len(ids) > ids[-1])
        )
        if own and not (cfg.labels or cfg.data.colours):
            given = ", ".join(f"{value}: NAME" for value in ids)
            raise DataError(
                f"{masks[0]}: the ids {ids[0]} to {ids[-1]} look like classes of your own, not "
                f'like those of Cityscapes; name them: "labels={{{given}}}"'
            )

    return AnnotationSet(title, items, names, dict(CLASSES.values()), check=check)


def read_camvid(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet | None:
    """Read masks with a list of colours: label_colors.txt of "r g b name", or class_dict.csv.

    CamVid's own masks are called NAME_L.png. SegNet's copy of it has labels and no list.
    """
    if lists := folder.files_named("label_colors.txt", "class_dict.csv"):
        folder.select_masks("_L")
        tables = [colour_list(path, colour_rows(path)) for path in lists]
        return listed_set(f"masks with {lists[0].name}", folder, tables, cfg)
    if any(p.name.startswith(FILMS) and "trainannot" in p.parts for p in folder.masks):
        return AnnotationSet("CamVid of SegNet", paired(folder, cfg), dict(enumerate(SEGNET)))
    return None
