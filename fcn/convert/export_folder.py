"""The files of an annotation tool's export: which are masks, and which image each belongs to."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
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
    """Split, folders and stem parsed from a path, without the words for masks and images."""

    stem: str
    split: str
    folders: tuple[str, ...]
    is_mask: bool
    name: str  # of the file, as it is, with its folders

    def key(self, parts: int) -> tuple[Any, ...]:
        return (self.stem, self.split, self.folders)[:parts]


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
        mine = set(chosen_images)
        found = [path for path in self.pictures if path not in mine and self.info(path).is_mask]
        self.masks = chosen_masks if masks else found
        photos = chosen_images if images else self._pictures(self.files)
        self.photos = sorted(p for p in set(photos) - set(self.masks) if p.suffix != ".npy")

    def _choose(self, setting: str, given: str | None) -> list[Path]:
        """Return the pictures that a setting names, by a folder or by a pattern."""
        if not given:
            return []
        for base in (self.root / given, Path(given)):
            if base.is_dir():
                self.bases.insert(0, base)
                files = list(walk(base))
                self.files += [path for path in files if path not in set(self.files)]
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
        stem, is_mask = _strip(name)
        if stem and not is_mask:  # masks are called IMG_1234 too
            is_mask = None
        split, folders = "", list[str]()
        for parent in reversed(parents):
            rest, says = _strip(parent)
            is_mask = says if is_mask is None else is_mask
            if known := SPLITS.get(rest.lower().rstrip("0123456789")):
                split = split or known
            elif rest:
                folders.insert(0, rest)
        full = "_".join([*folders, name] if stem or not folders else folders)
        return PathInfo(stem, split, tuple(folders), bool(is_mask), full)

    def match(self, masks: Sequence[Path]) -> dict[Path, list[Path]]:
        """Find the images of each mask by name, split and folders; by fewer, if they suffice."""
        infos = {path: self.info(path) for path in (*masks, *self.photos)}
        matches = []
        for parts in (3, 2, 1):
            by_key = defaultdict[Any, list[Path]](list)
            for path in self.photos:
                by_key[infos[path].key(parts)].append(path)
            found = {}
            for mask in masks:
                split = infos[mask].split
                images = by_key[infos[mask].key(parts)]
                images = [i for i in images if not split or infos[i].split in ("", split)]
                found[mask] = _same_file_name(mask, images)
            matches.append(found)
        return min(matches, key=lambda found: sum(len(images) != 1 for images in found.values()))

    def pair(self, read: Callable[[Path], Callable[[], np.ndarray]]) -> list[Item]:
        """Return the masks with their images; masks without one are noted.

        Args:
            read: returns the function that reads a mask.

        Raises:
            DataError: no mask has an image; a mask has several, or an image has.
        """
        matches = self.match(self.masks)
        bare = [mask for mask, images in matches.items() if not images]
        if bare and len(bare) == len(matches):
            raise DataError(self.no_image(bare))
        if bare:
            self.notes.append(
                f"{len(bare)} of {len(matches)} masks have no image and are left out, such as "
                f"{bare[0]}"
            )
        masks = dict[Path, Path]()
        for mask, images in matches.items():
            if len(images) > 1:
                raise DataError(
                    f"{mask}: {len(images)} images belong to this mask: {images[0]} and "
                    f"{images[1]}; choose with images=FOLDER or a pattern, such as "
                    f"images=*{images[0].suffix}"
                )
            for image in images:
                if image in masks:
                    raise DataError(
                        f"{image}: two masks belong to it, {masks[image]} and {mask}; choose with "
                        "masks=FOLDER or a pattern, such as masks=*_labels.png; if each is the "
                        "mask of one class, put them in a folder for each class"
                    )
                masks[image] = mask
        return [self.item(image, mask, read(mask)) for image, mask in masks.items()]

    def no_image(self, masks: Sequence[Path]) -> str:
        """Return the message for masks none of which has an image."""
        unread = unread_note(path for path in self.files if path.suffix != ".npy")
        return f"{masks[0]}: no image belongs to this mask, nor to any other; " + (
            unread or "name images and masks alike, or set images=FOLDER masks=FOLDER"
        )

    def item(self, image: Path, mask: Path, read: Callable[[], np.ndarray]) -> Item:
        """Return an item with what the paths say."""
        here, there = self.info(mask), self.info(image)
        return Item(image, here.split or there.split, there.name, mask, read)

    def left_out(self, items: Sequence[Item]) -> list[str]:
        """Return notes on the files that are not used."""
        notes = list(self.notes)
        if left := sorted(set(self.photos) - {item.image for item in items}):
            notes.append(f"{len(left)} images without a mask are left out, such as {left[0]}")
        notes.append(unread_note(path for path in self.files if path.suffix != ".npy"))
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


def _strip(name: str) -> tuple[str, bool | None]:
    """Return a name without the words for masks and images, and whether these say mask."""
    words = re.split("[-_. ]", re.sub("annot$", "_annot", name))  # trainannot
    known, removed = MASK_WORDS | IMAGE_WORDS | OTHER_WORDS, set[str]()
    numbered = re.fullmatch(r"([a-z]+)(\d+)", words[0], re.IGNORECASE)
    if numbered and numbered[1].lower() in known:  # image7 and mask7
        words[:1] = numbered.groups()
    for end in (-1, 0):
        while words and words[end].lower() in known:
            removed.add(words.pop(end).lower())
    is_mask = True if removed & MASK_WORDS else False if removed & IMAGE_WORDS else None
    return "_".join(words), is_mask
