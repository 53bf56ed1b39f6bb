"""The record of a run: its folder, who works in it, and the settings with which it resumes.

run.json in a run's folder holds all its settings, its data and what happened to it. Everything that
continues or repeats a run reads them there, and nowhere else.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fcn.config import CONFIGS, REPOSITORY, TrainConfig, check, flat_keys
from fcn.errors import ConfigError
from fcn.output import is_live, write_json
from fcn.processes import is_first

RECORD = "run.json"
CHECKPOINTS = ("last.ckpt", "best.ckpt")
OUTPUTS = Path("outputs")
PACKAGES = ("hydra-core", "numpy", "omegaconf", "pillow", "pytorch-lightning", "torch",
            "torchmetrics", "torchvision")  # fmt: skip
# Settings that a resumed run cannot change: its weights and its optimiser's state would not fit.
FIXED = (
    "model.stride", "model.in_channels", "model.padding", "model.skip_scales", "model.dropout",
    "backbone.name", "backbone.width", "backbone.head_width", "backbone.freeze", "upsampling.name",
    "upsampling._target_", "loss._target_", "data.fold", "data.folds", "data.fold_seed",
    "data.group", "recipe.optimizer", "recipe.backbone_lr_factor", "recipe.ema_decay",
    "trainer.accumulate_grad_batches",
)  # fmt: skip
# Settings that say how a run was started, not what it is.
NOT_COMPARED = ("resume", "model.init_from", "data.download")
FIXED_CHOICES = ("recipe", "experiment")  # choices that set keys of several groups


@dataclass(frozen=True)
class Record:
    """What run.json knows of a run that is resumed."""

    folder: Path
    checkpoint: Path
    settings: dict[str, Any]
    model: dict[str, Any]  # arguments of FCN
    data: dict[str, Any]  # by split: the number and the checksum of its ids

    def changes(self, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return the settings that differ: key -> (before, now)."""
        before, now = flat_keys(self.settings), flat_keys(settings)
        return {
            key: (before.get(key), now.get(key))
            for key in sorted(before | now)
            if _differ(before.get(key), now.get(key)) and not key.startswith(NOT_COMPARED)
        }

    def check_unchanged(self, settings: Mapping[str, Any]) -> None:
        """Raise a ConfigError if a setting changed that a resumed run cannot change."""
        for key, (before, now) in self.changes(settings).items():
            fixed = key in FIXED or key.startswith("model.skip_scales.")
            if fixed or (key == "data.classes" and before and now):
                raise ConfigError(
                    f"resume={self.folder}: it was trained with {key}={before}, not {now}; resume "
                    "with the same settings, or start a new run with model.init_from"
                )


def new_folder(parent: Path) -> Path:
    """Make parent/DATE_TIME; a second one of the same second gets a suffix.

    Raises:
        ConfigError: it cannot be made.
    """
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1, 1000):
        folder = parent / (name if attempt == 1 else f"{name}_{attempt}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot be made ({error.strerror}); set hydra.run.dir to a folder that "
                "can be written to"
            ) from error
    raise ConfigError(f"{parent}: 1000 runs were started in one second")


def find_run(
    resume: str, given: Sequence[str], folder: str | None, flags: Sequence[str] = ()
) -> Path | None:
    """Return the folder of the run that `resume` means; None for a new one.

    Args:
        resume: a run's folder or one of its checkpoints; last: the newest run below outputs/ that
            is not finished; auto: the run that the same command has left unfinished, or a new one.
        given: the overrides of the command line.
        folder: hydra.run.dir, if it is given; it is the run that last and auto mean.
        flags: Hydra's flags of the command line, such as --config-path.

    Raises:
        ConfigError: there is no such run.
    """
    if folder is not None and resume in ("last", "auto"):
        run = Path(folder)
        if resume == "auto" and not any(run.glob("**/*.ckpt")):
            return None
    elif resume == "auto":
        wanted = _what_it_trains(flags, given)
        started = [run for run in _newest_first() if not _is_finished(run) and not is_live(run)]
        started = [run for run in started if any(run.glob("**/*.ckpt"))]
        records = {run: read(run) for run in started}
        same = [
            run
            for run, kept in records.items()
            if _what_it_trains(kept.get("flags", []), kept["overrides"]) == wanted
        ]
        if not same:
            return None
        run = same[0]
    elif resume == "last":
        runs = [run for run in _newest_first() if any(run.glob("**/*.ckpt"))]
        unfinished = [run for run in runs if not _is_finished(run)]
        longer = any(o.lstrip("+").startswith(("trainer.max_", "trainer.min_")) for o in given)
        if not unfinished and not (longer and runs):
            raise ConfigError(
                f"resume=last: no run in {OUTPUTS} is unfinished; resume=FOLDER "
                "trainer.max_steps=N trains a finished one further"
                if runs
                else f"resume=last: no run with a checkpoint in {OUTPUTS}; give its folder"
            )
        run = (unfinished or runs)[0]
    else:
        path = Path(resume)
        if path.suffix == ".ckpt" and not path.is_file():
            raise ConfigError(f"resume={resume}: no such checkpoint")
        run = run_of(resume) or path
    if not (run / RECORD).is_file():
        raise ConfigError(f"resume={resume}: no run in {run} (it has no {RECORD})")
    if is_first() and is_live(run):  # the first process decides for all
        raise ConfigError(f"resume={resume}: {run} is being trained at this moment")
    return run.absolute()


def check_free(folder: Path) -> None:
    """Raise a ConfigError if a folder holds a run, of whatever kind."""
    runs = any((folder / "checkpoints").glob("*.ckpt"))
    if runs or ((folder / RECORD).is_file() and any(folder.glob("**/*.ckpt"))):
        raise ConfigError(
            f"{folder} holds a run already: resume={folder} continues it, another hydra.run.dir "
            "starts a new one"
        )


def read_record(folder: Path, resume: str) -> Record:
    """Read the record of a run that is to be resumed.

    Args:
        folder: of the run.
        resume: one of its checkpoints; otherwise the newest one is meant.

    Raises:
        ConfigError: no checkpoint, or a damaged record.
    """
    content = read(folder)
    kept = [folder / "checkpoints" / name for name in CHECKPOINTS]
    kept = [path for path in kept if path.is_file()]
    path = Path(resume) if resume.endswith(".ckpt") else max(kept, key=_step, default=None)
    if path is None:
        raise ConfigError(f"resume={resume}: no checkpoint in {folder / 'checkpoints'}")
    model = content.get("model")
    if model is None:  # of a run of an earlier version
        from fcn import checkpoint

        model = checkpoint.read(path).about["model"]
    settings = asdict(check(content["config"], TrainConfig))  # with those of later versions
    return Record(folder, path, settings, model, content["data"])


def settings_to_resume(
    folder: Path, composed: Mapping[str, Any], given: Sequence[str]
) -> dict[str, Any]:
    """Return the recorded settings of a run, with the new command line on top.

    Args:
        folder: of the run.
        composed: what Hydra makes of the new command line.
        given: the overrides of the new command line; those of the first one may be repeated.

    Raises:
        ConfigError: another recipe or experiment, which are choices of a new run.
    """
    content = read(folder)
    settings, known = content["config"], {o.lstrip("+") for o in content["overrides"]}
    if "stages" not in content:  # of one stage, an earlier version recorded those of all
        settings["stages"] = []
    for override in given:
        key, _, value = override.lstrip("+~").partition("=")
        choice = CONFIGS / key / f"{value}.yaml"
        repeated = override.lstrip("+") in known and (choice.is_file() or key in FIXED_CHOICES)
        if repeated or key.startswith("hydra"):
            continue
        if key in FIXED_CHOICES:
            raise ConfigError(
                f"{override}: a resumed run keeps its {key}; change single settings, such as "
                "recipe.lr=0.001, or start a new run"
            )
        if key == "stages" and composed["stages"] != settings["stages"]:
            raise ConfigError(
                f"{override}: a resumed run keeps its stages ({settings['stages']}); start a new "
                "run in another hydra.run.dir"
            )
        if key in ("logger", "callbacks", "data"):
            settings[key] = composed[key]
        elif key == "augmentation":  # its choices set one key of the recipe
            settings["recipe"]["transforms"] = composed["recipe"]["transforms"]
        elif choice.is_file():
            settings[key] |= {"_target_": None} if "_target_" in settings[key] else {}
            settings[key] |= OmegaConf.to_container(OmegaConf.load(choice)) or {}
        else:
            _set(settings, composed, key.split("."))
    return settings


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the recorded settings of a run."""
    return read(folder)["config"]


def run_of(checkpoint: str) -> Path | None:
    """Return the folder of the run that a checkpoint belongs to; None if it belongs to none."""
    path = Path(checkpoint).absolute()
    for folder in (path, path.parent, path.parent.parent):
        if (folder / RECORD).is_file():
            return folder
    return None


def launch_info(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the command line, time, commit and versions with which a run was started."""
    return {
        "command": shlex.join(sys.argv),
        "overrides": list(overrides),
        "flags": [argument for argument in sys.argv[1:] if argument not in overrides],
        "started": _now(),
        "commit": _commit(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def write_record(folder: Path, content: Mapping[str, Any]) -> None:
    """Write run.json; a resumed run keeps how it was first started, and adds to its history."""
    path, record = folder / RECORD, dict(content)
    record.setdefault("history", [])
    if path.is_file():
        before = read(folder)
        first = ("command", "overrides", "flags", "started", "commit")
        event = {key: record[key] for key in first}
        record |= {key: before[key] for key in first if key in before}
        record["history"] = [*before["history"], event]
    write_json(path, record)


def finish(folder: Path) -> None:
    """Record that a run has come to its end."""
    write_json(folder / RECORD, read(folder) | {"finished": _now()})


def read(folder: Path) -> dict[str, Any]:
    """Return the content of run.json, or raise a ConfigError."""
    path = folder / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["config"].get("data"), dict):
            raise ValueError("no settings in it")
        for group in ("model", "recipe"):  # of a run of an earlier version
            content["config"].get(group, {}).pop("name", None)
        return {"overrides": [], "data": {}, "history": []} | content
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error!r}); start a new run with model.init_from={folder}"
        ) from None


def _newest_first() -> list[Path]:
    """Return the folders below outputs/ that hold a run, sweeps included; stages are one run."""
    found = {folder for folder in _folders(OUTPUTS, set()) if _is_readable(folder)}
    runs = [folder for folder in found if not found & set(folder.parents)]

    def changed(run: Path) -> float:
        return max(path.stat().st_mtime for path in (run / RECORD, *run.glob("**/*.ckpt")))

    return sorted(runs, key=changed, reverse=True)


def _folders(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield the folders with a record in a folder, linked ones too, each once."""
    if not folder.is_dir() or folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    if (folder / RECORD).is_file():
        yield folder
    for inner in folder.iterdir():
        yield from _folders(inner, seen)


def _step(path: Path) -> int:
    """Return the optimiser step of a checkpoint; -1 for a damaged one."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    except Exception:  # a damaged file makes its reader raise almost anything
        return -1


def _is_readable(run: Path) -> bool:
    try:
        return bool(read(run))
    except ConfigError:
        return False


def _is_finished(run: Path) -> bool:
    content = read(run)
    if "finished" in content:
        return True
    old = "versions" in content and not {"model", "stages"} & content.keys()  # an earlier version
    return old and (run / "metrics.json").is_file() and (run / "model.safetensors").is_file()


def _what_it_trains(flags: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Return the part of a command line that says what is trained, in any order."""
    kept = (override.lstrip("+") for override in overrides)
    return [*flags, *sorted(o for o in kept if not o.startswith(("resume=", "hydra.")))]


def _set(settings: dict[str, Any], composed: Mapping[str, Any], parts: list[str]) -> None:
    """Copy one setting from `composed`, by the names on the way to it; none there: remove it."""
    *way, last = parts
    target: Any = settings
    source: Any = composed
    for part in way:
        target = target.setdefault(part, {})
        source = source.get(part, {})
    if last in source:
        target[last] = source[last]
    else:
        target.pop(last, None)


def _differ(before: Any, now: Any) -> bool:
    """Return True if two settings differ; 1 batch is not 1.0, all of them."""
    return before != now or isinstance(before, float) != isinstance(now, float)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> str | None:
    """Return this checkout's git commit, with `+changes` if files differ; None without git."""
    if not (REPOSITORY / ".git").exists():
        return None
    git = ["git", "-C", str(REPOSITORY)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:  # git is not installed
        return None
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")
