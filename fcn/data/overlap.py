"""Images that are in two splits at once: they would make a validation number worthless."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from fcn.data.files import Pair, SegmentationFiles
from fcn.data.reading import DataError, missing, refuse_endless

SAMPLE = 4096  # bytes from the middle of a file, to tell apart files of one size


def refuse_overlap(train: SegmentationFiles, val: SegmentationFiles) -> None:
    """Raises: DataError: an image is in both, by its id or with the same bytes; or is missing."""
    if both := sorted(set(train.ids) & set(val.ids)):
        raise DataError(
            f"{len(both)} images are in both {train.name} and {val.name}, {both[0]} among them; "
            "take them off one of the lists"
        )
    if same := same_files(train.pairs, val.pairs):
        one, other = same[0]
        raise DataError(
            f"{len(same)} images of {val.name} are in {train.name} under another name, "
            f"{other.image} as {one.image} among them; take them off one of the lists"
        )


def same_files(some: Sequence[Pair], others: Sequence[Pair]) -> list[tuple[Pair, Pair]]:
    """Pairs (of some, of others) whose images have the same bytes.

    Sizes are compared first, of those alike a sample, of those alike all bytes: few are read. What
    is no file of its own, but lies in a shard, is passed over: it may be far away.
    Raises: DataError: an image is not there.
    """
    some, others = ([p for p in pairs if isinstance(p.image, Path)] for pairs in (some, others))
    keys: tuple[Callable[[Pair], Hashable], ...] = (_size, _sample, _digest)
    for key in keys:
        some, others, by_key = _alike(some, others, key)
    return [(one, other) for ones, their in by_key for other in their for one in ones[:1]]


def _alike(
    some: Sequence[Pair], others: Sequence[Pair], key: Callable[[Pair], Hashable]
) -> tuple[list[Pair], list[Pair], list[tuple[list[Pair], list[Pair]]]]:
    """Those of both whose key occurs in the other too: each flat, then grouped by key."""
    groups = [defaultdict[Hashable, list[Pair]](list) for _ in range(2)]
    for group, pairs in zip(groups, (some, others), strict=True):
        for pair in pairs:
            group[key(pair)].append(pair)
    ones, theirs = groups
    shared = [(ones[k], theirs[k]) for k in ones.keys() & theirs.keys()]
    return [p for a, _ in shared for p in a], [p for _, b in shared for p in b], shared


def _size(pair: Pair) -> int:
    assert isinstance(pair.image, Path)
    try:
        refuse_endless(pair.image, "image")
        return pair.image.stat().st_size
    except FileNotFoundError:
        raise missing(pair.image, "image") from None


def _sample(pair: Pair) -> tuple[int, bytes]:
    assert isinstance(pair.image, Path)
    size = _size(pair)
    with open(pair.image, "rb") as file:
        file.seek(max(0, size - SAMPLE) // 2)
        return size, file.read(SAMPLE)


def _digest(pair: Pair) -> bytes:
    assert isinstance(pair.image, Path)
    with open(pair.image, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
