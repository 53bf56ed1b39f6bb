"""Exports that the tools' own software writes, compared with the masks that it draws itself.

A test is skipped without its tool: pip install labelme supervision label-studio-sdk cvat-sdk
supervisely datasets.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.export_files import CLASSES, converted, info

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the tools' own warnings
SIZE = 128, 96  # width, height
# OpenCV and Pillow draw slanted outlines differently: up to a tenth of their pixels.
OUTLINES = 0.01 * 4 * SIZE[0] * SIZE[1]
Objects = list[tuple[str, np.ndarray]]  # class and corners (N, 2)


def tool(name: str) -> Any:
    return pytest.importorskip(name, exc_type=ImportError)


def objects(number: int) -> Objects:
    """Return overlapping ellipses, large ones first; each image has them at another place."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    found = []
    for name, x, y, width, height, tilt in (
        ("road", 60, 50, 45, 25, 0.5), ("pond", 88, 62, 18, 12, -0.4), ("road", 86, 60, 6, 6, 0)
    ):  # fmt: skip
        u, v = width * np.cos(angles), height * np.sin(angles)
        cos, sin = np.cos(tilt), np.sin(tilt)
        found.append((name, np.stack([x + number + u * cos - v * sin, y + u * sin + v * cos], 1)))
    return found


def inside(corners: np.ndarray) -> np.ndarray:
    """Return an object as a bool mask, for tools that take masks."""
    mask = Image.new("L", SIZE)
    ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners], fill=1)
    return np.asarray(mask) > 0


def painted(number: int) -> np.ndarray:
    """Return the labels of an image's masks, painted one over the other."""
    labels = np.zeros(SIZE[::-1], np.uint8)
    for name, corners in objects(number):
        labels[inside(corners)] = CLASSES.index(name)
    return labels


def photos(folder: Path, names: Callable[[int], str] = "photo{}.png".format) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    noise, paths = np.random.default_rng(0), []
    for number in range(4):
        paths.append(folder / names(number))
        Image.fromarray(noise.integers(0, 255, (*SIZE[::-1], 3), np.uint8)).save(paths[-1])
    return paths


def differing(
    export: Path, to: Path, expected: list[np.ndarray], names: list[str] = CLASSES
) -> int:
    """Convert; return the number of pixels that differ from what the tool has drawn."""
    masks, _ = converted(export, to)
    assert sorted(info(to)["classes"]) == sorted(names)
    labels = np.array([names.index(name) for name in info(to)["classes"]])
    by_number = {int(name[-1]): labels[mask] for name, mask in masks.items()}
    assert sorted(by_number) == list(range(len(expected)))
    return sum(int((by_number[n] != mask).sum()) for n, mask in enumerate(expected))


def test_labelme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    labelme = tool("labelme")
    expected, ids = [], {"_background_": 0, "road": 1, "pond": 2}
    for number, photo in enumerate(photos(tmp_path / "a")):
        (_, road), (_, pond), (_, circle) = objects(number)
        mask = inside(pond)
        y, x = np.nonzero(mask)
        box = mask[y.min() : y.max() + 1, x.min() : x.max() + 1].astype(np.uint8)
        rows = [
            ("road", "polygon", road, None),
            ("pond", "mask", np.array([[x.min(), y.min()], [x.max(), y.max()]]), box),
            ("road", "circle", np.stack([circle.mean(0), circle[0]]), None),
            ("pond", "rectangle", np.array([[20.5, 30.5], [9.0, 12.0]]), None),
            ("road", "linestrip", np.array([[100.0, 5.0], [110.0, 40.0], [120.0, 9.0]]), None),
            ("_background_", "polygon", road[::8], None),
        ]
        shapes = [
            {
                "label": name, "points": points.astype(float).tolist(), "shape_type": kind,
                "group_id": None, "description": "", "flags": {},
                "mask": None if area is None else labelme.utils.img_arr_to_b64(area),
            }
            for name, kind, points, area in rows
        ]  # fmt: skip
        path = str(photo.with_suffix(".json"))
        labelme.LabelFile().save(path, shapes, photo.name, SIZE[1], SIZE[0])
        stored = labelme.LabelFile(path).shapes
        expected.append(labelme.utils.shapes_to_label((SIZE[1], SIZE[0]), stored, ids)[0])
    assert differing(tmp_path / "a", tmp_path / "new", expected, [*ids]) == 0


def test_yolo_by_supervision(tmp_path: Path) -> None:
    sv = tool("supervision")
    images, names = photos(tmp_path / "photos"), CLASSES[1:]
    annotations = {}
    for number, image in enumerate(images):
        masks = np.stack([inside(corners) for _, corners in objects(number)])
        annotations[str(image)] = sv.Detections(
            sv.mask_to_xyxy(masks),
            mask=masks,
            class_id=np.array([names.index(name) for name, _ in objects(number)]),
        )
    places = [str(tmp_path / "a" / name) for name in ("images", "labels", "data.yaml")]
    written = sv.DetectionDataset(names, list(map(str, images)), annotations)
    written.as_yolo(*places, approximation_percentage=0.0)
    expected = []
    read = sv.DetectionDataset.from_yolo(*places, force_masks=True)
    for _, _, found in sorted(read, key=lambda entry: entry[0]):
        labels = np.zeros(SIZE[::-1], np.uint8)
        for place in np.argsort(-found.mask.sum((1, 2)), kind="stable"):
            labels[found.mask[place]] = found.class_id[place] + 1
        expected.append(labels)
    assert differing(tmp_path / "a", tmp_path / "new", expected) < OUTLINES


@pytest.mark.parametrize("form", ["JSON", "JSON_MIN"])
def test_label_studio(tmp_path: Path, form: str) -> None:
    converter = tool("label_studio_sdk.converter")
    expected, tasks = [], []
    names = [f"{number:08x}-photo{number}.png" for number in range(4)]
    photos(tmp_path / "a" / "images", lambda number: names[number])
    for number in range(4):
        labels, result = np.zeros(SIZE[::-1], np.uint8), []
        for name, corners in objects(number):
            code = converter.brush.mask2rle(inside(corners).astype(np.uint8) * 255)
            area = converter.brush.decode_rle(code).reshape(*SIZE[::-1], 4)[..., 3] > 0
            labels[area] = CLASSES.index(name)
            value = {"format": "rle", "rle": code, "brushlabels": [name]}
            result.append(
                {
                    "original_width": SIZE[0], "original_height": SIZE[1], "image_rotation": 0,
                    "from_name": "tag", "to_name": "image", "type": "brushlabels", "value": value,
                }
            )  # fmt: skip
        expected.append(labels)
        data = {"image": f"/data/upload/1/{names[number]}"}
        tasks.append(
            {"id": number, "data": data, "annotations": [{"id": number, "result": result}]}
        )
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    brushes = "".join(f'<Label value="{name}"/>' for name in CLASSES[1:])
    config = (
        '<View><Image name="image" value="$image"/>'
        f'<BrushLabels name="tag" toName="image">{brushes}</BrushLabels></View>'
    )
    writer = converter.Converter(config, str(tmp_path))
    writer.convert(str(tmp_path / "tasks.json"), str(tmp_path / "a"), form, is_dir=False)
    assert differing(tmp_path / "a", tmp_path / "new", expected) == 0


def test_cvat_masks(tmp_path: Path) -> None:
    masks = tool("cvat_sdk.masks")
    photos(tmp_path / "a" / "images")
    rows = []
    for number in range(4):
        rows.append(
            f'<image id="{number}" name="photo{number}.png" width="{SIZE[0]}" height="{SIZE[1]}">'
        )
        for layer, (name, corners) in reversed([*enumerate(objects(number))]):
            *counts, x1, y1, x2, y2 = map(int, masks.encode_mask(inside(corners)))
            rows.append(
                f'<mask label="{name}" rle="{", ".join(map(str, counts))}" left="{x1}" top="{y1}" '
                f'width="{x2 - x1 + 1}" height="{y2 - y1 + 1}" z_order="{layer}"></mask>'
            )
        rows.append("</image>")
    names = "".join(f"<label><name>{name}</name></label>" for name in CLASSES[1:])
    head = f"<version>1.1</version><meta><task><labels>{names}</labels></task></meta>"
    text = "\n".join(["<annotations>", head, *rows, "</annotations>"])
    (tmp_path / "a" / "annotations.xml").write_text(text)
    assert differing(tmp_path / "a", tmp_path / "new", [*map(painted, range(4))]) == 0


def test_supervisely(tmp_path: Path) -> None:
    sly = tool("supervisely")
    meta = sly.ProjectMeta([sly.ObjClass(name, sly.AnyGeometry) for name in CLASSES[1:]])
    project = sly.Project(str(tmp_path / "a"), sly.OpenMode.CREATE)
    project.set_meta(meta)
    dataset, expected = project.create_dataset("ds"), []
    for number, photo in enumerate(photos(tmp_path / "photos")):
        geometries = []
        for place, (name, corners) in enumerate(objects(number)):
            points = [sly.PointLocation(int(y), int(x)) for x, y in corners]
            shape = sly.Bitmap(inside(corners)) if place else sly.Polygon(points, [points[::9]])
            geometries.append(sly.Label(shape, meta.get_obj_class(name)))
        annotation = sly.Annotation(SIZE[::-1], geometries)
        dataset.add_item_file(photo.name, str(photo), annotation)
        canvas = np.zeros((*SIZE[::-1], 3), np.uint8)
        for label in sly.Annotation.load_json_file(dataset.get_ann_path(photo.name), meta).labels:
            label.draw(canvas, [CLASSES.index(label.obj_class.name)] * 3)
        expected.append(canvas[..., 0])
    assert differing(tmp_path / "a", tmp_path / "new", expected) < OUTLINES


def test_tables_by_datasets(tmp_path: Path) -> None:
    datasets = tool("datasets")
    expected = [*map(painted, range(4))]
    columns = {
        "image": [*map(Image.open, photos(tmp_path / "photos"))],
        "label": [*map(Image.fromarray, expected)],
    }
    features = datasets.Features(image=datasets.Image(), label=datasets.Image())
    table = datasets.Dataset.from_dict(columns, features=features)
    (tmp_path / "a").mkdir()
    table.to_parquet(tmp_path / "a" / "train-00000-of-00001.parquet")
    names = {str(label): name for label, name in enumerate(CLASSES)}
    (tmp_path / "a" / "id2label.json").write_text(json.dumps(names))
    assert differing(tmp_path / "a", tmp_path / "new", expected) == 0
