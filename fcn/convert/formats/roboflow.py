"""Roboflow's semantic masks: SPLIT/_classes.csv, NAME.jpg, NAME_mask.png."""

from fcn.config import PrepareDataConfig
from fcn.convert.annotation_folder import AnnotationFolder
from fcn.convert.annotation_set import AnnotationSet
from fcn.convert.formats.class_lists import ClassList, cells, listed_set
from fcn.data.dataset import read_list
from fcn.errors import DataError


def read(folder: AnnotationFolder, cfg: PrepareDataConfig) -> AnnotationSet | None:
    lists = []
    for path in folder.files_named("_classes.csv"):
        head, *lines = read_list(path) or [""]
        if "Pixel" not in head:
            continue  # of classification
        names = dict[int, str]()
        for value, *name in map(cells, lines):
            text = ", ".join(name)
            if (first := names.setdefault(int(value), text)) != text:
                raise DataError(f"{path}: {value} is {first} and {text}; remove one of them")
        lists.append(ClassList(path, names))
    if not lists:
        return None
    folder.select_masks("_mask")
    return listed_set("Roboflow semantic masks", folder, lists, cfg)
