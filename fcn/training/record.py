"""The record of a run: its folder, who works in it, and the settings with which it resumes.

run.json in a run's folder holds all its settings, its data and what happened to it. Everything that
continues or repeats a run reads them there, and nowhere else.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from fcn.config import REPOSITORY, TrainConfig, check, flat_keys, quoted, without_unused
from fcn.dataset_info import DatasetInfo
from fcn.errors import ConfigError
from fcn.output import is_live, write_json
from fcn.processes import is_first

RECORD = "run.json"
CHECKPOINTS = ("last.ckpt", "best.ckpt")
OUTPUTS = Path("outputs")
PACKAGES = ("hydra-core", "numpy", "omegaconf", "pillow", "pytorch-lightning", "torch",
            "torchmetrics", "torchvision")  # fmt: skip
# Settings that a resumed run cannot change: its weights, its optimiser's state or its validation
# images would not fit, or it would become another experiment.
FIXED = (
    "model.stride", "model.in_channels", "model.padding", "model.skip_scales", "model.dropout",
    "backbone.name", "backbone.width", "backbone.head_width", "backbone.weights",
    "backbone.head_weights", "backbone.freeze", "upsampling.name", "upsampling._target_",
    "loss._target_", "data.fold", "data.folds", "data.fold_seed", "data.group", "recipe.optimizer",
    "recipe.fit_to_features", "recipe.backbone_lr_factor", "recipe.ema_decay",
    "trainer.accumulate_grad_batches",
)  # fmt: skip
# Settings by which the same weights get another mean IoU in validation.
VALIDATION = (
    "data.colours", "data.masks", "trainer.limit_val_batches", "trainer.overfit_batches",
)  # fmt: skip
# Settings, or the starts of their names, that say where and how a run works, not what it does.
WHERE = (
    "data.root", "data.num_workers", "data.scan", "trainer.accelerator", "trainer.devices",
    "trainer.num_nodes", "trainer.strategy", "trainer.enable_progress_bar", "logger",
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
    data: dict[str, Any]  # by split: its name, images, classes and what else `data_record` says
    processes: int | None  # that trained together; None: not recorded

    def changes(self, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return the settings that differ: key -> (before, now)."""
        before, now = flat_keys(self.settings), flat_keys(settings)
        return {
            key: (before.get(key), now.get(key))
            for key in sorted(before | now)
            if _differ(before.get(key), now.get(key)) and key not in NOT_COMPARED
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

    def check_data(self, key: str, split: str, info: DatasetInfo) -> None:
        """Raise a ConfigError if a split ("train" or "val") had other classes or bands than now."""
        for name in ("classes", "bands"):
            now = [str(part) for part in getattr(info, name)]
            before = [str(part) for part in self.data.get(key, {}).get(name, now)]
            if now != before:
                raise ConfigError(
                    f"resume={self.folder}: its data had the {name} {', '.join(before) or 'RGB'}, "
                    f"but {split} has {', '.join(now) or 'RGB'}; start a new run with "
                    f"model.init_from={self.folder}"
                )


def new_folder(parent: Path) -> Path:
    """Make parent/DATE_TIME; a second one of the same second gets a suffix.

    Raises:
        ConfigError: it cannot be made.
    """
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for suffix in ("", *(f"_{number}" for number in range(2, 1000))):
        folder = parent / f"{name}{suffix}"
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
    if resume in ("last", "auto") and folder is not None:
        run: Path | None = Path(folder)
        if resume == "auto" and not _has_checkpoint(Path(folder)):
            return None
    elif resume == "auto":
        run = _same_command(_what_it_trains(flags, given))
    elif resume == "last":
        run = _newest(given)
    else:
        path = Path(resume)
        if path.suffix == ".ckpt" and not path.is_file():
            raise ConfigError(f"resume={resume}: no such checkpoint")
        run = run_of(resume) or path
    if run is None:
        return None
    if not (run / RECORD).is_file():
        raise ConfigError(f"resume={resume}: no run in {run} (it has no {RECORD})")
    if is_first() and is_live(run):  # the first process decides for all
        raise ConfigError(f"resume={resume}: {run} is being trained at this moment")
    return run.absolute()


def _same_command(wanted: list[str]) -> Path | None:
    """Return the newest unfinished run that trains what is wanted, and that no process works in."""
    for run in _newest_first():
        content = read(run)
        kept = _what_it_trains(content.get("flags", []), content["overrides"])
        if kept == wanted and "finished" not in content and not is_live(run):
            return run
    return None


def _newest(given: Sequence[str]) -> Path:
    """Return the newest unfinished run, or the newest of all if it is to be longer."""
    runs = _newest_first()
    unfinished = [run for run in runs if "finished" not in read(run)]
    if any(o.lstrip("+").startswith(("trainer.max_", "trainer.min_")) for o in given):
        unfinished = unfinished or runs
    if not unfinished:
        raise ConfigError(
            f"resume=last: no run in {OUTPUTS} is unfinished; resume=FOLDER trainer.max_steps=N "
            "trains a finished one further"
            if runs
            else f"resume=last: no run with a checkpoint in {OUTPUTS}; give its folder"
        )
    return unfinished[0]


def check_free(folder: Path) -> None:
    """Raise a ConfigError if a folder holds a run, of whatever kind, or other results."""
    own = any((folder / "checkpoints").glob("*.ckpt"))
    if own or ((folder / RECORD).is_file() and _has_checkpoint(folder)):
        raise ConfigError(
            f"{folder} holds a run already: resume={folder} continues it, another hydra.run.dir "
            "starts a new one"
        )
    for name in ("metrics.json", "model.safetensors"):
        if (folder / name).exists():
            raise ConfigError(f"{folder} holds {name} already; choose another hydra.run.dir")


def read_record(folder: Path, resume: str) -> Record:
    """Read the record of a run that is to be resumed.

    Args:
        folder: of the run.
        resume: one of its checkpoints; otherwise the newest one is meant.

    Raises:
        ConfigError: no checkpoint, or a damaged record.
    """
    kept = (folder / "checkpoints" / name for name in CHECKPOINTS)
    path = Path(resume) if resume.endswith(".ckpt") else max(kept, key=step_of)
    if not path.is_file():
        raise ConfigError(f"resume={resume}: no checkpoint in {folder / 'checkpoints'}")
    record = record_of(folder, path)
    if not record.model:
        raise ConfigError(
            f"{folder / RECORD}: no model in it; start a new run with model.init_from={folder}"
        )
    return record


def record_of(folder: Path, checkpoint: Path) -> Record:
    """Return the record of a run, or of one with stages, which has no model.

    Raises:
        ConfigError: it is damaged.
    """
    content = read(folder)
    settings = asdict(check(content["config"], TrainConfig))
    model, processes = content.get("model", {}), content.get("processes")
    return Record(folder, checkpoint, settings, model, content["data"], processes)


def settings_to_resume(
    folder: Path, composed: Mapping[str, Any], given: Sequence[str]
) -> dict[str, Any]:
    """Return the recorded settings of a run, with the new command line on top.

    Args:
        folder: of the run.
        composed: what Hydra makes of the new command line; ${...} in it mean the run's settings.
        given: the overrides of the new command line; those of the first one may be repeated.

    Raises:
        ConfigError: another recipe, experiment or checkpoint to start from: that is a new run.
    """
    content = read(folder)
    settings: Any = content["config"]
    typed = dict[str, str]()  # what was typed last of each key
    for start in (content, *content["history"]):
        typed |= {o.lstrip("+").partition("=")[0]: o.lstrip("+") for o in start["overrides"]}
    for override in sorted(given, key=lambda o: "." in o.partition("=")[0]):  # choices first
        key, _, value = override.lstrip("+~").partition("=")
        is_choice = _is_group(key)
        if key.startswith("hydra") or (is_choice and typed.get(key) == override.lstrip("+")):
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
        if key == "augmentation":  # a new choice replaces the transforms of the one before
            settings["recipe"]["transforms"] = composed["recipe"]["transforms"]
        if key in ("logger", "callbacks", "data"):
            settings[key] = composed[key]
        elif is_choice:
            if "_target_" in settings.get(key, {}):
                settings[key]["_target_"] = None
            choice = hydra.compose(f"{key}/{value}", _hydra_overrides())  # what its file sets
            settings = OmegaConf.to_container(OmegaConf.merge(settings, choice), resolve=True)
            if key in settings:
                settings[key] = without_unused(settings[key], key)
        else:
            _set(settings, composed, key.split("."))
    resolved: Any = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)
    if (new := resolved["model"]["init_from"]) != read(folder)["config"]["model"]["init_from"]:
        raise ConfigError(f"model.init_from={new}: a resumed run keeps its weights; start another")
    return resolved


def _is_group(key: str) -> bool:
    """Return True if a key is a group of choices, in configs/ or a folder of the user's."""
    loader = GlobalHydra.instance().config_loader()
    return bool(loader.get_group_options(key, overrides=_hydra_overrides()))


def _hydra_overrides() -> list[str]:
    """Return the command line's settings of Hydra, with the search path of its config."""
    if not HydraConfig.initialized():
        return []
    hydra_config = HydraConfig.get()
    path = [f"hydra.searchpath=[{','.join(map(quoted, hydra_config.searchpath))}]"]
    return [*(path if hydra_config.searchpath else []), *hydra_config.overrides.hydra]


def run_of(checkpoint: str) -> Path | None:
    """Return the folder of the run that a checkpoint belongs to; None if it belongs to none."""
    path = Path(checkpoint).absolute()
    for folder in (path, *path.parents[:3]):  # RUN/checkpoints/CALLBACK/NAME.ckpt
        if (folder / RECORD).is_file():
            return folder
    return None


def write_record(folder: Path, content: Mapping[str, Any], *, resumed: bool) -> None:
    """Write run.json: how the run was started, and its content.

    A resumed run keeps how it was first started, and adds to its history.
    """
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    started = {
        "command": shlex.join(sys.argv),
        "overrides": overrides,
        "flags": [argument for argument in sys.argv[1:] if argument not in overrides],
        "started": _now(),
        "commit": _commit(),
    }
    versions = {name: version(name) for name in PACKAGES}
    record: dict[str, Any] = {**started, "versions": versions, **content, "history": []}
    if resumed:
        before = read(folder)
        record |= {key: before[key] for key in started if key in before}
        record["history"] = [*before["history"], started]
    write_json(folder / RECORD, record)


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
        return {"overrides": [], "data": {}, "history": []} | content
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error!r}); start a new run with model.init_from={folder}"
        ) from None


def _newest_first() -> list[Path]:
    """Return the runs below outputs/ with a checkpoint, sweeps included; stages are one run."""
    found = set(_folders(OUTPUTS, set()))
    runs = [f for f in found if not found & set(f.parents) and _has_checkpoint(f)]

    def changed(run: Path) -> float:
        return max(path.stat().st_mtime for path in (run / RECORD, *run.glob("**/*.ckpt")))

    return sorted(runs, key=changed, reverse=True)


def _has_checkpoint(run: Path) -> bool:
    """Return True if a run, or a stage of it, has a checkpoint with which it resumes."""
    return any(any(run.glob(f"**/checkpoints/{name}")) for name in CHECKPOINTS)


def _folders(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield the folders with a readable record in a folder, linked ones too, each once."""
    if not folder.is_dir() or folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    with suppress(ConfigError):
        read(folder)
        yield folder
    for inner in folder.iterdir():
        yield from _folders(inner, seen)


def step_of(path: Path) -> int:
    """Return the optimiser step of a checkpoint; -1 for a damaged one, or none."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    except Exception:  # a damaged file makes its reader raise almost anything
        return -1


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
