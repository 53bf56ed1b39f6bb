import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fcn.config import ConfigError
from fcn.inference.checkpoint import FORMAT
from fcn.inference.jobs import Job, find_images, is_done, plan

STAMP = {"checkpoint": "abc", "precision": "32-true", "flip": False, "scales": [1.0]}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/ below the working folder, with sub-folders, and things that are no photographs."""
    monkeypatch.chdir(tmp_path)
    names = ["b.JPG", "a.jpeg", "two words.png", "sub/a.tif", "sub/deep/a.b.webp"]
    for name in [*names, "notes.txt", "paper.pdf", ".hidden.jpg", ".cache/c.jpg", "masks/b.png"]:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return Path("photos")


def named(source: str, output: str, lines: str = "") -> dict[str, str]:
    images = find_images(source, Path(output), lines.splitlines(keepends=True))
    return {str(path): str(name) for path, name in images.items()}


def test_a_folder_is_every_image_below_it_but_what_was_written_there(photos: Path) -> None:
    assert named("photos", "photos/masks") == {
        "photos/a.jpeg": "a",
        "photos/b.JPG": "b",
        "photos/sub/a.tif": "sub/a",
        "photos/sub/deep/a.b.webp": "sub/deep/a.b",
        "photos/two words.png": "two words",
    }
    assert "photos/masks/b.png" in named("photos", "elsewhere")
    (photos / "link").symlink_to("masks")
    assert "photos/masks/b.png" not in named("photos", "photos/link")
    assert named("photos/sub", "photos") == {
        "photos/sub/a.tif": "a",
        "photos/sub/deep/a.b.webp": "deep/a.b",
    }


def test_a_pattern_keeps_the_folders_that_its_wildcards_stand_for(photos: Path) -> None:
    assert named("photos/**/a*", "out") == {
        "photos/a.jpeg": "a",
        "photos/sub/a.tif": "sub/a",
        "photos/sub/deep/a.b.webp": "sub/deep/a.b",
    }
    assert named("photos/*/*.tif", "out") == {"photos/sub/a.tif": "sub/a"}
    absolute = str(photos.resolve() / "*.png")
    assert list(named(absolute, "out").values()) == ["two words"]
    assert "photos/masks/b.png" not in named("photos/**", "photos/masks")


def test_a_file_and_a_list_go_by_their_own_names(photos: Path) -> None:
    assert named("photos/sub/a.tif", "out") == {"photos/sub/a.tif": "a"}
    assert named("-", "out", "photos/b.JPG\r\n\nphotos/two words.png\nphotos/b.JPG\n") == {
        "photos/b.JPG": "b",
        "photos/two words.png": "two words",
    }


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("nowhere", "out", "input=nowhere: no such file or folder"),
        ("photos/*.xyz", "out", r"input=photos/\*\.xyz: no image there"),
        ("-", "out", "no paths on standard input"),
        ("photos", "photos/../photos", "is the input folder itself"),
    ],
)
def test_no_images_are_an_error(photos: Path, source: str, output: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        named(source, output)


def test_every_image_has_its_own_files() -> None:
    images = {Path("x/a.b.jpg"): Path("a.b"), Path("x/s/c.png"): Path("s/c")}
    first, second = plan(images, Path("out"), overlays=True, probabilities=True)
    assert [str(path) for path in first.outputs] == [
        "out/overlays/a.b.png",
        "out/a.b.npz",
        "out/a.b.png",
    ]
    assert second.mask == Path("out/s/c.png")
    (bare, _) = plan(images, Path("out"), overlays=False, probabilities=False)
    assert bare.outputs == [Path("out/a.b.png")]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"x/a.jpg": "a", "x/a.png": "a"}, "x/a.jpg and x/a.png would both be written to out/.*a"),
        ({"x/a.jpg": "a", "y/a.jpg": "a"}, "x/a.jpg and y/a.jpg would both be written"),
        ({"x/overlays/a.jpg": "overlays/a", "x/a.jpg": "a"}, "both be .* out/overlays/a.png"),
        ({"out/a.png": "a"}, "out/a.png is an image to be read; choose another output"),
        ({"x/../out/a.png": "a"}, "out/a.png is an image to be read"),
    ],
)
def test_no_image_is_written_over(images: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(
            {Path(image): Path(name) for image, name in images.items()},
            Path("out"),
            overlays=True,
            probabilities=False,
        )


def written(folder: Path, stamp: object = STAMP) -> Job:
    """An image and all that is made of it, with a stamp."""
    job = Job(folder / "a.jpg", folder / "a.png", folder / "o.png", folder / "a.npz")
    Image.new("L", (4, 4)).save(job.image)
    about = PngInfo()
    about.add_text(FORMAT, json.dumps(stamp))
    for path in (job.mask, job.overlay):
        Image.new("L", (4, 4)).save(path, pnginfo=about)
    np.savez(folder / "a.npz", made_by=json.dumps(stamp))
    return job


def test_an_image_is_done_when_all_of_it_is_there_and_newer(tmp_path: Path) -> None:
    job = written(tmp_path)
    assert is_done(job, STAMP)
    for path in job.outputs:
        content = path.read_bytes()
        path.unlink()
        assert not is_done(job, STAMP)
        path.write_bytes(content)
    assert is_done(job, STAMP)
    later = job.mask.stat().st_mtime + 10
    os.utime(job.image, (later, later))
    assert not is_done(job, STAMP)
    job.image.unlink()
    assert not is_done(job, STAMP)  # for reading it to report


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_another_checkpoint_or_setting_made_is_refused(tmp_path: Path, which: int) -> None:
    job = written(tmp_path)
    path = job.outputs[which]
    mine = path.read_bytes()
    for difference in ({"checkpoint": "def"}, {"flip": True, "scales": [1.0, 2.0]}):
        written(tmp_path, STAMP | difference)
        others = path.read_bytes()
        written(tmp_path)
        path.write_bytes(others)
        words = f"{path} is made with another {', '.join(difference)}; choose another output, or"
        with pytest.raises(ConfigError, match=words):
            is_done(job, STAMP)
    for content in (mine[: len(mine) // 3], b"", b"something else"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"{path} is none of predict.py's; choose another"):
            is_done(job, STAMP)
