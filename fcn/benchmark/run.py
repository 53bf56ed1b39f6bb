"""A benchmark from its settings to the files it leaves."""

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import progress
from rich.console import Console

from fcn.benchmark import layers, loop, nets, pipeline, tables
from fcn.benchmark.contestants import default
from fcn.benchmark.measure import Pace, Progress
from fcn.benchmark.picture import picture
from fcn.config import BenchmarkConfig
from fcn.data.datamodule import SegmentationData, open_split
from fcn.data.official import fetch
from fcn.inference.evaluation import pick_device, write_json
from fcn.machine import describe
from fcn.training.record import commit

Part = Callable[[Progress], Any]


def benchmark(cfg: BenchmarkConfig, folder: Path, console: Console) -> dict[str, Any]:
    """Measures the parts asked for, one after the other, and prints each when it is done.

    benchmark.json is written after each part, so that nothing measured is lost; the picture at the
    end.
    Returns: its contents.
    Raises: UserError: what the settings or the data make impossible.
    """
    started = time.monotonic()
    torch.manual_seed(cfg.seed)
    device = pick_device(cfg.device)
    refuse_early(cfg, device, console)
    report: dict[str, Any] = {
        "command": shlex.join(sys.argv),
        "commit": commit(),
        "settings": asdict(cfg),
        "machine": describe(device),
        "parts": {},
    }
    console.print(tables.machine(report["machine"]))
    every = parts(cfg, device)
    columns = (*progress.Progress.get_default_columns(), progress.TimeElapsedColumn())
    with progress.Progress(*columns, console=console, transient=True) as bar:
        for name in cfg.parts:
            task = bar.add_task(name, total=1.0)
            report["parts"][name] = every[name](partial(_update, bar, task))
            bar.remove_task(task)
            report["seconds"] = time.monotonic() - started
            write_json(folder / "benchmark.json", report)
            for shown in tables.PARTS[name](report["parts"][name]):
                if not isinstance(shown, str):
                    console.print()
                console.print(shown, highlight=False)
    if drawn := picture(report["parts"]):
        drawn.save(folder / "benchmark.png")
    return report


def refuse_early(cfg: BenchmarkConfig, device: torch.device, console: Console) -> None:
    """Raises: UserError: no such net or data, which a part would find out minutes later."""
    default(cfg, device)
    if cfg.data.download:
        fetch(cfg.data, console)
    if "loader" in cfg.parts:
        SegmentationData(cfg.data, cfg.recipe, cfg.seed)
    if "evaluation" in cfg.parts:
        open_split(cfg.data, cfg.data.split or cfg.data.val_split)


def _update(bar: progress.Progress, task: progress.TaskID, share: float) -> None:
    bar.update(task, completed=share)


def parts(cfg: BenchmarkConfig, device: torch.device) -> dict[str, Part]:
    """What measures each part, given what to tell the share that is done."""
    seconds = cfg.seconds if cfg.seconds is not None else 2.0 if cfg.quick else 30.0
    pace = Pace(cfg.rounds, seconds)
    size = cfg.size[0], cfg.size[1]
    sides = cfg.sides or ([128, 256] if cfg.quick else [128, 256, 512, 1024])
    counts, batch_size = cfg.batches or ([1, 2] if cfg.quick else [1, 2, 4, 8]), size
    if device.type != "cpu" and cfg.batches is None:
        counts, batch_size = [2**n for n in range(7)], (512, 512)
    return {
        "nets": lambda done: nets.nets(cfg, device, pace, done),
        "sizes": lambda done: nets.sizes(cfg, sides, device, pace, done),
        "batches": lambda done: nets.batches(cfg, counts, batch_size, device, pace, done),
        "upsampling": lambda done: layers.upsampling_layers(
            size, cfg.num_classes, device, pace, done
        ),
        "loader": lambda done: pipeline.loader(cfg, device, pace, done),
        "evaluation": lambda done: pipeline.evaluation(cfg, device, pace, done),
        "loop": lambda done: loop.loop(cfg, device, pace, done),
    }
