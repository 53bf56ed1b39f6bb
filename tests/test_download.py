"""Fetching, against servers and archives of the test's own; nothing leaves this machine."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from fcn.checks import check_data
from fcn.config import ConfigError, DataConfig
from fcn.data import official
from fcn.data.reading import DataError
from tests.conftest import TinyVOC

GONE = "http://127.0.0.1:9"  # the discard port: nothing listens


class Server:
    """Serves files by name. `cut` drops each connection after so many bytes of a body."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []  # path, Range
        self.cut: int | None = None
        self.ranges = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                server.asked.append((self.path, wanted))
                body = server.files.get(self.path)
                if body is None:
                    self.send_error(404)
                    return
                start = int(wanted.removeprefix("bytes=")[:-1]) if wanted and server.ranges else 0
                if start and start >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                html = self.path.endswith(".html")
                self.send_header("Content-Type", "text/html" if html else "application/x-tar")
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                self.wfile.write(body[start:][: server.cut])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()
    running.thread.join()


@pytest.fixture
def tar(tiny_voc: TinyVOC, server: Server, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An archive of the tiny data set, which takes VOC2012's place; the server has it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(tiny_voc.folder, "TrainVal/VOCdevkit/VOC2012")
    data = packed.getvalue()
    server.files["/voc.tar"] = data
    voc2012 = official.Archive(
        "voc.tar", (f"{server.url}/voc.tar",), (f"md5:{md5(data)}",), "VOCdevkit/VOC2012"
    )
    monkeypatch.setattr(official, "VOC2012", voc2012)
    return data


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def config(root: Path, **more: str) -> DataConfig:
    return DataConfig("voc2012", root=str(root), folder="VOCdevkit/VOC2012", download=True, **more)


def fetch(cfg: DataConfig) -> str:
    """Fetches; returns what was printed."""
    console = Console(file=io.StringIO(), width=200)
    official.fetch(cfg, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != ".download.lock")


def test_addresses_and_checksums_are_torchvisions() -> None:
    for year, archive in (("2011", official.VOC2011), ("2012", official.VOC2012)):
        theirs = DATASET_YEAR_DICT[year]
        assert archive.file == theirs["filename"]
        assert f"md5:{theirs['md5']}" in archive.checksums
        assert theirs["base_dir"].endswith(archive.place)
    assert f"md5:{SBDataset.md5}" in official.SBD.checksums
    assert official.SBD.file == SBDataset.filename


def test_what_is_fetched_is_whole_and_fetched_once(
    tiny_voc: TinyVOC, server: Server, tar: bytes, tmp_path: Path
) -> None:
    root = tmp_path / "new" / "data"
    assert f"verified, md5:{md5(tar)}" in fetch(config(root))
    assert contents(root / "VOCdevkit" / "VOC2012") == contents(tiny_voc.folder)
    assert visible(root) == ["VOCdevkit"]
    assert fetch(config(root)) == ""
    assert server.asked == [("/voc.tar", None)]


def test_dropped_connections_are_taken_up_where_they_broke(
    server: Server, tar: bytes, tmp_path: Path
) -> None:
    server.cut = len(tar) // 3 + 1
    fetch(config(tmp_path / "data"))
    ranges = [None, f"bytes={server.cut}-", f"bytes={2 * server.cut}-"]
    assert server.asked == [("/voc.tar", r) for r in ranges]


def test_an_interrupted_download_goes_on(server: Server, tar: bytes, tmp_path: Path) -> None:
    (tmp_path / "voc.tar.part").write_bytes(tar[:5000])
    fetch(config(tmp_path))
    assert server.asked == [("/voc.tar", "bytes=5000-")]

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "voc.tar.part").write_bytes(tar)  # whole, but was not unpacked
    fetch(config(tmp_path / "other"))
    assert visible(tmp_path / "other") == ["VOCdevkit"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_bad_beginning_is_thrown_away(
    server: Server, tar: bytes, tmp_path: Path, ranges: bool
) -> None:
    server.ranges = ranges  # a server that knows no ranges begins anew by itself
    (tmp_path / "voc.tar.part").write_bytes(b"x" * 5000)
    fetch(config(tmp_path))
    assert visible(tmp_path) == ["VOCdevkit", "tiny"]
    assert len(server.asked) == (2 if ranges else 1)


def test_mirrors_are_tried_in_turn(
    server: Server, tar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files |= {"/bad.tar": tar[:-1] + b"x", "/sorry.html": b"<html>blocked</html>"}
    urls = (f"{GONE}/voc.tar", *(f"{server.url}/{n}" for n in ("no", "sorry.html", "bad.tar")))
    chain = replace(official.VOC2012, urls=(*urls, f"{server.url}/voc.tar"))
    monkeypatch.setattr(official, "VOC2012", chain)
    fetch(config(tmp_path / "data"))
    assert [path for path, _ in server.asked] == ["/no", "/sorry.html", "/bad.tar", "/voc.tar"]

    monkeypatch.setattr(official, "VOC2012", replace(chain, urls=urls))
    with pytest.raises(DataError) as error:
        fetch(config(tmp_path / "none"))
    message = str(error.value)
    assert "voc.tar could not be fetched" in message
    assert "Connection refused" in message
    assert "Not Found" in message
    assert "answers with a web page" in message
    assert f"/bad.tar: its checksum md5:{md5(server.files['/bad.tar'])} is not" in message
    assert f"put it at {tmp_path / 'none' / 'voc.tar'} and run this again" in message


def test_an_archive_put_there_by_hand_is_used_and_stays(
    server: Server, tar: bytes, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "voc.tar").write_bytes(tar)
    fetch(config(root))
    assert visible(root) == ["VOCdevkit", "voc.tar"]
    assert server.asked == []

    (tmp_path / "voc.tar").write_bytes(tar[:-1])
    with pytest.raises(DataError, match=r"voc\.tar: its checksum .* is not .* replace it"):
        fetch(config(tmp_path))
    assert (tmp_path / "voc.tar").read_bytes() == tar[:-1]


@pytest.mark.parametrize("kind", ["file", "path", "folder", "folder path"])
def test_an_address_of_ones_own(tar: bytes, tmp_path: Path, kind: str) -> None:
    mirror = tmp_path / "a mirror"
    mirror.mkdir()
    (mirror / "voc.tar").write_bytes(tar)
    url = {
        "file": (mirror / "voc.tar").as_uri(),
        "path": str(mirror / "voc.tar"),
        "folder": mirror.as_uri() + "/",
        "folder path": str(mirror),
    }[kind]
    fetch(config(tmp_path / "data", url=url))
    assert visible(tmp_path / "data") == ["VOCdevkit"]
    assert (mirror / "voc.tar").read_bytes() == tar


def test_another_file_at_ones_own_address_wants_its_checksum(
    server: Server, tar: bytes, tmp_path: Path
) -> None:
    other = tar + bytes(512)
    server.files["/mine.tar"] = other
    mine = f"{server.url}/mine.tar"
    with pytest.raises(DataError, match=f"give data.checksum=md5:{md5(other)}, and .*part is used"):
        fetch(config(tmp_path / "data", url=mine))
    assert visible(tmp_path / "data") == ["voc.tar.part"]  # not lost, and not unpacked
    for algorithm in ("md5", "sha256"):
        checksum = f"{algorithm}:{hashlib.new(algorithm, other).hexdigest()}"
        root = tmp_path / ("data" if algorithm == "md5" else "again")
        fetch(config(root, url=mine, checksum=checksum))
        assert visible(root) == ["VOCdevkit"]


def test_settings_that_do_not_fit_are_refused(tar: bytes, tmp_path: Path) -> None:
    for wrong, words in (
        ({"url": "x", "download": False}, "add data.download=true"),
        ({"checksum": f"md5:{'0' * 32}"}, "give that too"),
        ({"url": "x", "checksum": "0" * 32}, "data.checksum must be"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_data(replace(config(tmp_path), **wrong))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nothing is known to fetch for data=folder"):
        fetch(DataConfig("folder", layout="folder", root=str(tmp_path), download=True))
    sbd = DataConfig("sbd", layout="sbd", root=str(tmp_path), download=True, url="x.tar")
    with pytest.raises(ConfigError, match="needs 2 archives; give the folder"):
        fetch(sbd)


def evil(kind: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo("../outside.txt" if kind == "above" else "link")
    if kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, "../../outside"
    return member


@pytest.mark.parametrize("kind", ["above", "link"])
def test_members_that_would_leave_the_folder_are_refused(
    server: Server, tar: bytes, tmp_path: Path, kind: str
) -> None:
    packed = io.BytesIO(tar)
    with tarfile.open(fileobj=packed, mode="a") as archive:
        archive.addfile(evil(kind))
    data = packed.getvalue()
    server.files["/mine.tar"] = data
    cfg = config(tmp_path / "data", url=f"{server.url}/mine.tar", checksum=f"md5:{md5(data)}")
    with pytest.raises(DataError, match=r"voc\.tar: refused, as it would write elsewhere"):
        fetch(cfg)
    assert visible(tmp_path / "data") == ["voc.tar"]  # nothing of it was put in place
    assert not (tmp_path / "data" / "outside.txt").exists()


@pytest.mark.parametrize("data", [b"not a tar file" * 100, b""])
def test_no_archive_at_all(server: Server, tar: bytes, tmp_path: Path, data: bytes) -> None:
    server.files["/mine.tar"] = data
    cfg = config(tmp_path / "data", url=f"{server.url}/mine.tar", checksum=f"md5:{md5(data)}")
    with pytest.raises(DataError, match=r"voc\.tar: no tar file, or damaged"):
        fetch(cfg)


def test_an_archive_of_other_data_is_named(
    server: Server, tiny_voc: TinyVOC, tar: bytes, tmp_path: Path
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(tiny_voc.folder, "elsewhere")
    server.files["/mine.tar"] = packed.getvalue()
    checksum = f"md5:{md5(packed.getvalue())}"
    with pytest.raises(DataError, match=r"voc\.tar: holds no VOCdevkit/VOC2012"):
        fetch(config(tmp_path / "data", url=f"{server.url}/mine.tar", checksum=checksum))
