"""What a run says of itself when it goes wrong."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from fcn.data.datamodule import SegmentationData
from fcn.models.fcn import FCN
from fcn.training import module
from fcn.training.diagnosis import TrainingError
from fcn.training.run import train
from tests.conftest import TinyVOC
from tests.test_safekeeping import same_end
from tests.test_training import config, quiet


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_no_number_says_where_and_costs_nothing(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    """The net before that step is kept: what was to blame mended, the run ends as it would have."""
    cfg = config(tiny_voc, schedule="cosine", accumulate=accumulate)
    cfg.trainer.accumulate_grad_batches = accumulate
    batch = 5 * accumulate - 1  # the last of step 5
    train(cfg, tmp_path / "whole", quiet())
    seen: list[Tensor] = []
    original = module.segmentation_loss

    def loss(score: Tensor, target: Tensor, reduction: str) -> Tensor:
        seen.append(original(score, target, reduction))
        return seen[-1] * (float("nan") if len(seen) == batch + 1 else 1)

    monkeypatch.setattr(module, "segmentation_loss", loss)
    with pytest.raises(TrainingError) as error:
        train(cfg, tmp_path / "run", quiet())
    said = str(error.value)
    assert "the loss is nan in step 5" in said
    assert f"the last before it {float(seen[batch - 1].detach()):g}" in said
    data = SegmentationData(cfg.data, cfg.recipe, cfg.seed)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        max_steps=8, accumulate_grad_batches=accumulate, global_rank=0, world_size=1
    )
    assert f"images {', '.join(data.training_ids(batch))})" in said
    rate = re.search(r"learning rate (\S+);", said)
    assert rate is not None
    assert 0 < float(rate[1]) < 1e-3  # the schedule's, below the recipe's
    monkeypatch.undo()
    cfg.resume = str(tmp_path / "run" / "before_nan.ckpt")
    train(cfg, tmp_path / "run", quiet())
    assert same_end(tmp_path / "run", tmp_path / "whole")


def test_one_class_everywhere_is_said_once_with_its_causes(
    tiny_voc: TinyVOC, tmp_path: Path
) -> None:
    cfg = config(tiny_voc, lr=1e-7, val_every=1)
    with (console := Console(width=400)).capture() as said:
        train(cfg, tmp_path, console)
    text = said.get()
    assert text.count("every pixel has been predicted background for 3 validations") == 1
    assert text.index("step 3/8") < text.index("every pixel has been") < text.index("step 4/8")


def test_a_layer_cut_off_is_named_in_the_first_step(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = FCN.__init__

    def with_a_spare(self: FCN, **arguments: object) -> None:
        original(self, **arguments)  # type: ignore[arg-type]
        self.spare = nn.Conv2d(3, 2, 1)

    monkeypatch.setattr(FCN, "__init__", with_a_spare)
    with pytest.raises(TrainingError, match=r"no gradient reaches spare\.weight, spare\.bias"):
        train(config(tiny_voc), tmp_path, quiet())


def test_learned_layers_that_do_not_learn_are_named(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(tiny_voc)
    cfg.upsampling.name = "learned"
    cfg.trainer.max_steps = cfg.recipe.max_steps = 12

    def run(name: str) -> str:
        with (console := Console(width=200)).capture() as said:
            train(cfg, tmp_path / name, console)
        return said.get()

    assert "is not learning" not in run("well")
    original = FCN.forward

    def cut(self: FCN, image: Tensor) -> Tensor:
        """Nothing of the loss reaches any weight, though all of them are in the graph."""
        total = sum(p.sum() for p in self.parameters())
        return original(self, image).detach() + 0 * torch.as_tensor(total)

    monkeypatch.setattr(FCN, "forward", cut)
    text = run("badly")
    for name in ("upscore2", "upscore_pool4", "upscore8"):
        assert f"{name} still gets a gradient of zero" in text


def test_a_step_too_large_leaves_the_checkpoints_of_before(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next loss is no number, and the net before that is of no use already."""
    original = module.segmentation_loss
    steps = iter(range(100))

    def loss(score: Tensor, target: Tensor, reduction: str) -> Tensor:
        return original(score, target, reduction) * (1e38 if next(steps) == 4 else 1)

    cfg = config(tiny_voc, optimizer="sgd", lr=1e-2)
    monkeypatch.setattr(module, "segmentation_loss", loss)
    with pytest.raises(
        TrainingError, match=r"last\.ckpt holds that of a sound|weights are infinite"
    ):
        train(cfg, tmp_path, quiet())
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        state = torch.load(path, weights_only=True)
        assert state["global_step"] == 3
        assert all(t.abs().max() < 1e3 for t in state["state_dict"].values())
