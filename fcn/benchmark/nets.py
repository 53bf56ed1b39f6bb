"""Whole nets: inference and training steps at one size, over sizes, and over batches."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from fcn.benchmark.contestants import Contestant, contestants, default, reference
from fcn.benchmark.machine import ceiling
from fcn.benchmark.measure import Pace, Progress, Samples, Task, part_of, take_turns
from fcn.benchmark.memory import peak_memory
from fcn.benchmark.runner import Runner, batch
from fcn.config import BenchmarkConfig, ConfigError

MODES = ("inference", "training")
Row = dict[str, Any]


def nets(cfg: BenchmarkConfig, device: torch.device, pace: Pace, progress: Progress) -> Row:
    """Every contestant at the benchmark's size and batch, against the machine's ceiling.

    Returns: "ceiling", as `fcn.benchmark.machine.ceiling` gives it, and "rows", one a contestant.
    """
    entrants = contestants(cfg, device)
    ready = {c.name: compiled(c, cfg, device) for c in entrants if c.compiled}
    bf16 = any(contestant.bf16 for contestant in entrants)
    top = ceiling(device, pace, bf16=bf16, progress=lambda share: progress(0.1 * share))
    memories: dict[str, dict[str, int]] = {}
    for done, contestant in enumerate(entrants, 1):
        if not cfg.quick and not contestant.compiled:  # compiling itself takes more than the net
            memories[contestant.name] = peak_memory(contestant, cfg, device)
        progress(0.1 + 0.3 * done / len(entrants))
    runners = [ready.get(c.name) or Runner(c, cfg, device) for c in entrants]
    size = cfg.size[0], cfg.size[1]
    taken = times(runners, size, cfg.batch_size, pace, lambda share: progress(0.4 + 0.6 * share))
    rows: list[Row] = []
    for runner in runners:
        contestant = runner.contestant
        fastest = top[contestant.precision]["flops_per_second"]
        row: Row = {
            "name": contestant.name,
            "about": contestant.about,
            "ours": contestant.ours,
            "precision": contestant.precision,
            "layout": contestant.layout,
            "parameters": sum(p.numel() for p in runner.net.parameters()),
        }
        for mode in MODES:
            row[mode] = speed(taken[mode][contestant.name], cfg.batch_size, fastest)
            row[mode]["peak_bytes"] = memories.get(contestant.name, {}).get(mode)
        rows.append(row)
    return {"size": list(size), "batch": cfg.batch_size, "ceiling": top, "rows": compared(rows)}


def compiled(contestant: Contestant, cfg: BenchmarkConfig, device: torch.device) -> Runner:
    """One that is compiled, ready to run at the benchmark's size and batch.

    Raises: ConfigError: torch.compile does not work here.
    """
    runner = Runner(contestant, cfg, device)
    image, target = batch((cfg.size[0], cfg.size[1]), cfg.batch_size, cfg.num_classes, device)
    try:
        runner.infer(image)
        runner.train(image, target)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"compile=true: torch.compile does not work here ({reason}); on a CPU it needs a C++ "
            "compiler such as g++, on a GPU Triton; or use compile=false"
        ) from error
    return runner


def speed(samples: Samples, images: int, fastest: float | None = None) -> Row:
    """What the seconds of a batch of `images` come to.

    Args: fastest: floating-point operations that the machine does a second.
    """
    rate = samples.flops / samples.median
    result: Row = {"seconds": asdict(samples), "images_per_second": images / samples.median}
    if fastest is not None:
        result |= {"flops_per_second": rate, "share_of_ceiling": rate / fastest}
    return result


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
    progress: Progress,
    modes: Sequence[str] = MODES,
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
            part_of(progress, done, len(modes)),
        )
        for done, mode in enumerate(modes)
    }


def sizes(
    cfg: BenchmarkConfig, sides: Sequence[int], device: torch.device, pace: Pace, progress: Progress
) -> list[Row]:
    """This project's net and the known ports' on square images: a row a side and contestant."""
    own = default(cfg, device)
    runners = [Runner(c, cfg, device) for c in (own, reference(own))]
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
    runner = Runner(default(cfg, device), cfg, device)
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
        result[mode] = samples and speed(samples, images)
    return result
