"""Errors in one line that a user can read: what, where and what to do."""

import errno
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_args

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fcn import config

OF_HYDRA = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")  # that a user may set
PLAINER = (  # OmegaConf's words, and what they say to a user
    (r"Invalid value assigned: .* is not a ListConfig, list or tuple\.", "wants a list: [a,b]"),
    (r"field '.*' is not Optional", "cannot be null"),
    (r".* does not support deletion", "cannot be left out"),
)
MEMORY = {"train": "recipe.batch_size or recipe.crop", "predict": "batch_size or tile"}  # smaller


def explain(error: BaseException, name: str) -> str:
    """One line of what went wrong: the key, its value and the choices, or the error's own text."""
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice}: there is no such choice; {_choices(choice, error.options)}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        texts = [str(error)]
        while (error := error.__cause__) is not None:  # type: ignore[assignment]
            texts.append(str(error))
        return _explain_config(texts, name)
    text = " ".join(str(error).split())
    if text.startswith("Caught "):  # in a loader's process: its traceback, then the error's line
        text = str(error.args[0]).strip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, config.UserError):
        return text
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC and error.filename is None:
            return "the disk is full; free some, and start again: what was finished before is whole"
        named = error.filename is not None and error.strerror
        return f"{error.filename}: {error.strerror}" if named else text or type(error).__name__
    if isinstance(error, YAMLError):
        return f"not readable as YAML: {text}"
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError") or "allocate memory" in text:
        return f"out of memory; give a smaller {MEMORY.get(name, 'batch_size')} ({text[:120]} ...)"
    return f"{type(error).__name__}: {text} (debug=true shows where)"


def _explain_config(texts: list[str], name: str) -> str:
    """Hydra's and OmegaConf's messages run over many lines; this keeps what the user needs."""
    if len(texts) > 1 and texts[0].startswith("Error merging override"):
        texts = texts[1:]  # says why
    text = " ".join(texts)
    file = re.match(r"In '(\S+/\S+)': .*composing config:\n", text)
    where, text = (f"{file[1]}: ", text[file.end() :]) if file else ("", text)
    if full := re.search(r"full_key: (\S+)", text):
        if re.search(r"Key '[^']+' (?:is )?not in", text):
            wanted = re.search(r"Could not override '([^']+)'", text)
            in_dict = "is not in struct" in text  # a key there may be, but has to be added
            return where + unknown_key(full[1] if in_dict or not wanted else wanted[1], name)
        reason = " ".join(re.split(r"\s*full_key:", text)[0].split())
        for theirs, ours in PLAINER:
            reason = re.sub(theirs, ours, reason)
        return f"{where}{full[1]}: {reason}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(found[1], name)
    return " ".join(
        re.sub(r"\n?(Set the environment|Config search path).*", "", text, flags=re.S).split()
    )


def unknown_key(key: str, name: str) -> str:
    """Names the keys there are, the nearest first."""
    if key.startswith("hydra."):
        return f"unknown key {key}: {_choices(key, OF_HYDRA)}; --hydra-help tells of more"
    node: Any = config.SCHEMAS[name]
    parts = key.split(".")
    known: list[str] = []
    for depth, part in enumerate(parts):
        types = {f.name: f.type for f in fields(node)} if is_dataclass(node) else {}
        if not types:
            return f"unknown key {key}: +{key}=VALUE adds it to {'.'.join(parts[:depth])}"
        known = [".".join([*parts[:depth], field]) for field in types]
        if part not in types:
            break
        node = next((t for t in (types[part], *get_args(types[part])) if is_dataclass(t)), None)
    return f"unknown key {key}: {_choices(key, known)}"


def _choices(wanted: str, known: Sequence[str]) -> str:
    near = get_close_matches(wanted, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}choices: {', '.join(known)}"


def unreadable(override: str) -> str:
    """What to say of an argument that Hydra's grammar does not take."""
    key, equals, value = override.partition("=")
    if not (key and equals):
        return f"{override!r} is no setting; give key=value, without spaces around the ="
    plain = value.strip("\"'").replace('"', '\\"')
    whole = shlex.quote(f'{key}="{plain}"')
    return (
        f"cannot read {override}; close every bracket and quote, or quote the value whole: {whole}"
    )
