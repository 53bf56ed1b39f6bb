"""What a plan resolves: Trainer's arguments, training images, class weights, stages."""

import inspect
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console

from fcn.config import ModelConfig, TrainConfig
from fcn.data.check import class_pixels
from fcn.errors import ConfigError
from fcn.training.plan import REFUSED, RESOLVED, Plan, resolve
from fcn.training.run import hide_hints, initial_model, make_module, make_trainer
from fcn.training.stages import _stages
from tests.conftest import ALONE, QUIET, TinyVOC

# Arguments that Lightning gets as they are, with a value that is not their default.
PASSED_ON: dict[str, Any] = {
    "benchmark": False,
    "detect_anomaly": True,
    "deterministic": True,
    "enable_checkpointing": False,
    "enable_model_summary": True,
    "gradient_clip_algorithm": "value",
    "gradient_clip_val": 0.5,
    "inference_mode": False,
    "max_time": "00:01:00:00",
    "min_steps": 3,
    "num_sanity_val_steps": 1,
    "profiler": "simple",
}
# Arguments that a run resolves: a value, and what Lightning then gets.
CHANGED: list[tuple[str, Any, str, Any]] = [
    ("accelerator", "cpu", "accelerator", "cpu"),
    ("accumulate_grad_batches", 2, "accumulate_grad_batches", 2),
    ("check_val_every_n_epoch", 2, "val_check_interval", 4),
    ("devices", "1", "devices", "1"),
    ("enable_progress_bar", False, "enable_progress_bar", False),
    ("fast_dev_run", 2, "max_steps", 2),
    ("limit_train_batches", 0.5, "val_check_interval", 1),
    ("limit_val_batches", 1, "limit_val_batches", 1),
    ("log_every_n_steps", 3, "log_every_n_steps", 3),
    ("max_epochs", 3, "max_steps", 6),
    ("max_steps", 5, "max_steps", 5),
    ("min_epochs", 2, "min_steps", 4),
    ("num_nodes", 1, "num_nodes", 1),
    ("overfit_batches", 1, "limit_val_batches", 1),
    ("precision", "bf16", "precision", "bf16-mixed"),
    ("strategy", "auto", "strategy", "auto"),
    ("sync_batchnorm", True, "sync_batchnorm", False),  # torch has it for CUDA alone
    ("val_check_interval", 0.5, "val_check_interval", 1),
]


def planned(tiny_voc: TinyVOC, folder: Path, **trainer: Any) -> Plan:
    cfg = tiny_voc.training()
    cfg.logger = {}
    cfg.trainer = {"accelerator": "cpu", "precision": "32-true"} | trainer
    if not {"max_epochs", "max_steps"} & trainer.keys():
        cfg.trainer["max_steps"] = 8
    return resolve(cfg, folder, ALONE, QUIET)


def test_the_tables_name_every_argument() -> None:
    known = set(inspect.signature(pl.Trainer).parameters)
    assert known == {*RESOLVED, *REFUSED, *PASSED_ON}
    assert {name for name, *_ in CHANGED} == RESOLVED


@pytest.mark.parametrize(("name", "value"), PASSED_ON.items())
def test_an_argument_is_passed_on(tiny_voc: TinyVOC, tmp_path: Path, name: str, value: Any) -> None:
    assert planned(tiny_voc, tmp_path, **{name: value}).trainer[name] == value


@pytest.mark.parametrize(("name", "value", "key", "expected"), CHANGED)
def test_an_argument_is_resolved(
    tiny_voc: TinyVOC, tmp_path: Path, name: str, value: Any, key: str, expected: Any
) -> None:
    """Four training images in batches of two: two batches an epoch."""
    hide_hints()
    plan = planned(tiny_voc, tmp_path, **{name: value})
    assert plan.trainer[key] == expected
    model, _ = initial_model(plan, QUIET)
    trainer = make_trainer(plan, make_module(plan, model, QUIET), QUIET).trainer
    assert trainer.max_steps == plan.max_steps
    assert trainer.limit_train_batches in (1.0, value if name == "fast_dev_run" else 1.0)
    if name != "fast_dev_run":  # which Lightning resolves itself
        assert trainer.check_val_every_n_epoch is None  # the interval counts over the whole run


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_is_refused_with_the_reason(
    tiny_voc: TinyVOC, tmp_path: Path, name: str
) -> None:
    default = inspect.signature(pl.Trainer).parameters[name].default
    with pytest.raises(ConfigError) as error:
        planned(tiny_voc, tmp_path, **{name: not default})
    assert REFUSED[name] in str(error.value)
    planned(tiny_voc, tmp_path, **{name: default})  # Lightning's own default changes nothing


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accumulate_grad_batches", 0),
        ("accumulate_grad_batches", "abc"),
        ("accumulate_grad_batches", 1.5),
        ("check_val_every_n_epoch", 0.5),
        ("gradient_clip_algorithm", "sideways"),
        ("limit_train_batches", 1.5),
        ("limit_val_batches", "some"),
        ("max_epochs", 0),
        ("max_epochs", "abc"),
        ("max_steps", 0),
        ("max_steps", 2.5),
        ("max_steps", -1),
        ("precision", "foo"),
        ("precision", "16-mixed"),
        ("profiler", "stopwatch"),
        ("val_check_interval", "00:00:10:00"),
        ("val_check_interval", 0),
        ("val_check_interval", 2.0),
    ],
)
def test_an_invalid_value_is_refused_before_a_folder_is_made(
    tiny_voc: TinyVOC, tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=rf"trainer.*{name}|trainer: |trainer\.max_steps"):
        planned(tiny_voc, tmp_path / "run", **{name: value})
    assert not (tmp_path / "run").exists()


def test_two_wishes_when_to_validate_are_one_error(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    for every in (1, 2):
        wishes = {"check_val_every_n_epoch": every, "val_check_interval": 500}
        with pytest.raises(ConfigError, match=f"epoch={every} and trainer.val_check_interval=500"):
            planned(tiny_voc, tmp_path, **wishes)


def test_a_share_of_few_validation_images_is_at_least_one(
    tiny_voc: TinyVOC, tmp_path: Path
) -> None:
    plan = planned(tiny_voc, tmp_path, limit_val_batches=0.1)
    assert plan.val_limit == 1
    assert "limit_val_batches" not in plan.trainer


def limited(tiny_voc: TinyVOC, folder: Path, limit: int | None, seed: int = 0) -> Plan:
    cfg = tiny_voc.training(batch_size=1, crop=64)
    cfg.trainer = {"accelerator": "cpu", "max_epochs": 3, "limit_val_batches": 1}
    cfg.logger, cfg.seed, cfg.data.limit = {}, seed, limit
    return resolve(cfg, folder, ALONE, QUIET)


def test_fewer_training_images_are_a_part_of_more(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    """Of one seed; all of them are the list itself. Validation keeps its images."""
    every = limited(tiny_voc, tmp_path, None).train.ids
    drawn = set()
    for seed in range(4):
        plans = [limited(tiny_voc, tmp_path, n, seed) for n in (1, 2, 3, 4)]
        ids = [plan.train.ids for plan in plans]
        assert [len(one) for one in ids] == [plan.max_steps // 3 for plan in plans]
        assert all(set(few) < set(more) for few, more in pairwise(ids))
        assert all(one == [i for i in every if i in one] for one in ids)
        assert ids[-1] == every
        assert {len(plan.val) for plan in plans} == {2}
        drawn.add(tuple(ids[0]))
    assert len(drawn) > 1


def test_class_weights_count_the_training_images_alone(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    plan = limited(tiny_voc, tmp_path, 2)
    counted = torch.zeros(256, dtype=torch.int64)
    for _, target in plan.train:  # type: ignore[attr-defined]
        counted += torch.bincount(target.flatten().int(), minlength=256)
    assert class_pixels(plan.train, QUIET) == counted[:3].tolist()


def test_balanced_weights_follow_the_pixels_of_the_masks(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    """Two masks of 50 x 40 and two of 48 x 64; each has 380 pixels of an object, 20 ignored."""
    cfg = tiny_voc.training()
    cfg.loss.class_weights, cfg.logger = "balanced", {}
    plan = resolve(cfg, tmp_path, ALONE, QUIET)
    with (console := Console(width=200)).capture() as output:
        make_module(plan, initial_model(plan, QUIET)[0], console)
    background = 2 * (50 * 40 - 400) + 2 * (48 * 64 - 400)
    total = background + 4 * 380
    expected = f"background {total / 3 / background:.3g}, cat {total / 3 / 760:.3g}"
    assert f"class weights: {expected}" in output.get()


def test_more_training_images_than_there_are_is_an_error(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.limit=5: tiny train .* has 4 images"):
        limited(tiny_voc, tmp_path, 5)


def test_stages_keep_every_setting_of_the_model_but_its_own(tmp_path: Path) -> None:
    base = ModelConfig(in_channels=1, padding=100, dropout=0.3, init_from="run")
    cfg = TrainConfig(model=base, stages=["fcn32s", "fcn16s", "fcn8s"])
    cfg.recipe.lr = 0.01
    models = [stage.model for stage in _stages(cfg, tmp_path / "run")]
    assert models == [replace(base, stride=stride) for stride in (32, 16, 8)]
    cfg.model = replace(base, skip_scales={"pool4": 0.5})
    with pytest.raises(ConfigError, match=r"model\.skip_scales"):
        _stages(cfg, tmp_path / "run")


def test_a_summed_loss_takes_one_process(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    """Several average their gradients, as accumulation does."""
    cfg = tiny_voc.training(loss_reduction="sum", lr=1e-10)
    cfg.model.stride = 32
    assert resolve(cfg, tmp_path, ALONE, QUIET)
    with pytest.raises(ConfigError, match="2 processes do not fit"):
        resolve(cfg, tmp_path, replace(ALONE, world=2), QUIET)


def test_a_fused_optimiser_may_be_asked_for(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    cfg = tiny_voc.training(optimizer_arguments={"fused": True})
    assert resolve(cfg, tmp_path, ALONE, QUIET)
    cfg.trainer |= {"gradient_clip_val": 1.0, "precision": "bf16-mixed"}
    with pytest.raises(ConfigError, match="gradient_clip_val"):
        resolve(cfg, tmp_path, ALONE, QUIET)
