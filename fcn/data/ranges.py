"""Whole files and parts of files, in a folder or behind an http(s) address.

Nothing is kept open but the connections to a server, which are each process's own.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from fcn.config import UserError
from fcn.data.files import DataError

if TYPE_CHECKING:
    import urllib3

TRIES = 6  # of one request, over some 15 seconds
BACKOFF = 0.5  # seconds; doubles from try to try, the second comes at once
PASSING = (408, 429, 500, 502, 503, 504)  # what a server answers when it is worth asking again


def is_address(root: str) -> bool:
    return root.startswith(("http://", "https://"))


def locate(root: str, name: str) -> str:
    """The path or address of a file below `root`."""
    return f"{root.rstrip('/')}/{quote(name)}" if is_address(root) else str(Path(root, name))


def read_whole(root: str, name: str) -> bytes:
    """Raises: DataError: missing or unreadable."""
    place = locate(root, name)
    if is_address(root):
        response = _get(place, {})
        if response.status != 200:
            raise _refused(place, response)
        return response.data
    try:
        return Path(place).read_bytes()
    except OSError as error:
        raise _unreadable(place, error) from None


def read_range(root: str, name: str, start: int, stop: int, size: int) -> bytes:
    """Bytes start..stop-1 of a file.

    Args: size: of the whole file, which must still have it.
    Raises: DataError: missing, unreadable, of another size, or its server cannot give parts.
    """
    place = locate(root, name)
    if is_address(root):
        response = _get(place, {"Range": f"bytes={start}-{stop - 1}"})
        _check_size(place, _whole_size(place, response), size)
        data = response.data
    else:
        try:
            with open(place, "rb") as file:
                _check_size(place, os.fstat(file.fileno()).st_size, size)
                file.seek(start)
                data = file.read(stop - start)
        except OSError as error:
            raise _unreadable(place, error) from None
    if len(data) != stop - start:
        raise DataError(f"{place}: gave {len(data)} bytes where {stop - start} were asked for")
    return data


def check_size(root: str, name: str, size: int) -> None:
    """Raises: DataError: missing, of another size, or its server cannot give parts of files."""
    place = locate(root, name)
    if is_address(root):
        # Unread, should the server send all of the file.
        response = _get(place, {"Range": "bytes=0-0"}, preload_content=False)
        try:
            there = _whole_size(place, response)
        finally:
            response.close()
    else:
        try:
            there = os.stat(place).st_size
        except OSError as error:
            raise _unreadable(place, error) from None
    _check_size(place, there, size)


def _check_size(place: str, there: int, size: int) -> None:
    if there != size:
        raise DataError(
            f"{place}: {there} bytes, but the index says {size}: cut short, or of another set; "
            "fetch or write it again"
        )


def _whole_size(place: str, response: "urllib3.BaseHTTPResponse") -> int:
    """Of the file that a part was asked of."""
    if response.status == 200:
        raise DataError(
            f"{place}: this server gives whole files only, and shards need parts (HTTP Range); "
            "use one that knows them, as nginx, Caddy and object stores do, or copy the folder "
            "here and point data.root at it"
        )
    given = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status != 206 or given is None:
        raise _refused(place, response)
    return int(given.group(1))


def _get(
    place: str, headers: dict[str, str], preload_content: bool = True
) -> "urllib3.BaseHTTPResponse":
    """What the server answers at last, whatever its status.

    Raises: DataError: it does not answer.
    """
    connections = _connections(os.getpid())
    from urllib3.exceptions import HTTPError

    try:
        return connections.request("GET", place, headers=headers, preload_content=preload_content)
    except HTTPError as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{place}: no answer after {TRIES} tries ({reason}); check data.root and the network"
        ) from None


@cache
def _connections(process: int) -> "urllib3.PoolManager":
    """Kept open, and kept apart: what was forked must not talk over its parent's."""
    try:
        import urllib3
    except ImportError:
        raise UserError(
            "data.root is an address, and reading over HTTP needs urllib3: "
            "pip install -e '.[shards]'"
        ) from None
    again = urllib3.Retry(
        TRIES - 1,
        backoff_factor=BACKOFF,
        status_forcelist=PASSING,
        raise_on_status=False,
        respect_retry_after_header=False,  # a server might ask to be left alone for hours
    )
    return urllib3.PoolManager(retries=again, timeout=urllib3.Timeout(connect=10, read=60))


def _refused(place: str, response: "urllib3.BaseHTTPResponse") -> DataError:
    return DataError(f"{place}: the server answers {response.status}; check data.root")


def _unreadable(place: str, error: OSError) -> DataError:
    missing = isinstance(error, FileNotFoundError)
    return DataError(f"{place}: {'not found' if missing else error.strerror}; check data.root")
