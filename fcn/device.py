"""Where a model runs, and how precisely."""

import copy
import ctypes
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcn.errors import ConfigError
from fcn.models.fcn import FCN
from fcn.models.tiles import TILE, interpolate, positions, tiles, window
from fcn.models.upsampling import Upsampling
from fcn.processes import usable_cores

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h
MMAP_MAX = 65536  # its default
_mallopt_after_keeping: list[Callable[[int, int], int]] = []  # once keep_memory was called


def pick_device(name: str = "auto", key: str = "device") -> torch.device:
    """Return a device by its name.

    Args:
        name: cpu, cuda, cuda:1, mps, ...; auto: a GPU if there is one.
        key: the setting that names it, for the error.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = re.split(r"\n|\. ", str(error))[0]
        raise ConfigError(
            f"{key}={name} is not available on this machine ({reason}); use auto"
        ) from error
    return torch.device(name)


def computes_bf16(device: torch.device) -> bool:
    """Return True if the device has bfloat16 arithmetic of its own, so that it is faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def uses_bf16(precision: str, about: Mapping[str, Any], device: torch.device) -> bool:
    """Return True if a checkpoint is to run under autocast to bfloat16.

    Args:
        precision: 32-true, bf16-mixed, or auto: as trained, where the device computes in bfloat16.
        about: what the checkpoint records about its training.
        device: where it will run.
    """
    if precision == "auto":
        return about.get("precision") == "bf16-mixed" and computes_bf16(device)
    return precision == "bf16-mixed"


def optimize(model: FCN, device: torch.device | str) -> FCN:
    """Move a network to a device, in place, in its fastest form there; it can still be trained.

    Each layer chooses its form by itself at every call (`fcn.models.fast_forms`). What is left to
    do is the layout of the weights: a GPU wants channels_last, while a CPU's convolutions reorder
    them anyway, and its optimiser would copy any layout but contiguous.

    Args:
        model: the network.
        device: where it will run.

    Returns:
        The same network.
    """
    device = torch.device(device)
    layout = torch.contiguous_format if device.type == "cpu" else torch.channels_last
    return model.to(device).to(memory_format=layout)


def keep_memory() -> None:
    """Make glibc keep freed memory for later allocations, and oneDNN fewer compiled kernels.

    By default every tensor above 32 MB is made of new pages that the kernel clears first, which
    took a third of a training step on a CPU. This is for a process of our own, a command: it
    changes what all of the process's libraries allocate.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_ARENA_MAX, 1)  # what one thread has freed is for all of them
        _mallopt_after_keeping[:] = [mallopt]
    # Of 1024, each with memory of its own: images of many sizes would fill gigabytes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


@contextmanager
def large_tensors_freed() -> Iterator[None]:
    """Let freed memory of large tensors go back to the system at once, after `keep_memory` too.

    Kept memory falls into pieces, into which the next large tensors do not fit.
    """
    if _mallopt_after_keeping:
        _mallopt_after_keeping[0](M_MMAP_MAX, MMAP_MAX)
    try:
        yield
    finally:
        if _mallopt_after_keeping:
            _mallopt_after_keeping[0](M_MMAP_MAX, 0)


class InferenceModel:
    """A model prepared for inference: on its device, in evaluation mode, at its precision.

    Args:
        model: with bf16 a copy of it is used; otherwise the model itself is moved.
        device: where it runs.
        bf16: run under autocast to bfloat16. The weights of convolutions are rounded once, here,
            instead of at every call; the scores are the same.
        labels: what `predict` gives in place of each of the model's labels: those of a data set
            that has the same classes in another order. None: the model's own.
        tile: longest side, in pixels, that goes through the network at once; None: any.
    """

    def __init__(
        self,
        model: FCN,
        device: torch.device,
        bf16: bool,
        *,
        labels: Sequence[int] | None = None,
        tile: int | None = TILE,
    ) -> None:
        self.device, self.bf16, self.tile = device, bf16, tile
        self.labels = None if labels is None else torch.tensor(labels, device=device).byte()
        self.precision = "bf16-mixed" if bf16 else "32-true"
        self.model = copy.deepcopy(model).eval() if bf16 else model.eval()
        optimize(self.model, device)
        upsampling = (u for u in self.model.modules() if isinstance(u, Upsampling))
        kept = {id(layer) for u in upsampling for layer in u.modules()}  # these stay float32
        for layer in self.model.modules() if bf16 else ():
            if isinstance(layer, nn.Conv2d) and id(layer) not in kept:
                layer.to(torch.bfloat16)

    @torch.inference_mode()
    def score(self, image: Tensor) -> Tensor:
        """Return the scores, float (B, K, H, W), of images on any device, see `FCN.forward`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(image.to(self.device))

    def predict(self, image: Tensor) -> Tensor:
        """Return the labels, uint8 (B, H, W), of images on any device, see `FCN.forward`.

        No more pixels than one tile has go through the network at once. A CPU takes images one by
        one: that is as fast, and the labels cannot depend on the batch, by whose size a convolution
        orders its sums. On a GPU the label of a pixel whose two best scores are equal up to
        rounding may depend on the batch.
        """
        height, width = image.shape[-2:]
        result = torch.empty((len(image), height, width), dtype=torch.uint8, device=self.device)
        most = max(1, (self.tile or TILE) ** 2 // (height * width))
        together = 1 if self.device.type == "cpu" else most
        for part, labels in zip(image.split(together), result.split(together), strict=True):
            for rows, columns in self.each_tile((height, width)):
                # In one expression: no scores are kept while the next ones are computed.
                labels[:, rows, columns] = (
                    self.score_tile(part, rows, columns, (height, width)).max(1).indices.byte()
                )
        return result if self.labels is None else self.labels[result.int()]

    def tiles(self, size: tuple[int, int], scale: float = 1) -> list[tuple[slice, slice]]:
        """Return rows and columns of each tile of an image of `size`, see `fcn.models.tiles`."""
        rows, columns = (tiles(length, self.tile, self.model, scale) for length in size)
        return [(row, column) for row in rows for column in columns]

    def each_tile(self, size: tuple[int, int], scale: float = 1) -> Iterator[tuple[slice, slice]]:
        """Yield what `tiles` returns; meanwhile a large image's memory is not kept."""
        tiles = self.tiles(size, scale)
        with large_tensors_freed() if len(tiles) > 1 else nullcontext():
            yield from tiles

    def score_tile(
        self, view: Tensor, rows: slice, columns: slice, size: tuple[int, int]
    ) -> Tensor:
        """Return the scores (B, K, h, w) of a tile of images of `size`, seen in a view of them.

        Args:
            view: the images (B, C, H', W'), resized or not.
            rows: of the tile, in the images.
            columns: likewise.
            size: (H, W).
        """
        places, windows = [], []
        for tile, length, scaled in zip((rows, columns), size, view.shape[-2:], strict=True):
            at = positions(tile, length, scaled)
            read = slice(int(at[0]), min(int(at[-1]) + 2, scaled))  # with interpolation's neighbour
            places.append(at)
            windows.append(window(read, scaled, self.model))
        score = self.score(view[..., windows[0], windows[1]])
        for dim, at, seen in zip((-2, -1), places, windows, strict=True):
            if view.shape[-2:] == size:
                score = score.narrow(dim, int(at[0]) - seen.start, len(at))
            else:
                score = interpolate(score, at - seen.start, dim)
        return score


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what every number measured here depends on: processor, GPU, versions."""
    cuda = device.type == "cuda"
    gpu = torch.cuda.get_device_properties(device) if cuda else None
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    cpu = re.search(r"model name\s*: (.+)", text)
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "bf16": computes_bf16(device),
        "device": str(device),
        "gpu": gpu and gpu.name,
        "gpu_memory": gpu and gpu.total_memory,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "cuda": torch.version.cuda if cuda else None,
    }
