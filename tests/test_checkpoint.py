import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import fcn
from fcn.inference.checkpoint import CheckpointError, read, state_dict, write_safetensors
from fcn.models.fcn import FCN
from tests.test_fcn import small, with_random_scores


def lightning_file(path: Path, model: FCN) -> Path:
    """What Lightning writes of a SegmentationModule."""
    about = {"model": model.arguments, "classes": ["a", "b", "c", "d", "e"]}
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"about": about}, "epoch": 0}, path)
    return path


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_a_loaded_model_scores_as_it_did(tmp_path: Path, kind: str) -> None:
    model = with_random_scores(small(stride=16, upsampling="learned", padding=100)).eval()
    path = tmp_path / f"model.{kind}"
    if kind == "ckpt":
        lightning_file(path, model)
    else:
        write_safetensors(path, model, {"classes": ["a", "b", "c", "d", "e"]})
    loaded = fcn.load(path)
    image = torch.rand(1, 3, 40, 50)
    assert torch.equal(loaded(image), model(image))
    assert not loaded.training
    assert read(path).classes == ["a", "b", "c", "d", "e"]


class Malicious:
    """A pickle that runs a command when it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "created"
    torch.save({"state_dict": Malicious(target)}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt: damaged, or not a checkpoint"):
        fcn.load(tmp_path / "evil.ckpt")
    assert not target.exists()


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_a_cut_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"model.{kind}"
    model = small(num_classes=2)
    if kind == "ckpt":
        lightning_file(path, model)
    else:
        write_safetensors(path, model, {"classes": ["a", "b"]})
    whole = path.read_bytes()
    for length in np.random.default_rng(0).integers(0, len(whole), 20):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="model"):
            fcn.load(path)


def test_files_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        fcn.load(tmp_path / "missing.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"epoch": 1}, tmp_path / "empty.ckpt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "plain.ckpt")
    save_file({"weight": torch.ones(1)}, tmp_path / "plain.safetensors")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(CheckpointError, match=path.name):
            fcn.load(path)
    assert list(state_dict(tmp_path / "plain.ckpt")) == ["weight"]


def test_weights_that_do_not_fit_their_description_are_refused(tmp_path: Path) -> None:
    model = small()
    path = tmp_path / "model.safetensors"
    write_safetensors(path, model, {"classes": ["a"] * 5})
    weights = model.state_dict()
    weights["score_fr.weight"] = torch.zeros(6, 8, 1, 1)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({k: v.contiguous() for k, v in weights.items()}, path, metadata)
    with pytest.raises(CheckpointError, match="do not fit its description"):
        fcn.load(path)
