import os
import sys
from pathlib import Path

import pytest

from fcn.config import UserError
from fcn.data import ranges
from fcn.data.files import DataError
from fcn.data.ranges import check_size, read_range, read_whole
from tests.range_server import RangeServer

CONTENT = os.urandom(1000)
NAME = "a b.tar"  # a name that an address must quote


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "BACKOFF", 0)
    ranges._connections.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / NAME).write_bytes(CONTENT)
    return tmp_path


def test_parts_are_the_same_from_a_folder_and_a_server(folder: Path) -> None:
    with RangeServer(folder) as server:
        for root in (str(folder), server.address, server.address + "/"):
            assert read_whole(root, NAME) == CONTENT
            check_size(root, NAME, 1000)
            for start, stop in ((0, 1), (0, 1000), (17, 600), (999, 1000)):
                assert read_range(root, NAME, start, stop, 1000) == CONTENT[start:stop]
        assert server.connections == 3  # one for all, and a new one after each that went unread


def test_what_is_not_there_is_said_with_its_place(folder: Path) -> None:
    with RangeServer(folder) as server:
        for root in (str(folder), server.address):
            for size, words in ((1001, "1000 bytes, but the index says 1001"), (1000, "")):
                name = NAME if words else "none.tar"
                place = ranges.locate(root, name)
                for act in (
                    lambda r=root, n=name, s=size: check_size(r, n, s),
                    lambda r=root, n=name, s=size: read_range(r, n, 5, 9, s),
                ):
                    with pytest.raises(DataError) as caught:
                        act()
                    assert str(caught.value).startswith(f"{place}: {words}")
                    assert words or "check data.root" in str(caught.value)


def test_a_busy_or_broken_answer_is_asked_for_again(folder: Path) -> None:
    with RangeServer(folder) as server:
        server.busy, server.cuts = 3, 2
        assert read_range(server.address, NAME, 10, 900, 1000) == CONTENT[10:900]
        assert len(server.requests) == ranges.TRIES == 6
        server.busy = 6
        with pytest.raises(
            DataError, match=r"a%20b\.tar: the server answers 503; check data\.root"
        ):
            read_range(server.address, NAME, 10, 900, 1000)
        server.cuts = 6
        with pytest.raises(
            DataError, match=r"a%20b\.tar: no answer after 6 tries \(.*; check data"
        ):
            read_range(server.address, NAME, 10, 900, 1000)
    with pytest.raises(DataError, match=r"a%20b\.tar: no answer after 6 tries .*refused"):
        read_whole(server.address, NAME)


def test_a_server_without_ranges_is_refused_before_it_sends_the_file(folder: Path) -> None:
    with RangeServer(folder, ranges=False) as server:
        assert read_whole(server.address, NAME) == CONTENT
        for act in (
            lambda: check_size(server.address, NAME, 1000),
            lambda: read_range(server.address, NAME, 0, 10, 1000),
        ):
            with pytest.raises(DataError, match=r"a%20b\.tar: this server gives whole files only"):
                act()


def test_without_its_library_an_address_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "urllib3", None)
    with pytest.raises(UserError, match=r"needs urllib3: pip install -e '\.\[shards\]'"):
        read_whole("http://127.0.0.1:1", "train.json")
