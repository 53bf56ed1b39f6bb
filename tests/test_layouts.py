"""How data sets lie on the disk: splits, names, classes, and images seen in training."""

import shutil
import unicodedata
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy.io import savemat

from fcn.config import DataConfig
from fcn.data import files
from fcn.data.description import INPUT_DEFAULTS, merge_info
from fcn.data.layouts import VOC_CLASSES, open_split, overlap_with_training, split_settings
from fcn.dataset_info import INFO_KEYS, DatasetInfo
from fcn.errors import ConfigError, DataError
from tests.conftest import TinyVOC


def test_an_unknown_layout_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.layout=coco .*voc, sbd, folder"):
        open_split(DataConfig("mine", layout="coco", root=str(tmp_path)), "train")


def test_real_voc_reads(voc_root: Path) -> None:
    data = DataConfig(name="voc2012", root=str(voc_root), folder="VOCdevkit/VOC2012")
    lists = voc_root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    for split in ("train", "val"):
        assert open_split(data, split).ids == (lists / f"{split}.txt").read_text().split()
    image, target = open_split(data, "val")[0]
    assert image.shape[1:] == target.shape
    assert set(target.unique().tolist()) <= {*range(21), 255}
    assert open_split(data, "val").classes == VOC_CLASSES
    assert VOC_CLASSES[1:] == sorted(VOC_CLASSES[1:])


def test_what_voc_lacks_is_named(tiny_voc: TinyVOC) -> None:
    data = tiny_voc.config()
    with pytest.raises(DataError, match=r"test\.txt: no such list; available splits: train, val"):
        open_split(data, "test")
    with pytest.raises(DataError, match=r"/none: no such data set; add data\.download=true"):
        open_split(replace(data, folder="none"), "train")
    with pytest.raises(DataError, match=r"/Masks: no such folder"):
        open_split(replace(data, masks="Masks"), "train")


def test_the_test_split_of_voc_needs_no_masks(tiny_voc: TinyVOC) -> None:
    tiny_voc.listing("val").rename(tiny_voc.listing("test"))
    (tiny_voc.folder / "SegmentationClass").rename(tiny_voc.folder / "elsewhere")
    test = open_split(tiny_voc.config(), "test")
    assert test.ids == ["v0", "v1"]
    assert not test.has_masks()


def sbd(root: Path) -> DataConfig:
    return DataConfig("sbd", layout="sbd", root=str(root), val_split="seg11valid")


def test_sbd_validates_on_voc2011_val_without_its_own_training_images(tiny_voc: TinyVOC) -> None:
    dataset = tiny_voc.root / "benchmark_RELEASE" / "dataset"
    for part in ("img", "cls"):
        (dataset / part).mkdir(parents=True)
    (dataset / "train.txt").write_text("t0\nv0\n")
    labels = np.zeros((50, 40), np.uint8)
    labels[5, 6] = 20
    for name in ("t0", "v0"):
        (dataset / "img" / f"{name}.jpg").write_bytes(tiny_voc.image(name).read_bytes())
        savemat(dataset / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": labels}})
    (tiny_voc.root / "VOCdevkit").mkdir()
    tiny_voc.folder.rename(tiny_voc.root / "VOCdevkit" / "VOC2011")
    data = sbd(tiny_voc.root)
    train, val = open_split(data, "train"), open_split(data, "seg11valid")
    assert (train.ids, val.ids) == (["t0", "v0"], ["v1"])
    assert torch.equal(train[0][1], torch.from_numpy(labels))
    for split in ("train", "seg11valid"):
        assert open_split(replace(data, classes=VOC_CLASSES), split).classes == VOC_CLASSES
        for renamed in (["a", "b"], VOC_CLASSES[::-1], VOC_CLASSES[:-1]):
            with pytest.raises(DataError, match=r"named background, aero.*leave data\.classes out"):
                open_split(replace(data, classes=renamed), split)
    with pytest.raises(DataError, match=r"data\.split=val: .* train and seg11valid"):
        open_split(data, "val")
    with pytest.raises(DataError, match=r"train\.txt: no such list; .*benchmark\.tgz"):
        open_split(sbd(tiny_voc.root / "elsewhere"), "train")


@pytest.mark.parametrize(
    ("train", "val", "common", "left"),
    [
        (8498, 1111, 375, 736),  # as published
        (8000, 1000, 0, 1000),  # subsets of both
        (8498, 1111, 374, None),
        (8498, 1110, 375, None),
        (8000, 1111, 0, None),
    ],
)
def test_official_lists_give_736_images_for_seg11valid(
    tmp_path: Path, train: int, val: int, common: int, left: int | None
) -> None:
    dataset, voc2011 = tmp_path / "benchmark_RELEASE/dataset", tmp_path / "VOCdevkit/VOC2011"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc2011 / part).mkdir(parents=True)
    dataset.mkdir(parents=True)
    (dataset / "train.txt").write_text("".join(f"{i}\n" for i in range(train)))
    first = train - common
    listed = "".join(f"{i}\n" for i in range(first, first + val))
    (voc2011 / "ImageSets/Segmentation/val.txt").write_text(listed)
    if left is not None:
        assert len(open_split(sbd(tmp_path), "seg11valid")) == left
    else:
        with pytest.raises(DataError, match=f"leaves {val - common} images, .* has 736"):
            open_split(sbd(tmp_path), "seg11valid")
        assert len(open_split(sbd(tmp_path), "seg11valid", strict=False).problems) == 1


@pytest.fixture
def own(tmp_path: Path) -> DataConfig:
    """Eleven classes and label 11 to ignore; suffixes in any case, names with other letters."""
    for part in ("images/train", "annotations/train"):
        (tmp_path / part).mkdir(parents=True)
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for name in ("b.JPG", "a ö.png", "c.jpeg"):
        Image.new("RGB", (4, 3)).save(tmp_path / "images/train" / name)
        mask = Image.fromarray(labels)
        if name == "b.JPG":
            mask.putpalette(list(range(36)))
        mask.save(tmp_path / "annotations/train" / f"{Path(name).stem}.png")
    (tmp_path / "images/train/Thumbs.db").write_text("not an image")
    (tmp_path / "images/train/.hidden.png").write_text("not an image either")
    names = "\r\n".join(f"class {i}" for i in range(11)) + "\n\n"
    (tmp_path / "classes.txt").write_text(names, encoding="utf-8-sig")
    return DataConfig("folder", layout="folder", root=str(tmp_path), ignore_index=11)


def test_a_folder_is_paired_by_name(own: DataConfig) -> None:
    dataset = open_split(own, "train")
    assert dataset.ids == ["train/a ö", "train/b", "train/c"]
    assert dataset.classes == [f"class {i}" for i in range(11)]
    for index in range(3):
        assert dataset[index][1].flatten().tolist() == [*range(11), 255]
    with pytest.raises(
        DataError, match=r"labels 0, 1, \.\.\. are named class 0.*leave data\.classes"
    ):
        open_split(replace(own, classes=[f"name {i}" for i in range(11)]), "train")
    Path(own.root, "dataset.yaml").write_text("classes: [newer, form]")
    assert open_split(own, "train").classes == ["newer", "form"]
    Path(own.root, "dataset.yaml").unlink()
    Path(own.root, "classes.txt").unlink()
    named = replace(own, classes=[f"name {i}" for i in range(11)])
    assert open_split(named, "train").classes == named.classes


def test_what_a_folder_lacks_is_named(own: DataConfig) -> None:
    root = Path(own.root)
    (root / "images/train/c.png").write_bytes((root / "images/train/a ö.png").read_bytes())
    with pytest.raises(DataError, match=r"c\.png: has the same name as .*c\.jpeg"):
        open_split(own, "train")
    (root / "images/train/c.png").unlink()
    (root / "annotations/train/b.png").unlink()
    with pytest.raises(DataError, match=r"b\.JPG: no mask at .*b\.png \(1 of 3 images"):
        open_split(own, "train")
    assert len(open_split(own, "train", strict=False)) == 3
    with pytest.raises(DataError, match=r"val: no such folder; data=folder needs images/val"):
        open_split(own, "val")
    (root / "classes.txt").write_text("one\n")
    with pytest.raises(DataError, match=r"classes\.txt: 1 class names"):
        open_split(own, "train", strict=False)


# A value of each key for each who may say it; the names and colours are of one class.
SAYS: dict[str, dict[str, Any]] = {
    who: {
        "classes": [who], "colours": [[n, n, n]], "ignore_index": n, "background": True,
        "value_range": [0, n], "bands": [n],
    }
    for n, who in enumerate(("settings", "set", "checkpoint"), start=1)
}  # fmt: skip
DEFAULTS = {
    "classes": [], "colours": [[0, 0, 0]], "ignore_index": 255, "background": False,
    "value_range": None, "bands": [],
}  # fmt: skip
WINNERS = {
    "classes": ("settings", "set", "checkpoint"),
    "colours": ("settings", "set"),
    "ignore_index": ("settings", "set"),
    "background": ("settings", "set"),
    "value_range": ("settings", "checkpoint", "set"),
    "bands": ("settings", "checkpoint", "set"),
}


@pytest.mark.parametrize("speakers", list(product([False, True], repeat=3)))
@pytest.mark.parametrize("key", INFO_KEYS)
def test_the_first_that_says_anything_wins(key: str, speakers: tuple[bool, ...]) -> None:
    classes = {"classes": ["one"]} if key == "colours" else {}
    says = {
        who: ({key: SAYS[who][key]} if speaks else {}) | classes
        for who, speaks in zip(SAYS, speakers, strict=True)
    }
    known = DatasetInfo(**says["checkpoint"]) if speakers[2] else None
    info, _ = merge_info(DataConfig(**says["settings"]), says["set"], known)
    winner = next((who for who in WINNERS[key] if key in says[who]), None)
    assert getattr(info, key) == (SAYS[winner][key] if winner else DEFAULTS[key])


@pytest.mark.parametrize(("key", "none"), INPUT_DEFAULTS.items())
def test_a_network_trained_without_a_range_or_bands_says_so(key: str, none: str) -> None:
    own, known = {key: SAYS["set"][key]}, DatasetInfo(["one"])
    info, (note,) = merge_info(DataConfig(classes=["one"]), own, known)
    assert getattr(info, key) == DEFAULTS[key]
    assert note.startswith(f"{key}={none}, as the checkpoint was trained, not {own[key]}")
    of_settings = [2, 1, 0] if key == "bands" else SAYS["settings"][key]
    wished = DataConfig(classes=["one"], **{key: of_settings})
    info, notes = merge_info(wished, own, known)
    assert (getattr(info, key), notes) == (of_settings, [])
    again = DatasetInfo(["one"], **own)  # trained on this very set
    assert not merge_info(DataConfig(classes=["one"]), own, again)[1]


def test_a_note_says_where_a_checkpoint_and_the_set_disagree() -> None:
    own = {"classes": ["a"], "value_range": [0, 9], "bands": [1], "ignore_index": 9}
    known = DatasetInfo(["a"], value_range=[0, 5], bands=[1], ignore_index=0)
    _, (of_range, of_label) = merge_info(DataConfig(), own, known)
    assert "not [0, 9], as the data set says; data.value_range overrides both" in of_range
    assert "label 9 is ignored in these masks" in of_label
    assert "set data.ignore_index=0" in of_label
    obeyed, notes = merge_info(DataConfig(ignore_index=0, value_range=[0, 9]), own, known)
    assert (obeyed.ignore_index, obeyed.value_range, notes) == (0, [0, 9], [])
    assert not merge_info(DataConfig(), own)[1]


@pytest.mark.parametrize("trained", [[], [0], [0, 1, 2, 3]])
@pytest.mark.parametrize("wished", [[0], ["red", "green", "blue"], [3, 2, 1, 0]])
def test_a_checkpoint_takes_its_own_number_of_bands(
    wished: list[int | str], trained: list[int | str]
) -> None:
    data, known = DataConfig(classes=["one"], bands=wished), DatasetInfo(["one"], bands=trained)
    if len(wished) == known.channels:
        assert merge_info(data, {}, known)[0].bands == wished
        return
    with pytest.raises(ConfigError, match=rf"^data\.bands=\[.*\]: .* takes {known.channels}$"):
        merge_info(data, {}, known)


TRAINED = {  # what is evaluated -> how many of its images a run of tiny_voc was trained on
    "its validation split": 0,
    "its training split": 0,
    "its validation split, moved": 0,
    "its training split, moved": 0,
    "both splits": 4,
    "another list of the same root": 2,
    "other images of the same root": 0,
    "copies under other names": 2,
    "copies under other names, of images that are gone": 0,
    "other images of the same names": 0,
    "other images of the same names below the same root": 0,
}


@pytest.mark.parametrize("case", TRAINED)
def test_images_that_a_checkpoint_was_trained_on_are_noticed_wherever_they_lie(
    tiny_voc: TinyVOC, tmp_path: Path, case: str
) -> None:
    of_run = tiny_voc.config()
    train, val = (open_split(of_run, split) for split in ("train", "val"))
    known = {"train": train.fingerprint(), "val": val.fingerprint()}
    metadata = {"classes": train.classes, "data": known | {"division": split_settings(of_run)}}
    names = {"both": "t0 t1 t2 t3 v0 v1", "list": "v0 t1 t2 v1", "images": "v0 v1"}
    for name, ids in names.items():
        tiny_voc.listing(name).write_text("\n".join(ids.split()))
    copy = tmp_path / "copy"
    shutil.copytree(tiny_voc.folder, copy / "tiny")
    other = DataConfig("other", layout="folder", root=str(copy), classes=train.classes)
    for part, find in (("images", tiny_voc.image), ("annotations", tiny_voc.mask)):
        for split, ids in (("val", ["v0", "t2", "t3"]), ("names", ["v0", "v1"])):
            (copy / part / split).mkdir(parents=True)
            for number, name in enumerate(ids):
                new = f"t{number}" if split == "names" else f"new{number}"
                shutil.copy(find(name), copy / part / split / (new + find(name).suffix))
    site = shutil.copytree(tiny_voc.folder, tiny_voc.root / "site")
    (site / "ImageSets" / "Segmentation" / "val.txt").write_text("t0\nt1\n")
    for number in range(2):  # as another camera names its pictures
        shutil.copy(tiny_voc.image(f"v{number}"), site / "JPEGImages" / f"t{number}.jpg")
        shutil.copy(tiny_voc.mask(f"v{number}"), site / "SegmentationClass" / f"t{number}.png")
    data = {
        "its validation split": of_run,
        "its training split": replace(of_run, split="train"),
        "its validation split, moved": replace(of_run, root=str(copy)),
        "its training split, moved": replace(of_run, root=str(copy), split="train"),
        "both splits": replace(of_run, split="both"),
        "another list of the same root": replace(of_run, name="new", val_split="list"),
        "other images of the same root": replace(of_run, name="new", val_split="images"),
        "copies under other names": other,
        "copies under other names, of images that are gone": other,
        "other images of the same names": replace(other, val_split="names"),
        "other images of the same names below the same root": replace(of_run, folder="site"),
    }[case]
    dataset = open_split(data, data.split or data.val_split)
    if "gone" in case:
        shutil.rmtree(tiny_voc.root)
    found = overlap_with_training(data, dataset, metadata)
    count = f"trained on {TRAINED[case]} of the {len(dataset)} images of {dataset.name}; use images"
    assert count in found if TRAINED[case] else not found


def test_no_sample_is_drawn_to_compare_images_with_it(tiny_voc: TinyVOC) -> None:
    here, before = tiny_voc.config(), sorted(tiny_voc.root.rglob("*"))
    division = split_settings(DataConfig("shapes", layout="shapes", root=here.root))
    known = {"classes": list(tiny_voc.classes), "data": {"val": "", "division": division}}
    assert overlap_with_training(here, open_split(here, "val"), known) == ""
    assert sorted(tiny_voc.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "background"), [("Background", True), ("_background_", True), ("sky", False)]
)
def test_class_0_is_background_if_its_name_says_so(name: str, background: bool) -> None:
    assert merge_info(DataConfig(), {"classes": [name, "road"]})[0].background is background


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clases: [a, b]", r"dataset\.yaml: unknown key clases: did you mean classes"),
        ("colours: [[0, 0, 256]]", r"dataset\.yaml: colours\.0\.2=256"),
        ("[a, b]", r"dataset\.yaml: must be keys with values"),
        ("classes: [a, b]\ncolours: [[0, 0, 0]]", "1 colours for 2 classes"),
        ("classes: [a, b]\nvalue_range: [5, 5]", "from < to"),
        ("classes: [a, b]\nclasses: [c, d]\n", r"yaml: classes is given twice \(line 1\)"),
        ("classes: {a: 1, b: 2, a: 3}", "a is given twice"),
    ],
)
def test_a_mistake_in_the_file_is_named(own: DataConfig, text: str, message: str) -> None:
    Path(own.root, "dataset.yaml").write_text(text)
    with pytest.raises((DataError, ConfigError), match=message) as error:
        open_split(own, "train")
    assert "\n" not in str(error.value)


NAMES = [
    (["a", "b\nc"], r"class name 'b\\nc' has a line break or another control character"),
    (["a\x1b[31m", "b"], r"control character"),
    (["a", "b\u2028c"], r"control character"),
    (["a", "b", "a"], r"class a is named twice"),
    (["\u00fc", "u\u0308"], r"named twice"),
    (["a", " "], r"is empty"),
]


@pytest.mark.parametrize(("names", "message"), NAMES)
def test_names_that_no_class_can_have_are_refused_where_they_enter(
    own: DataConfig, names: list[str], message: str
) -> None:
    root = Path(own.root)
    (root / "classes.txt").unlink()
    with pytest.raises(ConfigError, match=rf"data\.classes=.*{message}") as error:
        open_split(replace(own, classes=names), "train")
    assert "\n" not in str(error.value)
    (root / "dataset.yaml").write_text(yaml.safe_dump({"classes": names}))
    with pytest.raises(DataError, match=rf"dataset\.yaml: .*{message}"):
        open_split(own, "train")
    (root / "dataset.yaml").unlink()
    if not any("\n" in name or not name.strip() or "\u2028" in name for name in names):  # lines
        (root / "classes.txt").write_text("\n".join(names), encoding="utf-8")
        with pytest.raises(DataError, match=rf"classes\.txt: .*{message}"):
            open_split(own, "train")


def test_null_in_the_file_says_nothing(own: DataConfig) -> None:
    about = "classes: [Background, b]\nignore_index: null\nbackground: null\nvalue_range: null\n"
    (Path(own.root) / "dataset.yaml").write_text(about + "bands: null\ncolours: null\n")
    info = open_split(replace(own, ignore_index=None), "train").info
    assert info == DatasetInfo(["Background", "b"], [[0, 0, 0], [128, 0, 0]], 255, True, None, [])


@pytest.mark.parametrize("composed", [True, False], ids=["images-composed", "masks-composed"])
def test_names_are_paired_composed_or_decomposed(tiny_voc: TinyVOC, composed: bool) -> None:
    forms = ("NFC", "NFD") if composed else ("NFD", "NFC")
    image, mask = (unicodedata.normalize(form, "K\u00f6ln") for form in forms)
    tiny_voc.image("t1").rename(tiny_voc.image(image))
    tiny_voc.mask("t1").rename(tiny_voc.mask(mask))
    for listed in (image, mask):
        tiny_voc.listing("train").write_text(f"t0\n{listed}\n", encoding="utf-8")
        assert open_split(tiny_voc.config(), "train")[1][1].shape == (48, 64)
    for part, folder in (("JPEGImages", "images"), ("SegmentationClass", "annotations")):
        (tiny_voc.root / folder).mkdir()
        (tiny_voc.folder / part).rename(tiny_voc.root / folder / "train")
    data = DataConfig("f", layout="folder", root=str(tiny_voc.root), classes=["a", "b", "c"])
    assert sum(len(pair) == 2 for pair in open_split(data, "train")) == 6


def test_what_a_folder_holds_and_is_not_read_is_named(
    own: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(own.root)
    images = root / "images/train"
    assert open_split(own, "train").notes == []
    monkeypatch.setattr(files, "_suffixes", lambda: {".jpeg", ".jpg", ".png"})
    (images / "d.HEIC").touch()
    (images / "e.mp4").touch()
    (root / "annotations/train/f.png").touch()
    (images / "more").mkdir()
    Image.new("RGB", (4, 3)).save(images / "more/g.png")
    unread, lonely, below = open_split(own, "train").notes
    assert f"{images}: 2 files left out: 1 .HEIC (to read them: pip install" in unread
    assert "1 masks have no image, such as f.png" in lonely
    assert f"1 images lie in folders, such as {images}/more/g.png, and are left out" in below
