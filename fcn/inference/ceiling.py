"""What perfect scores at a network's stride would reach: the ceiling that its resolution sets."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn.models.fcn import FCN


class Ceiling(nn.Module):
    """A network that knows the ground truth, but only at the stride of another network.

    Its score of a class in a cell of the other's grid is the share of the cell's pixels that have
    this class; ignored pixels have none. These scores go through the other's last upsampling, each
    class by its own kernel (`Upsampling.classwise`): weights between classes correct scores that
    are wrong, and would distort these. A pixel that is still wrong is lost by the stride; what
    the other network loses beyond that is recognition.

    It is no strict bound. Shares do not say on which side of a cell a thin object lies; scores
    outside 0..1 can, and a network that draws thin shapes well may come out above.

    Source: the upper bounds by downsampling factor of Long et al. 2015, appendix A.

    Args:
        model: the network.
        labels: the data set's label of each of the model's classes; None: the same.

    Attributes:
        reach, period: as those of `FCN`.
    """

    labels: Tensor

    def __init__(self, model: FCN, labels: Sequence[int] | None = None) -> None:
        super().__init__()
        self.upscore = model.upscore_final.classwise()
        factor, kernel = self.upscore.factor, self.upscore.kernel
        self.period, self.reach = factor, (factor + kernel) // 2 - 1
        inside = (kernel - factor) // 2  # offset of the first cell's first pixel in the upsampled
        self.before = (model.offset - inside) % factor  # pixels of the first cell above the image
        self.offset = inside + self.before
        own = range(model.arguments["num_classes"]) if labels is None else labels
        self.register_buffer("labels", torch.tensor(own, dtype=torch.uint8)[:, None, None])

    def forward(self, target: Tensor) -> Tensor:
        """Return the scores, float (B, K, H, W), of a ground truth, uint8 (B, 1, H, W)."""
        height, width = target.shape[-2:]
        first, f = self.before, self.period
        padding = (first, -(first + width) % f, first, -(first + height) % f)
        has_class = (target == self.labels).float()  # B,K,H,W
        in_image = torch.ones_like(has_class[:1, :1])
        share, covered = (F.avg_pool2d(F.pad(x, padding), f) for x in (has_class, in_image))
        return self.upscore(share / covered, self.offset, (height, width))
