"""Predicted masks as annotations: converted back from each tool's format, they are the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fcn.checkpoint import write_safetensors
from fcn.dataset_info import DatasetInfo
from fcn.inference import annotations
from fcn.inference.annotations import PLACES, Prediction
from tests.conftest import random_model
from tests.export_files import converted, info, put

CLASSES = ["background", "cat", "dog", "cow", 'a <b> & "ä"']
Masks = dict[str, np.ndarray]  # by the image's name


@pytest.fixture
def masks(tmp_path: Path) -> Masks:
    """Masks of a few shapes: noise, one class, background alone, ignored pixels, one pixel."""
    rng, found = np.random.default_rng(0), dict[str, np.ndarray]()
    found["noise.jpg"] = rng.integers(0, 5, (37, 53))
    found["sub/two words.jpg"] = np.full((40, 30), 2)
    found["empty.jpg"] = np.zeros((20, 20))
    found["spots.png"] = rng.choice([0, 1, 255], (16, 24))
    found["dot.jpg"] = np.zeros((300, 301))
    found["dot.jpg"][299, 300] = 4
    found["wide.jpg"] = np.zeros((90, 1000))  # runs of more than 2^16 values of a brush
    found["wide.jpg"][10:60] = 3
    for name, mask in found.items():
        found[name] = mask.astype(np.uint8)
        put((tmp_path / "masks" / name).with_suffix(".png"), found[name])
        put(tmp_path / "export/photos" / name, rng.integers(0, 255, (*mask.shape, 3), np.uint8))
    return found


def write(masks: Masks, folder: Path, tool: str, info: DatasetInfo) -> Path:
    """Annotate the masks of `folder`/masks, of images in `folder`/export/photos."""
    predictions = [
        Prediction(
            folder / "export/photos" / name,
            Path(name),
            (folder / "masks" / name).with_suffix(".png"),
        )
        for name in masks
    ]
    path = folder / "export/out" / PLACES[tool]
    annotations.write(tool, predictions, info, path, overwrite=False)
    return path


def submit(file: Path) -> None:
    """Make the predictions of Label Studio's tasks its annotations, as somebody does there."""
    file.write_text(file.read_text().replace('"predictions":', '"annotations":'))


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("tool", PLACES)
def test_every_pixel_of_a_mask_is_in_its_annotations(
    masks: Masks, tmp_path: Path, tool: str, background: bool
) -> None:
    path = write(masks, tmp_path, tool, DatasetInfo(classes=CLASSES, background=background))
    if tool == "labelstudio":
        submit(path)
    found, printed = converted(tmp_path / "export", tmp_path / "back")
    classes = info(tmp_path / "back")["classes"]
    assert "several classes" not in printed
    assert len(found) == len(masks)
    for name, mask in masks.items():
        (back,) = (m for key, m in found.items() if key.endswith(Path(name).stem))
        expected = np.array(CLASSES)[np.where(mask == 255, 0, mask)]
        np.testing.assert_array_equal(np.array(classes)[back], expected)


def test_coco_reads_its_own_boxes_and_areas(masks: Masks, tmp_path: Path) -> None:
    path = write(masks, tmp_path, "coco", DatasetInfo(classes=CLASSES))
    coco = pytest.importorskip("pycocotools.coco").COCO(path)
    drawn = {name: np.zeros_like(mask) for name, mask in masks.items()}
    for entry in coco.anns.values():
        mask = coco.annToMask(entry)
        rows, columns = np.nonzero(mask)
        corner, size = (columns.min(), rows.min()), (np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert entry["bbox"] == [*corner, *size]
        assert entry["area"] == mask.sum()
        image, name = coco.imgs[entry["image_id"]], coco.cats[entry["category_id"]]["name"]
        drawn[image["file_name"]] += mask * np.uint8(CLASSES.index(name))
    for name, mask in masks.items():
        np.testing.assert_array_equal(drawn[name], np.where(mask == 255, 0, mask))


def test_the_tools_get_classes_and_colours_without_background(masks: Masks, tmp_path: Path) -> None:
    info = DatasetInfo(classes=CLASSES)
    cvat = ElementTree.parse(write(masks, tmp_path, "cvat", info))
    assert [name.text for name in cvat.iterfind("meta//label/name")] == CLASSES[1:]
    interface = write(masks, tmp_path, "labelstudio", info).with_suffix(".xml")
    labels = [e.attrib for e in ElementTree.parse(interface).iter("Label")]
    assert [label["value"] for label in labels] == CLASSES[1:]
    assert labels[0]["background"] == "#800000"


def test_nothing_that_labelme_has_corrected_is_replaced(masks: Masks, tmp_path: Path) -> None:
    path = write(masks, tmp_path, "labelme", DatasetInfo(classes=CLASSES))
    (path / "noise.json").write_text("corrected")
    (path / "dot.json").unlink()
    write(masks, tmp_path, "labelme", DatasetInfo(classes=CLASSES))
    assert (path / "noise.json").read_text() == "corrected"
    assert (path / "dot.json").exists()


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five photos, and a model that sees several classes in each."""
    monkeypatch.chdir(tmp_path)
    write_safetensors(Path("m.safetensors"), random_model(backbone="mini"), {"classes": CLASSES})
    rng = np.random.default_rng(0)
    Path("photos").mkdir()
    for number in range(5):
        pixels = rng.integers(0, 256, (3 + number, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((70, 60)).save(f"photos/{number}.png")
    return tmp_path / "photos"


def test_masks_that_are_there_are_annotated_without_predicting_again(
    photos: Path, command: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("checkpoint=m.safetensors", "input=photos", "output=out")
    command("predict", *arguments)
    capsys.readouterr()
    command("predict", *arguments, "annotations=coco")
    said = capsys.readouterr().out
    assert "0 images predicted, 5 were done before" in said
    assert "annotations of 5 images: out/annotations/coco.json" in said
    content = json.loads(Path("out/annotations/coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [f"{n}.png" for n in range(5)]


@pytest.mark.parametrize("tool", ["cvat", "labelme", "labelstudio"])
def test_round_trip(photos: Path, command: Callable[..., Any], tool: str) -> None:
    """Predict, annotate, and convert the annotations back: the same masks."""
    place = f"annotations={tool}"
    command("predict", "checkpoint=m.safetensors", "input=photos", "output=out", place)
    shutil.copytree("photos", "export/photos")
    shutil.copytree("out/annotations", "export/out/annotations")
    if tool == "labelstudio":
        submit(Path("export/out/annotations/labelstudio.json"))
    command("prepare_data", "convert=export", "to=back")
    back = {
        path.stem: np.array(Image.open(path)) for path in Path("back/annotations").rglob("*.png")
    }
    classes = info(Path("back"))["classes"]
    assert len(back) == 5
    assert len(set(np.concatenate([np.unique(mask) for mask in back.values()]))) > 2
    for name, mask in back.items():
        predicted = np.array(Image.open(f"out/{name}.png"))
        np.testing.assert_array_equal(np.array(classes)[mask], np.array(CLASSES)[predicted])
