"""Finished runs: how they are found, and read together with the settings of their training."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from torch import Tensor
from yaml import YAMLError

from fcn import checkpoint
from fcn.config import CompareConfig, ModelConfig, flat_keys
from fcn.errors import CheckpointError, ConfigError, UserError
from fcn.inference.evaluate import read_metrics, read_per_image
from fcn.inference.metrics import SEED, Resampled, resample
from fcn.training import record

# Settings, or groups of them, in which the runs of a row may differ: seed, fold, where a run works.
IRRELEVANT = {
    "seed", "resume", "overwrite", "batch_size", "logger", "data.root", "data.num_workers",
    "data.download", "data.scan", "data.fold", "trainer.accelerator", "trainer.devices",
    "trainer.num_nodes", "trainer.strategy", "trainer.enable_progress_bar",
}  # fmt: skip
# Settings of a data set that may differ where the same was trained on.
WHERE_DATA_LIES = {"root", "num_workers", "download", "scan", "split"}


@dataclass
class Run:
    """A finished run, as train.py or evaluate.py left it."""

    folder: Path
    config: dict[str, Any]
    given: dict[str, str]  # keys and config groups of the command line, with their values
    metrics: dict[str, Any]
    ids: list[str]
    per_image: Tensor  # int64 (N, 3, K)
    cwd: Path = Path()  # relative paths in its settings start there
    evaluated: str | None = None  # the checkpoint that evaluate.py was given
    _resampled: dict[tuple[str, ...], Resampled] = field(default_factory=dict)

    @cached_property
    def settings(self) -> dict[str, str]:
        """The settings that change the result, by dotted key, as YAML writes them: null, true."""
        return {
            key: value if isinstance(value, str) else json.dumps(value, default=str)
            for key, value in flat_keys(self.config).items()
            if is_relevant(key)
        }

    @property
    def seed(self) -> str:
        return str(self.config.get("seed", "-"))

    @property
    def fold(self) -> int | None:
        """The fold it was evaluated on; None if the split was not divided into folds."""
        return fold_of(self.config.get("data", {}))

    @property
    def classes(self) -> list[str]:
        return [entry["name"] for entry in self.metrics["classes"]]

    @property
    def checkpoint(self) -> str:
        """The path of the evaluated model: for a run of train.py its own folder."""
        return str(self.folder) if self.evaluated is None else self.located(self.evaluated)

    def located(self, path: str) -> str:
        """Return a path of the run's settings as one from this folder; an address as it is."""
        return path if "://" in path else str(self.cwd / path)

    def chosen(self, key: str) -> str:
        """Return the value of a setting, or the choice of a config group; "-" for none."""
        group = self.config.get(key)
        if key == "model" and isinstance(group, dict) and "stride" in group:
            return ModelConfig(stride=group["stride"], skip_scales=group["skip_scales"]).name
        if isinstance(group, dict):
            return str(group.get("name", self.given.get(key, "-")))
        return self.settings.get(key, self.given.get(key, "-"))

    def tallies(self, classes: Sequence[str]) -> Tensor:
        """Return what was counted of some of its classes in each image, int64 (N, 3, K)."""
        return self.per_image[:, :, [self.classes.index(name) for name in classes]]

    def resampled(self, classes: Sequence[str]) -> Resampled:
        """Return the metrics over some of its classes, of all images and of resamples of them."""
        key = tuple(classes)
        if key not in self._resampled:
            seed = SEED + (self.fold or 0)  # folds are drawn from independently
            self._resampled[key] = resample(self.tallies(classes), seed)
        return self._resampled[key]


def is_relevant(key: str) -> bool:
    """Return True if the runs of a row must agree in a setting."""
    return not {key, key.partition(".")[0]} & IRRELEVANT


def fold_of(data: Mapping[str, Any]) -> int | None:
    """Return the fold on which data settings evaluate; None if their split is not divided."""
    divided = data.get("split") in (None, data.get("train_split"), data.get("val_split"))
    return data.get("fold") if divided else None


def find_runs(cfg: CompareConfig, console: Console) -> list[Path]:
    """Return the folders of the runs to compare; print which runs of a sweep are unfinished."""
    found = [Path(run) for run in cfg.runs]
    if cfg.sweep is not None:
        sweep = Path(cfg.sweep)
        found_here = (path.parent for path in sweep.rglob("metrics.json"))
        finished = sorted(
            (f for f in found_here if not checkpoint.is_resumed_unfinished(f)), key=_order
        )
        for path in sorted(sweep.rglob(record.RECORD)):
            if not any(run.is_relative_to(path.parent) for run in finished):
                console.print(f"left out, unfinished: {path.parent}")
        found += finished
    if not found:
        raise ConfigError("no finished run found: give runs=[FOLDER,...] or sweep=FOLDER")
    return found


def _order(run: Path) -> tuple[int, float]:
    """Sort Hydra's jobs by number, and stages by the time they ended."""
    number = int(run.name) if run.name.isdigit() else 0
    return number, (run / "metrics.json").stat().st_mtime


def read_run(folder: Path) -> Run:
    """Read the folder of a run of train.py or evaluate.py; of one with `stages`, the last stage.

    An evaluation keeps the settings of the training that it evaluated, its seed among them.

    Raises:
        UserError: it is not finished, or damaged; what it evaluated has changed since.
    """
    folder = checkpoint.last_stage(folder)
    if not (folder / "metrics.json").is_file():
        raise UserError(f"{folder}: not a finished run (it has no metrics.json)")
    if checkpoint.is_resumed_unfinished(folder):
        raise UserError(
            f"{folder}: not a finished run: it was resumed, so its metrics.json is older than its "
            f"settings; finish it with train.py resume={folder}"
        )
    metrics = read_metrics(folder / "metrics.json")
    ids, per_image = read_per_image(folder / "per_image.npz")
    if (folder / record.RECORD).is_file():
        return Run(folder, *_of_training(folder), metrics, ids, per_image)
    config, given, cwd, checksum = _of_evaluation(folder)
    evaluated = config.get("checkpoint")
    if evaluated and "://" not in evaluated:
        path = (cwd / evaluated).absolute()
        if _has_changed(path, checksum):
            raise UserError(
                f"{folder}: {path} has changed since it was evaluated; evaluate it again"
            )
        config, given = _with_training(config, given, path)
    return Run(folder, config, given, metrics, ids, per_image, cwd, evaluated)


def _of_training(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return all settings of a run of train.py, and those that were typed.

    A stage has those of the whole run but for its model: its own name the folder of the stage
    before, and not what came before that one.
    """
    content = record.read(folder)
    config, starts = content["config"], (content, *content["history"])
    given = _typed(override for start in starts for override in start["overrides"])
    whole = folder.absolute().parent
    if (whole / record.RECORD).is_file():
        around = record.read(whole)
        if folder.absolute().name in around.get("stages", []):
            config["stages"] = around["stages"]
            config["model"]["init_from"] = around["config"]["model"]["init_from"]
    if (processes := content.get("processes") or 1) > 1:  # recipe.batch_size is that of each
        config["processes"], given["processes"] = processes, str(processes)
    return config, given


def _of_evaluation(folder: Path) -> tuple[dict[str, Any], dict[str, str], Path, str | None]:
    """Return the settings of evaluate.py, those typed, where, and its checkpoint's checksum."""
    path = folder / ".hydra" / "config.yaml"
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        content: Any = OmegaConf.load(path.with_name("hydra.yaml"))
        given, cwd = _typed(content.hydra.overrides.task), Path(content.hydra.runtime.cwd)
        return config, given, cwd, content.get("checkpoint_sha256")
    except (OSError, OmegaConfBaseException, YAMLError, TypeError) as error:
        raise UserError(f"{path}: the run's settings cannot be read ({error})") from None


def _has_changed(evaluated: Path, checksum: str | None) -> bool:
    """Return True if a checkpoint is there and has another checksum than the one recorded."""
    try:
        return checksum is not None and checksum != checkpoint.sha256(checkpoint.find(evaluated))
    except CheckpointError:  # it is gone
        return False


def _with_training(
    config: dict[str, Any], given: dict[str, str], evaluated: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings of an evaluation together with those of the training before it.

    What an evaluation can set too is kept apart: `trained_on` is the training's data, if another,
    `evaluation.precision` the evaluation's precision, if it was given. `weights` says which file of
    the run was evaluated, if not its final model.
    """
    run = record.run_of(str(evaluated))
    if run is None:
        return config, given
    trained, typed = _of_training(checkpoint.last_stage(run))
    data = {key: value for key, value in trained["data"].items() if key not in WHERE_DATA_LIES}
    own = config["data"] | {"fold": fold_of(config["data"])}
    if any(own.get(key) != value for key, value in data.items()):
        trained["trained_on"] = data
        kept = (key for key in typed if key.removeprefix("data.") not in WHERE_DATA_LIES)
        typed = {re.sub(r"^data\b", "trained_on", key): typed[key] for key in kept}
    inside = evaluated.relative_to(run).as_posix()
    named = {} if inside in (".", "model.safetensors") else {"weights": inside}
    if precision := config.get("trainer", {}).get("precision"):
        named["evaluation.precision"] = precision
    replaced = ("checkpoint", "trainer")
    config = {key: value for key, value in config.items() if key not in replaced}
    given = {key: value for key, value in given.items() if key.split(".")[0] not in replaced}
    return trained | config | named, typed | given | named


def _typed(overrides: Iterable[str]) -> dict[str, str]:
    """Return the keys and config groups of a command line, with their values."""
    parts = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in parts}
