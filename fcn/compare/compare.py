"""Compare finished runs: a table, a plot, and one HTML page that opens without a network.

Runs that differ in the seed or the fold alone form a group, named by the settings that differ
between groups. All runs of a fold must have been evaluated on the same images, so that their
differences are paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from yaml import YAMLError

from fcn import checkpoint
from fcn.config import CompareConfig, DataConfig, flat_keys
from fcn.data.dataset import SegmentationDataset
from fcn.data.layouts import open_split
from fcn.device import InferenceModel, pick_device, resolve_precision
from fcn.errors import ConfigError, UserError
from fcn.inference.evaluate import METRICS, predicted_rows, read_metrics, read_per_image
from fcn.inference.metrics import (
    LEVEL,
    RESAMPLES,
    SEED,
    Estimate,
    Resampled,
    difference,
    estimate,
    rates,
    resample,
)
from fcn.output import atomic_write, percent, refuse_overwriting, write_json
from fcn.pictures import page, plots, visualize

TRIMAP = 3  # pixels: width of the band near boundaries that the table shows
SHOWN = 4  # groups whose confusion matrices and predictions are on the page
SIDE = 400  # pixels of a gallery picture's longer side
HEADINGS = (
    "run",
    "seeds",
    "mean IoU (%)",
    f"{LEVEL:.0%} interval",
    "range",
    f"within {TRIMAP} px of boundaries",
    "difference",
    f"its {LEVEL:.0%} interval",
)
# Settings that say where a run works, not what it learns.
IRRELEVANT = {
    "seed",
    "resume",
    "overwrite",
    "device",
    "data.root",
    "data.num_workers",
    "data.download",
    "data.scan",
    "data.fold",
}


@dataclass
class Run:
    """A finished run, as train.py or evaluate.py left it."""

    folder: Path
    cwd: Path  # where it was started; relative paths in its settings start there
    config: dict[str, Any]
    choices: dict[str, str]  # config group -> option
    given: list[str]  # keys and config groups set on the command line
    metrics: dict[str, Any]
    ids: list[str]
    per_image: Tensor  # int64 (N, 3, K)

    @cached_property
    def settings(self) -> dict[str, str]:
        """The settings by dotted key."""
        return {key: str(value) for key, value in flat_keys(self.config).items()}

    @property
    def seed(self) -> str:
        return self.settings.get("seed", "-")

    @property
    def fold(self) -> str | None:
        """The fold it was evaluated on; None if the data was not divided into folds."""
        fold = self.settings.get("data.fold", "None")
        return None if fold == "None" else fold

    @property
    def classes(self) -> list[str]:
        return [entry["name"] for entry in self.metrics["classes"]]

    @property
    def checkpoint(self) -> str:
        """Where the model lies that was evaluated: a run of train.py has its own."""
        evaluated = self.config.get("checkpoint")
        return str(self.folder) if evaluated is None else self.located(evaluated)

    def located(self, path: str) -> str:
        """Return a path or address of the run's settings as it is seen from here."""
        return path if "://" in path else str(self.cwd / path)

    @cached_property
    def resampled(self) -> Resampled:
        return resample(self.per_image, SEED + int(self.fold or 0))


@dataclass
class Group:
    """Runs that differ in their seeds and folds alone."""

    settings: dict[str, str]  # those that differ between groups
    runs: list[Run]
    differences: dict[str, list[Estimate]]  # metric -> from the first group; empty for the first

    @property
    def name(self) -> str:
        pairs = [f"{key}={value}" for key, value in self.settings.items()]
        return " ".join(pairs) or str(self.runs[0].folder)

    @property
    def mean_iou(self) -> list[float]:
        return [run.metrics["mean_iou"] for run in self.runs]

    @property
    def interval(self) -> Estimate:
        """The mean over the runs of their mean IoU, with its interval."""
        return estimate(_average(self.runs), "mean_iou")[0]

    @property
    def trimap(self) -> list[float | None]:
        """Mean IoU in bands of 1, 2, ... pixels near boundaries, averaged over the runs."""
        bands = zip(*(run.metrics["trimap"] for run in self.runs), strict=True)
        return [None if None in band else fmean(band) for band in bands]


def main(cfg: CompareConfig, folder: Path, console: Console) -> list[Group]:
    """Compare runs: print the table; write compare.json, compare.png and compare.html."""
    device = pick_device(cfg.device)
    paths = [folder / f"compare.{suffix}" for suffix in ("json", "png", "html")]
    refuse_overwriting(paths, cfg.overwrite, "hydra.run.dir")
    runs, note = align_classes([read_run(path) for path in find_runs(cfg, console)])
    groups = group_runs(runs)
    table = Table(*HEADINGS, box=None)
    table.columns[0].overflow = "fold"
    for row in rows(groups):
        table.add_row(*row)
    console.print(table)
    if note:
        console.print(note)
    write_json(folder / "compare.json", as_json(groups) | {"note": note})
    title = "mean IoU (%): a dot per run, a bar for the mean"
    plot = plots.dots({group.name: group.mean_iou for group in groups}, title)
    plot.save(folder / "compare.png")
    try:
        examples = gallery(groups, cfg, device)
    except (UserError, OSError) as error:
        examples = {"note": f"No example predictions: {error}"}
        console.print(examples["note"])
    with atomic_write(folder / "compare.html") as temporary:
        temporary.write_text(report(groups, plot, examples, note), encoding="utf-8")
    console.print(f"compare.html, compare.json and compare.png in {folder}")
    return groups


def find_runs(cfg: CompareConfig, console: Console) -> list[Path]:
    """Return the folders of the runs to compare; print which runs of a sweep are unfinished."""
    found = [Path(run) for run in cfg.runs]
    if cfg.sweep is not None:
        sweep = Path(cfg.sweep)
        finished = sorted((path.parent for path in sweep.rglob("metrics.json")), key=_order)
        for record in sorted(sweep.rglob("run.json")):
            if not any(run.is_relative_to(record.parent) for run in finished):
                console.print(f"left out, unfinished: {record.parent}")
        found += finished
    if not found:
        raise ConfigError("no finished run found: give runs=[FOLDER,...] or sweep=FOLDER")
    return found


def _order(run: Path) -> tuple[int, float]:
    """Sort Hydra's jobs by number, and stages by the time they ended."""
    number = int(run.name) if run.name.isdigit() else 0
    return number, (run / "metrics.json").stat().st_mtime


def read_run(folder: Path) -> Run:
    """Read a run's folder; a stage has the settings of the folder above it."""
    if not (folder / "metrics.json").is_file():
        raise UserError(f"{folder}: not a finished run (it has no metrics.json)")
    is_stage = not (folder / ".hydra").is_dir()
    path = (folder.parent if is_stage else folder) / ".hydra" / "config.yaml"
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        hydra = OmegaConf.load(path.with_name("hydra.yaml")).hydra
        cwd, choices = Path(hydra.runtime.cwd), dict(hydra.runtime.choices)
        given = [override.partition("=")[0].lstrip("+") for override in hydra.overrides.task]
    except (OSError, OmegaConfBaseException, YAMLError, TypeError) as error:
        raise UserError(f"{path}: the run's settings cannot be read ({error})") from None
    if is_stage:
        config |= {"model": {"name": folder.name}, "stages": []}
        choices["model"] = folder.name
        given.append("model")
    metrics = read_metrics(folder / "metrics.json")
    ids, per_image = read_per_image(folder / "per_image.npz")
    return Run(folder, cwd, config, choices, given, metrics, ids, per_image)


def align_classes(runs: Sequence[Run]) -> tuple[list[Run], str]:
    """Return the runs with the same classes in the same order, and a note on what was left out.

    A mean over other classes is another number. So classes that a run lacks are left out of all,
    and so are those that are in no mask and that only some of the runs predict; of several folds,
    in the fold where it is so.

    Raises:
        UserError: the runs have no class in common.
    """
    first = runs[0]
    shared = [name for name in first.classes if all(name in run.classes for run in runs)]
    if not shared:
        raise UserError(f"{first.folder} and {runs[-1].folder} have no class in common")
    every = dict.fromkeys(name for run in runs for name in run.classes)
    lacking = [name for name in every if name not in shared]
    aligned = [_with_classes(run, shared) for run in runs]
    predicted = set[str]()
    for fold in _by_fold(aligned):
        places = [place for place, run in enumerate(aligned) if run.fold == fold]
        occurs = torch.stack([aligned[place].per_image.sum((0, 1)) > 0 for place in places])
        some = occurs.any(0) & ~occurs.all(0)
        if some.any():
            predicted |= {name for name, one in zip(shared, some.tolist(), strict=True) if one}
            for place in places:
                aligned[place] = _without_counts(aligned[place], some)
    counts = torch.cat([run.per_image for run in aligned]).sum((0, 1))
    present = {name for name, count in zip(shared, counts.tolist(), strict=True) if count}
    gone = [name for name in shared if name in predicted - present]
    kept = [name for name in shared if name not in gone]
    parts = []
    if lacking:
        parts.append(f"not all runs have {', '.join(lacking)}")
    if gone:
        parts.append(f"only some of them predict {', '.join(gone)}, in no mask")
    if inner := [name for name in kept if name in predicted]:
        parts.append(f"where the masks of a fold lack {', '.join(inner)}, it does not count")
    if not parts:
        return aligned, ""
    note = "; ".join(parts)
    if lacking or gone:
        note += f": compared over the other {len(kept)} classes"
    return [_with_classes(run, kept) for run in aligned], note[0].upper() + note[1:]


def _by_fold(runs: Sequence[Run]) -> dict[str | None, Run]:
    """Return the first run of each fold."""
    first: dict[str | None, Run] = {}
    for run in runs:
        first.setdefault(run.fold, run)
    return first


def _without_counts(run: Run, classes: Tensor) -> Run:
    """Return a run in which some classes, bool (K,), neither occur nor count."""
    per_image = run.per_image * ~classes
    found = rates(per_image.sum(0))
    metrics = run.metrics | {name: float(found[name]) for name in METRICS}
    metrics["trimap"] = [None] * len(run.metrics["trimap"])  # known over all classes alone
    return replace(run, metrics=metrics, per_image=per_image)


def _with_classes(run: Run, names: Sequence[str]) -> Run:
    """Return a run with these of its classes, in this order, and its means over them alone."""
    if run.classes == list(names):
        return run
    index = [run.classes.index(name) for name in names]
    per_image = run.per_image[:, :, index]
    found = rates(per_image.sum(0))
    metrics = run.metrics | {name: float(found[name]) for name in METRICS}
    metrics["classes"] = [run.metrics["classes"][k] for k in index]
    metrics["confusion"] = [[run.metrics["confusion"][i][j] for j in index] for i in index]
    if len(names) < len(run.classes):
        metrics["trimap"] = [None] * len(run.metrics["trimap"])  # known over all classes alone
    return replace(run, metrics=metrics, per_image=per_image)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs that differ in seed and fold alone, and compare each group with the first."""
    by_fold = _by_fold(runs)
    for run in runs:
        first = by_fold[run.fold]
        pixels = run.per_image[:, 1], first.per_image[:, 1]  # of the ground truth
        if (run.ids, run.classes) != (first.ids, first.classes) or not torch.equal(*pixels):
            raise UserError(
                f"{first.folder} and {run.folder} were evaluated on different images or classes; "
                "evaluate both with evaluate.py on one split"
            )
    if None in by_fold and len(by_fold) > 1:
        raise UserError(
            f"{by_fold[None].folder} was evaluated on a split and others on folds of it; compare "
            "them apart"
        )
    groups: dict[tuple[str, ...], Group] = {}
    for run, settings in zip(runs, _distinguish(runs), strict=True):
        group = groups.setdefault(tuple(settings.values()), Group(settings, [], {}))
        group.runs.append(run)
    base, *others = groups.values()
    for group in others:
        group.differences = _differences(group.runs, base.runs)
    return [base, *others]


def _distinguish(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return what tells each run from the others: settings of the command line, or its folder."""
    keys = dict.fromkeys(key for run in runs for key in run.given if key not in IRRELEVANT)
    names = []
    for run in runs:
        known = run.settings | run.choices
        names.append({key: str(known.get(key, "-")) for key in keys})
    differing = [key for key in keys if len({name[key] for name in names}) > 1]
    names = [{key: name[key] for key in differing} for name in names]
    # name -> settings, and seeds and folds so far
    seen: dict[str, tuple[dict[str, str], set[tuple[str, str | None]]]] = {}
    for run, name in zip(runs, names, strict=True):
        relevant = {key: v for key, v in run.settings.items() if key not in IRRELEVANT}
        settings, seeds = seen.setdefault(str(name), (relevant, set()))
        if settings != relevant or (run.seed, run.fold) in seeds:  # one name for two things
            return [{"run": str(run.folder)} for run in runs]
        seeds.add((run.seed, run.fold))
    return names


def _differences(runs: Sequence[Run], first: Sequence[Run]) -> dict[str, list[Estimate]]:
    """Estimate how far runs are above others in every metric, paired by image, fold and seed."""
    by_fold = []
    for fold in _by_fold(first):
        sides = [[run for run in side if run.fold == fold] for side in (runs, first)]
        common = set.intersection(*({run.seed for run in side} for side in sides))
        above, below = ([r for r in side if r.seed in common] or side for side in sides)
        if above:
            by_fold.append(difference(_average(above), _average(below)))
    if not by_fold:
        raise UserError(f"{first[0].folder} and {runs[0].folder} have no fold in common")
    change = _mean(by_fold)
    return {metric: estimate(change, metric) for metric in (*METRICS, "iou")}


def _average(runs: Sequence[Run]) -> Resampled:
    """Return the metrics of all images, and of every resample of them, averaged over runs."""
    return _mean([run.resampled for run in runs])


def _mean(parts: Sequence[Resampled]) -> Resampled:
    def mean(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([part[name] for part in parts]).nanmean(0) for name in parts[0]}

    return Resampled(mean([part.whole for part in parts]), mean([part.drawn for part in parts]))


def rows(groups: Sequence[Group]) -> list[list[str]]:
    """Return the table of groups below `HEADINGS`."""
    result = []
    for group in groups:
        low, high = percent(min(group.mean_iou)), percent(max(group.mean_iou))
        folds = len(_by_fold(group.runs))
        row = [
            group.name,
            " ".join(dict.fromkeys(run.seed for run in group.runs))
            + (f", {folds} folds" if folds > 1 else ""),
            percent(fmean(group.mean_iou)),
            f"{percent(group.interval.low)} to {percent(group.interval.high)}",
            f"{low} to {high}" if len(group.runs) > 1 else "-",
            percent(group.trimap[TRIMAP - 1]),
        ]
        if group.differences:
            (change,) = group.differences["mean_iou"]
            value, low, high = (f"{100 * v:+.2f}" for v in asdict(change).values())
            row += [value, f"{low} to {high}"]
        else:
            row += ["-", "-"]
        result.append(row)
    return result


def as_json(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the contents of compare.json; rates are 0..1."""
    protocol = _protocol(groups)
    return {
        **{key: protocol[key] for key in ("data", "split", "images")},
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL},
        "groups": [
            {
                "name": group.name,
                "settings": group.settings,
                "runs": [str(run.folder) for run in group.runs],
                "seeds": [run.seed for run in group.runs],
                "folds": [run.fold for run in group.runs],
                "mean_iou": group.mean_iou,
                "interval": [group.interval.low, group.interval.high],
                "trimap": group.trimap,
                "difference": {
                    metric: asdict(estimates[0])
                    for metric, estimates in group.differences.items()
                    if metric in METRICS
                },
            }
            for group in groups
        ],
    }


def _protocol(groups: Sequence[Group]) -> dict[str, Any]:
    """Return what was evaluated: the images of all folds together."""
    first = groups[0].runs[0]
    folds = _by_fold([run for group in groups for run in group.runs])
    protocol = first.metrics["protocol"] | {"images": sum(map(len, _by_images(groups)))}
    if len(folds) > 1:
        protocol["data"] = f"{first.settings['data.name']} (folds {', '.join(map(str, folds))})"
    return protocol


def _by_images(groups: Sequence[Group]) -> dict[tuple[str, ...], Run]:
    """Return a run for each set of images, by their ids; folds have several."""
    return {tuple(run.ids): run for group in groups for run in group.runs}


def report(
    groups: Sequence[Group], plot: Image.Image, examples: Mapping[str, Any], note: str
) -> str:
    """Return the HTML page.

    Args:
        groups: the runs.
        plot: their mean IoU.
        examples: the gallery, or a note that says why there is none.
        note: of `align_classes`.
    """
    first = groups[0].runs[0]
    every = [group.runs[0].settings for group in groups]
    keys = dict.fromkeys(
        key for settings in every for key in settings if key not in ("seed", "data.fold")
    )
    settings = [(key, [one.get(key, "-") for one in every]) for key in keys]
    each = [run.metrics["classes"] for run in _by_images(groups).values()]
    pixels = [sum(entry["pixels"] for entry in entries) for entries in zip(*each, strict=True)]
    table = [
        (name, f"{count:,}", numbers)
        for name, count, numbers in zip(first.classes, pixels, _numbers(groups, "iou"), strict=True)
    ]
    table += [(words, "", _numbers(groups, metric)[0]) for metric, words in METRICS.items()]
    trimap = plots.trimap_plot({group.name: group.trimap for group in groups})
    context: dict[str, Any] = {
        "protocol": _protocol(groups),
        "title": f"Comparison of {sum(len(group.runs) for group in groups)} runs",
        "level": f"{LEVEL:.0%}",
        "resamples": f"{RESAMPLES:,}",
        "names": [group.name for group in groups],
        "headings": HEADINGS,
        "rows": rows(groups),
        "settings": sorted(settings, key=lambda entry: len(set(entry[1])) == 1),  # differing first
        "table": table,
        "figures": [
            page.figure(plot, "Mean IoU of every run", plot=True),
            *_curves(groups),
            page.figure(trimap, "Mean IoU near boundaries", plot=True),
        ],
        "confusions": [_confusion(group) for group in groups[:SHOWN]],
        "examples": examples,
        "note": note,
    }
    body = page.templates().get_template("compare/compare.html").render(context)
    return page.page(context["title"], body)


def _numbers(groups: Sequence[Group], metric: str) -> list[tuple[Estimate, ...]]:
    """Return a metric, per class or once: of each group, then each difference from the first."""
    columns = [estimate(_average(group.runs), metric) for group in groups]
    columns += [group.differences[metric] for group in groups[1:]]
    return list(zip(*columns, strict=True))


def _curves(groups: Sequence[Group]) -> list[str]:
    """Return the figure of the training curves of first runs; none if they were not trained."""
    loss, mean_iou = {}, {}
    for group in groups:
        folder = group.runs[0].folder
        kept = (folder / "history.json", folder / "checkpoints" / "last.ckpt")
        path = next((path for path in kept if path.is_file()), None)
        history = checkpoint.history(path) if path else {}
        if history.get("loss") and history.get("mean_iou"):
            loss[group.name], mean_iou[group.name] = history["loss"], history["mean_iou"]
    if not loss:
        return []
    caption = "Training curves of the first run of each row"
    return [page.figure(plots.curves(loss, mean_iou), caption, caption, plot=True)]


def _confusion(group: Group) -> str:
    """Return the figure of the confusion matrix of a group's first run."""
    run = group.runs[0]
    picture = plots.confusion_plot(np.array(run.metrics["confusion"]), run.classes)
    fold = "" if run.fold is None else f", fold {run.fold}"
    caption = f"{group.name}, seed {run.seed}{fold}"
    return page.figure(picture, f"Confusion matrix of {caption}", caption, plot=True)


def gallery(groups: Sequence[Group], cfg: CompareConfig, device: torch.device) -> dict[str, Any]:
    """Predict example images with the first run of each of the first groups.

    Returns:
        "cards", image id -> its pictures with their captions; "legend", class name -> colour;
        "errors", likewise.
    """
    first = groups[0].runs[0]
    dataset = _open_recorded(first, first, cfg.data_root)
    info = dataset.info
    chosen = _spread(rates(first.per_image)["mean_iou"], cfg.images)
    cards: dict[str, list[tuple[str, str]]] = {first.ids[index]: [] for index in chosen}
    masks = []
    for group in groups[:SHOWN]:
        run = next((run for run in group.runs if run.fold == first.fold), None)
        if run is None:
            continue
        taken = _open_recorded(first, run, cfg.data_root)
        predicted = predicted_rows(_load(run, device, dataset.classes), taken, chosen)
        for index, (image, ground_truth, mask) in zip(chosen, predicted, strict=True):
            masks += [ground_truth, mask]
            pictures = cards[first.ids[index]]
            if not pictures:
                pictures.append(("image", _uri(image, "jpeg")))
                pictures.append(("ground truth", _uri(visualize.outlined(ground_truth, info))))
            iou = percent(float(rates(run.per_image[index])["mean_iou"]))
            prediction = visualize.outlined(mask, info)
            errors = visualize.errors(ground_truth, mask, info)
            pictures.append((f"{group.name}: mean IoU {iou} %", _uri(prediction)))
            pictures.append((f"{group.name}: errors", _uri(errors)))
    legend = visualize.legend_of(masks, info)
    return {"cards": cards, "legend": legend, "errors": visualize.error_colours(info)}


def _open_recorded(run: Run, network: Run, data_root: str | None) -> SegmentationDataset:
    """Open the split that a run was evaluated on, where it lay then or below `data_root`.

    Its images have the range and the bands that the network of a run takes, maybe another's.
    """
    data, settings = (DataConfig(**of.config["data"]) for of in (run, network))
    data.root = data_root or run.located(data.root)
    data.value_range, data.bands = settings.value_range, settings.bands
    known, takes = (checkpoint.read(of.checkpoint).info for of in (run, network))
    known = replace(known, value_range=takes.value_range, bands=takes.bands)
    dataset = open_split(data, run.metrics["protocol"]["split"], known=known)
    if dataset.ids != run.ids:
        raise UserError(f"{dataset.name} has other images now than when {run.folder} was evaluated")
    return dataset


def _load(run: Run, device: torch.device, classes: Sequence[str]) -> InferenceModel:
    """Load the model of a run as it was evaluated, with the labels of the classes."""
    trained = checkpoint.read(run.checkpoint)
    labels = trained.labels_in(classes, run.metrics["protocol"]["data"])
    evaluated = run.metrics["protocol"]["precision"]
    precision = resolve_precision("auto", device, trained=evaluated)
    return InferenceModel(trained.model(), device, precision, labels=labels)


def _spread(mean_iou: Tensor, images: int) -> list[int]:
    """Return indices evenly spaced over the ranking of images, worst first; NaN stays out."""
    ranking = mean_iou.argsort(stable=True)[: int(mean_iou.isfinite().sum())]
    places = torch.linspace(0, len(ranking) - 1, min(images, len(ranking)), dtype=torch.float64)
    return ranking[places.round().long()].tolist()


def _uri(picture: visualize.UInt8, kind: str = "png") -> str:
    """Return a picture at the size of the gallery."""
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE))
    return page.data_uri(image, kind)
