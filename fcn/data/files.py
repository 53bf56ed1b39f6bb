"""Images and masks as pairs: listed, and checked when read."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from fcn.config import HIDDEN
from fcn.data.reading import DataError, Source, image_size, read_image, read_mask

LONGEST_NAME = 200  # characters; file systems take 255 bytes


@dataclass(frozen=True)
class Pair:
    """One image and its mask; `id` is the name that predictions and lists go by."""

    id: str
    image: Source
    mask: Source

    def check(self, image: Tensor) -> None:
        """Raises: DataError: the image (3, H, W) is not as was said of it; of files, nothing is."""


class SegmentationFiles(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of files as (image, target).

    Args:
        pairs: in the order of the split's list.
        classes: names, background first; their number is K.
        ignore_index: the masks' void label.
        name: of data set and split, for messages.
        problems: what is wrong with the list already; more may be added here.
        strict: refuse a list with problems. Only an audit, which names them all, does without.
    Item: image uint8 (3, H, W), RGB; target uint8 (H, W), 0..K-1 and 255 = void.
    Raises: DataError: no pairs, or an id twice; when read: a file missing or unreadable, sizes that
        differ, a label out of range.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: Sequence[str],
        ignore_index: int,
        name: str,
        *,
        problems: Sequence[str] = (),
        strict: bool = True,
    ) -> None:
        self.pairs, self.classes, self.name = list(pairs), list(classes), name
        self.ids = [pair.id for pair in pairs]
        self.ignore_index = ignore_index
        self.problems = [*problems, *_repeated(self.pairs, name)]
        if not pairs:
            self.problems.append(f"{name}: no images listed; name one a line, or add files")
        if strict and self.problems:
            raise DataError(_first(self.problems))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return read_pair(self.fetch(index), len(self.classes), self.ignore_index)

    def fetch(self, index: int) -> Pair:
        """The pair to read from; one that lies far away comes whole, at once."""
        return self.pairs[index]

    def labelled(self) -> bool:
        """Whether there are masks: of a test split, none may be."""
        masks = (pair.mask for pair in self.pairs)
        return any(not isinstance(mask, Path) or mask.is_file() for mask in masks)

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of every image upright, from the files' headers alone."""
        return [image_size(pair.image) for pair in self.pairs]

    def fingerprint(self) -> str:
        """sha256 of the id list, one a line: says which images a number was measured on."""
        return hashlib.sha256("".join(f"{i}\n" for i in self.ids).encode()).hexdigest()

    def bytes(self) -> int:
        """Of all the files of the split that lie on a disk here: tells if one was changed."""
        files = (source for pair in self.pairs for source in (pair.image, pair.mask))
        return sum(f.stat().st_size for f in files if isinstance(f, Path) and f.is_file())


def read_pair(pair: Pair, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Image and mask as `read_image` and `read_mask` give them, of one size.

    Raises: DataError: one of them cannot be used, or their sizes differ.
    """
    image = read_image(pair.image)
    target = read_mask(pair.mask, num_classes, ignore_index)
    refuse_mismatch(pair, image, target)
    return image, target


def refuse_mismatch(pair: Pair, image: Tensor, target: Tensor) -> None:
    """Raises: DataError: image (3, H, W) and target (H, W) differ in size."""
    (h, w), (mh, mw) = image.shape[1:], target.shape
    if (h, w) != (mh, mw):
        raise DataError(
            f"{pair.mask}: mask is {mw} x {mh} but its image {pair.image} is {w} x {h}; "
            "they must be of one size"
        )


def read_list(path: Path) -> list[str]:
    """The lines of a text file, without blank ones; any line endings, with a byte mark or not.

    Raises: DataError: not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text in UTF-8; save it as one") from None
    return [line.strip() for line in lines if line.strip()]


def read_ids(path: Path) -> list[str]:
    """The ids of images that a list names.

    Raises: DataError: not UTF-8, or an id that could not be a file's name below a folder.
    """
    ids = read_list(path)
    if wrong := [name for name in ids if not is_id(name)]:
        raise DataError(
            f"{path}: {wrong[0][:100]!r} is no id of an image, which is a file's name without "
            "its ending"
        )
    return ids


def is_id(name: str) -> bool:
    """Whether a file of this name lies below any folder: no id leads out of one, or hides there."""
    parts = name.replace("\\", "/").split("/")
    short = max(map(len, parts)) <= LONGEST_NAME
    return short and not HIDDEN.search(name) and not {"", ".", ".."} & set(parts)


def _repeated(pairs: Sequence[Pair], name: str) -> list[str]:
    """What to say of each id that comes more than once."""
    by_id = defaultdict[str, list[Source]](list)
    for pair in pairs:
        by_id[pair.id].append(pair.image)
    return [
        f"{images[1]}: {images[0].name} has the same name; rename or remove one"
        if images[0] != images[1] and isinstance(images[1], Path)
        else f"{name}: {i} is listed {'twice' if len(images) == 2 else f'{len(images)} times'}; "
        "a list must name each image once"
        for i, images in by_id.items()
        if len(images) > 1
    ]


def _first(problems: Sequence[str]) -> str:
    more = f" (and {len(problems) - 1} more: scripts/prepare_data.py names them all)"
    return problems[0] + more * (len(problems) > 1)
