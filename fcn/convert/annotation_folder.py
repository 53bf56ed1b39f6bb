"""The files of an export: which are masks, and which image each mask belongs to.

1. Words for masks and for images at the start or end of a name, such as NAME_mask, tell which is
   which: those of the file's own name, or else those of its nearest folder that has any.
2. A mask and its image have the same name once suffix and these words are removed.
3. Of several such images the one of the same split and the same folders counts.
4. A folder called train, valid, test or the like is a split.
5. `images=` and `masks=` say where the files are, if their names do not.
"""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import numpy as np

from fcn.data.files import is_image, nfc, unread_note, walk
from fcn.data.images import file_errors
from fcn.errors import DataError

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "dev": "val"}
SPLITS |= {"validation": "val", "test": "test", "testing": "test"}
MASK_WORDS = {
    "ann", "annotation", "annotations", "annot", "label", "labels", "labelids", "mask", "masks",
    "masksmachine", "gt", "gtfine", "gtcoarse", "truth", "truths", "groundtruth", "groundtruths",
    "seg", "segmentation", "semantic", "segmentationclass", "segmentationclasspng",
    "segmentationclassnpy", "segmentationclassaug",
}  # fmt: skip
IMAGE_WORDS = {"image", "images", "img", "imgs", "jpegimages", "leftimg8bit", "photo", "photos"}
IMAGE_WORDS |= {"rgb", "sat"}
OTHER_WORDS = {"", "dir", "l"}  # mmsegmentation's img_dir, CamVid's _L
GAP = "[-_. ]"  # between words
PAIR = re.compile(f"(ground){GAP}(truths?)|(masks){GAP}(machine)", re.IGNORECASE)  # one word each
SHOWN = 3  # files in a note
PREDICTIONS = "predict.json"  # in a folder of masks and overlays by predict.py: no photographs
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
    """What the path of a file says."""

    stems: tuple[str, str]  # the name without words for masks, and also without those for images
    split: str
    folders: tuple[str, ...]  # without splits and such words
    is_mask: bool
    name: str  # of the file, with its folders


class AnnotationFolder:
    """The files of an export, those in linked folders too.

    Args:
        root: its folder.
        scratch: a folder for images that are no files yet.
        images: folder of the images below root or here, or a pattern such as *.jpg.
        masks: likewise of the masks.

    Raises:
        DataError: no such folder or file.
    """

    def __init__(
        self, root: Path, scratch: Path, images: str | None = None, masks: str | None = None
    ) -> None:
        if root.is_file():
            raise DataError(
                f"{root}: a file; give the folder in which it lies, or an archive that ends in .zip"
            )
        if not root.is_dir():
            raise DataError(f"{root}: no such folder, nor an archive that ends in .zip")
        self.root, self.scratch = Path(os.path.abspath(root)), Path(os.path.abspath(scratch))
        self.bases, self.notes, self.files = [self.root], list[str](), list(walk(self.root))
        chosen_images, chosen_masks = self._choose("images", images), self._choose("masks", masks)
        self.info, self._mask_words = cache(self._info), MASK_WORDS
        pictures = self._pictures(self.files)
        if not any(self.info(path).is_mask for path in pictures):
            self.info, self._mask_words = cache(self._info), MASK_WORDS | {"ground"}  # or a class
        made = {path.parent for path in self.files if path.name == PREDICTIONS}
        predicted = {path for path in pictures if not made.isdisjoint(path.parents)}
        self.pictures, self.masks_are_given = chosen_masks if masks else pictures, bool(masks)
        # A pattern finds masks too.
        here = set() if self.bases == [self.root] else set(chosen_images)
        named = [path for path in self.pictures if path not in here and self.info(path).is_mask]
        self.masks = chosen_masks if masks else named
        bare = [p for p in pictures if not self.info(p).is_mask and p not in predicted]
        photos = chosen_images if images else bare
        self.photos = sorted(p for p in set(photos) - set(self.masks) if p.suffix != ".npy")
        about = [self.info(path) for path in self.photos]
        self.places = {p for info in about for p in (info.split, *info.folders[-1:]) if p}
        names = {nfc(path.stem) for path in self.photos}
        paired = {path.parent for path in self.masks if nfc(path.stem) in names}
        self._mask_folders = paired - {path.parent for path in self.photos}
        self._by_name = defaultdict[str, list[Path]](list)
        others = (path for path in self.pictures if path not in predicted)
        for path in dict.fromkeys((*self.photos, *others)):
            for key in {nfc(path.name), nfc(path.stem)}:
                self._by_name[key].append(path)

    def _choose(self, setting: str, given: str | None) -> list[Path]:
        """Return the pictures that a setting names, by a folder or by a pattern."""
        if not given:
            return []
        for path in (self.root / given, Path(given)):
            if path.is_dir():
                self.bases.insert(0, self._listed_folder(path))
                files = list(walk(self.bases[0]))
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

    def _listed_folder(self, path: Path) -> Path:
        """Return a folder as the export lists it, whatever links lead to it."""
        target, root = Path(os.path.realpath(path)), os.path.realpath(self.root)
        if target.is_relative_to(root):
            return self.root / target.relative_to(root)
        plain = Path(os.path.abspath(path))
        return plain if os.path.realpath(plain) == str(target) else target

    def file_at(self, path: Path) -> Path | None:
        """Return the file at a path, as the export lists it if it does; None if there is none."""
        found = self._listed_folder(path.parent) / path.name
        return found if found.is_file() else None

    def relative(self, path: Path) -> Path:
        """Return a path below the folder that was given; of a file elsewhere, its name."""
        base = next((base for base in self.bases if path.is_relative_to(base)), path.parent)
        return path.relative_to(base)

    def _pictures(self, files: Iterable[Path]) -> list[Path]:
        """Return the files that can be read as images or masks, without previews of masks."""
        return [
            path
            for path in files
            if (is_image(path) or path.suffix == ".npy")
            and not any(map(PREVIEWS.fullmatch, self.relative(path).parts[:-1]))
        ]

    def files_named(self, *names: str) -> list[Path]:
        """Return the files of these names."""
        return [path for path in self.files if path.name in names]

    def documents(self, *words: str, name: str = "", suffix: str = ".json") -> Iterator[Any]:
        """Yield path and content of the JSON or XML files, of a name if given, that hold words."""
        for path in self.files_named(name) if name else self.files:
            if path.suffix.lower() == suffix and has_words(path, words):
                with file_errors(path, "file"):
                    text = path.read_bytes()
                    content = json.loads(text) if suffix == ".json" else fromstring(text)
                yield path, content

    def select_masks(self, suffix: str) -> None:
        """Keep only masks whose stem ends in suffix, if there are any; all others are images."""
        if masks := [path for path in self.pictures if path.stem.endswith(suffix)]:
            self.photos = sorted({*self.photos, *self.masks} - set(masks))
            self.masks = masks

    def _info(self, path: Path) -> PathInfo:
        """Take a path apart."""
        *parents, name = map(nfc, self.relative(path).parts)
        name = without_suffixes(name)
        mask_stem, has_word = strip_words(name, self._mask_words)
        stem, _ = strip_words(name, self._mask_words | IMAGE_WORDS)
        is_mask = has_word or (None if stem else False)  # IMG_1234 says nothing
        split, folders = "", list[str]()
        for parent in reversed(parents):
            rest, mask_word = strip_words(parent, self._mask_words)
            rest, image_word = strip_words(rest, IMAGE_WORDS)
            if is_mask is None and (mask_word or image_word):
                is_mask = mask_word
            if known := SPLITS.get(rest.lower().rstrip("0123456789")):
                split = split or known
            elif rest:
                folders.insert(0, rest)
        full = "_".join([*folders, name] if stem or not folders else folders)
        return PathInfo((mask_stem, stem), split, tuple(folders), bool(is_mask), full)

    def find_image(self, name: str, source: Path, split: str = "") -> Path | None:
        """Return the image of a name in an annotation file, None if there is none.

        A picture among masks of photographs is none, unless it lies beside `source` or the name
        says its folder. Of several, prefer in turn the longest end of the path, beside `source`,
        its split or none, its folders, no mask.

        Args:
            name: of the image, or the end of its path; without its suffix if need be.
            source: the annotation file.
            split: that the file says, if it does.

        Raises:
            DataError: several remain, unless all are in other places than the one that is said.
        """
        *folders, last = _path_parts(name) or [""]
        split, here = self.said_split(name, source, split), self.info(source)
        found = [
            path
            for path in self._by_name.get(last, [])
            if path.parent not in self._mask_folders - {source.parent}
            or path.parent.name in folders
        ]

        def equal_folders(path: Path) -> int:
            above, ends = [*map(nfc, path.parts[:-1])], range(1, len(folders) + 1)
            return sum(above[-count:] == folders[-count:] for count in ends)

        for rule in (
            equal_folders,
            lambda path: path.parent == source.parent,
            lambda path: self.info(path).split in (split, ""),
            lambda path: self.info(path).folders == here.folders,
            lambda path: path in self.photos,
        ):
            if len(found) > 1:
                best = max(map(rule, found))
                found = [path for path in found if rule(path) == best]
        said = {split, *self._info_of_name(name).folders[-1:]} & self.places
        if len(found) > 1 and (not said or any(all(self.fits(p, name, split)) for p in found)):
            raise DataError(
                f"{source}: {found[0]} and {found[1]} are both called {name}; set images=FOLDER"
            )
        return found[0] if len(found) == 1 else None

    def said_split(self, name: str, source: Path, split: str = "") -> str:
        """Return the split that an annotation says: `split`, or by folders of its file or name."""
        said = self._info_of_name(name).split
        return split or self.info(source).split or (said if said in self.places else "")

    def fits(self, image: Path, name: str, split: str) -> tuple[bool, bool]:
        """Return whether an image is in the split and in the folder that an annotation says."""
        said, about = self._info_of_name(name), self.info(image)
        in_split = not split or about.split in ("", split, said.split)
        return in_split, not said.folders or about.folders[-1:] in ((), said.folders[-1:])

    def _info_of_name(self, name: str) -> PathInfo:
        return self.info(self.root.joinpath(*_path_parts(name)))

    def match(self) -> dict[Path, list[Path]]:
        """Find the images of each mask by name, split and folders, or fewer if that pairs more."""
        matches = []
        for parts, kind in product((3, 2, 1), (0, 1)):
            by_key, found = defaultdict[Any, list[Path]](list), dict[Path, list[Path]]()
            for path in self.photos:
                info = self.info(path)
                by_key[(info.stems[kind], info.split, info.folders)[:parts]].append(path)
            for mask in self.masks:
                info = self.info(mask)
                images = by_key[(info.stems[kind], info.split, info.folders)[:parts]]
                if info.split:
                    images = [i for i in images if self.info(i).split in ("", info.split)]
                found[mask] = _same_file_name(mask, images)
            matches.append(found)
        return min(matches, key=_unclear)

    def pair(
        self,
        matches: Mapping[Path, list[Path]],
        read: Callable[[Path], Callable[[], np.ndarray]],
    ) -> list[Item]:
        """Return the masks with their images; masks without one are noted.

        Args:
            matches: the images of each mask.
            read: returns the function that reads a mask.

        Raises:
            DataError: no mask has an image; a mask has several.
        """
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
            if item.image not in masks:
                masks[item.image] = item.mask
                continue
            advice = "convert a copy of the export with one of them"
            if item.mask in self.pictures:
                advice = (
                    "choose with masks=FOLDER, or a pattern such as masks=*_mask.png, and images= "
                    "likewise; if each is the mask of one class, put those of a class in a folder"
                )
            both = f"{masks[item.image]} and {item.mask}"
            raise DataError(f"{item.image}: two masks belong to it, {both}; {advice}")

    def note_bare(self, matches: Mapping[Path, list[Path]]) -> None:
        """Note the masks without an image; if none has one, raise a DataError."""
        bare = [mask for mask, images in matches.items() if not images]
        self.masks = [mask for mask in self.masks if mask not in bare]
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

    def item(
        self, image: Path, mask: Path, read: Callable[[], np.ndarray], split: str = ""
    ) -> Item:
        """Return an item, with what the paths say unless its split is given."""
        here, there = self.info(mask), self.info(image)
        return Item(image, split or there.split or here.split, there.name, mask, read)

    def left_out(self, items: Sequence[Item], title: str) -> list[str]:
        """Return notes on the files that are not used; the title is that of the format."""
        used = {path for item in items for path in (item.image, item.mask)}
        names = {nfc(item.image.stem) for item in items}
        lacking = "a mask" if items[0].mask in self.pictures else f"annotations of {title}"
        left = [path for path in self.photos if path not in used]
        groups = {
            f"images without {lacking} are": [p for p in left if nfc(p.stem) not in names],
            "pictures are called like images in use and": [p for p in left if nfc(p.stem) in names],
            "pictures that look like masks are": [path for path in self.masks if path not in used],
        }
        notes = [f"{len(p)} {text} left out, such as {p[0]}" for text, p in groups.items() if p]
        return [note for note in (*self.notes, *notes, self._unread()) if note]


def split_in(name: str) -> str:
    """Return the split that a name says, such as instances_val2017; "" if none, or several."""
    found = {SPLITS[word] for word in re.split(r"[\W\d_]+", name.lower()) if word in SPLITS}
    return found.pop() if len(found) == 1 else ""


def has_words(path: Path, words: Iterable[str]) -> bool:
    """Return True if the text of a file holds some words, whatever else it is."""
    with file_errors(path, "file"):
        content = path.read_bytes()
    return all(word.encode() in content for word in words)


def shown_files(paths: Sequence[Path]) -> str:
    """Return the first of some paths, as a note names them, and how many more there are."""
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(map(str, paths[:SHOWN])) + more


def _path_parts(name: str) -> list[str]:
    """Return the folders and the name in a path of any system."""
    return [part for part in re.split(r"[\\/]", nfc(name)) if part not in ("", ".", "..")]


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


def strip_words(name: str, known: Set[str]) -> tuple[str, bool]:
    """Return a name without some words at its start and end, and whether it had any of them."""
    name = PAIR.sub(lambda pair: re.sub(GAP, "", pair[0]), name)
    words, removed = re.split(GAP, re.sub("annot$", "_annot", name)), False  # trainannot
    for end in (-1, 0):
        while words and words[end].lower() in known | OTHER_WORDS:
            removed |= words.pop(end).lower() in known
    numbered = re.fullmatch(r"([a-z]+)(\d+)", words[0], re.IGNORECASE) if words else None
    if numbered and numbered[1].lower() in known:  # image7 and mask7
        words[0], removed = numbered[2], True
    return "_".join(words), removed
