"""The commands: Hydra composes the settings, pydantic checks them, errors are one line.

`python -m fcn.cli NAME key=value ...` runs any of them.
"""

import json
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fcn.config import CONFIGS, SCHEMAS, flat_keys, quoted, unknown_key, validate
from fcn.errors import ConfigError, Interrupted, UserError
from fcn.output import make_console
from fcn.processes import rank

COMMANDS = {  # name -> the module whose main(cfg, folder, console) it runs
    "train": "fcn.training.run",
    "evaluate": "fcn.inference.evaluate",
    "predict": "fcn.inference.predict_files",
    "export": "fcn.inference.export",
    "import_caffe": "fcn.tools.import_caffe",
    "prepare_data": "fcn.tools.prepare_data",
    "compare": "fcn.compare.compare",
    "explain": "fcn.explain.story",
    "benchmark": "fcn.tools.benchmark",
}
# Keys with entries of any name, which Hydra would want a + for: Lightning's Trainer has many.
OPEN_KEYS = (
    r"^\+*((?:trainer\.|logger\.|callbacks\.|model\.skip_scales|recipe\.lr_by_model"
    r"|recipe\.optimizer_arguments).*)"
)


def run(name: str) -> Any:
    """Run a command with the settings of the command line; exit with 1 after an error.

    Args:
        name: a key of `SCHEMAS`; configs/NAME.yaml holds the defaults.

    Returns:
        What the command returned, which Hydra's sweepers optimise.
    """
    ConfigStore.instance().store(name=f"{name}_schema", node=SCHEMAS[name])
    if name == "import_caffe":  # the ILSVRC classifier is no model of ours, but can be imported
        ConfigStore.instance().store(group="model", name="vgg16", node={"name": "vgg16"})
    OmegaConf.register_new_resolver("settings", _describe_settings, replace=True)
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    results: list[Any] = []
    failures: list[Exception] = []

    @hydra.main(config_path=str(CONFIGS), config_name=name, version_base="1.3")
    def entry(cfg: Any) -> Any:
        try:
            settings: Any = validate(cfg, SCHEMAS[name])
            folder = Path(HydraConfig.get().runtime.output_dir)
            os.chdir(HydraConfig.get().runtime.cwd)  # paths start there, for hydra.job.chdir too
            main = import_module(COMMANDS[name]).main
            import_module("fcn.device").keep_memory()  # imported late: --help needs no torch
            results.append(main(settings, folder, make_console(quiet=rank() > 0)))
            return results[-1]
        except Interrupted as error:  # ends a multirun too
            if rank() == 0:
                print(error, file=sys.stderr)
            sys.exit(error.code)  # past Hydra, which would print more around it
        except (UserError, OSError) as error:
            if show_traceback:
                raise
            failures.append(error)  # Hydra would print more around it

    try:
        sys.argv[1:] = arguments(name, sys.argv[1:])
        overrides = [argument for argument in sys.argv[1:] if argument not in ("-h", "--help")]
        if len(overrides) < len(sys.argv) - 1 and not any(a.startswith("-") for a in overrides):
            show_help(name, overrides)
        else:
            entry()
        for error in failures:
            print(f"error: {_one_line(error, name)}", file=sys.stderr)
        if failures:
            sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # of `--help | head`; Python would complain again when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if show_traceback:
            raise
        print(f"error: {_one_line(error, name)}", file=sys.stderr)
        sys.exit(1)
    return results[-1] if results else None


def show_help(name: str, overrides: list[str]) -> None:
    """Print what Hydra's --help prints, in half a second; it would copy all schemas 107 times."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra.compose(name, overrides, return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        groups = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())
        choices = [f"{group}: {', '.join(loader.get_group_options(group))}\n" for group in groups]
        print(Template(cfg.hydra.help.template).substitute(APP_CONFIG_GROUPS="".join(choices)))


def arguments(name: str, given: list[str]) -> list[str]:
    """Return the command line as Hydra is to see it."""
    given = [re.sub(OPEN_KEYS, r"++\1", argument) for argument in given]
    for argument in (a for a in given if "=" in a and not a.startswith("-")):
        try:
            OverridesParser.create().parse_override(argument)
        except HydraException:
            raise ConfigError(
                f"{argument}: names with brackets or = need quotes of their own: \"KEY='NAME'\", "
                "\"KEY=[a,'NAME']\""
            ) from None
    if name == "train":
        given = _resumed(given)
    if rank() > 0 and not any(a.startswith("hydra.output_subdir=") for a in given):
        # Only the first process of a run makes its folder.
        named = any(a.startswith("hydra.run.dir=") for a in given)
        given += ["hydra.output_subdir=null"] + ([] if named else ["hydra.run.dir=."])
    return given


def _resumed(given: list[str]) -> list[str]:
    """Return the command line that resumes a run: in its folder, with its settings first.

    `resume=last` means the newest run below outputs/train, or that of hydra.run.dir;
    `resume=RUN/checkpoints/NAME.ckpt` means RUN.
    """
    overrides = [a for a in given if "=" in a and not a.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    keys = {override.key_or_group: override.value() for override in parsed}
    resume = keys.get("resume")
    if resume is None:
        return given
    if {"-m", "--multirun"} & set(given):
        raise ConfigError("resume continues one run: leave out --multirun")
    if "hydra.run.dir" in keys:
        folder = Path(str(keys["hydra.run.dir"]))
    elif resume == "last":
        folder = _newest_run()
    else:
        folder = Path(str(resume)).parent.parent
    record = folder / "run.json"
    if not record.is_file():
        raise ConfigError(f"resume={resume}: no run in {folder} (it has no run.json)")
    first = json.loads(record.read_text(encoding="utf-8"))["overrides"]
    before = {override.partition("=")[0].lstrip("+"): override for override in first}
    if "stages" not in before:
        before.pop("model.init_from", None)  # a resumed run has its own weights
    if "hydra.run.dir" not in keys:
        given = [*given, f"hydra.run.dir={quoted(folder)}"]
    return [*(override for key, override in before.items() if key not in keys), *given]


def _newest_run() -> Path:
    """Return the folder below outputs/train that was changed last and holds a checkpoint."""
    runs = sorted(Path("outputs/train").glob("*"), key=lambda run: run.stat().st_mtime)
    runs = [run for run in runs if any(run.glob("**/checkpoints/*.ckpt"))]
    if not runs:
        raise ConfigError("resume=last: no run with a checkpoint in outputs/train; give its path")
    return runs[-1]


def _one_line(error: Exception, name: str) -> str:
    """Return an error's message: of Hydra's, which have many lines, what names the mistake."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice}: no such choice; choices: {', '.join(error.options)}"
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    text = "\n".join(map(str, causes))
    key = re.search(r"full_key: (\S+)", text)
    override = re.search(r"Could not override '([^']+)'", text)
    if re.search(r"Key '[^']+' (?:is )?not in", text) and (override or key):
        unknown = (override or key)[1]  # type: ignore[index]
        return unknown_key(unknown, list(flat_keys(OmegaConf.structured(SCHEMAS[name]))))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [
        line
        for line in lines
        if not line.startswith(
            ("See ", "Set the env", "reference_", "object_", "full_key", "Error merging")
        )
    ]
    return (f"{key[1]}: " if key else "") + " ".join(lines[:4] if not key else lines[:1])


def _describe_settings(*, _root_: Any) -> str:
    """Return a line for every setting: key, default and meaning. Used by the help texts."""
    cfg = OmegaConf.masked_copy(_root_, [key for key in _root_ if key != "hydra"])
    name = _root_.hydra.job.config_name
    lines = []
    for key, value in flat_keys(cfg).items():
        meaning = _meaning(SCHEMAS[name], key.split("."))
        shown = "null" if value is None else str(value)
        head = f"{key}={shown}" if len(key) + len(shown) < 44 else f"{key}=..."
        lines += textwrap.wrap(
            f"{head:<46}{meaning}".rstrip(), 118, subsequent_indent=" " * 46, drop_whitespace=False
        ) or [head]
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def _meaning(schema: Any, parts: list[str]) -> str:
    """Return the description of a key, given by the names on the way to it."""
    for index, part in enumerate(parts):
        fields = getattr(schema, "__dataclass_fields__", {})
        if part not in fields:
            return ""
        schema = fields[part].type
        metadata = getattr(schema, "__metadata__", ())
        if metadata and (index == len(parts) - 1 or not hasattr(schema, "__dataclass_fields__")):
            return metadata[0].description or ""
    return ""


def _console_command(name: str) -> Callable[[], None]:
    """Return what an installed command runs; its result is for Hydra, not for the shell."""

    def command() -> None:
        run(name)

    return command


train, evaluate, predict, export = map(_console_command, ("train", "evaluate", "predict", "export"))
import_caffe, prepare_data = map(_console_command, ("import_caffe", "prepare_data"))
compare, explain = map(_console_command, ("compare", "explain"))

if __name__ == "__main__":
    run(sys.argv.pop(1))
