"""Whole runs where the arithmetic of several parts meets: precision, clipping, counts, weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fcn.config import EvaluateConfig
from fcn.inference import evaluate_checkpoint
from fcn.training.run import train
from tests.conftest import TinyVOC

QUIET = Console(quiet=True)
pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_gradients_are_clipped_under_mixed_precision(
    tiny_voc: TinyVOC, tmp_path: Path, optimizer: str
) -> None:
    cfg = tiny_voc.training(optimizer=optimizer)
    cfg.trainer |= {"gradient_clip_val": 1, "precision": "bf16-mixed", "max_steps": 2}
    assert train(cfg, tmp_path / "run", QUIET) is not None


def test_a_run_may_be_deterministic(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    cfg = tiny_voc.training()
    cfg.trainer |= {"deterministic": True, "max_steps": 3}
    assert train(cfg, tmp_path / "run", QUIET) is not None


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_evaluation_computes_a_runs_own_numbers_again(
    tiny_voc: TinyVOC, tmp_path: Path, precision: str
) -> None:
    cfg = tiny_voc.training(lr=1e-2)
    cfg.trainer["precision"] = precision
    train(cfg, tmp_path / "run", QUIET)
    own = json.loads((tmp_path / "run" / "metrics.json").read_text())
    settings = {"trainer": {"accelerator": "cpu", "precision": precision}}
    (tmp_path / "again").mkdir()
    again = evaluate_checkpoint.main(
        EvaluateConfig(data=tiny_voc.config(), checkpoint=str(tmp_path / "run"), **settings),  # type: ignore[arg-type]
        tmp_path / "again",
        QUIET,
    )
    assert again is not None
    assert own["protocol"]["precision"] == again["protocol"]["precision"] == precision
    assert own["confusion"] == again["confusion"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_sample_trains_on_crops_of_two_rows_of_pool5_in_bfloat16(
    command: Callable[..., Any], tmp_path: Path, seed: int
) -> None:
    iou = command(
        "train", "recipe.crop=64", "trainer.precision=bf16-mixed", "trainer.max_steps=20",
        "trainer.accelerator=cpu", f"seed={seed}", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert iou > 0
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    fc6 = state["state_dict"]["model.head.fc6.weight"]
    assert fc6.isfinite().all()
    # Its outer two rows of taps on either side meet no pixel: only weight decay changes them.
    rows = fc6.square().mean((0, 1, 3)).sqrt()
    assert max(rows[i] for i in (0, 1, 5, 6)) < min(rows[2:5])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_balanced_weights_and_label_smoothing_learn_like_balanced_weights_alone(
    command: Callable[..., Any], cases: Path, tmp_path: Path, seed: int
) -> None:
    """Of pond there are 9 training pixels, of snow none."""
    found = {}
    for smoothing in (0.0, 0.1):
        folder = tmp_path / str(smoothing)
        found[smoothing] = command(
            "train", "data=folder", f"data.root={cases / 'field3' / 'rare'}", "recipe.crop=96",
            "recipe.batch_size=4", "trainer.max_steps=50", "trainer.precision=32-true",
            "loss.class_weights=balanced", f"loss.label_smoothing={smoothing}", f"seed={seed}",
            "trainer.accelerator=cpu", f"hydra.run.dir={folder}",
        )  # fmt: skip
        confusion = json.loads((folder / "metrics.json").read_text())["confusion"]
        assert not any(row[3] for row in confusion)
    assert found[0.1] > found[0.0] - 0.1
