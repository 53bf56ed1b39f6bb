"""The commands: Hydra composes the settings, pydantic checks them, errors are one line."""

import dataclasses
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fcn.config import (
    CONFIGS,
    SCHEMAS,
    DataConfig,
    as_typed,
    check,
    check_used_data,
    flat_keys,
    help_of,
    quoted,
    unknown_key,
)
from fcn.errors import ConfigError, Interrupted, UserError, describe_failure, message_of
from fcn.hydra_versions import VERSION_BASE, any_help_text
from fcn.output import LOCK, add_line, make_console, size_of
from fcn.processes import is_first
from fcn.training.record import (
    OUTPUTS,
    find_run,
    new_folder,
    read,
    run_of,
    settings_to_resume,
)

# What base.yaml says, which a config of --config-path lacks: Hydra writes nothing itself.
BASE = ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
COMMANDS = {  # name -> the module whose main(cfg, folder, console) it runs
    "train": "fcn.training.run",
    "evaluate": "fcn.inference.evaluate_checkpoint",
    "predict": "fcn.inference.predict_files",
    "export": "fcn.inference.export",
    "import_caffe": "fcn.tools.import_caffe",
    "prepare_data": "fcn.tools.prepare_data",
    "compare": "fcn.compare.compare",
    "explain": "fcn.explain.explain",
    "benchmark": "fcn.tools.benchmark",
}
# Keys with entries of any name, which Hydra would want a + for: Lightning's Trainer has many.
OPEN_KEYS = (
    r"^\+*((?:trainer\.|logger\.|callbacks\.|model\.skip_scales|recipe\.lr_by_model"
    r"|recipe\.optimizer_arguments|loss\.arguments).*)"
)
# Lines of Hydra's and OmegaConf's errors that name no mistake.
NOISE = ("See ", "Set the env", "reference_", "object_", "full_key", "Error merging")
INFORMING_FLAGS = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--help", "-h")
# Hydra's flags whose value is the next argument.
VALUE_FLAGS = ("--cfg", "-c", "--info", "-i", "--package", "-p", "--config-path", "-cp",
               "--config-name", "-cn", "--config-dir", "-cd", "--experimental-rerun")  # fmt: skip
# Commands that work in outputs/COMMAND/DATE_TIME.
HAS_RUN_FOLDER = ("train", "evaluate", "prepare_data", "compare", "explain", "benchmark")
RUN_FOLDER = "FCN_RUN_FOLDER"  # in the environment: the folder made for a command
BORROWED_GROUPS = ("recipe", "augmentation")  # of train, which prepare_data takes too
NOT_GIVEN = (None, -1)  # values of Trainer's max_steps and max_epochs that set no length
SEVERAL_CHOICES = ("logger", "callbacks", "experiment")  # groups that merge a list of choices


def run(name: str) -> Any:
    """Run a command with the settings of the command line; exit with 1 after an error.

    Args:
        name: a key of `SCHEMAS`; configs/NAME.yaml holds the defaults.

    Returns:
        What the command returned, which Hydra's sweepers optimise.
    """
    ConfigStore.instance().store(name=f"{name}_schema", node=SCHEMAS[name])
    command = Command(name)

    @hydra.main(config_path=str(CONFIGS), config_name=name, **VERSION_BASE)
    def entry(cfg: Any) -> Any:
        return command.run_job(cfg)

    try:
        given = prepare_arguments(sys.argv[1:], name)
        overrides = [argument for argument in given if argument not in ("-h", "--help")]
        if len(overrides) < len(given) and not any(a.startswith("-") for a in overrides):
            show_help(name, overrides)
            return None
        with any_help_text(), _replaced(command.arguments(given), full_error="1"):
            try:
                entry()  # Hydra raises its errors instead of printing them
            except (ValueError, TypeError):  # of a sweeper to which a failed job gave no result
                if command.traceback or command.crashed or not command.failures:
                    raise
        for error in command.failures[:-1]:
            print(f"error: {_one_line(error, name)}", file=sys.stderr)
        if command.failures:
            raise command.failures[-1]
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # of `--help | head`; Python would complain again when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError, RuntimeError, HydraException, OmegaConfBaseException) as error:
        if command.traceback:
            raise
        print(f"error: {_one_line(error, name)}", file=sys.stderr)
        sys.exit(1)
    finally:
        command.discard_folder()
    return command.result


class Command:
    """A command as Hydra runs it: with the settings that it has composed, once or for each job.

    Args:
        name: a key of `COMMANDS`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.traceback = os.environ.get("HYDRA_FULL_ERROR")  # asked for by the user
        self.flags: list[str] = []  # of Hydra's, such as --config-path
        self.training: list[str] = []  # overrides of prepare_data that are settings of train
        self.resumed: Path | None = None  # the folder of the run to continue
        self.made: Path | None = None  # the folder that was made for this command
        self.result: Any = None
        self.failures: list[Exception] = []
        self.crashed = False  # by an error that is nobody's mistake
        self.log = f"{name}.log"  # in the run's folder: what the console prints
        self.process = os.getpid()

    def arguments(self, given: list[str]) -> list[str]:
        """Prepare the command line for Hydra, and create the folder to work in if need be."""
        if self.name == "prepare_data":
            self.training = [
                a for a in given if re.split("[.=]", a.lstrip("+"))[0] in BORROWED_GROUPS
            ]
            given = [a for a in given if a not in self.training]
        if self.name == "import_caffe":  # model=, as in train.py, would be a group to Hydra
            given = [re.sub(r"^\+*model=", "network=", a) for a in given]
        overrides = _overrides(given)
        parse = OverridesParser.create().parse_overrides
        parsed = parse(overrides)
        values = {o.key_or_group: o.value() for o in parsed if not o.is_delete()}
        several = {"-m", "--multirun"} & set(given)
        if str(values.get("hydra.mode")).upper() == "MULTIRUN":
            several = {*several, "hydra.mode"}
        self.flags = [a for a in given if a not in overrides and a not in several]
        folder = str(values["hydra.run.dir"]) if "hydra.run.dir" in values else None
        resume = values.get("resume") if self.name == "train" else None
        for override in parsed:
            check_one_value(override, several=bool(several))
        for override in parse(self.training):
            check_one_value(override, several=False)
        if resume is not None and folder is not None and "${" in folder:
            raise ConfigError(f"hydra.run.dir={folder}: with resume= it takes no ${{...}}")
        if resume is not None and several and is_first():
            raise ConfigError("resume continues one run: leave out --multirun")
        if resume is not None and (is_first() or resume != "auto"):
            self.resumed = find_run(str(resume), overrides, folder, self.flags)
        if whole := self.whole_config():
            given = [*BASE, *given]
        if not is_first():  # only the first process makes a folder, and tells the others
            kept = [a for a in given if not a.startswith("hydra.") and a not in several]
            return self.flags_first([*kept, "hydra.output_subdir=null", "hydra.run.dir=."])
        if resume is not None:
            given = [a for a in given if not a.startswith(("resume=", "hydra.run.dir="))]
            if self.resumed is not None:
                path = resume if str(resume).endswith(".ckpt") else self.resumed
                given += [f"resume={quoted(path)}", f"hydra.run.dir={quoted(self.resumed)}"]
                return self.flags_first([*given, "hydra.output_subdir=null"])
            given += [f"hydra.run.dir={quoted(folder)}"] if folder else []  # of auto: a new run
        if "hparams_search" in values and not several:
            raise ConfigError("hparams_search= makes many runs: add -m")
        if several and folder is not None:
            raise ConfigError("hydra.run.dir is for a single run; a sweep takes hydra.sweep.dir")
        informs = any(a.partition("=")[0] in INFORMING_FLAGS for a in given)
        if self.name in HAS_RUN_FOLDER and not (folder or several or informs):
            self.made = new_folder(OUTPUTS / self.name)
            os.environ[RUN_FOLDER] = str(self.made)  # for base.yaml; other files may say otherwise
            if whole and not (whole.is_file() and _sets_folder(whole)):
                given = [f"hydra.run.dir={quoted(self.made)}", *given]
        return self.flags_first(given)

    def whole_config(self) -> Path | None:
        """Return the file that --config-path and --config-name mean; None without the former."""
        values = dict(pairwise(self.flags))
        values |= {a.partition("=")[0]: a.partition("=")[2] for a in self.flags if "=" in a}
        folder = values.get("--config-path", values.get("-cp"))
        if folder is None:
            return None
        name = values.get("--config-name", values.get("-cn", self.name)).removesuffix(".yaml")
        return Path(__file__).parent / folder / f"{name}.yaml"

    def flags_first(self, arguments: list[str]) -> list[str]:
        """Return the command line as Hydra 1.3 reads it: no flag between two settings."""
        flags = {"-m", "--multirun", *self.flags}
        return sorted(arguments, key=lambda a: a not in flags)

    def run_job(self, cfg: Any) -> Any:
        """Run the command on what Hydra has composed; an error is kept for `run`."""
        job = HydraConfig.get()
        keeps_log = self.name in HAS_RUN_FOLDER and is_first()
        log = Path(job.runtime.output_dir, self.log).absolute() if keeps_log else None
        console, before = make_console(quiet=not is_first(), log=log), size_of(log)
        try:
            os.chdir(job.runtime.cwd)  # paths start there, for hydra.job.chdir too
            settings = self.settings(cfg, list(job.overrides.task))
            folder = self.resumed or Path(job.runtime.output_dir)
            main = import_module(COMMANDS[self.name]).main
            import_module("fcn.device").keep_memory()  # imported late: --help needs no torch
            own = [*self.flags, *job.overrides.task]  # with which Lightning starts others
            with _replaced(own, full_error=self.traceback):
                self.result = main(settings, folder, console)
            return self.result
        except Interrupted as error:  # ends a multirun too
            add_line(log, str(error), before)
            print(error, file=sys.stderr)
            sys.exit(error.code)  # past Hydra, which would print more around it
        except (UserError, OSError, RuntimeError) as error:
            add_line(log, f"error: {_one_line(error, self.name)}", before)
            if os.getpid() != self.process:  # a launcher's, such as submitit: Hydra brings it back
                raise
            self.failures.append(error)  # Hydra would print more around it
            return None
        except Exception:
            self.crashed = True
            raise

    def settings(self, cfg: Any, given: list[str]) -> Any:
        """Return the settings, checked: those of a run that is resumed or evaluated come first."""
        for key, _, value in (override.lstrip("+").partition("=") for override in given):
            if key == "backbone.name":
                raise ConfigError(f"{key}: use backbone={value}, which also sets its weights")
        values: Any = OmegaConf.to_container(cfg, resolve=True)
        if self.resumed is not None:
            raw: Any = OmegaConf.to_container(cfg)  # ${...} are resolved by the run's own settings
            raw = settings_to_resume(self.resumed, raw, given)
            values = raw | {"resume": values["resume"]}
        if self.training:
            ConfigStore.instance().store(name="train_schema", node=SCHEMAS["train"])
            recipe = hydra.compose("train", self.training)["recipe"]
            values["recipe"] = OmegaConf.to_container(recipe, resolve=True)
        if self.name == "train":
            values["trainer"] = later_wins(values["trainer"], given, trainer_files())
        elif values.get("checkpoint", MISSING) not in (None, MISSING) and "data" in values:
            chosen = any(override.lstrip("+").startswith("data=") for override in given)
            run = None if chosen else run_of(values["checkpoint"])
            if run is not None:
                own = [o for o in given if o.lstrip("+").startswith("data.")]
                values["data"] = settings_to_resume(run, values, own)["data"]
                check_fold(values["data"], own, run)
        settings: Any = check(values, SCHEMAS[self.name])
        check_used_data(settings, given, self.name)
        if hasattr(settings, "data") and "://" not in settings.data.root:  # for run.json
            settings.data.root = str(Path(settings.data.root).absolute())
        return settings

    def discard_folder(self) -> None:
        """Remove the folder made for a command that wrote nothing there: a sweep, or an error."""
        os.environ.pop(RUN_FOLDER, None)
        left = {path.name for path in self.made.iterdir()} if self.made else {""}
        if self.made and left <= {".hydra", LOCK, self.log}:
            shutil.rmtree(self.made)


def _sets_folder(config: Path) -> bool:
    """Return True if a file says itself where its run works."""
    content: Any = OmegaConf.to_container(OmegaConf.load(config))
    return "dir" in ((content.get("hydra") or {}).get("run") or {})


def trainer_files() -> list[list[str]]:
    """Return the arguments of Trainer that each file sets, in the order of the defaults list."""
    job, loader = HydraConfig.get(), GlobalHydra.instance().config_loader()
    defaults = loader.compute_defaults_list(
        job.job.config_name, list(job.overrides.task), RunMode.RUN
    ).defaults
    folders, found = [Path(s.path) for s in job.runtime.config_sources if s.path], []
    for entry in defaults:
        files = (folder / f"{entry.config_path}.yaml" for folder in folders)
        if file := next((file for file in files if file.is_file()), None):
            content: Any = OmegaConf.to_container(OmegaConf.load(file))  # with ${...} as it is
            own = content if entry.package == "trainer" else content.get("trainer") or {}
            found.append([str(key) for key in own if own[key] not in NOT_GIVEN])
    return found


def later_wins(
    trainer: dict[str, Any], given: list[str], files: Sequence[Sequence[str]] = ()
) -> dict[str, Any]:
    """Return Trainer's arguments; of two that set the same thing, the one given later is kept.

    These are max_steps and max_epochs; and val_check_interval and check_val_every_n_epoch, unless
    both are typed, which is an error later on.

    Args:
        trainer: as Hydra has composed them.
        given: the overrides of the command line, which come after all files.
        files: the arguments that each file sets, see `trainer_files`.
    """
    lengths, checks = ("max_steps", "max_epochs"), ("val_check_interval", "check_val_every_n_epoch")
    for pair in (lengths, checks):
        known = [key for key in trainer if key in pair and trainer[key] not in NOT_GIVEN]
        typed = [key for o in given for key in known if o.lstrip("+").startswith(f"trainer.{key}=")]
        order = typed or [key for file in files for key in file if key in known] or known
        if order and not (pair is checks and len(set(typed)) > 1):
            trainer = {k: v for k, v in trainer.items() if k not in pair or k == order[-1]}
    return trainer


def check_fold(data: dict[str, Any], given: Sequence[str], run: Path) -> None:
    """Check that the fold of a run is not silently taken of another data set.

    Args:
        data: settings of the run's data set, with those that are given; without a fold, the others
            of its folds are removed.
        given: overrides of data.*.
        run: the folder of the run.

    Raises:
        ConfigError: names what to type.
    """
    typed = {override.lstrip("+").partition("=")[0].removeprefix("data.") for override in given}
    if data["fold"] is None:
        unused = ("folds", "fold_seed", "group")
        data |= {key: getattr(DataConfig, key) for key in unused if key not in typed}
        return
    recorded = read(run)["config"]["data"]
    old, new = (
        (of["layout"], os.path.abspath(of["root"]), of["folder"]) for of in (recorded, data)
    )
    if old != new and "fold" not in typed:
        raise ConfigError(
            f"{run} validated fold {data['fold']} of {recorded['root']}; for another data set add "
            f"data.fold=null, or data.fold={data['fold']} if it is the same data elsewhere"
        )


@contextmanager
def _replaced(arguments: list[str], full_error: str | None) -> Iterator[None]:
    """Replace the command line and HYDRA_FULL_ERROR for a while; None leaves the latter unset."""
    argv, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [argv[0], *arguments]
    _set_full_error(full_error)
    try:
        yield
    finally:
        sys.argv = argv
        _set_full_error(before)


def _set_full_error(value: str | None) -> None:
    os.environ.pop("HYDRA_FULL_ERROR", None)
    if value is not None:
        os.environ["HYDRA_FULL_ERROR"] = value


def show_help(name: str, overrides: list[str]) -> None:
    """Print a command's help; Hydra's own is slow, as it copies every schema for every key."""
    with hydra.initialize_config_dir(str(CONFIGS), **VERSION_BASE):
        cfg = hydra.compose(name, overrides, return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        chosen = {group: [choice] for group, choice in cfg.hydra.runtime.choices.items()}
        if "logger" in cfg:  # Hydra leaves out lists of choices
            chosen["logger"] = list(cfg.logger)
        groups = ""
        for group in sorted(group for group in chosen if not group.startswith("hydra/")):
            options = loader.get_group_options(group)
            shown = (f"{option}*" if option in chosen[group] else option for option in options)
            groups += f"  {group:<16}{', '.join(shown)}\n"
        text = Template(cfg.hydra.help.template)
        settings = describe_settings(cfg, SCHEMAS[name])
        print(text.substitute(APP_CONFIG_GROUPS=groups or "  none\n", CONFIG=settings))


def prepare_arguments(given: list[str], name: str) -> list[str]:
    """Return a command's arguments with a + where Hydra wants one.

    Raises:
        ConfigError: an argument that is no setting, or has quotes that do not match.
    """
    given = [re.sub(OPEN_KEYS, r"++\1", argument) for argument in given]
    keys = {entry.name for entry in dataclasses.fields(SCHEMAS[name])}
    for before, argument in pairwise(["", *given]):
        word = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and word.partition(".")[0] in keys:
            raise ConfigError(f"{argument}: a setting has no dashes: {word}=VALUE")
        is_value = before in VALUE_FLAGS
        if not is_value and "=" not in argument and not argument.startswith(("-", "~")):
            raise ConfigError(f"{argument}: give a setting as KEY=VALUE; --help lists them")
    for argument in _overrides(given):
        try:
            OverridesParser.create().parse_override(argument)
        except HydraException:
            raise ConfigError(
                f"{argument}: names with brackets or = need quotes of their own: \"KEY='NAME'\", "
                "\"KEY=[a,'NAME']\""
            ) from None
    return given


def check_one_value(override: Override, *, several: bool) -> None:
    """Check that a setting has one value, and a choice is one, unless it makes several runs.

    Raises:
        ConfigError: what Hydra would not understand, or would use the last part of.
    """
    key, text = override.key_or_group, override.input_line
    is_choice = (CONFIGS / key).is_dir()
    if override.is_sweep_override() and not several:
        raise ConfigError(
            f"{text}: several values make several runs, with -m"
            + ("" if is_choice else f"; a list has brackets: {key}=[...]")
        )
    if is_choice and isinstance(override.value(), list) and key not in SEVERAL_CHOICES:
        raise ConfigError(f"{text}: takes one choice; -m {key}=A,B makes a run of each")


def _overrides(given: list[str]) -> list[str]:
    """Return the arguments that set or remove settings, not flags or values of flags."""
    values = {b for a, b in pairwise(given) if a.startswith("--config-")}
    is_setting = re.compile("~|[^-].*=")
    return [a for a in given if is_setting.match(a) and a not in values]


def _one_line(error: Exception, name: str) -> str:
    """Return an error as one line; of Hydra's many lines, the one that names the mistake."""
    if isinstance(error, UserError):
        return message_of(error)
    if isinstance(error, RuntimeError) and not isinstance(error, HydraException):
        line = describe_failure(error) or f"{type(error).__name__}: {message_of(error)}"
        return f"{line} (HYDRA_FULL_ERROR=1 in the environment shows where)"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        parts = re.fullmatch("((?:hydra/)?[^/]+)/(.*)", error.missing_cfg_file)
        group, choice = parts.groups() if parts else ("", error.missing_cfg_file)
        known = f"choices: {', '.join(error.options)}"
        if group == "data" and "/" in choice:
            known = f"for a folder of yours use data=folder data.root={choice}; {known}"
        return f"{group}={choice}: no such choice; {known}"
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    text = "\n".join(map(str, causes))
    key = re.search(r"full_key: (\S+)", text)
    unknown = re.search(r"Could not override '([^']+)'", text) or key
    if unknown and "No match in the defaults list" in text:  # + would not help: no key reads it
        return f"{name} has no group {unknown[1]}; --help lists its groups"
    if unknown and re.search(r"Key '[^']+' (?:is )?not in", text):
        return unknown_key(unknown[1], list(flat_keys(OmegaConf.structured(SCHEMAS[name]))))
    if key and "is not a ListConfig, list or tuple" in text:
        return f"{key[1]}: takes a list, in brackets: {key[1]}=[...]"
    stripped = (line.strip() for line in text.splitlines())
    lines = [line for line in stripped if line and not line.startswith(NOISE)]
    return (f"{key[1]}: " if key else "") + " ".join(lines[: 1 if key else 4])


def describe_settings(cfg: Any, schema: type) -> str:
    """Return a line for every setting: key, value and meaning."""
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    lines, above = [], None
    unused = [
        f"{entry.name}.{name}"
        for entry in dataclasses.fields(schema)
        for name in entry.metadata.get("unused", ())
    ]
    for key, value in flat_keys(cfg).items():
        if key in unused:
            continue
        entry = _schema_entry(schema, key.split("."))
        group = key.partition(".")[0] if "." in key else ""
        meaning = help_of(entry, group) if entry is not above else ""
        shown = as_typed(value)
        if value == MISSING:
            shown, meaning = "VALUE", f"must be given: {meaning}"
        head = f"{key}={shown}" if len(key) + len(shown) < 44 else f"{key}=..."
        lines += textwrap.wrap(
            f"{head:<46}{meaning}".rstrip(), 118, subsequent_indent=" " * 46, drop_whitespace=False
        )
        above = entry
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def _schema_entry(schema: Any, parts: list[str]) -> dataclasses.Field[Any]:
    """Return the field of a key, given by the names on the way to it; of trainer.*, that of all."""
    entry = schema.__dataclass_fields__[parts[0]]
    if hasattr(entry.type, "__dataclass_fields__") and len(parts) > 1:
        return _schema_entry(entry.type, parts[1:])
    return entry


def console() -> None:
    """Run the installed command by whose name this was started, such as fcn-prepare-data."""
    name = Path(sys.argv[0]).stem.removeprefix("fcn-").replace("-", "_")
    if name not in COMMANDS:
        sys.exit(f"error: {sys.argv[0]}: not a command's name, such as fcn-train")
    run(name)
