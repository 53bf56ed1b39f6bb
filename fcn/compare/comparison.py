"""The comparison of runs: how they are grouped, named by letters, and compared in pairs.

Runs that differ in the seed or the fold alone form a group: a row of the table. All runs that were
evaluated on a fold must have the same images, so that their differences are paired. A mean is over
the runs of each fold, then over the folds.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcn import checkpoint
from fcn.compare.rows import names_of, rows_of, split
from fcn.compare.runs import Run
from fcn.errors import ConfigError, UserError
from fcn.inference.metrics import MEANS, METRICS, Estimate, Resampled, difference, estimate

RATES = (*METRICS, *MEANS.values())
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

    @property
    def runs(self) -> list[Run]:
        """The runs of all groups."""
        return [run for group in self.groups for run in group.runs]

    @property
    def classes(self) -> list[str]:
        """The classes that all runs of some group have."""
        return list(dict.fromkeys(name for group in self.groups for name in classes_of(group.runs)))

    def mean_iou(self, group: Group) -> list[float]:
        """Return the mean IoU of each run of a group, over the shared classes of its fold."""
        return [self._mean_iou([run]) for run in group.runs]

    def dots(self, group: Group) -> list[float]:
        """Return the numbers whose mean is that of a group: of its folds, or of a fold's runs."""
        folds = by_fold(group.runs).values()
        return list(map(self._mean_iou, folds)) if len(folds) > 1 else self.mean_iou(group)

    def _mean_iou(self, runs: Sequence[Run]) -> float:
        return float(mean_of(runs, self.shared, ["mean_iou"]).whole["mean_iou"])

    def average(self, group: Group) -> Resampled:
        """Return the metrics of a group over the shared classes."""
        return mean_of(group.runs, self.shared, METRICS)

    @property
    def protocol(self) -> dict[str, Any]:
        """What was evaluated: the images of all folds together."""
        first = self.runs[0]
        protocol = first.metrics["protocol"]
        if None in self.shared:
            return protocol
        images = {run.evaluated_fold: len(run.ids) for run in self.runs}
        data = f"{first.data['name']} (folds {', '.join(map(str, images))})"
        return protocol | {"data": data, "images": sum(images.values())}

    @property
    def notes(self) -> list[str]:
        """Sentences on what is left out, missing, unknown or rough."""
        notes = list(_left_out(self.runs, self.shared))
        if missing := ", ".join(_missing(self.groups)):
            notes.append(f"Not in every row: {missing}")
        for run in self.runs:
            if "://" not in run.checkpoint and not Path(run.checkpoint).exists():
                notes.append(f"{run.folder}: without {run.checkpoint} its training is unknown")
        if (images := self.protocol["images"]) < FEW_IMAGES:
            notes.append(f"Intervals from few images ({images}) are rough, often too narrow")
        return notes

    def trimap(self, group: Group) -> list[float | None]:
        """Return the mean IoU in bands of 1, 2, ... pixels near boundaries.

        Runs record it over all of their classes; it is None if these are not the shared ones.
        """
        if any(set(occurring(r)) != set(self.shared[r.evaluated_fold]) for r in group.runs):
            return [None] * len(group.runs[0].metrics["trimap"])
        folds = by_fold(group.runs).values()
        means = [np.mean([np.array(r.metrics["trimap"], float) for r in runs], 0) for runs in folds]
        return [None if math.isnan(mean) else mean for mean in np.mean(means, 0).tolist()]


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
    folds, shared = by_fold(runs), dict[int | None, list[str]]()
    _check_images(folds)
    for fold, members in folds.items():
        occurs = [occurring(run) for run in members]
        shared[fold] = [name for name in classes_of(runs) if all(name in own for own in occurs)]
        if not shared[fold]:
            raise UserError(f"{members[0].folder} and the others have no class in common")
    rows = rows_of(runs)
    named = zip(map(_letters, count()), names_of(rows), rows, strict=False)
    groups = [Group(*row) for row in named]
    base = _find_group(groups, against)
    for group in groups:
        if group is not base:
            group.differences = _differences(group.runs, base.runs)
    return Comparison(groups, base, shared)


def by_fold(runs: Sequence[Run]) -> dict[int | None, list[Run]]:
    """Return the runs by the fold that they were evaluated on."""
    return split(runs, lambda run: run.evaluated_fold)


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
            pixels = (one.tallies(both)[:, 1] for one in (first, run))  # of the ground truth
            if run.ids != first.ids or not torch.equal(*pixels):
                raise UserError(
                    f"{first.folder} and {run.folder} were evaluated on different images or "
                    "classes; evaluate both with evaluate.py on one split"
                )


def classes_of(runs: Sequence[Run]) -> list[str]:
    """Return the classes that all runs have, in the order of the first."""
    return [name for name in runs[0].classes if all(name in run.classes for run in runs)]


def occurring(run: Run) -> list[str]:
    """Return the classes that have an IoU: those in the masks or predicted."""
    found = run.per_image.sum((0, 1)).tolist()
    return [name for name, pixels in zip(run.classes, found, strict=True) if pixels]


def _left_out(runs: Sequence[Run], shared: Mapping[int | None, Sequence[str]]) -> Iterator[str]:
    """Yield for each fold which classes that occur its means leave out, if any."""
    for fold, names in shared.items():
        left = dict.fromkeys(n for run in runs for n in occurring(run) if n not in names)
        if left:
            where = "" if fold is None else f" of fold {fold}"
            yield f"Means{where} leave out {', '.join(left)}, of which not all runs have an IoU"


def _missing(groups: Sequence[Group]) -> Iterator[str]:
    """Yield each fold and seed that only some groups have."""
    for word in ("fold", "seed"):
        found = [{getattr(run, word) for run in group.runs} for group in groups]
        missing = set.union(*found) - set.intersection(*found) - {None, "-"}
        yield from (f"{word} {value}" for value in sorted(missing, key=int))


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


def _differences(runs: Sequence[Run], base: Sequence[Run]) -> Differences:
    """Estimate how far runs are above others in every metric, image by image.

    In each fold that both have, the seeds that both have count, or all if there are none.

    Raises:
        UserError: they have no fold in common.
    """
    classes, parts = classes_of([*runs, *base]), list[Resampled]()
    others = by_fold(base)
    for fold, members in by_fold(runs).items():
        sides = members, others.get(fold, [])
        both = set.intersection(*({run.network for run in side} for side in sides))
        above, below = ([run for run in side if run.network in both] or side for side in sides)
        if below:
            own = ([run.resampled(classes) for run in side] for side in (above, below))
            parts.append(difference(*(_average(side, torch.mean, RATES) for side in own)))
    if not parts:
        raise UserError(f"{base[0].folder} and {runs[0].folder} have no fold in common")
    change = _average(parts, torch.nanmean, RATES)
    metrics = {metric: estimate(change, metric)[0] for metric in METRICS}
    return Differences(metrics, dict(zip(classes, estimate(change, "iou"), strict=True)))


def mean_of(
    runs: Sequence[Run], classes: Mapping[int | None, Sequence[str]], metrics: Iterable[str]
) -> Resampled:
    """Return metrics over the classes of each fold: the mean of its runs, then of the folds."""
    folds = ([run.resampled(classes[f]) for run in part] for f, part in by_fold(runs).items())
    return _average([_average(part, torch.mean, metrics) for part in folds], torch.nanmean, metrics)


def _average(
    parts: Sequence[Resampled], mean: Callable[..., Tensor], names: Iterable[str]
) -> Resampled:
    """Return the means of metrics, by their names, of all images and of resamples of them.

    Args:
        parts: for metrics of each class, with the same classes.
        mean: torch.mean for runs of a fold: each of them must have a metric, otherwise means would
            be over different classes. torch.nanmean for folds: a metric that a fold lacks, such as
            the IoU of a class, is averaged over the others.
    """
    whole = {name: mean(torch.stack([part.whole[name] for part in parts]), 0) for name in names}
    drawn = {name: mean(torch.stack([part.drawn[name] for part in parts]), 0) for name in names}
    return Resampled(whole, drawn)
