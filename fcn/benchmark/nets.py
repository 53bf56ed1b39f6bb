"""Whole nets: inference and training steps at one size, over sizes, and over batches."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fcn.benchmark.ceiling import ceiling
from fcn.benchmark.contestants import Contestant, contestants, default, reference
from fcn.benchmark.measure import Pace, Progress, Samples, part_of, take_turns
from fcn.benchmark.memory import peak_memory
from fcn.benchmark.runner import RUNNERS, Labels, Shape, Steps, batch
from fcn.config import BenchmarkConfig, ConfigError, UserError

MODES = tuple(RUNNERS)  # inference, training
Row = dict[str, Any]
Times = dict[tuple[Shape, str, str], Samples]  # by shape, mode and contestant's name


def nets(cfg: BenchmarkConfig, device: torch.device, pace: Pace, progress: Progress) -> Row:
    """Every contestant at the benchmark's size and batch, against the machine's ceiling.

    Returns: "ceiling", as `fcn.benchmark.ceiling.ceiling` gives it, and "rows", one a contestant.
    """
    entrants = contestants(cfg, device)
    bf16 = any(contestant.bf16 for contestant in entrants)
    top = ceiling(device, pace, bf16=bf16, progress=part_of(progress, 0, 4))
    shape = cfg.batch_size, cfg.size[0], cfg.size[1]
    taken = times(entrants, [shape], cfg, device, pace, lambda share: progress(0.25 + share / 2))
    rows: list[Row] = []
    for done, contestant in enumerate(entrants):
        if any((shape, mode, contestant.name) not in taken for mode in MODES):
            continue  # the device's memory does not hold it
        fastest = top[contestant.precision]["flops_per_second"]
        row: Row = {
            "name": contestant.name,
            "about": contestant.about,
            "ours": contestant.ours,
            "precision": contestant.precision,
            "layout": contestant.layout,
        }
        memory: Mapping[str, int] = {}
        if not cfg.quick and not contestant.compiled:  # compiling itself takes more than the net
            memory = peak_memory(contestant, cfg, device)
        for mode in MODES:
            row[mode] = speed(taken[shape, mode, contestant.name], cfg.batch_size, fastest)
            row[mode]["peak_bytes"] = memory.get(mode)
        rows.append(row)
        progress(0.75 + 0.25 * (done + 1) / len(entrants))
    if not rows or rows[0]["name"] != entrants[0].name:
        raise UserError(
            f"size={cfg.size} does not fit into the device's memory at batch_size={cfg.batch_size}"
        )
    return {"size": cfg.size, "batch": cfg.batch_size, "ceiling": top, "rows": compared(rows)}


def sizes(
    cfg: BenchmarkConfig, sides: Sequence[int], device: torch.device, pace: Pace, progress: Progress
) -> list[Row]:
    """This project's net and the known ports' on square images: a row a side and contestant."""
    own = default(cfg, device)
    entrants, shapes = [own, reference(own)], [(1, side, side) for side in sides]
    taken = times(entrants, shapes, cfg, device, pace, progress)
    return [
        {"side": shape[1], "name": contestant.name} | modes_of(taken, shape, contestant)
        for shape in shapes
        for contestant in entrants
    ]


def batches(
    cfg: BenchmarkConfig,
    counts: Sequence[int],
    size: tuple[int, int],
    device: torch.device,
    pace: Pace,
    progress: Progress,
) -> list[Row]:
    """This project's net on several images at once: a row a batch."""
    own, shapes = default(cfg, device), [(count, *size) for count in counts]
    taken = times([own], shapes, cfg, device, pace, progress)
    return [
        {"batch": shape[0], "size": list(size)} | modes_of(taken, shape, own) for shape in shapes
    ]


def times(
    entrants: Sequence[Contestant],
    shapes: Sequence[Shape],
    cfg: BenchmarkConfig,
    device: torch.device,
    pace: Pace,
    progress: Progress,
    modes: Sequence[str] = MODES,
) -> Times:
    """Seconds of a batch of random images, of every contestant in turns, one shape after another.

    Returns: without what the device's memory does not hold.
    Raises: ConfigError: torch.compile does not work here.
    """
    result: Times = {}
    pace = Pace(pace.rounds, pace.seconds / len(shapes))
    total = len(modes) * len(shapes)
    for mode in modes:
        runners = [RUNNERS[mode](contestant, cfg, device) for contestant in entrants]
        for shape in shapes:
            image, target = batch(shape, entrants[0].num_classes, device)
            for runner in runners:
                if runner.contestant.compiled:
                    compile_for(runner, image, target)
            tasks = {r.contestant.name: partial(r, image, target) for r in runners}
            done = modes.index(mode) * len(shapes) + shapes.index(shape)
            taken = take_turns(tasks, device, pace, part_of(progress, done, total))
            result |= {(shape, mode, name): samples for name, samples in taken.items()}
    return result


def compile_for(runner: Labels | Steps, image: Tensor, target: Tensor) -> None:
    """Raises: ConfigError: torch.compile does not work here."""
    try:
        runner(image, target)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"compile=true: torch.compile does not work here ({reason}); on a CPU it needs a C++ "
            "compiler such as g++, on a GPU Triton; or use compile=false"
        ) from error


def modes_of(taken: Times, shape: Shape, contestant: Contestant) -> Row:
    """The speed by mode; None where memory did not suffice."""
    found = {mode: taken.get((shape, mode, contestant.name)) for mode in MODES}
    return {mode: samples and speed(samples, shape[0]) for mode, samples in found.items()}


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
