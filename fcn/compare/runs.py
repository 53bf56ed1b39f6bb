"""Finished runs: how they are read, grouped, named by letters, and compared in pairs.

Runs that differ in the seed or the fold alone form a group: a row of the table. All runs of a fold
must have been evaluated on the same images, so that their differences are paired.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from torch import Tensor
from yaml import YAMLError

from fcn import checkpoint
from fcn.config import CompareConfig, ModelConfig, flat_keys
from fcn.errors import ConfigError, UserError
from fcn.inference.evaluate import read_metrics, read_per_image
from fcn.inference.metrics import (
    METRICS,
    SEED,
    Estimate,
    Resampled,
    difference,
    estimate,
    resample,
)
from fcn.training import record

# Settings, or groups of them, in which the runs of a row may differ: seed, fold, where a run works.
IRRELEVANT = {
    "seed", "resume", "overwrite", "batch_size", "logger", "data.root", "data.num_workers",
    "data.download", "data.scan", "data.fold", "trainer.accelerator", "trainer.devices",
    "trainer.num_nodes", "trainer.strategy", "trainer.enable_progress_bar",
}  # fmt: skip


FEW_IMAGES = 30  # resamples of fewer often lack whole classes, and their spread is too small


@dataclass
class Run:
    """A finished run, as train.py or evaluate.py left it."""

    folder: Path
    cwd: Path  # relative paths in its settings start there
    config: dict[str, Any]
    given: dict[str, str]  # keys and config groups of the command line, with their values
    metrics: dict[str, Any]
    ids: list[str]
    per_image: Tensor  # int64 (N, 3, K)
    evaluated: str | None = None  # the checkpoint, if the settings are those of its training
    _resampled: dict[tuple[str, ...], Resampled] = field(default_factory=dict)

    @cached_property
    def settings(self) -> dict[str, str]:
        """The settings that change the result, by dotted key, as YAML writes them: null, true."""
        return {
            key: value if isinstance(value, str) else json.dumps(value, default=str)
            for key, value in flat_keys(self.config).items()
            if _is_relevant(key)
        }

    @property
    def seed(self) -> str:
        return str(self.config.get("seed", "-"))

    @property
    def fold(self) -> int | None:
        """The fold it was evaluated on; None if the split was not divided into folds."""
        data = self.config.get("data") or {}
        divided = data.get("split") in (None, data.get("train_split"), data.get("val_split"))
        return data.get("fold") if divided else None

    @property
    def classes(self) -> list[str]:
        return [entry["name"] for entry in self.metrics["classes"]]

    @property
    def checkpoint(self) -> str:
        """The path of the evaluated model: for a run of train.py its own folder."""
        evaluated = self.evaluated or self.config.get("checkpoint")
        return str(self.folder) if evaluated is None else self.located(evaluated)

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


@dataclass
class Differences:
    """How far a group is above the one that it is compared with, over the classes both have."""

    metrics: dict[str, Estimate]
    iou: dict[str, Estimate]  # by class


@dataclass
class Group:
    """Runs that differ in their seeds and folds alone: a row of the table, named by a letter."""

    name: str
    settings: dict[str, str]  # those that differ between groups
    runs: list[Run]
    differences: Differences | None = None  # None: the others are compared with this group

    @property
    def pairs(self) -> list[str]:
        """The settings that differ and that its runs have, as KEY=VALUE."""
        return [f"{key}={value}" for key, value in self.settings.items() if value != "-"]

    @property
    def description(self) -> str:
        """The settings that differ, or the folder of a group that has none."""
        return " ".join(self.pairs) or str(self.runs[0].folder)


@dataclass
class Comparison:
    """Groups of runs, and the one that the others are compared with."""

    groups: list[Group]
    base: Group
    # The classes that have an IoU in every run of a fold: the rows' means are over these.
    shared: dict[int | None, list[str]]
    note: str  # on classes that are left out, or ""

    @property
    def classes(self) -> list[str]:
        """The classes of all runs."""
        return list(dict.fromkeys(name for group in self.groups for name in classes_of(group.runs)))

    def mean_iou(self, group: Group) -> list[float]:
        """Return the mean IoU of each run of a group, over the shared classes of its fold."""
        means = [run.resampled(self.shared[run.fold]).whole["mean_iou"] for run in group.runs]
        return [float(mean) for mean in means]

    def average(self, group: Group) -> Resampled:
        """Return the means over the shared classes, averaged over the runs of a group."""
        parts = [run.resampled(self.shared[run.fold]) for run in group.runs]
        return average(parts, METRICS)  # without those of each class, which folds may lack

    @property
    def protocol(self) -> dict[str, Any]:
        """What was evaluated: the images of all folds together."""
        runs = [run for group in self.groups for run in group.runs]
        protocol = runs[0].metrics["protocol"]
        if None in self.shared:
            return protocol
        images = {run.fold: len(run.ids) for run in runs}
        data = f"{runs[0].config['data']['name']} (folds {', '.join(map(str, images))})"
        return protocol | {"data": data, "images": sum(images.values())}

    @property
    def warning(self) -> str:
        """A sentence on intervals that rest on few images, or ""."""
        images = self.protocol["images"]
        if images >= FEW_IMAGES:
            return ""
        return f"Intervals from {images} image{'s' * (images > 1)} are rough, often too narrow"

    def trimap(self, group: Group) -> list[float | None]:
        """Return the mean IoU in bands of 1, 2, ... pixels near boundaries, over runs.

        Runs record it over all of their classes; it is None if these are not the shared ones.
        """
        bands = list(zip(*(run.metrics["trimap"] for run in group.runs), strict=True))
        known = all(occurring(run) == set(self.shared[run.fold]) for run in group.runs)
        return [fmean(band) if known and None not in band else None for band in bands]


def find_runs(cfg: CompareConfig, console: Console) -> list[Path]:
    """Return the folders of the runs to compare; print which runs of a sweep are unfinished."""
    found = [Path(run) for run in cfg.runs]
    if cfg.sweep is not None:
        sweep = Path(cfg.sweep)
        found_here = (path.parent for path in sweep.rglob("metrics.json"))
        finished = sorted((f for f in found_here if not checkpoint.goes_on(f)), key=_order)
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
    """Read a run's folder: its settings from run.json, or of evaluate.py from .hydra.

    What evaluate.py has evaluated keeps the settings of its training, its seed among them.
    """
    if not (folder / "metrics.json").is_file():
        raise UserError(f"{folder}: not a finished run (it has no metrics.json)")
    if checkpoint.goes_on(folder):
        raise UserError(
            f"{folder}: not a finished run: it was resumed, so its metrics.json is older than its "
            f"settings; finish it with train.py resume={folder}"
        )
    path, cwd, evaluated = folder / ".hydra" / "config.yaml", Path(), None
    config: Any
    if (folder / record.RECORD).is_file():
        content = record.read(folder)
        config, overrides = content["config"], content["overrides"]
        if _follows_a_stage(folder):  # its own is the stage before, beside it
            whole = record.read(folder.absolute().parent)["config"]
            config["model"]["init_from"] = whole["model"]["init_from"]
    else:
        try:
            config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
            hydra = OmegaConf.load(path.with_name("hydra.yaml")).hydra
            cwd, overrides = Path(hydra.runtime.cwd), list(hydra.overrides.task)
        except (OSError, OmegaConfBaseException, YAMLError, TypeError) as error:
            raise UserError(f"{path}: the run's settings cannot be read ({error})") from None
        evaluated = config.get("checkpoint")
        local = evaluated if evaluated and "://" not in evaluated else None
        if local and (trained := record.run_of(str(cwd / local))):
            content, own = record.read(trained), {**config}
            del own["checkpoint"]
            trainer = content["config"].get("trainer", {}) | own.get("trainer", {})
            config = content["config"] | own | {"trainer": trainer}
            overrides = [o for o in overrides if not o.lstrip("+").startswith("checkpoint=")]
            overrides = [*content["overrides"], *overrides]
    parts = (override.lstrip("+~").partition("=") for override in overrides)
    given = {key: value for key, _, value in parts}
    metrics = read_metrics(folder / "metrics.json")
    ids, per_image = read_per_image(folder / "per_image.npz")
    return Run(folder, cwd, config, given, metrics, ids, per_image, evaluated)


def _follows_a_stage(folder: Path) -> bool:
    """Return True if a run is one of `stages`, and not the first."""
    whole = folder.absolute().parent
    if not (whole / record.RECORD).is_file():
        return False
    return folder.absolute().name in record.read(whole).get("stages", [])[1:]


def compare_runs(runs: Sequence[Run], against: str | None = None) -> Comparison:
    """Group runs that differ in seed and fold alone, and compare each group with one of them.

    So that the means are comparable, those of all rows are over the classes that every run of a
    fold has an IoU of, and each difference is over the classes that both of its rows have.

    Args:
        runs: evaluated on the same images, those of one fold.
        against: name of the group that the others are compared with, the settings that name it, or
            the folder of one of its runs; None: the first.

    Raises:
        UserError: the runs have no class in common, or were evaluated on different images.
        ConfigError: there is no group `against`.
    """
    by_fold = _by_fold(runs)
    if None in by_fold and len(by_fold) > 1:
        raise UserError(
            f"{by_fold[None][0].folder} was evaluated on a split and others on folds of it; "
            "compare them apart"
        )
    for first, *others in by_fold.values():
        for run in others:
            both = classes_of([first, run])
            if not both:
                raise UserError(f"{first.folder} and {run.folder} have no class in common")
            pixels = (one.tallies(both)[:, 1] for one in (first, run))  # of the ground truth
            if run.ids != first.ids or not torch.equal(*pixels):
                raise UserError(
                    f"{first.folder} and {run.folder} were evaluated on different images or "
                    "classes; evaluate both with evaluate.py on one split"
                )
    groups: dict[tuple[str, ...], Group] = {}
    for run, settings in zip(runs, _differing_settings(runs), strict=True):
        group = Group(_letters(len(groups)), settings, [])
        groups.setdefault(tuple(settings.values()), group).runs.append(run)
    every = list(groups.values())
    base = _find_group(every, against)
    for group in every:
        if group is not base:
            group.differences = _differences(group.runs, base.runs)
    common, shared = classes_of(runs), dict[int | None, list[str]]()
    for fold, members in by_fold.items():
        shared[fold] = [name for name in common if all(name in occurring(run) for run in members)]
        if not shared[fold]:
            raise UserError(f"{members[0].folder} and {runs[-1].folder} have no class in common")
    return Comparison(every, base, shared, _note(runs, common, shared))


def _by_fold(runs: Sequence[Run]) -> dict[int | None, list[Run]]:
    """Return the runs of each fold."""
    folds = dict.fromkeys(run.fold for run in runs)
    return {fold: [run for run in runs if run.fold == fold] for fold in folds}


def classes_of(runs: Sequence[Run]) -> list[str]:
    """Return the classes that all runs have, in the order of the first."""
    return [name for name in runs[0].classes if all(name in run.classes for run in runs)]


def occurring(run: Run) -> set[str]:
    """Return the classes that have an IoU: those in the masks or predicted."""
    found = (run.per_image.sum((0, 1)) > 0).tolist()
    return {name for name, occurs in zip(run.classes, found, strict=True) if occurs}


def _note(
    runs: Sequence[Run], common: Sequence[str], shared: Mapping[int | None, Sequence[str]]
) -> str:
    """Return which classes the rows' means leave out, and why; "" if none that occurs."""
    kept, occurs = set().union(*shared.values()), set().union(*map(occurring, runs))
    every = dict.fromkeys(name for run in runs for name in run.classes)
    lacking = [name for name in every if name not in common]
    predicted = [name for name in common if name in occurs - kept]
    partly = [n for n in common if n in kept and any(n not in names for names in shared.values())]
    parts = []
    if lacking:
        parts.append(f"not all runs have {', '.join(lacking)}")
    if predicted:
        parts.append(f"only some of them predict {', '.join(predicted)}, in no mask")
    if parts:
        parts[-1] += f": the means are over the other {len(kept)} classes"
    if partly:
        parts.append(f"folds whose masks lack {', '.join(partly)} are counted without")
    if lacking and len(runs) > 2:
        parts[-1] += ", each difference is over those that both rows have"
    note = "; ".join(parts)
    return note[:1].upper() + note[1:]


def _letters(index: int) -> str:
    """Return A to Z, then AA, AB, ..."""
    before, last = divmod(index, len(ascii_uppercase))
    return (_letters(before - 1) if before else "") + ascii_uppercase[last]


def _find_group(groups: Sequence[Group], against: str | None) -> Group:
    """Return the group that `against` means."""
    if against is None:
        return groups[0]
    for group in groups:
        folders = {run.folder.resolve() for run in group.runs}
        if against in (group.name, group.description) or Path(against).resolve() in folders:
            return group
    rows = "; ".join(f"{group.name}: {group.description}" for group in groups)
    raise ConfigError(f"against={against}: no such row; choose a letter of {rows}")


def _is_relevant(key: str) -> bool:
    return not {key, key.partition(".")[0]} & IRRELEVANT


def _differing_settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return for each run the settings by which it differs from the others, or its folder.

    They are settings of the command line. The stages of a run, which have one command line, differ
    in the model.
    """
    keys = dict.fromkeys(key for run in runs for key in (*run.given, "model"))
    relevant = [key for key in keys if key != "trainer" and _is_relevant(key)]
    differing = [key for key in relevant if len({run.chosen(key) for run in runs}) > 1]
    names = [{key: run.chosen(key) for key in differing} for run in runs]
    seen: dict[str, tuple[dict[str, str], set[Any]]] = {}  # name -> settings, seeds and folds
    for run, name in zip(runs, names, strict=True):
        settings, drawn = seen.setdefault(str(name), (run.settings, set()))
        if settings != run.settings or (run.seed, run.fold) in drawn:  # one name for two things
            return [{"run": str(run.folder)} for run in runs]
        drawn.add((run.seed, run.fold))
    return names


def _differences(runs: Sequence[Run], base: Sequence[Run]) -> Differences:
    """Estimate how far runs are above others in every metric, paired by image, fold and seed.

    Raises:
        UserError: they have no fold in common.
    """
    classes, parts = classes_of([*runs, *base]), list[Resampled]()
    others = _by_fold(base)
    for fold, members in _by_fold(runs).items():
        sides = members, others.get(fold, [])
        seeds = set.intersection(*({run.seed for run in side} for side in sides))
        above, below = ([run for run in side if run.seed in seeds] or side for side in sides)
        if below:
            means = (average([run.resampled(classes) for run in side]) for side in (above, below))
            parts.append(difference(*means))
    if not parts:
        raise UserError(f"{base[0].folder} and {runs[0].folder} have no fold in common")
    change = average(parts)
    metrics = {metric: estimate(change, metric)[0] for metric in METRICS}
    return Differences(metrics, dict(zip(classes, estimate(change, "iou"), strict=True)))


def average(parts: Sequence[Resampled], metrics: Iterable[str] | None = None) -> Resampled:
    """Return the mean of metrics, of all images and of resamples of them.

    Args:
        parts: with their classes in one order, for metrics of each class.
        metrics: their names in `rates`; None: all.
    """
    names = list(metrics or parts[0].whole)

    def mean(values: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([value[name] for value in values]).nanmean(0) for name in names}

    return Resampled(mean([part.whole for part in parts]), mean([part.drawn for part in parts]))
