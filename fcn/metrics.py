"""One confusion matrix, and the paper's four metrics of it.

n_ij counts the pixels of class i predicted as j; void is counted nowhere; t_i = sum_j n_ij.
Long et al. 2015, sec. 5. A class that neither truth nor prediction shows has no IoU (NaN) and
stays out of the mean.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from fcn.config import VOID

TRIMAP_WIDTHS = range(1, 21)  # pixels, of the bands round the borders


def confusion_matrix(num_classes: int, *, over_ranks: bool = False) -> MulticlassConfusionMatrix:
    """An accumulator over batches: update(prediction BHW, target BHW), compute() -> (K, K).

    Args: over_ranks: compute() sums over the processes of a run, all of which must call it.
    """
    return MulticlassConfusionMatrix(
        num_classes, ignore_index=VOID, validate_args=False, sync_on_compute=over_ranks
    )


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says. All in 0..1, float64; NaN where nothing can be said."""

    confusion: Tensor  # int64 (K, K), rows truth, columns prediction
    iou: Tensor  # float64 (K,)
    accuracy: Tensor  # float64 (K,)
    mean_iou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float


def scores(confusion: Tensor) -> Scores:
    """The paper's metrics of a confusion matrix, int (K, K)."""
    result = rates(tally(confusion.cpu()))
    return Scores(
        confusion=confusion.cpu().to(torch.int64),
        iou=result["iou"],
        accuracy=result["accuracy"],
        mean_iou=float(result["mean_iou"]),
        pixel_accuracy=float(result["pixel_accuracy"]),
        mean_accuracy=float(result["mean_accuracy"]),
        frequency_weighted_iou=float(result["frequency_weighted_iou"]),
    )


def image_confusions(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """The confusion matrix of each image of a batch.

    Args: prediction, target: integers (B, H, W) on one device; target 255 is void.
    Returns: int64 (B, K, K), rows truth, columns prediction.
    """
    b, k = len(target), num_classes
    image = torch.arange(b, device=target.device)[:, None, None].expand_as(target)
    seen = target != VOID
    cell = (image[seen] * k + target[seen].long()) * k + prediction[seen].long()
    return torch.bincount(cell, minlength=b * k * k).reshape(b, k, k)


def tally(confusion: Tensor) -> Tensor:
    """What the metrics need of confusion matrices, (..., K, K): (..., 3, K) of the same kind.

    The three are a class's pixels that are right, those of the truth, and those predicted.
    """
    return torch.stack(
        (confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1), confusion.sum(-2)), -2
    )


def rates(tally: Tensor) -> dict[str, Tensor]:
    """The paper's metrics by the names of `Scores`, of many tallies at once.

    Args: tally: (..., 3, K) as the function `tally` gives it; tallies of images add up.
    Returns: float64, of each class (..., K) and of all together (...).
    """
    right, truth, predicted = tally.to(torch.float64).unbind(-2)
    iou = right / (truth + predicted - right)
    accuracy = right / truth
    total = truth.sum(-1)
    return {
        "iou": iou,
        "accuracy": accuracy,
        "mean_iou": iou.nanmean(-1),
        "pixel_accuracy": right.sum(-1) / total,
        "mean_accuracy": accuracy.nanmean(-1),
        "frequency_weighted_iou": (truth * iou.nan_to_num()).sum(-1) / total,
    }


class Trimap:
    """Confusion within bands round the borders of the truth, 1 to 20 pixels wide on either side.

    A border lies between pixels of different labels, void being one: where a data set outlines
    objects in void, as VOC does, the bands begin at that line's rims. Band w holds the pixels whose
    centres are at most w from one across a border (Euclidean).
    Source: Kohli et al. 2009; mean IoU in a trimap as Krähenbühl & Koltun 2011 plot it.
    """

    def __init__(self, num_classes: int) -> None:
        k = num_classes
        self.rings = np.zeros((len(TRIMAP_WIDTHS), k, k), np.int64)  # w - 1 < distance <= w

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts a batch. Args: prediction, target: integers (B, H, W); target 255 is void."""
        rings, k, _ = self.rings.shape
        for predicted, truth in zip(prediction.cpu().numpy(), target.cpu().numpy(), strict=True):
            ring = np.ceil(border_distance(truth)) - 1
            seen = (ring < rings) & (truth != VOID)
            cell = (ring[seen].astype(np.int64) * k + truth[seen]) * k + predicted[seen]
            self.rings += np.bincount(cell, minlength=self.rings.size).reshape(self.rings.shape)

    def mean_iou(self) -> list[float]:
        """Mean IoU of each band, in 0..1, NaN for one without pixels."""
        return [scores(torch.from_numpy(band)).mean_iou for band in self.rings.cumsum(0)]


def border_distance(labels: np.ndarray) -> np.ndarray:
    """From every pixel to the nearest one across a border: (H, W) integers -> float (H, W), >= 1.

    Without any border, infinite.
    """
    from scipy.ndimage import distance_transform_edt  # slow to import

    distance = np.full(labels.shape, np.inf)
    for label in np.unique(labels):
        own = labels == label
        if not own.all():
            distance[own] = distance_transform_edt(own)[own]
    return distance
