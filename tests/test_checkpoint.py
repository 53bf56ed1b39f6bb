"""Checkpoints and first weights: read back as written, and named where they cannot be used."""

import os
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torchvision.models import VGG16_Weights

import fcn
from fcn.checkpoint import find, initialise, read, write_safetensors
from fcn.errors import CheckpointError, ConfigError, UserError
from fcn.models.fcn import FCN
from tests.conftest import Patch, small, with_random_scores

CLASSES = ["a", "b", "c", "d", "e"]


def write(path: Path, model: FCN, classes: list[str] = CLASSES) -> Path:
    """A file of this project: .safetensors, or .ckpt as Lightning writes a SegmentationModule."""
    about = {"model": model.arguments, "classes": classes}
    if path.suffix == ".safetensors":
        write_safetensors(path, model, about)
    else:
        state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save({"state_dict": state, "hyper_parameters": {"about": about}}, path)
    return path


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_a_loaded_model_scores_as_it_did(tmp_path: Path, kind: str) -> None:
    model = with_random_scores(small(stride=16, upsampling="learned", padding=100)).eval()
    path = write(tmp_path / f"model.{kind}", model)
    loaded = fcn.load(path)
    image = torch.rand(1, 3, 40, 50)
    assert torch.equal(loaded(image), model(image))
    assert not loaded.training
    assert read(path).classes == CLASSES


def test_a_run_folder_stands_for_its_best_model(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    best = write(tmp_path / "checkpoints" / "best.ckpt", small())
    assert find(tmp_path) == best
    final = write(tmp_path / "model.safetensors", small())
    assert find(tmp_path) == final
    with pytest.raises(CheckpointError, match=r"best\.ckpt"):
        find(tmp_path / "checkpoints")


class Malicious:
    """A pickle that runs a command when it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


def test_a_pickle_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    target = tmp_path / "created"
    torch.save({"state_dict": Malicious(target)}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt"):
        fcn.load(tmp_path / "evil.ckpt")
    assert not target.exists()


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, kind: str) -> None:
    """Cut short at any length; of a safetensors file also with a changed header."""
    path = write(tmp_path / f"model.{kind}", small(num_classes=2), ["a", "b"])
    whole = path.read_bytes()
    for share in (0, 0.001, 0.3, 0.7, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CheckpointError, match=path.name):
            fcn.load(path)
    path.write_bytes(whole[:20] + bytes([whole[20] ^ 255]) + whole[21:])
    if kind == "safetensors":
        with pytest.raises(CheckpointError, match=path.name):
            fcn.load(path)


OF_OTHERS: list[Any] = [
    [1, 2],
    {"state_dict": [1, 2]},
    {"state_dict": {}, "hyper_parameters": [1]},
    {"state_dict": {}, "hyper_parameters": {"about": 3}},
]


def test_files_that_are_not_ours_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        fcn.load(tmp_path / "missing.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    save_file({"weight": torch.ones(1)}, tmp_path / "plain.safetensors")
    for number, content in enumerate(OF_OTHERS):
        torch.save(content, tmp_path / f"{number}.ckpt")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(CheckpointError, match=path.name):
            fcn.load(path)


def test_weights_that_do_not_fit_their_description_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", small())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = small().state_dict() | {"score_fr.weight": torch.zeros(6, 8, 1, 1)}
    save_file({k: v.contiguous() for k, v in weights.items()}, path, metadata)
    with pytest.raises(CheckpointError, match="description"):
        fcn.load(path)


def trunk() -> dict[str, torch.Tensor]:
    """The weights of a backbone and head alone."""
    return {k: v for k, v in small().state_dict().items() if k.startswith(("backbone", "head"))}


def test_a_model_may_start_from_a_file(tmp_path: Path) -> None:
    assert initialise(small(), None, None, CLASSES) is None
    torch.save(source := trunk(), tmp_path / "vgg16.pth")
    model = small()
    report = initialise(model, None, str(tmp_path / "vgg16.pth"), CLASSES)
    assert report is not None
    assert report.with_status("copied") == list(source)
    assert all(torch.equal(model.state_dict()[name], source[name]) for name in source)


@pytest.mark.parametrize("name", ["imagenet", "IMAGENET1K_FEATURES"])
def test_weights_by_name_bring_their_normalisation(monkeypatch: Patch, name: str) -> None:
    """The names and transforms are torchvision's; only the download is replaced."""
    asked = []

    def get_state_dict(self: Any, **options: Any) -> dict[str, torch.Tensor]:
        asked.append((self, options["check_hash"]))
        return trunk()

    monkeypatch.setattr(VGG16_Weights, "get_state_dict", get_state_dict)
    model = small()
    initialise(model, None, name, CLASSES)
    weights = VGG16_Weights["IMAGENET1K_V1" if name == "imagenet" else name]
    assert asked == [(weights, True)]
    assert model.mean.flatten().tolist() == pytest.approx(weights.transforms().mean)
    assert model.std.flatten().tolist() == pytest.approx(weights.transforms().std)


def test_without_a_network_the_message_says_which_file_goes_where(
    monkeypatch: Patch, tmp_path: Path
) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(UserError) as caught:
        initialise(small(), None, "imagenet", CLASSES)
    assert f"{tmp_path}/hub/checkpoints/vgg16-" in str(caught.value)
    with pytest.raises(ConfigError, match="mini"):
        initialise(small(backbone="mini"), None, "imagenet", CLASSES)


def test_a_model_starts_from_a_coarser_one_of_the_same_classes(tmp_path: Path) -> None:
    coarse = with_random_scores(small(stride=32, mean=(0.1, 0.2, 0.3))).eval()
    path = str(write(tmp_path / "coarse.safetensors", coarse))
    fine = small(stride=16)
    initialise(fine, read(path), "imagenet", CLASSES)
    assert torch.equal(fine.score_fr.weight, coarse.score_fr.weight)
    assert torch.equal(fine.mean, coarse.mean)

    others = small(stride=32)  # as many classes, but others: nothing is inherited
    report = initialise(others, read(path), None, ["v", "w", "x", "y", "z"])
    assert report is not None
    assert "score_fr.weight" in report.with_status("initialised")
    assert not others.score_fr.weight.any()


def test_another_backbone_is_named_with_this_ones(tmp_path: Path) -> None:
    path = str(write(tmp_path / "mini.safetensors", small(backbone="mini")))
    with pytest.raises(CheckpointError, match=r"mini.*vgg11"):
        initialise(small(backbone="vgg11"), read(path), None, CLASSES)


def test_a_backbone_brings_no_scores_whatever_its_classes(tmp_path: Path) -> None:
    """Not even of as many classes: their names, or the scales of the skips, may be others."""
    source = with_random_scores(small(upsampling="learned"))
    for path in (tmp_path / "m.safetensors", tmp_path / "m.ckpt"):
        write(path, source)
        for classes in (CLASSES, list("vwxyz")):
            model = small(upsampling="learned")
            start = model.upscore2.weight.clone()
            report = initialise(model, None, str(path), classes)
            assert report is not None
            assert torch.equal(model.head.fc6.weight, source.head.fc6.weight)
            assert not model.score_fr.weight.any()
            assert torch.equal(model.upscore2.weight, start)
            assert "score_fr.weight" in report.with_status("initialised")
            assert "score_fr.weight" in report.with_status("left over")


@pytest.mark.parametrize(
    "classes", [["a", "b\nc"], ["a", "b\x1b[2J"], ["a", "a"], ["a", 1], "ab", None]
)
def test_class_names_that_no_data_set_can_have_are_refused(tmp_path: Path, classes: Any) -> None:
    path = write(tmp_path / "m.safetensors", small(num_classes=2), classes)
    with pytest.raises(CheckpointError, match="class"):
        read(path)
    unusual = ["half\u00a0space", "full\u3000space"]  # not printable by Python's rules
    assert read(write(path, small(num_classes=2), unusual)).classes == unusual


def test_a_model_scores_classes_in_the_order_asked_for(tmp_path: Path) -> None:
    model = with_random_scores(small(stride=8, upsampling="nonlinear")).eval()
    trained = read(write(tmp_path / "m.safetensors", model))
    order = ["c", "a", "e", "b", "d"]
    image = torch.rand(1, 3, 40, 50)
    index = [CLASSES.index(name) for name in order]
    torch.testing.assert_close(trained.model(order)(image), model(image)[:, index])
    labels = trained.labels_in(order, "data")
    assert labels is not None
    assert [order[k] for k in labels] == CLASSES
    assert trained.labels_in(CLASSES, "data") is None
