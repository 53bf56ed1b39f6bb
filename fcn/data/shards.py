"""Large sets as WebDataset shards: tar files beside an index, in a folder or behind an address.

SPLIT-000000.tar and so on hold KEY.jpg, an image's file as it was, then KEY.png, its mask: any
WebDataset reader streams them. SPLIT.json says where in which tar each lies, so that a sample is
read as directly as from files of its own. Nothing else differs from files: the order of training,
going on with a run, the share of each rank and worker, evaluation.
"""

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

from torch import Tensor

from fcn.config import HIDDEN, VOID
from fcn.data.files import Pair, SegmentationFiles, is_id
from fcn.data.ranges import check_size, is_address, locate, read_range, read_whole
from fcn.data.reading import LARGEST_FILE, DataError, Held

FORMAT = "fcn-shards-1"
LONGEST_SIDE = 2**16  # pixels of an image that an index may claim


@dataclass(frozen=True, slots=True)
class Tar:
    """A shard: its file below `root`, and the file's size in bytes."""

    root: str
    name: str
    size: int

    def read(self, start: int, stop: int) -> bytes:
        return read_range(self.root, self.name, start, stop, self.size)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a shard: bytes start..start+length-1 of the tar, with their checksum."""

    tar: Tar
    name: str
    start: int
    length: int
    crc32: int

    def __str__(self) -> str:
        return f"{locate(self.tar.root, self.tar.name)}: {self.name}"

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def stop(self) -> int:
        return self.start + self.length

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        return self.held(self.tar.read(self.start, self.stop)).open(mode)

    def held(self, data: bytes) -> Held:
        """Raises: DataError: these are not the bytes that were written."""
        if zlib.crc32(data) != self.crc32:
            raise DataError(
                f"{self}: damaged, its checksum is not the index's; fetch or write {self.tar.name} "
                "again"
            )
        return Held(str(self), data)


@dataclass(frozen=True)
class Sample(Pair):
    """Image, then mask, in one tar, and the image's (width, height)."""

    image: Member
    mask: Member
    size: tuple[int, int]

    def check(self, image: Tensor) -> None:
        """Raises: DataError: it is not of the index's size, which batches of one size rely on."""
        width, height = self.size
        if image.shape[1:] != (height, width):
            raise DataError(
                f"{self.image}: is {image.shape[2]} x {image.shape[1]}, but the index says "
                f"{width} x {height}; write the set again"
            )


class Shards(SegmentationFiles):
    """A split in shards.

    Raises: DataError: as SegmentationFiles does; when read: a damaged or changed tar, a server that
        does not answer.
    """

    def __init__(
        self, samples: Sequence[Sample], classes: Sequence[str], ignore_index: int, name: str
    ) -> None:
        super().__init__(samples, classes, ignore_index, name)
        self.samples = list(samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, target = super().__getitem__(index)
        self.samples[index].check(image)
        return image, target

    def fetch(self, index: int) -> Pair:
        """Image and mask in one request."""
        sample = self.samples[index]
        start, middle = sample.image.start, sample.mask.start
        data = sample.image.tar.read(start, sample.mask.stop)
        image, mask = data[: sample.image.length], data[middle - start :]
        return Pair(sample.id, sample.image.held(image), sample.mask.held(mask))

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of every image as stored, from the index."""
        return [sample.size for sample in self.samples]


def shards(
    root: str, split: str, *, classes: Sequence[str] = (), ignore_index: int = VOID
) -> Shards:
    """A split of a set in shards, in the order in which it was written.

    Args:
        root: a folder, or an http:// or https:// address whose server gives parts of files.
        classes: names, background first, in place of the index's.
        ignore_index: VOID, or the set's own.
    Raises: DataError: the index or a tar is missing, damaged or does not fit; an address's later
        tars are looked at when they are read.
    """
    path = index_name(split)
    if not is_address(root) and not Path(root, path).is_file():
        there = ", ".join(sorted(p.stem for p in Path(root).glob("*.json"))) or "none"
        raise DataError(
            f"{Path(root, path)}: no such index; data=shards wants SPLIT.json and its tars in "
            f"data.root; splits there: {there}"
        )
    place = locate(root, path)
    samples, own, void = parse(read_whole(root, path), root, place)
    if len(classes or own) != len(own):
        raise DataError(f"data.classes names {len(classes)}, but {place} has {len(own)} classes")
    if ignore_index not in (VOID, void):
        raise DataError(
            f"data.ignore_index={ignore_index}, but the void label of {place} is {void}; leave "
            "it out"
        )
    tars = list(dict.fromkeys(sample.image.tar for sample in samples))
    for tar in tars[:1] if is_address(root) else tars:
        check_size(root, tar.name, tar.size)
    return Shards(samples, classes or own, void, f"shards {split} ({place})")


def index_name(split: str) -> str:
    """Raises: DataError: `split` cannot be part of a file's name."""
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise DataError(f"data.split: {split!r} cannot name a split of shards")
    return f"{split}.json"


def parse(text: bytes, root: str, place: str) -> tuple[list[Sample], list[str], int]:
    """An index's samples, class names and void label.

    Args: place: where it came from.
    Raises: DataError: no such index, or one that claims what cannot be. It may come from anywhere:
        nothing in it is believed unseen.
    """
    try:
        index = json.loads(text)
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']!r}, not {FORMAT!r}")
        classes, void = [str(name) for name in index["classes"]], index["ignore_index"]
        if len(classes) < 2 or len(classes) > 255:
            raise ValueError(f"{len(classes)} classes")
        if odd := [name for name in classes if HIDDEN.search(name)]:
            raise ValueError(f"class name {odd[0][:100]!r} has characters that do not print")
        _whole_number("ignore_index", void, 0, 255)
        return list(_samples(index["shards"], root)), classes, void
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{place}: not an index of shards, or damaged ({reason})") from None


def _samples(entries: list[dict[str, Any]], root: str) -> Iterator[Sample]:
    for shard in entries:
        tar = Tar(root, shard["tar"], shard["bytes"])
        if not isinstance(tar.name, str) or not re.fullmatch(r"\w[\w.-]*\.tar", tar.name):
            raise ValueError(f"tar {tar.name!r} is not the name of a file beside it")
        _whole_number(f"{tar.name}: bytes", tar.size, 1, 2**63)
        for entry in shard["samples"]:
            width, height = entry["size"]
            image, mask = (Member(tar, *entry[part]) for part in ("image", "mask"))
            sample = Sample(entry["id"], image, mask, (width, height))
            if not all(isinstance(name, str) for name in (sample.id, image.name, mask.name)):
                raise ValueError(f"{tar.name}: a name is not text")
            if not is_id(sample.id):
                raise ValueError(f"{tar.name}: {sample.id[:100]!r} is no id of an image")
            for side in sample.size:
                _whole_number(f"{sample.id}: size", side, 1, LONGEST_SIDE)
            for member, lowest in ((image, 0), (mask, image.stop)):
                what = f"{tar.name}: {member.name}"
                _whole_number(f"{what}: start", member.start, lowest, tar.size - 1)
                _whole_number(f"{what}: length", member.length, 1, tar.size - member.start)
                _whole_number(f"{what}: crc32", member.crc32, 0, 2**32 - 1)
            _whole_number(f"{sample.id}: bytes", mask.stop - image.start, 1, LARGEST_FILE)
            if mask.suffix != ".png":
                raise ValueError(f"{tar.name}: mask {mask.name} is no PNG")
            yield sample


def _whole_number(what: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what} is {value!r}, not {least}..{most}")
