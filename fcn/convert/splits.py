"""Which split each image of an export belongs to: by lists of names, or drawn by groups."""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fcn.config import PrepareDataConfig
from fcn.convert.export_folder import SPLITS, Item, without_suffixes
from fcn.data.dataset import read_list
from fcn.data.files import nfc
from fcn.errors import ConfigError, DataError

VERSIONS = r"(.+)\.rf\.[^.]+"  # Roboflow's NAME_jpg.rf.HASH.jpg are versions of one photo
Lists = dict[Path, str]  # file of a list -> split


def listed_splits(items: Sequence[Item], files: Sequence[Path]) -> tuple[list[Item], list[str]]:
    """Return the items with the splits of lists such as val.txt, and notes.

    Lists count more than folders. Images in no list are left out if there is one of train.

    Raises:
        DataError: an image is in the lists of two splits.
    """
    by_folder = defaultdict[Path, Lists](dict)
    for path in files:
        words = [SPLITS[w] for w in re.split("[-_. ]", path.stem.lower()) if w in SPLITS]
        if path.suffix in (".txt", ".lst", ".csv") and len(words) == 1:
            by_folder[path.parent][path] = words[0]
    ends, unclear, readable = _path_ends(items), list[Path](), list[tuple[dict[int, Path], Lists]]()
    for lists in by_folder.values():
        found, lines = _named_items(lists, ends)
        if 2 * len(found) < min(lines, len(items)) or not found:
            unclear += lists
        else:
            readable.append((found, lists))
    notes = [f"{', '.join(map(str, unclear))}: there, but not understood"] if unclear else []
    if not readable:
        return list(items), notes
    readable.sort(key=lambda entry: (-len(entry[0]), "Segmentation" not in str(min(entry[1]))))
    (best, lists), *others = readable
    if others:
        notes.append(f"not used: {', '.join(str(path) for _, other in others for path in other)}")
    changed = [
        replace(item, split=lists[best[number]]) if number in best else item
        for number, item in enumerate(items)
    ]
    notes.append(f"splits by {', '.join(map(str, sorted(lists)))}")
    if other := sum(a.split not in ("", b.split) for a, b in zip(items, changed, strict=True)):
        notes.append(f"for {other} images the lists count, and not the folders")
    if "train" in lists.values() and len(best) < len(items):
        notes.append(f"{len(items) - len(best)} images in none of these lists are left out")
        changed = [changed[number] for number in sorted(best)]
    return changed, notes


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
    for start in range(len(parts)):
        if numbers := ends.get("/".join(parts[start:])):
            return next(iter(numbers)) if len(numbers) == 1 else None
    return None


def split_items(
    items: Sequence[Item], pattern: re.Pattern[str], root: Path, cfg: PrepareDataConfig
) -> tuple[list[Item], list[str]]:
    """Return the items with a split each, and notes; val is drawn if there is none."""
    groups = [group_of(item, pattern, root) for item in items]
    alone = sum(group == str(item.image) for group, item in zip(groups, items, strict=True))
    if cfg.group and alone == len(items):
        raise ConfigError(f"group={cfg.group}: is in no image's name, such as {items[0].image}")
    result, pool = draw(items, groups, cfg.val_share, cfg.seed)
    notes = []
    if pool:
        by = f"by group={cfg.group}" if cfg.group else "by names before .rf."
        if alone == len(items):
            by = "each image alone; group=REGEX keeps those of one film or scene on one side"
        elif alone:
            by += f", {alone} images alone"
        source = items[pool[0]].split or "train"
        lacking = {"train": "validation", "val": "training"}.get(source, "training or validation")
        origin = "" if source == "train" else f" from {source}"
        notes.append(
            f"no {lacking} split: drawn{origin} {_sides(result, groups, pool)} ({by}; "
            f"val_share={cfg.val_share}, seed={cfg.seed})"
        )
    if shared := shared_groups(result, groups):
        notes.append(
            f"train and val share {len(shared)} groups, such as {shared[0]}: if these are versions "
            "of one picture, the validation is too good"
        )
    return result, notes


def check_pattern(group: str | None) -> re.Pattern[str]:
    """Return the regular expression of the setting `group`, or Roboflow's.

    Raises:
        ConfigError: it is none.
    """
    try:
        return re.compile(group or VERSIONS)
    except re.error as error:
        raise ConfigError(f"group={group}: not a regular expression ({error})") from None


def group_of(item: Item, pattern: re.Pattern[str], root: Path) -> str:
    """Return what groups an image: a part of its name, or else of its path, or all of its path."""
    path = item.image.relative_to(root) if item.image.is_relative_to(root) else item.image
    for text in (path.stem, path.name, path.as_posix()):
        if (match := pattern.search(nfc(text))) and (found := match[1 if pattern.groups else 0]):
            return found
    return str(item.image)


def draw(
    items: Sequence[Item], groups: Sequence[str], share: float, seed: int
) -> tuple[list[Item], list[int]]:
    """Return the items with splits, val drawn by groups if there is none, and the drawn pool.

    Args:
        items: in any split; those without one count as train.
        groups: of each item; a group stays on one side.
        share: of the images that go to val, at most, but one group at least.
        seed: of the draw.

    Raises:
        DataError: a single group.
    """
    items = [replace(item, split=item.split or "train") for item in items]
    splits = {item.split for item in items}
    if {"train", "val"} <= splits:
        return items, []
    source = next(split for split in ("train", "val", "test") if split in splits)
    members = defaultdict[str, list[int]](list)
    for number, item in enumerate(items):
        if item.split == source:
            members[groups[number]].append(number)
    pool = [number for numbers in members.values() for number in numbers]
    if len(members) < 2:
        raise DataError(
            f"{items[pool[0]].image}: no validation split, and none can be drawn from "
            f"{len(pool)} images in one group; add images, or set another group=REGEX"
        )
    order = random.Random(seed).sample(sorted(members), len(members))
    size, drawn = max(1, round(share * len(pool))), set[int]()
    for name in order[:-1]:  # one group at least stays
        if len(drawn) + len(members[name]) <= size:
            drawn |= set(members[name])
    drawn = drawn or set(members[min(order, key=lambda name: len(members[name]))])
    for number in pool:
        items[number] = replace(items[number], split="val" if number in drawn else "train")
    return items, pool


def shared_groups(items: Sequence[Item], groups: Sequence[str]) -> list[str]:
    """Return the groups that are in train and in val."""
    train, val = (
        {group for item, group in zip(items, groups, strict=True) if item.split == split}
        for split in ("train", "val")
    )
    return sorted(train & val)


def _sides(items: Sequence[Item], groups: Sequence[str], pool: Sequence[int]) -> str:
    """Return how many images and groups the draw gave each side."""
    texts = []
    for split in ("train", "val"):
        numbers = [number for number in pool if items[number].split == split]
        count = len({groups[number] for number in numbers})
        texts.append(f"{split} {len(numbers)} images of {count} groups")
    return ", ".join(texts)
