"""How sure a number is: percentile intervals by bootstrap over the images (Efron 1979).

Every run is judged on the same resamples of the images, so the difference of two is paired.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fcn.metrics import rates

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
CHUNK = 100  # resamples at a time: bounds the memory


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; None where nothing can be said."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def sign(self) -> int:
        """-1 or 1 where the whole interval lies on one side of zero, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Resampled:
    """Metrics by their names in `fcn.metrics.rates`: of all images, and of each resample."""

    whole: dict[str, Tensor]  # (K,) or ()
    drawn: dict[str, Tensor]  # (R, K) or (R,)


def resample(per_image: Tensor) -> Resampled:
    """Draws N of N images, with replacement, `RESAMPLES` times.

    Args: per_image: int64 (N, 3, K), right, truth and predicted pixels of each image's classes.
        The draws depend on N alone.
    """
    n, _, k = per_image.shape
    rng, flat = np.random.default_rng(SEED), per_image.reshape(n, 3 * k).double()
    drawn = []
    for _ in range(RESAMPLES // CHUNK):
        times = torch.from_numpy(rng.multinomial(n, np.full(n, 1 / n), CHUNK))
        drawn.append((times.double() @ flat).reshape(CHUNK, 3, k))  # exact: counts below 2^53
    return Resampled(rates(per_image.sum(0)), rates(torch.cat(drawn)))


def estimate(run: Resampled, metric: str, minus: Resampled | None = None) -> list[Estimate]:
    """A metric of a run, or how far it is above another's, with `LEVEL` intervals.

    Returns: one a class for "iou" and "accuracy", else one alone.
    """
    whole, drawn = run.whole[metric], run.drawn[metric]
    if minus is not None:
        whole, drawn = whole - minus.whole[metric], drawn - minus.drawn[metric]
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.nanquantile(drawn.reshape(RESAMPLES, -1), tails, dim=0).tolist()
    values = whole.reshape(-1).tolist()
    return [
        Estimate(*(None if value != value else number for number in (value, a, b)))
        for value, a, b in zip(values, low, high, strict=True)
    ]
