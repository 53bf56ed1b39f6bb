"""Files of annotation tools that cannot be read here, and what to export there instead."""

import re

from fcn.convert.export_folder import ExportFolder

BOXES = "boxes without outlines, from which no masks can be drawn"
LABELBOX = (
    "Labelbox's file, which holds addresses of masks: download these by its SDK as PNGs called "
    "IMAGE_CLASS.png in a folder masks, beside a folder images"
)
V7 = "V7 Darwin's own file: export COCO, or semantic masks"
QUPATH = "GeoJSON, as QuPath writes it: export label images there, by a script (LabeledImageServer)"
# Suffix, words that are all in the text, and what it is.
FOREIGN = (
    (".json", ('"shape_attributes"',), "VIA's own file: choose Annotation > Export Annotations "
     "(COCO format)"),
    (".json", ('"data_row"',), LABELBOX),
    (".ndjson", ('"data_row"',), LABELBOX),
    (".json", ('"item"', '"annotations"'), V7),
    (".ndjson", ('"item"', '"annotations"'), V7),
    (".json", ('"FeatureCollection"',), QUPATH),
    (".geojson", ('"FeatureCollection"',), QUPATH),
    (".xml", ("<annotations", "<track"), "CVAT for video 1.1: export the same task as CVAT for "
     "images 1.1, COCO 1.0 or Segmentation mask 1.1"),
    (".xml", ("<annotation", "<polygon"), "LabelMe's old XML: import it in CVAT as LabelMe 3.0, "
     "and export Segmentation mask 1.1"),
    (".xml", ("<annotation", "<bndbox"), f"Pascal VOC's XML of {BOXES}: its masks lie in "
     "SegmentationClass"),
    (".csv", ("xmin", "ymin"), f"a table of {BOXES}: annotate polygons, and export COCO"),
)  # fmt: skip
# Label Studio's PNGs say the number of a task, but not the name of its image.
LABEL_STUDIO_PNG = re.compile(r"task-\d+-annotation-\d+-by-.+\.(png|npy)")


def describe_foreign(folder: ExportFolder) -> str:
    """Return what an export that cannot be read is, and what to export instead; "" if unknown."""
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
    return ""
