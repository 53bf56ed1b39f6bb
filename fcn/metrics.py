"""One confusion matrix, and the paper's four metrics of it.

n_ij counts the pixels of class i predicted as j; void is counted nowhere; t_i = sum_j n_ij.
Long et al. 2015, sec. 5. A class that neither truth nor prediction shows has no IoU (NaN) and
stays out of the mean.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from fcn.config import VOID


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
