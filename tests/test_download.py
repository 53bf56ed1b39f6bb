"""Fetching from servers and archives of the tests; nothing leaves this machine."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy.io import savemat
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from fcn.config import ConfigError, DataConfig
from fcn.data import download
from fcn.data.dataset import DataError
from fcn.data.download import Archive, build_voc_aug, fetch
from fcn.data.layouts import open_split
from tests.conftest import TinyVOC

GONE = "http://127.0.0.1:9"  # the discard port: nothing listens
QUIET = Console(quiet=True)


class Server:
    """Serves `files` by their path."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                body = server.files.get(self.path)
                if body is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.http.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.http.shutdown()
    running.http.server_close()
    thread.join()


def packed(folder: Path, name: str, *more: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.add(folder, name)
        for member in more:
            archive.addfile(member)
    return stream.getvalue()


def md5(data: bytes) -> str:
    return f"md5:{hashlib.md5(data).hexdigest()}"


@pytest.fixture
def tar(tiny_voc: TinyVOC, server: Server, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An archive of the tiny data set in place of VOC2012's; the server has it."""
    data = packed(tiny_voc.folder, "TrainVal/VOCdevkit/VOC2012")
    server.files["/voc.tar"] = data
    use(monkeypatch, Archive("voc.tar", md5(data), download.VOC2012, (f"{server.url}/voc.tar",)))
    return data


def use(monkeypatch: pytest.MonkeyPatch, *archives: Archive) -> None:
    monkeypatch.setattr(download, "ARCHIVES", archives)


def config(root: Path, **more: str) -> DataConfig:
    return DataConfig("voc2012", root=str(root), folder="VOCdevkit/VOC2012", download=True, **more)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


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
    tiny_voc: TinyVOC, server: Server, tar: bytes, tmp_path: Path
) -> None:
    root, console = tmp_path / "new" / "data", Console(file=io.StringIO(), width=200)
    fetch(config(root), console)
    assert f"verified, {md5(tar)}" in console.file.getvalue()  # type: ignore[attr-defined]
    assert contents(root / "VOCdevkit" / "VOC2012") == contents(tiny_voc.folder)
    assert visible(root) == ["VOCdevkit"]
    fetch(config(root), QUIET)
    assert server.asked == ["/voc.tar"]


def test_mirrors_are_tried_in_order_and_every_failure_is_named(
    server: Server, tar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/bad.tar"] = tar[:-1] + b"x"
    urls = (f"{GONE}/voc.tar", f"{server.url}/no", f"{server.url}/bad.tar")
    archive = download.ARCHIVES[0]
    use(monkeypatch, replace(archive, urls=(*urls, f"{server.url}/voc.tar")))
    fetch(config(tmp_path / "data"), QUIET)
    assert server.asked == ["/no", "/bad.tar", "/voc.tar"]
    use(monkeypatch, replace(archive, urls=urls))
    with pytest.raises(DataError, match=r"voc\.tar could not be downloaded") as error:
        fetch(config(tmp_path / "none"), QUIET)
    for part in ("refused", "404", md5(server.files["/bad.tar"]), f"{tmp_path}/none/voc.tar"):
        assert part in str(error.value)
    assert visible(tmp_path / "none") == []


def test_an_archive_placed_by_hand_is_used_and_kept(
    server: Server, tar: bytes, tmp_path: Path
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
    server: Server, tar: bytes, tmp_path: Path, kind: str
) -> None:
    mirror = tmp_path / "a mirror"
    mirror.mkdir()
    (mirror / "voc.tar").write_bytes(tar)
    server.files["/mine/voc.tar"] = tar
    url = {
        "file": f"{mirror}/voc.tar",
        "folder": str(mirror),
        "address": f"{server.url}/mine/voc.tar",
        "address of a folder": f"{server.url}/mine/",
    }[kind]
    fetch(config(tmp_path / "data", url=url), QUIET)
    assert visible(tmp_path / "data") == ["VOCdevkit"]
    assert (mirror / "voc.tar").read_bytes() == tar
    with pytest.raises(DataError, match=r"none\.tar"):
        fetch(config(tmp_path / "other", url=str(mirror / "none.tar")), QUIET)


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
def test_another_archive_needs_its_checksum(
    server: Server, tar: bytes, tmp_path: Path, algorithm: str
) -> None:
    other = tar + bytes(512)
    server.files["/mine.tar"] = other
    data = config(tmp_path / "data", url=f"{server.url}/mine.tar")
    with pytest.raises(DataError, match=f"data.checksum={md5(other)}"):
        fetch(data, QUIET)
    checksum = f"{algorithm}:{hashlib.new(algorithm, other).hexdigest()}"
    fetch(replace(data, checksum=checksum), QUIET)
    assert visible(tmp_path / "data") == ["VOCdevkit"]


def test_only_official_data_can_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data=folder cannot be downloaded"):
        fetch(DataConfig("folder", layout="folder", root=str(tmp_path)), QUIET)
    sbd = DataConfig("sbd", layout="sbd", root=str(tmp_path), url="x.tar")
    with pytest.raises(ConfigError, match="needs 2 archives"):
        fetch(sbd, QUIET)
    fetch(DataConfig("shapes", layout="shapes", root=str(tmp_path)), QUIET)  # nothing to do


def test_unsuitable_archives_leave_nothing(
    tiny_voc: TinyVOC, server: Server, tar: bytes, tmp_path: Path
) -> None:
    above = tarfile.TarInfo("../outside.txt")
    cases = [
        (b"not a tar file" * 100, "cannot be unpacked"),
        (tar[: len(tar) // 2], "cannot be unpacked"),
        (packed(tiny_voc.folder, "elsewhere"), "does not hold VOCdevkit/VOC2012"),
        (packed(tiny_voc.folder, "VOCdevkit/VOC2012", above), "outside"),
    ]
    for data, words in cases:
        server.files["/mine.tar"] = data
        url = f"{server.url}/mine.tar"
        with pytest.raises(DataError, match=rf"voc\.tar: .*{words}"):
            fetch(config(tmp_path / "data", url=url, checksum=md5(data)), QUIET)
        assert visible(tmp_path / "data") == ["voc.tar"]
        (tmp_path / "data" / "voc.tar").unlink()
    assert not (tmp_path / "data" / "outside.txt").exists()


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


def test_voc_aug_has_vocs_masks_and_sbds_for_the_rest(both: tuple[Path, Path]) -> None:
    voc2012, _ = both
    data = DataConfig("voc_aug", root=str(voc2012.parents[1]), folder="VOCdevkit/VOC2012")
    data.masks = "SegmentationClassAug"
    fetch(data, QUIET)  # both archives are there: it only builds
    train, val = open_split(data, "trainaug"), open_split(data, "val")
    assert train.ids == ["s0", "s1", "t0", "t1", "t2", "t3"]  # without v0, which is in val
    assert [int(train[i][1].max()) for i in (0, 1)] == [20, 18]
    with Image.open(voc2012 / "SegmentationClassAug" / "s0.png") as mask:
        assert mask.mode == "P"
    for pair in (*train.pairs[2:], *val.pairs):
        own = voc2012 / "SegmentationClass" / f"{pair.id}.png"
        with pair.mask.open("rb") as file:
            assert file.read() == own.read_bytes()
    fetch(data, QUIET)


def test_an_existing_list_of_trainaug_is_kept(both: tuple[Path, Path]) -> None:
    listing = both[0] / "ImageSets" / "Segmentation" / "trainaug.txt"
    listing.write_text("t0\n")
    build_voc_aug(*both, QUIET)
    assert listing.read_text() == "t0\n"


def test_a_damaged_mask_leaves_voc_aug_unbuilt(both: tuple[Path, Path]) -> None:
    voc2012, dataset = both
    (dataset / "cls" / "s0.mat").write_bytes(b"")
    with pytest.raises(DataError, match=r"s0\.mat: unreadable mask"):
        build_voc_aug(voc2012, dataset, QUIET)
    assert not (voc2012 / "SegmentationClassAug").exists()


def test_official_lists_must_give_10582_images(tmp_path: Path) -> None:
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    counts = {"ImageSets/Segmentation/train": 1464, "ImageSets/Segmentation/val": 1449}
    counts |= {"train": 8498, "val": 2857}
    for number, (name, count) in enumerate(counts.items()):
        listed = "".join(f"{number}_{i}\n" for i in range(count))  # nothing in common
        (tmp_path / f"{name}.txt").write_text(listed)
    with pytest.raises(DataError, match="12819 images for trainaug instead of 10582"):
        build_voc_aug(tmp_path, tmp_path, QUIET)
