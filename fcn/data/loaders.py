"""The order of images, loaders, and both splits of a data set as a LightningDataModule.

The order of training is a pure function of the seed: batch t of a run holds the same images, cut
in the same way, for any number of workers and however often the run was interrupted.
"""

import multiprocessing
import shutil
import signal
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fcn.config import RecipeConfig
from fcn.data.dataset import SegmentationDataset
from fcn.data.transforms import TrainTransform, pad_collate, seeded
from fcn.dataset_info import VOID
from fcn.errors import ConfigError
from fcn.processes import usable_cores

MAX_BATCH_PIXELS = 2**20  # pixels of a batch at evaluation


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Batch t of a run as pairs (index, seed of its transform), which depend on seed and t alone.

    Each epoch is a new permutation of the images. Batches may span two epochs, and ranks take
    batches alternately, so that every image occurs once per epoch.

    Args:
        images: of the split.
        batch_size: images of one batch of one rank.
        batches: of one rank, in the whole run.
        seed: of the run.
        rank: of this process.
        world: number of processes.
        start: the first batch to yield: where a resumed run continues.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        batches: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ) -> None:
        self.images, self.batch_size, self.batches = images, batch_size, batches
        self.seed, self.rank, self.world = seed, rank, world
        self.start = start

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, int)
        for t in range(self.start, self.batches):
            first = (t * self.world + self.rank) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                if position // self.images != epoch:
                    epoch = position // self.images
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
                own = np.random.SeedSequence([self.seed, position, 1]).generate_state(1)[0]
                batch.append((int(order[position % self.images]), int(own)))
            yield batch


class TrainingSamples(Dataset[tuple[Tensor, Tensor]]):
    """Samples of a split, each transformed under its own seed."""

    def __init__(self, dataset: SegmentationDataset, transform: TrainTransform) -> None:
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = drawn
        with seeded(seed):
            return self.transform(*self.dataset[index])


class SameSizeBatches(Sampler[list[int]]):
    """Every image once, in batches of equal image size, distributed over ranks.

    A batch of several images has at most `MAX_BATCH_PIXELS` pixels, so that none needs much memory.

    All ranks yield the same number of batches, or a collective call would wait forever. Those with
    fewer repeat the last batch with negative indices, which `EvaluationSamples` ignores.

    Args:
        sizes: (width, height) of each image.
        batch_size: the most images of one batch.
        rank: of this process.
        world: number of processes.
    """

    def __init__(
        self, sizes: Sequence[tuple[int, int]], batch_size: int, rank: int = 0, world: int = 1
    ) -> None:
        by_size = defaultdict[tuple[int, int], list[int]](list)
        for index, size in enumerate(sizes):
            by_size[size].append(index)
        batches = []
        for (width, height), same in by_size.items():
            count = max(1, min(batch_size, MAX_BATCH_PIXELS // (width * height)))
            batches += [same[i : i + count] for i in range(0, len(same), count)]
        empty = [~index for index in batches[-1]]
        batches += [empty] * (-len(batches) % world)
        self.batches = batches[rank::world]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class EvaluationSamples(Dataset[tuple[Tensor, Tensor]]):
    """Unchanged images; a negative index ~i is image i with a target of ignored pixels only."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, target = self.dataset[index if index >= 0 else ~index]
        return image, target if index >= 0 else torch.full_like(target, VOID)


def resolve_num_workers(wanted: int | None, device: torch.device, processes: int = 1) -> int:
    """Return data.num_workers, or a number that suits the cores of each of `processes`.

    On a CPU, loading takes little time, and more processes would take cores from training.
    """
    if wanted is not None:
        return wanted
    cores = usable_cores() // processes
    return min(8, cores // 4 if device.type == "cpu" else max(1, cores))


def validation_batch_size(recipe: RecipeConfig) -> int:
    """Return the images of a batch of validation: half of training's, as they are not cropped."""
    return max(1, recipe.batch_size // 2)


def ignore_signals(worker: int) -> None:
    """Keep signals that a terminal, systemd or SLURM sends to all processes away from a worker.

    The main process still needs its batches to finish the step.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class Loader(DataLoader[tuple[Tensor, Tensor]]):
    """A loader whose processes end with the program, though they ignore signals.

    Its state for Lightning is empty, since the sampler knows the position.
    """

    def __iter__(self) -> Any:
        before = set(multiprocessing.active_children())
        iterator = super().__iter__()
        if workers := set(multiprocessing.active_children()) - before:
            Finalize(None, _kill, (workers,), exitpriority=100)  # before multiprocessing waits
        return iterator

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


def _kill(workers: Iterable[BaseProcess]) -> None:
    if hasattr(signal, "SIGCHLD"):  # whose handler of PyTorch would raise an error
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        with suppress(ValueError):  # it was closed
            worker.kill()


def evaluation_loader(
    dataset: SegmentationDataset,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Loader:
    """Return a loader of batches (image uint8 (B, C, H, W), target uint8 (B, H, W)).

    Args:
        dataset: the images, which are never resized.
        batch_size: largest number of images in a batch; all of a batch have the same size, and
            large ones come in smaller batches.
        num_workers: processes that load.
        rank: of this process among those that evaluate together.
        world: number of these.
    """
    return Loader(
        EvaluationSamples(dataset),
        batch_sampler=SameSizeBatches(dataset.sizes(), batch_size, rank, world),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
    )


def check_shared_memory(
    recipe: RecipeConfig, image: Tensor, wanted: int | None, device: torch.device, world: int
) -> None:
    """Raise a ConfigError if the batches of the loading processes do not fit into shared memory.

    Args:
        recipe: batch_size, crop.
        image: uint8 (C, H, W), a training image.
        wanted: data.num_workers.
        device: that computes.
        world: processes that train together.
    """
    workers, memory = resolve_num_workers(wanted, device, world), Path("/dev/shm")
    if not workers or not memory.is_dir():
        return
    pixels = recipe.crop**2 if recipe.crop else image.shape[1] * image.shape[2]
    # Each process has two batches of images and masks under way.
    need = 2 * workers * world * recipe.batch_size * (len(image) + 1) * pixels
    free = shutil.disk_usage(memory).free
    if free < need:
        raise ConfigError(
            f"data.num_workers={workers}: their batches need {need / 1e6:.0f} MB of shared memory, "
            f"but {memory} has {free / 1e6:.0f} MB; set data.num_workers=0, or give the container "
            "more (docker run --shm-size=1g)"
        )


class SegmentationData(pl.LightningDataModule):
    """The training and validation split of a data set under a recipe.

    Args:
        train: the split to train on.
        val: the split to validate on.
        recipe: batch size and transforms.
        seed: of the order and the transforms.
        num_workers: loading processes; None chooses for the device.
        val_limit: validate on the first images alone; None: on all.
    """

    def __init__(
        self,
        train: SegmentationDataset,
        val: SegmentationDataset,
        recipe: RecipeConfig,
        seed: int,
        num_workers: int | None = None,
        val_limit: int | None = None,
    ) -> None:
        super().__init__()
        self.train, self.val, self.recipe, self.seed = train, val, recipe, seed
        self.num_workers = num_workers
        if val_limit is not None:
            self.val = val.part(range(val_limit))

    def training_ids(self, batch: int) -> list[str]:
        """Return the image ids of a batch of the run, by its index on this rank."""
        return [self.train.ids[index] for index, _ in next(iter(self._batches(batch)))]

    def _batches(self, start: int) -> TrainingBatches:
        assert self.trainer is not None
        return TrainingBatches(
            len(self.train),
            self.recipe.batch_size,
            self.trainer.max_steps * self.trainer.accumulate_grad_batches,
            self.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
            start,
        )

    def train_dataloader(self) -> Loader:
        assert self.trainer is not None
        done = self.trainer.global_step * self.trainer.accumulate_grad_batches
        return Loader(
            TrainingSamples(self.train, TrainTransform.of(self.recipe, self.train.info.channels)),
            batch_sampler=self._batches(done),
            num_workers=self._workers(),
            collate_fn=pad_collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=ignore_signals,
        )

    def val_dataloader(self) -> Loader:
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        batch_size = validation_batch_size(self.recipe)
        return evaluation_loader(self.val, batch_size, self._workers(), rank, world)

    def _workers(self) -> int:
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        return resolve_num_workers(self.num_workers, device, self.trainer.num_devices)
