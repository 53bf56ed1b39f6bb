"""Files of annotation tools that cannot be read here, and what to export there instead."""

import re
from pathlib import Path

from fcn.convert.export_folder import ExportFolder

BOXES = "boxes without outlines, which no mask can be drawn from: annotate polygons or masks"
# Suffix, words in the text, all of them, and the advice.
FOREIGN = (
    (".json", ('"regions"', '"shape_attributes"'), "VGG Image Annotator's own file: choose "
     "Annotation > Export Annotations (COCO format)"),
    (".json", ('"data_row"',), "Labelbox's file, whose masks are addresses: save them by its SDK as "
     "PNGs called IMAGE_CLASS.png in a folder masks, beside a folder images"),
    (".ndjson", ('"data_row"',), "Labelbox's file, whose masks are addresses: save them by its SDK "
     "as PNGs called IMAGE_CLASS.png in a folder masks, beside a folder images"),
    (".json", ('"slots"', '"annotations"'), "V7 Darwin's own file: export COCO, or Semantic Mask"),
    (".json", ('"FeatureCollection"',), "GeoJSON, as QuPath writes it: export labelled images there "
     "(Automate > script with LabeledImageServer), as PNG"),
    (".geojson", ('"FeatureCollection"',), "GeoJSON, as QuPath writes it: export labelled images "
     "there (Automate > script with LabeledImageServer), as PNG"),
    (".xml", ("<annotations", "<track"), "CVAT for video 1.1: export CVAT for images 1.1, COCO 1.0 "
     "or Segmentation mask 1.1 of the same task"),
    (".xml", ("<annotation", "<bndbox"), f"Pascal VOC's {BOXES}"),
    (".csv", ("xmin", "ymin", "class"), f"a table of {BOXES}"),
)  # fmt: skip
# Label Studio's PNGs say the number of a task, but not the name of its image.
LABEL_STUDIO_PNG = re.compile(r"task-\d+-annotation-\d+-by-.+\.(png|npy)")


def describe_foreign(folder: ExportFolder) -> str:
    """Return what an export that cannot be read is, and what to export instead."""
    for path in folder.files:
        if path.suffix in {suffix for suffix, _, _ in FOREIGN}:
            text = path.read_text("utf-8", "replace")
            for suffix, words, advice in FOREIGN:
                if path.suffix == suffix and all(word in text for word in words):
                    return f"{path}: {advice}"
        if LABEL_STUDIO_PNG.fullmatch(path.name):
            return (
                f"{path}: Label Studio's PNG, whose name does not say which image it belongs to: "
                "export JSON, which holds the same brushes"
            )
    return f"{folder.root}: not an export of a known tool"
