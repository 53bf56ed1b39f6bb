"""The rows of a comparison: which runs form one, and the settings by which it is named."""

from collections.abc import Callable, Iterable, Sequence
from operator import methodcaller
from typing import Any

from fcn.compare.runs import Run

# How the settings behind a choice begin, if not with its name; "": it may set any.
BEHIND = {"augmentation": "recipe.transforms", "experiment": "", "trainer": "trainer.sync"}


def split(runs: Iterable[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    """Return the runs by the value of a key."""
    parts: dict[Any, list[Run]] = {}
    for run in runs:
        parts.setdefault(key(run), []).append(run)
    return parts


def rows_of(runs: Iterable[Run]) -> list[list[Run]]:
    """Return the runs of each row, which differ in seed and fold alone.

    Runs of equal settings are several rows if they were trained on different images of one fold, or
    if a seed of a fold occurs twice.
    """
    rows = list(split(runs, lambda run: frozenset(run.settings.items())).values())
    for key in ("trained_on.checksum", "run"):
        own = methodcaller("chosen", key)
        rows = [r for row in rows for r in ([row] if _is_one(row) else split(row, own).values())]
    return rows


def _is_one(row: Sequence[Run]) -> bool:
    """Return True if no network occurs twice, and all of a fold were trained on the same images."""
    images = {(run.fold, run.chosen("trained_on.checksum")) for run in row}
    return len({run.network for run in row}) == len(row) and len(dict(images)) == len(images)


def names_of(rows: Sequence[Sequence[Run]]) -> list[dict[str, str]]:
    """Return the settings that name each row, KEY -> VALUE; "-" where a row has none.

    They are those typed that differ; the choices typed, such as recipe=modern, if other settings
    behind them differ; and any others that differ, as far as rows still have one name.
    """

    def names(*keys: str) -> list[dict[str, str]]:
        return [{key: _value(row, key) for key in keys} for row in rows]

    def count(*keys: str) -> int:
        return len({str(name) for name in names(*keys)})

    typed = dict.fromkeys((*(key for row in rows for run in row for key in run.given), "model"))
    settings = dict.fromkeys(key for row in rows for key in row[0].settings)
    differing = [key for key in settings if count(key) > 1]
    keys = list[str]()
    for key in typed:
        behind = BEHIND.get(key, f"{key}.")
        brings = any(one.startswith(behind) and one not in typed for one in differing)
        if key in differing or (brings and count(key) > 1):
            keys.append(key)
    for key in (*differing, "trained_on.images", "trained_on.checksum", "run"):
        if count(*keys, key) > count(*keys):
            keys.append(key)
    return names(*keys)


def _value(row: Sequence[Run], key: str) -> str:
    """Return a setting of a row; of a choice, which others may have by default, the first typed."""
    return next((value for run in row if (value := run.chosen(key)) != "-"), "-")
