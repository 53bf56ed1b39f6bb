"""Measure one network in every installed runtime: size, mean IoU, time and memory."""

import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from fcn import checkpoint
from fcn.config import BenchmarkConfig, ExportConfig
from fcn.data.layouts import open_split
from fcn.device import InferenceModel
from fcn.inference import export
from fcn.inference.metrics import image_confusions, metrics_of
from fcn.inference.reduced_precision import convert, feed, labels_of, open_data, open_session

# runtime -> precision -> the file that it runs, and what is asked of the runtime
CELLS = {
    "PyTorch": {"32-true": "float32", "bf16-mixed": "float32"},
    "ONNX Runtime": {"float32": "float32", "float16": "float16", "int8": "int8"},
    "OpenVINO": {"f32": "float32", "bf16": "float32", "int8": "int8"},
}
ONNX_FILES = ("float32.onnx", "float16.onnx", "int8.onnx")
Predict = Callable[[torch.Tensor], np.ndarray]  # uint8 (C, H, W) -> labels (H, W)


def deployment(cfg: BenchmarkConfig, folder: Path, console: Console) -> dict[str, dict[str, float]]:
    """Measure a checkpoint in each runtime, each time in a process of its own.

    Args:
        cfg: checkpoint, data, images.
        folder: for the files, which stay.
        console: for what is left out.

    Returns:
        For each runtime and precision: MB of the file, mean IoU in percent, median wall-clock and
        processor milliseconds an image (other programs lengthen only the first), and MB of memory
        beyond what the process had before it opened the network.
    """
    assert cfg.checkpoint is not None
    own = ExportConfig(
        checkpoint=cfg.checkpoint,
        output=str(folder / "float32.onnx"),
        data=cfg.data,
        overwrite=cfg.overwrite,
    )
    export.check(own)
    export.write_file(own, console)
    own.precision = "int8"
    _, images = open_data(own, checkpoint.read(cfg.checkpoint), console)
    for precision in ("float16", "int8"):
        convert(folder / "float32.onnx", folder / f"{precision}.onnx", precision, images, [])
    rows = {}
    for runtime, cells in CELLS.items():
        if runtime == "OpenVINO" and find_spec("openvino") is None:
            console.print("note: OpenVINO is left out: pip install openvino")
            continue
        for precision, file in cells.items():
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                path = folder / f"{file}.onnx"
                row = pool.submit(measure, runtime, precision, path, cfg).result()
            rows[f"{runtime}, {precision}"] = row
    return rows


def measure(runtime: str, precision: str, path: Path, cfg: BenchmarkConfig) -> dict[str, float]:
    """Return one row of `deployment`, for which this process is new."""
    trained = checkpoint.read(str(cfg.checkpoint))
    val = open_split(cfg.data, cfg.data.val_split, known=trained.info)
    count = min(cfg.images or len(val), len(val))
    chosen = np.linspace(0, len(val) - 1, count).round().astype(int)
    labels = trained.labels_in(val.classes, cfg.data.name)
    order = np.arange(len(val.classes)) if labels is None else np.array(labels)
    before = _peak_memory()
    predict = _open(runtime, precision, path, trained)
    predict(val[chosen[0]][0])
    confusion, times = torch.zeros(len(order), len(order), dtype=torch.int64), []
    for index in chosen:
        image, target = val[index]
        start = time.perf_counter(), time.process_time()
        prediction = predict(image)
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        mapped = torch.from_numpy(order[prediction])[None]
        confusion += image_confusions(mapped, target[None], len(order))[0]
    ms, busy = 1e3 * np.median(times, 0)
    return {
        "MB": (trained.path if runtime == "PyTorch" else path).stat().st_size / 1e6,
        "mean IoU": 100 * metrics_of(confusion).mean_iou,
        "ms": float(ms),
        "CPU ms": float(busy),
        "memory MB": (_peak_memory() - before) / 1e6,
    }


def _open(runtime: str, precision: str, path: Path, trained: checkpoint.Checkpoint) -> Predict:
    """Open a network in a runtime."""
    if runtime == "PyTorch":
        model = InferenceModel(trained.model(), torch.device("cpu"), precision)
        return lambda image: model.predict(image[None])[0].numpy()
    if runtime == "ONNX Runtime":
        session = open_session(path)
        return lambda image: labels_of(session.run(None, feed(image, "float"))[0])[0]
    import openvino  # as independent of this project as its users' own programs

    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(path, "CPU", options)
    return lambda image: labels_of(compiled(feed(image, "float"))[0])[0]


def _peak_memory() -> int:
    """Return the most bytes that this process has occupied; 0 on systems other than Linux."""
    status = Path("/proc/self/status")
    text = status.read_text(encoding="utf-8") if status.exists() else ""
    peak = re.search(r"VmHWM:\s*(\d+) kB", text)
    return 1024 * int(peak[1]) if peak else 0
