"""The Hugging Face layout, offline: folders are local, and the client is replaced."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fcn
from fcn.checkpoint import write_safetensors
from tests.conftest import random_model

METRICS = {
    "mean_iou": 0.5,
    "pixel_accuracy": 0.75,
    "mean_accuracy": 0.6,
    "frequency_weighted_iou": 0.7,
    "protocol": {
        "data": "tiny",
        "split": "val",
        "images": 2,
        "size": "original",
        "precision": "32-true",
    },
}


@pytest.fixture
def folder(tmp_path: Path, command: Callable[..., Any]) -> Path:
    """A model exported in the Hub's layout."""
    about = {"classes": list("abcde"), "data": {"name": "tiny"}, "metrics": METRICS}
    write_safetensors(tmp_path / "m.safetensors", random_model(stride=16), about)
    command(
        "export", f"checkpoint={tmp_path}/m.safetensors", "format=hub", f"output={tmp_path}/hub"
    )
    return tmp_path / "hub"


def test_a_hub_folder_loads_as_the_model_and_its_card_has_the_numbers(folder: Path) -> None:
    image = torch.rand(1, 3, 40, 40)
    expected = fcn.load(folder.parent / "m.safetensors")(image)
    assert torch.equal(fcn.load(folder)(image), expected)
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["stride"] == 16
    assert config["classes"] == list("abcde")
    card = (folder / "README.md").read_text()
    assert "FCN-16s on tiny" in card
    assert "| mean iou | 50.00 |" in card
    assert "tiny val (2 images)" in card
    assert "license" not in card  # the weights are not ours


def test_a_licence_stands_in_the_card_if_given(folder: Path, command: Callable[..., Any]) -> None:
    again = [f"checkpoint={folder}", "format=hub", f"output={folder.parent}/again"]
    command("export", *again, "licence=cc-by-4.0")
    assert "\nlicense: cc-by-4.0\n---" in (folder.parent / "again" / "README.md").read_text()


def test_push_uploads_the_folder_and_load_fetches_it(
    folder: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: dict[str, Any] = {}
    api = SimpleNamespace(
        create_repo=lambda repository, exist_ok: f"https://hub/{repository}",
        upload_folder=lambda **given: uploaded.update(given),
    )
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    again = [f"checkpoint={folder}", "format=hub", f"output={folder.parent}/again"]
    command("export", *again, "push=me/fcn")
    assert uploaded == {"repo_id": "me/fcn", "folder_path": folder.parent / "again"}

    monkeypatch.setattr(hub, "snapshot_download", {"me/fcn": str(folder)}.__getitem__)
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(fcn.load("hf://me/fcn")(image), fcn.load(folder)(image))
