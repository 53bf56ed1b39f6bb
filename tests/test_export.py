"""Exported models in their own runtimes: what they compute, and what they say of themselves."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from fcn import checkpoint
from fcn.config import REPOSITORY, ExportConfig
from fcn.errors import ConfigError, ExportError
from fcn.inference import export
from fcn.inference.export import SUFFIX
from fcn.inference.predictor import Predictor
from fcn.models.fcn import FCN
from fcn.models.upsampling import UPSAMPLINGS
from fcn.output import make_console
from fcn.pictures.visualize import voc_palette
from tests.conftest import random_model

CLASSES = ["background", "cat", "dog", "horse", "cow"]
QUIET = make_console(quiet=True)
GRID = [(33, 47), (64, 64), (97, 131), (225, 300), (375, 500), (513, 401), (700, 900)]


def pictures(batch: int, height: int, width: int) -> Tensor:
    """Random colours, coarse and fine."""
    coarse = F.interpolate(torch.rand(batch, 3, 3, 4), (height, width), mode="bilinear")
    return (coarse + torch.rand(batch, 3, height, width)) / 2


def exported(folder: Path, model: FCN, **settings: Any) -> Path:
    """The file that the settings ask for, of this model.

    ONNX files are for old runtimes too: ONNX Runtime reads IR 8 and opset 18 since 1.14, and 1.17
    refuses IR 10.
    """
    source = folder / "model.safetensors"
    checkpoint.write_safetensors(source, model, {"classes": CLASSES})
    output = folder / "new" / f"exported{SUFFIX[settings['format']]}"
    cfg = ExportConfig(checkpoint=str(source), output=str(output), **settings)
    export.main(cfg, folder, QUIET)
    if settings["format"] == "onnx":
        written = onnx.load(output)
        assert written.ir_version <= 8
        assert [one.version for one in written.opset_import if not one.domain] == [18]
    return output


def opened(path: Path) -> Callable[[Tensor], Tensor]:
    """The file in its own runtime, as a user opens it."""
    if path.suffix == ".safetensors":
        return checkpoint.load(path)
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


@torch.inference_mode()
def check(folder: Path, kind: str, sizes: list[tuple[int, int]], **arguments: object) -> None:
    """An export agrees with its model within 1e-4 of the scores' range."""
    model = random_model(**arguments)
    run, labels = opened(exported(folder, model, format=kind)), set()
    for height, width in sizes:
        for batch in (1, 3):
            image = pictures(batch, height, width)
            score, output = model(image), run(image)
            spread = score.max() - score.min()
            assert spread > 0.01
            torch.testing.assert_close(output, score, atol=1e-4 * float(spread), rtol=0)
            assert (output.argmax(1) == score.argmax(1)).float().mean() >= 0.9999
            labels |= set(score.argmax(1).unique().tolist())
    assert len(labels) > 1


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("onnx", {"upsampling": "nearest_conv", "padding": 100, "backbone": "mini"}),
        ("torch_export", {"upsampling": "cvpr15", "skip_scales": {"pool4": 0.5}}),
        ("safetensors", {"stride": 16}),
    ],
)
def test_an_exported_model_scores_as_the_original(
    tmp_path: Path, kind: str, arguments: dict[str, object]
) -> None:
    check(tmp_path, kind, GRID[:3], **arguments)


NETWORKS = [
    *({"stride": s, "padding": p} for s in (32, 16, 8) for p in ("aligned", 100)),
    *({"upsampling": name, "backbone": "vgg11_bn"} for name in UPSAMPLINGS),
]


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
@pytest.mark.parametrize("arguments", NETWORKS, ids=str)
@pytest.mark.slow
def test_every_network_is_the_same_at_every_size(
    tmp_path: Path, arguments: dict[str, object], kind: str
) -> None:
    check(tmp_path, kind, GRID if "stride" in arguments else GRID[:4], **arguments)


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


@pytest.mark.parametrize("kind", SUFFIX)
def test_bytes_go_in_labels_come_out_and_the_file_describes_itself(
    tmp_path: Path, kind: str
) -> None:
    model = random_model(stride=16, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    graph = {} if kind == "safetensors" else {"input": "uint8", "argmax": True}
    path = exported(tmp_path, model, format=kind, **graph)
    pixels = (pictures(2, 70, 90) * 255).to(torch.uint8)
    with torch.inference_mode():
        expected, labels = model(pixels).argmax(1), opened(path)(pixels)
    assert len(expected.unique()) > 2
    if graph:
        assert labels.dtype == torch.uint8
        assert torch.equal(labels.long(), expected)
    if kind == "onnx":
        onnx.checker.check_model(onnx.load(path))
        session = onnxruntime.InferenceSession(path)
        (image,), (output,) = session.get_inputs(), session.get_outputs()
        assert (image.name, image.type) == ("image", "tensor(uint8)")
        assert image.shape == ["batch", 3, "height", "width"]
        assert (output.name, output.shape) == ("labels", ["batch", "height", "width"])
    found = about(path)
    assert found["classes"] == CLASSES
    assert found["model"] == model.arguments
    assert found["background"] is True
    assert found["palette"] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert found["normalisation"]["mean"] == pytest.approx([0.1, 0.2, 0.3])
    assert found["normalisation"]["std"] == pytest.approx([0.4, 0.5, 0.6])
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert found["checkpoint"] == {"file": "model.safetensors", "sha256": digest}
    assert str(REPOSITORY).encode() not in path.read_bytes()
    assert list(path.parent.iterdir()) == [path]


def test_the_readmes_lines_predict_without_pytorch(tmp_path: Path) -> None:
    """On a photograph that lies on its side."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(import json\n.*?)```", text, re.DOTALL)
    exported(tmp_path, random_model(), format="onnx").rename(tmp_path / "model.onnx")
    pixels = (pictures(1, 97, 131)[0] * 255).byte().permute(1, 2, 0).numpy()
    (exif := Image.Exif())[0x0112] = 6  # orientation: a quarter turn
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
    program = f"import sys\nsys.modules['torch'] = None  # importing it fails\n{lines}"
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = Predictor(tmp_path / "model.safetensors")(tmp_path / "photo.jpg")
    mask = Image.open(tmp_path / "mask.png")
    assert (np.asarray(mask) == expected).mean() >= 0.9999
    assert np.array_equal(np.asarray(mask.convert("RGB")), voc_palette()[np.asarray(mask)])
    assert done.stdout.split() == ["found:", *(CLASSES[label] for label in np.unique(expected))]
    assert len(np.unique(expected)) > 1


@pytest.mark.parametrize("by", [0.01, torch.nan])
def test_a_file_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float
) -> None:
    model = random_model()

    def off(image: Tensor) -> Tensor:
        score = model(image)
        score[0, 0, 0, 0] += by * (score.max() - score.min())
        return score

    (output := tmp_path / "new" / "exported.safetensors").parent.mkdir()
    output.write_text("an older export")
    monkeypatch.setattr(export, "open_exported", lambda *_: off)
    with pytest.raises(ExportError, match=r"exported\.safetensors"):
        exported(tmp_path, model, format="safetensors", overwrite=True)
    assert output.read_text() == "an older export"
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize(
    ("output", "kind", "wrong"), [("a.pt2", "onnx", r"\.onnx"), ("a.onnx", "hub", "folder")]
)
def test_an_output_of_another_format_is_an_error(output: str, kind: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        export.check(ExportConfig("m.safetensors", output, kind))


def test_missing_packages_are_named_with_the_way_to_install_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ConfigError, match=r"onnxruntime: pip install .fcn-segmentation\[export\]"):
        export.check(ExportConfig(checkpoint="a.ckpt", output="a.onnx"))
    export.check(ExportConfig(checkpoint="a.ckpt", output="a.pt2", format="torch_export"))


def scores_in_opencv(folder: Path, size: list[int], **arguments: Any) -> None:
    """OpenCV's scores of a file of one size are the model's within 1e-5 of their range."""
    model = random_model(backbone="mini", **arguments)
    path = exported(folder, model, format="onnx", size=size)
    network = cv2.dnn.readNetFromONNX(str(path))
    image = pictures(1, *size)
    network.setInput(image.numpy())
    with torch.inference_mode():
        score = model(image)
    assert score.std() > 1e-3
    off = np.abs(network.forward() - score.numpy()).max()
    assert off < 1e-5 * float(score.max() - score.min())


@pytest.mark.parametrize(("stride", "size"), [(32, [375, 500]), (8, [50, 71])])
def test_opencv_opens_a_file_of_one_size(tmp_path: Path, stride: int, size: list[int]) -> None:
    scores_in_opencv(tmp_path, size, stride=stride)


@pytest.mark.parametrize("size", [[375, 500], [480, 640]])
@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.slow
def test_opencv_opens_every_network(
    tmp_path: Path, upsampling: str, stride: int, size: list[int]
) -> None:
    scores_in_opencv(tmp_path, size, upsampling=upsampling, stride=stride)


@pytest.mark.parametrize("kind", [*SUFFIX, "hub"])
def test_nothing_is_overwritten_unasked(tmp_path: Path, kind: str) -> None:
    source, output = tmp_path / "m.safetensors", tmp_path / f"new{SUFFIX.get(kind, '')}"
    checkpoint.write_safetensors(source, random_model(), {"classes": CLASSES})
    if kind == "hub":
        output.mkdir()
    mine = output / "README.md" if kind == "hub" else output
    mine.write_text("mine")
    cfg = ExportConfig(checkpoint=str(source), output=str(output), format=kind)
    with pytest.raises(ConfigError, match="exists; choose another output, or overwrite=true"):
        export.main(cfg, tmp_path, QUIET)
    assert mine.read_text() == "mine"
    cfg.overwrite = True
    export.check(cfg)
    if kind == "safetensors":  # the fast one
        export.main(cfg, tmp_path, QUIET)
        assert b"mine" not in mine.read_bytes()[:4]


@pytest.mark.parametrize(
    ("kind", "beside", "removed"),
    [
        ("onnx", {"precision": "int8", "keep": [], "calibration": 4}, True),
        ("onnx", {"precision": "mine"}, False),
        ("safetensors", {"precision": "int8", "keep": [], "calibration": 4}, False),
    ],
)
def test_a_file_of_float32_has_no_report_of_an_older_one(
    tmp_path: Path, kind: str, beside: dict[str, Any], removed: bool
) -> None:
    (report := tmp_path / "new/exported.json").parent.mkdir()
    report.write_text(json.dumps(beside))
    if removed:
        with pytest.raises(ConfigError, match=r"exported\.json exists"):
            exported(tmp_path, random_model(), format=kind)
    exported(tmp_path, random_model(), format=kind, overwrite=True)
    assert report.exists() != removed


def test_a_page_of_float32_is_not_written_beside_the_report_of_an_older_one(
    tmp_path: Path,
) -> None:
    report = {"precision": "int8", "keep": [], "calibration": 4}
    (tmp_path / "model.json").write_text(json.dumps(report))
    with pytest.raises(ConfigError, match=r"model\.json exists"):
        export.check(ExportConfig("m.safetensors", str(tmp_path), "web"))


@pytest.mark.parametrize("kind", ["safetensors", "hub"])  # the latter with an ONNX file
def test_no_file_names_the_folder_of_the_data(tmp_path: Path, kind: str) -> None:
    source, output = tmp_path / "model.safetensors", tmp_path / f"new{SUFFIX.get(kind, '')}"
    division = {"root": "/home/somebody/photos", "fold": 1}
    about = {"classes": CLASSES, "data": {"name": "mine", "division": division}}
    checkpoint.write_safetensors(source, random_model(backbone="mini"), about)
    assert checkpoint.read(source).metadata["data"]["division"] == division
    cfg = ExportConfig(checkpoint=str(source), output=str(output), format=kind)
    export.main(cfg, tmp_path, QUIET)
    written = [path for path in (output, *output.rglob("*")) if path.is_file()]
    assert written
    assert not any(b"somebody" in path.read_bytes() for path in written)
