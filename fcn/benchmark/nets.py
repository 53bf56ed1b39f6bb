"""Whole nets: inference and training steps at one size, over sizes, and over batches."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from fcn.benchmark.contestants import Runner, batch, contestants, reference
from fcn.benchmark.machine import ceiling
from fcn.benchmark.measure import Pace, Progress, Samples, Task, flops, part_of, take_turns
from fcn.benchmark.memory import peak_memory
from fcn.config import BenchmarkConfig

MODES = ("inference", "training")
Row = dict[str, Any]


def nets(cfg: BenchmarkConfig, device: torch.device, pace: Pace, progress: Progress) -> Row:
    """Every contestant at the benchmark's size and batch, against the machine's ceiling.

    Returns: "ceiling", as `fcn.benchmark.machine.ceiling` gives it, and "rows", one a contestant.
    """
    entrants = contestants(cfg, device)
    bf16 = any(contestant.bf16 for contestant in entrants)
    top = ceiling(device, pace, bf16=bf16, progress=lambda share: progress(0.1 * share))
    memories = {}
    for done, contestant in enumerate(entrants, 1):
        memories[contestant.name] = peak_memory(contestant, cfg, device)
        progress(0.1 + 0.3 * done / len(entrants))
    runners = [Runner(contestant, cfg, device) for contestant in entrants]
    size = cfg.size[0], cfg.size[1]
    counted = {r.contestant.name: operations(r, size, cfg.batch_size) for r in runners}
    taken = times(runners, size, cfg.batch_size, pace, lambda share: progress(0.4 + 0.6 * share))
    rows: list[Row] = []
    for runner in runners:
        contestant = runner.contestant
        fastest = top[contestant.precision]["flops_per_second"]
        row: Row = {
            "name": contestant.name,
            "precision": contestant.precision,
            "layout": contestant.layout,
            "parameters": sum(p.numel() for p in runner.net.parameters()),
        }
        for mode in MODES:
            samples, count = taken[mode][contestant.name], counted[contestant.name][mode]
            row[mode] = speed(samples, cfg.batch_size, count, fastest)
            row[mode]["peak_bytes"] = memories[contestant.name][mode]
        rows.append(row)
    return {"size": list(size), "batch": cfg.batch_size, "ceiling": top, "rows": compared(rows)}


def speed(samples: Samples, images: int, operations: int, fastest: float) -> Row:
    """What the seconds of a batch of `images` come to.

    Args: operations: floating-point, of a batch. fastest: the machine's own, a second.
    """
    rate = operations / samples.median
    return {
        "seconds": asdict(samples),
        "images_per_second": images / samples.median,
        "flops": operations,
        "flops_per_second": rate,
        "share_of_ceiling": rate / fastest,
    }


def compared(rows: Sequence[Row]) -> list[Row]:
    """The rows, each mode with "slower": its median seconds over those of the first row."""
    for mode in MODES:
        first = rows[0][mode]["seconds"]["median"]
        for row in rows:
            row[mode]["slower"] = row[mode]["seconds"]["median"] / first
    return list(rows)


def times(
    runners: Sequence[Runner],
    size: tuple[int, int],
    images: int,
    pace: Pace,
    progress: Progress = lambda share: None,
) -> dict[str, dict[str, Samples]]:
    """Seconds of a batch, by mode and contestant's name; all run the same random images."""
    first = runners[0]
    image, target = batch(size, images, first.contestant.num_classes, first.device)
    tasks: dict[str, dict[str, Task]] = {mode: {} for mode in MODES}
    for runner in runners:
        name = runner.contestant.name
        tasks["inference"][name] = partial(runner.infer, image)
        tasks["training"][name] = partial(runner.train, image, target)
    return {
        mode: take_turns(
            tasks[mode],
            first.device,
            pace,
            part_of(progress, done, len(MODES)),
        )
        for done, mode in enumerate(MODES)
    }


def operations(runner: Runner, size: tuple[int, int], images: int) -> dict[str, int]:
    """Floating-point operations of a batch, by mode; the optimiser's own are not counted."""
    image, target = batch(size, images, runner.contestant.num_classes, runner.device)
    with torch.compiler.set_stance("force_eager"):
        result = {
            "inference": flops(lambda: runner.infer(image)),
            "training": flops(lambda: runner.loss(image, target).backward()),
        }
    runner.optimizer.zero_grad(set_to_none=True)
    return result


def sizes(
    cfg: BenchmarkConfig, sides: Sequence[int], device: torch.device, pace: Pace, progress: Progress
) -> list[Row]:
    """This project's net and the known ports' on square images: a row a side and contestant."""
    default = contestants(cfg, device)[0]
    runners = [Runner(c, cfg, device) for c in (default, reference(default))]
    rows = []
    for done, side in enumerate(sides):
        taken = times(
            runners,
            (side, side),
            1,
            Pace(pace.rounds, pace.seconds / len(sides)),
            part_of(progress, done, len(sides)),
        )
        for runner in runners:
            rows.append({"side": side, "name": runner.contestant.name} | _row(taken, runner, 1))
    return rows


def batches(
    cfg: BenchmarkConfig,
    counts: Sequence[int],
    size: tuple[int, int],
    device: torch.device,
    pace: Pace,
    progress: Progress,
) -> list[Row]:
    """This project's net on several images at once: a row a batch."""
    runner = Runner(contestants(cfg, device)[0], cfg, device)
    rows = []
    for done, count in enumerate(counts):
        taken = times(
            [runner],
            size,
            count,
            Pace(pace.rounds, pace.seconds / len(counts)),
            part_of(progress, done, len(counts)),
        )
        rows.append({"batch": count, "size": list(size)} | _row(taken, runner, count))
    return rows


def _row(taken: Mapping[str, Mapping[str, Samples]], runner: Runner, images: int) -> Row:
    result: Row = {}
    for mode in MODES:
        samples = taken[mode].get(runner.contestant.name)
        result[mode] = samples and {
            "seconds": asdict(samples),
            "images_per_second": images / samples.median,
        }
    return result
