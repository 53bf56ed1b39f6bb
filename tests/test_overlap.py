from pathlib import Path
from typing import IO

import numpy as np
import pytest

from fcn.data import overlap
from fcn.data.files import Pair, SegmentationFiles
from fcn.data.overlap import SAMPLE, refuse_overlap, same_files
from fcn.data.reading import DataError


def pairs(folder: Path, contents: list[bytes]) -> list[Pair]:
    folder.mkdir()
    for index, content in enumerate(contents):
        (folder / f"{index}.jpg").write_bytes(content)
    return [Pair(f"{folder.name}{i}", folder / f"{i}.jpg", folder) for i in range(len(contents))]


def test_same_bytes_are_found_and_nothing_else(tmp_path: Path) -> None:
    """Files of one size, some alike but for one byte at the start, in the middle, at the end."""
    rng = np.random.default_rng(0)
    base = rng.bytes(5 * SAMPLE)
    middle = base[: 5 * SAMPLE // 2] + b"?" + base[5 * SAMPLE // 2 + 1 :]
    train = pairs(tmp_path / "t", [base, rng.bytes(5 * SAMPLE), b"", b"x", rng.bytes(100)])
    val = pairs(tmp_path / "v", [b"?" + base[1:], base[:-1] + b"?", middle, base, b"y", b"x"])
    found = {(one.id, other.id) for one, other in same_files(train, val)}
    assert found == {("t0", "v3"), ("t3", "v5")}
    assert same_files(train, val[:3]) == []


def test_only_files_that_may_be_the_same_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = pairs(tmp_path / "t", [bytes(n) for n in range(1, 200)])
    val = pairs(tmp_path / "v", [b"1" * n for n in (*range(300, 400), 7)])
    opened = []

    def opening(path: Path, mode: str) -> IO[bytes]:
        opened.append(path)
        return path.open(mode)

    monkeypatch.setattr(overlap, "open", opening, raising=False)
    assert same_files(train, val) == []
    assert sorted(opened) == [train[6].image, val[100].image]


def test_overlap_is_refused_with_both_names(tmp_path: Path) -> None:
    train = SegmentationFiles(pairs(tmp_path / "t", [b"a", b"b"]), ["x", "y"], 255, "my train")
    val = SegmentationFiles(pairs(tmp_path / "v", [b"c", b"b"]), ["x", "y"], 255, "my val")
    with pytest.raises(DataError, match=r"1 images of my val .*my train .*v/1\.jpg as .*t/1\.jpg"):
        refuse_overlap(train, val)
    (tmp_path / "v" / "1.jpg").write_bytes(b"d")
    refuse_overlap(train, val)
    (tmp_path / "v" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"v/1\.jpg: image not found"):
        refuse_overlap(train, val)
