"""Groups of images that belong together, such as frames of one film, and folds made of them."""

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from fcn.config import DataConfig
from fcn.data.dataset import Listing
from fcn.data.files import nfc
from fcn.errors import ConfigError, DataError

VERSIONS = r"(.+)\.rf\.[^.]+"  # Roboflow's NAME_jpg.rf.HASH.jpg are versions of one photo


def check_pattern(group: str | None) -> re.Pattern[str]:
    """Return the regular expression of the setting `group`, or Roboflow's.

    Raises:
        ConfigError: it is none.
    """
    try:
        return re.compile(group or VERSIONS)
    except re.error as error:
        raise ConfigError(f"group={group}: not a regular expression ({error})") from None


def group_in(texts: Iterable[str], pattern: re.Pattern[str]) -> str | None:
    """Return what groups an image: what the pattern finds in the first of its names, or None."""
    for text in texts:
        if (match := pattern.search(nfc(text))) and (found := match[1 if pattern.groups else 0]):
            return found
    return None


def draw_folds(groups: Sequence[str], folds: int, seed: int) -> list[int]:
    """Return the fold of each image, 0 to folds - 1: groups stay together, sizes are balanced.

    The largest groups come first, each to the fold that is smallest so far.

    Args:
        groups: the group of each image.
        folds: their number.
        seed: of the draw.

    Raises:
        DataError: fewer groups than folds.
    """
    members = defaultdict[str, list[int]](list)
    for number, group in enumerate(groups):
        members[group].append(number)
    if len(members) < folds:
        raise DataError(
            f"data.folds={folds}: the {len(groups)} images are of {len(members)} groups; set fewer "
            "folds, or another data.group=REGEX"
        )
    sizes, result = [0] * folds, [0] * len(groups)
    order = random.Random(seed).sample(sorted(members), len(members))
    for name in sorted(order, key=lambda name: -len(members[name])):
        fold = sizes.index(min(sizes))
        sizes[fold] += len(members[name])
        for number in members[name]:
            result[number] = fold
    return result


def check_folds(data: DataConfig) -> None:
    """Raise a ConfigError if the settings of folds do not fit together."""
    for key in ("folds", "fold_seed", "group"):
        if data.fold is None and (value := getattr(data, key)) != getattr(DataConfig, key):
            raise ConfigError(
                f"data.{key}={value} needs data.fold=0, 1, ...: which one to validate"
            )
    if data.fold is None:
        return
    if data.fold >= data.folds:
        raise ConfigError(f"data.fold={data.fold}: must be 0 to {data.folds - 1}, see data.folds")
    if data.train_split == data.val_split:
        raise ConfigError("data.fold: data.train_split and data.val_split need two names")
    check_pattern(data.group)


def choose_fold(data: DataConfig, split: str, listings: Sequence[Listing]) -> Listing:
    """Return one side of a fold: the images to validate, or all others.

    Args:
        data: the data set; `check_folds` has passed it.
        split: data.train_split or data.val_split.
        listings: of data.train_split, and of data.val_split if there is one: divided together.

    Raises:
        DataError: fewer groups than folds.
        ConfigError: data.group is in no image's name.
    """
    pairs, pattern = [p for part in listings for p in part.pairs], check_pattern(data.group)
    found = [group_in((PurePosixPath(pair.id).name, pair.id), pattern) for pair in pairs]
    alone = found.count(None)
    if data.group and alone == len(pairs):
        raise ConfigError(f"data.group={data.group}: is in no image's name, such as {pairs[0].id}")
    groups = [group or pair.id for group, pair in zip(found, pairs, strict=True)]
    held_out = [fold == data.fold for fold in draw_folds(groups, data.folds, data.fold_seed)]
    by = "each image alone; data.group=REGEX keeps those of one film or scene together"
    if alone < len(pairs):
        by = f"by data.group={data.group}" if data.group else "by names before .rf."
        by += f", {alone} images alone" if alone else ""
    names = [data.train_split, *(data.val_split for part in listings[1:] if part.pairs)]
    validates = split == data.val_split
    note = (
        f"fold {data.fold} of {data.folds} of {' and '.join(names)}: of {len(pairs)} images in "
        f"{len(set(groups))} groups, {len(pairs) - sum(held_out)} to train on and "
        f"{sum(held_out)} to validate ({by}; data.fold_seed={data.fold_seed})"
    )
    return replace(
        listings[0],
        pairs=[pair for pair, held in zip(pairs, held_out, strict=True) if held == validates],
        name=f"{data.name} {split}, fold {data.fold} of {data.folds} ({listings[0].name})",
        problems=[problem for part in listings for problem in part.problems],
        notes=[*(note for part in listings for note in part.notes), note],
    )
