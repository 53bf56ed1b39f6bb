"""Fetching from servers and archives of the tests; nothing leaves this machine."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy.io import savemat
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from fcn.config import DataConfig
from fcn.data import download
from fcn.data.download import Archive, fetch
from fcn.data.layouts import open_split
from fcn.errors import ConfigError, DataError
from tests.conftest import TinyVOC
from tests.export_files import contents
from tests.file_server import FileServer, serving

GONE = "http://127.0.0.1:9"  # the discard port: nothing listens
QUIET = Console(quiet=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as running:
        yield running


def packed(folder: Path, name: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.add(folder, name)
    return stream.getvalue()


def md5(data: bytes) -> str:
    return f"md5:{hashlib.md5(data).hexdigest()}"


@pytest.fixture
def tar(tiny_voc: TinyVOC, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An archive of the tiny data set in place of VOC2012's; the server has it."""
    data = packed(tiny_voc.folder, "TrainVal/VOCdevkit/VOC2012")
    (server.root / "voc.tar").write_bytes(data)
    archive = Archive("voc.tar", md5(data), download.VOC2012, (f"{server.url}/voc.tar",))
    monkeypatch.setattr(download, "ARCHIVES", (archive,))
    return data


def config(root: Path, **more: str) -> DataConfig:
    return DataConfig("voc2012", root=str(root), folder="VOCdevkit/VOC2012", download=True, **more)


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != ".download.lock")


def test_the_official_archives_are_those_of_torchvision() -> None:
    voc2012, voc2011, sbd = download.ARCHIVES
    for year, archive in (("2011", voc2011), ("2012", voc2012)):
        theirs = DATASET_YEAR_DICT[year]
        assert archive.file == theirs["filename"]
        assert archive.checksum == f"md5:{theirs['md5']}"
        assert theirs["base_dir"].endswith(str(archive.folder))
    assert (sbd.file, sbd.checksum) == (SBDataset.filename, f"md5:{SBDataset.md5}")
    assert all(url.endswith(archive.file) for archive in download.ARCHIVES for url in archive.urls)


def test_an_archive_is_downloaded_once_and_unpacked(
    tiny_voc: TinyVOC, server: FileServer, tar: bytes, tmp_path: Path
) -> None:
    root, console = tmp_path / "new" / "data", Console(file=io.StringIO(), width=200)
    fetch(config(root), console)
    assert f"verified, {md5(tar)}" in console.file.getvalue()  # type: ignore[attr-defined]
    assert contents(root / "VOCdevkit" / "VOC2012") == contents(tiny_voc.folder)
    assert visible(root) == ["VOCdevkit"]
    fetch(config(root), QUIET)
    assert server.asked == ["/voc.tar"]


def test_mirrors_are_tried_in_order_and_every_failure_is_named(
    server: FileServer, tar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tar[:-1] + b"x"
    (server.root / "bad.tar").write_bytes(bad)
    urls = (f"{GONE}/voc.tar", f"{server.url}/no", f"{server.url}/bad.tar")
    archive = download.ARCHIVES[0]
    working = replace(archive, urls=(*urls, f"{server.url}/voc.tar"))
    monkeypatch.setattr(download, "ARCHIVES", (working,))
    fetch(config(tmp_path / "data"), QUIET)
    assert server.asked == ["/no", "/bad.tar", "/voc.tar"]
    monkeypatch.setattr(download, "ARCHIVES", (replace(archive, urls=urls),))
    with pytest.raises(DataError, match=r"voc\.tar could not be downloaded") as error:
        fetch(config(tmp_path / "none"), QUIET)
    for part in ("refused", "404", md5(bad), f"{tmp_path}/none/voc.tar"):
        assert part in str(error.value)
    assert visible(tmp_path / "none") == []


def test_an_archive_placed_by_hand_is_used_and_kept(
    server: FileServer, tar: bytes, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "voc.tar").write_bytes(tar)
    fetch(config(root), QUIET)
    assert visible(root) == ["VOCdevkit", "voc.tar"]
    assert server.asked == []
    (tmp_path / "voc.tar").write_bytes(tar[:-1])
    with pytest.raises(DataError, match=r"voc\.tar: the checksum is .* instead of"):
        fetch(config(tmp_path), QUIET)
    assert (tmp_path / "voc.tar").read_bytes() == tar[:-1]


@pytest.mark.parametrize("kind", ["file", "folder", "address", "address of a folder"])
def test_data_url_replaces_the_addresses(
    server: FileServer, tar: bytes, tmp_path: Path, kind: str
) -> None:
    url = {
        "file": f"{server.root}/voc.tar",
        "folder": str(server.root),
        "address": f"{server.url}/voc.tar",
        "address of a folder": f"{server.url}/",
    }[kind]
    fetch(config(tmp_path / "data", url=url), QUIET)
    assert visible(tmp_path / "data") == ["VOCdevkit"]
    assert (server.root / "voc.tar").read_bytes() == tar
    with pytest.raises(DataError, match=r"none\.tar"):
        fetch(config(tmp_path / "other", url=f"{server.root}/none.tar"), QUIET)


def test_another_archive_needs_its_checksum(server: FileServer, tar: bytes, tmp_path: Path) -> None:
    other = tar + bytes(512)
    (server.root / "mine.tar").write_bytes(other)
    data = config(tmp_path / "data", url=f"{server.url}/mine.tar")
    with pytest.raises(DataError, match=f"data.checksum={md5(other)}"):
        fetch(data, QUIET)
    fetch(replace(data, checksum=f"sha256:{hashlib.sha256(other).hexdigest()}"), QUIET)
    assert visible(tmp_path / "data") == ["VOCdevkit"]


def test_only_official_data_can_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data=folder cannot be downloaded"):
        fetch(DataConfig("folder", layout="folder", root=str(tmp_path)), QUIET)
    fetch(DataConfig("shapes", layout="shapes", root=str(tmp_path)), QUIET)  # nothing to do


def test_unsuitable_archives_leave_nothing(
    tiny_voc: TinyVOC, server: FileServer, tar: bytes, tmp_path: Path
) -> None:
    cases = [
        (b"not a tar file" * 100, "cannot be unpacked"),
        (tar[: len(tar) // 2], "cannot be unpacked"),
        (packed(tiny_voc.folder, "elsewhere"), "does not hold VOCdevkit/VOC2012"),
    ]
    for data, words in cases:
        (server.root / "mine.tar").write_bytes(data)
        url = f"{server.url}/mine.tar"
        with pytest.raises(DataError, match=rf"voc\.tar: .*{words}"):
            fetch(config(tmp_path / "data", url=url, checksum=md5(data)), QUIET)
        assert visible(tmp_path / "data") == ["voc.tar"]
        (tmp_path / "data" / "voc.tar").unlink()


def test_voc_aug_has_vocs_masks_and_sbds_for_the_rest(tiny_voc: TinyVOC) -> None:
    """VOC2012 with t0..t3 and v0, v1; SBD with v0 too, with t1, and with two of its own."""
    root = tiny_voc.root
    voc2012, dataset = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    (dataset / "cls").mkdir(parents=True)
    (dataset / "train.txt").write_text("t1\ns1\n")
    (dataset / "val.txt").write_text("v0\ns0\n")
    for number, name in enumerate(("t1", "s1", "v0")):
        labels = np.full((50, 40), 17 + number, np.uint8)
        savemat(dataset / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": labels}})
    (dataset / "cls" / "s0.mat").write_bytes(b"")
    for name in ("s0", "s1"):
        Image.new("RGB", (40, 50)).save(tiny_voc.image(name))
    voc2012.parent.mkdir()
    tiny_voc.folder.rename(voc2012)
    data = DataConfig("voc_aug", root=str(root), folder="VOCdevkit/VOC2012")
    data.masks = "SegmentationClassAug"
    with pytest.raises(DataError, match=r"s0\.mat: unreadable mask"):
        fetch(data, QUIET)  # both archives are there: it only builds
    assert not (voc2012 / "SegmentationClassAug").exists()

    savemat(dataset / "cls" / "s0.mat", {"GTcls": {"Segmentation": np.full_like(labels, 20)}})
    fetch(data, QUIET)
    lists = voc2012 / "ImageSets" / "Segmentation"
    (lists / "trainaug.txt").unlink()  # as if the masks alone had been unpacked
    before = {path: path.read_bytes() for path in (voc2012 / "SegmentationClassAug").iterdir()}
    fetch(data, QUIET)  # another list is used
    assert not (lists / "trainaug.txt").exists()
    fetch(replace(data, train_split="trainaug"), QUIET)
    assert {path: path.read_bytes() for path in before} == before
    train, val = open_split(data, "trainaug"), open_split(data, "val")
    assert train.ids == ["s0", "s1", "t0", "t1", "t2", "t3"]  # without v0, which is in val
    assert [int(train[i][1].max()) for i in (0, 1)] == [20, 18]
    with Image.open(voc2012 / "SegmentationClassAug" / "s0.png") as mask:
        assert mask.mode == "P"
    for pair in (*train.pairs[2:], *val.pairs):
        own = voc2012 / "SegmentationClass" / f"{pair.id}.png"
        with pair.mask.open("rb") as file:
            assert file.read() == own.read_bytes()
