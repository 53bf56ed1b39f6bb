"""The machine at hand: what it is, and how fast it multiplies matrices."""

import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torchvision

from fcn.benchmark.measure import Pace, Task, take_turns

# Of the instructions that torch's kernels choose between.
ISA = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16",
       "neon", "bf16", "sve", "sme")  # fmt: skip
SIDES = {"cpu": (1024, 2048, 4096), "other": (4096, 8192, 16384)}  # of square matrices


def describe(device: torch.device) -> dict[str, Any]:
    """What every number of a run depends on."""
    capabilities = torch.cpu.get_capabilities()
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "cpu": cpu_name() or capabilities.get("cpu_name") or platform.machine(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "isa": [name for name in ISA if capabilities.get(name)],
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "device": str(device),
        "gpu": None if gpu is None else gpu.name,
        "gpu_memory": None if gpu is None else gpu.total_memory,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda if gpu is not None else None,
        "cudnn": torch.backends.cudnn.version() if gpu is not None else None,
    }


def cpu_name() -> str | None:
    """As the system's processor table has it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        return platform.processor() or None
    return lines[0] if lines else None


def usable_cores() -> int:
    """Of those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ceiling(
    device: torch.device,
    pace: Pace,
    *,
    bf16: bool,
    progress: Callable[[float], None],
) -> dict[str, dict[str, Any]]:
    """The most operations a second that matrix products come to, by precision.

    In float32 a GPU's products may round to TF32 where its convolutions may, so that the two
    compare.
    Returns: "32-true" and, if bf16, "bf16-mixed": "flops_per_second", the "side" of the square
        matrices that reached it, and the samples of "every" side.
    """
    sides = SIDES.get(device.type, SIDES["other"])
    dtypes = {"32-true": torch.float32} | ({"bf16-mixed": torch.bfloat16} if bf16 else {})
    tasks, matrices = {}, {}
    for name, dtype in dtypes.items():
        for side in sides:
            # Small numbers: the sums stay far from overflow, and from denormals.
            matrices[name, side] = torch.rand(side, side, device=device).to(dtype)
            tasks[f"{name} {side}"] = _product(matrices[name, side])
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        taken = take_turns(tasks, device, pace, progress)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    result = {}
    for name in dtypes:
        every = {side: samples for side in sides if (samples := taken.get(f"{name} {side}"))}
        rates = {side: 2 * side**3 / samples.median for side, samples in every.items()}
        best = max(rates, key=lambda side: rates[side])
        result[name] = {
            "flops_per_second": rates[best],
            "side": best,
            "every": {str(side): asdict(samples) for side, samples in every.items()},
        }
    return result


def _product(matrix: torch.Tensor) -> Task:
    out = torch.empty_like(matrix)
    return lambda: torch.mm(matrix, matrix, out=out)
