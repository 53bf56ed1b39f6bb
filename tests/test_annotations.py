"""Predicted masks as annotations: what each tool's format says of them is the mask to the pixel."""

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fcn.checkpoint import write_safetensors
from fcn.dataset_info import DatasetInfo
from fcn.inference import annotations
from fcn.inference.annotations import PLACES, Prediction
from tests.conftest import random_model
from tests.export_files import converted, info, noise, put

CLASSES = ["background", "cat", "dog", "cow", 'a <b> & "ä"']
Masks = dict[str, np.ndarray]  # by the image's name


@pytest.fixture
def masks(tmp_path: Path) -> Masks:
    """Masks of a few shapes: noise, one class, background alone, ignored pixels, one pixel."""
    rng, found = np.random.default_rng(0), dict[str, np.ndarray]()
    found["noise.jpg"] = rng.integers(0, 5, (37, 53))
    found["sub/two words.jpg"] = np.full((40, 30), 2)
    found["empty.jpg"] = np.zeros((20, 20))
    found["ignored.png"] = rng.choice([0, 1, 255], (16, 24))
    found["dot.jpg"] = np.zeros((300, 301))
    found["dot.jpg"][299, 300] = 4
    found["wide.jpg"] = np.zeros((90, 1000))  # runs of more than 2^16 values of a brush
    found["wide.jpg"][10:60] = 3
    for name, mask in found.items():
        path = (tmp_path / "out" / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8)).save(path)
    return found


def write(masks: Masks, folder: Path, tool: str, info: DatasetInfo) -> Path:
    """Annotate the masks of `folder`/out, of images in `folder`/photos."""
    predictions = [
        Prediction(
            folder / "photos" / name, Path(name), (folder / "out" / name).with_suffix(".png")
        )
        for name in masks
    ]
    path = folder / "out" / PLACES[tool]
    annotations.write(tool, predictions, info, path, overwrite=False)
    return path


Named = Iterator[tuple[str, str, np.ndarray]]  # image, class, bool (H, W)


def read_coco(path: Path) -> Named:
    coco = pytest.importorskip("pycocotools.coco").COCO(path)
    for entry in coco.anns.values():
        mask = coco.annToMask(entry)
        rows, columns = np.nonzero(mask)
        corner, size = (columns.min(), rows.min()), (np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert entry["bbox"] == [*corner, *size]
        assert entry["area"] == mask.sum()
        image = coco.imgs[entry["image_id"]]
        assert mask.shape == (image["height"], image["width"])
        yield image["file_name"], coco.cats[entry["category_id"]]["name"], mask > 0


def read_cvat(path: Path) -> Named:
    for image in ElementTree.parse(path).iterfind("image"):
        for found in image.iterfind("mask"):
            left, top, width, height = (
                int(found.attrib[key]) for key in ("left", "top", "width", "height")
            )
            counts = [int(count) for count in found.attrib["rle"].split(",")]
            inside = np.repeat(np.arange(len(counts)) % 2, counts).reshape(height, width)
            mask = np.zeros((int(image.attrib["height"]), int(image.attrib["width"])), bool)
            mask[top : top + height, left : left + width] = inside
            yield image.attrib["name"], found.attrib["label"], mask


def read_labelme(path: Path) -> Named:
    for file in path.rglob("*.json"):
        content = json.loads(file.read_text())
        image = (file.parent / content["imagePath"]).resolve()
        for shape in content["shapes"]:
            (left, top), (right, bottom) = shape["points"]
            inside = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
            mask = np.zeros((content["imageHeight"], content["imageWidth"]), bool)
            mask[top : bottom + 1, left : right + 1] = inside
            name = image.relative_to(path.parents[2].resolve() / "photos").as_posix()
            yield name, shape["label"], mask


def read_labelstudio(path: Path) -> Named:
    for task in json.loads(path.read_text()):
        image = Path("/", unquote(task["data"]["image"].removeprefix("/data/local-files/?d=")))
        name = image.relative_to(path.parents[2] / "photos").as_posix()
        for found in task["predictions"][0]["result"]:
            shape = found["original_height"], found["original_width"], 4
            values = unpack(bytes(found["value"]["rle"])).reshape(shape)
            assert (values == values[..., :1]).all()
            yield name, *found["value"]["brushlabels"], values[..., 3] == 255


def unpack(code: bytes) -> np.ndarray:
    """Decode thi.ng's rle-pack, see `fcn.inference.annotations.brush_rle`."""
    bits, place, values = "".join(f"{byte:08b}" for byte in code), 0, list[int]()

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, size = take(32), take(5) + 1
    counters = [take(4) + 1 for _ in range(4)]
    while len(values) < total:
        same = take(1)
        count = take(counters[take(2)]) + 1
        values += [take(size)] * count if same else [take(size) for _ in range(count)]
    assert len(values) == total
    return np.array(values)


READERS = {"coco": read_coco, "cvat": read_cvat, "labelme": read_labelme}
READERS["labelstudio"] = read_labelstudio


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("tool", PLACES)
def test_every_pixel_of_a_mask_is_in_its_annotations(
    masks: Masks, tmp_path: Path, tool: str, background: bool
) -> None:
    info = DatasetInfo(classes=CLASSES, background=background)
    drawn = {name: np.full(mask.shape, -1) for name, mask in masks.items()}
    labels = {name: label for label, name in enumerate(CLASSES)} | {"ignore": 255}
    for image, name, mask in READERS[tool](write(masks, tmp_path, tool, info)):
        assert (drawn[image][mask] == -1).all(), "two classes at one pixel"
        drawn[image][mask] = labels[name]
    for image, mask in masks.items():
        np.testing.assert_array_equal(
            drawn[image], np.where(mask == 0, -1, mask) if background else mask
        )


def test_the_tools_get_classes_and_colours_without_background(masks: Masks, tmp_path: Path) -> None:
    info = DatasetInfo(classes=CLASSES)
    names = [*CLASSES[1:], "ignore"]
    cvat = ElementTree.parse(write(masks, tmp_path, "cvat", info))
    assert [name.text for name in cvat.iterfind("meta//label/name")] == names
    interface = write(masks, tmp_path, "labelstudio", info).with_suffix(".xml")
    labels = {
        e.attrib["value"]: e.attrib["background"]
        for e in ElementTree.parse(interface).iter("Label")
    }
    assert list(labels) == names
    assert labels["cat"] == "#800000"


def test_nothing_that_labelme_has_corrected_is_replaced(masks: Masks, tmp_path: Path) -> None:
    info = DatasetInfo(classes=CLASSES)
    path = write(masks, tmp_path, "labelme", info)
    saved = json.loads((path / "noise.json").read_text())
    saved["shapes"].pop()  # by labelme, which keeps the checksum
    (path / "noise.json").write_text(json.dumps(saved))
    (path / "wide.json").write_text("by another program")
    (path / "dot.json").unlink()
    Image.fromarray(np.full((20, 20), 3, np.uint8)).save(tmp_path / "out/empty.png")  # corrected
    write(masks, tmp_path, "labelme", info)
    assert json.loads((path / "noise.json").read_text()) == saved
    assert (path / "wide.json").read_text() == "by another program"
    assert (path / "dot.json").exists()
    (shape,) = json.loads((path / "empty.json").read_text())["shapes"]
    assert shape["label"] == "cow"


def test_masks_that_are_there_are_annotated_without_predicting_again(
    tmp_path: Path,
    command: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_safetensors(Path("m.safetensors"), random_model(backbone="mini"), {"classes": CLASSES})
    for number in range(5):
        noise(Path(f"photos/{number}.png"))
    arguments = ("checkpoint=m.safetensors", "input=photos", "output=out")
    command("predict", *arguments)
    capsys.readouterr()
    command("predict", *arguments, "annotations=coco")
    said = capsys.readouterr().out
    assert "0 images predicted, 5 were done before" in said
    assert "annotations of 5 images: out/annotations/coco.json" in said
    content = json.loads(Path("out/annotations/coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [f"{n}.png" for n in range(5)]


@pytest.mark.parametrize("tool", PLACES)
def test_the_background_gets_its_name_back(
    tmp_path: Path,
    command: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tool: str,
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    monkeypatch.chdir(export)
    classes = ["bg", "cat", "dog", "cow", "sheep"]
    write_safetensors(Path("m.safetensors"), random_model(backbone="mini"), {"classes": classes})
    for number in range(2):
        noise(Path(f"photos/{number}.png"))
    command("predict", "checkpoint=m.safetensors", "input=photos", "output=out")
    Image.fromarray(np.eye(24, 32, dtype=np.uint8)).save("out/0.png")  # corrected
    arguments = ("checkpoint=m.safetensors", "input=photos", "output=out")
    command("predict", *arguments, f"annotations={tool}")
    assert '"merge={background: bg}"' in capsys.readouterr().out
    if tool == "labelstudio":
        path = Path("out", PLACES[tool])
        path.write_text(path.read_text().replace('"predictions":', '"annotations":'))
    converted(export, tmp_path / "back", merge={"background": "bg"})
    assert info(tmp_path / "back")["classes"][:2] == ["bg", "cat"]


@pytest.mark.parametrize("tool", PLACES)
def test_annotations_that_are_converted_back_are_the_same_masks(
    masks: Masks, tmp_path: Path, tool: str
) -> None:
    if tool == "coco":
        pytest.importorskip("pycocotools")
    export = tmp_path / "export"
    shutil.copytree(tmp_path / "out", export / "out")
    path = write(masks, export, tool, DatasetInfo(classes=CLASSES))
    if tool == "labelstudio":  # which exports what was predicted once somebody submits it
        path.write_text(path.read_text().replace('"predictions":', '"annotations":'))
    for name, mask in masks.items():
        put(export / "photos" / name, np.zeros((*mask.shape, 3), np.uint8))
    (export / "out" / "predict.json").write_text("{}")  # whose masks are no photographs
    back, _ = converted(export, tmp_path / "back")
    classes = np.array(info(tmp_path / "back")["classes"])
    assert len(back) == len(masks)
    for name, mask in masks.items():
        (found,) = (found for key, found in back.items() if key.endswith(Path(name).stem))
        np.testing.assert_array_equal(found == 255, mask == 255)
        kept = mask != 255
        labels = mask[kept].astype(int)
        np.testing.assert_array_equal(classes[found[kept]], np.array(CLASSES)[labels])
