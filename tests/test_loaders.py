"""The order of images in training and evaluation, and the processes that load them."""

import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fcn.config import RecipeConfig
from fcn.data.layouts import open_split
from fcn.data.loaders import (
    EvaluationSamples,
    Loader,
    SameSizeBatches,
    SegmentationData,
    TrainingBatches,
    TrainingSamples,
    check_shared_memory,
    evaluation_loader,
    ignore_signals,
    resolve_num_workers,
)
from fcn.data.transforms import TrainTransform
from fcn.errors import ConfigError
from tests.conftest import TinyVOC
from tests.test_transforms import DRAWING


def test_batches_have_these_images_and_seeds() -> None:
    """Stored: a run that is resumed with another version continues in the same order."""
    assert list(TrainingBatches(5, 2, 4, seed=7)) == [
        [(2, 2028854884), (0, 582607262)],
        [(4, 1060258595), (1, 1060801321)],
        [(3, 3210196619), (3, 4109687493)],
        [(0, 3434892207), (2, 1773801028)],
    ]


def test_batches_depend_on_the_seed_and_start_anywhere() -> None:
    whole = list(TrainingBatches(10, 3, 20, seed=1))
    assert whole != list(TrainingBatches(10, 3, 20, seed=2))
    rest = TrainingBatches(10, 3, 20, seed=1, start=13)
    assert list(rest) == whole[13:]
    assert len(rest) == 20


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_take_the_batches_of_one_process_alternately(world: int) -> None:
    ranks = [list(TrainingBatches(10, 2, 5, 1, rank, world)) for rank in range(world)]
    merged = [batch for step in zip(*ranks, strict=True) for batch in step]
    assert merged == list(TrainingBatches(10, 2, 5 * world, 1))
    drawn = [index for batch in merged for index, _ in batch]
    assert sorted(drawn[:10]) == list(range(10))  # an epoch


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_evaluation_counts_every_image_once_over_ranks(world: int) -> None:
    sizes = [(4, 3), (3, 4), (4, 3), (4, 3), (3, 4), (5, 5), (4, 3)]
    ranks = [list(SameSizeBatches(sizes, 3, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for rank in ranks for batch in rank]
    assert Counter(i for batch in batches for i in batch if i >= 0) == dict.fromkeys(range(7), 1)
    for batch in batches:
        assert len({sizes[i if i >= 0 else ~i] for i in batch}) == 1
        assert len(batch) <= 3


def test_samples_are_the_same_for_any_number_of_workers(tiny_voc: TinyVOC) -> None:
    dataset = open_split(tiny_voc.config(), "train")
    recipe = RecipeConfig(
        "test", crop=32, scale=[0.5, 2.0], flip=True, jitter=0.5, transforms=DRAWING
    )
    samples = TrainingSamples(dataset, TrainTransform.of(recipe, 3))

    def load(num_workers: int) -> list[torch.Tensor]:
        torch.manual_seed(num_workers)  # must not matter
        batches = TrainingBatches(len(dataset), 2, 5, seed=3)
        loader = DataLoader(samples, batch_sampler=batches, num_workers=num_workers)
        return [part for batch in loader for part in batch]

    assert all(torch.equal(a, b) for a, b in zip(load(0), load(2), strict=True))


def test_evaluation_keeps_images_as_they_are(tiny_voc: TinyVOC) -> None:
    """A negative index is an image without a target."""
    dataset = open_split(tiny_voc.config(), "train")
    image, target = EvaluationSamples(dataset)[~1]
    assert torch.equal(image, dataset[1][0])
    assert (target == 255).all()
    batches = list(evaluation_loader(dataset, 2))
    assert [tuple(image.shape) for image, _ in batches] == [(2, 3, 50, 40), (2, 3, 48, 64)]
    assert {image.dtype for batch in batches for image in batch} == {torch.uint8}
    assert torch.equal(batches[0][0][1], dataset[2][0])


def test_the_loading_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [resolve_num_workers(None, cuda, n) for n in (1, 2, 4, 12, 100)] == [8, 6, 3, 1, 1]
    assert [resolve_num_workers(None, cpu, n) for n in (1, 2, 4)] == [3, 1, 0]
    assert [resolve_num_workers(n, cuda, 2) for n in (0, 30)] == [0, 30]


def test_a_run_resumes_at_the_batch_after_its_last_step(tiny_voc: TinyVOC) -> None:
    """6 steps of 2 batches; after step 4, the loader starts at batch 8 of 12."""
    train, val = (open_split(tiny_voc.config(), name) for name in ("train", "val"))
    recipe = RecipeConfig(batch_size=3, crop=16)
    data = SegmentationData(train, val, recipe, seed=1, num_workers=0)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_step=4, max_steps=6, accumulate_grad_batches=2, num_devices=1, global_rank=0,
        world_size=1, strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    batches = list(data.train_dataloader())
    assert len(batches) == 12 - 8
    assert batches[0][0].shape == (3, 3, 16, 16)
    expected = list(TrainingBatches(4, 3, 12, seed=1))[8]
    assert data.training_ids(8) == [f"t{index}" for index, _ in expected]
    assert [len(image) for image, _ in data.val_dataloader()] == [1, 1]  # 3 // 2 at a time


class Slow(Dataset[int]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> int:
        time.sleep(0.05)
        return index


def interrupted(result: Path) -> None:
    """Signals itself and its workers, reads on, and ends without closing its loader."""
    os.setsid()
    heard: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    for number in numbers:
        signal.signal(number, lambda number, _: heard.append(number))
    batches = iter(Loader(Slow(), num_workers=2, worker_init_fn=ignore_signals))
    got = [int(next(batches)) for _ in range(2)]
    for number in numbers:
        os.killpg(os.getpgrp(), number)
    got += [int(next(batches)) for _ in range(6)]
    sys.modules["kept"] = batches  # type: ignore[assignment]
    result.write_text(f"{heard == list(numbers)} {got}")


@pytest.mark.skipif(sys.platform != "linux", reason="needs process groups and fork")
def test_signals_to_the_group_leave_the_batches_and_exit_does_not_hang(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=interrupted, args=[tmp_path / "r"])
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert (tmp_path / "r").read_text() == f"True {list(range(8))}"


def test_too_little_shared_memory_is_said_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker gives 64 MB; 8 processes have two batches of 16 crops each under way."""
    recipe, image = RecipeConfig(batch_size=16, crop=480), torch.zeros(3, 9, 9)
    need = 2 * 8 * 16 * 480 * 480 * 4  # of image and mask, in bytes
    for free, workers, enough in ((2**26, 8, False), (need, 8, True), (2**26, 0, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        judged = pytest.raises(ConfigError, match=r"shm.*data\.num_workers=0")
        with nullcontext() if enough else judged:
            check_shared_memory(recipe, image, workers, torch.device("cpu"), 1)
