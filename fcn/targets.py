"""What settings name by `_target_`: classes of other packages, with their arguments."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from fcn.errors import ConfigError

# From the names of a target's parameters and its given arguments to those it is called with.
Complete = Callable[[set[str], dict[str, Any]], dict[str, Any]]


def class_named(name: str) -> type:
    """Return a class by its module and name; unlike Hydra's, without lines on the screen."""
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute)
    if not inspect.isclass(found):
        raise TypeError(f"{name} is no class")
    return found


def build(entry: Any, complete: Complete) -> Any:
    """Return what settings describe: mappings with a `_target_` become objects, at any depth.

    Args:
        entry: settings: a mapping, a list or a plain value.
        complete: adds what a target should get beside the settings' arguments.

    Raises:
        ConfigError: a target is no class that can be imported, or does not take its arguments.
    """
    if isinstance(entry, list):
        return [build(part, complete) for part in entry]
    if not isinstance(entry, Mapping):
        return entry
    given = {key: build(value, complete) for key, value in entry.items() if key != "_target_"}
    if "_target_" not in entry:
        return given
    try:
        target = class_named(entry["_target_"])
        return target(**complete(set(inspect.signature(target).parameters), given))
    except Exception as error:  # of whatever library it is
        raise ConfigError(f"{entry['_target_']}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Return the first line of what another library's error says."""
    cause = error.__cause__ or error
    return next(iter(str(cause).splitlines()), "") or type(cause).__name__
