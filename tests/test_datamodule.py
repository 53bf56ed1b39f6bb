import os

import pytest
import torch
from torch.utils.data import DataLoader

from fcn.data.datamodule import (
    EvaluationSamples,
    TrainingBatches,
    TrainingSamples,
    evaluation_loader,
    loading_processes,
    open_split,
    refuse_overlap,
)
from fcn.data.reading import DataError
from fcn.data.transforms import train_transform
from tests.conftest import TinyVOC


def test_batches_depend_on_the_seed_and_start_anywhere() -> None:
    whole = list(TrainingBatches(10, 3, 20, seed=1))
    assert whole == list(TrainingBatches(10, 3, 20, seed=1))
    assert whole != list(TrainingBatches(10, 3, 20, seed=2))
    rest = TrainingBatches(10, 3, 20, seed=1)
    rest.start = 13
    assert list(rest) == whole[13:]
    assert len(rest) == 20


@pytest.mark.parametrize("workers", [1, 2])
def test_samples_are_the_same_for_any_number_of_workers(tiny_voc: TinyVOC, workers: int) -> None:
    files = open_split(tiny_voc.config(), "train")
    samples = TrainingSamples(files, train_transform(32, [0.5, 2.0], True, 0.5))

    def load(num_workers: int) -> list[torch.Tensor]:
        torch.manual_seed(num_workers)  # of the process: must not matter
        batches = TrainingBatches(len(files), 2, 5, seed=3)
        loader = DataLoader(samples, batch_sampler=batches, num_workers=num_workers)
        return [part for batch in loader for part in batch]

    assert all(torch.equal(a, b) for a, b in zip(load(0), load(workers), strict=True))


def test_drawing_a_sample_leaves_the_global_generator_alone(tiny_voc: TinyVOC) -> None:
    files = open_split(tiny_voc.config(), "train")
    before = torch.get_rng_state()
    TrainingSamples(files, train_transform(32, [0.5, 2.0], True, 0.5))[(0, 5)]
    assert torch.equal(before, torch.get_rng_state())


def test_the_images_that_fill_up_a_rank_are_void(tiny_voc: TinyVOC) -> None:
    samples = EvaluationSamples(open_split(tiny_voc.config(), "val"))
    image, target = samples[~1]
    assert torch.equal(image, samples[1][0])
    assert (target == 255).all()


def test_evaluation_keeps_images_whole(tiny_voc: TinyVOC) -> None:
    files = open_split(tiny_voc.config(), "train")
    shapes = [tuple(image.shape) for image, _ in evaluation_loader(files, 2)]
    assert shapes == [(2, 3, 50, 40), (2, 3, 48, 64)]


def test_overlap_is_refused_by_name(tiny_voc: TinyVOC) -> None:
    tiny_voc.listing("val").write_text("v0\nt2\n")
    train, val = (open_split(tiny_voc.config(), split) for split in ("train", "val"))
    with pytest.raises(DataError, match=r"1 images are in both .*t2 among them"):
        refuse_overlap(train, val)


def test_as_many_processes_load_as_the_machine_can_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert [loading_processes(None, n) for n in (1, 2, 4, 12, 100)] == [8, 6, 3, 1, 1]
    assert [loading_processes(n, 2) for n in (0, 30)] == [0, 30]
