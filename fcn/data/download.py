"""Fetching an archive: it goes on where it stopped, is verified, and unpacked whole or not at all.

torchvision's own utilities start anew after an interruption, take one address, and unpack in place.
"""

import hashlib
import shutil
import tarfile
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.progress import Progress, TaskID

from fcn.data.reading import DataError

TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 18
MOST_UNPACKED = 20  # times an archive's own size; images and masks are packed already


def download(file: Path, urls: Sequence[str], checksums: Sequence[str], progress: Progress) -> str:
    """Fetches `file` from the first address that gives it whole; verified before it is there.

    Until then it grows as FILE.part, which a later call goes on with.
    Args: checksums: ALGORITHM:HEX, any of which will do.
    Returns: the one that was the file's.
    Raises: DataError: no address gave it; says why, and where to put it by hand.
    """
    part, reasons = file.with_name(file.name + ".part"), []
    task = progress.add_task(file.name, total=None)
    for url in urls:
        while True:
            kept = _size(part)
            try:
                _receive_all(url, part, progress, task)
            except (OSError, HTTPException, ValueError) as error:
                reasons.append(f"{url}: {getattr(error, 'reason', None) or error}")
                break
            if right := matching(part, checksums):
                part.rename(file)
                return right
            found = digest(part, checksums[0])
            if len(urls) == 1 and not kept:
                raise DataError(
                    f"{url}: its checksum {found} is not {checksums[0]}: damaged, or another file; "
                    f"if it is the one you mean, give data.checksum={found}, and {part} is used; "
                    "if not, remove that"
                )
            part.unlink()
            if not kept:
                reasons.append(f"{url}: its checksum {found} is not {checksums[0]}")
                break  # what was kept may have been to blame, and gets one more chance
    raise DataError(
        f"{file.name} could not be fetched ({'; '.join(reasons)}); get it in another way, put it "
        f"at {file} and run this again, or give data.url="
    )


def _receive_all(url: str, part: Path, progress: Progress, task: TaskID) -> None:
    """Goes on as long as every connection brings something.

    Raises: OSError, HTTPException: one brought nothing.
    """
    while True:
        before = _size(part)
        try:
            if _receive(url, part, progress, task):
                return
            raise OSError("the connection was closed too early")
        except (OSError, HTTPException):
            if _size(part) <= before:
                raise


def _receive(url: str, part: Path, progress: Progress, task: TaskID) -> bool:
    """One connection: appends to `part` what it lacks. Returns: whether it is whole.

    Raises: OSError, HTTPException: no such address, a server's refusal, a broken connection.
    """
    have = _size(part)
    headers = {"User-Agent": "fcn-segmentation"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and have:  # no byte is left to send
            return True
        raise
    with response:
        if response.headers.get_content_type() == "text/html":
            raise OSError("answers with a web page")
        start = have if response.status == 206 else 0  # some servers begin anew
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        progress.update(task, completed=start, total=total)
        with open(part, "ab" if start else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
    return total is None or _size(part) >= total


def unpack(file: Path, root: Path, place: str, progress: Progress) -> None:
    """Unpacks a tar file beside `root/place` and moves that folder of it there, whole.

    Links are left out.
    Raises: DataError: a member would leave the folder, is a device or a pipe, or all are too large
        to be true; the file is damaged, or holds no `place`.
    """
    scratch = root / f".unpacking-{file.name}"  # one process at a time: the others wait
    shutil.rmtree(scratch, ignore_errors=True)
    task = progress.add_task(f"unpacking {file.name}", total=file.stat().st_size)
    try:
        with open(file, "rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar:
            claimed, most = 0, MOST_UNPACKED * file.stat().st_size
            for member in tar:
                claimed += tarfile.BLOCKSIZE + member.size
                if claimed > most:
                    raise DataError(f"{file}: refused, as it would unpack to over {most:,} bytes")
                if member.issym() or member.islnk():  # no data set needs them; some fool the filter
                    tarfile.data_filter(member, str(scratch))
                else:
                    tar.extract(member, scratch, filter="data")
                progress.update(task, completed=raw.tell())
        found = [p for p in (scratch / place, *scratch.glob(f"*/{place}")) if p.is_dir()]
        if not found:
            raise DataError(f"{file}: holds no {place}; give the official archive")
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        found[0].rename(root / place)
    except tarfile.FilterError as error:
        raise DataError(f"{file}: refused, as it would write elsewhere ({error})") from None
    except DataError:
        raise
    except OSError as error:  # also of the disk
        raise DataError(f"{file}: could not be unpacked ({error})") from None
    except Exception as error:  # a damaged archive makes tarfile raise almost anything
        raise DataError(f"{file}: no tar file, or damaged ({error}); replace it") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def matching(file: Path, checksums: Sequence[str]) -> str | None:
    """The first of the checksums that is the file's."""
    return next((c for c in checksums if digest(file, c) == c), None)


def digest(file: Path, like: str) -> str:
    """The file's checksum by the algorithm of another, as ALGORITHM:HEX."""
    algorithm = like.partition(":")[0]
    with open(file, "rb") as stream:
        hashed = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return f"{algorithm}:{hashed.hexdigest()}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
