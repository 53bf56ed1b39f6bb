"""The drawn sample set: what is drawn, and how it comes to lie on disk."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn.data import shapes

VOID = 255
SIZES = {(128, 128), (128, 160), (160, 128), (117, 149), (144, 112)}


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    """The first 150 scenes of train, as they are drawn."""
    return [shapes.draw("train", index) for index in range(150)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole set on disk, drawn once. Tests must not change it."""
    return shapes.prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of five scenes, for the tests that draw it anew."""
    monkeypatch.setattr(shapes, "COUNTS", {"train": 3, "val": 2})


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """What a redrawing would change: inode and time of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


def test_a_scene_is_a_function_of_split_and_index() -> None:
    for split, index in (("train", 0), ("train", 479), ("val", 0)):
        once, again = shapes.draw(split, index), shapes.draw(split, index)
        np.testing.assert_array_equal(once[0], again[0])
        np.testing.assert_array_equal(once[1], again[1])
    masks = [
        shapes.draw(split, index)[1].tobytes() for split in ("train", "val") for index in (0, 1)
    ]
    assert len(set(masks)) == 4


def test_a_scene_has_the_promised_shape_and_labels(scenes) -> None:
    for image, mask in scenes:
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == (*mask.shape, 3)
        assert set(np.unique(mask)) <= {*range(len(shapes.CLASSES)), VOID}
        assert 1 <= len(set(np.unique(mask)) - {0, VOID}) <= 6
    assert {mask.shape for _, mask in scenes} == SIZES


def test_every_class_has_its_share(scenes) -> None:
    pixels = np.sum([np.bincount(mask.ravel(), minlength=256) for _, mask in scenes], axis=0)
    share = pixels / pixels.sum()
    assert 0.6 < share[0] < 0.85
    assert 0.02 < share[VOID] < 0.08
    assert (share[1 : len(shapes.CLASSES)] > 0.008).all()
    for label in range(1, len(shapes.CLASSES)):
        assert np.mean([(mask == label).any() for _, mask in scenes]) > 0.4


def test_void_parts_every_object_from_the_rest(scenes) -> None:
    for _, mask in scenes:
        labels = mask.astype(int)
        for one, other in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
            touching = (one != other) & (one != VOID) & (other != VOID)
            assert not touching.any()


def test_objects_stand_out_from_the_background(scenes) -> None:
    """They are the saturated part of a scene: colour finds them, only shape tells them apart."""
    for image, mask in scenes:
        spread = np.ptp(image.astype(int), axis=2)
        assert np.median(spread[(mask > 0) & (mask != VOID)]) > 1.5 * np.median(spread[mask == 0])


def test_colour_alone_does_not_tell_the_class(scenes) -> None:
    """The hue nearest to a pixel's own names its class often, and is wrong often enough."""
    right = total = 0
    for image, mask in scenes[:60]:
        inside = (mask > 0) & (mask != VOID)
        hue = np.asarray(Image.fromarray(image).convert("HSV"))[..., 0][inside] / 256
        nearest = np.round(hue * len(shapes.HUES)).astype(int) % len(shapes.HUES)
        named = np.array([shapes.CLASSES.index(name) for name in shapes.HUES])[nearest]
        right, total = right + int((named == mask[inside]).sum()), total + int(inside.sum())
    assert 0.5 < right / total < 0.95


@pytest.mark.parametrize(
    ("name", "x", "y", "expected"),
    [
        ("disk", 3.0, 4.0, -15.0),
        ("disk", 0.0, 23.0, 3.0),
        ("square", 0.0, 0.0, -20 / 2**0.5),  # half the side of a square of half-diagonal 20
        ("square", 23.0, 0.0, 3.0),  # off a corner
        ("triangle", 0.0, 0.0, -10.0),  # the inner circle's radius is half the outer's
        ("triangle", -13.0, 0.0, 3.0),  # off the middle of a side
        ("ring", 0.0, 0.0, 16.0),
        ("ring", 0.0, -18.0, -2.0),
        ("star", 22.0, 0.0, 2.0),  # off a point
        ("cross", 10.0, 0.0, -2.0),
        ("cross", 0.0, 21.0, 1.0),  # a round end reaches the radius
        ("cross", 8.0, 8.0, 6.0),
        ("bolt", 0.0, 0.0, -2.0),
    ],
)
def test_signed_distances(name: str, x: float, y: float, expected: float) -> None:
    """By hand, for radius 20 and stroke 4."""
    d = shapes._distance(name, np.array([[x]]), np.array([[y]]), radius=20.0, stroke=4.0)
    assert d.item() == pytest.approx(expected)


@pytest.mark.parametrize("name", shapes.CLASSES[1:])
def test_distances_are_true_and_no_object_outgrows_its_radius(name: str) -> None:
    """A distance changes by at most a pixel a pixel, and is positive beyond the radius."""
    y, x = np.mgrid[-40:41, -40:41].astype(float)
    d = shapes._distance(name, x, y, radius=30.0, stroke=5.0)
    assert (d < 0).sum() > 300
    assert (d[np.hypot(x, y) > 30.01] > 0).all()
    for axis in (0, 1):
        assert np.abs(np.diff(d, axis=axis)).max() <= 1 + 1e-9


@pytest.mark.parametrize(
    ("split", "index", "message"),
    [("test", 0, "split must be one of train, val, got 'test'"), ("val", -1, "index must be >= 0")],
)
def test_draw_refuses(split: str, index: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes.draw(split, index)


def test_the_set_lies_on_disk_as_voc_does(whole: Path) -> None:
    ids = {
        split: (whole / "ImageSets/Segmentation" / f"{split}.txt").read_text().splitlines()
        for split in ("train", "val", "trainval")
    }
    assert (len(ids["train"]), len(ids["val"])) == (480, 96)
    assert ids["trainval"] == ids["train"] + ids["val"]
    assert len(set(ids["trainval"])) == 576
    for part, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
        names = {path.name for path in (whole / part).iterdir()}
        assert names == {name + suffix for name in ids["trainval"]}


@pytest.mark.parametrize(("split", "index"), [("train", 7), ("val", 95)])
def test_files_hold_what_is_drawn(whole: Path, split: str, index: int) -> None:
    name = (whole / f"ImageSets/Segmentation/{split}.txt").read_text().splitlines()[index]
    image, mask = shapes.draw(split, index)
    with Image.open(whole / "SegmentationClass" / f"{name}.png") as stored:
        assert stored.mode == "P"
        np.testing.assert_array_equal(np.asarray(stored), mask)
    with Image.open(whole / "JPEGImages" / f"{name}.jpg") as stored:
        assert stored.mode == "RGB"
        assert np.abs(np.asarray(stored).astype(int) - image).mean() < 8


def test_masks_bear_vocs_colours(whole: Path) -> None:
    with Image.open(next((whole / "SegmentationClass").iterdir())) as stored:
        palette = np.reshape(stored.getpalette(), (-1, 3))
    assert palette[:9].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128],
        [128, 0, 128], [0, 128, 128], [128, 128, 128], [64, 0, 0],
    ]  # fmt: skip
    assert palette[20].tolist() == [0, 64, 128]  # Pascal VOC's tvmonitor
    assert palette[VOID].tolist() == [224, 224, 192]


def test_a_whole_set_is_not_drawn_again(whole: Path) -> None:
    before = state(whole)
    assert shapes.prepare(whole.parent, lambda done, total: pytest.fail("drawn again")) == whole
    assert state(whole) == before


@pytest.mark.usefixtures("few")
def test_progress_is_told_of_every_image(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    folder = shapes.prepare(tmp_path / "not" / "yet", lambda *pair: told.append(pair))
    assert folder == tmp_path / "not" / "yet" / "shapes"
    assert told == [(done, 5) for done in range(1, 6)]
    assert os.listdir(folder.parent) == ["shapes"]


@pytest.mark.usefixtures("few")
def test_an_old_version_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shapes.prepare(tmp_path)
    (folder / "JPEGImages" / "old.jpg").touch()
    before = state(folder)
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    assert shapes.prepare(tmp_path) == folder
    after = state(folder)
    assert set(before) - set(after) == {"JPEGImages/old.jpg"}
    assert all(before[name] != after[name] for name in after)
    assert os.listdir(tmp_path) == ["shapes"]


@pytest.mark.usefixtures("few")
def test_a_set_with_missing_files_is_replaced(tmp_path: Path) -> None:
    folder = shapes.prepare(tmp_path)
    (folder / "SegmentationClass" / "val_0001.png").unlink()
    shapes.prepare(tmp_path)
    assert (folder / "SegmentationClass" / "val_0001.png").is_file()
    assert os.listdir(tmp_path) == ["shapes"]


@pytest.mark.usefixtures("few")
def test_a_leftover_without_marker_is_no_set_and_is_kept(tmp_path: Path) -> None:
    leftover = tmp_path / "shapes" / "JPEGImages" / "train_0000.jpg"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"somebody's")
    with pytest.warns(UserWarning, match=re.escape(f"{tmp_path / 'shapes'} was no set of shapes")):
        folder = shapes.prepare(tmp_path)
    assert len(os.listdir(folder / "JPEGImages")) == 5
    (aside,) = (path for path in tmp_path.iterdir() if path != folder)
    assert (aside / "JPEGImages" / "train_0000.jpg").read_bytes() == b"somebody's"


@pytest.mark.usefixtures("few")
def test_a_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        if done == 3:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        shapes.prepare(tmp_path, fail)
    assert os.listdir(tmp_path) == []
    assert len(os.listdir(shapes.prepare(tmp_path) / "JPEGImages")) == 5


@pytest.mark.usefixtures("few")
def test_a_run_that_is_killed_leaves_no_set_in_place(tmp_path: Path) -> None:
    """The process ends without cleaning up, half-way; the next one draws a whole set."""
    code = f"""
import os
from pathlib import Path
from fcn.data import shapes
shapes.COUNTS = {{"train": 3, "val": 2}}
shapes.prepare(Path({str(tmp_path)!r}), lambda done, total: os._exit(9) if done == 3 else None)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not (tmp_path / "shapes").exists()
    assert len(os.listdir(shapes.prepare(tmp_path) / "JPEGImages")) == 5


@pytest.mark.usefixtures("few")
def test_runs_at_the_same_time_do_not_break_each_other(tmp_path: Path) -> None:
    """All four have drawn their last image before any may put its set into place."""
    barrier = threading.Barrier(4, timeout=30)
    results: list[int] = []

    def meet(done: int, total: int) -> None:
        if done == total:
            barrier.wait()

    def work() -> None:
        results.append(len(os.listdir(shapes.prepare(tmp_path, meet) / "JPEGImages")))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [5] * 4
    assert os.listdir(tmp_path) == ["shapes"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        shapes.prepare(tmp_path)


@pytest.mark.usefixtures("few")
def test_a_root_that_is_a_file_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        shapes.prepare(tmp_path / "file")
