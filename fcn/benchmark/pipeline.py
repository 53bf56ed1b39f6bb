"""What surrounds the net: how fast training images come, and what evaluation adds."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fcn.benchmark.contestants import default
from fcn.benchmark.measure import Pace, Progress, Samples, part_of, take_turns
from fcn.benchmark.nets import speed, times
from fcn.benchmark.runner import Labels, autocast, floats
from fcn.config import BenchmarkConfig, EvaluateConfig, UserError
from fcn.data.datamodule import (
    SegmentationData,
    evaluation_loader,
    evaluation_processes,
    loading_processes,
    open_split,
)
from fcn.inference.evaluation import evaluate
from fcn.training.trainer import quieten

WARM = 2  # rounds of a loader's queue
Row = dict[str, Any]


def loader(cfg: BenchmarkConfig, device: torch.device, pace: Pace, progress: Progress) -> Row:
    """Training images a second under the recipe, and whether they keep a training step busy.

    Returns: "seconds" of a batch; "step", of this project's net on crops of the recipe's size;
        "feeds", the loader's images a second over the step's, each having the machine for itself.
    """
    quieten()
    data = SegmentationData(cfg.data, cfg.recipe, cfg.seed)
    data.trainer = pl.Trainer(
        max_steps=10**9, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    workers = loading_processes(cfg.data.num_workers)
    samples = drain(data.train_dataloader(), max(1, workers), pace, part_of(progress, 0, 2))
    recipe = cfg.recipe
    height, width = (recipe.crop, recipe.crop) if recipe.crop else cfg.size
    # On a CPU a step of many images takes long, and images a second hardly depend on their number.
    shape = 1 if device.type == "cpu" else recipe.batch_size, height, width
    own = default(cfg, device, len(data.classes))
    taken = times([own], [shape], cfg, device, pace, part_of(progress, 1, 2), ["training"])
    if not taken:
        raise UserError(
            f"a training step of {shape[0]} images of {height} x {width} does not fit "
            "into the device's memory; use a smaller recipe.batch_size or recipe.crop"
        )
    step = speed(taken[shape, "training", own.name], shape[0])
    result = speed(samples, recipe.batch_size)
    return {
        "data": cfg.data.name,
        "workers": workers,
        "batch": recipe.batch_size,
        "size": [height, width],
        **result,
        "step": step | {"batch": shape[0]},
        "feeds": result["images_per_second"] / step["images_per_second"],
    }


def drain(batches: DataLoader[Any], burst: int, pace: Pace, progress: Progress) -> Samples:
    """Seconds of a batch from a loader whose processes each give one of `burst` in a row."""
    waiting = iter(batches)
    for _ in range((WARM + 1) * burst):  # what was prepared while nobody asked
        next(waiting)
    taken: list[float] = []
    started = time.perf_counter()
    while not pace.over(len(taken), time.perf_counter() - started):
        before = time.perf_counter()
        for _ in range(burst):
            next(waiting)
        taken.append((time.perf_counter() - before) / burst)
        progress(pace.share(len(taken), time.perf_counter() - started))
    return Samples.of(taken, burst)


def evaluation(cfg: BenchmarkConfig, device: torch.device, pace: Pace, progress: Progress) -> Row:
    """Judging images of the data set, from their files to the scores, against the net alone.

    Returns: "evaluate" and "forward", each the speed of all the images; "slower", of the two.
    """
    files = open_split(cfg.data, cfg.data.split or cfg.data.val_split)
    own = default(cfg, device, len(files.classes))
    net = Labels(own, cfg, device).net
    workers = evaluation_processes(cfg.data.num_workers, device)
    batches = evaluation_loader(files, min(EvaluateConfig().batch_size, cfg.images), workers)
    held = list(first_images(batches, cfg.images))
    # As `fcn.inference.evaluation.predict` has it: a CPU takes images one by one.
    parts = [p for image, _ in held for p in image.split(1 if device.type == "cpu" else len(image))]
    images = [floats(own, part.to(device)) for part in parts]

    def judge() -> None:
        some = first_images(batches, cfg.images)
        evaluate(net, some, len(files.classes), device=device, bf16=own.bf16)

    @torch.inference_mode()
    def forward() -> None:
        with autocast(own, device):
            for image in images:
                net(image)

    taken = take_turns({"evaluate": judge, "forward": forward}, device, pace, progress)
    count = sum(len(image) for image, _ in held)
    return {
        "data": cfg.data.name,
        "images": count,
        **{name: speed(samples, count) for name, samples in taken.items()},
        "slower": taken["evaluate"].median / taken["forward"].median,
    }


def first_images(
    batches: Iterable[tuple[Tensor, Tensor]], images: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches until they hold at least so many images, or there are no more."""
    for image, target in batches:
        yield image, target
        images -= len(image)
        if images <= 0:
            return
