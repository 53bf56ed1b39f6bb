"""Fully convolutional networks for semantic segmentation: FCN-32s, 16s and 8s.

Long, Shelhamer & Darrell, CVPR 2015 (arXiv 1411.4038); PAMI 2016 (arXiv 1605.06211).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn.checkpoint import load
    from fcn.models.fcn import FCN
    from fcn.predictor import Predictor
    from fcn.speed import optimize
    from fcn.visualize import overlay

__all__ = ["FCN", "Predictor", "load", "optimize", "overlay"]


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is used: `--help` stays quick."""
    homes = {"FCN": "models.fcn", "Predictor": "predictor", "load": "checkpoint"}
    homes |= {"optimize": "speed", "overlay": "visualize"}
    if name in __all__:
        return getattr(import_module(f"fcn.{homes[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
