"""Where a model runs, and how precisely."""

import copy
import ctypes
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcn.errors import ConfigError
from fcn.models.fast_forms import weight_layout
from fcn.models.fcn import FCN
from fcn.models.tiles import TILE, resize, score_tile, tiles
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
    # Private, but torch says nothing in public of a CPU's bfloat16.
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


@dataclass(frozen=True)
class Precision:
    """What a precision's name means."""

    name: str  # as Lightning spells it
    autocast: torch.dtype | None  # of matrix products and convolutions; None: that of the weights
    weights: torch.dtype


# "true" computes in the weights' own type; "mixed" keeps float32 weights and computes in another.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("32-true", None, torch.float32),
        Precision("bf16-mixed", torch.bfloat16, torch.float32),
        Precision("16-mixed", torch.float16, torch.float32),
        Precision("bf16-true", None, torch.bfloat16),
        Precision("16-true", None, torch.float16),
        Precision("64-true", None, torch.float64),
    )
}
SHORT = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed", "64": "64-true"}  # Lightning's


def resolve_precision(
    name: str | int | None,
    device: torch.device,
    *,
    training: bool = False,
    trained: str | None = None,
    key: str = "trainer.precision",
) -> Precision:
    """Return what a named precision means on a device: the one place that decides it.

    Args:
        name: a name in `PRECISIONS` or `SHORT`; auto or None for the best: in training bf16-mixed
            where the device computes in bfloat16; otherwise as trained, where the device can.
            Everything else is 32-true.
        device: where it will run.
        training: for a training run.
        trained: the precision that a checkpoint was trained with, if known.
        key: the setting that names it, for the error.

    Raises:
        ConfigError: an unknown name, or one that this device does not compute.
    """
    if name is None or name == "auto":
        wanted = "bf16-mixed" if training else SHORT.get(str(trained), str(trained))
        best = PRECISIONS.get(wanted, PRECISIONS["32-true"])
        dtype = best.autocast or best.weights
        slow = dtype == torch.bfloat16 and not computes_bf16(device)
        return PRECISIONS["32-true"] if slow or _unsupported(dtype, device) else best
    full = SHORT.get(str(name), str(name))
    if full not in PRECISIONS:
        raise ConfigError(f"{key}={name}: must be auto, {', '.join(PRECISIONS)}")
    precision = PRECISIONS[full]
    if lacking := _unsupported(precision.autocast or precision.weights, device):
        raise ConfigError(f"{key}={name} {lacking}; use auto, 32-true or bf16-mixed")
    return precision


def _unsupported(dtype: torch.dtype, device: torch.device) -> str:
    """Return why a device is not to compute in a type, or ""."""
    if dtype == torch.float16 and device.type == "cpu":
        return "needs a GPU"
    if dtype == torch.float64 and device.type == "mps":
        return "is not available on Apple's GPUs"
    return ""


def optimize(model: FCN, device: torch.device | str) -> FCN:
    """Move a network to a device, in its fastest form there; it can still be trained.

    Each layer chooses its form by itself at every call (`fcn.models.fast_forms`); what is left to
    do is the layout of the weights.

    Args:
        model: changed in place.
        device: a torch.device or its name, such as cuda:1.

    Returns:
        The same model.

    Raises:
        RuntimeError, AssertionError: PyTorch's, if there is no such device.
    """
    device = torch.device(device)
    return model.to(device).to(memory_format=weight_layout(device))


def keep_memory() -> None:
    """Make glibc keep freed memory for later allocations.

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


@contextmanager
def large_tensors_freed() -> Iterator[None]:
    """Let freed memory of large tensors go back to the system at once, after `keep_memory` too.

    Otherwise the heap fragments, and the next large tensors fit into none of its gaps.
    """
    if _mallopt_after_keeping:
        _mallopt_after_keeping[0](M_MMAP_MAX, MMAP_MAX)
    try:
        yield
    finally:
        if _mallopt_after_keeping:
            _mallopt_after_keeping[0](M_MMAP_MAX, 0)


def bound_memory() -> None:
    """Limit oneDNN's cache of kernels, which keeps 1,024 by default, each with memory of its own.

    Every image size needs other kernels. Like `keep_memory` this is for a process of our own,
    before its first convolution.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's, PyTorch's
        os.environ.setdefault(name, "128")  # several times what one size needs


def resident_memory() -> int:
    """Return how many bytes of memory this process occupies; on Linux alone, elsewhere 0."""
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text(encoding="utf-8").split()[1]) if statm.exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE") if pages else 0


def return_memory(above: int) -> None:
    """Give free memory back to the system, on glibc, if the process occupies more than `above`.

    Images of many sizes leave gaps that fit no other, so that `keep_memory` would keep ever more;
    to give back all of it after each image would double the time of a small network.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None and resident_memory() > above:
        trim(0)


class InferenceModel:
    """A model prepared for inference: on its device, in evaluation mode, at its precision.

    Args:
        model: with 32-true the model itself is moved; otherwise a copy of it is used.
        device: where it runs.
        precision: of `resolve_precision`, or a name that it takes. With "mixed" the weights of
            convolutions are rounded once, here, instead of at every call; the scores are the same.
        labels: what `predict` gives in place of each of the model's labels: those of a data set
            that has the same classes in another order. None: the model's own.
        tile: longest side, in pixels, that goes through the network at once; None: any.
        flip: average the probabilities over the image and its mirror image.
        scales: average them over the image resized by each of these factors.

    Raises:
        ConfigError: the device does not compute at this precision, or a scale is not positive.
    """

    def __init__(
        self,
        model: FCN,
        device: torch.device,
        precision: Precision | str = "32-true",
        *,
        labels: Sequence[int] | None = None,
        tile: int | None = TILE,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        if not scales or min(scales) <= 0:
            raise ConfigError(f"scales must be positive factors, got {list(scales)}")
        if not isinstance(precision, Precision):
            precision = resolve_precision(precision, device, key="precision")
        self.flip, self.scales = flip, list(scales)
        self.device, self.precision, self.tile = device, precision.name, tile
        self.labels = None if labels is None else torch.tensor(labels, device=device).byte()
        self.autocast, weights = precision.autocast, precision.weights
        same = self.autocast is None and weights == torch.float32
        self.model = model.eval() if same else copy.deepcopy(model).eval().to(weights)
        optimize(self.model, device)
        upsampling = (u for u in self.model.modules() if isinstance(u, Upsampling))
        kept = {id(layer) for u in upsampling for layer in u.modules()}  # these stay float32
        for layer in self.model.modules() if self.autocast else ():
            if isinstance(layer, nn.Conv2d) and id(layer) not in kept:
                layer.to(self.autocast)

    @torch.inference_mode()
    def score(self, image: Tensor) -> Tensor:
        """Return the scores of images on any device, see `FCN.forward`.

        They are float (B, K, H, W): float32, since upsampling computes so in every precision, or
        float64 if the precision is 64-true.
        """
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return self.model(image.to(self.device))

    @property
    def averages(self) -> bool:
        """True if several views of an image are averaged; scores are then probabilities."""
        return self.flip or len(self.scales) > 1

    @torch.inference_mode()
    def predict(self, image: Tensor) -> Tensor:
        """Return the labels, uint8 (B, H, W), of images on any device, see `FCN.forward`.

        At most as many pixels as one tile holds go through the network at once. A CPU takes images
        one at a time: this is as fast, and the labels do not depend on the batch size, which
        changes the order of a convolution's sums. On a GPU the label of a pixel whose two best
        scores are equal up to rounding may depend on the batch.
        """
        height, width = image.shape[-2:]
        result = torch.empty((len(image), height, width), dtype=torch.uint8, device=self.device)
        most = max(1, (self.tile or TILE) ** 2 // (height * width))
        together = 1 if self.device.type == "cpu" else most
        for part, labels in zip(image.split(together), result.split(together), strict=True):
            for rows, columns, score in self.each_tile(part):
                labels[:, rows, columns] = score.max(1).indices.byte()
                del score  # not to be kept while the next ones are computed
        return result if self.labels is None else self.labels[result.int()]

    def tiles(self, size: tuple[int, int]) -> list[tuple[slice, slice]]:
        """Return rows and columns of each tile of an image of `size`, see `fcn.models.tiles`."""
        scale = max(self.scales)
        rows, columns = (tiles(length, self.tile, self.model, scale) for length in size)
        return [(row, column) for row in rows for column in columns]

    def each_tile(self, image: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield rows, columns and scores (B, K, h, w) of each tile of images (B, C, H, W).

        If there are several tiles, memory that is freed goes back to the system at once.
        """
        size = image.shape[-2], image.shape[-1]
        resized = [resize(image, scale) for scale in self.scales]
        views = [(view, view.flip(-1) if self.flip else None) for view in resized]
        tiles = self.tiles(size)
        with large_tensors_freed() if len(tiles) > 1 else nullcontext():
            for rows, columns in tiles:
                yield rows, columns, self._score_tile(views, rows, columns, size)

    def _score_tile(
        self,
        views: Sequence[tuple[Tensor, Tensor | None]],
        rows: slice,
        columns: slice,
        size: tuple[int, int],
    ) -> Tensor:
        """Return the scores of a tile, or the mean of its probabilities over all views."""
        if not self.averages:
            return score_tile(self.score, self.model, views[0][0], rows, columns, size)
        mirrored = slice(size[1] - columns.stop, size[1] - columns.start)
        total = torch.zeros((), device=self.device)
        for view, mirror in views:
            one = score_tile(self.score, self.model, view, rows, columns, size).softmax(1)
            if mirror is not None:
                other = score_tile(self.score, self.model, mirror, rows, mirrored, size)
                one += other.softmax(1).flip(-1)
            total = total + one
        return total / (len(views) * (1 + self.flip))


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
