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
    n = confusion.cpu().to(torch.float64)
    truth, predicted, right = n.sum(1), n.sum(0), n.diagonal()
    iou = right / (truth + predicted - right)
    accuracy = right / truth
    total = truth.sum()
    return Scores(
        confusion=confusion.cpu().to(torch.int64),
        iou=iou,
        accuracy=accuracy,
        mean_iou=float(iou.nanmean()),
        pixel_accuracy=float(right.sum() / total),
        mean_accuracy=float(accuracy.nanmean()),
        frequency_weighted_iou=float((truth * iou.nan_to_num()).sum() / total),
    )


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
