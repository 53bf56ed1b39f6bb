"""The HTML page of a comparison; compare.html next to this file is its template."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fcn import checkpoint
from fcn.compare.comparison import Comparison, Group, classes_of, mean_of
from fcn.compare.gallery import SHOWN
from fcn.inference.metrics import LEVEL, METRICS, RESAMPLES, Estimate, estimate
from fcn.pictures import page, plots


def report(
    found: Comparison,
    table: Sequence[Sequence[str]],
    plot: Image.Image,
    examples: Mapping[str, Any],
) -> str:
    """Return the page: the table, headings first; a plot of all runs; the gallery, or a note."""
    groups = found.groups
    every = [group.runs[0].settings for group in groups]
    keys = dict.fromkeys(key for settings in every for key in settings)
    settings = [(key, [one.get(key, "-") for one in every]) for key in keys]
    trimap = plots.trimap_plot({group.name: found.trimap(group) for group in groups})
    context: dict[str, Any] = {
        "protocol": found.protocol,
        "title": f"Comparison of {len(found.runs)} runs",
        "level": f"{LEVEL:.0%}",
        "resamples": f"{RESAMPLES:,}",
        "groups": groups,
        "base": found.base.name,
        "others": [group.name for group in groups if group is not found.base],
        "table": table,
        "settings": sorted(settings, key=lambda entry: len(set(entry[1])) == 1),  # differing first
        "numbers": _numbers(found),
        "figures": [
            page.figure(plot, "Mean IoU of every run", plot=True),
            *_curves(groups),
            page.figure(trimap, "Mean IoU near boundaries", plot=True),
        ],
        "confusions": [_confusion(group) for group in groups[:SHOWN]],
        "examples": examples,
        "notes": found.notes,
    }
    body = page.templates().get_template("compare/compare.html").render(context)
    return page.page(context["title"], body)


def _numbers(found: Comparison) -> list[tuple[str, str, list[Estimate | None]]]:
    """Return rows of classes and metrics: name, pixels, and an estimate for each column.

    The columns are the groups, then the differences from the base; None: the group lacks a class.
    """
    columns: list[dict[str, Estimate]] = []
    for group in found.groups:
        own = classes_of(group.runs)
        every = mean_of(group.runs, dict.fromkeys(found.shared, own), ["iou"])
        column = dict(zip(own, estimate(every, "iou"), strict=True))
        means = found.average(group)
        columns.append(column | {metric: estimate(means, metric)[0] for metric in METRICS})
    columns += [g.differences.iou | g.differences.metrics for g in found.groups if g.differences]
    counts = {(run.evaluated_fold, entry["name"]): entry["pixels"]
              for run in found.runs for entry in run.metrics["classes"]}  # fmt: skip
    pixels = Counter[str]()
    for (_, name), count in counts.items():
        pixels[name] += count
    names = [(name, name, f"{pixels[name]:,}") for name in found.classes]
    names += [(metric, words, "") for metric, words in METRICS.items()]
    return [(words, count, [one.get(key) for one in columns]) for key, words, count in names]


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
    return [page.figure(plots.curve_plot(loss, mean_iou), caption, caption, plot=True)]


def _confusion(group: Group) -> str:
    """Return the figure of the confusion matrix of a group's first run."""
    run = group.runs[0]
    picture = plots.confusion_plot(np.array(run.metrics["confusion"]), run.classes)
    fold = "" if run.fold is None else f", fold {run.fold}"
    caption = f"{group.name}, seed {run.seed}{fold}"
    return page.figure(picture, f"Confusion matrix of {caption}", caption, plot=True)
