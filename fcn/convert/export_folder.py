"""The files of an annotation tool's export: which are masks, and which image each belongs to."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from fcn.data.files import is_image, nfc, unread_note, walk
from fcn.errors import DataError

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "dev": "val"}
SPLITS |= {"validation": "val", "test": "test", "testing": "test"}
# First or last words of folders and files that tell a mask from its image.
MASK_WORDS = {
    "ann", "annotation", "annotations", "annot", "label", "labels", "labelids", "mask", "masks",
    "machine", "gt", "gtfine", "gtcoarse", "ground", "truth", "groundtruth", "seg", "segmentation",
    "semantic", "segmentationclass", "segmentationclasspng", "segmentationclassnpy",
    "segmentationclassaug",
}  # fmt: skip
IMAGE_WORDS = {"image", "images", "img", "imgs", "jpegimages", "leftimg8bit", "photo", "photos"}
IMAGE_WORDS |= {"rgb", "sat"}
OTHER_WORDS = {"", "dir", "l"}  # mmsegmentation's img_dir, CamVid's _L
GAP = "[-_. ]"  # between words
STEMS = 4  # ways to take the name of an image
# Folders of pictures of masks, and of masks of single objects.
PREVIEWS = re.compile(
    "SegmentationObject.*|.*Visualization|masks_human|masks_instances|instance|semantic_rgb"
    "|__MACOSX",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Item:
    """An image and its mask."""

    image: Path
    split: str  # train, val or test; "" if the export does not say
    name: str  # with its folders, where several images have the same name
    mask: Path  # the file that holds the mask
    read: Callable[[], np.ndarray]  # the mask's values, int64 (H, W)


@dataclass(frozen=True)
class PathInfo:
    """What a path says, without the words for masks and images."""

    mask_stem: str  # of the file, without words for masks
    image_stems: tuple[str, ...]  # as it is, without words for images at its end, ...
    split: str
    folders: tuple[str, ...]
    is_mask: bool
    name: str  # of the file, as it is, with its folders


class ExportFolder:
    """The files of an export, those in linked folders too.

    Args:
        root: its folder.
        images: folder of the images below root or here, or a pattern such as *.jpg, if they lie
            elsewhere or look like masks.
        masks: likewise of the masks, if they look like images.

    Raises:
        DataError: no such folder or file.
    """

    def __init__(self, root: Path, images: str | None = None, masks: str | None = None) -> None:
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; unpack an archive first")
        self.root, self.bases, self.notes = root, [root], list[str]()
        self.files = list(walk(root))
        chosen_images = self._choose("images", images)
        chosen_masks = self._choose("masks", masks)
        self.pictures = chosen_masks if masks else self._pictures(self.files)
        mine = set() if self.bases == [root] else set(chosen_images)  # a pattern finds masks too
        found = [path for path in self.pictures if path not in mine and self.info(path).is_mask]
        self.masks = chosen_masks if masks else found
        others = (p for p in self._pictures(self.files) if not self.info(p).is_mask)
        photos = set(chosen_images if images else others) - set(self.masks)
        self.photos = sorted(path for path in photos if path.suffix != ".npy")

    def _choose(self, setting: str, given: str | None) -> list[Path]:
        """Return the pictures that a setting names, by a folder or by a pattern."""
        if not given:
            return []
        for base in (self.root / given, Path(given)):
            if base.is_dir():
                self.bases.insert(0, base)
                files = list(walk(base))
                self.files = list(dict.fromkeys((*self.files, *files)))
                return self._pictures(files)
        found = [
            path
            for path in walk(self.root)
            if any(fnmatch(name, given) for name in (path.name, str(path.relative_to(self.root))))
        ]
        if not found:
            raise DataError(
                f"{setting}={given}: no such folder in {self.root} or here, and no file that "
                "matches it as a pattern such as *.jpg"
            )
        return self._pictures(found)

    def _base(self, path: Path) -> Path:
        return next(base for base in self.bases if path.is_relative_to(base))

    def _pictures(self, files: Iterable[Path]) -> list[Path]:
        """Return the files that can be read as images or masks, without previews of masks."""
        return [
            path
            for path in files
            if (is_image(path) or path.suffix == ".npy")
            and not any(map(PREVIEWS.fullmatch, path.relative_to(self._base(path)).parts[:-1]))
        ]

    def named(self, *names: str) -> list[Path]:
        """Return the files of these names."""
        return [path for path in self.files if path.name in names]

    def select_masks(self, suffix: str) -> None:
        """Keep only masks whose stem ends in suffix, if there are any; all others are images."""
        if masks := [path for path in self.pictures if path.stem.endswith(suffix)]:
            self.photos = sorted({*self.photos, *self.masks} - set(masks))
            self.masks = masks

    def info(self, path: Path) -> PathInfo:
        """Take a path apart; the nearest name that says so tells whether it is a mask."""
        *parents, name = nfc(path.relative_to(self._base(path)).as_posix()).split("/")
        name = without_suffixes(name)
        mask_stem, is_mask = _strip(name, MASK_WORDS)
        image_stem, is_image = _strip(name, IMAGE_WORDS)
        says = True if is_mask else False if is_image and not image_stem else None  # or IMG_1234
        split, folders = "", list[str]()
        for parent in reversed(parents):
            rest, mask_word = _strip(parent, MASK_WORDS)
            rest, image_word = _strip(rest, IMAGE_WORDS)
            if says is None and (mask_word or image_word):
                says = mask_word
            if known := SPLITS.get(rest.lower().rstrip("0123456789")):
                split = split or known
            elif rest:
                folders.insert(0, rest)
        full = "_".join([*folders, name] if image_stem or not folders else folders)
        at_end = _strip(name, IMAGE_WORDS, ends=(-1,))[0]
        stems = (
            _strip(name, set(), ends=())[0],
            at_end,
            image_stem,
            _strip(image_stem, MASK_WORDS)[0],
        )
        return PathInfo(mask_stem, stems, split, tuple(folders), bool(says), full)

    def match(self, masks: Sequence[Path]) -> dict[Path, list[Path]]:
        """Find the images of each mask by name, split and folders; by fewer, if they suffice."""
        infos = {path: self.info(path) for path in (*masks, *self.photos)}
        matches = []
        for parts in (3, 2, 1):
            for kind in range(STEMS):
                by_key = defaultdict[Any, list[Path]](list)
                for path in self.photos:
                    info = infos[path]
                    by_key[(info.image_stems[kind], info.split, info.folders)[:parts]].append(path)
                found = {}
                for mask in masks:
                    info = infos[mask]
                    images = by_key[(info.mask_stem, info.split, info.folders)[:parts]]
                    if info.split:
                        images = [i for i in images if infos[i].split in ("", info.split)]
                    found[mask] = _same_file_name(mask, images)
                matches.append(found)
        return min(matches, key=_unclear)

    def pair(self, read: Callable[[Path], Callable[[], np.ndarray]]) -> list[Item]:
        """Return the masks with their images; masks without one are noted.

        Args:
            read: returns the function that reads a mask.

        Raises:
            DataError: no mask has an image; a mask has several.
        """
        matches = self.match(self.masks)
        self.note_bare(matches)
        items = list[Item]()
        for mask, images in matches.items():
            if len(images) > 1:
                raise DataError(
                    f"{mask}: {len(images)} images belong to this mask: {images[0]} and "
                    f"{images[1]}; choose with images=FOLDER or a pattern, such as "
                    f"images=*{images[0].suffix}"
                )
            items += [self.item(image, mask, read(mask)) for image in images]
        return items

    def check_images_once(self, items: Sequence[Item]) -> None:
        """Raise a DataError if an image has two masks."""
        masks = dict[Path, Path]()
        for item in items:
            if (mask := masks.get(item.image)) is None:
                masks[item.image] = item.mask
                continue
            advice = "convert a copy of the export with one of them"
            if item.mask.suffix != ".json":
                advice = (
                    f"choose with {self._choice(mask, item.mask)}; if each is the mask of one "
                    "class, put them in a folder for each class"
                )
            raise DataError(
                f"{item.image}: two masks belong to it, {mask} and {item.mask}; {advice}"
            )

    def _choice(self, one: Path, other: Path) -> str:
        """Return the settings that choose one of two masks: folders, or the ends of names."""
        base = self._base(one)
        paths = [path.relative_to(base).parts for path in (one, other)]
        depth = next(k for k, names in enumerate(zip(*paths, strict=False)) if len({*names}) > 1)
        if all(len(parts) > depth + 1 for parts in paths):
            start = Path() if base == self.root else base
            ways = [str(Path(start, *parts[: depth + 1])) for parts in paths]
        else:
            ends = [f"*{re.split(GAP, parts[-1])[-2]}{Path(parts[-1]).suffix}" for parts in paths]
            if ends[0] == ends[1] or any(fnmatch(p.name, end) for p in self.photos for end in ends):
                return "images=FOLDER masks=FOLDER, folders of their own"
            ways = ends
        return " or ".join(f"masks={way}" for way in ways)

    def note_bare(self, matches: Mapping[Path, list[Path]]) -> None:
        """Note the masks without an image; if none has one, raise a DataError."""
        bare = [mask for mask, images in matches.items() if not images]
        if bare and len(bare) == len(matches):
            raise DataError(
                f"{bare[0]}: no image belongs to this mask, nor to any other; "
                + (self._unread() or "name both alike, or set images=FOLDER masks=FOLDER")
            )
        if bare:
            self.notes.append(
                f"{len(bare)} of {len(matches)} masks have no image and are left out, such as "
                f"{bare[0]}"
            )

    def _unread(self) -> str:
        return unread_note(path for path in self.files if path.suffix != ".npy")

    def item(self, image: Path, mask: Path, read: Callable[[], np.ndarray]) -> Item:
        """Return an item with what the paths say."""
        here, there = self.info(mask), self.info(image)
        return Item(image, here.split or there.split, there.name, mask, read)

    def left_out(self, items: Sequence[Item]) -> list[str]:
        """Return notes on the files that are not used."""
        notes = list(self.notes)
        if left := sorted(set(self.photos) - {item.image for item in items}):
            notes.append(f"{len(left)} images without a mask are left out, such as {left[0]}")
        notes.append(self._unread())
        return [note for note in notes if note]


def without_suffixes(name: str) -> str:
    """Return a name or path without the suffixes of pictures: also NAME.jpg.png."""
    while is_image(path := Path(name)) or path.suffix == ".npy":
        name = name.removesuffix(path.suffix)
    return name


def _same_file_name(mask: Path, images: list[Path]) -> list[Path]:
    """Return, of several images, those whose name is the mask's to the letter, if any."""
    if len(images) > 1:
        for name in (mask.stem, without_suffixes(mask.name)):
            if same := [i for i in images if name in (i.name, without_suffixes(i.name))]:
                return same
    return images


def _unclear(matches: dict[Path, list[Path]]) -> int:
    """Return the number of masks that have no image of their own."""
    own = Counter(images[0] for images in matches.values() if len(images) == 1)
    return len(matches) - len(own)


def _strip(name: str, known: Set[str], ends: Sequence[int] = (-1, 0)) -> tuple[str, bool]:
    """Return a name without some words at its start and end, and whether it had any of them."""
    words = re.split(GAP, re.sub("annot$", "_annot", name))  # trainannot
    numbered = re.fullmatch(r"([a-z]+)(\d+)", words[0], re.IGNORECASE)
    if numbered and numbered[1].lower() in known and 0 in ends:  # image7 and mask7
        words[:1] = numbered.groups()
    removed = False
    for end in ends:
        while words and words[end].lower() in known | OTHER_WORDS:
            removed |= words.pop(end).lower() in known
    return "_".join(words), removed
