"""Measure how fast this project is on this machine, for `scripts/benchmark.py`.

All that is compared runs alternately in one process, so that other load affects all of it alike.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Measurement, Timer
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.segmentation import fcn_resnet50
from torchvision.models.vgg import cfgs, make_layers

from fcn import device as devices
from fcn.config import BenchmarkConfig
from fcn.device import optimize
from fcn.models.fcn import FCN
from fcn.models.upsampling import LearnedUpsampling, make_upsampling
from fcn.output import atomic_write, refuse_overwriting, write_json
from fcn.tools.deployment import ONNX_FILES, deployment

Task = Callable[[], object]
Rows = dict[str, dict[str, float]]
FACTORS = (2, 8, 16, 32)
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
SECONDS = 0.05  # of each task in a round, at least: what is faster is repeated


class PlainFCN8s(nn.Module):
    """FCN-8s as known ports have it: padding 100, dense upsampling, torch's layers as they come.

    forward: float (B, 3, H, W), normalised -> score, float (B, K, H, W).
    """

    def __init__(self, num_classes: int, head_width: int = 4096) -> None:
        super().__init__()
        self.features = make_layers(cfgs["D"], batch_norm=False)
        self.features[0].padding = (100, 100)
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
        fc6, fc7 = nn.Conv2d(512, head_width, 7), nn.Conv2d(head_width, head_width, 1)
        after = (nn.ReLU(inplace=True), nn.Dropout2d())
        self.head = nn.Sequential(fc6, *after, fc7, *after)
        self.score_fr = nn.Conv2d(head_width, num_classes, 1)
        self.upscore2 = dense_upsampling(2, num_classes)
        self.score_pool4 = nn.Conv2d(512, num_classes, 1)
        self.upscore_pool4 = dense_upsampling(2, num_classes)
        self.score_pool3 = nn.Conv2d(256, num_classes, 1)
        self.upscore8 = dense_upsampling(8, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        feature, pools = image, []
        for layer in self.features:
            feature = layer(feature)
            if isinstance(layer, nn.MaxPool2d):
                pools.append(feature)
        score = self.upscore2(self.score_fr(self.head(feature)))
        score = self.upscore_pool4(score + crop(self.score_pool4(pools[3]), score, 5))
        score = self.upscore8(score + crop(self.score_pool3(pools[2]), score, 9))
        return crop(score, image, 31)


def dense_upsampling(factor: int, num_classes: int) -> nn.ConvTranspose2d:
    """Return a bilinear transposed convolution with K x K kernels, not trained."""
    layer = nn.ConvTranspose2d(num_classes, num_classes, 2 * factor, factor, bias=False)
    layer.weight = LearnedUpsampling(factor, num_classes).weight
    return layer.requires_grad_(False)


def crop(full: Tensor, like: Tensor, offset: int) -> Tensor:
    """Return the window at `offset` that has the size of `like`."""
    height, width = like.shape[-2:]
    return full[..., offset : offset + height, offset : offset + width]


def networks(num_classes: int, device: torch.device) -> dict[str, nn.Module]:
    """Return the networks to compare, with random weights; this project's first."""
    ours = FCN(num_classes=num_classes)
    for name, parameter in ours.named_parameters():
        if name.startswith("score"):  # zero at the start, as it is not after training
            nn.init.normal_(parameter, std=0.01)
    optimize(ours, device)
    return {
        "this project's FCN-8s": ours,
        "FCN-8s as in known ports": PlainFCN8s(num_classes).to(device),
        "torchvision's fcn_resnet50": fcn_resnet50(
            weights=None, weights_backbone=None, num_classes=num_classes
        ).to(device),
    }


def inference(model: nn.Module, image: Tensor, precision: str) -> Task:
    """Return a task that labels every pixel of a uint8 image."""
    if isinstance(model, FCN):
        return partial(devices.InferenceModel(model, image.device, precision).predict, image)
    model, image = model.eval(), image / 255
    return torch.inference_mode()(lambda: scores(model, image).argmax(1))


def training(model: nn.Module, image: Tensor, precision: str) -> Task:
    """Return a task that takes one training step: forward, loss, backward, update."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-6, momentum=0.9, fused=True)
    target = image[:, 0].long() % 2
    image = image if isinstance(model, FCN) else image / 255

    def step() -> None:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            score = scores(model, image)
        F.cross_entropy(score, target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def scores(model: nn.Module, image: Tensor) -> Tensor:
    """Return a network's scores: torchvision's come in a dictionary."""
    result = model(image)
    return result["out"] if isinstance(result, dict) else result


def measure(tasks: Mapping[str, Task], rounds: int) -> Rows:
    """Time tasks alternately, in an order drawn anew every round.

    Returns:
        For each task its median and interquartile range in ms, their ratio to the first task's
        median, and the GFLOP of its convolutions and matrix products.
    """
    threads = torch.get_num_threads()
    timers, gflop = {}, {}
    for name, task in tasks.items():
        timers[name] = Timer("task()", globals={"task": task}, num_threads=threads)
        with FlopCounterMode(display=False) as counter:
            task()
        gflop[name] = counter.get_total_flops() / 1e9
    taken: dict[str, list[Measurement]] = {name: [] for name in tasks}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(tasks), len(tasks)):
            taken[name].append(timers[name].blocked_autorange(min_run_time=SECONDS))
    merged = {name: Measurement.merge(every)[0] for name, every in taken.items()}
    first = next(iter(merged.values())).median
    return {
        name: {
            "ms": 1e3 * result.median,
            "iqr_ms": 1e3 * result.iqr,
            "ratio": result.median / first,
            "gflop": gflop[name],
        }
        for name, result in merged.items()
    }


def matrix_product(device: torch.device, precision: str) -> Task:
    """Return a task whose rate of operations is about the most that a network could reach."""
    side = 2048 if device.type == "cpu" else 8192
    matrix = torch.rand(side, side, device=device).to(DTYPES[precision])
    out = torch.empty_like(matrix)

    def product() -> None:
        cuda, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
        cuda.allow_tf32 = torch.backends.cudnn.allow_tf32  # as in convolutions
        torch.mm(matrix, matrix, out=out)
        cuda.allow_tf32 = before

    return product


def upsampling(factor: int, size: list[int], classes: int, device: torch.device, n: int) -> Rows:
    """Measure the `fixed` layer and others that are bilinear too, untrained, in n rounds."""
    h, w = (math.ceil(side / factor) for side in size)
    score = torch.randn(1, classes, h, w, device=device, requires_grad=True)
    slope = torch.ones(1, classes, *size, device=device)
    layers: dict[str, Callable[[], Tensor]] = {}
    for choice in ("fixed", "interpolate", "learned_channelwise", "learned"):
        layer = make_upsampling(choice, factor, classes, final=True).to(device)
        window = {"offset": factor // 2, "size": (size[0], size[1])}
        layers[f"x{factor} {choice}"] = partial(layer.requires_grad_(False), score, **window)

    def backward(layer: Callable[[], Tensor]) -> None:
        score.grad = None
        layer().backward(slope)

    forward = measure({name: torch.no_grad()(layer) for name, layer in layers.items()}, n)
    both = {f"{name}, with backward": partial(backward, layer) for name, layer in layers.items()}
    return forward | measure(both, n)


def main(cfg: BenchmarkConfig, folder: Path, console: Console) -> dict[str, Any]:
    """Measure, print tables, write benchmark.json and benchmark.png, and return the former."""
    written = ["benchmark.json", *(ONNX_FILES if cfg.checkpoint else ["benchmark.png"])]
    refuse_overwriting([folder / name for name in written], cfg.overwrite, "hydra.run.dir")
    device = torch.device("cpu") if cfg.checkpoint else devices.pick_device(cfg.device)
    report: dict[str, Any] = {"machine": devices.describe_machine(device), "settings": asdict(cfg)}
    if cfg.checkpoint is not None:
        report["runtimes"] = rows = deployment(cfg, folder, console)
        console.print(table(f"{cfg.checkpoint} on {cfg.data.name} {cfg.data.val_split}", rows))
        write_json(folder / "benchmark.json", report)
        console.print(f"benchmark.json and the ONNX files in {folder}")
        return report
    torch.manual_seed(0)
    rounds = 3 if cfg.quick else cfg.rounds
    ours = devices.resolve_precision(cfg.precision, device, training=True, key="precision").name
    image = torch.randint(256, (1, 3, *cfg.size), dtype=torch.uint8).to(device)
    models = networks(cfg.num_classes, device)
    for mode, make in {"inference": inference, "training step": training}.items():
        tasks = {}
        for name, model in models.items():
            precision = ours if isinstance(model, FCN) else "32-true"
            tasks[f"{name}, {precision}"] = make(model, image, precision)
        for precision in dict.fromkeys(("32-true", ours)):
            tasks[f"matrix product, {precision}"] = matrix_product(device, precision)
        rows = measure(tasks, rounds)
        for name, row in rows.items():
            limit = rows[f"matrix product, {name.rpartition(', ')[2]}"]
            rate = row["gflop"] / row["ms"]  # TFLOP/s
            row |= {"tflops": rate, "% of product": 100 * rate * limit["ms"] / limit["gflop"]}
        report[mode] = rows
        console.print(table(f"{mode}, 1 x {cfg.size[0]} x {cfg.size[1]}", rows))
    report["upsampling"] = {}
    for factor in FACTORS:
        report["upsampling"] |= upsampling(factor, cfg.size, cfg.num_classes, device, rounds)
    console.print(table("upsampling", report["upsampling"]))
    write_json(folder / "benchmark.json", report)
    with atomic_write(folder / "benchmark.png") as path:
        picture(report).savefig(path, format="png", dpi=150)
    console.print(f"benchmark.json and benchmark.png in {folder}")
    return report


def table(title: str, rows: Rows) -> Table:
    """Return measurements as a table, one row each."""
    columns = list(next(iter(rows.values())))
    result = Table(title, *(name.replace("_", " ") for name in columns), box=None)
    for name, row in rows.items():
        values = [row[column] for column in columns]
        result.add_row(name, *(f"{v:.0f}" if v >= 100 else f"{v:.3g}" for v in values))
    return result


def picture(report: Mapping[str, Any]) -> Figure:
    """Draw the medians as bars, labelled with the ratios."""
    figure = Figure(figsize=(9, 13), layout="constrained")
    modes = ("inference", "training step", "upsampling")
    for axes, mode in zip(figure.subplots(3, 1, height_ratios=(1, 1, 6)), modes, strict=True):
        rows = report[mode]
        bars = axes.barh(list(rows), [row["ms"] for row in rows.values()])
        axes.bar_label(bars, [f"{row['ratio']:.2f} x" for row in rows.values()], padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(title=mode, xlabel="milliseconds")
    return figure
