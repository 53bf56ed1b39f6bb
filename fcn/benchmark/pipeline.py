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
from fcn.benchmark.runner import Runner
from fcn.config import BenchmarkConfig, EvaluateConfig
from fcn.data.datamodule import SegmentationData, evaluation_loader, open_split
from fcn.inference.evaluation import evaluate
from fcn.training.run import quieten

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
    samples = drain(
        data.train_dataloader(), max(1, cfg.data.num_workers), pace, part_of(progress, 0, 2)
    )
    recipe = cfg.recipe
    size = (cfg.size[0], cfg.size[1]) if recipe.crop is None else (recipe.crop, recipe.crop)
    # On a CPU a step of many images takes long, and images a second hardly depend on their number.
    images = 1 if device.type == "cpu" else recipe.batch_size
    runner = Runner(default(cfg, device, len(data.classes)), cfg, device)
    taken = times([runner], size, images, pace, part_of(progress, 1, 2), modes=("training",))
    step = speed(taken["training"][runner.contestant.name], images)
    result = speed(samples, recipe.batch_size)
    return {
        "data": cfg.data.name,
        "workers": cfg.data.num_workers,
        "batch": recipe.batch_size,
        "size": list(size),
        **result,
        "step": step | {"batch": images},
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
    runner = Runner(default(cfg, device, len(files.classes)), cfg, device)
    net, bf16 = runner.net.eval(), runner.contestant.bf16
    batches = evaluation_loader(files, min(EvaluateConfig().batch_size, cfg.images))
    held = list(first_images(batches, cfg.images))
    # As `fcn.inference.evaluation.predict` has it: a CPU takes images one by one.
    parts = [p for image, _ in held for p in image.split(1 if device.type == "cpu" else len(image))]
    images = [runner.floats(part.to(device)) for part in parts]

    def judge() -> None:
        some = first_images(batches, cfg.images)
        evaluate(net, some, len(files.classes), device=device, bf16=bf16)

    @torch.inference_mode()
    def forward() -> None:
        with runner.autocast():
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
