"""The benchmark: its operation counts, what it compares, and that it runs."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from fcn.config import BenchmarkConfig
from fcn.errors import ConfigError
from fcn.models.fcn import FCN
from fcn.models.upsampling import FixedUpsampling
from fcn.tools import benchmark, deployment
from tests.conftest import QUIET, TinyVOC, write_random_model


def test_operations_are_those_counted_by_hand_and_ratios_are_to_the_first_task() -> None:
    layer = nn.Conv2d(3, 8, 5, stride=2, padding=2)
    image = torch.rand(2, 3, 20, 31, requires_grad=True)
    left, right = torch.rand(4, 5), torch.rand(5, 6)
    rows = benchmark.measure(
        {
            "forward": partial(layer, image),
            "both": lambda: layer(image).sum().backward(),
            "product": lambda: left @ right,
        },
        rounds=3,
    )
    forward = 2 * (2 * 8 * 10 * 16) * (3 * 5 * 5)  # a multiplication and an addition per tap
    assert rows["forward"]["gflop"] * 1e9 == pytest.approx(forward)
    assert rows["both"]["gflop"] * 1e9 == pytest.approx(3 * forward)  # of weights and of inputs
    assert rows["product"]["gflop"] * 1e9 == pytest.approx(2 * 4 * 5 * 6)
    assert rows["forward"]["ratio"] == 1
    assert rows["both"]["ratio"] == pytest.approx(rows["both"]["ms"] / rows["forward"]["ms"])


def test_the_plain_network_gives_our_scores() -> None:
    """Our FCN-8s with padding 100, computed by torch's own layers."""
    ours = FCN(num_classes=3, head_width=8, padding=100, upsampling="learned").eval()
    plain = benchmark.PlainFCN8s(num_classes=3, head_width=8).eval()
    for theirs, parameter in zip(plain.parameters(), ours.parameters(), strict=True):
        with torch.no_grad():
            if theirs.requires_grad:
                parameter.copy_(theirs)
        assert torch.equal(theirs, parameter)
    image = torch.rand(1, 3, 50, 70)
    with torch.inference_mode():
        torch.testing.assert_close(plain(ours.normalise(image)), ours(image), atol=1e-5, rtol=1e-4)


def assert_each_file_is_kept(cfg: BenchmarkConfig, folder: Path) -> None:
    """Check that another run would overwrite no file of the folder, even if it is there alone."""
    for path in [*folder.iterdir()]:
        alone = folder / f"only {path.name}"
        (alone / path.name).mkdir(parents=True)
        with pytest.raises(ConfigError, match=f"{re.escape(path.name)} exists; choose another hyd"):
            benchmark.main(cfg, alone, QUIET)


@pytest.mark.slow
def test_the_files_of_the_runtimes_are_not_overwritten_unasked(
    tmp_path: Path, tiny_voc: TinyVOC, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "CELLS", {"PyTorch": {"32-true": "float32"}})
    source, folder = write_random_model(tmp_path / "m.safetensors"), tmp_path / "out"
    cfg = BenchmarkConfig(checkpoint=str(source), data=tiny_voc.config())
    folder.mkdir()
    benchmark.main(cfg, folder, QUIET)
    assert (folder / "int8.onnx").is_file()
    assert_each_file_is_kept(cfg, folder)


def test_a_run_writes_its_numbers_and_a_picture_and_does_not_overwrite_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrow(num_classes: int, device: torch.device) -> dict[str, nn.Module]:
        return {
            "ours": FCN(num_classes=num_classes, backbone="mini", width=4, head_width=8),
            "other": nn.Conv2d(3, num_classes, 1),
        }

    monkeypatch.setattr(benchmark, "networks", narrow)
    monkeypatch.setattr(benchmark, "SECONDS", 1e-4)
    cfg = BenchmarkConfig(
        quick=True, size=[32, 40], num_classes=3, device="cpu", precision="32-true"
    )
    benchmark.main(cfg, tmp_path, QUIET)
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert report["machine"]["cpu"]
    for mode in ("inference", "training step"):
        ours, other, product = report[mode].values()
        assert (ours["ratio"], product["% of product"]) == (1, pytest.approx(100))
        rate = product["gflop"] / product["ms"]
        assert other["% of product"] == pytest.approx(100 * other["gflop"] / other["ms"] / rate)
    assert len(report["upsampling"]) == 2 * 4 * len(benchmark.FACTORS)
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000
    assert_each_file_is_kept(cfg, tmp_path)


@pytest.mark.parametrize("factor", benchmark.FACTORS)
def test_the_dense_layer_does_what_fixed_does(factor: int) -> None:
    score = torch.randn(1, 3, 4, 5)
    dense = benchmark.dense_upsampling(factor, 3)(score)
    torch.testing.assert_close(dense, FixedUpsampling(factor)(score), atol=1e-5, rtol=0)
