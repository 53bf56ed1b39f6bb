"""The sample data set: its pixels, its statistics, and where it is drawn."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn.config import DataConfig
from fcn.data import shapes
from fcn.data.layouts import open_split
from fcn.dataset_info import VOID
from fcn.errors import DataError

Scenes = list[tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    """The first 150 scenes of train."""
    return [shapes.draw("train", index) for index in range(150)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of five scenes, which is drawn quickly."""
    monkeypatch.setattr(shapes, "COUNTS", {"train": 3, "val": 2})


@pytest.mark.parametrize(
    ("split", "index", "sha256"),
    [
        ("train", 0, "e09995d9e006dad41805776de4abce43d3206ed0c4fb35501e9a7d2b58ad2b5c"),
        ("train", 479, "d4bdc2dcf86cfaca11080a757374025b78be6a925aadadcf7efa7139ca944717"),
        ("val", 0, "002588a17ae1c7a768bbd94d6d2b2df9a0b03054b172e20a246a0cc40fb65639"),
    ],
)
def test_version_2_has_these_pixels(split: str, index: int, sha256: str) -> None:
    image, mask = shapes.draw(split, index)
    assert shapes.VERSION == 2
    assert hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest() == sha256


def test_scenes_are_as_promised(scenes: Scenes) -> None:
    """Each has 1 to 6 objects, each surrounded by ignored pixels; every class has its share."""
    for image, mask in scenes:
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == (*mask.shape, 3)
        assert set(np.unique(mask)) <= {*range(len(shapes.CLASSES)), VOID}
        assert 1 <= len(set(np.unique(mask)) - {0, VOID}) <= 6
        for one, other in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            assert not ((one != other) & (one != VOID) & (other != VOID)).any()
    assert {mask.shape for _, mask in scenes} == set(shapes.IMAGE_SIZES)
    share = np.bincount(np.concatenate([mask.ravel() for _, mask in scenes]), minlength=256)
    share = share / share.sum()
    assert 0.6 < share[0] < 0.85
    assert 0.02 < share[VOID] < 0.08
    assert (share[1 : len(shapes.CLASSES)] > 0.008).all()
    for label in range(1, len(shapes.CLASSES)):
        assert np.mean([(mask == label).any() for _, mask in scenes]) > 0.4


def test_objects_stand_out_but_colour_alone_does_not_tell_their_class(scenes: Scenes) -> None:
    """The class whose hue is nearest to a pixel's own is often right, and often wrong."""
    named = np.array([shapes.CLASSES.index(name) for name in shapes.HUES])
    right = []
    for image, mask in scenes:
        inside, spread = (mask > 0) & (mask != VOID), np.ptp(image.astype(int), axis=2)
        assert np.median(spread[inside]) > 1.5 * np.median(spread[mask == 0])
        hue = np.asarray(Image.fromarray(image).convert("HSV"))[..., 0][inside] / 256
        nearest = np.round(hue * len(named)).astype(int) % len(named)
        right += (named[nearest] == mask[inside]).tolist()
    assert 0.5 < np.mean(right) < 0.95


@pytest.mark.parametrize(
    ("name", "x", "y", "expected"),
    [
        ("disk", 3.0, 4.0, -15.0),
        ("disk", 0.0, 23.0, 3.0),
        ("square", 0.0, 0.0, -20 / 2**0.5),  # half the side of a square of half-diagonal 20
        ("square", 23.0, 0.0, 3.0),  # from a corner
        ("triangle", 0.0, 0.0, -10.0),  # the inner circle's radius is half the outer's
        ("triangle", -13.0, 0.0, 3.0),  # from the middle of a side
        ("ring", 0.0, 0.0, 16.0),
        ("ring", 0.0, -18.0, -2.0),
        ("star", 22.0, 0.0, 2.0),  # from a point
        ("cross", 10.0, 0.0, -2.0),
        ("cross", 0.0, 21.0, 1.0),  # a round end reaches the radius
        ("cross", 8.0, 8.0, 6.0),
        ("bolt", 0.0, 0.0, -2.0),
    ],
)
def test_signed_distances_by_hand(name: str, x: float, y: float, expected: float) -> None:
    """For radius 20 and stroke 4."""
    d = shapes._distance(name, np.array([[x]]), np.array([[y]]), radius=20.0, stroke=4.0)
    assert d.item() == pytest.approx(expected)


@pytest.mark.usefixtures("few")
def test_the_set_has_the_layout_of_voc(tmp_path: Path) -> None:
    data = DataConfig("shapes", layout="shapes", root=str(tmp_path / "not" / "yet"))
    train, val = open_split(data, "train"), open_split(data, "val")
    assert train.ids == ["train_0000", "train_0001", "train_0002"]
    assert val.ids == ["val_0000", "val_0001"]
    assert open_split(data, "trainval").ids == train.ids + val.ids
    assert train.classes == list(shapes.CLASSES)
    image, mask = shapes.draw("val", 1)
    stored, target = val[1]
    assert np.array_equal(target, mask)
    assert np.abs(stored.permute(1, 2, 0).numpy().astype(int) - image).mean() < 8  # JPEG
    assert os.listdir(tmp_path / "not" / "yet") == ["shapes"]
    with Image.open(tmp_path / "not/yet/shapes/SegmentationClass/val_0001.png") as file:
        assert file.mode == "P"
        palette = np.reshape(file.getpalette(), (-1, 3))
    assert palette[[1, 20, 255]].tolist() == [[128, 0, 0], [0, 64, 128], [224, 224, 192]]


@pytest.mark.usefixtures("few")
def test_a_set_is_drawn_once_and_again_if_outdated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn() -> list[int]:
        return [path.stat().st_mtime_ns for path in sorted(folder.rglob("*.*"))]

    folder = shapes.prepare(tmp_path)
    before = drawn()
    assert shapes.prepare(tmp_path) == folder
    assert drawn() == before
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    shapes.prepare(tmp_path)
    assert all(new > old for new, old in zip(drawn(), before, strict=True))
    assert os.listdir(tmp_path) == ["shapes"]


@pytest.mark.usefixtures("few")
def test_another_process_that_was_faster_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, folder = Path.rename, tmp_path / "shapes"

    def late(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        shapes.prepare(tmp_path)  # the other process, in between
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    assert shapes.prepare(tmp_path) == folder
    assert len(list((folder / "JPEGImages").iterdir())) == 5
    assert os.listdir(tmp_path) == ["shapes"]


def test_nothing_is_drawn_into_the_data_of_a_user(tmp_path: Path) -> None:
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "mine.txt").touch()
    with pytest.raises(DataError, match=r"/shapes: not a sample drawn by data=shapes"):
        shapes.prepare(tmp_path)
    own = tmp_path / "own"
    for part in ("images", "annotations"):
        (own / part).mkdir(parents=True)
    with pytest.raises(DataError, match="add data=folder"):
        open_split(DataConfig("shapes", layout="shapes", root=str(own)), "train")
    assert sorted(os.listdir(own)) == ["annotations", "images"]


def test_a_root_that_cannot_be_written_is_named_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(image: Image.Image, path: Path, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match=rf"data\.root={tmp_path}: .*No space left"):
        shapes.prepare(tmp_path)
    assert os.listdir(tmp_path) == []
