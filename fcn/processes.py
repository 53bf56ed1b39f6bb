"""The processes of a command: how many there are, which one this is, and what they share."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fcn.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def rank() -> int:
    """Return the number of this process within its run, as torchrun, Lightning or SLURM tell it."""
    keys = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((int(os.environ[key]) for key in keys if key in os.environ), 0)


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Processes:
    """The processes of one command, as Lightning's Fabric or torchrun started them."""

    rank: int
    world: int
    device: "torch.device"  # of this one

    def sum(self, counts: "Tensor") -> "Tensor":
        import torch

        """Return integer counts summed over the processes, on the CPU."""
        if self.world == 1:
            return counts
        counts = counts.to(self.device)
        torch.distributed.all_reduce(counts)
        return counts.cpu()

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            import torch

            torch.distributed.barrier()


@contextmanager
def launch(trainer: Mapping[str, Any]) -> Iterator[Processes]:
    """Start the processes that `trainer.devices` asks for, and end their connection afterwards.

    Args:
        trainer: accelerator, devices, num_nodes, strategy; by default one device.

    Raises:
        ConfigError: another argument, or no such devices on this machine.
    """
    import torch
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
