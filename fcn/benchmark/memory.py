"""How much memory a contestant needs, in a process of its own.

A process's peak never falls, and memory once had is not given back: only a fresh process can say
what one net needs.
"""

import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from fcn.app import keep_memory
from fcn.benchmark.contestants import Contestant
from fcn.benchmark.runner import RUNNERS, batch
from fcn.config import BenchmarkConfig, UserError

STEPS = 2  # the second also holds what the optimiser keeps
STATUS = Path("/proc/self/status")


def peak_memory(
    contestant: Contestant, cfg: BenchmarkConfig, device: torch.device
) -> dict[str, int]:
    """Of the benchmark's size and batch: the most bytes above what the process had before the net
    was built, so weights count; by mode, "inference" and "training".

    Raises: UserError: the system ended the process, which is what it does when memory runs out.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_measure, contestant, cfg, str(device)).result()
        except BrokenProcessPool as error:
            raise UserError(
                f"{contestant.name}: the process that measured its memory was ended, for want of "
                f"memory most likely; use a smaller size or batch_size than {cfg.size} and "
                f"{cfg.batch_size}"
            ) from error


def _measure(contestant: Contestant, cfg: BenchmarkConfig, name: str) -> dict[str, int]:
    if contestant.alike:
        keep_memory()  # as every script of this project does
    device = torch.device(name)
    shape = cfg.batch_size, cfg.size[0], cfg.size[1]
    image, target = batch(shape, cfg.num_classes, device)
    before, result = peak(device), {}
    for mode, kind in RUNNERS.items():
        runner = kind(contestant, cfg, device)
        for _ in range(STEPS):
            runner(image, target)
        result[mode] = peak(device) - before
        del runner
    return result


def peak(device: torch.device) -> int:
    """The most bytes so far: of the GPU's memory, elsewhere resident ones of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.is_file():  # Linux hands ru_maxrss down from the parent, but not this
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return 1024 * int(fields["VmHWM"].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
