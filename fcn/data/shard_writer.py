"""Writing a split of any data set as shards; `fcn.data.shards` says what they are."""

import json
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from fcn.data.files import Pair, SegmentationFiles, read_pair
from fcn.data.reading import DataError, Held, hold, image_size, mat_labels
from fcn.data.shards import FORMAT, Shards, index_name, parse, shards

BLOCK = 512  # bytes; what a tar rounds every file up to

Entry = dict[str, Any]  # of the index


def write_shards(
    files: SegmentationFiles,
    folder: Path,
    split: str,
    *,
    shard_bytes: int = 250_000_000,
    shard_samples: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Shards:
    """Writes `files` to folder/SPLIT-000000.tar, ..., and last of all folder/SPLIT.json.

    Images and masks go in as they are, byte for byte, once they are known to be usable; only SBD's
    .mat masks become PNG. What was interrupted goes on after its last whole tar, once the tars
    there are known to hold the same bytes; a finished set that holds the same is left alone.

    Args:
        shard_bytes: a tar that has reached this size takes no further sample.
        shard_samples: nor does one that holds this many.
        progress: called with the samples done and their number, after each.
    Returns: the split, opened from where it was written.
    Raises: DataError: an image or mask that cannot be used; the folder holds another set.
    """
    index = folder / index_name(split)
    finished = index.is_file()
    if finished:
        _refuse_other(index, files)
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[Entry] = []
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, len(files))

    while done < len(files):
        tar = folder / f"{split}-{len(entries):06d}.tar"
        if tar.is_file():
            samples = _compared(tar, files, done, tick)
        elif finished:
            raise DataError(f"{tar}: missing; remove {index}, and the set will be completed")
        else:
            samples = _written(tar, files, done, shard_bytes, shard_samples, tick)
        entries.append({"tar": tar.name, "bytes": tar.stat().st_size, "samples": samples})
    surplus = folder / f"{split}-{len(entries):06d}.tar"
    if surplus.is_file():
        raise _differs(surplus, files)
    about = {"format": FORMAT, "classes": files.classes, "ignore_index": files.ignore_index}
    text = json.dumps(about | {"shards": entries}) + "\n"
    if finished and json.loads(index.read_bytes()) != json.loads(text):
        raise _differs(index, files)
    if not finished:
        part = index.with_name(index.name + ".part")
        part.write_text(text, encoding="utf-8")
        part.replace(index)
    return shards(str(folder), split)


def _written(
    tar: Path,
    files: SegmentationFiles,
    first: int,
    most_bytes: int,
    most_samples: int | None,
    tick: Callable[[], None],
) -> list[Entry]:
    """Writes one tar of samples from `first` on; gives their entries of the index."""
    part = tar.with_name(tar.name + ".part")
    samples: list[Entry] = []
    with part.open("wb") as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        while first + len(samples) < len(files):
            if samples and (stream.tell() >= most_bytes or len(samples) == most_samples):
                break
            original = _original(files, first + len(samples))
            read_pair(original, len(files.classes), files.ignore_index)
            starts = []
            for name, data in _members(original):
                header = tarfile.TarInfo(name)  # owner and times at zero: equal sets, equal tars
                header.size = len(data)
                archive.addfile(header, BytesIO(data))
                starts.append(stream.tell() - -(-len(data) // BLOCK) * BLOCK)
            samples.append(_entry(original, starts))
            tick()
    part.replace(tar)
    return samples


def _compared(
    tar: Path, files: SegmentationFiles, first: int, tick: Callable[[], None]
) -> list[Entry]:
    """The entries of a tar that is there, which must hold the samples from `first` on.

    Raises: DataError: it does not, or is damaged.
    """
    samples: list[Entry] = []
    try:
        with tarfile.open(tar, "r:") as archive:
            there = archive.getmembers()
            if len(there) % 2 or not 0 < len(there) // 2 <= len(files) - first:
                raise _differs(tar, files)
            for image, mask in zip(there[::2], there[1::2], strict=True):
                original = _original(files, first + len(samples))
                expected = _members(original)
                if not all(map(partial(_same, archive), (image, mask), expected)):
                    raise _differs(tar, files, f" in {original.id}")
                samples.append(_entry(original, [image.offset_data, mask.offset_data]))
                tick()
    except DataError:
        raise
    except Exception as error:  # a damaged tar makes tarfile raise almost anything
        raise DataError(f"{tar}: damaged ({error}); remove it, and it is written again") from None
    return samples


def _same(archive: tarfile.TarFile, member: tarfile.TarInfo, expected: tuple[str, bytes]) -> bool:
    name, data = expected
    if not member.isreg() or (member.name, member.size) != (name, len(data)):
        return False
    stream = archive.extractfile(member)
    return stream is not None and stream.read() == data


def _original(files: SegmentationFiles, index: int) -> Pair:
    """Image and mask in memory, as they are to lie in a tar."""
    pair = files.fetch(index)
    if pair.mask.suffix != ".mat":
        return Pair(pair.id, hold(pair.image, "image"), hold(pair.mask, "mask"))
    png = BytesIO()
    Image.fromarray(mat_labels(pair.mask)).save(png, "PNG")
    return Pair(pair.id, hold(pair.image, "image"), Held(f"{pair.mask} (as PNG)", png.getvalue()))


def _members(original: Pair) -> list[tuple[str, bytes]]:
    """Names in the tar, and contents: KEY.jpg and KEY.png; KEY.image.png if the image is a PNG.

    For WebDataset a name's first dot ends the key, so a dot of the id's own is written %2E.
    """
    key = original.id.replace("%", "%25").replace(".", "%2E")
    ending = original.image.suffix.lower()
    names = (key + (".image.png" if ending == ".png" else ending), key + ".png")
    sources = (original.image, original.mask)
    return [(name, source.open("rb").read()) for name, source in zip(names, sources, strict=True)]


def _entry(original: Pair, starts: list[int]) -> Entry:
    """What the index says of a sample whose two members start at these bytes of its tar."""
    image, mask = (
        [name, start, len(data), zlib.crc32(data)]
        for (name, data), start in zip(_members(original), starts, strict=True)
    )
    size = list(image_size(original.image))
    return {"id": original.id, "size": size, "image": image, "mask": mask}


def _refuse_other(index: Path, files: SegmentationFiles) -> None:
    """Raises: DataError: the finished set of this index is of other samples or classes."""
    samples, classes, void = parse(index.read_bytes(), str(index.parent), str(index))
    if [sample.id for sample in samples] != files.ids:
        raise _differs(index, files, " in its ids")
    if (classes, void) != (files.classes, files.ignore_index):
        raise _differs(index, files, " in its classes or void label")


def _differs(path: Path, files: SegmentationFiles, where: str = "") -> DataError:
    return DataError(
        f"{path}: there already, and differs from {files.name}{where}; choose another folder, or "
        "remove the shards there"
    )
