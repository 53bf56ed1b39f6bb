"""Writers of exports of annotation tools, for the tests of the conversion."""

import base64
import io
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from yaml import safe_load

from fcn.config import DataConfig, PrepareDataConfig
from fcn.convert.convert import convert
from fcn.data.dataset import read_labels
from fcn.data.layouts import open_split
from fcn.pictures.visualize import voc_palette

CLASSES = ["background", "road", "pond"]
COLOURS = [[0, 0, 0], [128, 64, 128], [70, 130, 180]]


@dataclass
class Sample:
    """An image and its labels, 0..2 or 255, as a writer of an export takes them."""

    name: str
    split: str
    image: Path
    labels: np.ndarray


def make_samples(folder: Path) -> list[Sample]:
    """Four images of train and two of val; each shows all classes and some ignored pixels."""
    rng, found = np.random.default_rng(0), []
    for number in range(6):
        labels = np.zeros((24, 32), np.uint8)
        labels[4 + number : 20, 3:15] = 1
        labels[8:14, 10 : 18 + number] = 2
        labels[22] = 255
        path = folder / f"photo{number}.png"
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(path)
        found.append(Sample(f"photo{number}", "train" if number < 4 else "val", path, labels))
    return found


def put(path: Path, content: str | bytes | np.ndarray, palette: Any = None) -> Path:
    """Write a file, whatever folder it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        picture = Image.fromarray(content)
        if palette is not None:
            picture.putpalette(np.asarray(palette, np.uint8).tobytes())
        picture.save(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8")
    return path


def photo(sample: Sample, path: Path) -> None:
    put(path.with_suffix(sample.image.suffix), sample.image.read_bytes())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Each writes an export of samples with classes and the colours of the labels 0..255.


def roboflow(root: Path, samples: list[Sample], classes: list[str], colours: np.ndarray) -> None:
    table = "".join(f"{k}, {name}\n" for k, name in enumerate(classes))
    for s in samples:
        folder = root / {"train": "train", "val": "valid"}[s.split]
        put(folder / "_classes.csv", f"Pixel Value, Class\n{table}")
        photo(s, folder / f"{s.name}_jpg.rf.0a1b.jpg")
        put(folder / f"{s.name}_jpg.rf.0a1b_mask.png", s.labels)


def cvat(root: Path, samples: list[Sample], classes: list[str], colours: np.ndarray) -> None:
    rows = [*zip(classes, colours[: len(classes)], strict=True), ("ignored", colours[255])]
    lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in rows]
    put(root / "labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *lines]))
    for split in ("train", "val"):
        names = [s.name for s in samples if s.split == split]
        put(root / "ImageSets" / "Segmentation" / f"{split}.txt", "\n".join(names))
    for s in samples:
        photo(s, root / "JPEGImages" / s.name)
        for kind in ("SegmentationClass", "SegmentationObject"):
            put(root / kind / f"{s.name}.png", colours[s.labels])


def labelme(root: Path, samples: list[Sample], classes: list[str], colours: np.ndarray) -> None:
    put(root / "class_names.txt", "\n".join(classes))
    for s in samples:
        photo(s, root / "JPEGImages" / s.name)
        put(root / "SegmentationClassPNG" / f"{s.name}.png", s.labels, voc_palette())
        put(root / "SegmentationClassVisualization" / f"{s.name}.jpg", colours[s.labels])


def labelme_npy(root: Path, samples: list[Sample], classes: list[str], colours: np.ndarray) -> None:
    put(root / "class_names.txt", "\n".join(classes))
    for s in samples:
        photo(s, root / "JPEGImages" / s.name)
        buffer = io.BytesIO()
        np.save(buffer, np.where(s.labels == 255, -1, s.labels.astype(np.int32)))
        put(root / "SegmentationClass" / f"{s.name}.npy", buffer.getvalue())


def supervisely(root: Path, samples: list[Sample], classes: list[str], colours: np.ndarray) -> None:
    machine = {name: [k] * 3 for k, name in enumerate(classes) if k}
    machine["ignored"] = [255] * 3
    put(root / "obj_class_to_machine_color.json", json.dumps(machine))
    seen = [
        {"title": name, "color": "#{:02X}{:02X}{:02X}".format(*colours[k])}
        for k, name in enumerate(classes)
    ]
    put(root / "meta.json", json.dumps({"classes": seen}))
    for s in samples:
        photo(s, root / s.split / "img" / s.name)
        mask = np.repeat(s.labels[..., None], 3, axis=2)
        put(root / s.split / "masks_machine" / f"{s.name}{s.image.suffix}.png", mask)
        put(root / s.split / "masks_human" / f"{s.name}.png", colours[s.labels])


def camvid(root: Path, samples: list[Sample], classes: list[str], colours: np.ndarray) -> None:
    rows = [*zip(colours[: len(classes)], classes, strict=True), (colours[255], "Void")]
    put(root / "label_colors.txt", "".join(f"{r} {g} {b}\t\t{n}\n" for (r, g, b), n in rows))
    for s in samples:
        photo(s, root / "701_StillsRaw_full" / s.split / s.name)
        put(root / "LabeledApproved_full" / f"{s.name}_L.png", colours[s.labels])


def class_dict(root: Path, samples: list[Sample], classes: list[str], colours: np.ndarray) -> None:
    rows = [*zip(classes, colours[: len(classes)], strict=True), ("Void", colours[255])]
    table = "".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in rows)
    put(root / "class_dict.csv", f"name,r,g,b\n{table}")
    for s in samples:
        photo(s, root / s.split / s.name)
        put(root / f"{s.split}_labels" / f"{s.name}_L.png", colours[s.labels])


def coco(root: Path, samples: list[Sample], classes: list[str], colours: np.ndarray) -> None:
    from pycocotools import mask as rle

    for split in ("train", "val"):
        content: dict[str, Any] = {"images": [], "annotations": []}
        content["categories"] = [{"id": 9 + k, "name": n} for k, n in enumerate(classes) if k]
        content["categories"].append({"id": 300, "name": "ignored"})
        for number, s in enumerate(s for s in samples if s.split == split):
            photo(s, root / "images" / s.name)
            height, width = s.labels.shape
            entry = {"id": number, "height": height, "width": width}
            content["images"].append(entry | {"file_name": f"{s.name}{s.image.suffix}"})
            for label in set(np.unique(s.labels).tolist()) - {0}:
                shape = rle.encode(np.asfortranarray(s.labels == label))
                shape["counts"] = shape["counts"].decode()
                category = 300 if label == 255 else 9 + label
                entry = {"image_id": number, "category_id": category, "segmentation": shape}
                content["annotations"].append(entry)
        put(root / "annotations" / f"instances_{split}2017.json", json.dumps(content))


WRITERS = [roboflow, cvat, labelme, labelme_npy, supervisely, camvid, class_dict, coco]


# Each writes images of 32 x 24 and the same shapes for each: class, kind, and corners or mask.

Shapes = list[tuple[str, str, Any]]


def noise(path: Path) -> Path:
    rng = np.random.default_rng([*str(path).encode()])  # others in every file
    return put(path, rng.integers(0, 255, (24, 32, 3), np.uint8))


def box_of(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def png_text(mask: np.ndarray, pack: Callable[[bytes], bytes] = bytes) -> str:
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(pack(file.getvalue())).decode()


def labelme_shapes(root: Path, images: dict[str, Shapes]) -> None:
    for name, shapes in images.items():
        entries = []
        for title, kind, points in shapes:
            entry = {"label": title, "shape_type": kind, "points": points, "group_id": 1}
            if kind == "mask":
                (top, left), box = (part.start for part in box_of(points)), points[box_of(points)]
                end = [int(left) + box.shape[1] - 1, int(top) + box.shape[0] - 1]
                entry |= {"points": [[int(left), int(top)], end], "mask": png_text(box)}
            entries.append(entry)
        content = {"imagePath": f"{name}.png", "imageData": None, "shapes": entries}
        noise(root / f"{name}.png")
        put(root / f"{name}.json", json.dumps(content | {"imageHeight": 24, "imageWidth": 32}))


def yolo(root: Path, images: dict[str, Shapes]) -> None:
    names = ["road", "pond"]
    put(root / "data.yaml", f"nc: 2\nnames: {names}\n")
    for name, shapes in images.items():
        noise(root / f"images/{name}.png")
        rows = [(np.array(p) / [32, 24]).ravel() for _, _, p in shapes]
        lines = [
            f"{names.index(title)} {' '.join(f'{value:.6f}' for value in row)}\n"
            for (title, _, _), row in zip(shapes, rows, strict=True)
        ]
        put(root / f"labels/{name}.txt", "".join(lines))


def brush_code(mask: np.ndarray) -> list[int]:
    """Return thi.ng's run lengths of four channels, all in runs of at most 2**8 equal values."""
    values = np.repeat(mask.ravel() * 255, 4)
    bits = f"{values.size:032b}{7:05b}" + "".join(f"{size:04b}" for size in (7, 7, 7, 7))
    for start in range(0, values.size, 4):
        bits += f"1{0:02b}{3:08b}{values[start]:08b}"
    return [int(bits[k : k + 8].ljust(8, "0"), 2) for k in range(0, len(bits), 8)]


def bitmask_text(mask: np.ndarray) -> str:
    """Return Label Studio's bitmask: black on transparent."""
    file = io.BytesIO()
    black = np.dstack([np.zeros((*mask.shape, 3)), mask * 255]).astype(np.uint8)
    Image.fromarray(black).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def label_studio(
    root: Path, images: dict[str, Shapes], minimal: bool = False, bitmasks: bool = False
) -> None:
    tasks = []
    for number, (name, shapes) in enumerate(images.items()):
        noise(root / f"photos/{name}.png")
        size = {"original_width": 32, "original_height": 24}
        values = [
            {"imageDataURL": bitmask_text(points), "bitmasklabels": [title]}
            if kind == "mask" and bitmasks
            else {"format": "rle", "rle": brush_code(points), "brushlabels": [title]}
            if kind == "mask"
            else {
                "points": (np.array(points) * [100 / 32, 100 / 24]).tolist(),
                "polygonlabels": [title],
            }
            for title, kind, points in shapes
        ]
        image = f"/data/upload/1/0123abcd-{name}.png"
        if minimal:
            regions = [value | size for value in values]
            tasks.append({"id": number, "image": image, "annotation_id": 1, "tag": regions})
        else:
            results = [{"id": str(k), "value": v} | size for k, v in enumerate(values)]
            annotations = [{"id": 1, "result": results, "was_cancelled": False}]
            tasks.append({"id": number, "data": {"image": image}, "annotations": annotations})
    put(root / "project-1.json", json.dumps(tasks))


def label_studio_min(root: Path, images: dict[str, Shapes]) -> None:
    label_studio(root, images, minimal=True)


def label_studio_bitmasks(root: Path, images: dict[str, Shapes]) -> None:
    label_studio(root, images, bitmasks=True)


def cvat_shapes(root: Path, images: dict[str, Shapes]) -> None:
    parts = ["<annotations><version>1.1</version>"]
    for name, shapes in images.items():
        noise(root / f"images/{name}.png")
        parts.append(f'<image name="{name}.png" width="32" height="24">')
        for title, kind, points in shapes:
            about = f'label="{title}" z_order="0"'
            if kind == "mask":
                box = points[box_of(points)]
                top, left = (part.start for part in box_of(points))
                edges = np.flatnonzero(np.diff(box.ravel().astype(int), prepend=0)).tolist()
                counts = np.diff([0, *edges, box.size]).tolist()
                about += f' rle="{", ".join(map(str, counts))}" left="{left}" top="{top}"'
                about += f' width="{box.shape[1]}" height="{box.shape[0]}"'
            else:
                about += f' points="{";".join(f"{x:.2f},{y:.2f}" for x, y in points)}"'
            parts.append(f"<{kind} {about}></{kind}>")
        parts.append("</image>")
    put(root / "annotations.xml", "".join([*parts, "</annotations>"]))


def supervisely_shapes(root: Path, images: dict[str, Shapes]) -> None:
    classes = [{"title": title, "color": "#0A0B0C"} for title in ("road", "pond")]
    put(root / "meta.json", json.dumps({"classes": classes}))
    for name, shapes in images.items():
        noise(root / f"ds/img/{name}.png")
        objects = []
        for title, kind, points in shapes:
            entry: dict[str, Any] = {"classTitle": title, "geometryType": kind}
            if kind == "mask":
                origin = [int(part.start) for part in box_of(points)[::-1]]
                data = png_text(points[box_of(points)], zlib.compress)
                entry |= {"geometryType": "bitmap", "bitmap": {"origin": origin, "data": data}}
            else:
                entry["points"] = {"exterior": points, "interior": []}
            objects.append(entry)
        content = {"size": {"width": 32, "height": 24}, "objects": objects}
        put(root / f"ds/ann/{name}.png.json", json.dumps(content))


def coco_shapes(root: Path, images: dict[str, Shapes]) -> None:
    names, entries = ["road", "pond"], list[dict[str, Any]]()
    for number, (name, shapes) in enumerate(images.items()):
        noise(root / f"{name}.png")
        for title, kind, points in shapes:
            outline: Any = [np.ravel(points).tolist()]
            if kind == "mask":
                columns = points.T.ravel().astype(int)  # COCO's runs go down the columns
                edges = np.flatnonzero(np.diff(columns, prepend=0)).tolist()
                counts = np.diff([0, *edges, columns.size]).tolist()
                outline = {"size": [24, 32], "counts": counts}
            entry = {"image_id": number, "category_id": names.index(title)}
            entries.append(entry | {"segmentation": outline})
    content = {
        "images": [
            {"id": k, "file_name": f"{n}.png", "width": 32, "height": 24}
            for k, n in enumerate(images)
        ],
        "categories": [{"id": k, "name": n} for k, n in enumerate(names)],
        "annotations": entries,
    }
    put(root / "annotations.json", json.dumps(content))


def converted(
    root: Path, to: Path, *, read: bool = True, **settings: Any
) -> tuple[dict[str, np.ndarray], str]:
    """Convert; return the masks by their id, SPLIT/NAME, and what was printed."""
    data = DataConfig(name="export", **settings.pop("data", {}))
    console = Console(file=io.StringIO(), width=5000)
    cfg = PrepareDataConfig(data=data, convert=str(root), to=str(to), processes=1, **settings)
    target = convert(cfg, console)
    masks = {}
    for split in sorted(os.listdir(to / "images")):
        dataset = open_split(target, split)
        assert not read or all(image.shape[1:] == mask.shape for image, mask in dataset)
        masks |= {pair.id: read_labels(pair.mask) for pair in dataset.pairs}
    assert isinstance(console.file, io.StringIO)
    return masks, console.file.getvalue()


def check(
    masks: dict[str, np.ndarray],
    samples: list[Sample],
    form: Callable[..., Any] | list[int] = np.asarray,
) -> None:
    """Assert that each sample has one mask: its labels in some form, or by a table of 0, 1, 2."""
    assert len(masks) == len(samples)
    for s in samples:
        (mask,) = (mask for name, mask in masks.items() if s.name in name)
        table = np.array([*form, *[255] * (256 - len(form))]) if isinstance(form, list) else None
        expected = form(s.labels) if table is None else table[s.labels]  # type: ignore[operator]
        np.testing.assert_array_equal(mask, expected)


def info(to: Path) -> dict[str, Any]:
    return safe_load((to / "dataset.yaml").read_text())


def pictures(root: Path, samples: list[Sample], form: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Write images/SPLIT/NAME and labels/SPLIT/NAME.png, with masks in some form."""
    for s in samples:
        photo(s, root / "images" / s.split / s.name)
        put(root / "labels" / s.split / f"{s.name}.png", form(s.labels))
    return root
