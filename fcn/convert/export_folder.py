"""The files of an export: which are masks, and which image each mask belongs to.

1. Words for masks and for images at the start or end of a name, such as NAME_mask, tell which is
   which: those of the file's own name, or else those of its nearest folder that has any.
2. A mask and its image have the same name once suffix and these words are removed.
3. Of several such images the one of the same split and the same folders counts.
4. A folder called train, valid, test or the like is a split.
5. `images=` and `masks=` say where the files are, if their names do not.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from fcn.data.files import is_image, nfc, unread_note, walk
from fcn.data.images import file_errors
from fcn.errors import DataError

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "dev": "val"}
SPLITS |= {"validation": "val", "test": "test", "testing": "test"}
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


class ExportFolder:
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
        self.root, self.scratch, self.bases, self.notes = root, scratch, [root], list[str]()
        self.files = list(walk(root))
        chosen_images, chosen_masks = self._choose("images", images), self._choose("masks", masks)
        self.info = cache(self._info)
        pictures = self._pictures(self.files)
        made = {path.parent for path in self.files if path.name == PREDICTIONS}
        predicted = {path for path in pictures if not made.isdisjoint(path.parents)}
        self.pictures, self.masks_are_given = chosen_masks if masks else pictures, bool(masks)
        here = set() if self.bases == [root] else set(chosen_images)  # a pattern finds masks too
        named = [path for path in self.pictures if path not in here and self.info(path).is_mask]
        self.masks = chosen_masks if masks else named
        bare = [p for p in pictures if not self.info(p).is_mask and p not in predicted]
        photos = chosen_images if images else bare
        self.photos = sorted(p for p in set(photos) - set(self.masks) if p.suffix != ".npy")
        self._innermost = {self.info(path).folders[-1:] for path in self.photos}
        self._by_name = defaultdict[str, list[Path]](list)
        others = (path for path in self.pictures if path not in predicted)
        for path in dict.fromkeys((*self.photos, *others)):
            for key in {nfc(path.name), nfc(path.stem)}:
                self._by_name[key].append(path)

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

    def _parts(self, path: Path) -> tuple[str, ...]:
        base = next((base for base in self.bases if path.is_relative_to(base)), path.parent)
        return path.relative_to(base).parts

    def _pictures(self, files: Iterable[Path]) -> list[Path]:
        """Return the files that can be read as images or masks, without previews of masks."""
        return [
            path
            for path in files
            if (is_image(path) or path.suffix == ".npy")
            and not any(map(PREVIEWS.fullmatch, self._parts(path)[:-1]))
        ]

    def files_named(self, *names: str) -> list[Path]:
        """Return the files of these names."""
        return [path for path in self.files if path.name in names]

    def json_files(self, *words: str, name: str = "") -> Iterator[tuple[Path, Any]]:
        """Yield the JSON files, of a name if one is given, that hold some words, with content."""
        for path in self.files_named(name) if name else self.files:
            if path.suffix.lower() == ".json":
                with file_errors(path, "file"):
                    text = path.read_text("utf-8-sig")
                    content = json.loads(text) if all(word in text for word in words) else None
                if content is not None:
                    yield path, content

    def select_masks(self, suffix: str) -> None:
        """Keep only masks whose stem ends in suffix, if there are any; all others are images."""
        if masks := [path for path in self.pictures if path.stem.endswith(suffix)]:
            self.photos = sorted({*self.photos, *self.masks} - set(masks))
            self.masks = masks

    def _info(self, path: Path) -> PathInfo:
        """Take a path apart."""
        *parents, name = map(nfc, self._parts(path))
        name = without_suffixes(name)
        mask_stem, has_word = strip_words(name, MASK_WORDS)
        stem, _ = strip_words(name, MASK_WORDS | IMAGE_WORDS)
        is_mask = has_word or (None if stem else False)  # IMG_1234 says nothing
        split, folders = "", list[str]()
        for parent in reversed(parents):
            rest, mask_word = strip_words(parent, MASK_WORDS)
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

        Of several, prefer in turn the same path, beside `source`, its split, its folders, no mask.
        If the export has the folder that the name says, an image elsewhere is another one.

        Args:
            name: of the image, or the end of its path; without its suffix if need be.
            source: the annotation file.
            split: that the file says, if it does.

        Raises:
            DataError: several remain.
        """
        parts = [part for part in re.split(r"[\\/]", nfc(name)) if part not in ("", ".", "..")]
        found = self._by_name.get(parts[-1], []) if parts else []
        said = self.info(self.root.joinpath(*parts)).folders[-1:]
        if said and said in self._innermost:
            found = [path for path in found if self.info(path).folders[-1:] == said]
        here = self.info(source)
        for rule in (
            lambda path: [*map(nfc, path.absolute().parts[-len(parts) :])] == parts,
            lambda path: path.parent == source.parent,
            lambda path: self.info(path).split in (split or here.split, ""),
            lambda path: self.info(path).folders == here.folders,
            lambda path: path in self.photos,
        ):
            found = list(filter(rule, found)) or found if len(found) > 1 else found
        if len(found) > 1:
            raise DataError(
                f"{source}: {found[0]} and {found[1]} are both called {name}; set images=FOLDER"
            )
        return found[0] if found else None

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
        return Item(image, split or here.split or there.split, there.name, mask, read)

    def left_out(self, items: Sequence[Item]) -> list[str]:
        """Return notes on the files that are not used."""
        used = {path for item in items for path in (item.image, item.mask)}
        names = {nfc(item.image.stem) for item in items}
        lacking = "a mask" if items[0].mask in self.pictures else "annotations"
        left = [path for path in self.photos if path not in used]
        groups = {
            f"images without {lacking} are": [p for p in left if nfc(p.stem) not in names],
            "pictures are called like images in use and": [p for p in left if nfc(p.stem) in names],
            "pictures that look like masks are": [path for path in self.masks if path not in used],
        }
        notes = [f"{len(p)} {text} left out, such as {p[0]}" for text, p in groups.items() if p]
        return [note for note in (*self.notes, *notes, self._unread()) if note]


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
    words, removed = re.split(GAP, re.sub("annot$", "_annot", name)), False  # trainannot
    for end in (-1, 0):
        while words and words[end].lower() in known | OTHER_WORDS:
            removed |= words.pop(end).lower() in known
    numbered = re.fullmatch(r"([a-z]+)(\d+)", words[0], re.IGNORECASE) if words else None
    if numbered and numbered[1].lower() in known:  # image7 and mask7
        words[0], removed = numbered[2], True
    return "_".join(words), removed
