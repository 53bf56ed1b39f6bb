"""The comparison of runs: how they are grouped, named by letters, and compared in pairs.

Runs that differ in the seed or the fold alone form a group: a row of the table. All runs of a fold
must have been evaluated on the same images, so that their differences are paired.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase
from typing import Any

import torch
from torch import Tensor

from fcn import checkpoint
from fcn.compare.runs import Run, is_relevant
from fcn.errors import ConfigError, UserError
from fcn.inference.metrics import METRICS, Estimate, Resampled, difference, estimate

FEW_IMAGES = 30  # resamples of fewer often lack whole classes, and their spread is too small


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
    folds = by_fold(runs)
    _check_images(folds)
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
    for fold, members in folds.items():
        shared[fold] = [name for name in common if all(name in occurring(run) for run in members)]
        if not shared[fold]:
            raise UserError(f"{members[0].folder} and {runs[-1].folder} have no class in common")
    return Comparison(every, base, shared, _note(runs, common, shared))


def by_fold(runs: Sequence[Run]) -> dict[int | None, list[Run]]:
    """Return the runs of each fold."""
    folds = dict.fromkeys(run.fold for run in runs)
    return {fold: [run for run in runs if run.fold == fold] for fold in folds}


def _check_images(folds: Mapping[int | None, Sequence[Run]]) -> None:
    """Raise a UserError if runs of one fold were evaluated on different images."""
    if None in folds and len(folds) > 1:
        raise UserError(
            f"{folds[None][0].folder} was evaluated on a split and others on folds of it; "
            "compare them apart"
        )
    for first, *others in folds.values():
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
    folder = checkpoint.last_stage(Path(against)).resolve()
    for group in groups:
        folders = {run.folder.resolve() for run in group.runs}
        if against in (group.name, group.description) or folder in folders:
            return group
    rows = "; ".join(f"{group.name}: {group.description}" for group in groups)
    raise ConfigError(f"against={against}: no such row; choose a letter of {rows}")


def _differing_settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return for each run the settings by which it differs from the others, or its folder.

    They are settings of the command line. The stages of a run, which have one command line, differ
    in the model.
    """
    keys = dict.fromkeys(key for run in runs for key in (*run.given, "model"))
    relevant = [key for key in keys if key != "trainer" and is_relevant(key)]
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
    others = by_fold(base)
    for fold, members in by_fold(runs).items():
        sides = members, others.get(fold, [])
        seeds = set.intersection(*({run.seed for run in side} for side in sides))
        above, below = ([run for run in side if run.seed in seeds] or side for side in sides)
        if below:
            own = ([run.resampled(classes) for run in side] for side in (above, below))
            parts.append(difference(*(average(side, of_one_fold=True) for side in own)))
    if not parts:
        raise UserError(f"{base[0].folder} and {runs[0].folder} have no fold in common")
    change = average(parts)
    metrics = {metric: estimate(change, metric)[0] for metric in METRICS}
    return Differences(metrics, dict(zip(classes, estimate(change, "iou"), strict=True)))


def average(
    parts: Sequence[Resampled],
    metrics: Iterable[str] | None = None,
    *,
    of_one_fold: bool = False,
) -> Resampled:
    """Return the mean of metrics, of all images and of resamples of them.

    Args:
        parts: with their classes in one order, for metrics of each class.
        metrics: their names in `rates`; None: all.
        of_one_fold: the parts are of the same images, so each of them must have a metric for the
            mean to have it: otherwise means would be over different classes. False: a metric that
            a part lacks, such as the IoU of a class that a fold lacks, is averaged over the others.
    """
    names = list(metrics or parts[0].whole)

    def mean(values: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        every = {name: torch.stack([value[name] for value in values]) for name in names}
        return {name: v.mean(0) if of_one_fold else v.nanmean(0) for name, v in every.items()}

    return Resampled(mean([part.whole for part in parts]), mean([part.drawn for part in parts]))
