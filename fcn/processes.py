"""The processes of a command: how many there are, what they share, and how they end together.

Lightning, torchrun or SLURM start them. They agree over a connection between CPUs, whatever device
computes, and all exit with the same code after one of them has said what went wrong.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from fcn.errors import ConfigError, Interrupted, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")  # set by whatever starts processes
PATIENCE = timedelta(days=7)  # one process may work for long while the others wait
GRACE = 2  # seconds that a process has to notice by itself that another has failed
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
LOST = ("connection closed", "connection reset", "broken pipe", "connection refused", "peer")


def is_first() -> bool:
    """Return True in rank 0, which prints and writes; the rank is read from the environment."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    return all(os.environ.get(key, "0") == "0" for key in RANKS)


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class Processes:
    """The processes of one command, of which this is one."""

    rank: int  # of this process, from 0
    world: int  # number of processes
    device: "torch.device"  # that this process computes on
    group: Any = None  # connects CPUs
    store: Any = None  # of the first process: who failed first
    _finished: threading.Event = field(default_factory=threading.Event)
    _pending: Any = None  # the all_reduce of `any_signal` under way: (work, flag)

    def sum(self, counts: "Tensor") -> "Tensor":
        """Return integer counts summed over the processes, on the CPU."""
        import torch

        counts = counts.to("cpu", copy=True)
        if self.world > 1:
            torch.distributed.all_reduce(counts, group=self.group)
        return counts

    def barrier(self) -> None:
        """Wait until all processes have called this (a barrier)."""
        self.broadcast(None)

    def broadcast(self, value: T) -> T:
        """Return the first process's value in all of them; it must be picklable."""
        import torch

        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def any_signal(self, received: int, *, at_once: bool = False) -> int:
        """Return the largest signal number received by any process, the same in all of them.

        All processes must call it at the same steps. It returns the result of the call before,
        unless `at_once`: the exchange runs between CPUs while the device computes, so no step waits
        for it.
        """
        import torch

        if self.world == 1:
            return received
        known = self._answer()
        if known:
            return known
        flag = torch.tensor(received)
        most = torch.distributed.ReduceOp.MAX
        work = torch.distributed.all_reduce(flag, most, group=self.group, async_op=True)
        self._pending = work, flag
        return self._answer() if at_once else 0

    def _answer(self) -> int:
        if self._pending is None:
            return 0
        (work, flag), self._pending = self._pending, None
        work.wait()
        return int(flag)

    def _connect(self) -> None:
        """Connect the CPUs of all processes, and watch for one that fails."""
        import torch

        self.group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        host, first = os.environ["MASTER_ADDR"], self.rank == 0
        store = torch.distributed.TCPStore
        if first:
            self.store = store(host, 0, is_master=True, wait_for_workers=False)
        port = self.broadcast(self.store.port if first else 0)
        if not first:
            self.store = store(host, port, is_master=False)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Exit if another process has failed while a collective operation blocks this one."""
        while not self._finished.wait(1):
            try:
                failed = self.store.check(["failed"])
            except RuntimeError:  # the first process is gone
                os._exit(1)
            if failed and not self._finished.wait(GRACE):
                code = self._first_failure()[1]
                self._leave_together()
                os._exit(code)

    def _first_failure(self) -> tuple[int, int]:
        """Return the rank of the process that failed first, and the exit code of all."""
        rank, code = self.store.get("failed").split()
        return int(rank), int(code)

    def _fail(self, error: BaseException) -> None:
        """Report a failure to the other processes; if another failed first, exit quietly."""
        self._finished.set()
        code = error.code if isinstance(error, Interrupted) else 1
        try:
            self.store.compare_set("failed", "", f"{self.rank} {code}")
            rank, code = self._first_failure()
            self._leave_together()
        except RuntimeError:  # the first process is gone, without a word
            rank = 0
        if isinstance(error, Interrupted):  # all stop after the same step
            rank = 0
        if self.rank != rank:
            raise SystemExit(code) from None

    def _leave_together(self) -> None:
        """Wait until all processes know why they end, and let the first one end first.

        Its store holds the reason; and Lightning kills it if another ends with an error before.
        """
        end = time.monotonic() + 5 * GRACE
        others = self.world - 1
        if self.rank == 0:
            while self.store.add("left", 0) < others and time.monotonic() < end:
                time.sleep(0.05)
            self.store.set("first left", "")
            time.sleep(0.3)  # the others see it
            return
        self.store.add("left", 1)
        while not self.store.check(["first left"]) and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1)


@contextmanager
def launch(trainer: Mapping[str, Any], *, training: bool = False) -> Iterator[Processes]:
    """Start the processes that `trainer.devices` asks for, and end them together.

    Args:
        trainer: accelerator, devices, num_nodes, strategy; by default one device, for training all.
        training: allow the arguments of Lightning's Trainer that are for training alone.

    Yields:
        This process's place among them, and its device.

    Raises:
        ConfigError: another argument, or no such devices on this machine.
        UserError: another process was lost.
    """
    from lightning_fabric import Fabric  # slow to import

    devices = "auto" if training else 1
    wanted = {"accelerator": "auto", "devices": devices, "num_nodes": 1, "strategy": "auto"}
    if not training and (unknown := trainer.keys() - wanted.keys() - {"precision"}):
        raise ConfigError(
            f"trainer.{min(unknown)} is for training; here: {', '.join(wanted)}, precision"
        )
    wanted |= {key: trainer[key] for key in wanted if trainer.get(key) is not None}
    if wanted["strategy"] not in STRATEGIES:
        raise ConfigError(
            f"trainer.strategy={wanted['strategy']}: must be one of {', '.join(STRATEGIES)}; a "
            "checkpoint needs the whole model in every process"
        )
    if str(wanted["strategy"]).startswith("ddp"):
        wanted["strategy"] = "ddp"  # its variants differ in training alone
    environment = dict(os.environ)
    try:
        _check_accelerator(str(wanted["accelerator"]))
        fabric = Fabric(**wanted)  # type: ignore[arg-type]
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            _join_attempt(cuda=fabric.device.type == "cuda")
        fabric.launch()
    except ConfigError:
        raise
    except Exception as error:  # Lightning's parsers raise almost anything
        shown = ", ".join(f"trainer.{key}={trainer[key]}" for key in wanted if key in trainer)
        raise ConfigError(f"trainer: {_first_sentence(error)} ({shown})") from error
    processes = Processes(fabric.global_rank, fabric.world_size, fabric.device)
    if processes.world == 1:
        yield processes
        return
    import torch

    try:
        processes._connect()
        yield processes
        processes.barrier()  # for the first one, which evaluates alone: all exit with the same code
        processes._finished.set()
    except BaseException as error:
        processes._fail(error)
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST):
            raise UserError(
                "lost another process of this command: it was killed, or its machine failed; run "
                "the command again, to continue a training with resume=FOLDER"
            ) from error
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for key in os.environ.keys() - environment.keys():
            if key in (*RANKS, "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
                del os.environ[key]  # the next run of a sweep starts processes of its own


def _join_attempt(*, cuda: bool) -> None:
    """Connect the processes of torchrun, by addresses of this attempt alone.

    After a restart, torchrun's store may still hold the addresses of processes that are gone, for
    which those of the new attempt would wait.
    """
    import torch

    distributed, environment = torch.distributed, os.environ
    place = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    attempt = f"attempt {environment['TORCHELASTIC_RESTART_COUNT']}"
    store = distributed.PrefixStore(attempt, distributed.TCPStore(*place, is_master=False))
    rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    backend = "nccl" if cuda else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world)


def _check_accelerator(name: str) -> None:
    """Raise a ConfigError if this machine does not have an accelerator."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    if name in ("cuda", "gpu", "mps") and (found is None or name not in ("gpu", found.type)):
        raise ConfigError(f"trainer.accelerator={name} is not available on this machine; use auto")


def _first_sentence(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].partition(". ")[0].rstrip(".")
