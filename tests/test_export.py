"""Exported nets in their own runtimes: what they compute, what they say of themselves."""

import copy
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from torch import nn
from torch.nn import functional

from fcn.checks import scripts as checks
from fcn.checks.scripts import EXPORT_SUFFIX, check_export
from fcn.config import REPOSITORY, ConfigError, ExportConfig
from fcn.inference import checkpoint
from fcn.inference import export as room
from fcn.inference.export import ExportError, export
from fcn.models.fcn import FCN
from fcn.models.upsampling import UPSAMPLINGS
from tests.conftest import refusal
from tests.test_checkpoint import Malicious, lightning_file
from tests.test_fcn import small, with_random_scores

CLASSES = ["background", "cat", "dog", "horse", "cow"]
GRID = [(33, 47), (64, 64), (97, 131), (225, 300), (375, 500), (513, 401), (700, 900)]


def random_net(**arguments: object) -> FCN:
    """A net in which everything matters: scores, kernels and norms drawn, every class seen."""
    model = with_random_scores(small(**arguments)).eval()
    for name, parameter in model.named_parameters():
        if name.startswith("upscore"):
            parameter.data += 0.02 * torch.randn_like(parameter)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        model.get_submodule("score_fr").bias -= model(pictures(2, 128, 160)).mean((0, 2, 3))
    return model


def pictures(batch: int, height: int, width: int) -> torch.Tensor:
    """Random colours, coarse and fine."""
    coarse = functional.interpolate(torch.rand(batch, 3, 3, 4), (height, width), mode="bilinear")
    return (coarse + torch.rand(batch, 3, height, width)) / 2


def exported(folder: Path, model: FCN, **settings: Any) -> Path:
    """The file that the settings ask for, of this model."""
    source = folder / "model.safetensors"
    checkpoint.write_safetensors(source, model, {"classes": CLASSES})
    output = folder / f"net{EXPORT_SUFFIX[settings['format']]}"
    cfg = ExportConfig(checkpoint=str(source), output=str(output), **settings)
    export(cfg, Console(file=io.StringIO()))
    return output


def opened(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """The file in its own runtime, as a user opens it."""
    if path.suffix == ".safetensors":
        return checkpoint.load(path)
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


@torch.inference_mode()
def worst(model: FCN, path: Path, sizes: list[tuple[int, int]]) -> tuple[float, float]:
    """The largest difference relative to the scores' range, and the least agreement of labels."""
    run, differences, labels, seen = opened(path), [], [], set()
    for height, width in sizes:
        for batch in (1, 3):
            image = pictures(batch, height, width)
            score = model(image)
            output = run(image)
            assert output.shape == score.shape
            spread = score.max() - score.min()
            assert spread > 0.01
            seen |= set(score.argmax(1).unique().tolist())
            differences.append(float((output - score).abs().max() / spread))
            labels.append(float((output.argmax(1) == score.argmax(1)).float().mean()))
    assert len(seen) > 2
    return max(differences), min(labels)


def check(folder: Path, kind: str, sizes: list[tuple[int, int]], **arguments: object) -> None:
    """An export agrees with its model to a relative 1e-4, and in 99.99 % of the labels."""
    model = random_net(**arguments)
    difference, labels = worst(model, exported(folder, model, format=kind), sizes)
    print(f"{kind} {arguments}: difference {difference:.2g}, labels {100 * labels:.4f} %")
    assert difference <= 1e-4
    assert labels >= 0.9999


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
@pytest.mark.parametrize("padding", ["aligned", 100])
@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
@pytest.mark.slow
def test_every_net_is_the_same_at_every_size(
    tmp_path: Path, upsampling: str, stride: int, padding: int | str, kind: str
) -> None:
    check(tmp_path, kind, GRID, upsampling=upsampling, stride=stride, padding=padding)


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.slow
def test_every_upsampling_is_the_same(tmp_path: Path, upsampling: str, kind: str) -> None:
    check(tmp_path, kind, GRID[:4], upsampling=upsampling, backbone="vgg11_bn")


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("onnx", {"upsampling": "nearest_conv", "padding": 100, "backbone": "mini"}),
        ("torch_export", {"upsampling": "cvpr15", "skip_scales": {"pool4": 0.5}}),
    ],
)
def test_an_export_scores_as_its_model_does(
    tmp_path: Path, kind: str, arguments: dict[str, object]
) -> None:
    check(tmp_path, kind, GRID[:3], **arguments)


class Labeller:
    """A checkpoint, exported as uint8 in, labels out where the format has a graph to do that."""

    def __init__(self, folder: Path, kind: str) -> None:
        torch.manual_seed(0)
        self.model = random_net(stride=16, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
        self.source = lightning_file(folder / "best.ckpt", self.model)
        content = torch.load(self.source, weights_only=True)
        content["callbacks"] = {"History": {"loss": [], "mean_iou": [(10, 0.1), (20, 0.25)]}}
        torch.save(content, self.source)
        self.path = folder / "new" / f"net{EXPORT_SUFFIX[kind]}"
        cfg = ExportConfig(checkpoint=str(self.source), format=kind, output=str(self.path))
        if kind != "safetensors":
            cfg.input, cfg.argmax = "uint8", True
        console = Console(file=io.StringIO(), width=120)
        self.agreements = export(cfg, console)
        self.printed = console.file.getvalue()


@pytest.fixture(scope="module", params=EXPORT_SUFFIX)
def labeller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Labeller:
    return Labeller(tmp_path_factory.mktemp("labeller"), request.param)


def test_bytes_in_labels_out(labeller: Labeller) -> None:
    pixels = (pictures(2, 70, 90) * 255).to(torch.uint8)
    expected = labeller.model(pixels / 255).argmax(1)
    assert len(expected.unique()) > 2
    run = opened(labeller.path)
    if labeller.path.suffix == ".safetensors":
        labels = run(pixels / 255).argmax(1)
    else:
        labels = run(pixels)
        assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), expected)
    if labeller.path.suffix == ".pt2":
        with pytest.raises(AssertionError, match=">= 33"):  # below its smallest size: no answer
            run(pixels[..., :20, :])
    if labeller.path.suffix == ".onnx":
        onnx.checker.check_model(onnx.load(labeller.path))
        session = onnxruntime.InferenceSession(labeller.path)
        (image,), (output,) = session.get_inputs(), session.get_outputs()
        assert (image.name, image.type) == ("image", "tensor(uint8)")
        assert image.shape == ["batch", 3, "height", "width"]
        assert (output.name, output.shape) == ("labels", ["batch", "height", "width"])


def about(path: Path) -> dict[str, Any]:
    """What a file says of itself, read as its users would."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            found = file.metadata()
    elif path.suffix == ".pt2":
        torch.export.load(path, extra_files=(found := {"format": "", "about": ""}))
    else:
        found = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert found["format"] == "fcn-segmentation"
    return json.loads(found["about"])


def test_a_file_says_what_it_is(labeller: Labeller) -> None:
    found = about(labeller.path)
    assert found["classes"] == ["a", "b", "c", "d", "e"]
    assert found["model"] == labeller.model.arguments
    assert found["palette"] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert found["normalisation"]["mean"] == pytest.approx([0.1, 0.2, 0.3])
    assert found["normalisation"]["std"] == pytest.approx([0.4, 0.5, 0.6])
    assert found["validation"] == {"step": 20, "mean_iou": 0.25}
    digest = hashlib.sha256(labeller.source.read_bytes()).hexdigest()
    assert found["checkpoint"] == {"file": "best.ckpt", "sha256": digest}
    assert str(REPOSITORY).encode() not in labeller.path.read_bytes()


def test_an_export_is_checked_and_says_so(labeller: Labeller) -> None:
    assert [path.name for path in labeller.path.parent.iterdir()] == [labeller.path.name]
    shapes = {found.shape for found in labeller.agreements}
    assert {(1, 3, 33, 47), (2, 3, 97, 131), (2, 3, 225, 320)} < shapes
    assert ((1, 3, 1, 1) in shapes) == (labeller.path.suffix != ".pt2")
    assert min(found.labels for found in labeller.agreements) >= 0.999
    assert "2 x 3 x 225 x 320" in labeller.printed
    megabytes = f"{labeller.path.stat().st_size / 1e6:.1f} MB"
    assert labeller.printed.strip().endswith(f"{megabytes}, agrees with the model")


def nudged_onnx(path: Path, model: FCN) -> None:
    """A real export of the model, one of its weights changed."""
    room.write(path, "onnx", room.Exported(model, argmax=True), {}, uint8=False)
    graph = onnx.load(path)
    weight = next(w for w in graph.graph.initializer if w.name.endswith("score_fr.weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, path)


def nudged_weights(path: Path, model: FCN) -> None:
    model.get_submodule("score_fr").weight.data[0, 0] += 0.01
    checkpoint.write_safetensors(path, model, {"classes": CLASSES})


def not_a_number(path: Path, model: FCN) -> None:
    model.get_submodule("score_fr").bias.data[0] = torch.nan
    checkpoint.write_safetensors(path, model, {"classes": CLASSES})


@pytest.mark.parametrize("damaged", [nudged_onnx, nudged_weights, not_a_number])
def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: Callable[[Path, FCN], None]
) -> None:
    model = random_net()
    kind = "onnx" if damaged is nudged_onnx else "safetensors"
    (output := tmp_path / f"net{EXPORT_SUFFIX[kind]}").write_text("an older export")
    damaged(tmp_path / "damaged", copy.deepcopy(model))
    monkeypatch.setattr(
        room, "write", lambda path, *_, **__: shutil.move(path.parent / "damaged", path)
    )
    with pytest.raises(ExportError, match=r"net\.\w+: not written.*of the scores' range"):
        exported(tmp_path, model, format=kind, argmax=kind == "onnx")
    assert output.read_text() == "an older export"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", output.name]


def test_missing_packages_are_named_with_the_way_to_get_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "ONNX_PACKAGES", ("onnx", "no_such_runtime"))
    words = r'format=onnx needs no_such_runtime: pip install -e "\.\[export\]"'
    with pytest.raises(ConfigError, match=words):
        check_export(ExportConfig(checkpoint="a.ckpt", output="a.onnx"))
    check_export(ExportConfig(checkpoint="a.ckpt", output="a.pt2", format="torch_export"))


def test_what_is_no_checkpoint_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target, output = tmp_path / "created", tmp_path / "net.onnx"
    torch.save({"state_dict": Malicious(target)}, tmp_path / "evil.ckpt")
    whole = lightning_file(tmp_path / "cut.ckpt", small()).read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    for name in ("evil.ckpt", "cut.ckpt"):
        error = refusal(capsys, "export", f"checkpoint={tmp_path / name}", f"output={output}")
        assert f"{name}: damaged, or not a checkpoint" in error
    assert not target.exists()
    assert not output.exists()
