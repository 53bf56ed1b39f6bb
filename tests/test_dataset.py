"""Pairs of image and mask: what they become, and what is wrong with them, in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from fcn.data.dataset import Pair, SegmentationDataset, check_overlap, read_list, read_mask
from fcn.data.layouts import open_split
from fcn.dataset_info import DatasetInfo
from fcn.errors import DataError
from tests.conftest import TinyVOC


def test_items_are_the_files_as_tensors(tiny_voc: TinyVOC) -> None:
    train = open_split(tiny_voc.config(), "train")
    assert train.ids == ["t0", "t1", "t2", "t3"]
    image, target = train[1]
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 48, 64))
    with Image.open(tiny_voc.image("t1")) as file:
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(file))
    with Image.open(tiny_voc.mask("t1")) as file:
        assert np.array_equal(target, np.asarray(file))
    assert sorted(target.unique().tolist()) == [0, 2, 255]
    assert train.sizes() == [(40, 50), (64, 48)] * 2
    assert train.has_masks()


def test_ignored_pixels_become_255_from_any_label(tmp_path: Path) -> None:
    mask = Image.fromarray(np.array([[0, 1, 11], [11, 10, 0]], np.uint8))
    mask.putpalette(range(36))  # whose colours do not matter
    mask.save(path := tmp_path / "mask.png")
    assert read_mask(path, 11, 11).tolist() == [[0, 1, 255], [255, 10, 0]]
    assert read_mask(path, 12, 0).tolist() == [[255, 1, 11], [11, 10, 255]]


def test_the_masks_of_sbd_are_read_from_matlab_files(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2], [3, 255, 20]], np.uint8)
    savemat(path := tmp_path / "a.mat", {"GTcls": {"Segmentation": labels, "Other": 1.0}})
    assert read_mask(path, 21, 255).tolist() == labels.tolist()
    for damaged in ({"GTinst": labels}, {"GTcls": {"Segmentation": labels.astype(float)}}):
        savemat(path, damaged)
        with pytest.raises(DataError, match=r"a\.mat: unreadable mask"):
            read_mask(path, 21, 255)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


DAMAGES: dict[str, tuple[Callable[[TinyVOC], object], str]] = {
    "cut": (lambda d: cut(d.image("t1")), r"t1\.jpg: unreadable image"),
    "empty": (lambda d: d.mask("t1").write_bytes(b""), r"t1\.png: unreadable mask .*empty"),
    "text": (
        lambda d: d.image("t1").write_text("not an image"),
        r"t1\.jpg: unreadable image .*not an image",
    ),
    "colours": (
        lambda d: Image.new("RGB", (64, 48)).save(d.mask("t1")),
        r"t1\.png: a mask must be .* mode RGB",
    ),
    "size": (
        lambda d: Image.new("L", (5, 6)).save(d.mask("t1")),
        r"t1\.png: mask is 5 x 6 but its image .*t1\.jpg is 64 x 48; both must",
    ),
    "label": (
        lambda d: Image.new("L", (64, 48), 37).save(d.mask("t1")),
        r"t1\.png: label 37 is out of range for 3 classes \(0\.\.2.*check data\.classes",
    ),
    "label K": (
        lambda d: Image.new("L", (64, 48), 3).save(d.mask("t1")),
        r"t1\.png: label 3 .*is 3 your ignore label\? set data\.ignore_index=3",
    ),
    "no mask": (lambda d: d.mask("t1").unlink(), r"t1\.png: mask not found"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unusable_file_is_named_in_one_line(tiny_voc: TinyVOC, damage: str) -> None:
    change, message = DAMAGES[damage]
    train = open_split(tiny_voc.config(), "train")
    change(tiny_voc)
    with pytest.raises(DataError, match=message) as error:
        train[1]
    assert "\n" not in str(error.value)
    assert len(train[0]) == 2  # the others still work


def test_lists_may_have_any_line_endings_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbft0\r\n\r\n t1 \r\n")
    assert read_list(path) == ["t0", "t1"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"list\.txt: not UTF-8"):
        read_list(path)


def test_ids_must_be_there_and_unique(tiny_voc: TinyVOC) -> None:
    tiny_voc.listing("train").write_text("t0\nt1\nt0\nt2\nt2\nt2\n")
    with pytest.raises(DataError, match=r"t0 is listed 2 times.*and 1 more"):
        open_split(tiny_voc.config(), "train")
    problems = open_split(tiny_voc.config(), "train", strict=False).problems
    assert len(problems) == 2
    assert "t2 is listed 3 times" in problems[1]
    tiny_voc.listing("train").write_text("\n")
    with pytest.raises(DataError, match=r"train\.txt\): no images"):
        open_split(tiny_voc.config(), "train")


def test_the_fingerprint_depends_on_the_ids_and_their_order(tiny_voc: TinyVOC) -> None:
    one = open_split(tiny_voc.config(), "train").fingerprint()
    assert one == (  # printf 't0\nt1\nt2\nt3\n' | sha256sum
        "e43507e54282fd7da43866fa99b27d64a9c59bd384b83045d5bdff538042d599"
    )
    tiny_voc.listing("train").write_text("t1\nt0\nt2\nt3\n")
    assert one != open_split(tiny_voc.config(), "train").fingerprint()


def splits(root: Path, train: list[bytes], val: list[bytes]) -> list[SegmentationDataset]:
    """Two splits whose image files have the given contents."""
    made = []
    for name, contents in (("t", train), ("v", val)):
        paths = [root / f"{name}{index}.jpg" for index in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        pairs = [Pair(path.stem, path, path) for path in paths]
        made.append(SegmentationDataset(pairs, DatasetInfo(["a", "b"]), f"split {name}"))
    return made


def test_splits_that_share_an_image_are_an_error(tmp_path: Path, tiny_voc: TinyVOC) -> None:
    base = b"a" * 100
    train, val = splits(tmp_path, [base, b"b"], [b"?" + base[1:], base[:-1] + b"?", b"b"])
    with pytest.raises(DataError, match=r"v2\.jpg of split v is .* file as .*t1\.jpg of split t"):
        check_overlap(train, val)
    (tmp_path / "v2.jpg").write_bytes(b"d")
    check_overlap(train, val)
    (tmp_path / "v2.jpg").unlink()
    with pytest.raises(DataError, match=r"v2\.jpg: image not found"):
        check_overlap(train, val)
    tiny_voc.listing("val").write_text("v0\nt2\n")
    train, val = (open_split(tiny_voc.config(), split) for split in ("train", "val"))
    with pytest.raises(DataError, match=r"^t2 is in both tiny train .* and tiny val"):
        check_overlap(train, val)


def test_only_files_of_the_same_size_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = splits(tmp_path, [bytes(n) for n in range(1, 50)], [b"1" * 60, b"1" * 7])
    opened, own = [], Path.open
    monkeypatch.setattr(Path, "open", lambda p, mode: opened.append(p.name) or own(p, mode))
    check_overlap(train, val)
    assert sorted(opened) == ["t6.jpg", "v1.jpg"]
