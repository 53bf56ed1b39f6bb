"""Compare finished runs: a table, a plot, and one HTML page that opens without a network.

Runs whose settings are equal but for the seed form a group, named by what differs between groups.
All runs must have been evaluated on the same images, so that their differences are paired.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor
from yaml import YAMLError

from fcn import checkpoint, page, plots, visualize
from fcn.config import CompareConfig, ConfigError, DataConfig, UserError, flat_keys
from fcn.data.dataset import SegmentationDataset
from fcn.data.layouts import open_split
from fcn.device import InferenceModel, computes_bf16, pick_device
from fcn.evaluate import predicted_rows, read_metrics, read_per_image
from fcn.metrics import LEVEL, RESAMPLES, Estimate, Resampled, estimate, rates, resample
from fcn.models.fcn import FCN
from fcn.output import atomic_write, percent, progress, write_json

TRIMAP = 3  # pixels: width of the band near boundaries that the table shows
SHOWN = 4  # groups whose confusion matrices and predictions are on the page
SIDE, QUALITY = 400, 80  # pixels of a gallery picture's longer side; of its JPEG
METRICS = ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
HEADINGS = (
    "run",
    "seeds",
    "mean IoU (%) and range",
    f"within {TRIMAP} px of boundaries",
    f"difference and {LEVEL:.0%} interval",
    "upsampling weights",
)
# Settings that say where a run works, not what it learns.
IRRELEVANT = {"seed", "resume", "device", "data.root", "data.num_workers", "data.download"}


@dataclass
class Run:
    """A finished run, as train.py or evaluate.py left it."""

    folder: Path
    cwd: Path  # where it was started; relative paths in its settings start there
    config: dict[str, Any]
    metrics: dict[str, Any]
    ids: list[str]
    per_image: Tensor  # int64 (N, 3, K)

    @cached_property
    def settings(self) -> dict[str, str]:
        """The settings by dotted key."""
        flat = flat_keys(self.config)
        return {key: v if isinstance(v, str) else json.dumps(v) for key, v in flat.items()}

    @property
    def seed(self) -> str:
        return self.settings.get("seed", "-")

    @property
    def classes(self) -> list[str]:
        return [entry["name"] for entry in self.metrics["classes"]]

    @cached_property
    def resampled(self) -> Resampled:
        return resample(self.per_image)

    @cached_property
    def history(self) -> dict[str, list[tuple[int, float]]]:
        last = self.folder / "checkpoints" / "last.ckpt"
        return checkpoint.history(last) if last.is_file() else {"loss": [], "mean_iou": []}


@dataclass
class Group:
    """Runs that differ in their seeds alone."""

    settings: dict[str, str]  # those that differ between groups, by their short names
    runs: list[Run]
    differences: dict[str, list[Estimate]]  # metric -> from the first group; empty for the first

    @property
    def name(self) -> str:
        pairs = [f"{key}={value}" for key, value in self.settings.items()]
        return " ".join(pairs) or self.runs[0].folder.resolve().name

    @property
    def mean_iou(self) -> list[float]:
        return [run.metrics["mean_iou"] for run in self.runs]

    @property
    def trimap(self) -> list[float | None]:
        """Mean IoU in bands of 1, 2, ... pixels near boundaries, averaged over the runs."""
        bands = zip(*(run.metrics["trimap"] for run in self.runs), strict=True)
        return [None if None in band else fmean(band) for band in bands]

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Return a training curve, averaged over the runs at the steps that all of them have."""
        every = [dict(run.history[name]) for run in self.runs]
        common = sorted(set(every[0]).intersection(*every))
        return [(step, fmean(points[step] for points in every)) for step in common]

    @cached_property
    def upsampling_weights(self) -> int:
        """The number of trainable weights in upsampling layers."""
        with torch.device("meta"):  # the shapes alone
            model = FCN(**self.runs[0].metrics["protocol"]["model"])
        layers = (p for name, p in model.named_parameters() if name.startswith("upscore"))
        return sum(p.numel() for p in layers if p.requires_grad)


def main(cfg: CompareConfig, folder: Path, console: Console) -> list[Group]:
    """Compare runs: print the table; write compare.json, compare.png and compare.html."""
    device = pick_device(cfg.device)
    groups = group_runs([read_run(path) for path in find_runs(cfg, console)])
    table = Table(
        Column(HEADINGS[0], overflow="fold", min_width=18),
        *(Column(h, justify="right") for h in HEADINGS[1:]),
        box=None,
    )
    for row in rows(groups):
        table.add_row(*row)
    console.print(table)
    write_json(folder / "compare.json", as_json(groups))
    title = "mean IoU (%): a dot per run, a bar for the mean"
    plot = plots.dots({group.name: group.mean_iou for group in groups}, title)
    plot.save(folder / "compare.png")
    try:
        examples = gallery(groups, cfg, device, console)
    except (UserError, OSError) as error:
        examples = {"note": f"No example predictions: {error}"}
        console.print(examples["note"])
    with atomic_write(folder / "compare.html") as temporary:
        temporary.write_text(report(groups, plot, examples), encoding="utf-8")
    console.print(f"compare.html, compare.json and compare.png in {folder}")
    return groups


def find_runs(cfg: CompareConfig, console: Console) -> list[Path]:
    """Return the folders of the runs to compare; print which runs of a sweep are unfinished.

    Raises:
        ConfigError: there are none.
    """
    found = [Path(run) for run in cfg.runs]
    if cfg.sweep is not None:
        sweep = Path(cfg.sweep)
        finished = {path.parent for path in sweep.rglob("metrics.json")}
        started = {path.parent for name in (".hydra", "checkpoints") for path in sweep.rglob(name)}
        unfinished = [
            str(path.relative_to(sweep))
            for path in sorted(started)
            if not any(run.is_relative_to(path) for run in finished)
        ]
        if not finished:
            raise ConfigError(f"sweep={sweep}: there is no finished run (metrics.json) in it")
        if unfinished:
            console.print(f"{len(unfinished)} unfinished left out: {', '.join(unfinished)}")
        found += sorted(finished, key=_order)
    if not found:
        raise ConfigError("give runs=[FOLDER,...] or sweep=FOLDER")
    return list({path.resolve(): path for path in found}.values())


def _order(run: Path) -> tuple[int, float]:
    """Sort Hydra's jobs by number, and stages by the time they ended."""
    number = int(run.name) if run.name.isdigit() else 0
    return number, (run / "metrics.json").stat().st_mtime


def read_run(folder: Path) -> Run:
    """Read a run's folder; a stage has the settings of the folder above it.

    Raises:
        UserError: it is not a finished run, or a file is damaged.
    """
    if not (folder / "metrics.json").is_file():
        raise UserError(
            f"{folder}: there is no metrics.json; runs= takes folders of finished runs, sweep= a "
            "folder of such folders"
        )
    is_stage = not (folder / ".hydra").is_dir()
    path = (folder.parent if is_stage else folder) / ".hydra" / "config.yaml"
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        hydra = OmegaConf.load(path.with_name("hydra.yaml"))
        cwd = Path(OmegaConf.select(hydra, "hydra.runtime.cwd"))
    except (OSError, OmegaConfBaseException, YAMLError, TypeError) as error:
        raise UserError(f"{path}: the run's settings cannot be read ({error})") from None
    if is_stage:
        config |= {"model": {"name": folder.name}, "stages": []}
    metrics = read_metrics(folder / "metrics.json")
    return Run(folder, cwd, config, metrics, *read_per_image(folder / "per_image.npz"))


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs that differ in their seeds alone, and compare each group with the first.

    Raises:
        UserError: they were evaluated on different images or classes.
    """
    first = runs[0]
    for run in runs[1:]:
        counts, others = run.per_image[:, 1], first.per_image[:, 1]  # of the ground truth
        if (run.ids, run.classes) != (first.ids, first.classes) or not torch.equal(counts, others):
            raise UserError(
                f"{first.folder} and {run.folder} were evaluated on different images or classes; "
                "evaluate both with evaluate.py on one split"
            )
    keys = naming_keys([run.settings for run in runs])
    named = [{name: run.settings[key] for name, key in keys.items()} for run in runs]
    identities = {(*name.values(), run.seed) for name, run in zip(named, runs, strict=True)}
    if len(identities) < len(runs):  # the same settings twice: only the folders differ
        folders = [run.folder.resolve() for run in runs]
        above = os.path.commonpath(folders)
        named = [{"run": str(folder.relative_to(above))} for folder in folders]
    groups: list[Group] = []
    for name, run in zip(named, runs, strict=True):
        same = next((group for group in groups if group.settings == name), None)
        if same is None:
            groups.append(Group(name, [run], {}))
        else:
            same.runs.append(run)
    for group in groups[1:]:
        group.differences = differences(group.runs, groups[0].runs)
    return groups


def naming_keys(every: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return short name -> dotted key of the settings that tell runs apart.

    A choice such as model=fcn8s sets several keys; those that follow from it are left out.
    """
    common = set(every[0]).intersection(*every) - IRRELEVANT
    columns = {key: [settings[key] for settings in every] for key in every[0] if key in common}
    differing = {key: values for key, values in columns.items() if len(set(values)) > 1}

    def follows(key: str) -> bool:
        """Return True if the name of the key's config group decides its value."""
        group = key.partition(".")[0]
        choice = "recipe.name" if group == "trainer" else f"{group}.name"  # recipes set trainer.*
        if key == choice or choice not in differing:
            return False
        names = differing[choice]
        return len(set(zip(names, differing[key], strict=True))) == len(set(names))

    kept = [key for key in differing if not follows(key)]
    short = [key.removesuffix(".name").rpartition(".")[2] for key in kept]
    pairs = zip(short, kept, strict=True)
    return {name if short.count(name) == 1 else key: key for name, key in pairs}


def differences(runs: Sequence[Run], first: Sequence[Run]) -> dict[str, list[Estimate]]:
    """Estimate how far runs are above others in every metric, paired by image and by seed."""
    common = {run.seed for run in runs} & {run.seed for run in first}
    above, below = (
        average([run for run in side if run.seed in common] or side) for side in (runs, first)
    )
    return {metric: estimate(above, metric, minus=below) for metric in (*METRICS, "iou")}


def average(runs: Sequence[Run]) -> Resampled:
    """Return the metrics of all images, and of every resample of them, averaged over runs."""

    def mean(part: Callable[[Run], dict[str, Tensor]]) -> dict[str, Tensor]:
        every = [part(run) for run in runs]
        return {name: torch.stack([one[name] for one in every]).nanmean(0) for name in every[0]}

    return Resampled(mean(lambda run: run.resampled.whole), mean(lambda run: run.resampled.drawn))


def rows(groups: Sequence[Group]) -> list[list[str]]:
    """Return the table of groups below `HEADINGS`; a cell may have a second line."""
    return [
        [
            group.name,
            " ".join(run.seed for run in group.runs),
            _mean_and_range(group.mean_iou),
            percent(group.trimap[TRIMAP - 1]),
            *(map(_signed, group.differences["mean_iou"]) if group.differences else "-"),
            f"{group.upsampling_weights:,}",
        ]
        for group in groups
    ]


def _mean_and_range(values: Sequence[float]) -> str:
    mean = percent(fmean(values))
    return mean if len(values) == 1 else f"{mean}\n{percent(min(values))}..{percent(max(values))}"


def _signed(one: Estimate) -> str:
    if one.value is None or one.low is None or one.high is None:
        return "-"
    return f"{100 * one.value:+.2f}\n{100 * one.low:+.2f}..{100 * one.high:+.2f}"


def as_json(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the contents of compare.json; rates are 0..1."""
    protocol = groups[0].runs[0].metrics["protocol"]
    return {
        **{key: protocol[key] for key in ("data", "split", "images")},
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL},
        "groups": [
            {
                "name": group.name,
                "settings": group.settings,
                "runs": [str(run.folder) for run in group.runs],
                "seeds": [run.seed for run in group.runs],
                "mean_iou": group.mean_iou,
                "trimap": group.trimap,
                "upsampling_weights": group.upsampling_weights,
                "difference": {
                    metric: asdict(group.differences[metric][0])
                    for metric in METRICS
                    if group.differences
                },
            }
            for group in groups
        ],
    }


def report(groups: Sequence[Group], plot: Image.Image, examples: Mapping[str, Any]) -> str:
    """Return the HTML page.

    Args:
        groups: what is compared.
        plot: of mean IoU.
        examples: the gallery, or a note that says why there is none.
    """
    first = groups[0].runs[0]
    every = [group.runs[0].settings for group in groups]
    keys = dict.fromkeys(key for settings in every for key in settings if key != "seed")
    settings = [(key, [one.get(key, "-") for one in every]) for key in keys]
    alone = [average(group.runs) for group in groups]
    numbers = {}  # metric -> per class, or once: the groups, then their differences
    for metric in (*METRICS, "iou"):
        columns = [estimate(one, metric) for one in alone]
        columns += [group.differences[metric] for group in groups[1:]]
        numbers[metric] = list(zip(*columns, strict=True))
    figures = [page.figure(plot, "Mean IoU of every run", plot=True)]
    loss = {group.name: group.curve("loss") for group in groups}
    mean_iou = {group.name: group.curve("mean_iou") for group in groups}
    if any((*loss.values(), *mean_iou.values())):
        figures.append(page.figure(plots.curves(loss, mean_iou), "Training curves", plot=True))
    trimap = plots.trimap_plot({group.name: group.trimap for group in groups})
    figures.append(page.figure(trimap, "Mean IoU near boundaries", plot=True))
    context = {
        "protocol": first.metrics["protocol"],
        "title": groups[0].name if len(groups) == 1 else f"{len(groups)} settings compared",
        "level": f"{LEVEL:.0%}",
        "resamples": f"{RESAMPLES:,}",
        "names": [group.name for group in groups],
        "headings": HEADINGS,
        "rows": rows(groups),
        "differing": [(key, values) for key, values in settings if len(set(values)) > 1],
        "shared": [(key, values[:1]) for key, values in settings if len(set(values)) == 1],
        "metrics": [(metric.replace("_", " "), numbers[metric][0]) for metric in METRICS],
        "classes": list(zip(first.metrics["classes"], numbers["iou"], strict=True)),
        "figures": figures,
        "confusions": [confusion(group) for group in groups[:SHOWN]],
        "examples": examples,
        "errors": visualize.ERROR_COLOURS,
    }
    body = page.templates().get_template("compare.html").render(context)
    return page.page(context["title"], body)


def confusion(group: Group) -> Markup:
    """Return the figure of the confusion matrix of a group's first run."""
    run = group.runs[0]
    picture = plots.confusion_plot(np.array(run.metrics["confusion"]), run.classes)
    caption = f"{group.name}, seed {run.seed}"
    return page.figure(picture, f"Confusion matrix of {caption}", caption, plot=True)


def gallery(
    groups: Sequence[Group], cfg: CompareConfig, device: torch.device, console: Console
) -> dict[str, Any]:
    """Predict example images with the first run of each of the first groups.

    Returns:
        "cards", for each image its id and its pictures with their captions; the images are evenly
        spaced over the ranking by the first run's IoU. "legend", name -> colour of their classes.

    Raises:
        UserError: the images or the weights are not there.
    """
    groups = groups[:SHOWN]
    first = groups[0].runs[0]
    dataset = _open_recorded(first, cfg.data_root)
    chosen = spread(rates(first.per_image)["mean_iou"], cfg.images)
    predictions = [_predict(group.runs[0], dataset, chosen, device, console) for group in groups]
    cards = []
    for place, index in enumerate(chosen):
        image, ground_truth, _ = predictions[0][place]
        pictures = [
            ("image", page.data_uri(Image.fromarray(image), QUALITY)),
            ("ground truth", _png(visualize.outlined(ground_truth))),
        ]
        for group, predicted in zip(groups, predictions, strict=True):
            prediction = predicted[place][2]
            iou = percent(float(rates(group.runs[0].per_image[index])["mean_iou"]))
            name = f"{group.name}: " if len(groups) > 1 else ""
            pictures += [
                (f"{name}mean IoU {iou} %", _png(visualize.outlined(prediction))),
                (f"{name}errors", _png(visualize.errors(ground_truth, prediction))),
            ]
        cards.append((first.ids[index], pictures))
    masks = (mask for row in chain(*predictions) for mask in row[1:])
    return {"cards": cards, "legend": visualize.legend_of(masks, first.classes)}


def _open_recorded(run: Run, data_root: str | None) -> SegmentationDataset:
    """Open the split that a run was evaluated on, where it lay then or below `data_root`."""
    known = {field.name for field in fields(DataConfig)}
    data = DataConfig(**{key: v for key, v in run.config["data"].items() if key in known})
    if data_root is not None or "://" not in data.root:
        data.root = data_root or str(run.cwd / data.root)
    dataset = open_split(data, run.metrics["protocol"]["split"])
    if dataset.ids != run.ids:
        raise UserError(f"{dataset.name} has other images now than when {run.folder} was evaluated")
    return dataset


def _predict(
    run: Run,
    dataset: SegmentationDataset,
    indices: Sequence[int],
    device: torch.device,
    console: Console,
) -> list[tuple[visualize.UInt8, ...]]:
    """Return image, ground truth and prediction of some images, at the size of the gallery."""
    evaluated = run.config.get("checkpoint")  # None: the run trained its own model
    model = checkpoint.load(run.folder if evaluated is None else run.cwd / evaluated)
    bf16 = run.metrics["protocol"]["precision"] == "bf16-mixed" and computes_bf16(device)
    predicted = predicted_rows(InferenceModel(model, device, bf16), dataset, indices)
    with progress(console) as bar:
        return [tuple(map(_shrink, row)) for row in bar.track(predicted, len(indices))]


def spread(mean_iou: Tensor, images: int) -> list[int]:
    """Return indices evenly spaced over the ranking of images, worst first; NaN stays out."""
    ranking = mean_iou.argsort(stable=True)[: int(mean_iou.isfinite().sum())]
    places = torch.linspace(0, len(ranking) - 1, min(images, len(ranking)), dtype=torch.float64)
    return ranking[places.round().long()].tolist()


def _shrink(picture: visualize.UInt8) -> visualize.UInt8:
    """Return an image (H, W, 3), or a mask (H, W), at the size of the gallery."""
    image = Image.fromarray(picture)
    smooth = picture.ndim == 3
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    return np.asarray(image)


def _png(picture: visualize.UInt8) -> str:
    return page.data_uri(Image.fromarray(picture))
