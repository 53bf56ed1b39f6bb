"""Exports as people have them: no file is touched, and no number is wrong in silence."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from yaml import safe_load

from fcn.config import DataConfig, PrepareDataConfig
from fcn.convert.convert import convert
from fcn.errors import ConfigError, DataError
from fcn.output import make_console
from fcn.pictures.visualize import voc_palette
from tests.export_files import (
    CLASSES,
    COLOURS,
    Sample,
    camvid,
    converted,
    cvat,
    info,
    labelme,
    photo,
    pictures,
    put,
    roboflow,
    supervisely,
)
from tests.test_depths import png

ROAD = {"data": {"classes": ["background", "road"]}}
THREE = {"data": {"classes": CLASSES}}


def noise(seed: int, shape: tuple[int, ...] = (24, 32, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, np.uint8)


def hashes(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def copied_cases(tmp_path: Path, cases: Path) -> Path:
    """A copy of all cases; links that were stored as text files are links again."""
    root = tmp_path / "cases"
    shutil.copytree(cases, root, symlinks=True)
    for folder in [root, *root.rglob("*")]:
        if folder.is_dir():
            folder.chmod(0o755)
    for path in root.rglob("*"):
        if path.is_file() and not path.suffix and path.stat().st_size < 40:
            target = path.read_text()
            path.unlink()
            path.symlink_to(target)
    return root


# What the settings of a case need; None: the case is no export.
SETTINGS: dict[str, dict[str, Any] | None] = {
    "rgbmask": {"data": {"colours": COLOURS}},
    "tiffs": None,
    "field3/alpha-brush": {
        "data": {"classes": ["background", "road"], "colours": [[0] * 3, [255, 0, 0]]}
    },
    "field3/antialias": ROAD | {"nearest": True},
    "field3/half-size": {"resize": True},
    "field3/symlink": None,
    "field3/truncated": {"read": False},
    "field3/symlink/set": THREE,
    "field3/changing2": None,
    "field3/changing2/before": {},
    "field3/changing2/after": {},
}


@pytest.mark.parametrize("link", [False, True])
def test_no_file_of_any_case_changes(tmp_path: Path, copied_cases: Path, link: bool) -> None:
    names = [
        *os.listdir(copied_cases),
        *(f"field3/{n}" for n in os.listdir(copied_cases / "field3")),
    ]
    todo = {name: {} for name in names if (copied_cases / name).is_dir() and name != "field3"}
    before, done = hashes(copied_cases), 0
    for number, (name, given) in enumerate((todo | SETTINGS).items()):
        if given is not None:
            settings = {key: dict(v) if key == "data" else v for key, v in given.items()}
            converted(copied_cases / name, tmp_path / f"new{number}", link=link, **settings)
            done += 1
    assert hashes(copied_cases) == before
    assert done == len(todo | SETTINGS) - 3


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ["a/b", "c/b", "a_b"],  # a made-up name meets a real one
        ["a/b", "c/b", "a_b", "a_b_2", "c_b"],
        ["a/Shot", "a/shot", "b/shot"],
        ["a/Shot", "a/shot", "a_shot_2"],
        ["a/Köln", "b/" + unicodedata.normalize("NFD", "Köln")],
        ["Köln", unicodedata.normalize("NFD", "Köln")],
        ["x/y/b", "x_y/b", "x_y_b"],
    ],
    ids=lambda names: "+".join(names).encode("ascii", "ignore").decode(),
)
def test_images_of_one_name_stay_apart(tmp_path: Path, names: list[str], link: bool) -> None:
    masks = {}
    for number, name in enumerate(names):
        mask = np.zeros((24, 32), np.uint8)
        mask[:8] = 1
        mask[10, : 3 + number] = 2
        put(tmp_path / "a/images/train" / f"{name}.png", noise(number))
        put(tmp_path / "a/masks/train" / f"{name}.png", mask)
        masks[name] = mask
    put(tmp_path / "a/images/val/v.png", noise(99))
    put(tmp_path / "a/masks/val/v.png", mask)
    before = hashes(tmp_path / "a")
    found, printed = converted(tmp_path / "a", tmp_path / "new", **THREE, link=link)
    assert hashes(tmp_path / "a") == before
    assert len(found) == len(names) + 1
    written = [path.stem.casefold() for path in (tmp_path / "new/images/train").iterdir()]
    assert len(set(written)) == len(names)
    with open(tmp_path / "new/names.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert "names.csv" in printed
    for row in rows:  # each new name belongs to the image and the mask it is said to
        old = str(Path(row["image"]).relative_to(tmp_path / "a/images" / row["split"]))
        expected = masks.get(old.removesuffix(".png"), mask)
        np.testing.assert_array_equal(found[f"{row['split']}/{row['name']}"], expected)
        new = tmp_path / "new/images" / row["split"] / f"{row['name']}.png"
        assert new.read_bytes() == Path(row["image"]).read_bytes()


def test_a_folder_beside_the_new_one_is_left_alone(tmp_path: Path, samples: list[Sample]) -> None:
    root = pictures(tmp_path / "new.part", samples, lambda labels: labels)
    before = hashes(root)
    assert len(converted(root, tmp_path / "new", **THREE)[0]) == 6
    assert hashes(root) == before


# Classes are matched by name.


def two_lists(root: Path, samples: list[Sample], write: Callable[..., None]) -> None:
    """Write an export for each split, whose lists have the classes in another order."""
    colours = voc_palette()
    order = [0, 2, 1]
    for split in ("train", "val"):
        own = [s for s in samples if s.split == split]
        if split == "train":
            write(root / split, own, CLASSES, colours)
        else:
            table = np.arange(256, dtype=np.uint8)
            table[:3] = np.argsort(order)
            own = [Sample(s.name, s.split, s.image, table[s.labels]) for s in own]
            write(root / split, own, [CLASSES[k] for k in order], colours)


@pytest.mark.parametrize("write", [roboflow, cvat, labelme, supervisely, camvid])
def test_lists_that_differ_are_an_error_and_their_folders_are_converted_one_by_one(
    tmp_path: Path, samples: list[Sample], write: Callable[..., None]
) -> None:
    two_lists(tmp_path / "a", samples, write)
    with pytest.raises(DataError, match="name classes differently; convert their folders one by"):
        converted(tmp_path / "a", tmp_path / "x")
    for split in ("train", "val"):
        masks, _ = converted(tmp_path / "a" / split, tmp_path / split)
        classes = info(tmp_path / split)["classes"]
        assert sorted(classes) == sorted(CLASSES)
        for name, mask in masks.items():
            (sample,) = (s for s in samples if s.name in name)
            for label, title in enumerate(CLASSES):
                expected = sample.labels == label
                np.testing.assert_array_equal(mask == classes.index(title), expected)
            np.testing.assert_array_equal(mask == 255, sample.labels == 255)


def test_classes_given_for_listed_labels_choose_by_name(
    tmp_path: Path, samples: list[Sample]
) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    put(root / "classes.txt", "\n".join(CLASSES))
    given = ["pond", "background", "road"]
    masks, _ = converted(root, tmp_path / "new", data={"classes": given})
    for s in samples:
        expected = np.array([1, 2, 0] + [255] * 253)[s.labels]
        np.testing.assert_array_equal(masks[f"{s.split}/{s.name}"], expected)
    with pytest.raises(ConfigError, match=r"there is no lake: rename with"):
        converted(root, tmp_path / "x", data={"classes": ["lake", "background", "road"]})
    renamed = {"data": {"classes": ["lake", "background", "road"]}, "merge": {"pond": "lake"}}
    again, _ = converted(root, tmp_path / "again", **renamed)
    assert all((again[name] == mask).all() for name, mask in masks.items())


def test_several_lists_of_plain_masks_must_agree(tmp_path: Path, samples: list[Sample]) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    put(root / "classes.txt", "\n".join(CLASSES))
    put(root / "labels/val/classes.txt", "background\npond\nroad\n")
    with pytest.raises(DataError, match=r"classes\.txt .*classes\.txt name classes differently"):
        converted(root, tmp_path / "new")
    assert converted(root, tmp_path / "new", **THREE)[0]


@pytest.mark.parametrize(
    "settings", [{}, {"colours": [[0, 0, 0], [128, 0, 0], [0, 128, 0]]}], ids=["labels", "colours"]
)
def test_a_class_named_twice_is_an_error(
    tmp_path: Path, samples: list[Sample], settings: dict[str, Any]
) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    with pytest.raises(ConfigError, match=r"road occurs twice.*merge=\{road2: road\}"):
        converted(root, tmp_path / "x", data={"classes": ["background", "road", "road"]} | settings)
    merged = {"data": {"classes": ["background", "road", "road2"]}, "merge": {"road2": "road"}}
    masks, _ = converted(root, tmp_path / "new", **merged)
    assert info(tmp_path / "new")["classes"] == ["background", "road"]
    np.testing.assert_array_equal(masks["train/photo0"] == 1, np.isin(samples[0].labels, (1, 2)))


def cityscapes(root: Path, samples: list[Sample], names: list[str], table: np.ndarray) -> None:
    """Write Cityscapes' layout, as datumaro and CVAT do for a team's own classes too."""
    for s, name in zip(samples, names, strict=True):
        put(root / f"leftImg8bit/{s.split}/{name}_leftImg8bit.png", noise(int(s.name[-1])))
        put(root / f"gtFine/{s.split}/{name}_gtFine_labelIds.png", table[s.labels.clip(0, 2)])
        put(root / f"gtFine/{s.split}/{name}_gtFine_instanceIds.png", s.labels)
        put(root / f"gtFine/{s.split}/{name}_gtFine_color.png", noise(1))


OFFICIAL = [f"aachen/aachen_{k:06}_000019" for k in range(6)]
OWN = [f"photo{k}" for k in range(6)]


@pytest.mark.parametrize("names", [OFFICIAL, OWN], ids=["official names", "own names"])
@pytest.mark.parametrize("colours", [True, False])
def test_own_classes_in_the_layout_of_cityscapes_are_read_from_their_list(
    tmp_path: Path, samples: list[Sample], names: list[str], colours: bool
) -> None:
    table = np.array([0, 1, 2], np.uint8)
    cityscapes(tmp_path / "a", samples, names, table)
    rows = [
        f"{' '.join(map(str, rgb)) if colours else ''} {name}"
        for rgb, name in zip(COLOURS, CLASSES, strict=True)
    ]
    put(tmp_path / "a/label_colors.txt", "\n".join(rows))
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    assert info(tmp_path / "new")["classes"] == CLASSES
    assert sorted(np.unique(list(masks.values()))) == [0, 1, 2]


@pytest.mark.parametrize("names", [OFFICIAL, OWN], ids=["official names", "own names"])
@pytest.mark.parametrize("ids", [[0, 1, 2], [1, 2, 3], [0, 2, 4], [2, 3, 5]])
def test_own_classes_without_a_list_never_become_those_of_cityscapes(
    tmp_path: Path, samples: list[Sample], names: list[str], ids: list[int]
) -> None:
    cityscapes(tmp_path / "a", samples, names, np.array(ids, np.uint8))
    with pytest.raises(DataError, match=r"labels=\{"):
        converted(tmp_path / "a", tmp_path / "x")
    labels = dict(zip(ids, CLASSES, strict=True))
    masks, _ = converted(tmp_path / "a", tmp_path / "new", labels=labels)
    assert info(tmp_path / "new")["classes"] == CLASSES
    assert len(masks) == 6


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        ([7, 11, 26], {"road", "building", "car"}),
        ([7, 8, 1], {"road", "sidewalk"}),
        ([7, 8, 255], {"road", "sidewalk"}),
    ],
)
def test_official_names_with_ids_of_cityscapes_are_read(
    tmp_path: Path, samples: list[Sample], ids: list[int], names: set[str]
) -> None:
    cityscapes(tmp_path / "a", samples, OFFICIAL, np.array(ids, np.uint8))
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    classes = info(tmp_path / "new")["classes"]
    found = set(np.unique(list(masks.values())).tolist()) - {255}
    assert {classes[label] for label in found} == names


# No picture is on both sides.


def versions(root: Path, name: str, photos: int, count: int) -> Path:
    """Write some versions of each photo into train; name has {photo} and {version}."""
    put(root / "train/_classes.csv", "Pixel Value, Class\n0, background\n1, road\n")
    for number in range(photos):
        for version in range(count):
            mask = np.zeros((24, 32), np.uint8)
            mask[5:9] = 1
            stem = root / "train" / name.format(photo=number, version=version)
            put(stem.with_name(stem.name + ".png"), noise(100 * number + version))
            put(stem.with_name(stem.name + "_mask.png"), mask)
    return root


@pytest.mark.parametrize(
    ("name", "settings", "of"),
    [
        ("photo{photo}_jpg.rf.{version}a0b", {}, r"photo\d+"),
        ("film{photo}_frame{version}", {"group": r"film\d+"}, r"film\d+"),
        ("film{photo}_frame{version}", {"group": r"^(.+)_frame\d+$"}, r"film\d+"),
        ("film{photo}/frame{version}", {"group": r"film\d+"}, r"film\d+"),
        ("scene{photo}_{version}_{version}", {"group": r"(.+?)_\d+_\d+"}, r"scene\d+"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_versions_frames_and_tiles_stay_on_one_side(
    tmp_path: Path, name: str, settings: dict[str, Any], of: str, seed: int
) -> None:
    root = versions(tmp_path / "a", name, 20, 3)
    _, printed = converted(root, tmp_path / "new", seed=seed, **settings)
    with_names = tmp_path / "new/names.csv"
    if with_names.is_file():
        with open(with_names, encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        sides = [(row["split"], row["image"]) for row in rows]
    else:
        sides = [(p.parent.name, p.name) for p in (tmp_path / "new/images").rglob("*.png")]
    groups: dict[str, set[str]] = {"train": set(), "val": set()}
    for split, image in sides:
        match = re.search(of, image)
        assert match
        groups[split].add(match[0])
    assert len(sides) == 60
    assert not groups["train"] & groups["val"]
    assert (len(groups["train"]), len(groups["val"])) == (16, 4)
    assert "train 48 images of 16 groups, val 12 images of 4 groups" in printed


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("(", r"group=\(: not a regular expression"),
        ("zzz", "is in no image's name"),
        ("p", "one group"),
    ],
)
def test_a_group_that_cannot_work_is_an_error(tmp_path: Path, group: str, message: str) -> None:
    root = versions(tmp_path / "a", "photo{photo}_{version}", 4, 2)
    with pytest.raises((ConfigError, DataError), match=message):
        converted(root, tmp_path / "new", group=group)
    assert not (tmp_path / "new").exists()


LINES = {
    "names": lambda s: s.name,
    "files": lambda s: f"{s.name}.png",
    "two columns": lambda s: f"images/{s.name}.png masks/{s.name}.png",
    "with commas": lambda s: f"images/{s.name}.png,masks/{s.name}.png",
    "absolute": lambda s: f"/home/someone/data/images/{s.name}.png",
    "absolute here": lambda s: str(s.image.parent / "a/images" / f"{s.name}.png"),
    "of Windows": lambda s: f"C:\\data\\images\\{s.name}.png",
    "with ./": lambda s: f"./images/{s.name}.png",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
@pytest.mark.parametrize(
    "file", ["{}.txt", "splits/{}.txt", "ImageSets/Segmentation/{}.txt", "{}_list.lst", "{}.csv"]
)
def test_lists_beside_the_images_are_read(
    tmp_path: Path, samples: list[Sample], line: Callable[[Sample], str], file: str
) -> None:
    for s in samples:
        photo(s, tmp_path / "a/images" / s.name)
        put(tmp_path / "a/masks" / f"{s.name}.png", s.labels)
    for split in ("train", "val"):
        lines = [line(s) for s in samples if s.split == split]
        put(tmp_path / "a" / file.format(split), "\n".join(lines) + "\n")
    masks, printed = converted(tmp_path / "a", tmp_path / "new", **THREE)
    assert sorted(masks) == sorted(f"{s.split}/{s.name}" for s in samples)
    assert "splits by" in printed


def test_lists_count_more_than_folders_and_leave_out_what_they_do_not_name(
    tmp_path: Path, samples: list[Sample]
) -> None:
    for s in samples:
        photo(s, tmp_path / "a/train/images" / s.name)
        put(tmp_path / "a/train/masks" / f"{s.name}.png", s.labels)
    put(tmp_path / "a/train.txt", "photo0\nphoto1\nphoto2\n")
    put(tmp_path / "a/val.txt", "photo4\nphoto5\n")
    masks, printed = converted(tmp_path / "a", tmp_path / "new", **THREE)
    assert sorted(masks) == [f"train/photo{k}" for k in range(3)] + ["val/photo4", "val/photo5"]
    assert "1 images in none of these lists" in printed
    assert "for 2 images the lists count" in printed


def test_lists_that_cannot_be_used_are_named(tmp_path: Path, samples: list[Sample]) -> None:
    for s in samples:
        photo(s, tmp_path / "a/images" / s.name)
        put(tmp_path / "a/masks" / f"{s.name}.png", s.labels)
    put(tmp_path / "a/train.txt", "\n".join(f"other{k}" for k in range(9)))
    assert (
        "train.txt: there, but not understood"
        in converted(tmp_path / "a", tmp_path / "1", **THREE)[1]
    )
    put(tmp_path / "a/train.txt", "photo0\nphoto1\nphoto2\n")
    put(tmp_path / "a/val.txt", "photo2\nphoto3\nphoto4\nphoto5\n")
    with pytest.raises(DataError, match=r"val\.txt: photo2 is in .*train\.txt too"):
        converted(tmp_path / "a", tmp_path / "2", **THREE)


def test_folders_of_mmsegmentation_are_known(tmp_path: Path, samples: list[Sample]) -> None:
    for s in samples:
        photo(s, tmp_path / "a/img_dir" / s.split / s.name)
        put(tmp_path / "a/ann_dir" / s.split / f"{s.name}.png", s.labels)
    masks, _ = converted(tmp_path / "a", tmp_path / "new", **THREE)
    assert sorted(masks) == sorted(f"{s.split}/{s.name}" for s in samples)


# A mask is not taken at face value.


def rgba(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([colour, alpha]).astype(np.uint8)


ALPHA: dict[str, tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]] = {
    "black, shape in alpha": (lambda r: rgba(np.zeros((*r.shape, 3)), r * 255), ROAD),
    "red, shape in alpha": (lambda r: rgba(np.full((*r.shape, 3), (255, 0, 0)), r * 255), ROAD),
    "grey with alpha": (lambda r: np.dstack([np.zeros_like(r), r * 255]).astype(np.uint8), ROAD),
    "faint brush": (
        lambda r: rgba(np.full((*r.shape, 3), (255, 0, 0)), r * 102),
        {"data": {"classes": ["background", "road"], "colours": [[0, 0, 0], [255, 0, 0]]}},
    ),
    "lowered opacity": (
        lambda r: rgba(np.full((*r.shape, 3), (255, 0, 0)), np.where(r, 255, 30)),
        {"data": {"classes": ["background", "road"], "colours": [[0, 0, 0], [255, 0, 0]]}},
    ),
    "painted on nothing": (
        lambda r: rgba(r[..., None] * np.array((255, 0, 0)), r * 255),
        ROAD,
    ),
    "opaque": (lambda r: rgba(r[..., None] * np.full(3, 255), np.full(r.shape, 255)), ROAD),
}


@pytest.mark.parametrize(("form", "settings"), ALPHA.values(), ids=ALPHA)
def test_erased_pixels_are_background(
    tmp_path: Path, samples: list[Sample], form: Callable[..., np.ndarray], settings: dict[str, Any]
) -> None:
    samples[1].labels[:] = 0  # nothing is painted
    root = pictures(tmp_path / "a", samples, lambda labels: form(labels == 1))
    masks, _ = converted(root, tmp_path / "new", data=dict(settings["data"]))
    for s in samples:
        np.testing.assert_array_equal(masks[f"{s.split}/{s.name}"], s.labels == 1)


def test_black_masks_with_colours_given_are_refused(tmp_path: Path, samples: list[Sample]) -> None:
    root = pictures(tmp_path / "a", samples, lambda k: rgba(np.zeros((24, 32, 3)), (k == 1) * 255))
    colours = {"classes": ["background", "road"], "colours": [[0, 0, 0], [255, 0, 0]]}
    with pytest.raises(DataError, match=r"alpha channel is the mask; leave out data\.colours"):
        converted(root, tmp_path / "x", data=dict(colours))
    masks, _ = converted(root, tmp_path / "new", data=dict(ROAD["data"]))
    np.testing.assert_array_equal(masks["train/photo0"], samples[0].labels == 1)


def test_of_several_folds_of_lists_one_is_used_and_the_others_are_named(
    tmp_path: Path, samples: list[Sample]
) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    for fold in (0, 1):
        put(root / f"folds/{fold}/train.txt", "\n".join(s.name for s in samples[fold::2]))
        put(root / f"folds/{fold}/val.txt", "\n".join(s.name for s in samples[1 - fold :: 2]))
    masks, printed = converted(root, tmp_path / "new", **THREE)
    assert sorted(name for name in masks if name.startswith("val")) == [
        f"val/photo{k}" for k in (1, 3, 5)
    ]
    assert re.search(r"not used: .*folds/1/train.txt", printed)


def blurred(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return a mask in colours (or levels), drawn four times as large and averaged."""
    large = np.kron(labels, np.ones((4, 4), np.uint8))
    large = np.roll(large, 2, axis=(0, 1))
    levels = colours[large].astype(float)
    return np.rint(levels.reshape(24, 4, 32, 4, -1).mean((1, 3))).astype(np.uint8).squeeze()


@pytest.mark.parametrize(
    ("colours", "data"),
    [
        (np.array([0, 255, 0]), ROAD["data"]),
        (np.array(COLOURS), {"classes": CLASSES, "colours": COLOURS}),
    ],
    ids=["levels", "colours"],
)
def test_smoothed_boundaries_go_to_the_nearest_class_if_wished(
    tmp_path: Path, samples: list[Sample], colours: np.ndarray, data: dict[str, Any]
) -> None:
    for s in samples:
        s.labels = np.zeros((24, 32), np.uint8)
        s.labels[6:16, 8:20] = 1
        if len(data["classes"]) == 3:
            s.labels[9:13, 10:14] = 2
    root = pictures(tmp_path / "a", samples, lambda labels: blurred(labels, colours))
    with pytest.raises(DataError, match="nearest=true takes the nearest class"):
        converted(root, tmp_path / "x", data=dict(data))
    masks, _ = converted(root, tmp_path / "new", data=dict(data), nearest=True)
    flat = colours.reshape(len(colours), -1).astype(float)
    for s in samples:
        smooth = blurred(s.labels, colours).reshape(24, 32, -1)
        distance = ((smooth[..., None, :] - flat[: len(data["classes"])]) ** 2).sum(-1)
        best = np.sort(distance, -1)
        clear = best[..., 0] < best[..., 1]  # a tie may go either way
        found = masks[f"{s.split}/{s.name}"]
        np.testing.assert_array_equal(found[clear], distance.argmin(-1)[clear])
        assert set(np.unique(found)) == set(range(len(data["classes"])))


def test_nearest_does_not_swallow_a_class(tmp_path: Path, samples: list[Sample]) -> None:
    def scratches(labels: np.ndarray) -> np.ndarray:
        mask = (labels == 1) * np.uint8(255)
        mask[1, 20:30] = 90  # a thin crack in the background
        return mask

    root = pictures(tmp_path / "a", samples, scratches)
    with pytest.raises(DataError, match="nearest=true is for smoothed boundaries"):
        converted(root, tmp_path / "new", data=dict(ROAD["data"]), nearest=True)


@pytest.mark.parametrize("bits", [2, 4])
def test_labels_of_few_bits_are_not_scaled(
    tmp_path: Path, samples: list[Sample], bits: int
) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels.clip(0, 2))
    for s in samples:
        path = root / "labels" / s.split / f"{s.name}.png"
        path.write_bytes(png(s.labels.clip(0, 2), bits, 0))
    masks, _ = converted(root, tmp_path / "new", **THREE)
    np.testing.assert_array_equal(masks["train/photo0"], samples[0].labels.clip(0, 2))


def deep_png(pixels: np.ndarray) -> bytes:
    """Return an RGB or RGBA PNG of 16 bits."""
    return png(pixels, 16, {3: 2, 4: 6}[pixels.shape[2]])


def pgm(labels: np.ndarray, largest: int, plain: bool = False) -> bytes:
    head = f"P{2 if plain else 5}\n{labels.shape[1]} {len(labels)}\n{largest}\n".encode()
    deep = labels.astype(">u2" if largest > 255 else np.uint8)
    return head + (" ".join(map(str, labels.ravel())).encode() if plain else deep.tobytes())


def tiff(labels: np.ndarray, **settings: Any) -> bytes:
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, labels, **{"photometric": "minisblack", **settings})
    return file.getvalue()


def equal_channels(labels: np.ndarray, alpha: bool) -> np.ndarray:
    channels = [labels] * 3 + [np.full_like(labels, 65535, np.uint16)] * alpha
    return np.dstack(channels).astype(np.uint16)


STORED: dict[str, tuple[str, Callable[[np.ndarray], bytes]]] = {
    **{f"pgm {top}": ("pgm", partial(pgm, largest=top)) for top in (2, 20, 127, 254, 300, 65535)},
    **{f"plain {top}": ("pgm", partial(pgm, largest=top, plain=True)) for top in (2, 20, 300)},
    "RGB of 16 bits": ("png", lambda k: deep_png(equal_channels(k, alpha=False))),
    "RGBA of 16 bits": ("png", lambda k: deep_png(equal_channels(k, alpha=True))),
    **{
        f"TIFF {kind}": ("tif", lambda k, kind=kind: tiff(k.astype(kind)))
        for kind in ("int8", "uint16", "int32", "float32", "float64")
    },
    "TIFF RGBA of 16 bits": (
        "tif",
        lambda k: tiff(equal_channels(k, alpha=True), photometric="rgb", extrasamples=[2]),
    ),
}


def stored(root: Path, samples: list[Sample], suffix: str, form: Callable[..., bytes]) -> Path:
    for s in samples:
        s.labels = s.labels.clip(0, 2)
        photo(s, root / "images" / s.split / s.name)
        put(root / "labels" / s.split / f"{s.name}.{suffix}", form(s.labels))
    return root


@pytest.mark.parametrize(("suffix", "form"), STORED.values(), ids=STORED)
def test_labels_are_those_that_the_file_stores(
    tmp_path: Path, samples: list[Sample], suffix: str, form: Callable[..., bytes]
) -> None:
    root = stored(tmp_path / "a", samples, suffix, form)
    masks, _ = converted(root, tmp_path / "new", **THREE)
    for s in samples:
        np.testing.assert_array_equal(masks[f"{s.split}/{s.name}"], s.labels)


@pytest.mark.parametrize("factor", [1, 257])
@pytest.mark.parametrize("alpha", [True, False])
def test_colours_of_16_bits_are_those_of_8(
    tmp_path: Path, samples: list[Sample], factor: int, alpha: bool
) -> None:
    def form(labels: np.ndarray) -> bytes:
        rgb = np.array(COLOURS)[labels] * factor
        return deep_png(np.dstack([rgb, np.full_like(labels, 65535, np.uint16)][: 1 + alpha]))

    root = stored(tmp_path / "a", samples, "png", form)
    data = {"classes": CLASSES, "colours": COLOURS}
    masks, _ = converted(root, tmp_path / "new", data=data)
    for s in samples:
        np.testing.assert_array_equal(masks[f"{s.split}/{s.name}"], s.labels)
    put(root / "labels/train/photo0.png", deep_png(np.full((24, 32, 3), (300, 7, 7))))
    with pytest.raises(DataError, match=r"photo0\.png: colours beyond 8 bits"):
        converted(root, tmp_path / "x", data=dict(data))


@pytest.mark.parametrize("kind", [np.uint8, bool])
def test_masks_that_store_white_as_0_are_refused(
    tmp_path: Path, samples: list[Sample], kind: type
) -> None:
    def form(labels: np.ndarray) -> bytes:
        return tiff((labels == 1).astype(kind), photometric="miniswhite")

    root = stored(tmp_path / "a", samples, "tif", form)
    with pytest.raises(DataError, match=r"photo0\.tif: .*white as 0"):
        converted(root, tmp_path / "new", **ROAD)


LOSSY = {"jpg": {"quality": 75}, "webp": {"quality": 75}, "jp2": {"irreversible": True}}


@pytest.mark.parametrize("suffix", LOSSY)
def test_masks_that_compression_changes_are_read_only_if_black_and_white(
    tmp_path: Path, samples: list[Sample], suffix: str
) -> None:
    def form(levels: list[int], mode: str = "L") -> Callable[[np.ndarray], bytes]:
        def encode(labels: np.ndarray) -> bytes:
            file, kind = io.BytesIO(), {"jpg": "JPEG", "jp2": "JPEG2000"}.get(suffix, suffix)
            picture = Image.fromarray(np.array(levels, np.uint8)[labels]).convert(mode)
            picture.save(file, kind, **LOSSY[suffix])
            return file.getvalue()

        return encode

    for s in samples:
        s.labels[:] = 0
        s.labels[6:16, 8:20] = 1
    root = stored(tmp_path / "a", samples, suffix, form([0, 255, 0]))
    masks, _ = converted(root, tmp_path / "new", **ROAD)
    for s in samples:
        assert ((masks[f"{s.split}/{s.name}"] == 1) != (s.labels == 1)).mean() < 0.05
    assert converted(root, tmp_path / "2", labels={0: "background", 255: "road"})[0]
    with pytest.raises(DataError, match=r"changes labels and colours; export .* PNG"):
        converted(root, tmp_path / "x", labels={0: "background", 128: "pond", 255: "road"})
    for s in samples:
        s.labels[10:14, 10:14] = 2  # a small part of the pixels
    stored(root, samples, suffix, form([0, 255, 128]))
    with pytest.raises(DataError, match=r"changes labels and colours; export .* PNG"):
        converted(root, tmp_path / "x", **THREE)


def test_webp_without_loss_is_read(tmp_path: Path, samples: list[Sample]) -> None:
    def form(labels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.array(COLOURS, np.uint8)[labels]).save(file, "WEBP", lossless=True)
        return file.getvalue()

    root = stored(tmp_path / "a", samples, "webp", form)
    data = {"classes": CLASSES, "colours": COLOURS}
    masks, _ = converted(root, tmp_path / "new", data=data)
    np.testing.assert_array_equal(masks["train/photo0"], samples[0].labels)


def test_masks_of_several_pages_are_refused(tmp_path: Path, samples: list[Sample]) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    pages = [Image.fromarray((samples[0].labels == k) * np.uint8(255)) for k in (1, 2)]
    pages[0].save(root / "labels/train/photo0.tif", save_all=True, append_images=pages[1:])
    (root / "labels/train/photo0.png").unlink()
    with pytest.raises(DataError, match=r"photo0\.tif: 2 pages"):
        converted(root, tmp_path / "new", **THREE)


PER_CLASS = {
    "folders": "masks/{c}/{n}.png",
    "folders with splits": "masks/{s}/{c}/{n}.png",
    "folders outside": "{c}/masks/{n}.png",
    "suffixes": "masks/{n}_{c}.png",
    "prefixes": "masks/{c}-{n}.png",
}


@pytest.mark.parametrize("layout", PER_CLASS.values(), ids=PER_CLASS)
@pytest.mark.parametrize("given", [True, False])
def test_one_mask_for_each_class(
    tmp_path: Path, samples: list[Sample], layout: str, given: bool
) -> None:
    for s in samples:
        photo(s, tmp_path / "a/images" / (s.split if "{s}" in layout else "") / s.name)
        for label in (1, 2):
            if s is samples[0] and label == 2:
                s.labels[s.labels == 2] = 0
                continue  # an image without this class has no such mask
            mask = (s.labels == label) * np.uint8(255)
            put(tmp_path / "a" / layout.format(c=CLASSES[label], n=s.name, s=s.split), mask)
    masks, printed = converted(tmp_path / "a", tmp_path / "new", **(THREE if given else {}))
    classes = info(tmp_path / "new")["classes"]
    assert classes == (CLASSES if given else ["background", "pond", "road"])
    assert "one mask for each class" in printed
    assert len(masks) == 6
    for name, mask in masks.items():
        (sample,) = (s for s in samples if s.name in name)
        for label in (1, 2):
            expected = sample.labels == label
            np.testing.assert_array_equal(mask == classes.index(CLASSES[label]), expected)


@pytest.mark.parametrize("layout", PER_CLASS.values(), ids=PER_CLASS)
@pytest.mark.parametrize("name", ["void", "Void", "ignore", "other", "background"])
def test_masks_of_ignored_pixels_and_of_the_rest(
    tmp_path: Path, samples: list[Sample], layout: str, name: str
) -> None:
    for s in samples:
        photo(s, tmp_path / "a/images" / (s.split if "{s}" in layout else "") / s.name)
        values = {1: "road", 2: "pond", 0 if name == "background" else 255: name}
        for label, title in values.items():
            path = tmp_path / "a" / layout.format(c=title, n=s.name, s=s.split)
            put(path, (s.labels == label) * np.uint8(255))
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    classes = ["background", *(["other"] if name == "other" else []), "pond", "road"]
    assert info(tmp_path / "new")["classes"] == classes
    last = {"other": classes.index("other") if name == "other" else 0, "background": 0}
    table = np.zeros(256, np.uint8)
    table[[1, 2, 255]] = classes.index("road"), classes.index("pond"), last.get(name, 255)
    for key, mask in masks.items():
        (sample,) = (s for s in samples if s.name in key)
        np.testing.assert_array_equal(mask, table[sample.labels])


@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("rows", [1, 8])
def test_an_ignore_label_in_masks_of_a_class_is_no_smoothing(
    tmp_path: Path, samples: list[Sample], nearest: bool, rows: int
) -> None:
    def write(root: Path, ignored: int) -> None:
        for s in samples:
            s.labels[24 - rows :] = 255
            photo(s, root / "images" / s.name)
            for label in (1, 2):
                mask = np.where(s.labels == 255, ignored, s.labels == label).astype(np.uint8)
                put(root / "masks" / CLASSES[label] / f"{s.name}.png", mask)
            if not ignored:  # the advice
                mask = (s.labels == 255).astype(np.uint8)
                put(root / "masks/ignore" / f"{s.name}.png", mask)

    write(tmp_path / "a", 255)
    with pytest.raises(DataError, match="255 looks like an ignore label; put its pixels in a mask"):
        converted(tmp_path / "a", tmp_path / "x", nearest=nearest)
    write(tmp_path / "b", 0)
    masks, _ = converted(tmp_path / "b", tmp_path / "new", nearest=nearest)
    table = np.array([0, 2, 1] + [255] * 253)
    for name, mask in masks.items():
        (sample,) = (s for s in samples if s.name in name)
        np.testing.assert_array_equal(mask, table[sample.labels])


def test_overlaps_of_masks_are_counted(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"a/images/{number}.png", noise(number))
        for name, rows in (("pond", slice(4, 10)), ("road", slice(8, 14))):
            mask = np.zeros((24, 32), np.uint8)
            mask[rows] = 255
            put(tmp_path / f"a/masks/{name}/{number}.png", mask)
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    assert f"{3 * 2 * 32} pixels (8.33 %) of 3 images have several classes" in printed
    assert all((mask[8:14] == 2).all() and (mask[4:8] == 1).all() for mask in masks.values())


def test_one_ending_for_all_masks_means_mask(tmp_path: Path, samples: list[Sample]) -> None:
    for s in samples:
        photo(s, tmp_path / "a/images" / s.name)
        put(tmp_path / "a/masks" / f"{s.name}_lesion.png", s.labels)
    masks, _ = converted(tmp_path / "a", tmp_path / "new", **THREE)
    assert len(masks) == 6
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, samples[int(name[-1])].labels)


def test_masks_of_another_size_are_found_before_anything_is_written(
    tmp_path: Path, cases: Path
) -> None:
    with pytest.raises(DataError, match=r"32 x 24.* 64 x 48 .6 of 6 masks.*resize=true"):
        converted(cases / "field3/half-size", tmp_path / "new")
    assert not os.listdir(tmp_path)
    masks, _ = converted(cases / "field3/half-size", tmp_path / "new", resize=True)
    for name, mask in masks.items():
        small = np.asarray(Image.open(cases / f"field3/half-size/annotations/{name}.png"))
        np.testing.assert_array_equal(mask, np.kron(small, np.ones((2, 2), np.uint8)))


def test_a_mask_of_another_shape_is_not_distorted(tmp_path: Path, samples: list[Sample]) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels[:, :24])
    for settings in ({}, {"resize": True}):
        with pytest.raises(DataError, match=r"24 x 24.* 32 x 24: of other proportions"):
            converted(root, tmp_path / "new", data={"classes": CLASSES}, **settings)


def test_masks_of_a_class_are_cut_at_half_of_their_largest_level(
    tmp_path: Path, samples: list[Sample]
) -> None:
    for s in samples:
        s.labels = np.zeros((24, 32), np.uint8)
        s.labels[6:16, 8:20] = 1
        photo(s, tmp_path / "a/images" / s.name)
        for name in ("road", "pond"):
            soft = blurred(s.labels, np.array([0, 255])) if name == "road" else s.labels * 0
            put(tmp_path / "a/masks" / name / f"{s.name}.png", soft.astype(np.uint8))
    with pytest.raises(DataError, match="nearest=true"):
        converted(tmp_path / "a", tmp_path / "new")
    masks, _ = converted(tmp_path / "a", tmp_path / "new", nearest=True)
    for name, mask in masks.items():
        soft = blurred(samples[int(name[-1])].labels, np.array([0, 255]))
        np.testing.assert_array_equal(mask == 2, soft >= 128)


def test_two_masks_of_one_image_are_chosen_by_folder(tmp_path: Path, samples: list[Sample]) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    for s in samples:
        put(root / "masks" / s.split / f"{s.name}.png", np.zeros_like(s.labels))
    with pytest.raises(DataError, match="choose with masks=FOLDER"):
        converted(root, tmp_path / "new", **THREE)
    masks, _ = converted(root, tmp_path / "new", **THREE, masks="labels")
    np.testing.assert_array_equal(masks["train/photo0"], samples[0].labels)


def test_two_masks_of_one_image_are_chosen_by_the_end_of_their_names(
    tmp_path: Path, samples: list[Sample]
) -> None:
    for s in samples:
        photo(s, tmp_path / "a" / s.name)
        put(tmp_path / "a" / f"{s.name}_mask.png", s.labels)
        put(tmp_path / "a" / f"{s.name}_label.png", np.zeros_like(s.labels))
    with pytest.raises(DataError, match=r"a pattern such as masks=\*_mask\.png"):
        converted(tmp_path / "a", tmp_path / "new", **THREE)
    masks, _ = converted(tmp_path / "a", tmp_path / "new", **THREE, masks="*mask.png")
    assert {mask.tobytes() for mask in masks.values()} == {s.labels.tobytes() for s in samples}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_split_that_another_is_drawn_from_is_named(
    tmp_path: Path, samples: list[Sample], split: str
) -> None:
    for s in samples:
        s.split = split
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    _, printed = converted(root, tmp_path / "new", **THREE)
    expected = {
        "train": "no validation split: drawn train 5 images",
        "val": "no training split: drawn from val train 5 images",
        "test": "no training or validation split: drawn from test train 5 images",
    }
    assert expected[split] in printed


@pytest.mark.parametrize("values", [[0, 1, -5], [0, 1, -2], [0, 1, 1 << 20]])
def test_values_that_no_setting_can_name_are_not_advised_as_ignore_index(
    tmp_path: Path, samples: list[Sample], values: list[int]
) -> None:
    for s in samples:
        s.labels = s.labels.clip(0, 2)
        photo(s, tmp_path / "a/images" / s.name)
        file = io.BytesIO()
        np.save(file, np.array(values)[s.labels])
        put(tmp_path / "a/masks" / f"{s.name}.npy", file.getvalue())
    with pytest.raises(DataError, match=rf"{values[2]} \(.*no class") as caught:
        converted(tmp_path / "a", tmp_path / "x", **THREE)
    assert "ignore_index" not in str(caught.value)
    names = dict(zip(values, CLASSES, strict=True))
    assert '"labels={' in str(caught.value)
    masks, _ = converted(tmp_path / "a", tmp_path / "new", labels=names)
    classes = info(tmp_path / "new")["classes"]
    (mask,) = (mask for name, mask in masks.items() if "photo0" in name)
    for label, name in enumerate(CLASSES):
        np.testing.assert_array_equal(mask == classes.index(name), samples[0].labels == label)


def test_colours_among_labels_are_not_advised_as_numbers(
    tmp_path: Path, samples: list[Sample]
) -> None:
    def paint(labels: np.ndarray) -> np.ndarray:
        return np.array([[0] * 3, [7] * 3, [1, 2, 3]], np.uint8)[labels.clip(0, 2)]

    roboflow(tmp_path / "a", samples, CLASSES, voc_palette())
    for path in (tmp_path / "a").rglob("*_mask.png"):
        labels = np.asarray(Image.open(path))
        put(path, paint(labels) if "photo0" in path.name else (labels == 1) * np.uint8(7))
    with pytest.raises(DataError) as caught:
        converted(tmp_path / "a", tmp_path / "x")
    assert not re.search(r"\d{8}", str(caught.value))


def test_images_and_masks_side_by_side_are_chosen_by_patterns(
    tmp_path: Path, samples: list[Sample]
) -> None:
    for s in samples:
        put(tmp_path / "a" / f"{s.name}.bmp", noise(int(s.name[-1])))
        put(tmp_path / "a" / f"{s.name}.png", s.labels)
    with pytest.raises(DataError, match=r"or patterns such as images=\*\.jpg masks=\*\.png"):
        converted(tmp_path / "a", tmp_path / "new", **THREE)
    chosen = {"images": "*.bmp", "masks": "*.png"}
    assert len(converted(tmp_path / "a", tmp_path / "new", **THREE, **chosen)[0]) == 6


# What is not read is counted and named.


def test_what_is_left_out_is_named(tmp_path: Path, samples: list[Sample]) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    put(root / "images/train/IMG_2.dng", b"x")
    put(root / "labels/train/IMG_2.png", samples[0].labels)
    put(root / "images/train/bare.png", noise(1))
    for preview in ("Visualization", "SegmentationObjectNpy", "SegmentationClassVisualization"):
        put(root / preview / "photo0.jpg", noise(2))
    masks, printed = converted(root, tmp_path / "new", **THREE)
    assert len(masks) == 6
    assert "1 of 7 masks have no image and are left out, such as" in printed
    assert "1 images without a mask are left out, such as" in printed
    assert "bare.png" in printed
    assert "1 .dng" in printed
    assert "Visualization" not in printed


def test_what_is_left_out_is_named_even_if_an_error_follows(
    tmp_path: Path, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    root = pictures(tmp_path / "a", samples[:3], lambda labels: labels)
    for name in ("photo1", "photo2"):
        path = root / f"images/train/{name}.png"
        path.rename(path.with_suffix(".dng"))
    cfg = PrepareDataConfig(
        data=DataConfig(name="export", classes=CLASSES), convert=str(root), to=str(tmp_path / "new")
    )
    with pytest.raises(DataError, match="no validation split, and none can be drawn"):
        convert(cfg, make_console())
    printed = capsys.readouterr().out
    assert "2 of 3 masks have no image" in printed
    assert "2 files left out: 2 .dng" in printed


def test_linked_folders_are_followed(tmp_path: Path, copied_cases: Path) -> None:
    masks, _ = converted(copied_cases / "field3/symlink/set", tmp_path / "new", **THREE)
    assert len(masks) == 6


def test_composed_and_decomposed_names_are_the_same(tmp_path: Path, cases: Path) -> None:
    masks, _ = converted(cases / "field3/nfd", tmp_path / "new")
    assert sorted(name.split("/")[0] for name in masks) == ["train"] * 4 + ["val"] * 2


@pytest.mark.parametrize("here", [True, False])
def test_folders_are_given_below_the_export_or_here(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    for s in samples:
        photo(s, tmp_path / "a/x" / s.split / s.name)
        put(tmp_path / "a/y" / s.split / f"{s.name}.png", s.labels)
    monkeypatch.chdir(tmp_path)
    where = {"images": "a/x", "masks": "a/y"} if here else {"images": "x", "masks": "y"}
    assert len(converted(tmp_path / "a", tmp_path / "new", **THREE, **where)[0]) == 6


def test_a_jpeg_and_a_tiff_of_one_name_are_told_apart(
    tmp_path: Path, samples: list[Sample]
) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    put(root / "images/train/photo0.tif", noise(5))
    with pytest.raises(DataError, match=r"2 images belong to this mask.*images=\*\.png"):
        converted(root, tmp_path / "x", **THREE)
    assert len(converted(root, tmp_path / "1", **THREE, images="*.png")[0]) == 6
    (root / "labels/train/photo0.png").rename(root / "labels/train/photo0.tif.png")
    put(root / "labels/train/photo0.png.png", samples[1].labels)
    masks, _ = converted(root, tmp_path / "2", **THREE)
    assert len(masks) == 7
    found = {m.tobytes() for name, m in masks.items() if "photo0" in name}
    assert found == {samples[0].labels.tobytes(), samples[1].labels.tobytes()}


# Advice, obeyed, gets further.


def obey(message: str) -> dict[str, Any]:
    """Return the settings that a message proposes, with names filled in."""
    settings: dict[str, Any] = {"data": {}}
    message = message.split(", or ")[0]
    for number in range(message.count("NAME")):
        message = message.replace("NAME", f"class{number}", 1)
    found = re.findall(r"([a-z_.]+)=(\{[^}]*\}|\[\[.*?\]\]|\[[^]]*\]|\w+)", message)
    for key, value in reversed(found):  # the first proposal wins
        part, _, name = key.rpartition(".")
        (settings["data"] if part else settings)[name] = safe_load(
            value.replace(": ", ":").replace(":", ": ")
        )
    return settings


def colours_unnamed(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: np.array(COLOURS, np.uint8)[labels.clip(0, 2)])
    return {"data": {"classes": CLASSES}}


def erased_colours(root: Path, samples: list[Sample]) -> dict[str, Any]:
    def paint(labels: np.ndarray) -> np.ndarray:
        return rgba(np.array(COLOURS)[labels.clip(0, 2)], (labels.clip(0, 2) > 0) * 255)

    pictures(root, samples, paint)
    return {"data": {"classes": CLASSES}}


def ignored_first(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: labels.clip(0, 2))
    return {"data": {"classes": ["road", "pond"]}}


def a_gap(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: np.where(labels == 2, 7, labels).astype(np.uint8))
    return {"data": {"classes": CLASSES}}


def which_is_ignored(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: labels.clip(0, 2))
    return {"data": {"classes": ["road", "pond", "sky"], "ignore_index": 0}}


def smoothed(root: Path, samples: list[Sample]) -> dict[str, Any]:
    for s in samples:
        s.labels = np.zeros((24, 32), np.uint8)
        s.labels[6:16, 8:20] = 1
    pictures(root, samples, lambda labels: blurred(labels, np.array([0, 255])))
    return {"data": dict(ROAD["data"])}


def half_size(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: labels[::2, ::2])
    return {"data": {"classes": CLASSES}}


def own_cityscapes(root: Path, samples: list[Sample]) -> dict[str, Any]:
    cityscapes(root, samples, OFFICIAL, np.arange(3, dtype=np.uint8))
    return {}


def two_lists_in_one_place(root: Path, samples: list[Sample]) -> dict[str, Any]:
    roboflow(root, samples, CLASSES, voc_palette())
    put(root / "train/_classes.csv", "Pixel Value, Class\n0, background\n1, pond\n2, road\n")
    for path in (root / "valid").glob("*_mask.png"):
        put(root / "masks" / path.name, np.asarray(Image.open(path)))
        path.unlink()
    return {}


def twins(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: labels)
    put(root / "images/train/photo0.tif", noise(5))
    return {"data": {"classes": CLASSES}}


def named_twice(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: labels)
    return {"data": {"classes": ["background", "road", "road"]}}


def deep_label(root: Path, samples: list[Sample]) -> dict[str, Any]:
    pictures(root, samples, lambda labels: np.where(labels == 2, 300, labels).astype(np.uint16))
    return {"data": {"classes": CLASSES}}


ADVICE: dict[Callable[..., dict[str, Any]], dict[str, Any]] = {  # what the message leaves open
    colours_unnamed: {},
    erased_colours: {},
    ignored_first: {},
    a_gap: {"labels": {0: "background", 1: "road", 7: "pond"}},
    deep_label: {"labels": {0: "background", 1: "road", 300: "pond"}},
    which_is_ignored: {"data": {"classes": [], "ignore_index": None}},
    smoothed: {},
    half_size: {},
    own_cityscapes: {},
    two_lists_in_one_place: {"labels": {0: "background", 1: "road", 2: "pond"}},
    twins: {"images": "*.png"},
    named_twice: {"data": {"classes": ["background", "road", "road2"]}},
}


@pytest.mark.parametrize("damage", ADVICE, ids=lambda damage: damage.__name__)
def test_advice_works(
    tmp_path: Path, samples: list[Sample], damage: Callable[..., dict[str, Any]]
) -> None:
    settings = damage(tmp_path / "a", samples)
    with pytest.raises((DataError, ConfigError)) as caught:
        converted(tmp_path / "a", tmp_path / "x", **json.loads(json.dumps(settings)))
    assert not (tmp_path / "x").exists()
    advised, left = obey(str(caught.value)), ADVICE[damage]
    data = settings.get("data", {}) | advised.pop("data") | left.get("data", {})
    rest = {key: value for key, value in left.items() if key != "data"}
    given = {key: value for key, value in advised.items() if key in PREPARE}
    masks, _ = converted(tmp_path / "a", tmp_path / "new", data=data, **(given | rest))
    assert len(masks) == 6


PREPARE = {"labels", "nearest", "resize", "merge", "images", "masks"}
