"""One network in each runtime: PyTorch and ONNX Runtime agree; others get a row."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from fcn.checkpoint import write_safetensors
from fcn.config import BenchmarkConfig, ExportConfig
from fcn.inference import export
from fcn.output import make_console
from fcn.tools import benchmark
from fcn.tools.deployment import measure
from tests.conftest import TinyVOC, random_model


@pytest.fixture
def cfg(tmp_path: Path, tiny_voc: TinyVOC) -> BenchmarkConfig:
    """A network of the classes of a tiny data set."""
    source = tmp_path / "m.safetensors"
    classes = {"classes": list(tiny_voc.classes)}
    write_safetensors(source, random_model(num_classes=3, backbone="mini"), classes)
    return BenchmarkConfig(checkpoint=str(source), data=tiny_voc.config())


def test_two_runtimes_have_the_same_mean_iou(tmp_path: Path, cfg: BenchmarkConfig) -> None:
    path = tmp_path / "m.onnx"
    own = ExportConfig(checkpoint=str(cfg.checkpoint), output=str(path))
    export.main(own, tmp_path, make_console(quiet=True))
    torch_row = measure("PyTorch", "32-true", path, cfg)
    onnx_row = measure("ONNX Runtime", "float32", path, cfg)
    assert 0 < torch_row["mean IoU"] == pytest.approx(onnx_row["mean IoU"], abs=0.05)
    assert onnx_row["MB"] == path.stat().st_size / 1e6
    assert min(onnx_row["ms"], onnx_row["CPU ms"]) > 0


@pytest.mark.slow
def test_every_runtime_at_hand_gets_a_row(tmp_path: Path, cfg: BenchmarkConfig) -> None:
    benchmark.main(cfg, tmp_path, Console(quiet=True))
    rows = json.loads((tmp_path / "benchmark.json").read_text())["runtimes"]
    assert {"PyTorch, 32-true", "ONNX Runtime, float16", "ONNX Runtime, int8"} <= set(rows)
    assert rows["ONNX Runtime, int8"]["MB"] < rows["ONNX Runtime, float16"]["MB"]
    assert all(row["mean IoU"] > 0 for row in rows.values())
