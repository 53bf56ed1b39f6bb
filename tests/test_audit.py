"""Damaged data, one kind at a time: named in the report, and never let into training silently."""

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn.config import DataConfig, RecipeConfig
from fcn.data.audit import Audit, audit, summary
from fcn.data.datamodule import SegmentationData
from fcn.data.reading import DataError, read_image
from tests.conftest import TinyVOC


def look(data: TinyVOC, processes: int = 1) -> Audit:
    return audit(data.config(), ["train", "val"], processes)


def read_all(data: TinyVOC) -> None:
    """What training does with the files: opens both splits, reads every image and mask."""
    splits = SegmentationData(data.config(), RecipeConfig("test", max_steps=1), seed=0)
    for files in (splits.train, splits.val):
        files.sizes()
        for index in range(len(files)):
            files[index]


def bomb(path: Path, side: int = 30_000) -> None:
    """A PNG whose header promises side x side pixels, and whose data hold one row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side + 1))
    path.unlink(missing_ok=True)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def truncated_jpeg(d: TinyVOC) -> str:
    d.image("t1").write_bytes(d.image("t1").read_bytes()[:-400])
    return r"t1\.jpg: unreadable image \(.+\); replace it or take it off the list"


def zero_byte_png(d: TinyVOC) -> str:
    d.mask("t1").write_bytes(b"")
    return r"t1\.png: unreadable mask \(empty file\); replace it or take it off"


def rgb_mask(d: TinyVOC) -> str:
    Image.new("RGB", (64, 48)).save(d.mask("t1"))
    return r"t1\.png: a mask must be a palette or grey 8-bit .* is RGB; save it as such"


def mask_of_another_size(d: TinyVOC) -> str:
    Image.new("L", (48, 64)).save(d.mask("v1"))
    return r"v1\.png: mask is 48 x 64 but its image .*v1\.jpg is 64 x 48; they must be of one size"


def label_37(d: TinyVOC) -> str:
    Image.new("L", (64, 48), 37).save(d.mask("t3"))
    return r"t3\.png: label 37 is out of range: 3 classes are 0\.\.2, .*\(data\.classes"


def missing_mask(d: TinyVOC) -> str:
    d.mask("v0").unlink()
    return r"v0\.png: mask not found; put it there or take it off the list"


def missing_image(d: TinyVOC) -> str:
    d.image("t0").unlink()
    return r"t0\.jpg: image not found; put it there or take it off the list"


def duplicated_id(d: TinyVOC) -> str:
    d.listing("train").write_text("t0\nt1\nt2\nt3\nt1\n")
    return r"t1 is listed twice; a list must name each image once"


def one_id_in_both_splits(d: TinyVOC) -> str:
    d.listing("val").write_text("v0\nv1\nt2\n")
    return r"(?=.*t2).*in both .*train.* and .*val.*; take (it|them) off one of the lists"


def one_image_under_two_ids(d: TinyVOC) -> str:
    d.image("v1").write_bytes(d.image("t3").read_bytes())
    return r"(?=.*v1\.jpg)(?=.*t3\.jpg).*take (it|them) off one of the lists"


def empty_list(d: TinyVOC) -> str:
    d.listing("train").write_text("\n\n")
    return r"train\.txt\): no images listed; name one a line"


def no_list(d: TinyVOC) -> str:
    d.listing("val").unlink()
    return r"val\.txt: no such list; splits there: train"


def dangling_link(d: TinyVOC) -> str:
    d.image("t2").unlink()
    d.image("t2").symlink_to(d.root / "gone.jpg")
    return r"t2\.jpg: image not found \(a symbolic link to .*gone\.jpg, which is gone\); put it"


def folder_named_like_an_image(d: TinyVOC) -> str:
    d.image("t2").unlink()
    d.image("t2").mkdir()
    return r"t2\.jpg: unreadable image \(Is a directory\); replace it or take it off the list"


def decompression_bomb(d: TinyVOC) -> str:
    bomb(d.image("t2"))
    return r"t2\.jpg: image of more than 89,478,485 pixels, too large to read; scale it down"


def small_bomb(d: TinyVOC) -> str:
    """Of a size at which Pillow only warns."""
    bomb(d.image("v0"), 10_000)
    return r"v0\.jpg: image of more than 89,478,485 pixels, too large to read; scale it down"


def bomb_of_a_mask(d: TinyVOC) -> str:
    bomb(d.mask("v0"))
    return r"v0\.png: mask of more than 89,478,485 pixels, too large to read; scale it down"


DAMAGES = [
    truncated_jpeg, zero_byte_png, rgb_mask, mask_of_another_size, label_37, missing_mask,
    missing_image, duplicated_id, one_id_in_both_splits, one_image_under_two_ids, empty_list,
    no_list, dangling_link, folder_named_like_an_image, decompression_bomb, small_bomb,
    bomb_of_a_mask,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_damage_is_reported_and_refused(
    tiny_voc: TinyVOC, damage: Callable[[TinyVOC], str]
) -> None:
    message = damage(tiny_voc)
    (problem,) = look(tiny_voc).problems  # it, and nothing else
    assert re.search(message, problem), problem
    with pytest.raises(DataError) as refused:
        read_all(tiny_voc)
    assert re.search(message, str(refused.value)), refused.value


def crlf_and_blank_lines(d: TinyVOC) -> None:
    d.listing("train").write_bytes(b"\xef\xbb\xbft0\r\n\r\n t1 \r\nt2\r\nt3\r\n\r\n")


def spaces_and_other_letters(d: TinyVOC) -> None:
    d.image("t1").rename(d.image("ein Bär, 熊"))
    d.mask("t1").rename(d.mask("ein Bär, 熊"))
    d.listing("train").write_text("t0\nein Bär, 熊\nt2\nt3\n", encoding="utf-8")


def symbolic_links(d: TinyVOC) -> None:
    for path in (d.image("t1"), d.mask("t1")):
        path.rename(moved := d.root / path.name)
        path.symlink_to(moved)


@pytest.mark.parametrize("oddity", [crlf_and_blank_lines, spaces_and_other_letters, symbolic_links])
def test_odd_but_sound_data_pass(tiny_voc: TinyVOC, oddity: Callable[[TinyVOC], None]) -> None:
    oddity(tiny_voc)
    found = look(tiny_voc)
    assert found.problems == []
    assert [len(split.usable) for split in found.splits] == [4, 2]
    read_all(tiny_voc)


def test_everything_wrong_is_named_at_once(tiny_voc: TinyVOC) -> None:
    """Many damages together, by one process and by two that are spawned: the same report."""
    messages = [
        damage(tiny_voc)
        for damage in (truncated_jpeg, label_37, missing_mask, dangling_link, mask_of_another_size)
    ]
    tiny_voc.listing("train").write_text("t0\nt1\nt2\n\nt3\nt0\nt0\nnone\n")
    messages += [
        "t0 is listed 3 times",
        r"none\.jpg: image not found",
        r"none\.png: mask not found",
    ]
    found = look(tiny_voc, 2)
    assert len(found.problems) == len(messages)
    for message in messages:
        assert sum(bool(re.search(message, p)) for p in found.problems) == 1, message
    assert found.problems == look(tiny_voc, 1).problems
    with pytest.raises(DataError, match="t0 is listed 3 times"):
        read_all(tiny_voc)


def test_the_same_pixels_in_another_file_are_found(tiny_voc: TinyVOC) -> None:
    with Image.open(tiny_voc.image("t3")) as image:
        image.save(tiny_voc.image("v1"), format="PNG")  # other bytes
    (problem,) = look(tiny_voc).problems
    assert re.search(r"v1\.jpg: in val, has the same pixels as .*t3\.jpg in train", problem)


def test_numbers_are_those_of_the_files(tiny_voc: TinyVOC) -> None:
    """Against the definitions, computed from all pixels at once."""
    Image.new("L", (40, 50), 255).save(tiny_voc.mask("t2"))
    found = look(tiny_voc)
    train = summary(found.splits[0])
    pixels = np.concatenate(
        [read_image(tiny_voc.image(i)).reshape(3, -1).numpy() / 255 for i in tiny_voc.ids["train"]],
        axis=1,
    )
    assert train["mean"] == pytest.approx(pixels.mean(1))
    assert train["std"] == pytest.approx(pixels.std(1))
    labels = [np.array(Image.open(tiny_voc.mask(i))) for i in tiny_voc.ids["train"]]
    assert train["pixels"] == pixels.shape[1]
    every = np.concatenate([mask.ravel() for mask in labels])
    assert train["void_share"] == pytest.approx((every == 255).mean())
    for k, row in enumerate(train["classes"]):
        assert row["pixels"] == (every == k).sum()
        assert row["images"] == sum(bool((mask == k).any()) for mask in labels)
    assert train["sizes"]["smallest"] == (40, 50)
    assert train["sizes"]["largest"] == (64, 48)
    assert train["sizes"]["commonest"] == [[40, 50, 2], [64, 48, 2]]
    assert found.warnings == [f"{tiny_voc.mask('t2')}: void alone; nothing to learn from"]


def test_a_folder_of_ones_own_is_seen_through(tmp_path: Path) -> None:
    """What the layout refuses at once is reported too: a lone image, two of one name."""
    for split, names in (("train", ("a.png", "b.png", "b.jpg", "C.PNG")), ("val", ("d.png",))):
        for part in ("images", "annotations"):
            (tmp_path / part / split).mkdir(parents=True)
        for number, name in enumerate(names):
            shade = 40 * number + (200 if split == "val" else 0)
            Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / "images" / split / name)
            mask = tmp_path / "annotations" / split / f"{Path(name).stem}.png"
            Image.new("L", (8, 8)).save(mask)
    (tmp_path / "annotations/train/a.png").unlink()
    data = DataConfig(
        "folder", layout="folder", root=str(tmp_path), classes=["none", "some"], num_workers=0
    )
    found = audit(data, ["train", "val"], 1)
    assert len(found.problems) == 2
    assert re.search(r"b\.png: b\.jpg has the same name", found.problems[0])
    assert re.search(r"annotations/train/a\.png: mask not found", found.problems[1])
    with pytest.raises(DataError, match=r"a\.png: no mask at"):
        SegmentationData(data, RecipeConfig("test", max_steps=1), seed=0)
