"""Exported ONNX files in old and new versions of ONNX Runtime, OpenCV and OpenVINO."""

import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fcn.checkpoint import write_safetensors
from fcn.config import ExportConfig
from fcn.inference import export
from fcn.inference.reduced_precision import convert, open_session
from fcn.output import make_console
from tests.conftest import random_model

SIZES: dict[str, list[int] | None] = {"any": None, "small": [50, 71], "large": [375, 500]}
# Each set of packages is an environment of its own. NumPy 2 is younger than some of them.
ENVIRONMENTS = [
    ["numpy<2", "onnxruntime==1.15.1", "opencv-python-headless==4.6.0.66"],
    ["numpy<2", "onnxruntime==1.16.3", "opencv-python-headless==4.8.1.78"],
    ["numpy<2", "onnxruntime==1.18.1", "opencv-python-headless==4.10.0.84"],
    ["numpy", "onnxruntime", "openvino"],
]
RUNTIMES = {"opencv-python-headless": "opencv"}  # where a package has another name
# Of the scores' range. int8 is summed up otherwise in each version, so that labels may differ.
OFF = {"float32": 1e-4, "float16": 5e-3, "int8": 0.03}
# OpenCV is compared in float32 alone: these versions cast no float16, and read int8 in part.
OPENCV = ("float32",)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of each size and precision, and beside them an image and today's scores."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    model = random_model(backbone="mini")
    write_safetensors(folder / "m.safetensors", model, {"classes": list("abcde")})
    for name, size in SIZES.items():
        path = folder / f"{name}-float32.onnx"
        cfg = ExportConfig(checkpoint=f"{folder}/m.safetensors", output=str(path), size=size)
        export.main(cfg, folder, make_console(quiet=True))
        image = F.interpolate(torch.rand(4, 3, 4, 5), size or (97, 131), mode="bilinear")
        for precision in OFF:
            out = folder / f"{name}-{precision}.onnx"
            if precision != "float32":
                convert(path, out, precision, [(one * 255).byte() for one in image], [])
            np.save(out.with_suffix(".npy"), image[:1].numpy())
            scores = open_session(out).run(None, {"image": image[:1].numpy()})[0]
            np.save(out.with_suffix(".expected"), scores)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("packages", ENVIRONMENTS, ids=lambda packages: " ".join(packages[1:]))
def test_files_open_in_runtimes_old_and_new(
    files: Path, tmp_path: Path, packages: list[str]
) -> None:
    venv.create(tmp_path, with_pip=True)
    python = tmp_path / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", *packages]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the package registry has them not: {done.stderr[-200:]}")
    for package in packages[1:]:
        name = package.partition("=")[0]
        runtime = RUNTIMES.get(name, name)
        for old in files.glob(f"*.{runtime}.npy"):
            old.unlink()
        run = [python, Path(__file__).with_name("run_onnx.py"), runtime, files]
        errors = subprocess.run(run, capture_output=True, text=True, check=False).stderr
        for path in sorted(files.glob("*.onnx")):
            size, _, precision = path.stem.partition("-")
            if runtime == "opencv" and (size == "any" or precision not in OPENCV):
                continue
            result = path.with_suffix(f".{runtime}.npy")
            assert result.exists(), f"{package}, {path.stem}: {errors}"
            expected = np.load(path.with_suffix(".expected.npy"))
            off = np.abs(np.load(result) - expected)
            range_ = expected.max() - expected.min()
            assert range_ > 0.01
            worst = off.mean() if precision == "int8" else off.max()
            print(f"{package} {path.stem}: {worst / range_:.1e} of the range")
            assert worst < OFF[precision] * range_, f"{package}, {path.stem}"
