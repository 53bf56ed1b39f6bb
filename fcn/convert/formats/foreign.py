"""Files of annotation tools that cannot be read here, and what to export there instead."""

import re

from fcn.convert.annotation_folder import AnnotationFolder

BOXES = "boxes without outlines, from which no masks can be drawn"
LABELBOX = (
    "Labelbox's file, which holds addresses of masks: download these by its SDK as PNGs called "
    "IMAGE_CLASS.png in a folder masks, beside a folder images"
)
# Words that are all in the text of a file, and what it is.
FOREIGN = (
    (('"shape_attributes"',), "VIA's own file: choose Annotation > Export Annotations (COCO "
     "format)"),
    (('"data_row"',), LABELBOX),
    (('"item"', '"annotations"'), "V7 Darwin's own file: export COCO, or semantic masks"),
    (('"FeatureCollection"',), "GeoJSON, as QuPath writes it: export label images there, by a "
     "script (LabeledImageServer)"),
    (("<annotations", "<track"), "CVAT for video 1.1: export the same task as CVAT for images 1.1, "
     "COCO 1.0 or Segmentation mask 1.1"),
    (("<annotation", "<polygon"), "LabelMe's old XML: import it in CVAT as LabelMe 3.0, and export "
     "Segmentation mask 1.1"),
    (("<annotation", "<bndbox"), f"Pascal VOC's {BOXES}: its masks lie in SegmentationClass"),
    (("xmin", "ymin"), f"a table of {BOXES}: annotate polygons, and export COCO"),
)  # fmt: skip
# Label Studio's PNGs say the number of a task, but not the name of its image.
LABEL_STUDIO_PNG = re.compile(r"task-\d+-annotation-\d+-by-.+\.(png|npy)")


def describe_foreign(folder: AnnotationFolder) -> str:
    """Return what an export that cannot be read is, and what to export instead; "" if unknown."""
    for path in folder.files:
        if path.suffix in (".csv", ".geojson", ".json", ".ndjson", ".xml"):
            text = path.read_text("utf-8", "replace")
            for words, advice in FOREIGN:
                if all(word in text for word in words):
                    return f"{path}: {advice}"
        if LABEL_STUDIO_PNG.fullmatch(path.name):
            return (
                f"{path}: Label Studio's PNG, whose name does not say which image it belongs to: "
                "export JSON, which holds the same brushes"
            )
    return ""
