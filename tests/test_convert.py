import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from yaml import safe_load

from fcn.config import DataConfig, PrepareDataConfig
from fcn.convert.convert import convert
from fcn.data.dataset import read_labels
from fcn.data.layouts import open_split
from fcn.errors import ConfigError, DataError
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


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Four images of train and two of val; each shows all classes and some ignored pixels."""
    rng, found = np.random.default_rng(0), []
    for number in range(6):
        labels = np.zeros((24, 32), np.uint8)
        labels[4 + number : 20, 3:15] = 1
        labels[8:14, 10 : 18 + number] = 2
        labels[22] = 255
        path = tmp_path / f"photo{number}.png"
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


# Each writes an export of samples with classes and the colours of the labels 0..255.


def roboflow(root: Path, samples: list[Sample], classes: list[str], colours: np.ndarray) -> None:
    table = "".join(f"{k}, {name}\n" for k, name in enumerate(classes))
    for s in samples:
        folder = root / {"train": "train", "val": "valid"}[s.split]
        put(folder / "_classes.csv", f"Pixel Value, Class\n{table}")
        photo(s, folder / f"{s.name}_jpg.rf.0a1b.jpg")
        put(folder / f"{s.name}_jpg.rf.0a1b_mask.png", s.labels)


def cvat(root: Path, samples: list[Sample], classes: list[str], colours: np.ndarray) -> None:
    rows = dict(zip([*classes, "ignored"], [*colours[: len(classes)], colours[255]], strict=True))
    lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in rows.items()]
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


def converted(root: Path, to: Path, **settings: Any) -> tuple[dict[str, np.ndarray], str]:
    """Convert; return the masks by their id, SPLIT/NAME, and what was printed."""
    data = DataConfig(name="export", **settings.pop("data", {}))
    console = Console(file=io.StringIO(), width=200)
    cfg = PrepareDataConfig(data=data, convert=str(root), to=str(to), processes=1, **settings)
    target = convert(cfg, console)
    masks = {}
    for split in sorted(os.listdir(to / "images")):
        dataset = open_split(target, split)
        assert all(image.shape[1:] == mask.shape for image, mask in dataset)
        masks |= {pair.id: read_labels(pair.mask) for pair in dataset.pairs}
    assert isinstance(console.file, io.StringIO)
    return masks, console.file.getvalue()


def info(to: Path) -> dict[str, Any]:
    return safe_load((to / "dataset.yaml").read_text())


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


def pictures(root: Path, samples: list[Sample], form: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Write images/SPLIT/NAME and labels/SPLIT/NAME.png, with masks in some form."""
    for s in samples:
        photo(s, root / "images" / s.split / s.name)
        put(root / "labels" / s.split / f"{s.name}.png", form(s.labels))
    return root


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


def mask_without_image(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: labels)
    (root / "images" / "val" / "photo5.png").unlink()
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
    mask_without_image: "photo5.png: no images belong to this mask",
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
