"""What any one value must be, whichever setting it is of; the messages say of which key."""

import math
import os
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from fcn.config import ConfigError

MOST_SEED = 2**32 - 1  # numpy takes no larger one
WORKERS_PER_CORE = 16  # more processes would only wait for one another


def check_values(value: Any, key: str = "") -> None:
    """Looks through settings for what no key can use: an empty text, NaN, infinity.

    Raises: ConfigError: names the key, such as recipe.scale[0].
    """
    if is_dataclass(value):
        for field in fields(value):
            inner = getattr(value, field.name)
            if inner != "" or field.default != "":
                check_values(inner, f"{key}.{field.name}".lstrip("."))
    elif isinstance(value, dict):
        for name, inner in value.items():
            check_values(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check_values(inner, f"{key}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key} must be a finite number, got {value}")
    elif value == "":
        raise ConfigError(f"{key} is empty; give it a value, or leave it out")


def one_of(key: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ConfigError(f"{key} must be one of {', '.join(map(str, choices))}, got {value!r}")


# Of the numbers, null is left alone: it stands for what the setting is without one.
def at_least(key: str, value: float | None, least: float) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{key} must be at least {least}, got {value}")


def between(key: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:
        raise ConfigError(f"{key} must be in {least}..{most}, got {value}")


def below_one(key: str, value: float | None) -> None:
    if value is not None and not 0 <= value < 1:
        raise ConfigError(f"{key} must be at least 0 and below 1, got {value}")


def positive(key: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise ConfigError(f"{key} must be positive, got {value}")


def workers(key: str, value: int | None, least: int) -> None:
    between(key, value, least, WORKERS_PER_CORE * (os.cpu_count() or 1))


def distinct(key: str, names: Sequence[str]) -> None:
    """Raises: ConfigError: a name is no text, or comes twice."""
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"{key} must be names, got {name!r} among them")
        if names.count(name) > 1:
            raise ConfigError(
                f"{key} must name each one once, got {name} {names.count(name)} times"
            )


def writable(key: str, folder: Path) -> None:
    """Makes sure, before long work, that files can be written to a folder, there or yet to be made.

    Raises: ConfigError: they cannot; says why.
    """
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        with TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"{key}: nothing can be written to {folder} ({place}: {reason}); name another place"
        ) from None
