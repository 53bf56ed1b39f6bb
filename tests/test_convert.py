"""Exports of masks with lists of classes, and of COCO's outlines: every label survives."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from fcn.config import DataConfig
from fcn.data.dataset import read_labels
from fcn.data.layouts import open_split
from fcn.errors import ConfigError, DataError
from fcn.pictures.visualize import voc_palette
from tests.export_files import (
    CLASSES,
    COLOURS,
    WRITERS,
    Sample,
    camvid,
    check,
    class_dict,
    coco,
    contents,
    converted,
    cvat,
    info,
    labelme,
    labelme_npy,
    noise,
    photo,
    pictures,
    put,
    roboflow,
    supervisely,
)

ROAD = {"data": {"classes": ["background", "road"]}}
RED = {"data": {"classes": ["background", "road"], "colours": [[0, 0, 0], [255, 0, 0]]}}
THREE = {"data": {"classes": CLASSES}}
Write = Callable[..., None]
IDS: Any = lambda value: getattr(value, "__name__", None)  # noqa: E731


def quoted(write: Write) -> Write:
    """The writer, then quotes around each cell of its table."""

    def write_quoted(root: Path, *rest: Any) -> None:
        write(root, *rest)
        for path in root.rglob("*.csv"):
            limit = 1 if write is roboflow else -1  # whose names may hold commas
            lines = [line.split(",", limit) for line in path.read_text().splitlines()]
            rows = [",".join(f'"{cell.strip()}"' for cell in cells) for cells in lines]
            path.write_text("\n".join(rows))

    write_quoted.__name__ = f"{write.__name__} in quotes"
    return write_quoted


def other_columns(root: Path, *rest: Any) -> None:
    """Write class_dict.csv with its columns in another order, and one more."""
    class_dict(root, *rest)
    path = root / "class_dict.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    lines = [[*(row[k] for k in (1, 2, 3, 0)), str(k)] for k, row in enumerate(rows)]
    lines[0][-1] = "label"
    path.write_text("\n".join(",".join(row) for row in lines))


DIGITS, SEPARATORS = ["0", "1", "2"], ["class0", "#lane 1: wet", "2 ponds"]
TABLES = [cvat, camvid, class_dict, quoted(class_dict)]
TWICE = ["background", "road", "road"]
IGNORED = {"ignore", "ignored", "__ignore__", "void", "Void"}
BACKGROUND = {"background", "bg", "_background_", "unlabelled", "unlabeled"}
WRITTEN: list[tuple[Write, list[str]]] = [
    *((write, CLASSES) for write in WRITERS),
    *((write, names) for write in TABLES for names in (DIGITS, SEPARATORS)),
    *((w, n) for w in (roboflow, quoted(roboflow)) for n in (DIGITS, ["class0", "1, wet", "2 c"])),
    (other_columns, DIGITS),
    *((write, TWICE) for write in (roboflow, cvat, labelme, class_dict)),
    (roboflow, ["ignore", "road", "bg"]),
    (cvat, ["ignored", "road", "_background_"]),
    (labelme, ["void", "road", "unlabelled"]),
    (labelme_npy, ["Void", "road", "unlabeled"]),
    (camvid, ["__ignore__", "road", "background"]),
    (class_dict, ["ignored", "road", "bg"]),
    (supervisely, ["background", "road", "void"]),
    (coco, ["background", "road", "ignore"]),
]


@pytest.mark.parametrize(("write", "names"), WRITTEN, ids=IDS)
def test_every_label_keeps_its_name_and_background_comes_first(
    tmp_path: Path, samples: list[Sample], write: Write, names: list[str]
) -> None:
    colours = voc_palette()
    colours[:3] = COLOURS
    write(tmp_path / "export", samples, names, colours)
    masks, printed = converted(tmp_path / "export", tmp_path / "new")
    kept, new = [name for name in names if name not in IGNORED], info(tmp_path / "new")
    assert new["classes"] == sorted(dict.fromkeys(kept), key=lambda name: name not in BACKGROUND)
    assert new["background"] == any(name in BACKGROUND for name in names)
    check(masks, samples, [new["classes"].index(n) if n in kept else 255 for n in names])
    assert ("road is in several rows, which become one class" in printed) == (names is TWICE)
    if write not in (labelme, labelme_npy):  # which have no splits
        found = sorted((name.split("/")[0], name.split("/")[1][:6]) for name in masks)
        assert found == sorted((s.split, s.name) for s in samples)
    if write in (cvat, supervisely, camvid, class_dict) and names is not TWICE:
        assert new["colours"] == [COLOURS[names.index(name)] for name in new["classes"]]


@pytest.mark.parametrize("write", [None, labelme], ids=["grey", "palette"])
def test_labels_choose_and_colours_show(
    tmp_path: Path, samples: list[Sample], write: Write | None
) -> None:
    if write is None:
        pictures(tmp_path / "a", samples, lambda labels: labels.clip(0, 2))
    else:
        write(tmp_path / "a", samples, CLASSES, voc_palette())
    labels, shown = dict(enumerate(CLASSES)), [[1, 2, 3], [4, 5, 6]]
    data = {"classes": ["pond", "background"], "colours": shown}
    masks, _ = converted(tmp_path / "a", tmp_path / "new", labels=labels, data=data)
    new = info(tmp_path / "new")
    assert (new["classes"], new["colours"]) == (data["classes"], shown)
    check(masks, samples, [1, 255, 0] if write else lambda k: np.array([1, 255, 0])[k.clip(0, 2)])


def test_one_coloured_pixel_changes_no_label_of_other_masks(
    tmp_path: Path, samples: list[Sample]
) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels.clip(0, 2))
    spoilt = root / "labels" / samples[0].split / f"{samples[0].name}.png"
    picture = Image.new("RGB", (32, 24))
    picture.putpixel((3, 3), (255, 0, 0))
    picture.save(spoilt)
    masks, _ = converted(root, tmp_path / "new", labels=dict(enumerate(CLASSES)))
    for s in samples[1:]:
        (mask,) = (mask for name, mask in masks.items() if s.name in name)
        np.testing.assert_array_equal(mask, s.labels.clip(0, 2))


def test_a_mask_of_black_and_white_among_colours_holds_colours_too(
    tmp_path: Path, samples: list[Sample]
) -> None:
    colours = np.array([[9, 0, 0], [255, 255, 255], [0, 0, 0]], np.uint8)
    for s in samples:
        s.labels = s.labels.clip(0, 2)
    samples[0].labels = samples[0].labels.clip(1, 2)
    root = pictures(tmp_path / "a", samples, lambda labels: colours[labels])
    grey = root / "labels" / samples[0].split / f"{samples[0].name}.png"
    Image.open(grey).convert("L").save(grey)  # as programs do that make files small
    data = {"classes": CLASSES, "colours": colours.tolist()}
    masks, _ = converted(root, tmp_path / "new", data=data)
    check(masks, samples)


@pytest.mark.parametrize("write", WRITERS, ids=IDS)
def test_colours_to_show_never_rename_classes(
    tmp_path: Path, samples: list[Sample], write: Write
) -> None:
    names, shown = ["background", "pond", "road"], [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    colours = voc_palette()
    colours[:3] = COLOURS
    write(tmp_path / "a", samples, CLASSES, colours)
    data = {"classes": names, "colours": shown}
    if write in (cvat, supervisely, camvid, class_dict, labelme):  # whose masks hold colours
        with pytest.raises(DataError, match="has no class"):
            converted(tmp_path / "a", tmp_path / "new", data=data)
        return
    masks, _ = converted(tmp_path / "a", tmp_path / "new", data=data)
    check(masks, samples, [names.index(name) for name in CLASSES])
    assert (info(tmp_path / "new")["classes"], info(tmp_path / "new")["colours"]) == (names, shown)


@pytest.mark.slow
@pytest.mark.parametrize("write", [roboflow, cvat, coco], ids=IDS)
def test_real_masks_survive_a_round_trip(tmp_path: Path, voc_root: Path, write: Write) -> None:
    val = open_split(DataConfig(name="voc", root=str(voc_root), folder="VOCdevkit/VOC2012"), "val")
    samples = [
        Sample(pair.id, "train" if number % 2 else "val", pair.image, read_labels(pair.mask))
        for number, pair in enumerate(val.pairs)
    ]
    write(tmp_path / "export", samples, val.classes, voc_palette())
    masks, _ = converted(tmp_path / "export", tmp_path / "new")
    check(masks, samples)
    assert info(tmp_path / "new")["classes"] == val.classes


def stored(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def road_and_pond(road: Path) -> np.ndarray:
    pond = stored(road.parents[1] / "pond" / road.name)
    return np.select([stored(road) > 0, pond > 0], [1, 2])


# A folder of a case, the files that tell its labels and how, and settings.
CASES: dict[str, tuple[str, Callable[[Path], np.ndarray], dict[str, Any]]] = {
    "good3": ("good3", stored, {}),
    "binary255": ("good", stored, {}),
    "suffix": ("good", stored, {}),
    "tifmask": ("good", stored, {}),
    "rgbmask": ("good3", stored, {"data": {"colours": COLOURS}}),
    "adelike": ("good3", stored, {}),
    "roboflow": ("roboflow", stored, {}),
    "field3/nfd": ("field3/nfd", stored, {}),
    "field3/lists-root": ("field3/lists-root", stored, {}),
    "field3/alpha-brush": ("field3/alpha-brush", lambda file: stored(file)[..., 3] > 0, RED),
    "field3/half-size": (
        "field3/half-size", lambda file: np.kron(stored(file), np.ones((2, 2))), {"resize": True}
    ),
    "field3/antialias": (
        "field3/antialias", lambda file: stored(file) >= 128, ROAD | {"nearest": True}
    ),
    "field3/per-class": ("field3/per-class/masks/road", road_and_pond, THREE),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_case_becomes_what_it_should(tmp_path: Path, cases: Path, case: str) -> None:
    folder, labels, settings = CASES[case]
    masks, printed = converted(cases / case, tmp_path / "new", **settings)
    files = list((cases / folder).rglob("*.png"))
    assert len(masks) == len(files)
    for name, mask in masks.items():
        split, stem = normalize("NFC", name).split("/")
        (file,) = (
            file
            for file in files
            if normalize("NFC", file.stem).removesuffix("_mask") == stem
            and file.parent.name.startswith((split, "masks", "road"))  # a split, or it has none
        )
        np.testing.assert_array_equal(mask, labels(file))
    if case == "field3/per-class":
        assert "look like masks" not in printed
    if case == "roboflow":
        assert info(tmp_path / "new")["classes"] == CLASSES
    if case == "field3/lists-root":
        assert {name for name in masks if "val/" in name} == {f"val/clip3_{k}" for k in range(4)}


def test_folders_that_are_links_are_converted(tmp_path: Path, cases: Path) -> None:
    store = cases / "field3/symlink/store"  # whose links became text when they were stored
    (tmp_path / "set").mkdir()
    (tmp_path / "set/images").symlink_to(store / "a")
    (tmp_path / "set/masks").symlink_to(store / "b")
    masks, _ = converted(tmp_path / "set", tmp_path / "new", **THREE)
    assert sorted(name.split("/")[1] for name in masks) == [f"im{k}" for k in range(6)]
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, stored(store / f"b/{Path(name).name}.png"))


def test_cityscapes_is_converted_with_its_own_classes_or_those_of_a_map(
    tmp_path: Path, cases: Path
) -> None:
    labels = {7: "road", 21: "building", 23: "sky"}
    masks, printed = converted(cases / "cityscapes", tmp_path / "new", labels=labels)
    assert info(tmp_path / "new")["classes"] == ["road", "building", "sky"]
    for name, mask in masks.items():
        city = Path(name).name.split("_")[0]
        file = cases / "cityscapes/gtFine" / Path(name).parent / city / Path(name).name
        ids = read_labels(Path(str(file).replace("leftImg8bit", "gtFine_labelIds") + ".png"))
        expected = np.select([ids == 7, ids == 21, ids == 23], [0, 1, 2], 255)
        np.testing.assert_array_equal(mask, expected)
    assert "(ignored)" in printed
    converted(cases / "cityscapes", tmp_path / "19")  # without a map
    new = info(tmp_path / "19")
    assert (len(new["classes"]), new["background"]) == (19, False)
    assert new["colours"][new["classes"].index("road")] == [128, 64, 128]


BINARY = {
    "1 bit": lambda road: road,
    "0 and 1": lambda road: road.astype(np.uint8),
    "0 and 128": lambda road: road.astype(np.uint8) * np.uint8(128),
    "16 bits": lambda road: road.astype(np.uint16) * np.uint16(65535),
    "RGB": lambda road: np.repeat(road[..., None] * np.uint8(255), 3, axis=2),
    "RGBA": lambda road: np.dstack([road * np.uint8(255)] * 3 + [np.full(road.shape, 255, "u1")]),
}


@pytest.mark.parametrize("form", BINARY.values(), ids=BINARY)
def test_two_classes_are_read_from_any_two_values(
    tmp_path: Path, samples: list[Sample], form: Callable[[np.ndarray], np.ndarray]
) -> None:
    root = pictures(tmp_path / "export", samples, lambda labels: form(labels == 1))
    masks, _ = converted(root, tmp_path / "new", data={"classes": ["background", "road"]})
    check(masks, samples, lambda labels: labels == 1)


def test_palette_colours_are_classes_only_if_colours_are_given(
    tmp_path: Path, samples: list[Sample]
) -> None:
    reversed_palette = [COLOURS[2], COLOURS[1], COLOURS[0]] + [[9, 9, 9]] * 253
    for s in samples:
        s.labels = s.labels.clip(0, 2)
        photo(s, tmp_path / "a/images" / s.name)
        put(tmp_path / "a/masks" / f"{s.name}.png", s.labels, reversed_palette)
    check(converted(tmp_path / "a", tmp_path / "1", **THREE)[0], samples)
    by_colour = {"classes": CLASSES, "colours": COLOURS}
    check(converted(tmp_path / "a", tmp_path / "2", data=by_colour)[0], samples, [2, 1, 0])


def test_subsets_of_cvat_keep_their_splits(tmp_path: Path, samples: list[Sample]) -> None:
    colours, subsets = voc_palette(), dict[str, list[str]](train=[], val=[])
    for s in samples:  # one name in two folders
        s.name = f"{s.split} day/{int(s.name[-1]) % 4}"
        subsets[s.split].append(s.name)
    cvat(tmp_path / "a", samples, CLASSES, colours)
    for split, name in (("train", "Train"), ("val", "Validation")):
        old = tmp_path / f"a/ImageSets/Segmentation/{split}.txt"
        put(old.with_stem(name), "\n".join(subsets[split]))
        old.unlink()
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    assert sorted(masks) == [*(f"train/{n}" for n in range(4)), "val/0", "val/1"]
    for s in samples:
        np.testing.assert_array_equal(masks[f"{s.split}/{s.name[-1]}"], s.labels)


def test_images_of_roboflow_may_be_called_mask(tmp_path: Path, samples: list[Sample]) -> None:
    for s in samples:
        s.name = f"mask-{s.name}"
    roboflow(tmp_path / "a", samples, CLASSES, voc_palette())
    check(converted(tmp_path / "a", tmp_path / "new")[0], samples)


def test_classes_are_merged_dropped_and_chosen(tmp_path: Path, samples: list[Sample]) -> None:
    colours = voc_palette()
    colours[:3] = COLOURS
    cvat(tmp_path / "a", samples, CLASSES, colours)
    merge = {"road": "ground", "pond": "ground"}
    check(converted(tmp_path / "a", tmp_path / "merged", merge=merge)[0], samples, [0, 1, 1])
    assert info(tmp_path / "merged")["classes"] == ["background", "ground"]
    assert info(tmp_path / "merged")["colours"] == COLOURS[:2]
    dropped, _ = converted(tmp_path / "a", tmp_path / "dropped", merge={"pond": None})
    check(dropped, samples, [0, 1])
    given = {"classes": ["road", "background"]}
    check(converted(tmp_path / "a", tmp_path / "chosen", data=given)[0], samples, [1, 0])


def test_labels_may_stand_in_a_file(tmp_path: Path, samples: list[Sample]) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    listed = put(tmp_path / "labels.yaml", "2: pond\n1: road\n")
    masks, _ = converted(root, tmp_path / "new", labels=str(listed))
    assert info(tmp_path / "new")["classes"] == ["pond", "road"]
    check(masks, samples, [255, 1, 0])


def test_camvid_of_segnet_is_known_by_its_files(tmp_path: Path, samples: list[Sample]) -> None:
    for name in ("0001TP_", ""):
        for s in samples:
            photo(s, tmp_path / f"a{name}" / s.split / f"{name}{s.name}")
            labels = np.where(s.labels == 255, 11, s.labels).astype(np.uint8)
            put(tmp_path / f"a{name}" / f"{s.split}annot" / f"{name}{s.name}.png", labels)
    check(converted(tmp_path / "a0001TP_", tmp_path / "new")[0], samples)
    assert info(tmp_path / "new")["classes"][:2] == ["sky", "building"]
    with pytest.raises(DataError, match="name their classes"):  # another set in such folders
        converted(tmp_path / "a", tmp_path / "new2")


def coco_content(file: Path, names: dict[int, str], annotations: list[Any], **images: Any) -> None:
    """Write a file of COCO with images 0 and 1 of 8 x 8 pixels, and the images themselves."""
    rows = [{"id": k, "file_name": f"{k}.png", "height": 8, "width": 8} | images for k in (0, 1)]
    content = {
        "images": [row | {"file_name": row["file_name"].format(row["id"])} for row in rows],
        "categories": [
            {"id": k, "name": name, "supercategory": "top"} for k, name in names.items()
        ],
        "annotations": annotations,
    }
    put(file, "\ufeff" + json.dumps(content))
    for row in content["images"]:
        put(file.parent / row["file_name"].replace("\\", "/"), np.zeros((8, 8, 3), np.uint8))


def outline(image: int, category: int, *rings: list[int], **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": [*rings], **more}


def square(side: int) -> list[int]:
    return [0, 0, side, 0, side, side, 0, side]


def test_coco_draws_small_over_large_and_both_over_crowds(tmp_path: Path) -> None:
    names = {0: "top", 1: "class1", 2: "class2", 3: "class3"}  # Roboflow's first is above them
    annotations = [
        outline(1, 1, square(2)),
        outline(1, 2, square(4)),
        outline(1, 3, square(6), iscrowd=1),
        outline(1, 1, bbox=[0, 0, 8, 8]),
    ]
    file = tmp_path / "a/_annotations.coco.json"
    coco_content(file, names, annotations, file_name="images\\{}.png")
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    expected = np.zeros((8, 8), np.uint8)
    expected[:6, :6], expected[:4, :4], expected[:2, :2] = 3, 2, 1
    (mask,) = (mask for name, mask in masks.items() if name.endswith("1"))
    np.testing.assert_array_equal(mask, expected)
    assert info(tmp_path / "new")["classes"] == ["background", "class1", "class2", "class3"]
    assert "1 annotation without an outline" in printed
    assert "1 images without annotations" in printed
    assert "16 pixels (12.50 %) of 1 images lie under shapes of several classes" in printed


def test_a_category_of_background_is_no_second_one(tmp_path: Path) -> None:
    annotations = [outline(k, 1, square(4)) for k in (0, 1)]
    coco_content(tmp_path / "a/annotations.json", {0: "_background_", 1: "road"}, annotations)
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    assert info(tmp_path / "new")["classes"] == ["_background_", "road"]
    assert all(mask[:4, :4].all() and mask.sum() == 16 for mask in masks.values())


def test_files_of_coco_may_number_categories_differently(tmp_path: Path) -> None:
    for split, names in (("train", ["road", "pond"]), ("valid", ["pond", "road"])):
        rings = [[square(4)], [[4, 0, 8, 0, 8, 8], [0, 6, 4, 6]]]  # and a line
        annotations = [outline(k, c, *ring) for c, ring in enumerate(rings) for k in (0, 1)]
        file = tmp_path / "a" / split / "_annotations.coco.json"
        numbered = dict(enumerate(names))
        coco_content(file, numbered, annotations, file_name="{}/a.png")  # one name, two folders
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    assert sorted(masks) == ["train/0_a", "train/1_a", "val/0_a", "val/1_a"]
    assert info(tmp_path / "new")["classes"] == ["background", "road", "pond"]
    for name, mask in masks.items():
        first, second = (1, 2) if name.startswith("train") else (2, 1)
        assert (mask[1, 1], mask[1, 7], mask[6, 1]) == (first, second, 0)


def coco_file(root: Path, samples: list[Sample]) -> tuple[Path, dict[str, Any]]:
    """Write images, and return the content of their file of COCO with an RLE for each class."""
    coco(root, samples, CLASSES, voc_palette())
    (root / "annotations/instances_val2017.json").unlink()
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = 100 + number
    return path, content


def lose_all_images(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        annotation["image_id"] += 1000


def list_twice(content: dict[str, Any]) -> None:
    content["images"].append(content["images"][0] | {"id": 50})


def first(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a function that changes the first annotation."""
    return lambda content: content["annotations"][0].update({key: value})


COCO_DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "category": (first("category_id", 99), "101?0? of image_id 0 has category_id 99, which no"),
    "halved": (first("segmentation", {"size": [12, 16], "counts": "x"}), r"0: no outline \(RLE of"),
    "height": (
        lambda c: c["images"][0].pop("height"),
        r"image photo0\.png has no height and width",
    ),
    "counts": (first("segmentation", {"size": [24, 32], "counts": {}}), "100 .*: no outline"),
    "images": (lose_all_images, "such as annotation 100 of image_id 1000; so are all others"),
    "twice": (list_twice, "two masks belong to it, .*; convert a copy of the export"),
}


@pytest.mark.parametrize(("damage", "message"), COCO_DAMAGES.values(), ids=COCO_DAMAGES)
def test_a_damaged_file_of_coco_is_an_error_that_names_the_annotation(
    tmp_path: Path, samples: list[Sample], damage: Callable[..., None], message: str
) -> None:
    path, content = coco_file(tmp_path / "a", samples)
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        converted(tmp_path / "a", tmp_path / "new")
    assert "instances_train2017.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_annotations_of_coco_without_an_image_are_named_and_ids_may_be_text(
    tmp_path: Path, samples: list[Sample]
) -> None:
    path, content = coco_file(tmp_path / "a", samples)
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        annotation["category_id"] = str(annotation["category_id"])
    content["annotations"].append(content["annotations"][0] | {"image_id": 99})
    path.write_text(json.dumps(content))
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    check(masks, samples[:4])
    assert "1 annotations belong to none of its images and are left out, such as" in printed
    assert "annotation 100 of image_id 99" in printed


@pytest.mark.parametrize("write", [cvat, supervisely, camvid, class_dict, None])
def test_two_classes_of_one_colour_are_an_error(
    tmp_path: Path, samples: list[Sample], write: Write | None
) -> None:
    colours, data = voc_palette(), dict[str, Any]()
    colours[2] = colours[1]
    if write:
        write(tmp_path / "a", samples, CLASSES, colours)
    else:
        pictures(tmp_path / "a", samples, lambda labels: colours[labels.clip(0, 2)])
        data = {"classes": CLASSES, "colours": colours[:3].tolist()}
    if write is supervisely:
        same = {"road": [1, 1, 1], "pond": [1, 1, 1]}
        put(tmp_path / "a/obj_class_to_machine_color.json", json.dumps(same))
    with pytest.raises(DataError, match="road and pond have one colour"):
        converted(tmp_path / "a", tmp_path / "new", data=data)


@pytest.mark.parametrize("classes", [["road", "pond"], ["unlabelled", "road", "pond"]])
def test_zero_is_ignored_if_one_says_so_whether_it_is_listed_or_not(
    tmp_path: Path, samples: list[Sample], classes: list[str]
) -> None:
    for s in samples:
        s.labels = s.labels.clip(0, 2)
    pictures(tmp_path / "a", samples, lambda labels: labels)
    data = {"ignore_index": 0, "classes": classes}
    check(converted(tmp_path / "a", tmp_path / "new", data=data)[0], samples, [255, 0, 1])
    assert info(tmp_path / "new")["classes"] == ["road", "pond"]


@pytest.mark.parametrize("write", [roboflow, cvat, labelme, supervisely, camvid], ids=IDS)
def test_lists_that_differ_are_an_error_and_their_folders_are_converted_one_by_one(
    tmp_path: Path, samples: list[Sample], write: Write
) -> None:
    write(tmp_path / "a/train", samples[:4], CLASSES, voc_palette())
    for s in samples[4:]:
        s.labels = np.array([0, 2, 1] + [255] * 253, np.uint8)[s.labels]
    classes = [CLASSES[k] for k in (0, 2, 1)]
    write(tmp_path / "a/val", samples[4:], classes, voc_palette())
    with pytest.raises(DataError, match="name classes differently; convert their folders one by"):
        converted(tmp_path / "a", tmp_path / "x")
    masks, _ = converted(tmp_path / "a/val", tmp_path / "new")
    new = info(tmp_path / "new")["classes"]
    check(masks, samples[4:], [new.index(name) for name in classes])


def test_classes_given_for_listed_labels_choose_by_name(
    tmp_path: Path, samples: list[Sample]
) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    put(root / "classes.txt", "\n".join(CLASSES))
    given = {"classes": ["pond", "background", "road"]}
    check(converted(root, tmp_path / "new", data=given)[0], samples, [1, 2, 0])
    lake = {"classes": ["lake", "background", "road"]}
    with pytest.raises(ConfigError, match=r"there is no lake: rename with"):
        converted(root, tmp_path / "x", data=dict(lake))
    renamed, _ = converted(root, tmp_path / "again", data=lake, merge={"pond": "lake"})
    check(renamed, samples, [1, 2, 0])
    put(root / "labels/val/classes.txt", "background\npond\nroad\n")
    with pytest.raises(DataError, match=r"classes\.txt .*classes\.txt name classes differently"):
        converted(root, tmp_path / "x")
    assert converted(root, tmp_path / "3", **THREE)[0]


def cityscapes(root: Path, samples: list[Sample], names: list[str], table: list[int]) -> None:
    """Write Cityscapes' layout, as datumaro and CVAT do for a team's own classes too."""
    for s, name in zip(samples, names, strict=True):
        noise(root / f"leftImg8bit/{s.split}/{name}_leftImg8bit.png")
        ids = np.array(table, np.uint8)[s.labels.clip(0, 2)]
        put(root / f"gtFine/{s.split}/{name}_gtFine_labelIds.png", ids)
        put(root / f"gtFine/{s.split}/{name}_gtFine_instanceIds.png", s.labels)
        noise(root / f"gtFine/{s.split}/{name}_gtFine_color.png")


OFFICIAL = [f"aachen/aachen_{k:06}_000019" for k in range(6)]
OWN = [f"photo{k}" for k in range(6)]


LISTED = ["0 0 0 background\n128 64 128 road\n70 130 180 pond", "\n".join(CLASSES)]
# Names of images, ids of the labels 0, 1 and 2, a list of classes, and the classes; none: an error.
CITIES: list[tuple[list[str], list[int], str, list[str]]] = [
    (OFFICIAL, [7, 11, 26], "", ["road", "building", "car"]),
    (OFFICIAL, [7, 8, 1], "", ["road", "sidewalk"]),
    (OFFICIAL, [7, 8, 255], "", ["road", "sidewalk"]),
    (OFFICIAL, [0, 1, 2], LISTED[0], CLASSES),  # a team's own
    (OWN, [0, 1, 2], LISTED[1], CLASSES),
    *((OFFICIAL, ids, "", []) for ids in ([0, 1, 2], [1, 2, 3], [0, 2, 4], [2, 3, 5])),
    (OWN, [0, 1, 2], "", []),
]


@pytest.mark.parametrize(("names", "ids", "listed", "found"), CITIES)
def test_own_classes_in_the_layout_of_cityscapes_never_become_its_own(
    tmp_path: Path,
    samples: list[Sample],
    names: list[str],
    ids: list[int],
    listed: str,
    found: list[str],
) -> None:
    cityscapes(tmp_path / "a", samples, names, ids)
    if listed:
        put(tmp_path / "a/label_colors.txt", listed)
    if not found:
        with pytest.raises(DataError, match=r"labels=\{"):
            converted(tmp_path / "a", tmp_path / "x")
        return
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    order = [*map(info(tmp_path / "new")["classes"].index, found), *[255] * (3 - len(found))]
    for s in samples:
        s.name = names[int(s.name[-1])].split("/")[-1]
        s.labels = s.labels.clip(0, 2)  # as in these files
    check(masks, samples, order)


@pytest.mark.parametrize("link", [True, False])
def test_the_export_stays_as_it_is(tmp_path: Path, samples: list[Sample], link: bool) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    before = contents(root)
    converted(root, tmp_path / "new", **THREE, link=link)
    assert contents(root) == before
    image = tmp_path / "new" / "images" / "train" / "photo0.png"
    assert image.samefile(root / "images" / "train" / "photo0.png") == link
    with pytest.raises(DataError, match="not empty"):
        converted(root, tmp_path / "new", **THREE)
    with pytest.raises(ConfigError, match="lies in the export"):
        converted(root, root / "new", **THREE)
    assert sorted(os.listdir(root)) == ["images", "labels"]


def test_the_command_converts_inspects_and_is_repeated_without_settings(
    tmp_path: Path, samples: list[Sample], command: Callable[..., Any]
) -> None:
    pictures(tmp_path / "a", samples, lambda labels: labels.clip(0, 2) + np.uint8(5))
    report = command(
        "prepare_data",
        f"convert={tmp_path / 'a'}",
        f"to={tmp_path / 'new'}",
        "labels={5: sky, 6: road, 7: pond}",
        "merge={sky: air}",
        f"hydra.run.dir={tmp_path / 'out'}",
        "processes=1",
    )
    assert [row["name"] for row in report["splits"]["train"]["classes"]] == ["air", "road", "pond"]
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    again = command(
        "prepare_data",
        "data=folder",
        f"data.root={tmp_path / 'new'}",
        f"hydra.run.dir={tmp_path / 'out2'}",
        "processes=1",
    )
    assert again["splits"] == report["splits"]
