"""The machine's own speed: how fast it multiplies matrices."""

from dataclasses import asdict
from typing import Any

import torch

from fcn.benchmark.measure import Pace, Progress, Task, take_turns

SIDES = {"cpu": (1024, 2048, 4096), "other": (4096, 8192, 16384)}  # of square matrices


def ceiling(
    device: torch.device,
    pace: Pace,
    *,
    bf16: bool,
    progress: Progress,
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
