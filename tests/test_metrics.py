"""Metrics against values computed by hand, and by other libraries."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch.profiler import ProfilerActivity, profile
from torchmetrics.classification import MulticlassConfusionMatrix

from fcn.inference.metrics import (
    LEVEL,
    TRIMAP_WIDTHS,
    ConfusionMatrix,
    Trimap,
    difference,
    estimate,
    image_confusions,
    metrics_of,
    other_rates,
    rates,
    resample,
    tally,
)


def brute_force(target: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    """The four metrics by counting pixels one by one, as section 5 of the paper defines them."""
    n = np.zeros((classes, classes), int)
    for t, p in zip(target.flat, predicted.flat, strict=True):
        if t != 255:
            n[t, p] += 1
    total = n.sum(1)
    union = [total[i] + n[:, i].sum() - n[i, i] for i in range(classes)]
    occurring = [i for i in range(classes) if union[i]]
    labelled = [i for i in range(classes) if total[i]]
    return {
        "pixel_accuracy": sum(n[i, i] for i in range(classes)) / sum(total),
        "mean_accuracy": sum(n[i, i] / total[i] for i in labelled) / len(labelled),
        "mean_iou": sum(n[i, i] / union[i] for i in occurring) / len(occurring),
        "frequency_weighted_iou": sum(total[i] * n[i, i] / union[i] for i in occurring)
        / sum(total),
    }


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_a_brute_force_count(seed: int) -> None:
    """With ignored pixels, a class absent from the ground truth, and one absent altogether."""
    rng = np.random.default_rng(seed)
    target = rng.choice([0, 1, 2, 4, 6, 255], (3, 9, 8))
    predicted = rng.choice([0, 1, 2, 3, 4, 6], (3, 9, 8))
    confusion = ConfusionMatrix(7)
    for t, p in zip(target, predicted, strict=True):
        confusion.update(torch.from_numpy(p)[None], torch.from_numpy(t)[None])
    result = metrics_of(confusion.compute())
    for name, value in brute_force(target, predicted, 7).items():
        assert getattr(result, name) == pytest.approx(value, abs=1e-12)
    assert result.iou[3] == 0
    assert math.isnan(result.iou[5])
    assert math.isnan(result.accuracy[3])


def test_many_pixels_are_counted_exactly() -> None:
    """A float32 count would stop at 2^24."""
    confusion = ConfusionMatrix(2)
    confusion.confmat[1, 1] = 2**24
    confusion.update(torch.ones(1, 1, 1, dtype=torch.int64), torch.ones(1, 1, 1, dtype=torch.int64))
    assert int(metrics_of(confusion.compute()).confusion[1, 1]) == 2**24 + 1


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("classes", [2, 21, 150])
@pytest.mark.usefixtures("deterministic")
def test_an_image_costs_no_more_memory_than_a_few_numbers_a_pixel(classes: int) -> None:
    """Nor is an operation used that must not be where results are to be deterministic."""
    image = torch.randint(0, classes, (1, 375, 500))
    confusion = ConfusionMatrix(classes)
    with profile(profile_memory=True, activities=[ProfilerActivity.CPU]) as measured:
        confusion.update(image, image)
    taken = sum(max(event.cpu_memory_usage, 0) for event in measured.events())
    assert taken < 100 * image.numel()
    assert int(confusion.compute().diagonal().sum()) == image.numel()


def test_batches_add_up_to_torchmetrics_confusion() -> None:
    rng = np.random.default_rng(0)
    own, theirs = ConfusionMatrix(6), MulticlassConfusionMatrix(6, ignore_index=255)
    for _ in range(3):
        target = torch.from_numpy(rng.choice([0, 1, 2, 4, 255], (5, 6, 7)))
        predicted = torch.from_numpy(rng.choice([0, 1, 3, 4], (5, 6, 7)))
        own.update(predicted, target)
        theirs.update(predicted, target)
        kept = own.compute()
        assert torch.equal(kept, theirs.compute())
    own.reset()
    assert int(kept.sum()) > 0
    own.update(predicted, target)
    assert int(own.compute().sum()) == int((target != 255).sum())


def test_images_add_up_to_the_confusion_of_a_batch() -> None:
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.choice([0, 1, 2, 4, 255], (5, 6, 7)).astype(np.uint8))
    target[3] = 255
    predicted = torch.from_numpy(rng.choice([0, 1, 3, 4], (5, 6, 7)))
    each = image_confusions(predicted, target, 6)
    assert each.shape == (5, 6, 6)
    for images in (slice(None), *(slice(i, i + 1) for i in range(5))):
        expected = ConfusionMatrix(6)
        expected.update(predicted[images], target[images].long())
        assert torch.equal(each[images].sum(0), expected.compute())
    together = rates(tally(each))
    assert torch.isnan(together["mean_iou"][3])  # every pixel ignored
    for name, value in together.items():
        assert np.array_equal(value[1], getattr(metrics_of(each[1]), name), equal_nan=True)


@pytest.mark.parametrize("shape", [(70, 90), (3, 60), (60, 5)])
def test_trimap_equals_the_distance_transform_of_every_label(shape: tuple[int, int]) -> None:
    """On patches of all sizes with a line of ignored pixels through them, and lone pixels."""
    rng, classes, pairs = np.random.default_rng(0), 5, []
    expected, trimap = np.zeros((len(TRIMAP_WIDTHS), classes, classes), int), Trimap(classes)
    for side in range(1, 40, 3):
        rows, columns = (np.arange(n) // side for n in shape)
        target = rng.choice([0, 1, 4, 255], shape)[rows][:, columns]
        target[:, shape[1] // 2] = 255
        target[rng.random(shape) < 0.01 / side] = 3
        predicted = rng.choice(classes, shape)
        pairs.append((predicted, target))
        masks = [target == label for label in np.unique(target)]
        distance = sum(distance_transform_edt(own) for own in masks)  # 0 outside the label's own
        ring = np.ceil(distance).astype(int) - 1
        seen = (ring < len(expected)) & (target != 255)
        np.add.at(expected, (ring[seen], target[seen], predicted[seen]), 1)
    images = [torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True)]
    for batch in (slice(1), slice(1, None)):
        trimap.update(*(arrays[batch] for arrays in images))
    assert np.array_equal(trimap.rings, expected)
    for width, mean_iou in zip(TRIMAP_WIDTHS, trimap.mean_iou(), strict=True):
        band = torch.from_numpy(expected[:width].sum(0))
        assert mean_iou == pytest.approx(metrics_of(band).mean_iou, nan_ok=True)


def test_a_band_wider_than_the_image_is_the_image_and_one_label_has_no_boundary() -> None:
    target = torch.zeros(1, 9, 15, dtype=torch.uint8)
    prediction = torch.randint(0, 2, target.shape)
    trimap, confusion = Trimap(2), ConfusionMatrix(2)
    trimap.update(prediction, target)
    assert np.isnan(trimap.mean_iou()).all()
    target[:, :, 7:] = 1
    for accumulator in (trimap, confusion):
        accumulator.update(prediction, target)
    assert trimap.mean_iou()[-1] == metrics_of(confusion.compute()).mean_iou


def per_image(seed: int, images: int = 40) -> torch.Tensor:
    """Random tallies of images of two classes with 100 pixels each."""
    rng = np.random.default_rng(seed)
    correct = rng.integers(20, 50, (images, 2))
    confusion = np.stack([np.diag(c) for c in correct])
    confusion[:, 0, 1], confusion[:, 1, 0] = 50 - correct[:, 0], 50 - correct[:, 1]
    return tally(torch.from_numpy(confusion))


def test_bootstrap_intervals_cover_a_mean_as_often_as_they_say() -> None:
    """Of the pixel accuracy of equally large images, which is a plain mean."""
    true = (20 + 49) / 2 / 50
    inside = 0
    for seed in range(100):
        (found,) = estimate(resample(per_image(seed)), "pixel_accuracy")
        inside += found.low <= true <= found.high
    assert LEVEL * 100 - 8 <= inside <= 100


def test_a_difference_is_paired_and_a_run_differs_from_itself_by_nothing() -> None:
    one, other = resample(per_image(0)), resample(per_image(1))
    for name in ("mean_iou", "iou"):
        for nothing in estimate(difference(one, one), name):
            assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    (change,) = estimate(difference(one, other), "mean_iou")
    expected = rates(per_image(0).sum(0))["mean_iou"] - rates(per_image(1).sum(0))["mean_iou"]
    assert change.value == pytest.approx(float(expected))
    assert change.low < change.value < change.high
    assert len(estimate(one, "iou")) == 2


def test_rates_of_other_tools_by_hand() -> None:
    """Two images of three classes; class 2 is in neither mask, and predicted once."""
    first = torch.tensor([[6, 2, 0], [0, 2, 0], [0, 0, 0]])
    second = torch.tensor([[9, 0, 1], [0, 0, 0], [0, 0, 0]])
    found = other_rates(tally(torch.stack([first, second])), background=True)
    assert found["precision"].tolist() == pytest.approx([15 / 15, 2 / 4, 0 / 1])
    assert found["f1"].tolist() == pytest.approx([30 / 33, 4 / 6, 0])
    iou = metrics_of(first + second).iou
    assert found["f1"].tolist() == pytest.approx((2 * iou / (1 + iou)).tolist())
    assert float(found["mean_f1"]) == pytest.approx((30 / 33 + 4 / 6) / 3)
    assert float(found["mean_precision"]) == pytest.approx(1.5 / 3)
    assert float(found["mean_iou_without_background"]) == pytest.approx((2 / 4 + 0) / 2)
    images = [(6 / 8 + 2 / 4) / 2, (9 / 10 + 0) / 2]  # absent classes left out
    assert float(found["mean_iou_over_images"]) == pytest.approx(sum(images) / 2)
    without = other_rates(tally(first[None]), background=False)
    assert math.isnan(without["mean_iou_without_background"])
