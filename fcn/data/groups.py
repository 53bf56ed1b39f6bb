"""Groups of images that belong together, such as frames of one film, and folds made of them."""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePath

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


def group_in(path: PurePath, pattern: re.Pattern[str]) -> str | None:
    """Return what groups an image: a part of its name, or else of its path; None if none does."""
    for text in (path.stem, path.name, path.as_posix()):
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
