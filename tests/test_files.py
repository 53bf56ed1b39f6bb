from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from fcn.config import DataConfig
from fcn.data.datamodule import open_split
from fcn.data.files import DataError, Pair, SegmentationFiles, read_image, read_mask
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


def test_sixteen_bits_become_eight_and_floats_are_refused(tmp_path: Path) -> None:
    deep = np.array([[0, 255, 256, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    (tmp_path / "deep.pgm").write_bytes(b"P5 4 1 65535\n" + deep.astype(">u2").tobytes())
    for suffix in ("png", "tif", "pgm"):
        image = read_image(tmp_path / f"deep.{suffix}")
        assert image[:, 0].tolist() == [[0, 0, 1, 255]] * 3
    Image.fromarray(deep.astype(np.float32)).save(path := tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif: unreadable image \(floating-point"):
        read_image(path)


def test_an_image_of_many_rows_is_read_whole(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (2049, 3, 3), dtype=np.uint8)
    Image.fromarray(array).save(path := tmp_path / "tall.png")
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), array)


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
        mask = tmp_path / "annotations/train" / f"{Path(image).stem}.png"
        Image.fromarray(labels).save(mask)
    (tmp_path / "images/train/Thumbs.db").write_text("not an image")
    names = [f"class {i}" for i in range(11)]
    (tmp_path / "classes.txt").write_text("\r\n".join(names) + "\n\n", encoding="utf-8-sig")
    config = DataConfig(name="folder", layout="folder", root=str(tmp_path), ignore_index=11)
    files = open_split(config, "train")
    assert files.ids == ["train/a ö", "train/b", "train/c"]
    assert files.classes == names
    assert files[0][1].flatten().tolist() == [*range(11), 255]

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
