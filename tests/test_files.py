from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from fcn.config import DataConfig
from fcn.data.datamodule import open_split
from fcn.data.files import Pair, SegmentationFiles
from fcn.data.reading import DataError, read_image, read_mask
from fcn.data.sbd import sbd
from tests.conftest import TinyVOC


def test_a_split_reads_as_it_was_written(tiny_voc: TinyVOC) -> None:
    files = open_split(tiny_voc.config(), "train")
    assert files.ids == ["t0", "t1", "t2", "t3"]
    image, target = files[1]
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 48, 64))
    assert torch.equal(target, torch.from_numpy(np.array(Image.open(tiny_voc.mask("t1")))))
    assert sorted(target.unique().tolist()) == [0, 2, 255]
    assert files.sizes() == [(40, 50), (64, 48)] * 2


def test_any_void_label_becomes_255(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 1, 11], [11, 10, 0]], np.uint8)).save(path)
    assert read_mask(path, 11, 11).tolist() == [[0, 1, 255], [255, 10, 0]]
    assert read_mask(path, 12, 0).tolist() == [[255, 1, 11], [11, 10, 255]]


def test_images_of_every_kind_come_as_rgb_and_upright(tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    for mode, suffix in (("L", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("P", "png")):
        grey.convert("RGB").convert(mode).save(path := tmp_path / f"{mode}.{suffix}")
        assert tuple(read_image(path).shape) == (3, 4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    for suffix in ("jpg", "png", "tif", "webp"):
        grey.convert("RGB").save(path := tmp_path / f"turned.{suffix}", exif=exif)
        assert tuple(read_image(path).shape) == (3, 6, 4)
        files = SegmentationFiles([Pair("turned", path, path)], ["a", "b"], 255, "x")
        assert files.sizes() == [(4, 6)]


def test_an_image_of_many_rows_is_read_whole(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (2049, 3, 3), dtype=np.uint8)
    Image.fromarray(array).save(path := tmp_path / "tall.png")
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), array)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_to_8(tmp_path: Path, suffix: str) -> None:
    deep = np.array([[0, 128, 129, 256, 32768, 65407, 65535]], np.uint16)
    path = tmp_path / f"deep.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 7 1 65535\n" + deep.astype(">u2").tobytes())
    else:
        Image.fromarray(deep).save(path)
    image = read_image(path)
    assert image[0].tolist() == [[0, 0, 1, 1, 128, 255, 255]]  # v / 257, rounded
    assert torch.equal(image, image[:1].expand(3, 1, 7))


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    for name, array in (("f", np.zeros((2, 2), np.float32)), ("i", np.full((2, 2), 70_000))):
        Image.fromarray(array.astype(np.float32 if name == "f" else np.int32)).save(
            path := tmp_path / f"{name}.tif"
        )
        with pytest.raises(DataError, match=rf"{name}\.tif: .*\(pixels of more than 16"):
            read_image(path)


@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_palettes_transparency_changes_no_colour(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    if mode == "P":
        image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(path := tmp_path / "clear.png", transparency=b"\x00\x80\xff" if mode == "P" else 0)
    expected = [[0] * 3, [1] * 3, [2] * 3]
    if mode == "P":
        expected = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    assert read_image(path)[:, 0].T.tolist() == expected


def test_what_is_wrong_with_a_file_is_said_by_name(tiny_voc: TinyVOC) -> None:
    files = open_split(tiny_voc.config(), "train")
    Image.new("L", (5, 6)).save(tiny_voc.mask("t0"))
    with pytest.raises(DataError, match=r"t0\.png: mask is 5 x 6 but its image .*t0\.jpg is 40 x"):
        files[0]
    Image.new("L", (64, 48), 37).save(tiny_voc.mask("t1"))
    with pytest.raises(DataError, match=r"t1\.png: label 37 is out of range: 3 classes are 0\.\.2"):
        files[1]
    tiny_voc.image("t2").write_bytes(tiny_voc.image("t2").read_bytes()[:300])
    with pytest.raises(DataError, match=r"t2\.jpg: unreadable image"):
        files[2]
    tiny_voc.mask("t3").unlink()
    with pytest.raises(DataError, match=r"t3\.png: mask not found"):
        files[3]
    Image.new("RGB", (64, 48)).save(tiny_voc.mask("t3"))
    with pytest.raises(DataError, match=r"t3\.png: a mask must be .* this one is RGB"):
        files[3]


def test_lists(tiny_voc: TinyVOC) -> None:
    tiny_voc.listing("train").write_bytes(b"t0\r\n\r\n t1 \r\n")
    assert open_split(tiny_voc.config(), "train").ids == ["t0", "t1"]
    tiny_voc.listing("train").write_text("t0\nt1\nt0\n")
    with pytest.raises(DataError, match="t0 is listed twice"):
        open_split(tiny_voc.config(), "train")
    tiny_voc.listing("train").write_text("\n")
    with pytest.raises(DataError, match="no images listed"):
        open_split(tiny_voc.config(), "train")
    with pytest.raises(DataError, match=r"test\.txt: no such list; splits there: train, val"):
        open_split(tiny_voc.config(), "test")


def test_the_fingerprint_is_of_the_ids_in_order(tiny_voc: TinyVOC) -> None:
    one = open_split(tiny_voc.config(), "train").fingerprint()
    tiny_voc.listing("train").write_text("t1\nt0\nt2\nt3\n")
    other = open_split(tiny_voc.config(), "train").fingerprint()
    assert one != other
    assert len(one) == 64


def test_sbd_validates_on_voc2011_val_without_its_own_training_images(tiny_voc: TinyVOC) -> None:
    dataset = tiny_voc.root / "benchmark_RELEASE" / "dataset"
    (dataset / "img").mkdir(parents=True)
    (dataset / "cls").mkdir()
    (dataset / "train.txt").write_text("t0\nv0\n")
    labels = np.zeros((50, 40), np.uint8)
    labels[5, 6] = 20
    for name in ("t0", "v0"):
        (dataset / "img" / f"{name}.jpg").write_bytes(tiny_voc.image(name).read_bytes())
        savemat(dataset / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": labels}})
    (tiny_voc.root / "VOCdevkit").mkdir()
    tiny_voc.folder.rename(tiny_voc.root / "VOCdevkit" / "VOC2011")
    train, val = sbd(tiny_voc.root, "train"), sbd(tiny_voc.root, "seg11valid")
    assert (train.ids, val.ids) == (["t0", "v0"], ["v1"])
    assert torch.equal(train[0][1], torch.from_numpy(labels))
    (dataset / "cls" / "t0.mat").write_bytes(b"MATLAB, or so")
    with pytest.raises(DataError, match=r"t0\.mat: unreadable mask"):
        train[0]
    with pytest.raises(DataError, match="sbd has train and seg11valid, not 'val'"):
        sbd(tiny_voc.root, "val")
    with pytest.raises(DataError, match=r"train\.txt: no such list; unpack SBD's"):
        sbd(tiny_voc.root / "elsewhere", "train")


@pytest.mark.parametrize(
    ("train", "val", "common", "right"),
    [
        (8498, 1111, 375, True),  # as published: 736 are left
        (8498, 1111, 374, False),
        (8498, 1110, 375, False),
        (8000, 1111, 0, False),
        (8000, 1000, 0, True),  # someone's own part of both
    ],
)
def test_seg11valid_is_of_736_images_where_the_lists_are_official(
    tmp_path: Path, train: int, val: int, common: int, right: bool
) -> None:
    dataset, voc2011 = tmp_path / "benchmark_RELEASE/dataset", tmp_path / "VOCdevkit/VOC2011"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc2011 / part).mkdir(parents=True)
    dataset.mkdir(parents=True)
    (dataset / "train.txt").write_text("".join(f"{i}\n" for i in range(train)))
    first = train - common
    listed = "".join(f"{i}\n" for i in range(first, first + val))
    (voc2011 / "ImageSets/Segmentation/val.txt").write_text(listed)
    if right:
        assert len(sbd(tmp_path, "seg11valid")) == val - common
    else:
        message = (
            rf"VOC2011 val \({val} .* minus SBD train \({train}, .* leaves {val - common}, not"
        )
        with pytest.raises(DataError, match=message):
            sbd(tmp_path, "seg11valid")
        assert len(sbd(tmp_path, "seg11valid", strict=False).problems) == 1


def test_real_voc_reads(voc_root: Path) -> None:
    voc = DataConfig(name="voc2012", root=str(voc_root), folder="VOCdevkit/VOC2012")
    folder = voc_root / "VOCdevkit" / "VOC2012"
    for split in ("train", "val"):
        lines = (folder / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
        assert open_split(voc, split).ids == lines
    image, target = open_split(voc, "val")[0]
    assert image.shape[1:] == target.shape
    assert set(target.unique().tolist()) <= {*range(21), 255}


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    """Eleven classes, void 11, endings in any case, names with spaces and other letters."""
    for part in ("images/train", "annotations/train"):
        (tmp_path / part).mkdir(parents=True)
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for image in ("b.JPG", "a ö.png", "c.jpeg"):
        Image.new("RGB", (4, 3)).save(tmp_path / "images/train" / image)
        mask = Image.fromarray(labels)  # mode L
        if image == "b.JPG":
            mask.putpalette(list(range(36)))  # mode P
        mask.save(tmp_path / "annotations/train" / f"{Path(image).stem}.png")
    (tmp_path / "images/train/Thumbs.db").write_text("not an image")
    names = [f"class {i}" for i in range(11)]
    (tmp_path / "classes.txt").write_text("\r\n".join(names) + "\n\n", encoding="utf-8-sig")
    config = DataConfig(name="folder", layout="folder", root=str(tmp_path), ignore_index=11)
    files = open_split(config, "train")
    assert files.ids == ["train/a ö", "train/b", "train/c"]
    assert files.classes == names
    for index in range(3):
        assert files[index][1].flatten().tolist() == [*range(11), 255]

    (tmp_path / "images/train/c.png").write_bytes((tmp_path / "images/train/a ö.png").read_bytes())
    with pytest.raises(DataError, match=r"c\.png: c\.jpeg has the same name"):
        open_split(config, "train")
    (tmp_path / "images/train/c.png").unlink()
    (tmp_path / "annotations/train/b.png").unlink()
    with pytest.raises(DataError, match=r"b\.JPG: no mask at .*b\.png \(1 of 3 images"):
        open_split(config, "train")
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"val: no such folder; data=folder wants images/SPLIT"):
        open_split(config, "val")
