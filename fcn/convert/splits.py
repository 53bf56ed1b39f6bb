"""Which split each image of an export belongs to: by lists of names, or drawn by groups."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path

from fcn.config import PrepareDataConfig
from fcn.convert.annotation_folder import (
    SPLITS,
    AnnotationFolder,
    Item,
    shown_files,
    split_in,
    without_suffixes,
)
from fcn.convert.annotation_set import AnnotationSet
from fcn.data.dataset import read_list
from fcn.data.files import nfc
from fcn.data.groups import group_in
from fcn.errors import ConfigError, DataError

Lists = dict[Path, str]  # file of a list -> split


def listed_splits(
    annotations: AnnotationSet, files: Sequence[Path]
) -> tuple[list[Item], list[str]]:
    """Return the items with the splits of lists such as val.txt, and notes.

    The lists that the export names are used, or those of one folder, or of one fold: of several,
    those that name most images. They count more than folders. Images in no list are left out if
    there is one of train.

    Raises:
        DataError: an image is in the lists of two splits.
    """
    items, unclear, usable = annotations.items, list[Path](), []
    groups = [annotations.lists] if annotations.lists else _groups(files, annotations.sources)
    ends = _path_ends(items) if groups else {}
    for lists in (fold for group in groups for fold in _folds(group, ends)):
        found, lines = _named_items(lists, ends)
        if found and 2 * len(found) >= min(lines, len(items)):
            usable.append((found, lists))
        else:
            unclear += lists
    notes = [f"{shown_files(unclear)}: there, but not understood"] if unclear else []
    if not usable:
        return list(items), notes
    usable.sort(key=lambda entry: (-len(entry[0]), "Segmentation" not in str(min(entry[1]))))
    (found, lists), *others = usable
    if left := [path for _, other in others for path in other if path not in lists]:
        notes.append(f"not used: {', '.join(map(str, left))}")
    notes.append(f"splits by {', '.join(map(str, sorted(lists)))}")
    changed = [
        replace(item, split=lists[found[number]]) if number in found else item
        for number, item in enumerate(items)
    ]
    if other := sum(a.split not in ("", b.split) for a, b in zip(items, changed, strict=True)):
        notes.append(f"for {other} images the lists count, and not the folders")
    if "train" in lists.values() and len(found) < len(items):
        notes.append(f"{len(items) - len(found)} images in none of these lists are left out")
        changed = [changed[number] for number in sorted(found)]
    return changed, notes


def _groups(files: Sequence[Path], annotations: Set[Path]) -> list[Lists]:
    """Return the lists of each folder; annotations, as YOLO's train_0001.txt, are none."""
    by_folder = defaultdict[Path, Lists](dict)
    for path in (path for path in files if path not in annotations):
        if path.suffix in (".txt", ".lst", ".csv") and (split := split_in(path.stem)):
            by_folder[path.parent][path] = split
    return [*by_folder.values()]


def _folds(lists: Lists, ends: dict[str, set[int]]) -> list[Lists]:
    """Return the lists of each fold, such as train_0 and val_0; all together if they agree."""
    try:
        _named_items(lists, ends)
        return [lists]
    except DataError:  # an image is in two splits
        by_words = defaultdict[tuple[str, ...], Lists](dict)
        for path, split in lists.items():
            words = re.findall(r"[^\W\d_]+|\d+", path.stem.lower())
            by_words[tuple(word for word in words if word not in SPLITS)][path] = split
        folds = [fold for fold in by_words.values() if {"train", "val"} <= {*fold.values()}]
        shared = {p: split for p, split in lists.items() if not any(p in fold for fold in folds)}
        return [fold | shared for fold in folds] or [lists]


def _path_ends(items: Sequence[Item]) -> dict[str, set[int]]:
    """Return the numbers of the items that each end of a path may mean."""
    ends = defaultdict[str, set[int]](set)
    for number, item in enumerate(items):
        for path in (item.image, item.mask):
            parts = without_suffixes(nfc(path.absolute().as_posix())).split("/")
            for start in range(len(parts)):
                ends["/".join(parts[start:])].add(number)
    return ends


def _named_items(lists: Lists, ends: dict[str, set[int]]) -> tuple[dict[int, Path], int]:
    """Return the list that names each item, by its number, and the number of lines."""
    found, lines = dict[int, Path](), 0
    for path, split in lists.items():
        for line in read_list(path):
            lines += 1
            for text in (line, *re.split(r"[\s,]+", line)[:1]):  # a name may have blanks
                if (number := _find(text, ends)) is None:
                    continue
                if lists[found.setdefault(number, path)] != split:
                    raise DataError(f"{path}: {text} is in {found[number]} too; remove it from one")
                break
    return found, lines


def _find(text: str, ends: dict[str, set[int]]) -> int | None:
    """Return the number of the item that a line means: by its path, or the longest end of it."""
    parts = without_suffixes(nfc(text.strip("\"'").replace("\\", "/"))).strip("./").split("/")
    found = (ends.get("/".join(parts[start:])) for start in range(len(parts)))
    numbers = next(filter(None, found), set[int]())
    return min(numbers) if len(numbers) == 1 else None


def split_items(
    items: Sequence[Item],
    pattern: re.Pattern[str],
    folder: AnnotationFolder,
    cfg: PrepareDataConfig,
) -> tuple[list[Item], list[str]]:
    """Return the items with a split each, and notes; val is drawn by groups if there is none.

    Args:
        items: in any split; those without one count as train.
        pattern: what its first group matches in a name or a path keeps images on one side.
        folder: the export.
        cfg: val_share of the images at most go to val, but one group at least, drawn by seed.

    Raises:
        ConfigError: the pattern is in no name.
        DataError: a single group.
    """
    groups = [_group_of(item, pattern, folder) for item in items]
    alone = sum(group == str(item.image) for group, item in zip(groups, items, strict=True))
    if cfg.group and alone == len(items):
        raise ConfigError(f"group={cfg.group}: is in no image's name, such as {items[0].image}")
    items = [replace(item, split=item.split or "train") for item in items]
    there, notes = {item.split for item in items}, list[str]()
    if not {"train", "val"} <= there:
        source = next(split for split in ("train", "val", "test") if split in there)
        pool = [number for number, item in enumerate(items) if item.split == source]
        own = {number: groups[number] for number in pool}
        if len(set(own.values())) < 2:
            raise DataError(
                f"{items[pool[0]].image}: no validation split, and none can be drawn from "
                f"{len(pool)} images in one group; add images, or set another group=REGEX"
            )
        val = _draw([*own.values()], cfg.val_share, cfg.seed)
        sides = {"train": set(own.values()) - val, "val": val}
        counts = {
            split: sum(group in side for group in own.values()) for split, side in sides.items()
        }
        grouped = alone < len(items)
        texts = [
            f"{split} {counts[split]} images" + f" of {len(sides[split])} groups" * grouped
            for split in sides
        ]
        items = [
            replace(item, split="val" if own[number] in val else "train") if number in own else item
            for number, item in enumerate(items)
        ]
        by = f"by group={cfg.group}" if cfg.group else "by names before .rf."
        if not grouped:
            by = "each image alone; group=REGEX keeps those of one film or scene on one side"
        elif alone:
            by += f", {alone} images alone"
        lacking = {"train": "validation", "val": "training"}.get(source, "training or validation")
        origin = "" if source == "train" else f" from {source}"
        notes.append(
            f"no {lacking} split: drawn{origin} {', '.join(texts)} ({by}; "
            f"val_share={cfg.val_share}, seed={cfg.seed})"
        )
    pairs = [*zip(items, groups, strict=True)]
    train, val = ({g for item, g in pairs if item.split == split} for split in ("train", "val"))
    if shared := sorted(train & val):
        notes.append(
            f"train and val share {len(shared)} groups, such as {shared[0]}: if these are versions "
            "of one picture, the validation is too good"
        )
    return items, notes


def _group_of(item: Item, pattern: re.Pattern[str], folder: AnnotationFolder) -> str:
    """Return what groups an image: a part of its name, or else of its path, or all of its path."""
    path, root = item.image, folder.root
    path = path.relative_to(root) if path.is_relative_to(root) else folder.relative(path)
    return group_in((path.stem, path.name, path.as_posix()), pattern) or str(item.image)


def _draw(groups: Sequence[str], share: float, seed: int) -> set[str]:
    """Return the groups, of those of each image, that go to val: one at least, and never all."""
    sizes, drawn = Counter(groups), set[str]()
    order = random.Random(seed).sample(sorted(sizes), len(sizes))
    room = max(1, round(share * len(groups)))  # images
    for name in order[:-1]:
        if sizes[name] <= room:
            drawn.add(name)
            room -= sizes[name]
    return drawn or {min(order, key=lambda name: sizes[name])}
