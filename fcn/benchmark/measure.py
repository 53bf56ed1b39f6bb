"""How long things take: contestants in turns, so that what else the machine does falls on all."""

import math
import random
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

LEAST_SECONDS = 0.02  # of one sample: what is quicker is repeated, to drown the clock's own cost
LEAST_ROUNDS = 3
Task = Callable[[], object]
Progress = Callable[[float], None]  # is told the share that is done, 0..1
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Pace:
    """How long to measure: until `rounds` are done or `seconds` over, but 3 rounds at the least."""

    rounds: int
    seconds: float

    def share(self, rounds: int, seconds: float) -> float:
        """Of the measurement that is done, 0..1."""
        return min(1.0, max(rounds / self.rounds, seconds / self.seconds))

    def over(self, rounds: int, seconds: float) -> bool:
        return rounds >= LEAST_ROUNDS and self.share(rounds, seconds) == 1


@dataclass(frozen=True)
class Samples:
    """Seconds of one call, measured n times: the median and the quartiles."""

    median: float
    quartiles: tuple[float, float]
    n: int
    calls: int = 1  # of each sample, which is their mean
    flops: int = 0  # floating-point operations of one call, as far as counted

    @classmethod
    def of(cls, seconds: list[float], calls: int = 1, flops: int = 0) -> "Samples":
        """Raises: ValueError: seconds is empty."""
        if not seconds:
            raise ValueError("seconds must hold at least one sample, got none")
        low, middle, high = (float(q) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
        return cls(middle, (low, high), len(seconds), calls, flops)


def take_turns(
    tasks: Mapping[Key, Task],
    device: torch.device,
    pace: Pace,
    progress: Progress = lambda share: None,
) -> dict[Key, Samples]:
    """Times every task, once a round, in an order that is drawn anew for each round.

    Each is called twice before, unmeasured, and its operations counted; one that takes long, once.

    Returns: by task; one for which the device's memory does not suffice is left out.
    """
    calls: dict[Key, int] = {}
    counts: dict[Key, int] = {}
    for done, (name, task) in enumerate(tasks.items(), 1):
        try:
            first = time.perf_counter()
            counts[name] = flops(task)
            synchronize(device)
            seconds = time.perf_counter() - first
            if seconds < 1:  # the first call of any also finds memory and picks kernels
                seconds = timed(task, 1, device)
            calls[name] = max(1, math.ceil(LEAST_SECONDS / seconds))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        progress(0.1 * done / len(tasks))
    taken: dict[Key, list[float]] = {name: [] for name in calls}
    order, started, rounds = random.Random(0), time.perf_counter(), 0
    while not pace.over(rounds, elapsed := time.perf_counter() - started):
        progress(0.1 + 0.9 * pace.share(rounds, elapsed))
        for name in order.sample(list(calls), len(calls)):
            taken[name].append(timed(tasks[name], calls[name], device) / calls[name])
        rounds += 1
    progress(1)
    return {name: Samples.of(seconds, calls[name], counts[name]) for name, seconds in taken.items()}


def part_of(progress: Progress, done: int, total: int) -> Progress:
    """For the next of `total` equal parts, of which `done` are done."""
    return lambda share: progress((done + share) / total)


def timed(task: Task, calls: int, device: torch.device) -> float:
    """Seconds until the device has done `calls` calls of a task."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        task()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Waits until an accelerator has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def flops(task: Task) -> int:
    """Floating-point operations of one call, two for a multiplication with its addition.

    Of convolutions and matrix products alone, which are nearly all of a net's. What is compiled
    runs uncompiled for it.
    """
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        task()
    return counter.get_total_flops()
