"""Fully convolutional networks for semantic segmentation: FCN-32s, 16s and 8s.

Long, Shelhamer & Darrell, CVPR 2015 (arXiv 1411.4038); PAMI 2016 (arXiv 1605.06211).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn.inference.checkpoint import load
    from fcn.inference.predictor import Predictor
    from fcn.models.fcn import FCN
    from fcn.visualize import overlay

__all__ = ["FCN", "Predictor", "load", "overlay"]

_HOMES = {
    "FCN": "fcn.models.fcn",
    "Predictor": "fcn.inference.predictor",
    "load": "fcn.inference.checkpoint",
    "overlay": "fcn.visualize",
}


def __getattr__(name: str) -> Any:
    """Imports torch only when something that needs it is asked for; scripts' --help is quick."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
