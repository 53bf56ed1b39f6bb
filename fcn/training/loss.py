"""The loss: softmax cross entropy over the pixels that are not void."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fcn.config import VOID


def segmentation_loss(score: Tensor, target: Tensor, reduction: str) -> Tensor:
    """Softmax cross entropy, summed or averaged over the non-void pixels of the batch.

    Args:
        score: float (B, K, H, W).
        target: int64 (B, H, W), 0..K-1, 255 = void.
        reduction: "sum" (Caffe's SoftmaxWithLoss with normalize: false) or "mean".
    Returns: float scalar, in nats; 0 with zero gradients where every pixel is void.
    """
    # A GPU's own sum takes its terms in any order, and refuses where that must not be.
    deterministic = torch.are_deterministic_algorithms_enabled()
    kind = "none" if deterministic else "sum"
    total = F.cross_entropy(score.float(), target, ignore_index=VOID, reduction=kind).sum()
    if reduction == "sum":
        return total
    return total / (target != VOID).sum().clamp(min=1)
