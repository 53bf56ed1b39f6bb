"""Training from ImageNet features: frozen stages, a new head, new layers fitted to the features."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fcn
from fcn import checkpoint
from fcn.checkpoint import initialise
from fcn.config import BackboneConfig, ModelConfig, RecipeConfig
from fcn.dataset_info import DatasetInfo
from fcn.models.fcn import FCN
from fcn.models.fcn import MEAN as IMAGENET
from fcn.models.surgery import Report, _torchvision_names, fit_to_features, transplant
from fcn.training.optim import parameter_groups
from fcn.training.plan import resolve
from fcn.training.run import initial_model, train
from tests.conftest import ALONE, QUIET, Run, TinyVOC, small

pytestmark = pytest.mark.usefixtures("no_pictures")
CLASSES = ["a", "b", "c", "d", "e"]
MEAN, STD = (0.48502, 0.45795, 0.4076), (1 / 255, 1 / 255, 1 / 255)


def features(size: float = 255, width: int = 4) -> dict[str, Tensor]:
    """Random convolutions under torchvision's names, for images of 0..255.

    Args:
        size: of what the first layer is made for, relative to images in [0, 1].
        width: channels of the first stage.
    """
    model = small(width=width)
    for layer in model.backbone:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.bias, std=0.02)
    model.get_parameter("backbone.conv1_1.weight").data *= 10 / size
    names = _torchvision_names(model)
    tensors = model.state_dict()
    return {theirs: tensors[own].clone() for own, theirs in names.items() if "backbone" in own}


def write(path: Path, std: tuple[float, ...] = STD, **arguments: Any) -> Path:
    """Write such features with their normalisation as a file like torchvision's."""
    save_file(features(**arguments), path, {"mean": json.dumps(MEAN), "std": json.dumps(std)})
    return path


def rms(tensor: Tensor) -> float:
    return float(tensor.detach().square().mean().sqrt())


def images() -> list[Tensor]:
    return [torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8) for _ in range(3)]


@pytest.mark.parametrize("classifier", ["absent", "nan", "another width"])
def test_features_alone_need_a_new_head(classifier: str) -> None:
    """torchvision's IMAGENET1K_FEATURES has NaN in place of its classifier."""
    source = features()
    if classifier != "absent":
        value = torch.nan if classifier == "nan" else 1.0
        source["classifier.0.weight"] = torch.full((16, 32 * 49), value)
    with pytest.raises(ValueError, match=r"backbone\.head_weights=null"):
        transplant(small(), source)
    model = small()
    fc6 = model.get_parameter("head.fc6.weight").clone()
    report = transplant(model, source, new_head=True)
    assert torch.equal(model.get_parameter("head.fc6.weight"), fc6)
    assert torch.equal(model.get_parameter("backbone.conv5_3.weight"), source["features.28.weight"])
    assert "head.fc6.weight" in report.with_status("initialised")


@pytest.mark.parametrize("kind", ["metadata", "tensors"])
def test_normalisation_comes_with_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "features.safetensors"
    if kind == "metadata":
        write(path)
    else:
        path = path.with_suffix(".pth")
        torch.save(features() | checkpoint._normalisation(MEAN, STD), path)
    model = small()
    report = initialise(model, None, str(path), CLASSES, new_head=True)
    assert report is not None
    assert {"mean", "std"} <= set(report.with_status("copied"))
    assert model.mean.flatten().tolist() == pytest.approx(MEAN)
    assert model.std.flatten().tolist() == pytest.approx(STD)


def test_bands_take_the_filters_and_the_normalisation_of_their_names(tmp_path: Path) -> None:
    """From a file of RGB with its mean or without, and from a checkpoint in either way."""
    bands = ["nir", "Red", "green", "blue"]
    path = write(tmp_path / "rgb.safetensors")
    for mean in (MEAN, IMAGENET):
        source, model = load_file(path), small(in_channels=4)
        report = initialise(model, None, str(path), CLASSES, bands=bands, new_head=True)
        assert report is not None
        assert "Red, green, blue by name; nir: the mean" in [entry.note for entry in report.tensors]
        assert torch.equal(model.backbone.conv1_1.weight[:, 1:], source["features.0.weight"])
        expected = [sum(mean) / 3, *mean]
        assert model.mean.flatten().tolist() == pytest.approx(expected)
        save_file(source, path)

    info = checkpoint.info_metadata(DatasetInfo(CLASSES, bands=bands))
    checkpoint.write_safetensors(own := tmp_path / "own.safetensors", model, info)
    for start in ((checkpoint.read(own), None), (None, str(own))):
        other = small(in_channels=2)
        initialise(other, *start, CLASSES, bands=["green", "NIR"])
        assert torch.equal(other.mean, model.mean[[2, 0]])
        assert torch.equal(
            other.backbone.conv1_1.weight, 2 * model.backbone.conv1_1.weight[:, [2, 0]]
        )


def test_a_run_starts_with_the_filters_of_its_bands(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    cfg, path = tiny_voc.training(), write(tmp_path / "rgb.safetensors")
    cfg.backbone = BackboneConfig("vgg16", 4, 8, weights=str(path), head_weights=None)
    cfg.data.bands = ["blue", "green", "red"]
    model, _ = initial_model(resolve(cfg, tmp_path / "run", ALONE, QUIET), QUIET)
    rgb = load_file(path)["features.0.weight"]
    assert torch.equal(model.backbone.conv1_1.weight, rgb.flip(1))
    assert model.mean.flatten().tolist() == pytest.approx(MEAN[::-1])


def fitted(source: dict[str, Tensor]) -> tuple[FCN, Report]:
    torch.manual_seed(1)
    model = small()
    report = transplant(model, source | checkpoint._normalisation(MEAN, STD), new_head=True)
    fit_to_features(model, images(), report)
    return model, report


def test_new_layers_read_features_of_unit_size() -> None:
    model, report = fitted(features())
    pools = [model.backbone(model.normalise(image[None])) for image in images()]
    torch.manual_seed(1)
    plain = small()
    for index, pool in enumerate(("pool3", "pool4")):
        scaled = model.skip_scale(pool) * torch.cat([p[index] for p in pools])
        assert rms(scaled) == pytest.approx(1, rel=0.2)  # other random images
    size = plain.head.fc6.weight.std() / model.head.fc6.weight.std()
    assert size.item() == pytest.approx(rms(torch.cat([p[2] for p in pools])), rel=0.2)
    notes = {tensor.name: tensor.note for tensor in report.tensors}
    assert "pool4" in notes["score_pool4.weight"]
    assert "pool5" in notes["head.fc6.weight"]


def test_the_size_of_features_does_not_change_what_new_layers_see() -> None:
    """The same features times 100: fc6 and the scaled skips stay the same."""
    source = {k: v for k, v in features().items() if k.endswith("weight")}
    source |= {k.replace("weight", "bias"): torch.zeros(len(v)) for k, v in source.items()}
    larger = source | {"features.0.weight": 100 * source["features.0.weight"]}
    (one, _), (other, _) = fitted(source), fitted(larger)
    image = images()[0][None]
    for a, b in zip(*(m.backbone(m.normalise(image)) for m in (one, other)), strict=True):
        torch.testing.assert_close(100 * a, b, rtol=1e-3, atol=1e-3 * rms(b))
    fc6 = [m.head[0](m.backbone(m.normalise(image))[2]) for m in (one, other)]
    torch.testing.assert_close(*fc6, rtol=1e-3, atol=1e-3 * rms(fc6[0]))
    for pool in ("pool3", "pool4"):
        assert one.skip_scale(pool) == pytest.approx(100 * other.skip_scale(pool), rel=1e-4)


@pytest.mark.parametrize(("std", "word"), [(1 / 255, ""), (0.226, "weak"), (7e-5, "strong")])
def test_a_wrong_normalisation_is_noticed(tmp_path: Path, std: float, word: str) -> None:
    path = write(tmp_path / "features.safetensors", (std,) * 3)
    report = initialise(small(), None, str(path), CLASSES, new_head=True)
    assert report is not None
    assert bool(report.warning) == bool(word)
    assert word in report.warning


def test_scores_keep_the_scales_they_were_learned_with(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    """16s, interrupted and resumed, then 8s: one scale measured for pool4, one for pool3."""
    cfg = tiny_voc.training()
    cfg.backbone = BackboneConfig(
        name="vgg16",
        width=4,
        head_width=8,
        weights=str(write(tmp_path / "features.safetensors")),
        head_weights=None,
    )
    cfg.model = ModelConfig(stride=16)
    cfg.trainer["max_steps"] = 3
    coarse = tmp_path / "coarse"
    train(cfg, coarse, Console(quiet=True))
    scales = fcn.load(coarse).arguments["skip_scales"]
    assert set(scales) == {"pool4"}
    cfg.trainer["max_steps"] = 5
    train(replace(cfg, resume="last"), coarse, Console(quiet=True))
    assert fcn.load(coarse).arguments["skip_scales"] == scales
    cfg.model = ModelConfig(init_from=str(coarse))
    train(cfg, tmp_path / "fine", Console(quiet=True))
    finer = fcn.load(tmp_path / "fine").arguments["skip_scales"]
    assert set(finer) == {"pool4", "pool3"}
    assert finer["pool4"] == scales["pool4"]


def test_frozen_stages_stay_as_they_are(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    """Bit for bit, batch norm's statistics too; no gradient is computed and no state kept."""
    cfg, start = tiny_voc.training(), tmp_path / "start.safetensors"
    source = small(backbone="vgg16_bn", num_classes=3)
    checkpoint.write_safetensors(start, source, {"classes": list(tiny_voc.classes)})
    cfg.backbone = BackboneConfig(name="vgg16_bn", width=4, head_width=8, freeze="conv3")
    cfg.model.init_from = str(start)
    train(cfg, tmp_path / "run", Console(quiet=True))
    trained = fcn.load(tmp_path / "run").state_dict()
    changed = {k for k, v in source.state_dict().items() if not torch.equal(v, trained[k])}
    frozen = {k for k in trained if re.match(r"backbone\.(conv|bn)[123]_", k)}
    assert not changed & frozen
    assert {"backbone.conv4_1.weight", "head.fc6.weight"} <= changed
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    trained_names = [k for k, _ in source.named_parameters() if k not in frozen]
    assert len(saved["optimizer_states"][0]["state"]) == len(trained_names)


def test_nothing_is_propagated_back_into_frozen_stages() -> None:
    model = small()
    model.backbone.freeze("conv3")
    pool3, pool4, _ = model.backbone(model.normalise(torch.rand(1, 3, 64, 64)))
    assert not pool3.requires_grad
    assert pool4.requires_grad


def test_a_backbone_learns_at_its_own_rate() -> None:
    model = small()
    groups = parameter_groups(model, RecipeConfig(backbone_lr_factor=0.1), 1e-3)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        factor = (0.1 if name.startswith("backbone.") else 1) * (2 if name.endswith("bias") else 1)
        assert rates[id(parameter)] == pytest.approx(1e-3 * factor), name


def test_a_wrong_normalisation_is_printed_before_training(
    tiny_voc: TinyVOC, tmp_path: Path, command: Run, capsys: Any
) -> None:
    path = write(tmp_path / "features.safetensors", (0.226, 0.226, 0.226))
    run = [*tiny_voc.overrides(), "recipe=finetune", "backbone=vgg16", f"backbone.weights={path}"]
    small_run = ["backbone.width=4", "backbone.head_width=8", "trainer.max_steps=1"]
    command("train", *run, *small_run, "recipe.crop=32", f"hydra.run.dir={tmp_path / 'run'}")
    printed = " ".join(capsys.readouterr().out.split())
    assert "do not fit its weights" in printed
    assert "of them frozen" in printed
