"""Splits, the order of images, and loaders, as a LightningDataModule.

The order of training is a pure function of the seed: batch t of a run holds the same images, cut
the same way, whatever the number of workers and however often the run was interrupted.
"""

import atexit
import multiprocessing
import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fcn.config import VOID, DataConfig, RecipeConfig
from fcn.data import shapes, voc
from fcn.data.files import SegmentationFiles
from fcn.data.folder import folder
from fcn.data.overlap import refuse_overlap
from fcn.data.reading import DataError
from fcn.data.sbd import sbd
from fcn.data.shards import shards
from fcn.data.transforms import Paired, pad_collate, train_transform
from fcn.machine import usable_cores


def open_split(data: DataConfig, split: str, *, strict: bool = True) -> SegmentationFiles:
    """The images and masks of one split.

    Args: strict: as for SegmentationFiles.
    Raises: DataError: something of it is not there; says what to do.
    """
    root, classes, void = Path(data.root), data.classes, data.ignore_index
    if data.layout == "sbd":
        return sbd(root, split, ignore_index=void, strict=strict)
    if data.layout == "folder":
        return folder(root, split, classes=classes, ignore_index=void, strict=strict)
    if data.layout == "shards":
        return shards(data.root, split, classes=classes, ignore_index=void)
    own = root / data.folder
    if data.layout == "shapes":
        try:
            own = shapes.prepare(root)
        except OSError as error:
            raise DataError(
                f"data.root={root}: the sample cannot be drawn there ({error.strerror}); name a "
                "folder that can be written to"
            ) from error
        classes = classes or list(shapes.CLASSES)
    return voc.voc(
        own,
        split,
        masks=data.masks,
        classes=classes or voc.CLASSES,
        ignore_index=void,
        name=data.name,
        strict=strict,
    )


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Batch t of a run as (index, seed) pairs, from the run's seed and t alone.

    Each pass over the n images is a new permutation; batches run across passes, and ranks take
    turns, so that no image comes twice in a pass. `seed` is the sample's own, for its transform.
    """

    def __init__(
        self, images: int, batch_size: int, batches: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.images, self.batch_size, self.batches = images, batch_size, batches
        self.seed, self.rank, self.world = seed, rank, world
        self.start = 0  # the first batch to give: where a resumed run goes on

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
    """Samples of a split, transformed under their own seed."""

    def __init__(self, files: SegmentationFiles, transform: Paired) -> None:
        self.files, self.transform = files, transform

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = drawn
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would see to every kind of accelerator too, half a millisecond long.
            torch.default_generator.manual_seed(seed)
            return self.transform(*self.files[index])


class SameSizeBatches(Sampler[list[int]]):
    """Every image once, in batches of one image size, shared out over ranks.

    Ranks must give the same number of batches, or a collective call would wait for ever. Those
    that have fewer repeat their last one with negative indices: `EvaluationSamples` gives these a
    target of void, so that they count nowhere.
    """

    def __init__(
        self, sizes: Sequence[tuple[int, int]], batch_size: int, rank: int = 0, world: int = 1
    ) -> None:
        by_size = defaultdict[tuple[int, int], list[int]](list)
        for index, size in enumerate(sizes):
            by_size[size].append(index)
        batches = [
            same[i : i + batch_size]
            for same in by_size.values()
            for i in range(0, len(same), batch_size)
        ]
        empty = [~index for index in batches[-1]]
        batches += [empty] * (-len(batches) % world)
        self.batches = batches[rank::world]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class EvaluationSamples(Dataset[tuple[Tensor, Tensor]]):
    """Whole images as they are; a negative index ~i is image i with nothing but void."""

    def __init__(self, files: SegmentationFiles) -> None:
        self.files = files

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, target = self.files[index if index >= 0 else ~index]
        return image, target if index >= 0 else torch.full_like(target, VOID)


def loading_processes(wanted: int | None, processes: int = 1) -> int:
    """How many processes load images: as asked, or one a core of this process's share, at most 8.

    Args: processes: how many of this run share the machine.
    """
    if wanted is not None:
        return wanted
    return min(8, max(1, usable_cores() // processes))


def evaluation_processes(wanted: int | None, device: torch.device, processes: int = 1) -> int:
    """As `loading_processes`, but none where a CPU computes: loading is little beside that."""
    return 0 if wanted is None and device.type == "cpu" else loading_processes(wanted, processes)


def evaluation_loader(
    files: SegmentationFiles,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches (image uint8 (B, 3, H, W), target uint8 (B, H, W)), images never resized."""
    return DataLoader(
        EvaluationSamples(files),
        batch_sampler=SameSizeBatches(files.sizes(), batch_size, rank, world),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=leave_signals,
    )


def leave_signals(worker: int) -> None:
    """A signal to the whole group is the first process's to act on, which wants its batch yet."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def end_loading() -> None:
    """At exit: processes that leave SIGTERM be would else be waited for without end."""
    for process in multiprocessing.active_children():
        process.kill()


class TrainingLoader(DataLoader[tuple[Tensor, Tensor]]):
    """A loader that Lightning may resume: the sampler alone knows where a run stands."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


class SegmentationData(pl.LightningDataModule):
    """The training and validation splits of a data set under a recipe.

    Raises: DataError: at once, where a split is missing or the two overlap.
    """

    def __init__(self, data: DataConfig, recipe: RecipeConfig, seed: int) -> None:
        super().__init__()
        self.data, self.recipe, self.seed = data, recipe, seed
        self.train = open_split(data, data.train_split)
        self.val = open_split(data, data.val_split)
        refuse_overlap(self.train, self.val)

    @property
    def classes(self) -> list[str]:
        return self.train.classes

    def training_ids(self, batch: int) -> list[str]:
        """The images of a batch of the run, by its index on this rank; this may take a second."""
        order = self._training_batches()
        order.start = batch
        return [self.train.ids[index] for index, _ in next(iter(order))]

    def train_dataloader(self) -> TrainingLoader:
        assert self.trainer is not None
        recipe, trainer = self.recipe, self.trainer
        batches = self._training_batches()
        batches.start = trainer.global_step * trainer.accumulate_grad_batches
        transform = train_transform(recipe.crop, recipe.scale, recipe.flip, recipe.jitter)
        return TrainingLoader(
            TrainingSamples(self.train, transform),
            batch_sampler=batches,
            num_workers=loading_processes(self.data.num_workers, trainer.num_devices),
            collate_fn=pad_collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=leave_signals,
        )

    def _training_batches(self) -> TrainingBatches:
        assert self.trainer is not None
        return TrainingBatches(
            len(self.train),
            self.recipe.batch_size,
            self.trainer.max_steps * self.trainer.accumulate_grad_batches,
            self.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        return evaluation_loader(
            self.val,
            max(1, self.recipe.batch_size // 2),
            evaluation_processes(self.data.num_workers, device, self.trainer.num_devices),
            self.trainer.global_rank,
            self.trainer.world_size,
        )
