"""Where a model runs, and how precisely."""

import copy
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcn.config import ConfigError
from fcn.models.fcn import FCN
from fcn.models.upsampling import Upsampling
from fcn.speed import optimize


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


@dataclass(frozen=True)
class Processes:
    """The processes of one command, as Lightning's Fabric or torchrun started them."""

    rank: int
    world: int
    device: torch.device  # of this one

    def sum(self, counts: Tensor) -> Tensor:
        """Return integer counts summed over the processes, on the CPU."""
        if self.world == 1:
            return counts
        counts = counts.to(self.device)
        torch.distributed.all_reduce(counts)
        return counts.cpu()

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            torch.distributed.barrier()


@contextmanager
def launch(trainer: Mapping[str, Any]) -> Iterator[Processes]:
    """Start the processes that `trainer.devices` asks for, and end their connection afterwards.

    Args:
        trainer: accelerator, devices, num_nodes, strategy; by default one device.

    Raises:
        ConfigError: another argument, or no such devices on this machine.
    """
    from lightning_fabric import Fabric  # slow to import
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    known: dict[str, Any] = {
        "accelerator": "auto",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
    }
    if unknown := trainer.keys() - known.keys() - {"precision"}:
        raise ConfigError(
            f"trainer.{min(unknown)} is for training; here: {', '.join(known)}, precision"
        )
    try:
        fabric = Fabric(**known | {key: trainer[key] for key in known if key in trainer})
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        raise ConfigError(f"trainer: {error}") from error
    fabric.launch()
    try:
        yield Processes(fabric.global_rank, fabric.world_size, fabric.device)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class InferenceModel:
    """A model prepared for inference: on its device, in evaluation mode, at its precision.

    Args:
        model: with bf16 a copy of it is used; otherwise the model itself is moved.
        device: where it runs.
        bf16: run under autocast to bfloat16. The weights of convolutions are rounded once, here,
            instead of at every call; the scores are the same.
    """

    def __init__(self, model: FCN, device: torch.device, bf16: bool) -> None:
        self.device, self.bf16 = device, bf16
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
        """Return the labels, int64 (B, H, W), of images on any device, see `FCN.forward`.

        A CPU takes images one by one: that is as fast, and the labels cannot depend on the batch,
        by whose size a convolution orders its sums.
        """
        parts = image.split(1) if self.device.type == "cpu" else [image]
        return torch.cat([self.score(part).max(1).indices for part in parts])


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
