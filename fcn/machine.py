"""The machine at hand, as whoever reads a number measured on it wants it described."""

import os
import platform
from typing import Any

import torch
import torchvision

# Of the instructions that torch's kernels choose between.
ISA = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16",
       "neon", "bf16", "sve", "sme")  # fmt: skip


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
