"""What every script shares: Hydra in front, and errors that a user can read."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import hydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fcn import config

CONFIGS = str(config.REPOSITORY / "configs")


def run(name: str, main: Callable[[Any], None], prepare: Callable[[], None] = lambda: None) -> None:
    """Composes `configs/NAME.yaml` with the command line and calls `main` on its dataclass.

    `prepare` runs before, to look at or complete the command line.

    An error that the user can mend ends the program with one line on stderr and exit code 1, and
    so does any other; `debug=true` shows the traceback.
    """
    config.register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to here instead of printing them

    failures: list[Exception] = []

    @hydra.main(config_path=CONFIGS, config_name=name, version_base="1.3")
    def entry(cfg: Any) -> None:
        try:
            main(OmegaConf.to_object(cfg))
        except Exception as error:  # past Hydra, which would print more around it
            failures.append(error)

    try:
        prepare()
        entry()
        if failures:
            raise failures[0]
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        if "debug=true" in (argument.lower() for argument in sys.argv):
            raise
        print(f"error: {config.printable(explain(error, name))}", file=sys.stderr)
        sys.exit(1)


def quoted(path: Path) -> str:
    """A path as a value on Hydra's command line, whatever characters it has."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def explain(error: BaseException, name: str) -> str:
    """One line of what went wrong: the key, its value and the choices, or the error's own text."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        texts = [str(error)]
        while (error := error.__cause__) is not None:  # type: ignore[assignment]
            texts.append(str(error))
        return _explain_config(" ".join(texts), name)
    text = " ".join(str(error).split())
    if text.startswith("Caught "):  # in a loader's process: its traceback, then the error's line
        text = str(error.args[0]).strip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, config.UserError):
        return text
    if isinstance(error, OSError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} (debug=true shows where)"


def _explain_config(text: str, name: str) -> str:
    """Hydra's and OmegaConf's messages run over many lines; this keeps what the user needs."""
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found.group(1), name)
    if full := re.search(r"full_key: (\S+)", text):
        if re.search(r"Key '[^']+' (?:is )?not in", text):
            return _unknown_key(full.group(1), name)
        reason = re.split(r"\s*full_key:", text)[0]
        return f"{full.group(1)}: {' '.join(reason.split())}"
    return " ".join(re.sub(r"Set the environment variable.*", "", text, flags=re.S).split())


def _unknown_key(key: str, name: str) -> str:
    """Names the keys there are, the nearest first."""
    node: Any = config.SCHEMAS[name]
    parts = key.split(".")
    known: list[str] = []
    for depth, part in enumerate(parts):
        types = {f.name: f.type for f in fields(node)} if is_dataclass(node) else {}
        known = [".".join([*parts[:depth], field]) for field in types]
        if part not in types:
            break
        node = next((t for t in (types[part], *get_args(types[part])) if is_dataclass(t)), None)
    near = get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown key {key}: {hint}choices: {', '.join(known)}"
