"""Which files of a folder are images: links, names in two spellings, and what is left out."""

import re
from pathlib import Path

import pytest

from fcn.data.files import HINTS, finder, is_image, unread_note, walk


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_linked_folders_are_walked_once_and_loops_end(tmp_path: Path) -> None:
    set_, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    touch(set_ / "own.jpg", set_ / "day0/a.jpg", elsewhere / "b.jpg", elsewhere / "deep/c.jpg")
    links = {
        set_ / "day1": elsewhere,
        set_ / "again": set_ / "day0",  # is walked as day0
        set_ / "day0/up": set_,  # a loop
        elsewhere / "deep/back": elsewhere,  # a loop outside
        elsewhere / "deep/set": set_,
        set_ / "single.jpg": elsewhere / "b.jpg",
        set_ / "broken.jpg": tmp_path / "nowhere.jpg",
    }
    for link, target in links.items():
        link.symlink_to(target)
    found = [str(path.relative_to(set_)) for path in walk(set_)]
    assert found == [
        "broken.jpg", "day0/a.jpg", "day1/b.jpg", "day1/deep/c.jpg", "own.jpg", "single.jpg",
    ]  # fmt: skip
    outside = [path.name for path in walk(set_ / "day1")]
    assert outside == ["b.jpg", "c.jpg", "broken.jpg", "a.jpg", "own.jpg", "single.jpg"]


LEFTOVERS = [
    ".DS_Store", "Thumbs.db", "desktop.ini", "._photo.HEIC", ".hidden.dng", "labels.txt", "LICENSE",
    "via.json", "IMG_1.AAE", "map.tfw",
]  # fmt: skip


def test_what_systems_and_tools_leave_behind_raises_no_alarm() -> None:
    assert not any(map(is_image, map(Path, LEFTOVERS)))
    assert not unread_note(map(Path, [*LEFTOVERS, "a.jpg"]))


@pytest.mark.parametrize("suffix", [".dng", ".NII", ".mp4", ".SVG", ".npy", ".zip"])
def test_known_formats_that_are_not_read_are_named_with_a_remedy(suffix: str) -> None:
    note = unread_note([Path(f"a{suffix}"), Path(f"b{suffix}"), Path("c.jpg")])
    assert note == f"2 files left out: 2 {suffix} ({HINTS[suffix.lower()]})"


def test_unknown_formats_are_counted_too() -> None:
    paths = [Path(name) for name in ("a.xyz", "b.mp4", "c.jpg", "d.MP4", "e.mp4", "f.txt")]
    note = unread_note(paths)
    counts = re.findall(r"(\d+) (files|\.\w+)", note)
    assert counts == [("4", "files"), ("1", ".MP4"), ("2", ".mp4"), ("1", ".xyz")]


def test_images_are_what_pillow_decodes() -> None:
    for name in ("a.jpg", "A.JPEG", "b.TIFF", "c.webp", "d.gif", "e.pgm", "f.jp2"):
        assert is_image(Path(name))
    assert not any(is_image(Path(name)) for name in ("a.mpg", "b.h5", "c.pdf", "d", ".jpg"))


def test_names_are_the_same_composed_or_decomposed(tmp_path: Path) -> None:
    composed, decomposed = "im_K\u00f6ln.png", "im_Ko\u0308ln.png"
    touch(tmp_path / decomposed)
    find = finder()
    assert find(tmp_path / composed) == tmp_path / decomposed
    assert find(tmp_path / decomposed) == tmp_path / decomposed
    for missing in (tmp_path / "\u00fc.png", tmp_path / "none" / "\u00fc.png", tmp_path / "a.png"):
        assert find(missing) == missing
