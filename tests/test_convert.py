import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcn.config import DataConfig
from fcn.data.dataset import read_labels
from fcn.data.layouts import open_split
from fcn.dataset_info import BACKGROUND, IGNORED
from fcn.errors import ConfigError, DataError
from fcn.pictures.visualize import voc_palette
from tests.export_files import (
    CLASSES,
    COLOURS,
    WRITERS,
    Sample,
    camvid,
    class_dict,
    coco,
    converted,
    cvat,
    info,
    labelme,
    labelme_npy,
    photo,
    pictures,
    put,
    roboflow,
    supervisely,
)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_label_of_an_export_survives(
    tmp_path: Path, samples: list[Sample], write: Callable[..., None]
) -> None:
    colours = voc_palette()
    colours[:3] = COLOURS
    write(tmp_path / "export", samples, CLASSES, colours)
    masks, _ = converted(tmp_path / "export", tmp_path / "new")
    assert info(tmp_path / "new")["classes"] == CLASSES
    has_splits = write not in (labelme, labelme_npy)
    assert len(masks) == len(samples)
    for name, mask in masks.items():
        split, stem = name.split("/")
        (sample,) = (s for s in samples if s.name == stem.split("_jpg")[0])
        np.testing.assert_array_equal(mask, sample.labels)
        assert split == sample.split or not has_splits
    if write in (cvat, supervisely, camvid, class_dict):
        assert info(tmp_path / "new")["colours"] == COLOURS


@pytest.mark.slow
@pytest.mark.parametrize("write", [roboflow, cvat, coco], ids=lambda write: write.__name__)
def test_real_masks_survive_a_round_trip(
    tmp_path: Path, voc_root: Path, write: Callable[..., None]
) -> None:
    val = open_split(DataConfig(name="voc", root=str(voc_root), folder="VOCdevkit/VOC2012"), "val")
    samples = [
        Sample(pair.id, "train" if number % 2 else "val", pair.image, read_labels(pair.mask))
        for number, pair in enumerate(val.pairs)
    ]
    write(tmp_path / "export", samples, val.classes, voc_palette())
    masks, _ = converted(tmp_path / "export", tmp_path / "new")
    assert len(masks) == len(samples)
    assert info(tmp_path / "new")["classes"] == val.classes
    by_name = {name.split("/")[1].split("_jpg")[0]: mask for name, mask in masks.items()}
    assert sum(int((by_name[s.name] != s.labels).sum()) for s in samples) == 0


@pytest.mark.parametrize(
    ("case", "like", "settings"),
    [
        ("binary255", "good", {}),
        ("suffix", "good", {}),
        ("tifmask", "good", {}),
        ("rgbmask", "good3", {"data": {"colours": COLOURS}}),
        ("adelike", "good3", {}),
    ],
)
def test_a_case_becomes_what_it_should(
    tmp_path: Path, cases: Path, case: str, like: str, settings: dict[str, Any]
) -> None:
    masks, _ = converted(cases / case, tmp_path / "new", **settings)
    assert len(masks) == 9
    for name, mask in masks.items():
        np.testing.assert_array_equal(
            mask, read_labels(cases / like / "annotations" / f"{name}.png")
        )


def test_cases_of_tools_are_converted_in_one_command(tmp_path: Path, cases: Path) -> None:
    masks, _ = converted(cases / "roboflow", tmp_path / "roboflow")
    assert info(tmp_path / "roboflow")["classes"] == CLASSES
    assert sorted(name.split("/")[0] for name in masks) == ["train"] * 6 + ["val"] * 3
    labels = {7: "road", 21: "building", 23: "sky"}
    masks, printed = converted(cases / "cityscapes", tmp_path / "cityscapes", labels=labels)
    assert info(tmp_path / "cityscapes")["classes"] == ["road", "building", "sky"]
    for name, mask in masks.items():
        city = Path(name).name.split("_")[0]
        file = cases / "cityscapes/gtFine" / Path(name).parent / city / Path(name).name
        ids = read_labels(Path(str(file).replace("leftImg8bit", "gtFine_labelIds") + ".png"))
        expected = np.select([ids == 7, ids == 21, ids == 23], [0, 1, 2], 255)
        np.testing.assert_array_equal(mask, expected)
    assert "(ignored)" in printed


def test_cityscapes_has_its_19_classes_without_a_map(tmp_path: Path, cases: Path) -> None:
    converted(cases / "cityscapes", tmp_path / "new")
    new = info(tmp_path / "new")
    assert len(new["classes"]) == 19
    assert not new["background"]
    assert new["colours"][new["classes"].index("road")] == [128, 64, 128]


def test_a_validation_split_is_drawn_by_seed(tmp_path: Path, cases: Path) -> None:
    def val(name: str, **settings: Any) -> set[str]:
        masks, printed = converted(cases / "onlytrain", tmp_path / name, **settings)
        assert len(masks) == 6
        assert "no validation split" in printed
        return {key for key in masks if key.startswith("val/")}

    first = val("a", val_share=0.34)
    assert len(first) == 2
    assert val("b", val_share=0.34) == first
    assert any(val(f"c{seed}", val_share=0.34, seed=seed) != first for seed in (1, 2, 3))


BINARY = {
    "1 bit": lambda road: road,
    "0 and 1": lambda road: road.astype(np.uint8),
    "0 and 128": lambda road: road.astype(np.uint8) * np.uint8(128),
    "16 bits": lambda road: road.astype(np.uint16) * np.uint16(65535),
    "RGB": lambda road: np.repeat(road[..., None] * np.uint8(255), 3, axis=2),
    "RGBA": lambda road: np.dstack(
        [road * np.uint8(255)] * 3 + [np.full_like(road, 255, np.uint8)]
    ),
}


@pytest.mark.parametrize("form", BINARY.values(), ids=BINARY)
def test_two_classes_are_read_from_any_two_values(
    tmp_path: Path, samples: list[Sample], form: Callable[[np.ndarray], np.ndarray]
) -> None:
    root = pictures(tmp_path / "export", samples, lambda labels: form(labels == 1))
    masks, _ = converted(root, tmp_path / "new", data={"classes": ["background", "road"]})
    for s in samples:
        np.testing.assert_array_equal(masks[f"{s.split}/{s.name}"], s.labels == 1)


def test_black_and_white_jpeg_masks_are_read_and_others_refused(
    tmp_path: Path, samples: list[Sample]
) -> None:
    classes = {"classes": ["background", "road"]}
    for s in samples:
        photo(s, tmp_path / "a" / s.name)
        road = Image.fromarray((s.labels == 1) * np.uint8(255))
        road.save(tmp_path / "a" / f"{s.name}_mask.jpg", quality=60)
    masks, _ = converted(tmp_path / "a", tmp_path / "new", data=classes)
    for name, mask in masks.items():
        (sample,) = (s for s in samples if s.name == Path(name).name)
        assert (mask != (sample.labels == 1)).mean() < 0.05  # compression moves some edges
    for grey in (120, 1):  # 1: a label
        Image.new("L", (32, 24), grey).save(tmp_path / "a" / "photo0_mask.jpg")
        with pytest.raises(DataError, match=r"photo0_mask\.jpg: JPEG"):
            converted(tmp_path / "a", tmp_path / "new2", data=classes)


def test_palette_colours_are_classes_only_if_colours_are_given(
    tmp_path: Path, samples: list[Sample]
) -> None:
    reversed_palette = [COLOURS[2], COLOURS[1], COLOURS[0]] + [[9, 9, 9]] * 253
    for s in samples:
        labels = s.labels.clip(0, 2)
        photo(s, tmp_path / "a/images" / s.name)
        put(tmp_path / "a/masks" / f"{s.name}.png", labels, reversed_palette)
    numbers, _ = converted(tmp_path / "a", tmp_path / "1", data={"classes": CLASSES})
    by_colour = {"classes": CLASSES, "colours": COLOURS}
    colours, _ = converted(tmp_path / "a", tmp_path / "2", data=by_colour)
    for s in samples:
        name = next(name for name in numbers if name.endswith(s.name))
        np.testing.assert_array_equal(numbers[name], s.labels.clip(0, 2))
        np.testing.assert_array_equal(colours[name], 2 - s.labels.clip(0, 2))


def test_nested_folders_keep_images_of_the_same_name_apart(
    tmp_path: Path, samples: list[Sample]
) -> None:
    for number, s in enumerate(samples):
        photo(s, tmp_path / f"a/{s.split}/day{number}/image.png")
        put(tmp_path / f"a/{s.split}/day{number}/label.png", s.labels)
    masks, _ = converted(tmp_path / "a", tmp_path / "new", data={"classes": CLASSES})
    for number, s in enumerate(samples):
        np.testing.assert_array_equal(masks[f"{s.split}/day{number}"], s.labels)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/IMG_{}", "masks/IMG_{}"),  # a camera's names, which do not say image
        ("image{}", "mask{}"),
        ("{}", "{}.mask"),
    ],
)
def test_images_and_masks_are_told_apart_by_names(
    tmp_path: Path, samples: list[Sample], image: str, mask: str
) -> None:
    for number, s in enumerate(samples):
        photo(s, tmp_path / "a" / image.format(number))
        put(tmp_path / "a" / f"{mask.format(number)}.png", s.labels)
        put(tmp_path / "a/.ipynb_checkpoints" / f"{number}-mask.png", s.labels)  # hidden
    masks, _ = converted(tmp_path / "a", tmp_path / "new", data={"classes": CLASSES})
    for number, s in enumerate(samples):
        (found,) = (m for name, m in masks.items() if name.endswith(str(number)))
        np.testing.assert_array_equal(found, s.labels)


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
    assert len(converted(tmp_path / "a", tmp_path / "new")[0]) == len(samples)


@pytest.mark.parametrize("write", [camvid, class_dict])
def test_names_of_classes_may_hold_numbers(
    tmp_path: Path, samples: list[Sample], write: Callable[..., None]
) -> None:
    classes = ["class0", "lane 1", "2 ponds"]
    write(tmp_path / "a", samples, classes, voc_palette())
    converted(tmp_path / "a", tmp_path / "new")
    assert info(tmp_path / "new")["classes"] == classes


def test_folders_without_telling_names_are_named_by_settings(
    tmp_path: Path, samples: list[Sample]
) -> None:
    for s in samples:
        photo(s, tmp_path / "a/x" / s.split / s.name)
        put(tmp_path / "a/y" / s.split / f"{s.name}.png", s.labels)
    with pytest.raises(DataError, match="set images=FOLDER masks=FOLDER"):
        converted(tmp_path / "a", tmp_path / "new", data={"classes": CLASSES})
    where = {"images": str(tmp_path / "a/x"), "masks": str(tmp_path / "a/y")}
    masks, _ = converted(tmp_path / "a", tmp_path / "new", data={"classes": CLASSES}, **where)
    assert sorted(masks) == sorted(f"{s.split}/{s.name}" for s in samples)


def test_classes_are_merged_dropped_and_chosen(tmp_path: Path, samples: list[Sample]) -> None:
    colours = voc_palette()
    colours[:3] = COLOURS
    cvat(tmp_path / "a", samples, CLASSES, colours)
    merge = {"road": "ground", "pond": "ground"}
    masks, _ = converted(tmp_path / "a", tmp_path / "merged", merge=merge)
    assert info(tmp_path / "merged")["classes"] == ["background", "ground"]
    assert info(tmp_path / "merged")["colours"] == COLOURS[:2]
    for s in samples:
        expected = np.where(s.labels == 2, 1, s.labels)
        np.testing.assert_array_equal(masks[f"{s.split}/{s.name}"], expected)
    dropped, _ = converted(tmp_path / "a", tmp_path / "dropped", merge={"pond": None})
    chosen, _ = converted(
        tmp_path / "a", tmp_path / "chosen", data={"classes": ["road", "background"]}
    )
    for s in samples:
        name = f"{s.split}/{s.name}"
        np.testing.assert_array_equal(dropped[name], np.where(s.labels == 2, 255, s.labels))
        np.testing.assert_array_equal(chosen[name], np.array([1, 0, 255] + [255] * 253)[s.labels])


def test_labels_may_stand_in_a_file(tmp_path: Path, samples: list[Sample]) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    listed = put(tmp_path / "labels.yaml", "2: pond\n1: road\n")
    masks, _ = converted(root, tmp_path / "new", labels=str(listed))
    assert info(tmp_path / "new")["classes"] == ["pond", "road"]
    assert np.unique(masks["train/photo0"]).tolist() == [0, 1, 255]


def test_camvid_of_segnet_is_known_by_its_files(tmp_path: Path, samples: list[Sample]) -> None:
    for name in ("0001TP_", ""):
        for s in samples:
            photo(s, tmp_path / f"a{name}" / s.split / f"{name}{s.name}")
            labels = np.where(s.labels == 255, 11, s.labels).astype(np.uint8)
            put(tmp_path / f"a{name}" / f"{s.split}annot" / f"{name}{s.name}.png", labels)
    masks, _ = converted(tmp_path / "a0001TP_", tmp_path / "new")
    assert info(tmp_path / "new")["classes"][:2] == ["sky", "building"]
    for s in samples:
        np.testing.assert_array_equal(masks[f"{s.split}/0001TP_{s.name}"], s.labels)
    with pytest.raises(DataError, match="name their classes"):  # another set in such folders
        converted(tmp_path / "a", tmp_path / "new2")


def test_coco_draws_small_over_large_and_both_over_crowds(tmp_path: Path) -> None:
    def square(number: int, side: int, category: int, **more: Any) -> dict[str, Any]:
        outline = [0, 0, side, 0, side, side, 0, side]
        about = {"id": number, "image_id": 1, "category_id": category, "segmentation": [outline]}
        return about | more

    content = {
        "images": [
            {"id": n, "file_name": f"images\\{n}.png", "height": 8, "width": 8} for n in (1, 2)
        ],
        "categories": [{"id": 0, "name": "things", "supercategory": "none"}]
        + [{"id": k, "name": f"class{k}", "supercategory": "things"} for k in (1, 2, 3)],
        "annotations": [
            square(1, 2, 1),
            square(2, 4, 2),
            square(3, 6, 3, iscrowd=1),
            {"id": 4, "image_id": 1, "category_id": 1, "segmentation": [], "bbox": [0, 0, 8, 8]},
        ],
    }
    put(tmp_path / "a" / "_annotations.coco.json", json.dumps(content))
    for number in (1, 2):
        put(tmp_path / "a" / "images" / f"{number}.png", np.zeros((8, 8, 3), np.uint8))
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    expected = np.zeros((8, 8), np.uint8)
    expected[:6, :6], expected[:4, :4], expected[:2, :2] = 3, 2, 1
    (mask,) = (mask for name, mask in masks.items() if name.endswith("1"))
    np.testing.assert_array_equal(mask, expected)
    assert info(tmp_path / "new")["classes"] == ["background", "class1", "class2", "class3"]
    assert "1 annotations without an outline" in printed
    assert "1 images without annotations" in printed
    assert "16 pixels (12.50 %) of 1 images have several classes" in printed


def test_a_category_of_background_is_no_second_one(tmp_path: Path) -> None:
    content = {
        "images": [{"id": k, "file_name": f"{k}.png", "height": 8, "width": 8} for k in (0, 1)],
        "categories": [{"id": k, "name": n} for k, n in enumerate(["_background_", "road"])],
        "annotations": [
            {"image_id": k, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
            for k in (0, 1)
        ],
    }
    put(tmp_path / "a" / "annotations.json", json.dumps(content))
    for k in (0, 1):
        put(tmp_path / "a" / f"{k}.png", np.zeros((8, 8, 3), np.uint8))
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    assert info(tmp_path / "new")["classes"] == ["_background_", "road"]
    assert all(mask[:4, :4].all() and mask.sum() == 16 for mask in masks.values())


def test_files_of_coco_may_number_categories_differently(tmp_path: Path) -> None:
    for split, names in (("train", ["road", "pond"]), ("valid", ["pond", "road"])):
        outlines = [[[0, 0, 4, 0, 4, 4, 0, 4]], [[4, 0, 8, 0, 8, 8], [0, 6, 4, 6]]]  # and a line
        content = {
            "images": [
                {"id": k, "file_name": f"{k}/a.png", "height": 8, "width": 8} for k in (0, 1)
            ],
            "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
            "annotations": [
                {"image_id": image, "category_id": k, "segmentation": outline}
                for k, outline in enumerate(outlines)
                for image in (0, 1)
            ],
        }
        put(tmp_path / "a" / split / "_annotations.coco.json", "\ufeff" + json.dumps(content))
        for k in (0, 1):  # one name in two folders
            put(tmp_path / "a" / split / f"{k}/a.png", np.zeros((8, 8, 3), np.uint8))
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


def lose_category(content: dict[str, Any]) -> None:
    content["annotations"][0]["category_id"] = 99


def halve(content: dict[str, Any]) -> None:
    content["annotations"][0]["segmentation"]["size"] = [12, 16]


def swap(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image["height"], image["width"] = image["width"], image["height"]


def lose_height(content: dict[str, Any]) -> None:
    del content["images"][0]["height"]


def damage_counts(content: dict[str, Any]) -> None:
    content["annotations"][0]["segmentation"]["counts"] = {}


def letters(content: dict[str, Any]) -> None:
    content["annotations"][0]["segmentation"] = [["a", "b", "c", "d", "e", "f"]]


def lose_all_images(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        annotation["image_id"] += 1000


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_category, "annotation 100 of image_id 0 has category_id 99, which no category"),
        (halve, r"photo0\.png: annotation 100 of image_id 0: no outline \(RLE of size \[12, 16\]"),
        (swap, r"photo0\.png: annotation 100 of image_id 0: no outline \(RLE of size \[24, 32\]"),
        (lose_height, r"image photo0\.png has no height and width"),
        (damage_counts, r"photo0\.png: annotation 100 of image_id 0: no outline"),
        (letters, r"photo0\.png: annotation 100 of image_id 0: no outline"),
        (lose_all_images, r"such as annotation 100 of image_id 1000; so are all others"),
    ],
)
def test_a_damaged_file_of_coco_is_an_error_that_names_the_annotation(
    tmp_path: Path, samples: list[Sample], damage: Callable[..., None], message: str
) -> None:
    path, content = coco_file(tmp_path / "a", samples)
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"instances_train2017\.json: .*{message}") as caught:
        converted(tmp_path / "a", tmp_path / "new")
    assert "\n" not in str(caught.value)


def test_annotations_of_coco_without_an_image_are_named(
    tmp_path: Path, samples: list[Sample]
) -> None:
    path, content = coco_file(tmp_path / "a", samples)
    content["annotations"][0]["image_id"] = 99
    path.write_text(json.dumps(content))
    _, printed = converted(tmp_path / "a", tmp_path / "new")
    assert "1 annotations belong to none of its images and are left out, such as" in printed
    assert "annotation 100 of image_id 99" in printed


def test_ids_of_coco_may_be_numbers_or_text(tmp_path: Path, samples: list[Sample]) -> None:
    path, content = coco_file(tmp_path / "a", samples)
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        annotation["category_id"] = str(annotation["category_id"])
    path.write_text(json.dumps(content))
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    by_name = {s.name: s.labels for s in samples}
    assert len(masks) == 4
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, by_name[name.split("/")[1]])


@pytest.mark.parametrize("write", [cvat, supervisely, camvid, class_dict, None])
def test_two_classes_of_one_colour_are_an_error(
    tmp_path: Path, samples: list[Sample], write: Callable[..., None] | None
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


@pytest.mark.parametrize("write", [roboflow, cvat, camvid, class_dict])
@pytest.mark.parametrize("quoted", [True, False])
def test_names_in_lists_may_hold_separators_and_quotes(
    tmp_path: Path, samples: list[Sample], write: Callable[..., None], quoted: bool
) -> None:
    names = ["background", "road, wet" if write is roboflow else "#road: wet", "pond"]
    write(tmp_path / "a", samples, names, voc_palette())
    if quoted and write in (roboflow, class_dict):
        for path in (tmp_path / "a").rglob("*.csv"):
            lines = [
                line.split(",", 1 if write is roboflow else -1)
                for line in path.read_text().splitlines()
            ]
            path.write_text(
                "\n".join(",".join(f'"{cell.strip()}"' for cell in cells) for cells in lines)
            )
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    assert info(tmp_path / "new")["classes"] == names
    for name, mask in masks.items():
        (sample,) = (s for s in samples if s.name in name)
        np.testing.assert_array_equal(mask, sample.labels)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 2, 3, 0)])
def test_columns_of_class_dict_are_found_by_their_head(
    tmp_path: Path, samples: list[Sample], order: tuple[int, ...]
) -> None:
    class_dict(tmp_path / "a", samples, ["0", "1", "2"], voc_palette())
    path = tmp_path / "a/class_dict.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    lines = [[*(row[k] for k in order), str(k)] for k, row in enumerate(rows)]
    lines[0][-1] = "label"
    path.write_text("\n".join(",".join(row) for row in lines))
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    assert info(tmp_path / "new")["classes"] == ["0", "1", "2"]
    np.testing.assert_array_equal(masks["train/photo0"], samples[0].labels)


@pytest.mark.parametrize("write", [roboflow, cvat, labelme, class_dict])
def test_a_name_in_two_rows_of_a_list_is_noted(
    tmp_path: Path, samples: list[Sample], write: Callable[..., None]
) -> None:
    write(tmp_path / "a", samples, CLASSES, voc_palette())
    for path in (tmp_path / "a").rglob("*"):
        if path.suffix in (".csv", ".txt") and "ImageSets" not in path.parts:
            path.write_text(path.read_text().replace("pond", "road"))
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    assert "road is in several rows, which become one class" in printed
    assert info(tmp_path / "new")["classes"] == ["background", "road"]
    (mask,) = (mask for name, mask in masks.items() if "photo0" in name)
    np.testing.assert_array_equal(mask == 1, np.isin(samples[0].labels, (1, 2)))


def test_a_value_of_two_names_is_an_error(tmp_path: Path, samples: list[Sample]) -> None:
    roboflow(tmp_path / "a", samples, CLASSES, voc_palette())
    put(tmp_path / "a/train/_classes.csv", "Pixel Value, Class\n0, background\n1, road\n1, pond\n")
    with pytest.raises(DataError, match=r"_classes\.csv: 1 is road and pond"):
        converted(tmp_path / "a", tmp_path / "new")


def test_a_single_class_beside_ignored_pixels_is_an_error(
    tmp_path: Path, samples: list[Sample]
) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels.clip(0, 1))
    with pytest.raises(DataError, match=r"1 classes; .*the names ignore, .*void are of ignored"):
        converted(root, tmp_path / "x", data={"classes": ["void", "road"]})
    assert converted(root, tmp_path / "new", data={"classes": ["unlabelled", "road"]})[0]


@pytest.mark.parametrize("files", [1, 2])
def test_an_image_that_coco_lists_twice_is_an_error(
    tmp_path: Path, samples: list[Sample], files: int
) -> None:
    path, content = coco_file(tmp_path / "a", samples)
    if files == 1:
        content["images"].append(content["images"][0] | {"id": 50})
    else:
        path = path.with_name("instances_val2017.json")
    put(path, json.dumps(content))
    with pytest.raises(
        DataError, match=r"two masks belong to it, .*; convert a copy of the export"
    ):
        converted(tmp_path / "a", tmp_path / "new")


TAKEN = [(cvat, "ignored"), (supervisely, "ignored")]  # these writers have a row of this name
TAKEN += [(labelme, "__ignore__"), (labelme_npy, "__ignore__")]  # the first line, of -1


@pytest.mark.parametrize(
    ("write", "ignored"),
    [
        (write, name)
        for write in WRITERS
        for name in (*IGNORED, "Void")
        if (write, name) not in TAKEN
    ],
)
def test_names_of_ignored_pixels_are_known_in_every_format(
    tmp_path: Path, samples: list[Sample], write: Callable[..., None], ignored: str
) -> None:
    write(tmp_path / "a", samples, ["background", "road", ignored], voc_palette())
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    assert info(tmp_path / "new")["classes"] == ["background", "road"]
    for name, mask in masks.items():
        (sample,) = (s for s in samples if s.name in name)
        expected = np.where(sample.labels == 2, 255, sample.labels)
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("write", [roboflow, cvat, labelme, labelme_npy, camvid, class_dict])
@pytest.mark.parametrize("name", BACKGROUND)
def test_names_of_background_are_label_0_in_every_format(
    tmp_path: Path, samples: list[Sample], write: Callable[..., None], name: str
) -> None:
    order = np.array([2, 0, 1] + [255] * 253, np.uint8)
    for s in samples:
        s.labels = order[s.labels]
    write(tmp_path / "a", samples, ["road", "other", name], voc_palette())
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    new = info(tmp_path / "new")
    assert (new["classes"][0], new["background"]) == (name, True)
    assert sorted(new["classes"][1:]) == ["other", "road"]
    (mask,) = (mask for key, mask in masks.items() if "photo0" in key)
    np.testing.assert_array_equal(mask == 0, samples[0].labels == 2)


def unlisted_colour(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(
        root, samples, lambda labels: np.array([*COLOURS, [1, 2, 3]], np.uint8)[labels.clip(0, 3)]
    )
    return {"data": {"classes": CLASSES, "colours": COLOURS}}


def colours_unknown(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: np.array(COLOURS, np.uint8)[labels.clip(0, 2)])
    return {"data": {"classes": CLASSES}}


def classes_unknown(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: labels)
    return {}


def ignored_listed_or_not(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: labels.clip(0, 2))
    return {"data": {"classes": ["road", "pond", "sky"], "ignore_index": 0}}


def palettes_differ(root: Path, samples: list[Sample]) -> dict[str, Any]:
    for number, s in enumerate(samples):
        photo(s, root / "images" / s.name)
        put(root / "masks" / f"{s.name}.png", s.labels.clip(0, 2), np.roll(COLOURS, number, axis=0))
    return {"data": {"classes": CLASSES}}


def zero_or_last_unlabelled(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: labels.clip(0, 2))
    return {"data": {"classes": ["road", "pond"]}}


def label_without_class(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: np.where(labels == 2, 7, labels).astype(np.uint8))
    return {"data": {"classes": CLASSES}}


def unknown_merge(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: labels)
    return {"data": {"classes": CLASSES}, "merge": {"lake": "pond"}}


def no_mapping(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: labels)
    return {"labels": ["road"]}


ERRORS = {
    unlisted_colour: r"photo0.png: \[1,2,3\] .* no class",
    colours_unknown: r"data.colours=\[\[0,0,0\],\[",
    classes_unknown: r"0 \(.*255 \(.*data.classes=\[background,...\]",
    ignored_listed_or_not: r"ignore_index=0: does road name it\? give .labels=\{1: NAME, 2: NAME\}",
    palettes_differ: r"photo1\.png: 0 has the colour .*photo0\.png; if colours are the classes",
    zero_or_last_unlabelled: "if 0 is unlabelled, set data.ignore_index=0",
    label_without_class: r"photo0.png: 7 .*labels=\{0: background, 1: road, 7: NAME, ",
    unknown_merge: "merge: the export has no class lake",
    no_mapping: r"labels=\['road'\]: must be like \{7: road",
}


@pytest.mark.parametrize("damage", ERRORS, ids=lambda damage: damage.__name__)
def test_what_is_missing_is_asked_for_and_nothing_is_written(
    tmp_path: Path, samples: list[Sample], damage: Callable[..., dict[str, Any]]
) -> None:
    settings = damage(tmp_path / "export", samples)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises((DataError, ConfigError), match=ERRORS[damage]):
        converted(tmp_path / "export", tmp_path / "new", **settings)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("classes", [["road", "pond"], ["unlabelled", "road", "pond"]])
def test_zero_is_ignored_if_one_says_so_whether_it_is_listed_or_not(
    tmp_path: Path, samples: list[Sample], classes: list[str]
) -> None:
    pictures(tmp_path / "a", samples, lambda labels: labels.clip(0, 2))
    data = {"ignore_index": 0, "classes": classes}
    masks, _ = converted(tmp_path / "a", tmp_path / "new", data=data)
    assert info(tmp_path / "new")["classes"] == ["road", "pond"]
    for s in samples:
        expected = np.array([255, 0, 1] + [1] * 253)[s.labels]
        np.testing.assert_array_equal(masks[f"{s.split}/{s.name}"], expected)


@pytest.mark.parametrize("link", [True, False])
def test_the_export_stays_as_it_is(tmp_path: Path, samples: list[Sample], link: bool) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)

    def state() -> dict[Path, tuple[int, bytes]]:
        files = (path for path in root.rglob("*") if path.is_file())
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = state()
    converted(root, tmp_path / "new", data={"classes": CLASSES}, link=link)
    assert state() == before
    image = tmp_path / "new" / "images" / "train" / "photo0.png"
    assert image.samefile(root / "images" / "train" / "photo0.png") == link
    with pytest.raises(DataError, match="not empty"):
        converted(root, tmp_path / "new", data={"classes": CLASSES})
    with pytest.raises(ConfigError, match="lies in the export"):
        converted(root, root / "new", data={"classes": CLASSES})


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
