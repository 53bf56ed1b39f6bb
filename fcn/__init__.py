"""Fully convolutional networks for semantic segmentation: FCN-32s, 16s and 8s.

Long, Shelhamer & Darrell, CVPR 2015 (arXiv 1411.4038); PAMI 2016 (arXiv 1605.06211).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn.checkpoint import load
    from fcn.device import optimize
    from fcn.inference.predictor import Predictor, overlay
    from fcn.models.fcn import FCN

__all__ = ["FCN", "Predictor", "load", "optimize", "overlay"]
MODULES = dict(zip(__all__, ("models.fcn", "inference.predictor", "checkpoint", "device",
                             "inference.predictor"), strict=True))  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is used: `--help` stays quick."""
    if name in MODULES:
        return getattr(import_module(f"fcn.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
