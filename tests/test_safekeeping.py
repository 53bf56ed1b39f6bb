"""A run that is stopped, in whatever way, ends as one left alone; nothing made before is lost."""

import os
import runpy
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from fcn.config import REPOSITORY, Interrupted, UserError
from fcn.inference.checkpoint import read
from fcn.training import module, safekeeping
from fcn.training.recipe import rate_at
from fcn.training.run import train
from tests.conftest import TinyVOC
from tests.test_training import config, quiet

STEPS = 8  # of a run of tests.test_training.config, which validates after every third and the last


def state_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same_end(one: Path, other: Path) -> bool:
    """The same weights, and the same metrics.json."""
    ours, theirs = state_of(one), state_of(other)
    return (
        ours.keys() == theirs.keys()
        and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        and (one / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes()
    )


class In:
    """Calls something within batch `at` of training (or a validation right after it)."""

    def __init__(self, hook: str, at: int, do: Callable[[], object]) -> None:
        self.hook, self.at, self.do = hook, at, do

    def __enter__(self) -> None:
        original = self.original = getattr(module.SegmentationModule, self.hook)

        def step(own: module.SegmentationModule, *arguments: object) -> object:
            if own.trainer.fit_loop.total_batch_idx == self.at:
                do, self.do = self.do, lambda: None  # once
                do()
            return original(own, *arguments)

        setattr(module.SegmentationModule, self.hook, step)

    def __exit__(self, *_: object) -> None:
        setattr(module.SegmentationModule, self.hook, self.original)


def get(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_stopped_in_any_step_ends_as_one_left_alone(
    tiny_voc: TinyVOC, tmp_path: Path, accumulate: int
) -> None:
    """And leaves the handlers of signals as they were."""
    cfg = config(tiny_voc, schedule="cosine", accumulate=accumulate)
    cfg.trainer.accumulate_grad_batches = accumulate
    train(cfg, tmp_path / "whole", quiet())
    run, numbers = tmp_path / "stopped", (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    for step in range(STEPS - 1):
        batch, number = step * accumulate, numbers[step % 2]
        stop = pytest.raises(Interrupted, match=f"after step {step + 1},")
        with In("training_step", batch, get(number)), stop as stopped:
            train(cfg, run, quiet())
        assert stopped.value.code == 128 + number
        assert [signal.getsignal(number) for number in numbers] == before
        assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == (
            step + 1
        )
        cfg.resume = "last"
    train(cfg, run, quiet())
    assert same_end(run, tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_validation_that_is_due_is_finished_first(
    tiny_voc: TinyVOC, tmp_path: Path, workers: int
) -> None:
    cfg = config(tiny_voc, ema_decay=0.9)
    train(cfg, tmp_path / "whole", quiet())
    cfg.data.num_workers = workers
    with (
        In("validation_step", 2, get(signal.SIGTERM)),
        pytest.raises(Interrupted, match="after step 3,"),
    ):
        train(cfg, tmp_path / "stopped", quiet())
    cfg.resume = "last"
    train(cfg, tmp_path / "stopped", quiet())
    assert same_end(tmp_path / "stopped", tmp_path / "whole")


def test_slurm_queues_a_job_again_which_goes_on(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(tiny_voc), tmp_path / "whole", quiet())
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for key, value in {"ID": "42", "NAME": "train", "NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_JOB_{key}", value)
    for key in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{key}", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    cfg, run = config(tiny_voc), tmp_path / "run"
    stop = pytest.raises(Interrupted, match="SIGUSR1 after step 5,")
    with In("training_step", 4, get(signal.SIGUSR1)), stop:
        train(cfg, run, quiet())
    assert (tmp_path / "said").read_text() == "requeue 42\n"
    (run / "checkpoints" / "best.ckpt.part").touch()
    continued = runpy.run_path(str(REPOSITORY / "scripts" / "train.py"))["continued"]
    command = [f"hydra.run.dir={run}"]
    assert continued(command) == command
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for more in ([], [f"resume={run}/checkpoints/best.ckpt"], ["rerun=elsewhere"]):
        again = continued([*command, *more])
        assert [a for a in again if a.startswith(("resume", "rerun"))] == ["resume=last"]
    monkeypatch.delenv("PATH")
    cfg.resume = "last"
    train(cfg, run, quiet())
    assert same_end(run, tmp_path / "whole")


def test_a_second_signal_stops_at_once(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with In("training_step", 4, twice), pytest.raises(SystemExit):
        train(config(tiny_voc), tmp_path, quiet())
    assert read(tmp_path / "checkpoints" / "last.ckpt")  # of the validation before
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_full_disk_leaves_the_checkpoint_of_before(tmp_path: Path) -> None:
    keeper, path = safekeeping.AtomicCheckpoints(), tmp_path / "last.ckpt"
    keeper.save_checkpoint({"weights": torch.zeros(5)}, path)
    whole = path.read_bytes()
    (tmp_path / "last.ckpt.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"last\.ckpt: cannot be written \(No space left") as error:
        keeper.save_checkpoint({"weights": torch.ones(10**6)}, path)
    assert "the one before it is whole" in str(error.value)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_too_small_is_refused_before_training(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safekeeping.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**5))
    with pytest.raises(UserError, match=r"0 MiB free, but .* take about \d+ MiB"):
        train(config(tiny_voc), tmp_path / "run", quiet())
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_going_on_skips_a_checkpoint_that_is_damaged(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    cfg = config(tiny_voc)
    train(cfg, tmp_path / "whole", quiet())
    stop = pytest.raises(Interrupted, match="after step 7,")
    with In("training_step", 6, get(signal.SIGTERM)), stop:
        train(cfg, tmp_path / "run", quiet())
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    cfg.resume = "last"
    with (console := Console(width=200)).capture() as said:
        train(cfg, tmp_path / "run", console)
    assert "skipped, as damaged" in said.get()
    assert "last.ckpt" in said.get()
    assert same_end(tmp_path / "run", tmp_path / "whole")
    for path in last.parent.iterdir():
        path.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="no checkpoint that can be read in"):
        train(cfg, tmp_path / "run", quiet())


@pytest.mark.parametrize("validated", [True, False])
def test_a_signal_in_the_last_step_loses_nothing(
    tiny_voc: TinyVOC, tmp_path: Path, validated: bool
) -> None:
    cfg = config(tiny_voc)
    cfg.trainer.limit_val_batches = None if validated else 0
    train(cfg, tmp_path / "whole", quiet())
    stop = pytest.raises(Interrupted, match=f"after step {STEPS},")
    with In("training_step", STEPS - 1, get(signal.SIGTERM)), stop:
        train(cfg, tmp_path / "run", quiet())
    cfg.resume = "last"
    train(cfg, tmp_path / "run", quiet())
    assert same_end(tmp_path / "run", tmp_path / "whole")


def test_a_run_killed_in_its_first_save_starts_anew(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    unfinished = tmp_path / "checkpoints" / "best.ckpt.part"
    unfinished.parent.mkdir()
    unfinished.write_bytes(b"half")
    assert train(config(tiny_voc), tmp_path, quiet()) is not None


def test_going_on_at_another_rate_learns_at_that_rate(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    rates: list[float] = []
    cfg = config(tiny_voc, schedule="cosine")
    with In("training_step", 4, get(signal.SIGTERM)), pytest.raises(Interrupted):
        train(cfg, tmp_path, quiet())
    cfg.resume, cfg.recipe.lr, cfg.recipe.weight_decay = "last", 2e-4, 0.25
    original = module.SegmentationModule.training_step

    def step(own: module.SegmentationModule, batch: module.Batch, index: int) -> torch.Tensor:
        group = own.trainer.optimizers[0].param_groups[0]
        assert group["weight_decay"] == 0.25
        rates.append(group["lr"])
        return original(own, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.SegmentationModule, "training_step", step)
        train(cfg, tmp_path, quiet())
    assert rates == pytest.approx([2e-4 * rate_at(t, cfg.recipe, STEPS) for t in (5, 6, 7)])
