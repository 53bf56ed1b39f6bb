"""CVAT's Segmentation mask 1.1: labelmap.txt of name:r,g,b:parts:actions, SegmentationClass."""

import re
from dataclasses import replace

from fcn.convert.export import Export, Reading
from fcn.convert.export_folder import ExportFolder
from fcn.convert.formats.class_lists import colour_list, listed_export
from fcn.data.dataset import read_list


def read(folder: ExportFolder, reading: Reading) -> Export | None:
    lists = []
    for path in folder.named("labelmap.txt"):
        rows = list[tuple[str, list[int]]]()
        for line in read_list(path):
            coloured = re.match(r"(.+):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:|$)", line)
            if coloured:
                rows.append((coloured[1], [int(value) for value in coloured.groups()[1:4]]))
            elif not line.startswith("#"):
                rows.append((line.rsplit(":", 3)[0], []))
        lists.append(colour_list(path, rows))
    if not lists:
        return None
    reading = replace(reading, colours=any(entry.colours for entry in lists))
    return listed_export("CVAT segmentation masks", folder, lists, reading)
