"""ONNX files with float16 or int8 convolutions: how they are made, and what that costs.

Upsampling stays float32 in both: it takes little of the size and the time, and rounding its scores
would move labels.
"""

import logging
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from fcn.checkpoint import Checkpoint
from fcn.config import ExportConfig
from fcn.data.dataset import SegmentationDataset
from fcn.data.layouts import open_split, overlap_with_training
from fcn.dataset_info import VOID
from fcn.device import describe_machine
from fcn.errors import ConfigError
from fcn.inference.metrics import image_confusions, metrics_of
from fcn.models.fcn import FCN
from fcn.models.tiles import TILE, tiles, window
from fcn.output import percent, progress

TOLERATED = 0.01  # of mean IoU; if more is lost, a layer stays float32
PROBES = 8  # images to find that layer with


def reduce_precision(
    path: Path,
    cfg: ExportConfig,
    trained: Checkpoint,
    val: SegmentationDataset,
    images: Sequence[Tensor],
    console: Console,
) -> dict[str, Any]:
    """Replace a float32 ONNX file by one of `cfg.precision`, compared on the validation images.

    While more than `TOLERATED` is lost, the layer that costs most stays float32.

    Args:
        path: the file, whose `Conv` nodes have the names of the layers.
        cfg: precision, keep, calibration, data; size, input.
        trained: the checkpoint, for its classes.
        val: the validation images, see `open_data`.
        images: to calibrate with.
        console: for the comparison, and for layers that were left out.

    Returns:
        What `compare` returns, and what was asked for.

    Raises:
        ConfigError: an unknown layer in keep.
    """
    import onnx  # of the extra [export]

    layers = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    if unknown := [name for name in cfg.keep if name not in layers]:
        raise ConfigError(
            f"keep={cfg.keep}: no layer {unknown[0]}; choose from {', '.join(layers)}"
        )
    labels, model = trained.labels_in(val.classes, cfg.data.name), trained.model()
    keep = list(cfg.keep)
    with TemporaryDirectory(dir=path.parent) as folder:
        before = path.rename(Path(folder, "before.onnx"))
        while True:
            convert(before, path, cfg.precision, images, keep)
            found = compare(before, path, val, labels, cfg, model, console)
            lost = found["before"]["mean_iou"] - found["after"]["mean_iou"]
            if lost <= TOLERATED or len(keep) == len(layers):
                break
            worst = worst_layer(before, cfg.precision, images, keep, layers)
            keep.append(worst)
            console.print(
                f"warning: {cfg.precision} loses {100 * lost:.2f} points of mean IoU, most of them "
                f"in {worst}, which stays float32: keep=[{','.join(keep)}]",
                style="yellow",
            )
    shown = len(images) if cfg.precision == "int8" else 0
    found = {"precision": cfg.precision, "keep": keep, "calibration": shown, **found}
    console.print(_summary(found))
    return found


def open_data(
    cfg: ExportConfig, trained: Checkpoint, console: Console
) -> tuple[SegmentationDataset, list[Tensor]]:
    """Return the validation split, and the training images to calibrate with, (C, H, W) uint8.

    Raises:
        ConfigError: the data set is another one than the checkpoint's, or otherwise divided.
        DataError: the data set has no such splits.
    """
    val, train = (
        open_split(cfg.data, split, known=trained.info)
        for split in (cfg.data.val_split, cfg.data.train_split)
    )
    if set(val.classes) != set(trained.classes):
        raise ConfigError(
            f"precision={cfg.precision} is compared on the data that the checkpoint was trained "
            f"on, and data={cfg.data.name} has other classes; give data=NAME data.root=FOLDER"
        )
    if problem := overlap_with_training(cfg.data, val, trained.metadata):
        raise ConfigError(f"precision={cfg.precision}: {problem}")
    count = min(cfg.calibration if cfg.precision == "int8" else PROBES, len(train))
    chosen = [train[index] for index in np.linspace(0, len(train) - 1, count).round().astype(int)]
    shown = torch.cat([target.flatten() for _, target in chosen]).bincount(minlength=VOID + 1)
    absent = [name for k, name in enumerate(train.classes) if not shown[k]]
    if cfg.precision == "int8" and absent:
        console.print(
            f"note: the {count} calibration images show no pixel of {', '.join(absent)}; raise "
            "calibration if these classes lose much"
        )
    return val, [_fit(_middle(image), cfg.size, 0) for image, _ in chosen]


def _middle(image: Tensor) -> Tensor:
    """Return the middle of a large image (C, H, W), at most `TILE` on a side."""
    top, left = (max(0, side - TILE) // 2 for side in image.shape[-2:])
    return image[..., top : top + TILE, left : left + TILE]


def _fit(image: Tensor, size: Sequence[int] | None, value: int) -> Tensor:
    """Return an image or a target, (..., H, W), cut or padded at its end to a size; None: as is."""
    if size is None:
        return image
    (height, width), (have_height, have_width) = size, image.shape[-2:]
    return F.pad(image, (0, width - have_width, 0, height - have_height), value=value)


def feed(image: Tensor, kind: str) -> dict[str, np.ndarray]:
    """Return what a file takes for one image, uint8 (C, H, W); `kind` is float or uint8."""
    pixels = image[None].numpy()
    return {"image": pixels if kind == "uint8" else pixels.astype(np.float32) / 255}


def convert(
    source: Path, output: Path, precision: str, images: Sequence[Tensor], keep: Sequence[str]
) -> None:
    """Write a float32 ONNX file again with float16 or int8 convolutions.

    Args:
        source: the file; its `Conv` nodes have the names of the layers.
        output: the file to write.
        precision: float16 or int8: weights per channel, activations by the ranges of the images.
        images: uint8 (C, H, W), for the ranges.
        keep: layers that stay float32.
    """
    import onnx

    model = onnx.load(source)
    inside = _convolutions(model.graph, keep)
    if precision == "float16":
        _to_float16(model.graph, inside)
        onnx.save(model, output)
        return
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    kind = "uint8" if model.graph.input[0].type.tensor_type.elem_type == 2 else "float"
    feeds = iter([feed(image, kind) for image in images])

    class Images(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feeds, None)

    logging.disable(logging.WARNING)  # advice to prepare the file, which torch's exporter has done
    try:
        quantize_static(
            source,
            output,
            Images(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # or processors with AVX2 alone would add up products wrongly
            nodes_to_quantize=inside,
        )
    finally:
        logging.disable(logging.NOTSET)


def _convolutions(graph: Any, keep: Sequence[str]) -> list[str]:
    """Return the convolutions to convert, with the ReLUs and pools behind them, by name."""
    nodes, results = [], set()
    for node in graph.node:
        follows = node.op_type in ("Relu", "MaxPool") and node.input[0] in results
        if follows or (node.op_type == "Conv" and node.name not in keep):
            nodes.append(node.name)
            results |= set(node.output)
    return nodes


def _to_float16(graph: Any, inside: Sequence[str]) -> None:
    """Let some nodes compute in float16, between casts.

    ONNX Runtime's own converter rounds the image and the scores as well.
    """
    from onnx import TensorProto, helper, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes, half, casts = [], set[str](), set[str]()
    for node in graph.node:
        to = TensorProto.FLOAT16 if node.name in inside else TensorProto.FLOAT
        for index, name in enumerate(node.input):
            if node.name in inside and name in weights:
                values = numpy_helper.to_array(weights[name]).astype(np.float16)
                weights[name].CopyFrom(numpy_helper.from_array(values, name))
            elif (name in half) != (node.name in inside):
                cast = f"{name}_cast"
                if cast not in casts:
                    nodes.append(helper.make_node("Cast", [name], [cast], cast, to=to))
                casts.add(cast)
                node.input[index] = cast
        nodes.append(node)
        half |= set(node.output) if node.name in inside else set()
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def open_session(path: Path) -> Any:
    """Open an ONNX file in ONNX Runtime, on the CPU, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def labels_of(result: np.ndarray) -> np.ndarray:
    """Return the labels (B, H, W) of a file's result: labels, or scores (B, K, H, W)."""
    return result.argmax(1) if result.ndim == 4 else result


def predict_tiles(session: Any, image: Tensor, cfg: ExportConfig, model: FCN) -> np.ndarray:
    """Return the labels (1, H, W) of an image, cut into tiles if it is large.

    Args:
        session: of an ONNX file.
        image: uint8 (C, H, W).
        cfg: input, and the size that the file takes if it takes only one.
        model: the network in the file, which decides how tiles overlap.
    """
    height, width = image.shape[-2:]
    side = TILE if cfg.size is None else None
    mask = np.empty((1, height, width), np.int64)
    for rows, columns in product(tiles(height, side, model), tiles(width, side, model)):
        above, left = window(rows, height, model), window(columns, width, model)
        found = labels_of(session.run(None, feed(image[:, above, left], cfg.input))[0])
        found = found[:, rows.start - above.start :, columns.start - left.start :]
        mask[:, rows, columns] = found[:, : rows.stop - rows.start, : columns.stop - columns.start]
    return mask


def compare(
    before: Path,
    after: Path,
    val: SegmentationDataset,
    labels: Sequence[int] | None,
    cfg: ExportConfig,
    model: FCN,
    console: Console,
) -> dict[str, Any]:
    """Return size, mean IoU, time and IoU of each class of two ONNX files, in ONNX Runtime.

    "before" and "after" hold "mb" (1e6 bytes), "mean_iou" (0..1) and "ms" (the median of an image);
    "classes" holds IoU before and after, and "points", their difference, as rates too.

    Args:
        before: the float32 file.
        after: the other.
        val: the images, at their own size; cut or padded to `cfg.size` if the files need it.
        labels: the data set's label of each of the files' classes; None: the same.
        cfg: size, input, data.
        model: the network in the files.
        console: shows a progress bar.
    """
    import onnxruntime

    paths, classes = {"before": before, "after": after}, len(val.classes)
    sessions = {name: open_session(path) for name, path in paths.items()}
    confusion = {name: torch.zeros(classes, classes, dtype=torch.int64) for name in paths}
    times: dict[str, list[float]] = {name: [] for name in paths}
    own = np.arange(classes) if labels is None else np.array(labels)
    with progress(console) as bar:
        for index in bar.track(range(len(val)), description=cfg.precision):
            image, target = val[index]
            image, target = _fit(image, cfg.size, 0), _fit(target, cfg.size, VOID)
            for name, session in list(sessions.items())[:: 1 if index % 2 else -1]:
                start = time.perf_counter()
                result = predict_tiles(session, image, cfg, model)
                times[name].append(time.perf_counter() - start)
                prediction = torch.from_numpy(own[result])
                confusion[name] += image_confusions(prediction, target[None], classes)[0]
    found = {name: metrics_of(confusion[name]) for name in paths}
    pairs = zip(val.classes, found["before"].iou, found["after"].iou, strict=True)
    return {
        "data": cfg.data.name,
        "split": cfg.data.val_split,
        "images": len(val),
        "size": "original" if cfg.size is None else list(cfg.size),
        "runtime": f"ONNX Runtime {onnxruntime.__version__}",
        "machine": describe_machine(torch.device("cpu")),
        **{
            name: {
                "mb": path.stat().st_size / 1e6,
                "mean_iou": found[name].mean_iou,
                "ms": 1e3 * float(np.median(times[name])),
            }
            for name, path in paths.items()
        },
        "classes": [
            {"name": name, "before": float(old), "after": float(new), "points": float(new - old)}
            for name, old, new in pairs
            if not (old.isnan() or new.isnan())
        ],
    }


def worst_layer(
    before: Path, precision: str, images: Sequence[Tensor], keep: Sequence[str], layers: list[str]
) -> str:
    """Return the layer that brings the results closest to those of float32 if it stays float32.

    Args:
        before: the float32 file.
        precision: of the others.
        images: uint8 (C, H, W), of which `PROBES` are looked at.
        keep: layers that stay float32 anyway.
        layers: all layers.
    """
    probes = images[:: max(1, len(images) // PROBES)]
    kind = "uint8" if "uint8" in open_session(before).get_inputs()[0].type else "float"
    feeds = [feed(image, kind) for image in probes]

    def predict(path: Path) -> list[np.ndarray]:
        session = open_session(path)
        return [session.run(None, given)[0] for given in feeds]

    def off(result: np.ndarray, expected: np.ndarray) -> float:
        """Return the mean difference of scores, or the share of labels that differ."""
        scores = result.ndim == 4
        return float((np.abs(result - expected) if scores else result != expected).mean())

    expected, trial = predict(before), before.with_name("trial.onnx")

    def error_without(layer: str) -> float:
        convert(before, trial, precision, probes, [*keep, layer])
        return sum(map(off, predict(trial), expected))

    return min((layer for layer in layers if layer not in keep), key=error_without)


def _summary(found: dict[str, Any]) -> str:
    """Return the comparison in one line."""
    before, after = found["before"], found["after"]
    worst = min(found["classes"], key=lambda entry: entry["points"])
    return (
        f"{found['precision']}: {after['mb']:.1f} MB instead of {before['mb']:.1f}, mean IoU "
        f"{percent(after['mean_iou'])} % instead of {percent(before['mean_iou'])} on "
        f"{found['data']} {found['split']} ({found['images']} images), {after['ms']:.1f} ms an "
        f"image instead of {before['ms']:.1f} ({found['runtime']}); of the classes, "
        f"{worst['name']} changes worst, by {100 * worst['points']:+.2f} points"
    )
