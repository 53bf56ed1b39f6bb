"""What settings name by `_target_`: classes of other packages, with their arguments."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from fcn.errors import ConfigError

# From the names of a target's parameters and its given arguments to those it is called with.
Complete = Callable[[set[str], dict[str, Any]], dict[str, Any]]


def import_object(name: str) -> Any:
    """Return a class or function by its module and name; unlike Hydra, print nothing."""
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute)
    if not callable(found):
        raise TypeError("neither a class nor a function")
    return found


def import_class(name: str) -> type:
    """Return a class by its module and name."""
    found = import_object(name)
    if not inspect.isclass(found):
        raise TypeError("a function, where a class is needed that is built from its arguments")
    return found


def build(entry: Any, complete: Complete, load: Callable[[str], Any] = import_class) -> Any:
    """Return what settings describe: mappings with a `_target_` become objects, at any depth.

    As in Hydra, `_args_` are positional arguments, and `_partial_: true` gives a
    functools.partial. Inside another target, a function may stand in place of a class.

    Args:
        entry: settings: a mapping, a list or a plain value.
        complete: adds what a target should get beside the settings' arguments.
        load: returns what the outermost target names.

    Raises:
        ConfigError: a target is no class that can be imported, or does not take its arguments.
    """
    if isinstance(entry, list):
        return [build(part, complete, load) for part in entry]
    if not isinstance(entry, Mapping):
        return entry
    given = {
        key: build(value, complete, import_object)
        for key, value in entry.items()
        if key != "_target_"
    }
    if "_target_" not in entry:
        return given
    try:
        target = load(entry["_target_"])
        args, waits = given.pop("_args_", []), given.pop("_partial_", False)
        filled = complete(set(inspect.signature(target).parameters), given)
        return partial(target, *args, **filled) if waits else target(*args, **filled)
    except Exception as error:  # of whatever library it is
        raise ConfigError(f"{entry['_target_']}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Return the first line of what another library's error says."""
    cause = error.__cause__ or error
    return next(iter(str(cause).splitlines()), "") or type(cause).__name__
