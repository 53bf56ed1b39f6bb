"""Compare finished runs: a table, a plot, and one HTML page that opens without a network."""

from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.table import Table

from fcn.compare.comparison import Comparison, compare_runs
from fcn.compare.gallery import gallery
from fcn.compare.report import report
from fcn.compare.runs import find_runs, read_run
from fcn.config import CompareConfig
from fcn.device import pick_device
from fcn.errors import UserError
from fcn.inference.metrics import LEVEL, RESAMPLES, Estimate, estimate
from fcn.output import atomic_write, percent, refuse_overwriting, write_json
from fcn.pictures import plots

TRIMAP = 3  # pixels: width of the band near boundaries that the table shows
LABEL_LENGTH = 50  # characters of a row's name in the plot


def main(cfg: CompareConfig, folder: Path, console: Console) -> Comparison:
    """Compare runs: print the table; write compare.json, compare.png and compare.html."""
    device = pick_device(cfg.device)
    paths = [folder / f"compare.{suffix}" for suffix in ("json", "png", "html")]
    refuse_overwriting(paths, cfg.overwrite, "hydra.run.dir")
    found = compare_runs([read_run(path) for path in find_runs(cfg, console)], cfg.against)
    labels = [f"{group.name}: {group.description}" for group in found.groups]
    head, *body = table(found)
    shown = Table(*head, box=None)
    for row in body:
        shown.add_row(*row)
    for line in (*labels, shown, *found.notes):
        console.print(line)
    write_json(folder / "compare.json", as_json(found))
    labels = [shorten(label, LABEL_LENGTH, placeholder="...") for label in labels]
    values = dict(zip(labels, map(found.dots, found.groups), strict=True))
    plot = plots.dot_plot(values, "mean IoU (%): a dot per run, or per fold; a bar for the mean")
    plot.save(folder / "compare.png")
    try:
        examples = gallery(found.groups, cfg, device)
    except (UserError, OSError) as error:
        examples = {"note": f"No example predictions: {error}"}
        console.print(examples["note"])
    with atomic_write(folder / "compare.html") as temporary:
        temporary.write_text(report(found, table(found), plot, examples), encoding="utf-8")
    console.print(f"compare.html, compare.json and compare.png in {folder}")
    return found


def table(found: Comparison) -> list[list[str]]:
    """Return the table, headings first: a row for each group."""
    level = f"{LEVEL:.0%} interval"
    head = ["run", "mean IoU (%)", f"difference from {found.base.name}", level]
    head += [f"{level} of the mean IoU", "range", f"within {TRIMAP} px of boundaries", "seeds"]
    rows = [head]
    for group in found.groups:
        mean_iou = found.mean_iou(group)
        low, high = percent(min(mean_iou)), percent(max(mean_iou))
        interval = estimate(found.average(group), "mean_iou")[0]
        count = len({run.fold for run in group.runs})
        folds = f", {count} folds" if count > 1 else ""
        change = group.differences and group.differences.metrics["mean_iou"]
        rows.append(
            [
                group.name,
                percent(interval.value),
                *(_signed(change) if change else ("-", "-")),
                f"{percent(interval.low)} to {percent(interval.high)}",
                f"{low} to {high}" if len(group.runs) > 1 else "-",
                percent(found.trimap(group)[TRIMAP - 1]),
                " ".join(dict.fromkeys(run.seed for run in group.runs)) + folds,
            ]
        )
    return rows


def _signed(change: Estimate) -> tuple[str, str]:
    """Return a difference and its interval, in percent."""
    value, low, high = ("-" if v is None else f"{100 * v:+.2f}" for v in asdict(change).values())
    return value, f"{low} to {high}"


def as_json(found: Comparison) -> dict[str, Any]:
    """Return the contents of compare.json; rates are 0..1, null where they are unknown."""
    every = {name for names in found.shared.values() for name in names}
    return {
        **{key: found.protocol[key] for key in ("data", "split", "images")},
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL},
        "against": found.base.name,
        "classes": [name for name in found.classes if name in every],
        "note": ". ".join(found.notes),
        "groups": [
            {
                "name": group.name,
                "settings": group.settings,
                "runs": [str(run.folder) for run in group.runs],
                "seeds": [run.seed for run in group.runs],
                "folds": [run.fold for run in group.runs],
                "mean_iou": found.mean_iou(group),
                "interval": asdict(estimate(found.average(group), "mean_iou")[0]),
                "trimap": found.trimap(group),
                "difference": group.differences
                and {name: asdict(one) for name, one in group.differences.metrics.items()}
                | {"classes": [n for n, e in group.differences.iou.items() if e.value is not None]},
            }
            for group in found.groups
        ],
    }
