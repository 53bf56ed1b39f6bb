"""Large data sets as WebDataset shards, in a folder or behind any address that fsspec reads.

SPLIT-000000.tar, ... hold KEY.jpg, the unchanged image file, then KEY.png, its mask. SPLIT.json
tells where in which tar each file starts, so that samples are read in any order.
"""

import json
import tarfile
import time
import zlib
from collections import deque
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from rich.console import Console

from fcn.data.dataset import Pair, SegmentationDataset, read_bytes, read_labels
from fcn.dataset_info import INFO_KEYS, DatasetInfo
from fcn.errors import DataError, MissingData
from fcn.output import progress, write_json

FORMAT = "fcn-shards-1"
SHARD_BYTES = 250_000_000  # a tar of this size takes no further sample
TRIES, BACKOFF = 5, 0.5  # of one request, and the first pause in seconds, which doubles each time


@dataclass(frozen=True)
class Member:
    """A file in a shard: bytes start..start+length-1 of the tar at `address`."""

    address: str
    name: str
    start: int
    length: int
    crc32: int

    def __str__(self) -> str:
        return f"{self.address}: {self.name}"

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        content = _read(self.address, self.start, self.length)
        if zlib.crc32(content) != self.crc32:
            raise DataError(f"{self}: damaged (wrong checksum); copy or write the shard again")
        return BytesIO(content)


def open_shards(root: str, split: str) -> SegmentationDataset:
    """Open a split of shards, in the order in which it was written.

    Args:
        root: a folder, or an address of fsspec: https://..., s3://..., ...
        split: name of the split; its index is root/SPLIT.json.

    Raises:
        DataError: the index is missing or damaged.
    """
    place = f"{root.rstrip('/')}/{split}.json"
    content = _read(place)
    try:
        index = json.loads(content)
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']!r} instead of {FORMAT!r}")
        info = DatasetInfo(**{key: index[key] for key in INFO_KEYS})
        pairs = []
        for shard in index["shards"]:
            tar = f"{root.rstrip('/')}/{shard['tar']}"
            for entry in shard["samples"]:
                image, mask = (Member(tar, *entry[part]) for part in ("image", "mask"))
                width, height = entry["size"]
                pairs.append(Pair(entry["id"], image, mask, (width, height)))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place}: not an index of shards, or damaged ({error!r})") from None
    return SegmentationDataset(pairs, info, f"shards {split} ({place})")


def write_shards(dataset: SegmentationDataset, folder: Path, split: str, console: Console) -> None:
    """Write a split as folder/SPLIT-000000.tar, ..., and finally folder/SPLIT.json.

    Files are copied unchanged, once they have been read; only SBD's .mat masks become PNG.

    Args:
        dataset: the split.
        folder: created if missing; must hold no shards of this split.
        split: name of the split.
        console: where progress is shown.

    Raises:
        DataError: a file cannot be used, or the folder holds shards of this split.
    """
    if any(folder.glob(f"{split}-*.tar")):
        raise DataError(f"{folder}: holds shards of {split}; choose a new folder, or remove them")
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict] = []
    left = deque(enumerate(dataset.pairs))
    with progress(console) as bar:
        task = bar.add_task(f"writing {split}", total=len(left))
        while left:
            tar, samples = folder / f"{split}-{len(shards):06d}.tar", list[dict]()
            with tarfile.open(tar, "w") as archive:
                while left and (not samples or archive.offset < SHARD_BYTES):
                    index, pair = left.popleft()
                    image, _ = dataset[index]  # raises an error if the pair is unusable
                    size = [image.shape[2], image.shape[1]]
                    files = [_append(archive, *file) for file in _files(pair)]
                    entry = {"id": pair.id, "size": size, "image": files[0], "mask": files[1]}
                    samples.append(entry)
                    bar.advance(task)
            shards.append({"tar": tar.name, "bytes": tar.stat().st_size, "samples": samples})
    about = {"format": FORMAT, **asdict(dataset.info)}
    write_json(folder / f"{split}.json", about | {"shards": shards})


def _files(pair: Pair) -> list[tuple[str, bytes]]:
    """Return name and content of image (KEY.jpg, or KEY.image.png) and mask (KEY.png)."""
    key = pair.id.replace("%", "%25").replace(".", "%2E")  # a dot would end WebDataset's key
    ending = pair.image.suffix.lower()
    if pair.mask.suffix == ".mat":
        png = BytesIO()
        Image.fromarray(read_labels(pair.mask)).save(png, "PNG")
        mask = png.getvalue()
    else:
        mask = read_bytes(pair.mask, "mask")
    image = f"{key}.image.png" if ending == ".png" else key + ending
    return [(image, read_bytes(pair.image, "image")), (f"{key}.png", mask)]


def _append(archive: tarfile.TarFile, name: str, content: bytes) -> list:
    """Append a file to a tar; return its entry in the index: name, start, length, crc32."""
    header = tarfile.TarInfo(name)  # without owner and times: equal sets give equal tars
    header.size = len(content)
    archive.addfile(header, BytesIO(content))
    padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return [name, archive.offset - padded, len(content), zlib.crc32(content)]


def _read(address: str, start: int = 0, length: int | None = None) -> bytes:
    """Return a file, or a part of it, wherever it lies; try again if a server is busy."""
    try:
        filesystem, path = url_to_fs(address)
    except (ValueError, ImportError) as error:  # an unknown protocol, or one without its package
        raise DataError(f"{address}: cannot be read ({error}); check data.root") from None
    stop = None if length is None else start + length
    for attempt in range(TRIES):
        try:
            content = filesystem.cat_file(path, start=start, end=stop)
            break
        except FileNotFoundError:
            raise MissingData(f"{address}: not found; check data.root and data.split") from None
        except Exception as error:  # every file system has its own errors
            if attempt == TRIES - 1 or isinstance(filesystem, LocalFileSystem):
                raise DataError(f"{address}: unreadable ({error}); check data.root") from None
            time.sleep(BACKOFF * 2**attempt)
    if length is not None and len(content) != length:
        raise DataError(
            f"{address}: {len(content)} bytes instead of {length}; the file is cut short, or its "
            "server does not answer HTTP range requests"
        )
    return content
