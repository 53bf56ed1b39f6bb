"""ONNX files in float16 and int8: what they compute, what stays float32, and what is said of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fcn.checkpoint import write_safetensors
from fcn.config import ExportConfig
from fcn.inference import export, reduced_precision
from fcn.inference.reduced_precision import open_session
from fcn.models.fcn import FCN
from fcn.models.upsampling import UPSAMPLINGS
from fcn.output import make_console
from tests.conftest import TinyVOC, random_model

OFF = {"float16": 2e-3, "int8": 0.06}  # of the scores' range, on average and with a margin


class Exporter:
    """Exports a model whose own labels are the ground truth of a small data set."""

    def __init__(self, folder: Path, data: TinyVOC, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.data, self.capsys = folder, data, capsys

    def __call__(self, model: FCN, **settings: Any) -> tuple[Path, dict[str, Any], str]:
        """The file, what the .json beside it says, and what was printed."""
        for name in self.data.ids["val"]:
            image = torch.from_numpy(np.array(Image.open(self.data.image(name)))).permute(2, 0, 1)
            with torch.inference_mode():
                labels = model(image[None]).argmax(1)[0].byte()
            Image.fromarray(labels.numpy()).save(self.data.mask(name))
        source, output = self.folder / "model.safetensors", self.folder / "model.onnx"
        write_safetensors(source, model, {"classes": list(self.data.classes)})
        cfg = ExportConfig(
            checkpoint=str(source),
            output=str(output),
            data=self.data.config(),
            **{"calibration": 4, "overwrite": True} | settings,
        )
        self.capsys.readouterr()
        export.main(cfg, self.folder, make_console())
        found = json.loads(output.with_suffix(".json").read_text())
        return output, found, self.capsys.readouterr().out


@pytest.fixture
def write(
    tmp_path: Path,
    tiny_voc: TinyVOC,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Exporter:
    """Random networks lose more than trained ones, which is no reason to leave layers out."""
    monkeypatch.setattr(reduced_precision, "TOLERATED", 0.5)
    return Exporter(tmp_path, tiny_voc, capsys)


def blobs(height: int, width: int) -> Tensor:
    return F.interpolate(torch.rand(1, 3, 3, 4), (height, width), mode="bilinear")


def weights(path: Path) -> dict[str, np.dtype[Any]]:
    """The type of each layer's weight in a file; int8 ones stand under another name."""
    found = {t.name: numpy_helper.to_array(t).dtype for t in onnx.load(path).graph.initializer}
    return {
        name.split(".")[-2]: dtype
        for name, dtype in found.items()
        if name.endswith((".weight", ".weight_quantized"))
    }


def average_difference(path: Path, model: FCN, size: tuple[int, int]) -> float:
    """How far a file's scores are off on average, as a fraction of their range."""
    image = blobs(*size)
    with torch.inference_mode():
        score = model(image)
    result = open_session(path).run(None, {"image": image.numpy()})[0]
    assert score.std() > 1e-3
    off = np.abs(result - score.numpy()).mean()
    return float(off / (score.max() - score.min()))


@pytest.mark.parametrize("precision", OFF)
def test_convolutions_are_converted_and_the_cost_is_written_down(
    write: Exporter, precision: str
) -> None:
    model = random_model(num_classes=3, backbone="mini")
    path, found, printed = write(model, precision=precision)
    onnx.checker.check_model(onnx.load(path))
    kinds = {"float16": np.float16, "int8": np.int8}
    assert set(weights(path).values()) == {np.dtype(kinds[precision])}
    for size in [(1, 1), (33, 47), (97, 131)]:
        assert average_difference(path, model, size) < OFF[precision]
    assert found["before"]["mean_iou"] == 1  # the ground truth is what the model predicts
    assert found["after"]["mb"] == path.stat().st_size / 1e6 < found["before"]["mb"]
    assert (found["images"], found["calibration"]) == (2, 4 if precision == "int8" else 0)
    session, counts = open_session(path), np.zeros((3, 3))
    for name in write.data.ids["val"]:
        image = np.array(Image.open(write.data.image(name)), np.float32).transpose(2, 0, 1) / 255
        labels = session.run(None, {"image": image[None]})[0][0].argmax(0)
        target = np.array(Image.open(write.data.mask(name)))
        np.add.at(counts, (target, labels), 1)
    iou = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
    assert found["after"]["mean_iou"] == pytest.approx(iou.mean())
    assert [entry["after"] for entry in found["classes"]] == pytest.approx(iou)
    assert f"mean IoU {100 * iou.mean():.2f} % instead of 100.00" in printed


def test_a_large_image_is_predicted_in_tiles_as_it_is_whole(
    write: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(num_classes=3, backbone="mini")
    path, _, _ = write(model, precision="float16")
    side = 2 * model.reach + 2 * model.period + 1
    image, session = (blobs(side + 70, side + 50)[0] * 255).byte(), open_session(path)
    cfg = ExportConfig("", "")
    expected = reduced_precision.predict_tiles(session, image, cfg, model)
    sizes, run = [], session.run
    monkeypatch.setattr(reduced_precision, "TILE", side)
    monkeypatch.setattr(session, "run", lambda *a: sizes.append(a[1]["image"].shape) or run(*a))
    found = reduced_precision.predict_tiles(session, image, cfg, model)
    assert max(max(size[2:]) for size in sizes) <= side
    assert len(np.unique(expected)) > 1
    assert (found == expected).mean() > 0.999  # sums are rounded otherwise in tiles


def test_a_file_of_one_size_of_bytes_to_labels_with_a_layer_in_float32_is_compared_too(
    write: Exporter,
) -> None:
    model = random_model(num_classes=3)
    settings = {"size": [50, 71], "input": "uint8", "argmax": True, "keep": ["fc6"]}
    path, found, _ = write(model, precision="int8", **settings)
    assert (found["size"], found["keep"]) == ([50, 71], ["fc6"])
    types = weights(path)
    assert types.pop("fc6") == np.float32
    assert set(types.values()) == {np.dtype(np.int8)}
    image = (blobs(50, 71) * 255).byte()
    with torch.inference_mode():
        expected = model(image).argmax(1).numpy()
    labels = open_session(path).run(None, {"image": image.numpy()})[0]
    assert len(np.unique(expected)) > 1
    assert (labels == expected).mean() > 0.9
    assert found["before"]["mean_iou"] > 0.5  # images are cut and padded, unlike the ground truth


def test_the_layer_that_costs_most_is_named_and_stays_float32(
    write: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of fc7 that nothing reaches leave no levels for the others."""
    monkeypatch.setattr(reduced_precision, "TOLERATED", 0.25)
    model = random_model(num_classes=3, stride=32, backbone="mini")
    with torch.no_grad():
        model.head.fc6.bias[0] = -1e4
        model.head.fc7.weight[:, 0] = 1e4
    path, found, printed = write(model, precision="int8")
    assert found["keep"][0] == "fc7"
    assert weights(path)["fc7"] == np.float32
    assert "warning: int8 loses" in printed
    assert "in fc7, which stays float32: keep=[fc7]" in " ".join(printed.split())
    assert found["after"]["mean_iou"] > 0.75


def test_classes_that_the_calibration_images_lack_are_named(write: Exporter) -> None:
    write.data.classes = (*write.data.classes, "sheep")
    _, _, printed = write(random_model(num_classes=4), precision="int8", calibration=1)
    assert "the 1 calibration images show no pixel of dog, sheep" in " ".join(printed.split())


def test_what_cannot_be_is_said_in_one_line(
    tiny_voc: TinyVOC, error_line: Callable[..., str], tmp_path: Path
) -> None:
    model = random_model(num_classes=3, backbone="mini")
    write_safetensors(tmp_path / "model.safetensors", model, {"classes": list(tiny_voc.classes)})
    given = [f"checkpoint={tmp_path}/model.safetensors", f"output={tmp_path}/other.onnx"]
    data = tiny_voc.overrides()
    assert "data=shapes has other classes" in error_line("export", *given, "precision=int8")
    assert "no layer fc9; choose from conv1_1" in error_line(
        "export", *given, "precision=int8", "keep=[fc9]", *data
    )
    assert "calibration=0" in error_line("export", *given, "precision=int8", "calibration=0")
    assert "keep=" in error_line("export", *given, "keep=[fc6]")
    tiny_voc.listing("train").unlink()
    assert "train.txt" in error_line("export", *given, "precision=int8", *data)
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize("precision", OFF)
@pytest.mark.parametrize("size", [None, [97, 131]])
@pytest.mark.parametrize(
    "arguments",
    [
        *({"upsampling": name, "backbone": "mini"} for name in UPSAMPLINGS),
        *({"stride": stride, "padding": padding} for stride in (32, 16) for padding in (1, 100)),
        {"backbone": "vgg11_bn"},
        {"backbone": "vgg19"},
        {"head_width": 64},
    ],
    ids=str,
)
@pytest.mark.slow
def test_every_network_can_be_converted(
    write: Exporter, arguments: dict[str, Any], size: list[int] | None, precision: str
) -> None:
    if arguments.get("padding") == 1:
        arguments = arguments | {"padding": "aligned"}
    model = random_model(num_classes=3, **arguments)
    path, _, _ = write(model, precision=precision, size=size)
    assert average_difference(path, model, (97, 131)) < OFF[precision]
