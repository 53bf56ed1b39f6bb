"""What every script shares: Hydra in front, memory kept, and errors that a user can read."""

import argparse
import ctypes
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_args

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fcn import config
from fcn.checks.values import check_values

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
CONFIGS = str(config.REPOSITORY / "configs")
DEBUG = re.compile(r"\+*debug=(true|yes|on|y|1)", re.IGNORECASE)  # what Hydra takes for true
OF_HYDRA = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")  # that a user may set
PLAINER = (  # OmegaConf's words, and what they say to a user
    (r"Invalid value assigned: .* is not a ListConfig, list or tuple\.", "wants a list: [a,b]"),
    (r"field '.*' is not Optional", "cannot be null"),
    (r".* does not support deletion", "cannot be left out"),
)
MEMORY = {"train": "recipe.batch_size or recipe.crop", "predict": "batch_size or tile"}  # smaller


def run(name: str, main: Callable[[Any], None], prepare: Callable[[], None] = lambda: None) -> None:
    """Composes `configs/NAME.yaml` with the command line and calls `main` on its dataclass.

    `prepare` runs before, to look at or complete the command line.

    An error that the user can mend ends the program with one line on stderr and exit code 1, and
    so does any other; `debug=true` shows the traceback.
    """
    config.register()
    keep_memory()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to here instead of printing them
    argparse.ArgumentParser.error = _refuse_flag  # type: ignore # Hydra's parser

    failures: list[Exception] = []

    @hydra.main(config_path=CONFIGS, config_name=name, version_base="1.3")
    def entry(cfg: Any) -> None:
        try:
            if HydraConfig.get().run.dir == "":
                raise config.ConfigError("hydra.run.dir is empty; name a folder, or leave it out")
            settings = OmegaConf.to_object(cfg)
            _refuse_unknown(settings, name)
            check_values(settings)
            main(settings)
        except Exception as error:  # past Hydra, which would print more around it
            failures.append(error)

    try:
        _refuse_bare_words(sys.argv[1:])
        prepare()
        entry()
        if failures:
            raise failures[0]
    except SystemExit:
        raise
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if any(map(DEBUG.fullmatch, sys.argv)):
            raise
        text = explain(error, name)
        if isinstance(error, OSError) and not (failures or isinstance(error, HydraException)):
            text = f"hydra.run.dir: no folder can be made there ({text}); name another"
        if len(failures) > 1:
            text += f" (and {len(failures) - 1} more runs failed)"
        if isinstance(error, config.Interrupted):
            print(text, file=sys.stderr)
            sys.exit(error.code)
        print(f"error: {text}", file=sys.stderr)
        sys.exit(1)


def keep_memory() -> None:
    """Has glibc, where that is the C library, keep what is freed for what is allocated next.

    Otherwise every tensor of more than 32 MB comes as new pages that the kernel has to clear, which
    takes longer than most that is done with them: a third of a training step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(parameter, value)


class Tidy(Callback):
    """Puts a run's folder back as it was, if Hydra's record of the settings is all that is new.

    So a command that is refused leaves no folder, and takes nothing from a run that is there: what
    that was trained with is what `resume` goes by. Named in the configs of scripts with a folder.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self.folder = Path(config.hydra.run.dir).absolute()
        self.record = self.folder / (config.hydra.output_subdir or ".hydra")
        above = (self.folder, *self.folder.parents)
        self.new = [folder for folder in above if not folder.exists()]  # innermost first
        self.others = self._others()
        recorded = self.record.iterdir() if self.record.is_dir() else ()
        self.recorded = {path: path.read_bytes() for path in recorded}

    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        if self._others() != self.others:
            return
        shutil.rmtree(self.record, ignore_errors=True)
        if self.recorded:
            self.record.mkdir(exist_ok=True)  # another rank may be at it too
        for path, content in self.recorded.items():
            path.write_bytes(content)
        with suppress(OSError):  # another run may have begun beside it
            for folder in self.new:
                folder.rmdir()

    def _others(self) -> dict[Path, int]:
        """When each thing in the folder but the record was changed; a folder is, by a new file."""
        if not self.folder.is_dir():
            return {}
        there = (path for path in self.folder.iterdir() if path != self.record)
        return {path: path.lstat().st_mtime_ns for path in there}


def quoted(path: Path) -> str:
    """A path as a value on Hydra's command line, whatever characters it has."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def explain(error: BaseException, name: str) -> str:
    """One line of what went wrong: the key, its value and the choices, or the error's own text."""
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
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
        text = str(error).strip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, config.UserError):
        return text
    if isinstance(error, OSError):
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
            return where + _unknown_key(full[1] if in_dict or not wanted else wanted[1], name)
        reason = " ".join(re.split(r"\s*full_key:", text)[0].split())
        for theirs, ours in PLAINER:
            reason = re.sub(theirs, ours, reason)
        return f"{where}{full[1]}: {reason}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1], name)
    return " ".join(
        re.sub(r"\n?(Set the environment|Config search path).*", "", text, flags=re.S).split()
    )


def _unknown_key(key: str, name: str) -> str:
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


def _unreadable(override: str) -> str:
    """What to say of an argument that Hydra's grammar does not take."""
    key, equals, value = override.partition("=")
    if not (key and equals):
        return f"{override!r} is no setting; give key=value, without spaces around the ="
    plain = value.strip("\"'").replace('"', '\\"')
    whole = shlex.quote(f'{key}="{plain}"')
    return (
        f"cannot read {override}; close every bracket and quote, or quote the value whole: {whole}"
    )


def _refuse_bare_words(arguments: list[str]) -> None:
    """Raises: ConfigError: an argument that is neither key=value nor a flag, or a flag's own."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if not re.match(r"[-~]|[^=]+=", argument) and not before.startswith("-"):
            raise config.ConfigError(_unreadable(argument))


def _refuse_flag(_: argparse.ArgumentParser, message: str) -> NoReturn:
    """In place of argparse's own, which prints the usage and exits with 2."""
    raise config.ConfigError(f"{message}; flags come before or after all key=value, see --help")


def _refuse_unknown(settings: Any, name: str, key: str = "") -> None:
    """Raises: ConfigError: a key that + has added, but nothing reads."""
    known = {field.name for field in fields(settings)}
    for field, value in vars(settings).items():
        own = f"{key}.{field}".lstrip(".")
        if field not in known:
            raise config.ConfigError(_unknown_key(own, name))
        if is_dataclass(value):
            _refuse_unknown(value, name, own)
