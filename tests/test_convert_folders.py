"""Folders of images and masks as people have them: what is read, what is refused, what advised."""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from yaml import safe_load

from fcn.config import DataConfig, PrepareDataConfig
from fcn.convert.annotation_folder import split_in
from fcn.convert.convert import convert
from fcn.errors import ConfigError, DataError
from fcn.output import make_console
from fcn.pictures.visualize import voc_palette
from tests.export_files import (
    CLASSES,
    COLOURS,
    Sample,
    check,
    contents,
    converted,
    info,
    noise,
    photo,
    pictures,
    put,
    roboflow,
)
from tests.test_convert import OFFICIAL, RED, ROAD, THREE, cityscapes
from tests.test_depths import png


def put_all(
    samples: list[Sample], root: Path, image: str, mask: str, form: Callable[..., Any] = np.asarray
) -> Path:
    """Write images and masks to paths with {n} for their names and {s} for their splits."""
    for s in samples:
        photo(s, root / image.format(n=s.name, s=s.split))
        put(root / f"{mask.format(n=s.name, s=s.split)}.png", form(s.labels))
    return root


@pytest.mark.parametrize(
    "names",
    [
        ["a/b", "c/b", "a_b"],  # a made-up name meets a real one
        ["a/b", "c/b", "a_b", "a_b_2", "c_b"],
        ["a/Shot", "a/shot", "a_shot_2", "b/shot"],
        ["a/Köln", "b/" + unicodedata.normalize("NFD", "Köln")],
        ["Köln", unicodedata.normalize("NFD", "Köln")],
        ["x/y/b", "x_y/b", "x_y_b"],
    ],
    ids=lambda names: "+".join(names).encode("ascii", "ignore").decode(),
)
def test_images_of_one_name_stay_apart(tmp_path: Path, names: list[str]) -> None:
    masks = {}
    for number, name in enumerate(names):
        masks[name] = mask = np.zeros((24, 32), np.uint8)
        mask[:8] = 1
        mask[10, : 3 + number] = 2
        noise(tmp_path / "a/images/train" / f"{name}.png")
        put(tmp_path / "a/masks/train" / f"{name}.png", mask)
    noise(tmp_path / "a/images/val/v.png")
    put(tmp_path / "a/masks/val/v.png", mask)
    before = contents(tmp_path / "a")
    found, printed = converted(tmp_path / "a", tmp_path / "new", **THREE)
    assert contents(tmp_path / "a") == before
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


# Which file is a mask, and of which image.

PAIRS = {
    "cameras": ("images/IMG_{n}", "masks/IMG_{n}"),  # names that do not say image
    "words": ("image{n}", "mask{n}"),
    "suffix": ("{n}", "{n}.mask"),
    "one ending": ("images/{n}", "masks/{n}_lesion"),
    "mmsegmentation": ("img_dir/{s}/{n}", "ann_dir/{s}/{n}"),
    "nested": ("{s}/day{n}/image", "{s}/day{n}/label"),
    "both words": ("{n}_rgb", "{n}_gt"),
    "one word of two": ("images/{n}", "ground_truth/{n}"),
    "two words": ("{n}", "ground_truths/{n}"),
    "half a word": ("images/{n}", "ground/{n}"),
    "half a word at the end": ("{n}", "{n}_ground"),
}


@pytest.mark.parametrize(("image", "mask"), PAIRS.values(), ids=PAIRS)
def test_images_and_masks_are_told_apart_by_names(
    tmp_path: Path, samples: list[Sample], image: str, mask: str
) -> None:
    for number, s in enumerate(samples):
        s.name = str(number) if image == "image{n}" else s.name
        put(tmp_path / "a/.ipynb_checkpoints" / f"{number}-mask.png", s.labels)  # hidden
    root = put_all(samples, tmp_path / "a", image, mask)
    masks, _ = converted(root, tmp_path / "new", **THREE)
    check(masks, samples)
    if image.endswith("{s}/{n}"):
        assert sorted(masks) == sorted(f"{s.split}/{s.name}" for s in samples)


def test_folders_without_telling_names_are_given_below_the_export_or_here(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put_all(samples, tmp_path / "a", "x/{s}/{n}", "y/{s}/{n}")
    with pytest.raises(DataError, match="set images=FOLDER masks=FOLDER"):
        converted(root, tmp_path / "new", **THREE)
    monkeypatch.chdir(tmp_path)
    for number, above in enumerate(("", "a/")):
        where = {"images": f"{above}x", "masks": f"{above}y"}
        masks, _ = converted(root, tmp_path / f"new{number}", **THREE, **where)
        assert sorted(masks) == sorted(f"{s.split}/{s.name}" for s in samples)


def test_images_and_masks_side_by_side_are_chosen_by_patterns(
    tmp_path: Path, samples: list[Sample]
) -> None:
    for s in samples:
        noise(tmp_path / "a" / f"{s.name}.bmp")
        put(tmp_path / "a" / f"{s.name}.png", s.labels)
    with pytest.raises(DataError, match=r"or patterns such as images=\*\.jpg masks=\*\.png"):
        converted(tmp_path / "a", tmp_path / "new", **THREE)
    chosen = {"images": "*.bmp", "masks": "*.png"}
    check(converted(tmp_path / "a", tmp_path / "new", **THREE, **chosen)[0], samples)


@pytest.mark.parametrize(
    ("image", "masks", "chosen", "advice"),
    [
        ("images/{s}/{n}", ("labels/{s}/{n}", "masks/{s}/{n}"), "labels", "with masks=FOLDER"),
        ("{n}", ("{n}_mask", "{n}_label"), "*mask.png", r"a pattern such as masks=\*_mask\.png"),
    ],
)
def test_two_masks_of_one_image_are_chosen_by_folder_or_pattern(
    tmp_path: Path, samples: list[Sample], image: str, masks: Any, chosen: str, advice: str
) -> None:
    root = put_all(samples, tmp_path / "a", image, masks[0])
    put_all(samples, root, image, masks[1], np.zeros_like)
    with pytest.raises(DataError, match=advice):
        converted(root, tmp_path / "new", **THREE)
    check(converted(root, tmp_path / "new", **THREE, masks=chosen)[0], samples)


def test_a_jpeg_and_a_tiff_of_one_name_are_told_apart(
    tmp_path: Path, samples: list[Sample]
) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    noise(root / "images/train/photo0.tif")
    with pytest.raises(DataError, match=r"2 images belong to this mask.*images=\*\.png"):
        converted(root, tmp_path / "x", **THREE)
    assert len(converted(root, tmp_path / "1", **THREE, images="*.png")[0]) == 6
    (root / "labels/train/photo0.png").rename(root / "labels/train/photo0.tif.png")
    put(root / "labels/train/photo0.png.png", samples[1].labels)
    masks, _ = converted(root, tmp_path / "2", **THREE)
    assert len(masks) == 7
    found = {m.tobytes() for name, m in masks.items() if "photo0" in name}
    assert found == {samples[0].labels.tobytes(), samples[1].labels.tobytes()}


# Splits: no picture is on both sides.


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


def versions(root: Path, name: str, photos: int, count: int) -> Path:
    """Write some versions of each photo into train; name has {photo} and {version}."""
    put(root / "train/_classes.csv", "Pixel Value, Class\n0, background\n1, road\n")
    mask = np.zeros((24, 32), np.uint8)
    mask[5:9] = 1
    for number in range(photos):
        for version in range(count):
            stem = root / "train" / name.format(photo=number, version=version)
            noise(stem.with_name(stem.name + ".png"))
            put(stem.with_name(stem.name + "_mask.png"), mask)
    return root


GROUPS = [
    ("photo{photo}_jpg.rf.{version}a0b", {}, r"photo\d+"),
    ("film{photo}_frame{version}", {"group": r"film\d+"}, r"film\d+"),
    ("film{photo}_frame{version}", {"group": r"^(.+)_frame\d+$"}, r"film\d+"),
    ("film{photo}/frame{version}", {"group": r"film\d+"}, r"film\d+"),
    (
        "film{photo}/frame{version}",
        {"group": r"^train/(film\d+)/", "images": "train"},
        r"film\d+",
    ),
    ("scene{photo}_{version}_{version}", {"group": r"(.+?)_\d+_\d+"}, r"scene\d+"),
]


@pytest.mark.parametrize("seed", range(len(GROUPS)))
def test_versions_frames_and_tiles_stay_on_one_side(tmp_path: Path, seed: int) -> None:
    name, settings, of = GROUPS[seed]
    root = versions(tmp_path / "a", name, 20, 3)
    _, printed = converted(root, tmp_path / "new", seed=seed, **settings)
    sides = [(p.parent.name, p.name) for p in (tmp_path / "new/images").rglob("*.png")]
    if (tmp_path / "new/names.csv").is_file():
        with open(tmp_path / "new/names.csv", encoding="utf-8", newline="") as stream:
            sides = [(row["split"], row["image"]) for row in csv.DictReader(stream)]
    groups: dict[str, set[str]] = {"train": set(), "val": set()}
    for split, image in sides:
        groups[split].add(re.findall(of, image)[0])
    assert not groups["train"] & groups["val"]
    assert len(groups["val"]) == 0.2 * 20
    for split, names in groups.items():  # all versions of each
        assert [side for side, _ in sides].count(split) == 3 * len(names)
        assert f"{split} {3 * len(names)} images of {len(names)} groups" in printed


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


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", "no validation split: drawn train 5 images"),
        ("val", "no training split: drawn from val train 5 images"),
        ("test", "no training or validation split: drawn from test train 5 images"),
    ],
)
def test_the_split_that_another_is_drawn_from_is_named(
    tmp_path: Path, samples: list[Sample], split: str, expected: str
) -> None:
    for s in samples:
        s.split = split
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    assert expected in converted(root, tmp_path / "new", **THREE)[1]


LINES: dict[str, tuple[str, Callable[[Sample], str]]] = {
    "names": ("{}.txt", lambda s: s.name),
    "with a year": ("ImageSets/instances_{}2017.txt", lambda s: s.name),
    "files": ("splits/{}.txt", lambda s: f"{s.name}.png"),
    "two columns": ("{}.txt", lambda s: f"images/{s.name}.png masks/{s.name}.png"),
    "with commas": ("{}.csv", lambda s: f"images/{s.name}.png,masks/{s.name}.png"),
    "absolute": ("{}_list.lst", lambda s: f"/home/someone/data/images/{s.name}.png"),
    "absolute here": ("{}.txt", lambda s: str(s.image.parent / "a/images" / f"{s.name}.png")),
    "of Windows": ("{}_list.lst", lambda s: f"C:\\data\\images\\{s.name}.png"),
    "with ./": ("ImageSets/Segmentation/{}.txt", lambda s: f"./images/{s.name}.png"),
}


@pytest.mark.parametrize(("file", "line"), LINES.values(), ids=LINES)
def test_lists_beside_the_images_are_read(
    tmp_path: Path, samples: list[Sample], line: Callable[[Sample], str], file: str
) -> None:
    root = put_all(samples, tmp_path / "a", "images/{n}", "masks/{n}")
    for split in ("train", "val"):
        lines = [line(s) for s in samples if s.split == split]
        put(root / file.format(split), "\n".join(lines) + "\n")
    masks, printed = converted(root, tmp_path / "new", **THREE)
    assert sorted(masks) == sorted(f"{s.split}/{s.name}" for s in samples)
    assert "splits by" in printed


def test_lists_count_more_than_folders_and_leave_out_what_they_do_not_name(
    tmp_path: Path, samples: list[Sample]
) -> None:
    root = put_all(samples, tmp_path / "a", "train/images/{n}", "train/masks/{n}")
    put(root / "train.txt", "photo0\nphoto1\nphoto2\n")
    put(root / "val.txt", "photo4\nphoto5\n")
    masks, printed = converted(root, tmp_path / "new", **THREE)
    assert sorted(masks) == [f"train/photo{k}" for k in range(3)] + ["val/photo4", "val/photo5"]
    assert "1 images in none of these lists" in printed
    assert "for 2 images the lists count" in printed


def test_lists_that_cannot_be_used_are_named(tmp_path: Path, samples: list[Sample]) -> None:
    root = put_all(samples, tmp_path / "a", "images/{n}", "masks/{n}")
    put(root / "train.txt", "\n".join(f"other{k}" for k in range(9)))
    assert "train.txt: there, but not understood" in converted(root, tmp_path / "1", **THREE)[1]
    put(root / "train.txt", "photo0\nphoto1\nphoto2\n")
    put(root / "val.txt", "photo2\nphoto3\nphoto4\nphoto5\n")
    with pytest.raises(DataError, match=r"val\.txt: photo2 is in .*train\.txt too"):
        converted(root, tmp_path / "2", **THREE)


@pytest.mark.parametrize("file", ["{1}/{0}.txt", "{0}_{1}.txt", "fold{1}-{0}.txt", "{0}{1}.txt"])
def test_of_several_folds_of_lists_one_is_used_and_the_others_are_named(
    tmp_path: Path, samples: list[Sample], file: str
) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    for fold in (0, 1):
        for split, part in (("train", samples[fold::2]), ("val", samples[1 - fold :: 2])):
            put(root / "folds" / file.format(split, fold), "\n".join(s.name for s in part))
    masks, printed = converted(root, tmp_path / "new", **THREE)
    val = sorted(name for name in masks if name.startswith("val"))
    assert val == [f"val/photo{k}" for k in (1, 3, 5)]
    assert re.search(rf"not used: .*folds/{file.format('train', 1)}", printed)


@pytest.mark.parametrize(
    "lists",
    [
        {"train_1": "012", "train_2": "3", "val": "45"},
        {"train_day": "02", "val_day": "4", "train_night": "13", "val_night": "5"},
        {"cat_train": "0123", "cat_val": "45", "dog_train": "0123", "dog_val": "45"},
        {"train_1": "01", "val_1": "45", "train_2": "0123", "val_2": "45"},
    ],
    ids="+".join,
)
def test_lists_in_parts_that_agree_are_no_folds(
    tmp_path: Path, samples: list[Sample], lists: dict[str, str]
) -> None:
    root = put_all(samples, tmp_path / "a", "images/{n}", "masks/{n}")
    for name, part in lists.items():
        put(root / f"{name}.txt", "\n".join(f"photo{n}" for n in part))
    masks, printed = converted(root, tmp_path / "new", **THREE)
    assert sorted(masks) == sorted(f"{s.split}/{s.name}" for s in samples)
    assert "not used" not in printed


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("instances_val2017", "val"), ("Train", "train"), ("set-1.testing", "test"),
        ("dev3", "val"), ("train_val", ""), ("test-dev2015", ""), ("trainval", ""),
        ("restrain", ""), ("photo1", ""),
    ],
)  # fmt: skip
def test_a_file_name_says_one_split_or_none(name: str, split: str) -> None:
    assert split_in(name) == split


# A mask is not taken at face value.


def rgba(colour: Any, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([np.broadcast_to(colour, (*alpha.shape, 3)), alpha]).astype(np.uint8)


ALPHA: dict[str, tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]] = {
    "black, shape in alpha": (lambda r: rgba(0, r * 255), ROAD),
    "red, shape in alpha": (lambda r: rgba((255, 0, 0), r * 255), ROAD),
    "grey with alpha": (lambda r: np.dstack([np.zeros_like(r), r * 255]).astype(np.uint8), ROAD),
    "faint brush": (lambda r: rgba((255, 0, 0), r * 102), RED),
    "lowered opacity": (lambda r: rgba((255, 0, 0), np.where(r, 255, 30)), RED),
    "painted on nothing": (lambda r: rgba(r[..., None] * np.array((255, 0, 0)), r * 255), ROAD),
    "opaque": (lambda r: rgba(r[..., None] * np.full(3, 255), np.full(r.shape, 255)), ROAD),
}


@pytest.mark.parametrize("name", ALPHA)
def test_erased_pixels_are_background(tmp_path: Path, samples: list[Sample], name: str) -> None:
    form, settings = ALPHA[name]
    samples[1].labels[:] = 0  # nothing is painted
    root = pictures(tmp_path / "a", samples, lambda labels: form(labels == 1))
    masks, _ = converted(root, tmp_path / "new", data=dict(settings["data"]))
    check(masks, samples, lambda labels: labels == 1)


def blurred(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return a mask in colours (or levels), drawn four times as large and averaged."""
    large = np.roll(np.kron(labels, np.ones((4, 4), np.uint8)), 2, axis=(0, 1))
    levels = colours[large].astype(float)
    return np.rint(levels.reshape(24, 4, 32, 4, -1).mean((1, 3))).astype(np.uint8).squeeze()


def draw_boxes(samples: list[Sample], inner: bool = False) -> None:
    for s in samples:
        s.labels = np.zeros((24, 32), np.uint8)
        s.labels[6:16, 8:20] = 1
        s.labels[10:14, 10:14] = 2 if inner else 1


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
    draw_boxes(samples, inner=len(data["classes"]) == 3)
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


def tiff(labels: np.ndarray, **settings: Any) -> bytes:
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, labels, **{"photometric": "minisblack", **settings})
    return file.getvalue()


def deep_png(pixels: np.ndarray) -> bytes:
    """Return an RGB or RGBA PNG of 16 bits."""
    return png(pixels, 16, {3: 2, 4: 6}[pixels.shape[2]])


def equal_channels(labels: np.ndarray, alpha: bool) -> np.ndarray:
    channels = [labels] * 3 + [np.full_like(labels, 65535, np.uint16)] * alpha
    return np.dstack(channels).astype(np.uint16)


def by_pillow(kind: str, levels: Any, **settings: Any) -> Callable[[np.ndarray], bytes]:
    def encode(labels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.array(levels, np.uint8)[labels]).save(file, kind, **settings)
        return file.getvalue()

    return encode


BY_COLOUR = {"data": {"classes": CLASSES, "colours": COLOURS}}
STORED: dict[str, tuple[str, Callable[[np.ndarray], bytes], dict[str, Any]]] = {
    "PGM": ("pgm", by_pillow("PPM", [0, 1, 2]), THREE),
    "RGB of 16 bits": ("png", lambda k: deep_png(equal_channels(k, alpha=False)), THREE),
    "RGBA of 16 bits": ("png", lambda k: deep_png(equal_channels(k, alpha=True)), THREE),
    **{
        f"TIFF {kind}": ("tif", lambda k, kind=kind: tiff(k.astype(kind)), THREE)
        for kind in ("int8", "uint16", "int32", "float32", "float64")
    },
    "TIFF RGBA of 16 bits": (
        "tif", lambda k: tiff(equal_channels(k, alpha=True), photometric="rgb", extrasamples=[2]),
        THREE,
    ),
    "WebP without loss": ("webp", by_pillow("WEBP", COLOURS, lossless=True), BY_COLOUR),
    **{
        f"colours of 16 bits, {factor}": (
            "png", lambda k, f=factor: deep_png(
                np.dstack([np.array(COLOURS)[k] * f, np.full(k.shape, 65535)][: 1 + (f > 1)])
            ), BY_COLOUR,
        )
        for factor in (1, 257)
    },
}  # fmt: skip


def stored(root: Path, samples: list[Sample], suffix: str, form: Callable[..., bytes]) -> Path:
    for s in samples:
        s.labels = s.labels.clip(0, 2)
        photo(s, root / "images" / s.split / s.name)
        put(root / "labels" / s.split / f"{s.name}.{suffix}", form(s.labels))
    return root


@pytest.mark.parametrize("name", STORED)
def test_labels_are_those_that_the_file_stores(
    tmp_path: Path, samples: list[Sample], name: str
) -> None:
    suffix, form, settings = STORED[name]
    root = stored(tmp_path / "a", samples, suffix, form)
    check(converted(root, tmp_path / "new", data=dict(settings["data"]))[0], samples)


LOSS = r"changes labels and colours; export .* PNG"
LOSSY = {"jpg": ("JPEG", {"quality": 75}), "webp": ("WEBP", {"quality": 75})}
LOSSY |= {"jp2": ("JPEG2000", {"irreversible": True})}


@pytest.mark.parametrize("suffix", LOSSY)
def test_masks_that_compression_changes_are_read_only_if_black_and_white(
    tmp_path: Path, samples: list[Sample], suffix: str
) -> None:
    kind, settings = LOSSY[suffix]
    draw_boxes(samples)
    root = stored(tmp_path / "a", samples, suffix, by_pillow(kind, [0, 255, 0], **settings))
    masks, _ = converted(root, tmp_path / "new", **ROAD)
    for s in samples:
        assert ((masks[f"{s.split}/{s.name}"] == 1) != (s.labels == 1)).mean() < 0.05
    assert converted(root, tmp_path / "2", labels={0: "background", 255: "road"})[0]
    with pytest.raises(DataError, match=LOSS):
        converted(root, tmp_path / "x", labels={0: "background", 128: "pond", 255: "road"})
    draw_boxes(samples, inner=True)  # a small part of the pixels
    stored(root, samples, suffix, by_pillow(kind, [0, 255, 128], **settings))
    with pytest.raises(DataError, match=LOSS):
        converted(root, tmp_path / "x", **THREE)


# One mask for each class.

PER_CLASS = {
    "folders": "masks/{c}/{n}.png",
    "folders with splits": "masks/{s}/{c}/{n}.png",
    "folders outside": "{c}/masks/{n}.png",
    "suffixes": "masks/{n}_{c}.png",
    "prefixes": "masks/{c}-{n}.png",
}


def put_classes(samples: list[Sample], root: Path, layout: str, names: dict[int, str]) -> Path:
    for s in samples:
        photo(s, root / "images" / (s.split if "{s}" in layout else "") / s.name)
        for label, name in names.items():
            if s is samples[0] and label == 2:
                s.labels[s.labels == 2] = 0
                continue  # an image without this class has no such mask
            mask = (s.labels == label) * np.uint8(255)
            put(root / layout.format(c=name, n=s.name, s=s.split), mask)
    return root


@pytest.mark.parametrize("layout", PER_CLASS.values(), ids=PER_CLASS)
@pytest.mark.parametrize("name", ["pond", "ground", "machine"])  # ground_truth, masks_machine
def test_one_mask_for_each_class(
    tmp_path: Path, samples: list[Sample], layout: str, name: str
) -> None:
    root = put_classes(samples, tmp_path / "a", layout, {1: "road", 2: name})
    masks, printed = converted(root, tmp_path / "new")
    assert "one mask for each class" in printed
    assert info(tmp_path / "new")["classes"] == ["background", name, "road"]
    check(masks, samples, lambda labels: np.array([0, 2, 1] + [0] * 253)[labels])


def by_class(root: Path, samples: list[Sample], values: list[int]) -> None:
    """Write masks of one class each, in folders of their class."""
    for number, s in enumerate(samples):
        photo(s, root / "images" / s.name)
        mask = (s.labels == 1) * np.uint8(values[number % 2])
        put(root / "masks" / ("grass", "road")[number % 2] / f"{s.name}.png", mask)


@pytest.mark.parametrize(
    ("classes", "values", "labels"),
    [
        (["background", "road", "grass"], [255, 255], [2, 1]),
        (["background", "road", "grass"], [1, 2], [1, 2]),  # the masks hold labels
        (["background", "defect"], [255, 255], [1, 1]),  # the folders are something else
        (["background", "road"], [1, 1], [1, 1]),
    ],
)
def test_folders_of_masks_of_one_value_are_classes_if_the_classes_are_called_so(
    tmp_path: Path,
    samples: list[Sample],
    classes: list[str],
    values: list[int],
    labels: list[int],
) -> None:
    by_class(tmp_path / "a", samples, values)
    masks, printed = converted(tmp_path / "a", tmp_path / "new", data={"classes": classes})
    assert "over each other" not in printed
    assert info(tmp_path / "new")["classes"] == classes
    for number, s in enumerate(samples):
        (mask,) = (mask for name, mask in masks.items() if name.endswith(s.name))
        np.testing.assert_array_equal(mask, (s.labels == 1) * labels[number % 2])


@pytest.mark.parametrize(
    ("layout", "name"),
    [("folders", "Void"), ("suffixes", "ignore"), ("folders", "other"), ("suffixes", "background")],
)
def test_masks_of_ignored_pixels_and_of_the_rest(
    tmp_path: Path, samples: list[Sample], layout: str, name: str
) -> None:
    layout = PER_CLASS[layout]
    value = 0 if name == "background" else 255
    root = put_classes(samples, tmp_path / "a", layout, {1: "road", 2: "pond", value: name})
    masks, _ = converted(root, tmp_path / "new")
    classes = ["background", *(["other"] if name == "other" else []), "pond", "road"]
    assert info(tmp_path / "new")["classes"] == classes
    table = np.zeros(256, np.uint8)
    table[1:3] = classes.index("road"), classes.index("pond")
    table[255] = {"other": 1, "background": 0}.get(name, 255)
    check(masks, samples, lambda labels: table[labels])


def test_an_ignore_label_in_masks_of_a_class_is_no_smoothing(
    tmp_path: Path, samples: list[Sample]
) -> None:
    def write(root: Path, ignored: int) -> None:
        for s in samples:
            photo(s, root / "images" / s.name)
            for label in (1, 2):
                mask = np.where(s.labels == 255, ignored, s.labels == label).astype(np.uint8)
                put(root / "masks" / CLASSES[label] / f"{s.name}.png", mask)
            if not ignored:  # the advice
                mask = (s.labels == 255).astype(np.uint8)
                put(root / "masks/ignore" / f"{s.name}.png", mask)

    write(tmp_path / "a", 255)
    with pytest.raises(DataError, match="255 looks like an ignore label; put its pixels in a mask"):
        converted(tmp_path / "a", tmp_path / "x", nearest=True)
    write(tmp_path / "b", 0)
    check(converted(tmp_path / "b", tmp_path / "new", nearest=True)[0], samples, [0, 2, 1])


def test_overlaps_of_masks_are_counted(tmp_path: Path) -> None:
    for number in range(3):
        noise(tmp_path / f"a/images/{number}.png")
        for name, rows in (("pond", slice(4, 10)), ("road", slice(8, 14))):
            mask = np.zeros((24, 32), np.uint8)
            mask[rows] = 255
            put(tmp_path / f"a/masks/{name}/{number}.png", mask)
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    assert (
        f"{3 * 2 * 32} pixels (8.33 %) of 3 images lie under shapes of several classes" in printed
    )
    assert all((mask[8:14] == 2).all() and (mask[4:8] == 1).all() for mask in masks.values())


def test_masks_of_a_class_are_cut_at_half_of_their_largest_level(
    tmp_path: Path, samples: list[Sample]
) -> None:
    draw_boxes(samples)
    for s in samples:
        photo(s, tmp_path / "a/images" / s.name)
        for name, level in (("road", 255), ("pond", 0)):
            soft = blurred(s.labels, np.array([0, level]))
            put(tmp_path / "a/masks" / name / f"{s.name}.png", soft)
    with pytest.raises(DataError, match="nearest=true"):
        converted(tmp_path / "a", tmp_path / "new")
    masks, _ = converted(tmp_path / "a", tmp_path / "new", nearest=True)
    check(masks, samples, lambda labels: 2 * (blurred(labels, np.array([0, 255])) >= 128))


# What is not read is counted and named.


def test_what_is_left_out_is_named(tmp_path: Path, samples: list[Sample]) -> None:
    root = pictures(tmp_path / "a", samples, lambda labels: labels)
    put(root / "images/train/IMG_2.dng", b"x")
    put(root / "labels/train/IMG_2.png", samples[0].labels)
    noise(root / "images/train/bare.png")
    for preview in ("Visualization", "SegmentationObjectNpy", "SegmentationClassVisualization"):
        noise(root / preview / "photo0.jpg")
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
    data = DataConfig(name="export", classes=CLASSES)
    cfg = PrepareDataConfig(data=data, convert=str(root), to=str(tmp_path / "new"))
    with pytest.raises(DataError, match="no validation split, and none can be drawn"):
        convert(cfg, make_console())
    printed = capsys.readouterr().out
    assert "2 of 3 masks have no image" in printed
    assert "2 files left out: 2 .dng" in printed


# What is missing is asked for, nothing is written, and the advice, obeyed, gets further.


def obey(message: str) -> dict[str, Any]:
    """Return the settings that a message proposes, with names filled in."""
    settings: dict[str, Any] = {"data": {}}
    message = message.split(", or ")[0]
    for number in range(message.count("NAME")):
        message = message.replace("NAME", f"class{number}", 1)
    found = re.findall(r"([a-z_.]+)=(\{[^}]*\}|\[\[.*?\]\]|\[[^]]*\]|\w+)", message)
    for key, value in reversed(found):  # the first proposal wins
        part, _, name = key.rpartition(".")
        value = safe_load(value.replace(": ", ":").replace(":", ": "))
        (settings["data"] if part else settings)[name] = value
    return settings


def own_cityscapes(root: Path, samples: list[Sample]) -> None:
    cityscapes(root, samples, OFFICIAL, [0, 1, 2])


def two_lists(root: Path, samples: list[Sample]) -> None:
    roboflow(root, samples, CLASSES, voc_palette())
    put(root / "train/_classes.csv", "Pixel Value, Class\n0, background\n1, pond\n2, road\n")
    for path in (root / "valid").glob("*_mask.png"):
        put(root / "masks" / path.name, np.asarray(Image.open(path)))
        path.unlink()


def palettes(root: Path, samples: list[Sample]) -> None:
    for number, s in enumerate(samples):
        photo(s, root / "images" / s.name)
        put(root / "masks" / f"{s.name}.png", s.labels.clip(0, 2), np.roll(COLOURS, number, axis=0))


def smoothed(root: Path, samples: list[Sample]) -> None:
    draw_boxes(samples)
    pictures(root, samples, lambda labels: blurred(labels, np.array([0, 255])))


def arrays(values: list[int]) -> Callable[[Path, list[Sample]], None]:
    def write(root: Path, samples: list[Sample]) -> None:
        for s in samples:
            photo(s, root / "images" / s.name)
            file = io.BytesIO()
            np.save(file, np.array(values)[s.labels.clip(0, 2)])
            put(root / "masks" / f"{s.name}.npy", file.getvalue())

    return write


def masks_as(form: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path, list[Sample]], None]:
    return lambda root, samples: pictures(root, samples, form) and None


def files(suffix: str, form: Callable[..., bytes]) -> Callable[[Path, list[Sample]], Path]:
    return lambda root, samples: stored(root, samples, suffix, form)


def pages(labels: np.ndarray) -> bytes:
    file, found = io.BytesIO(), [Image.fromarray((labels == k) * np.uint8(255)) for k in (1, 2)]
    found[0].save(file, "TIFF", save_all=True, append_images=found[1:])
    return file.getvalue()


def scratched(labels: np.ndarray) -> np.ndarray:
    mask = (labels == 1) * np.uint8(255)
    mask[1, 20:30] = 90  # a thin crack in the background
    return mask


def two_names(root: Path, samples: list[Sample]) -> None:
    roboflow(root, samples, CLASSES, voc_palette())
    put(root / "train/_classes.csv", "Pixel Value, Class\n0, background\n1, road\n1, pond\n")


def colours_among_labels(root: Path, samples: list[Sample]) -> None:
    paint = np.array([[0] * 3, [7] * 3, [1, 2, 3]], np.uint8)
    roboflow(root, samples, CLASSES, voc_palette())
    for path in root.rglob("*_mask.png"):
        labels = np.asarray(Image.open(path)).clip(0, 2)
        put(path, paint[labels] if "photo0" in path.name else (labels == 1) * np.uint8(7))


PAINT = np.array([*COLOURS, [1, 2, 3]], np.uint8)
LABELS, CLIPPED = masks_as(lambda k: k), masks_as(lambda k: k.clip(0, 2))
TWICE = {"data": {"classes": ["background", "road", "road"]}}
MERGED = {"data": {"classes": ["background", "road", "road2"]}}
SKY = {"data": {"classes": ["road", "pond", "sky"], "ignore_index": 0}}


def named(value: int) -> dict[str, Any]:
    return {"labels": {0: "background", 1: "road", value: "pond"}}


# What is written, settings, the message, and what its advice leaves open; None: it is not obeyed.
MISTAKES: dict[str, tuple[Any, dict[str, Any], str, dict[str, Any] | None]] = {
    "unlisted colour": (
        masks_as(lambda k: PAINT[k.clip(0, 3)]), BY_COLOUR,
        r"photo0.png: \[1,2,3\] .* no class", None,
    ),
    "colours": (
        masks_as(lambda k: PAINT[k.clip(0, 2)]), THREE, r"data.colours=\[\[0,0,0\],\[", {}
    ),
    "erased colours": (
        masks_as(lambda k: rgba(PAINT[k.clip(0, 2)], (k.clip(0, 2) > 0) * 255)), THREE,
        r"data.colours=\[\[0,0,0\],\[", {},
    ),
    "black alpha": (
        masks_as(lambda k: rgba(0, (k == 1) * 255)), RED,
        r"alpha channel is the mask; leave out data\.colours", {"data": {"colours": []}},
    ),
    "classes": (LABELS, {}, r"0 \(.*255 \(.*data.classes=\[background,...\]", None),
    "ignored": (
        CLIPPED, SKY, r"ignore_index=0: does road name it\? give .labels=\{1: NAME, 2: NAME\}",
        {"data": {"classes": [], "ignore_index": None}},
    ),
    "palettes": (
        palettes, THREE, r"photo1\.png: label 0 has the colour .*photo0\.png; if colours",
        None,
    ),
    "0 unlabelled": (
        CLIPPED, {"data": {"classes": ["road", "pond"]}},
        "if 0 is unlabelled, set data.ignore_index=0", {},
    ),
    "a gap": (
        masks_as(lambda k: np.where(k == 2, 7, k).astype(np.uint8)), THREE,
        r"photo0.png: 7 .*labels=\{0: background, 1: road, 7: NAME, ", named(7),
    ),
    "a deep label": (
        masks_as(lambda k: np.where(k == 2, np.uint16(300), k)), THREE, "300 .*labels=",
        named(300),
    ),
    **{
        f"label {value}": (  # that no ignore_index can name
            arrays([0, 1, value]), THREE,
            rf"{value} \((?!.*ignore_index).*no class.*labels=", named(value),
        )
        for value in (-5, -2, 1 << 20)
    },
    "merge": (LABELS, THREE | {"merge": {"lake": "pond"}}, "has no class lake", None),
    "mapping": (LABELS, {"labels": ["road"]}, r"labels=\['road'\]: must be like \{7: road", None),
    "smoothed": (smoothed, ROAD, "nearest=true", {}),
    "half size": (
        masks_as(lambda k: k[::2, ::2]), THREE,
        r"16 x 12.* 32 x 24 .6 of 6 masks.*resize=true", {},
    ),
    **{
        f"another shape, {settings}": (
            masks_as(lambda k: k[:, :24]), THREE | settings,
            r"24 x 24.* 32 x 24: of other proportions", None,
        )
        for settings in ({}, {"resize": True})
    },
    "a crack": (
        masks_as(scratched), ROAD | {"nearest": True},
        "nearest=true is for smoothed boundaries", None,
    ),
    "one class": (
        masks_as(lambda k: k.clip(0, 1)), {"data": {"classes": ["void", "road"]}},
        r"1 classes; .*the names ignore, .*void are of ignored",
        {"data": {"classes": ["unlabelled", "road"]}},
    ),
    "two names": (two_names, {}, r"_classes\.csv: 1 is road and pond", None),
    "colours among labels": (colours_among_labels, {}, r"^(?!.*\d{8})", None),  # no numbers
    "cityscapes": (own_cityscapes, {}, "like those of Cityscapes; name them", {}),
    "two lists": (
        two_lists, {}, "name classes differently",
        {"labels": {0: "background", 1: "road", 2: "pond"}},
    ),
    "twice": (LABELS, TWICE, r"road occurs twice.*merge=\{road2: road\}", MERGED),
    "twice in colours": (
        masks_as(lambda k: PAINT[k.clip(0, 2)]),
        {"data": TWICE["data"] | {"colours": COLOURS}}, "road occurs twice", MERGED,
    ),
    "deep colours": (
        files("png", lambda k: deep_png(np.full((24, 32, 3), (300, 7, 7)))), BY_COLOUR,
        "beyond 8", None,
    ),
    "pages": (files("tif", pages), THREE, r"photo\d\.tif: 2 pages", None),
    "JPEG of labels": (
        files("jpg", by_pillow("JPEG", [0, 1, 0])), ROAD, rf"photo\d\.jpg: JPEG {LOSS}", None
    ),
    "JPEG of grey": (files("jpg", by_pillow("JPEG", [0, 120, 0])), ROAD, LOSS, None),
    **{
        f"white as 0, {kind}": (
            files("tif", lambda k, d=kind: tiff((k == 1).astype(d), photometric="miniswhite")),
            ROAD, r"photo\d\.tif: .*white as 0", None,
        )
        for kind in ("uint8", "bool")
    },
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_and_its_advice_works(
    tmp_path: Path, samples: list[Sample], mistake: str
) -> None:
    write, settings, message, left = MISTAKES[mistake]
    write(tmp_path / "a", samples)
    before, data = sorted(os.listdir(tmp_path)), settings.get("data", {})
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        converted(tmp_path / "a", tmp_path / "new", **settings | {"data": dict(data)})
    assert sorted(os.listdir(tmp_path)) == before
    if left is None:
        return
    advised = obey(str(caught.value))
    known = {"labels", "nearest", "resize", "merge"}
    given = {key: value for key, value in (advised | left).items() if key in known}
    data = data | advised["data"] | left.get("data", {})
    assert len(converted(tmp_path / "a", tmp_path / "new", data=data, **given)[0]) == 6
