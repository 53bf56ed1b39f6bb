"""One confusion matrix, the paper's four metrics of it, and how certain they are.

n_ij counts the pixels of class i predicted as class j, ignored pixels left out; t_i = sum_j n_ij.
Long et al. 2015, sec. 5. A class that occurs neither in the ground truth nor in the prediction has
no IoU (NaN) and stays out of the mean.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from fcn.dataset_info import VOID

TRIMAP_WIDTHS = range(1, 21)  # pixels, of the bands around boundaries
WIDEST = TRIMAP_WIDTHS[-1]
MEANS = {"mean_iou": "iou", "mean_accuracy": "accuracy"}  # over classes
RESAMPLES, SEED, LEVEL = 2000, 0, 0.95  # of the bootstrap


class ConfusionMatrix(Metric):
    """An accumulator: update(prediction BHW, target BHW), compute() -> int64 (K, K).

    torchmetrics' own needs K^2 integers for every pixel where results must be deterministic and on
    Apple's GPUs: 1.4 GB for an image of Pascal VOC.

    Args:
        num_classes: K.
        sync_on_compute: compute() sums over the processes of a run, all of which must call it.
    """

    full_state_update = False
    confmat: Tensor

    def __init__(self, num_classes: int, *, sync_on_compute: bool = False) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confmat", zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch, see `image_confusions`."""
        counts = image_confusions(prediction, target, len(self.confmat)).sum(0)
        self.confmat += counts.to(self.confmat.device)

    def compute(self) -> Tensor:
        """Return the confusion matrix, rows ground truth, columns prediction."""
        return self.confmat.clone()


@dataclass(frozen=True)
class Metrics:
    """The paper's metrics of a confusion matrix, all in 0..1; NaN where they are undefined."""

    confusion: Tensor  # int64 (K, K), rows ground truth, columns prediction
    iou: Tensor  # float64 (K,)
    accuracy: Tensor  # float64 (K,)
    mean_iou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float


def metrics_of(confusion: Tensor) -> Metrics:
    """Return the paper's metrics of a confusion matrix, int (K, K)."""
    confusion = confusion.cpu().to(torch.int64)
    result = rates(tally(confusion))
    means = {name: float(value) for name, value in result.items() if value.ndim == 0}
    return Metrics(confusion, result["iou"], result["accuracy"], **means)


def image_confusions(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Return the confusion matrix of each image of a batch.

    Args:
        prediction: integers (B, H, W), 0..K-1.
        target: integers (B, H, W) on the same device, 255 = ignored.
        num_classes: K.

    Returns:
        int64 (B, K, K), rows ground truth, columns prediction.
    """
    if target.device.type not in ("cpu", "cuda"):  # others do not all count
        prediction, target = prediction.cpu(), target.cpu()
    b, k = len(target), num_classes
    image = torch.arange(b, device=target.device)[:, None, None]
    cell = ((VOID + 1) * image + target) * k + prediction  # int64: a row for every 8-bit label
    counts = torch.bincount(cell.flatten(), minlength=b * (VOID + 1) * k)
    return counts.reshape(b, VOID + 1, k)[:, :k]


def tally(confusion: Tensor) -> Tensor:
    """Return what the metrics need of confusion matrices; tallies of images add up.

    Args:
        confusion: (..., K, K).

    Returns:
        (..., 3, K): true-positive, ground-truth and predicted pixels of each class.
    """
    correct = confusion.diagonal(dim1=-2, dim2=-1)
    return torch.stack((correct, confusion.sum(-1), confusion.sum(-2)), -2)


def rates(tally: Tensor) -> dict[str, Tensor]:
    """Return the paper's metrics, by the names of `Metrics`, of many tallies at once.

    Args:
        tally: (..., 3, K), of the function `tally`.

    Returns:
        float64: "iou" and "accuracy" (..., K), the others (...).
    """
    correct, actual, predicted = tally.to(torch.float64).unbind(-2)
    iou = correct / (actual + predicted - correct)
    accuracy = correct / actual
    total = actual.sum(-1)
    return {
        "iou": iou,
        "accuracy": accuracy,
        "mean_iou": iou.nanmean(-1),
        "pixel_accuracy": correct.sum(-1) / total,
        "mean_accuracy": accuracy.nanmean(-1),
        "frequency_weighted_iou": (actual * iou.nan_to_num()).sum(-1) / total,
    }


METRICS = {  # the paper's
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
}
# What other tools print for the same masks: see `other_rates`.
OTHERS = {
    "mean_f1": "mean F1 (Dice)",
    "mean_precision": "mean precision",
    "mean_iou_without_background": "mean IoU without background",
    "mean_iou_over_images": "mean over the images' own mean IoU",
}


def other_rates(per_image: Tensor, *, background: bool) -> dict[str, Tensor]:
    """Return the metrics that other tools report, which differ for the same masks.

    The paper's mean IoU is over the classes of one confusion matrix of all images; a class that is
    neither in the ground truth nor predicted stays out of it. Others print

    - precision, n_ii / sum_j n_ji, of the classes that are predicted (accuracy is the recall);
    - F1, which is Dice, 2 n_ii / (t_i + sum_j n_ji): above the IoU, as F1 = 2 IoU / (1 + IoU);
    - the mean IoU without class 0, where that is background;
    - the mean over images of each image's own mean IoU, over the classes that occur in it. Tools
      that count a class absent from an image as 1 there, or as 0, print another number again.

    Args:
        per_image: int (N, 3, K), the tally of each image.
        background: whether class 0 is background.

    Returns:
        float64: "precision" and "f1" (K,), and the means of `OTHERS`; NaN where there is none.
    """
    correct, actual, predicted = per_image.sum(0).to(torch.float64)
    f1, precision = 2 * correct / (actual + predicted), correct / predicted
    iou = rates(per_image.sum(0))["iou"]
    return {
        "precision": precision,
        "f1": f1,
        "mean_precision": precision.nanmean(),
        "mean_f1": f1.nanmean(),
        "mean_iou_without_background": iou[1:].nanmean() if background else iou.new_tensor(np.nan),
        "mean_iou_over_images": rates(per_image)["mean_iou"].nanmean(),
    }


class Trimap:
    """Confusion within bands around the boundaries of the ground truth, 1 to 20 pixels wide.

    A boundary lies between pixels of different labels, the ignored label being one: where a data
    set outlines objects with ignored pixels, as VOC does, the bands start at the outline's edges.
    Band w holds the pixels at most w from the nearest pixel across a boundary (Euclidean).

    Source: Kohli et al. 2009; mean IoU in a trimap as Krähenbühl & Koltun 2011 plot it.
    """

    def __init__(self, num_classes: int) -> None:
        k = num_classes
        self.rings = np.zeros((len(TRIMAP_WIDTHS), k, k), np.int64)  # w - 1 < distance <= w

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch: predictions 0..K-1 and targets, 255 = ignored, integers (B, H, W)."""
        rings, k = self.rings, len(self.rings[0])
        for predicted, labels in zip(prediction.cpu().numpy(), target.cpu().numpy(), strict=True):
            squared = _squared_distance(labels)
            seen = (squared <= WIDEST**2) & (labels != VOID)
            ring = np.ceil(np.sqrt(squared[seen])).astype(np.int64) - 1
            cell = (ring * k + labels[seen]) * k + predicted[seen]
            self.rings += np.bincount(cell, minlength=rings.size).reshape(rings.shape)

    def mean_iou(self) -> list[float]:
        """Return the mean IoU of each band, in 0..1; NaN for one without pixels."""
        return [metrics_of(torch.from_numpy(band)).mean_iou for band in self.rings.cumsum(0)]


def _squared_distance(labels: np.ndarray) -> np.ndarray:
    """Return the squared distance (H, W) from each pixel to the nearest of another label.

    It is exact up to the widest band, and some larger number beyond. The nearest other pixel lies
    in the same column, or k rows away. In the second case the pixel k rows straight above or below
    has the label of the first, and its own distance along the row is the rest of the way.
    """
    across, squared = _line_distance(labels.T).T ** 2, _line_distance(labels) ** 2
    np.minimum(squared, across, out=squared)
    for k in range(1, WIDEST):
        _lower(squared, across + k**2, k)
    return squared


def _line_distance(labels: np.ndarray) -> np.ndarray:
    """Return the distance to the nearest pixel of another label in the same column, uint16."""
    distance = np.full_like(labels, WIDEST + 1, np.uint16)  # in the same memory order
    differs = labels[1:] != labels[:-1]
    distance[1:][differs] = distance[:-1][differs] = 1
    for step in (1, 2, 4, 8, 16):  # sums of these are all distances up to 31
        _lower(distance, distance + step, step)
    return distance


def _lower(values: np.ndarray, others: np.ndarray, step: int) -> None:
    """Lower values to others that lie `step` rows above or below, where these are less."""
    np.minimum(values[step:], others[:-step], out=values[step:])
    np.minimum(values[:-step], others[step:], out=values[:-step])


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Resampled:
    """Metrics by their names in `rates`, of all images and of every resample of them."""

    whole: dict[str, Tensor]  # (K,) or ()
    drawn: dict[str, Tensor]  # (R, K) or (R,)


def resample(per_image: Tensor, seed: int = SEED) -> Resampled:
    """Draw N of N images with replacement, `RESAMPLES` times (the bootstrap, Efron 1979).

    The draws depend on N and the seed alone, so two runs evaluated on the same images are compared
    in pairs.

    Args:
        per_image: int64 (N, 3, K), the tally of each image.
        seed: of the draws, which should differ between sets of images.
    """
    n = len(per_image)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    drawn = torch.from_numpy(times).double() @ per_image.flatten(1).double()  # exact: below 2^53
    return Resampled(rates(per_image.sum(0)), rates(drawn.unflatten(1, per_image.shape[1:])))


def difference(run: Resampled, minus: Resampled) -> Resampled:
    """Return how far the metrics of a run are above those of another on the same images.

    The difference of two means is over the classes that both have.
    """

    def subtract(own: dict[str, Tensor], others: dict[str, Tensor]) -> dict[str, Tensor]:
        above = {metric: value - others[metric] for metric, value in own.items()}
        return above | {mean: above[each].nanmean(-1) for mean, each in MEANS.items()}

    return Resampled(subtract(run.whole, minus.whole), subtract(run.drawn, minus.drawn))


def estimate(run: Resampled, metric: str) -> list[Estimate]:
    """Return a metric, by its name in `rates`, with its `LEVEL` interval.

    Returns:
        One estimate per class for "iou" and "accuracy", otherwise one alone.
    """
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    drawn = run.drawn[metric].reshape(RESAMPLES, -1)
    low, high = torch.nanquantile(drawn, tails, dim=0).tolist()
    values = run.whole[metric].reshape(-1).tolist()
    return [
        Estimate(*(None if math.isnan(value) else number for number in (value, a, b)))
        for value, a, b in zip(values, low, high, strict=True)
    ]
