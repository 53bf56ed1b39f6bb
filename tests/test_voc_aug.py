from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fcn.config import DataConfig
from fcn.data import voc_aug
from fcn.data.datamodule import open_split
from fcn.data.reading import DataError
from tests.conftest import TinyVOC


@pytest.fixture
def both(tiny_voc: TinyVOC) -> tuple[Path, Path]:
    """VOC2012 with t0..t3 and v0, v1; SBD with v0 too, with t1, and with two of its own."""
    dataset = tiny_voc.root / "benchmark_RELEASE" / "dataset"
    (dataset / "cls").mkdir(parents=True)
    (dataset / "train.txt").write_text("t1\ns1\n")
    (dataset / "val.txt").write_text("v0\ns0\n")
    for number, name in enumerate(("t1", "s1", "v0", "s0")):
        labels = np.full((50, 40), 17 + number, np.uint8)
        savemat(dataset / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": labels}})
    for name in ("s0", "s1"):
        Image.new("RGB", (40, 50)).save(tiny_voc.image(name))
    (tiny_voc.root / "VOCdevkit").mkdir()
    tiny_voc.folder.rename(tiny_voc.root / "VOCdevkit" / "VOC2012")
    return tiny_voc.root / "VOCdevkit" / "VOC2012", dataset


def test_own_masks_where_there_are_and_sbds_for_the_rest(both: tuple[Path, Path]) -> None:
    voc2012, dataset = both
    steps: list[tuple[int, int]] = []
    voc_aug.build(voc2012, dataset, lambda done, total: steps.append((done, total)))
    assert voc_aug.is_built(voc2012)
    assert steps == [(done, 8) for done in range(1, 9)]
    data = DataConfig("voc_aug", root=str(voc2012.parents[1]), folder="VOCdevkit/VOC2012")
    data.masks = "SegmentationClassAug"
    train, val = open_split(data, "trainaug"), open_split(data, "val")
    assert train.ids == ["s0", "s1", "t0", "t1", "t2", "t3"]  # without v0, which is val's
    assert [int(train[i][1].max()) for i in (0, 1)] == [20, 18]
    with Image.open(train.pairs[0].mask) as mask:
        assert mask.mode == "P"
    for pair in (*train.pairs[2:], *val.pairs):
        own = voc2012 / "SegmentationClass" / pair.mask.name
        assert pair.mask.read_bytes() == own.read_bytes()


def test_nothing_that_was_there_is_lost(both: tuple[Path, Path]) -> None:
    voc2012, dataset = both
    listing = voc2012 / "ImageSets" / "Segmentation" / "trainaug.txt"
    listing.write_text("t0\n")
    voc_aug.build(voc2012, dataset)
    assert listing.read_text() == "t0\n"
    listing.unlink()
    with pytest.raises(DataError, match=r"trainaug\.txt: no such list, but .* put the list there"):
        voc_aug.build(voc2012, dataset)
    assert len(list((voc2012 / "SegmentationClassAug").iterdir())) == 8


def test_a_damaged_mask_leaves_nothing_half_made(both: tuple[Path, Path]) -> None:
    voc2012, dataset = both
    (dataset / "cls" / "s0.mat").write_bytes(b"")
    with pytest.raises(DataError, match=r"s0\.mat: unreadable mask"):
        voc_aug.build(voc2012, dataset)
    assert not voc_aug.is_built(voc2012)
    assert not list(voc2012.glob("*Aug*"))
