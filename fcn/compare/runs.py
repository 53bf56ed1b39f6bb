"""Finished runs: how they are found, and read together with the settings of their training."""

import json
from collections.abc import Iterable, Sequence
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
    "run", "trained_on", "seed", "resume", "overwrite", "batch_size", "submission", "logger",
    "data.root", "data.num_workers", "data.download", "data.scan", "data.fold", "data.split",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    "trainer.enable_progress_bar",
}  # fmt: skip


@dataclass
class Run:
    """A finished run, as train.py or evaluate.py left it."""

    folder: Path
    config: dict[str, Any]  # of the training; of evaluate.py where that is not known
    given: dict[str, Any]  # keys and config groups of the command line, with their values
    data: dict[str, Any]  # settings of the data set that it was evaluated on
    metrics: dict[str, Any]
    ids: list[str]
    per_image: Tensor  # int64 (N, 3, K)
    checkpoint: str = ""  # path or address of the evaluated model; of train.py: the run's folder
    _resampled: dict[tuple[str, ...], Resampled] = field(default_factory=dict)

    @cached_property
    def values(self) -> dict[str, str]:
        """All settings by dotted key, as YAML writes them: null, true; `run` is the folder."""
        return {
            key: value if isinstance(value, str) else json.dumps(value, default=str)
            for key, value in flat_keys(self.config | {"run": str(self.folder)}).items()
        }

    @cached_property
    def settings(self) -> dict[str, str]:
        """The settings in which the runs of a row agree."""
        relevant = (k for k in self.values if not {k, k.partition(".")[0]} & IRRELEVANT)
        return {key: self.values[key] for key in relevant}

    @property
    def seed(self) -> str:
        return str(self.config.get("seed", "-"))

    @property
    def evaluated_fold(self) -> int | None:
        """The fold it was evaluated on; None if the split was not divided into folds."""
        split, *divided = (self.data.get(key) for key in ("split", "train_split", "val_split"))
        return self.data.get("fold") if split in (None, *divided) else None

    @property
    def fold(self) -> int | None:
        """The fold of its training, or else of its evaluation."""
        fold = self.config.get("data", {}).get("fold")
        return self.evaluated_fold if fold is None else fold

    @property
    def network(self) -> tuple[str, int | None]:
        """What tells it apart from the others of its row."""
        return self.seed, self.fold

    @property
    def classes(self) -> list[str]:
        return [entry["name"] for entry in self.metrics["classes"]]

    def chosen(self, key: str) -> str:
        """Return the value of a setting, or the choice of a config group; "-" for none."""
        group = self.config.get(key)
        if key == "model" and isinstance(group, dict) and "stride" in group:
            return ModelConfig(stride=group["stride"], skip_scales=group["skip_scales"]).name
        if isinstance(group, dict):
            return str(group.get("name", self.given.get(key, "-")))
        return self.values.get(key, str(self.given.get(key, "-")))

    def tallies(self, classes: Sequence[str]) -> Tensor:
        """Return what was counted of some of its classes in each image, int64 (N, 3, K)."""
        return self.per_image[:, :, [self.classes.index(name) for name in classes]]

    def resampled(self, classes: Sequence[str]) -> Resampled:
        """Return the metrics over some of its classes, of all images and of resamples of them."""
        key = tuple(classes)
        if key not in self._resampled:
            seed = SEED + (self.evaluated_fold or 0)  # folds are drawn from independently
            self._resampled[key] = resample(self.tallies(classes), seed)
        return self._resampled[key]


def find_runs(cfg: CompareConfig, console: Console) -> list[Path]:
    """Return the folders of the runs to compare; print which runs of a sweep are unfinished."""
    found = [Path(run) for run in cfg.runs]
    if cfg.sweep is not None:
        sweep = Path(cfg.sweep)
        here = (path.parent for path in sweep.rglob("metrics.json"))
        finished = [run for run in here if not checkpoint.is_resumed_unfinished(run)]
        for path in sorted(sweep.rglob(record.RECORD)):
            if not any(run.is_relative_to(path.parent) for run in finished):
                console.print(f"left out, unfinished: {path.parent}")
        found += sorted(finished, key=_order)
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
    protocol, evaluated = metrics["protocol"], str(folder)
    views = {"flip": protocol.get("flip", False), "scales": protocol.get("scales", [1.0])}
    if (folder / record.RECORD).is_file():
        config, given = _of_training(folder)
        data = config["data"]
    else:
        config, given, evaluated, checksum = _of_evaluation(folder)
        config["trainer"] = {"precision": protocol.get("precision")}
        data = config["data"]
        if "://" not in evaluated:
            if _has_changed(evaluated, checksum):
                raise UserError(
                    f"{folder}: {evaluated} has changed since it was evaluated; evaluate it again"
                )
            config, given = _with_training(config, given, evaluated)
    own = config | views, given | views, data
    return Run(folder, *own, metrics, ids, per_image, evaluated)


def _of_training(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
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
    if (folder / "metrics.json").is_file():  # auto is one precision here and another there
        protocol = read_metrics(folder / "metrics.json")["protocol"]
        config["trainer"]["precision"] = protocol.get("precision")
    train, val = (content["data"].get(split, {}) for split in ("train", "val"))
    same = val if config["data"].get("limit") else train  # each seed draws other images
    checksum = str(same.get("ids_sha256"))[:8]
    config["trained_on"] = {"images": train.get("images"), "checksum": checksum}
    if (processes := content.get("processes") or 1) > 1:  # recipe.batch_size is that of each
        config["processes"] = given["processes"] = processes
    return config, given


def _of_evaluation(folder: Path) -> tuple[dict[str, Any], dict[str, Any], str, str | None]:
    """Return the settings of evaluate.py, those typed, and its checkpoint with its checksum."""
    path = folder / ".hydra" / "config.yaml"
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        content: Any = OmegaConf.load(path.with_name("hydra.yaml"))
        given, evaluated = _typed(content.hydra.overrides.task), config["checkpoint"]
        if "://" not in evaluated:
            evaluated = str(Path(content.hydra.runtime.cwd, evaluated).absolute())
        return config, given, evaluated, content.get("checkpoint_sha256")
    except (OSError, OmegaConfBaseException, YAMLError, TypeError, KeyError) as error:
        raise UserError(f"{path}: the run's settings cannot be read ({error})") from None


def _has_changed(evaluated: str, checksum: str | None) -> bool:
    """Return True if a checkpoint is there and has another checksum than the one recorded."""
    try:
        return checksum is not None and checksum != checkpoint.sha256(checkpoint.find(evaluated))
    except CheckpointError:  # it is gone
        return False


def _with_training(
    config: dict[str, Any], given: dict[str, Any], evaluated: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the training before an evaluation; its own if that is not known.

    `weights` says which file of the run was evaluated, if not its final model; `evaluation.*` how,
    if not as the training validated.
    """
    run = record.run_of(evaluated)
    if run is None:
        return config, given
    trained, typed = _of_training(checkpoint.last_stage(run))
    inside = Path(evaluated).relative_to(run).as_posix()
    named = {} if inside in (".", "model.safetensors") else {"weights": inside}
    for group, key in (("trainer", "precision"), ("data", "value_range"), ("data", "bands")):
        value = config[group].get(key)
        if value and value != trained[group].get(key):
            named[f"evaluation.{key}"] = value
    return trained | named, typed | named


def _typed(overrides: Iterable[str]) -> dict[str, Any]:
    """Return the keys and config groups of a command line, with their values."""
    parts = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in parts}
