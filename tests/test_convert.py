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
    assert "16 pixels of 1 images have several classes" in printed


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
