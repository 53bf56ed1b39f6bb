from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from fcn.config import DataConfig
from fcn.data.layouts import VOC_CLASSES, open_split
from fcn.errors import ConfigError, DataError
from tests.conftest import TinyVOC


def test_an_unknown_layout_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.layout=coco .*voc, sbd, folder"):
        open_split(DataConfig("mine", layout="coco", root=str(tmp_path)), "train")


def test_the_classes_of_voc_are_in_its_order() -> None:
    assert len(VOC_CLASSES) == 21
    assert VOC_CLASSES[0] == "background"
    assert VOC_CLASSES[1:] == sorted(VOC_CLASSES[1:])


def test_real_voc_reads(voc_root: Path) -> None:
    data = DataConfig(name="voc2012", root=str(voc_root), folder="VOCdevkit/VOC2012")
    lists = voc_root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    for split in ("train", "val"):
        assert open_split(data, split).ids == (lists / f"{split}.txt").read_text().split()
    image, target = open_split(data, "val")[0]
    assert image.shape[1:] == target.shape
    assert set(target.unique().tolist()) <= {*range(21), 255}
    assert open_split(data, "val").classes == VOC_CLASSES


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
    (Path(own.root) / "classes.txt").unlink()
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
