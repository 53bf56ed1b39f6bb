"""Transform, loss and upsampling of a user's own package, named by the settings alone."""

import json
import sys
from fractions import Fraction
from importlib import import_module
from pathlib import Path

import pytest
import torch

from fcn import checkpoint
from fcn.errors import CheckpointError, ConfigError
from fcn.targets import build
from tests.conftest import QUICK, Patch, Run, TinyVOC, last

pytestmark = pytest.mark.usefixtures("no_pictures")
PACKAGE = """
from torch import nn
from torch.nn import functional as F
from fcn.models.upsampling import Upsampling

class Negative:
    def __call__(self, image, mask):
        return 255 - image, mask

class Squares(nn.Module):
    def __init__(self, power, ignore_index):
        super().__init__()
        self.power, self.ignore_index = power, ignore_index

    def forward(self, score, target):
        seen = target != self.ignore_index
        truth = F.one_hot(target * seen, score.shape[1]).permute(0, 3, 1, 2)
        return ((score.softmax(1) - truth).abs() ** self.power).sum(1)[seen].mean()

class PixelShuffle(Upsampling):
    def __init__(self, factor, num_classes):
        super().__init__(factor)
        self.kernel = factor
        self.expand = nn.Conv2d(num_classes, num_classes * factor**2, 1)

    def full(self, score):
        return F.pixel_shuffle(self.expand(score), self.factor)

class TooSmall(PixelShuffle):
    def full(self, score):
        return super().full(score)[..., 1:]
"""
# Weights & Biases, as far as a logger uses it: a run is live until it is finished.
WANDB = """
from pytorch_lightning.loggers import CSVLogger
run, runs = None, []

def init():
    global run
    if run is None:
        run = []
        runs.append(run)
    return run

def finish(exit_code=None):
    global run
    run = None

class Remote(CSVLogger):
    def log_metrics(self, metrics, step=None):
        init().append(step)
"""
LOSS = ["loss._target_=own_parts.Squares", "loss.arguments.power=2"]
TRANSFORM = "recipe.transforms=[{_target_: own_parts.Negative}]"


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A folder on the path of imports, with a package that is forgotten at the end."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "own_parts.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def forget(package: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(package)])
    monkeypatch.delitem(sys.modules, "own_parts")


def test_a_model_of_an_own_loss_and_transform_needs_no_package_afterwards(
    tiny_voc: TinyVOC, own_package: Path, command: Run, monkeypatch: Patch
) -> None:
    command("train", *tiny_voc.overrides(), *QUICK, *LOSS, TRANSFORM, "hydra.run.dir=run")
    forget(own_package, monkeypatch)
    command("evaluate", "checkpoint=run", "hydra.run.dir=again")
    assert Path("run/metrics.json").read_bytes() == Path("again/metrics.json").read_bytes()


def test_an_own_upsampling_is_trained_and_loaded_while_its_package_is_there(
    tiny_voc: TinyVOC, own_package: Path, command: Run, monkeypatch: Patch
) -> None:
    own = "upsampling._target_=own_parts.PixelShuffle"
    command("train", *tiny_voc.overrides(), *QUICK, own, "model=fcn16s", "hydra.run.dir=run")
    model = checkpoint.load("run")
    assert type(model.upscore_final).__name__ == "PixelShuffle"
    assert model(torch.rand(1, 3, 33, 47)).shape == (1, 3, 33, 47)
    forget(own_package, monkeypatch)
    with pytest.raises(
        CheckpointError, match=r"own_parts\.PixelShuffle: No module named 'own_parts"
    ):
        checkpoint.load("run")


def test_each_stage_is_a_run_of_its_own_to_weights_and_biases(
    tiny_voc: TinyVOC, own_package: Path, command: Run, monkeypatch: Patch
) -> None:
    (own_package / "wandb.py").write_text(WANDB)
    monkeypatch.setitem(sys.modules, "wandb", import_module("wandb"))  # forgotten at the end
    own = [*tiny_voc.overrides(), *QUICK, "logger.mine._target_=wandb.Remote", "hydra.run.dir=run"]
    command("train", *own, "stages=[fcn32s,fcn16s]", "trainer.log_every_n_steps=1")
    first, second = sys.modules["wandb"].runs
    assert first
    assert second


@pytest.mark.parametrize(
    ("before", "now"), [("null", "[1,2,3]"), ("[1,2,3]", "[3,2,1]"), ("[1,2,3]", "null")]
)
def test_a_resumed_run_has_the_class_weights_of_its_settings(
    tiny_voc: TinyVOC, command: Run, monkeypatch: Patch, before: str, now: str
) -> None:
    """PyTorch's own loss keeps them in its state, and averaged weights keep that twice."""
    monkeypatch.chdir(tiny_voc.root)
    loss = ["loss._target_=torch.nn.CrossEntropyLoss", f"loss.class_weights={before}"]
    own = [*tiny_voc.overrides(), *QUICK, *loss, "recipe.ema_decay=0.9", "hydra.run.dir=run"]
    command("train", *own)
    command("train", "resume=run", f"loss.class_weights={now}", "trainer.max_steps=6")
    for key in ("state_dict", "current_model_state"):
        weight = last("run")[key].get("loss.weight")
        assert (None if weight is None else weight.tolist()) == json.loads(now)


def test_targets_take_the_words_of_hydra() -> None:
    """Positional arguments, functions within, and functions that wait for the rest."""
    gcd = {"_target_": "math.gcd", "_args_": [12, 18]}
    third = {"_target_": "fractions.Fraction", "_args_": [2, gcd]}
    assert build(third, lambda parameters, given: given) == Fraction(1, 3)
    half = build(third | {"_partial_": True, "_args_": [1]}, lambda parameters, given: given)
    assert half(denominator=2) == Fraction(1, 2)
    with pytest.raises(ConfigError, match=r"math\.gcd: a function"):
        build(gcd, lambda parameters, given: given)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("upsampling._target_=nowhere.Layer", "No module named 'nowhere'"),
        ("upsampling._target_=torch.nn.Conv2d", "no subclass of fcn.models.upsampling.Upsampling"),
        ("upsampling._target_=own_parts.TooSmall", "TooSmall.full(score) must have"),
        ("loss._target_=own_parts.Squares", "power"),
        ("recipe.transforms=[{_target_: nowhere.Transform}]", "No module named 'nowhere'"),
        ("augmentation=nowhere", "choices: aerial"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_a_run_is_recorded(
    tiny_voc: TinyVOC, own_package: Path, error_line: Run, override: str, words: str
) -> None:
    arguments = [*tiny_voc.overrides(), *QUICK, "hydra.run.dir=run", override]
    assert words in error_line("train", *arguments)
    assert not Path("run", "run.json").exists()
