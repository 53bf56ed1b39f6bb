"""A run that was stopped and resumed draws the images, and has the weights, of one left alone.

A grid over what meets in it: epochs or steps, limits, accumulation, validation intervals, and where
and how the run was stopped.
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from fcn.config import TrainConfig
from fcn.errors import Interrupted
from fcn.training import module
from fcn.training.plan import resolve
from fcn.training.run import fit, hide_hints, initial_model, make_module, make_trainer
from tests.conftest import ALONE, QUIET, Patch, TinyVOC
from tests.test_transforms import DRAWING

LENGTHS = [{"max_epochs": 3}, {"max_steps": 5}]
LIMITS: list[dict[str, Any]] = [
    {},
    {"limit_train_batches": 1.0},
    {"limit_train_batches": 0.5},
    {"overfit_batches": 1},
]
ACCUMULATE = [1, 2, 3]
INTERVALS: list[dict[str, Any]] = [
    {"val_check_interval": 4},
    {"val_check_interval": 1.0},
    {"check_val_every_n_epoch": 2},
]
STOPS = [(1, "crash"), (2, "SIGTERM"), (3, "crash"), (4, "SIGINT")]
GRID = list(product(LENGTHS, LIMITS, ACCUMULATE, INTERVALS))
CELLS = [(*cell, STOPS[number % len(STOPS)]) for number, cell in enumerate(GRID)]
FAST = 13  # every so many cells: it has no divisor in common with the number of values of a factor


class Crash(Exception):
    pass


def stopping(how: str) -> Callable[[], None]:
    def stop() -> None:
        if how == "crash":
            raise Crash
        os.kill(os.getpid(), getattr(signal, how))

    return stop


class Drawn:
    """What each optimiser step of a run was computed from: the sums of its images' pixels."""

    def __init__(self, monkeypatch: Patch) -> None:
        self.steps: dict[int, list[int]] = {}
        self.at, self.stop = -1, stopping("crash")
        original = module.SegmentationModule.training_step

        def training_step(own: module.SegmentationModule, batch: Any, index: int) -> Tensor:
            if own.trainer.fit_loop.total_batch_idx == self.at:
                self.at = -1  # once
                self.stop()
            batches = self.steps.setdefault(own.trainer.global_step, [])
            batches.append(int(batch[0].long().sum()))
            return original(own, batch, index)

        monkeypatch.setattr(module.SegmentationModule, "training_step", training_step)


def train_only(cfg: TrainConfig, folder: Path) -> dict[str, Tensor]:
    """Train as `train_one` does, without the evaluation; return the weights."""
    hide_hints()
    plan = resolve(cfg, folder, ALONE, QUIET)
    folder.mkdir(exist_ok=True)
    model, _ = initial_model(plan, QUIET)
    training = make_module(plan, model, QUIET)
    fit(plan, make_trainer(plan, training, QUIET), training, QUIET)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class StopWithinStep(Callback):
    """Ends the run after its fifth batch, as a time limit does after any."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop |= trainer.fit_loop.total_batch_idx >= 4


def test_a_run_that_a_callback_ends_stops_after_a_whole_step(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: Patch
) -> None:
    cfg = tiny_voc.training()
    cfg.trainer |= {"max_steps": 4, "val_check_interval": 12, "accumulate_grad_batches": 3}
    drawn = Drawn(monkeypatch)
    whole = train_only(cfg, tmp_path / "whole")
    expected, drawn.steps = drawn.steps, {}
    cfg.callbacks = {"stop": {"_target_": "tests.test_resume.StopWithinStep"}}
    train_only(cfg, tmp_path / "run")
    assert [len(batches) for batches in drawn.steps.values()] == [3, 3]
    cfg.resume, cfg.callbacks = "last", {}
    resumed = train_only(cfg, tmp_path / "run")
    assert drawn.steps == expected
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, marks=[] if number % FAST == 0 else pytest.mark.slow)
        for number, cell in enumerate(CELLS)
    ],
    ids=lambda cell: "-".join(str(part).replace(" ", "") for part in cell),
)
def test_a_stopped_run_ends_as_one_left_alone(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: Patch, cell: Any
) -> None:
    length, limit, accumulate, interval, (at, how) = cell
    cfg = tiny_voc.training(schedule="cosine", transforms=DRAWING)
    cfg.logger = {}
    del cfg.trainer["max_steps"], cfg.trainer["val_check_interval"]
    cfg.trainer |= length | limit | interval | {"accumulate_grad_batches": accumulate}
    drawn = Drawn(monkeypatch)
    whole = train_only(cfg, tmp_path / "whole")
    expected, drawn.steps = drawn.steps, {}

    drawn.at, drawn.stop = at, stopping(how)
    with suppress(Crash, Interrupted):
        train_only(cfg, tmp_path / "run")
    before, drawn.steps = drawn.steps, {}
    if any((tmp_path / "run" / "checkpoints").glob("*.ckpt")):
        cfg.resume = "last"
    ended = train_only(cfg, tmp_path / "run")
    in_last_step = at // accumulate >= max(expected)
    assert drawn.steps or in_last_step  # else there was nothing to resume
    assert before | drawn.steps == expected
    assert all(torch.equal(whole[name], ended[name]) for name in whole)


def test_the_fast_cells_hold_every_value_and_a_signal_within_a_step() -> None:
    factors, fast = (LENGTHS, LIMITS, ACCUMULATE, INTERVALS, STOPS), CELLS[::FAST]
    for values, held in zip(factors, zip(*fast, strict=True), strict=True):
        assert all(value in held for value in values)
    signals = [(batches, at) for _, _, batches, _, (at, how) in fast if how != "crash"]
    assert any((at + 1) % batches for batches, at in signals)


def test_an_epoch_is_every_image_once_whatever_the_limit_of_steps(
    tiny_voc: TinyVOC, tmp_path: Path
) -> None:
    """Four images in batches of two, of which two make a step."""
    tiny_voc.listing("train").write_text("t0\nt1\nt2\nt3\n")
    for trainer, epoch, steps, interval in [
        ({"max_epochs": 3}, 2, 3, 2),
        ({"max_epochs": 3, "limit_train_batches": 1}, 1, 2, 2),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 1, 2, 2),
        ({"max_epochs": 0.5}, 2, 1, 2),
        ({"max_steps": 7, "val_check_interval": 3}, 2, 7, 4),  # rounded up to whole steps
        ({"max_steps": 7, "check_val_every_n_epoch": 3}, 2, 7, 6),
        ({"max_steps": 7, "val_check_interval": 100}, 2, 7, 14),
    ]:
        cfg = tiny_voc.training()
        cfg.trainer = {"accelerator": "cpu", "accumulate_grad_batches": 2, **trainer}
        plan = resolve(cfg, tmp_path / "run", ALONE, QUIET)
        assert (len(plan.train), plan.max_steps) == (2 * epoch, steps)
        assert plan.trainer["val_check_interval"] == interval
    assert not (tmp_path / "run").exists()  # a plan writes nothing
