"""Topic 9: what a unit of the backbone responds to, seen through a deconvnet.

Zeiler & Fergus 2014 (arXiv 1311.2901), sec. 2: the net's layers taken back one by one: unpooling
puts each value where the pooling had found it (the switch), rectification, then the transposed
filters.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn.explain.figures import Panel, tiles
from fcn.explain.story import Section
from fcn.models.fcn import FCN

POOLS = ("pool3", "pool4", "pool5")
UNITS = 4  # shown of each layer


@dataclass(frozen=True)
class Response:
    """A channel's strongest value in an image, and what of the image led to it."""

    channel: int
    value: float
    pattern: Tensor  # float (3, H, W), in the net's normalised colours


@torch.no_grad()
def strongest(backbone: nn.Sequential, image: Tensor, units: int) -> list[Response]:
    """The channels that respond most to an image, each projected back to its pixels.

    Args:
        backbone: convolutions, batch norms in evaluation mode, ReLUs and 2 x 2 max pools.
        image: float (1, 3, H, W), normalised.
    Raises: TypeError: a layer of another kind.
    """
    inputs: list[Tensor] = []
    switches: dict[int, Tensor] = {}
    x = image
    for index, layer in enumerate(backbone):
        inputs.append(x)
        if isinstance(layer, nn.MaxPool2d):
            x, switches[index] = F.max_pool2d(
                x, layer.kernel_size, layer.stride, ceil_mode=layer.ceil_mode, return_indices=True
            )
        else:
            x = layer(x.clone())  # ReLU works in place
    top = x[0].flatten(1).max(1).values.topk(min(units, x.shape[1]))
    responses = []
    for value, channel in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        signal = torch.zeros_like(x)
        place = x[0, channel].flatten().argmax()
        signal[0, channel].view(-1)[place] = value
        for index in reversed(range(len(backbone))):
            signal = _back(backbone[index], signal, inputs[index], switches.get(index))
        responses.append(Response(channel, value, signal[0]))
    return responses


def _back(layer: nn.Module, signal: Tensor, entered: Tensor, switch: Tensor | None) -> Tensor:
    """The signal one layer further down. Args: entered: what the layer had been given."""
    if isinstance(layer, nn.MaxPool2d):
        assert switch is not None
        flat = torch.zeros_like(entered).flatten(2)  # windows do not overlap: no place comes twice
        return flat.scatter_(2, switch.flatten(2), signal.flatten(2)).view_as(entered)
    if isinstance(layer, nn.ReLU):
        return F.relu(signal)
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_var is not None
        gain = layer.weight / (layer.running_var + layer.eps).sqrt()
        return signal * gain.view(-1, 1, 1)
    if isinstance(layer, nn.Conv2d):
        return F.conv_transpose2d(signal, layer.weight, padding=layer.padding)  # type: ignore[arg-type]
    raise TypeError(f"no way back through {type(layer).__name__}")


def deconvnet(model: FCN, image: Tensor) -> Section:
    """Args: image: uint8 (3, H, W)."""
    section = Section(9, "deconvnet", "Back to the pixels: the deconvnet")
    section.text(
        """The name deconvolution came to vision from nets that look <em>into</em> other nets.
        Zeiler and Fergus ask which pixels a unit deep inside responds to: keep that one unit's
        value, set all others to zero, and walk back. A max pooling is undone by putting each value
        where it was found (its switch was noted on the way up), a ReLU by a ReLU, and a
        convolution by its transpose: the very <i>C</i><sup>T</sup> of topic 1, with the weights
        that the net has learned for its forward pass. Nothing is trained for it."""
    )
    pixels = image.permute(1, 2, 0).numpy()
    normalised = (image[None].float() / 255 - model.mean) / model.std
    for pool in POOLS:
        panels = []
        for response in strongest(model.backbone.until(pool), normalised, UNITS):
            box = _box(response.pattern)
            pattern = response.pattern.permute(1, 2, 0).numpy()[box]
            most = max(float(np.quantile(np.abs(pattern), 0.998)), 1e-9)  # few stand out
            grey = (255 * (0.5 + 0.5 * pattern / most).clip(0, 1)).astype(np.uint8)
            panels += [
                Panel(pixels[box], f"channel {response.channel}: {response.value:.1f}"),
                Panel(grey, "back from it"),
            ]
        section.picture(
            f"deconvnet_{pool}",
            tiles(panels, columns=2 * UNITS, largest=1.15),
            f"{pool}: the {UNITS} channels that respond most, with their values, each at its "
            "strongest place: what lies there in the image, and what the way back shows of it.",
            plot=False,
        )
    section.text(
        """Deeper units see more of the image. How much the way back shows depends on the net:
        Zeiler and Fergus, whose net was trained for long on a million photographs, see eyes,
        wheels and letters; a small net trained for a minute shows little more than edges."""
    )
    return section


def _box(pattern: Tensor) -> tuple[slice, slice]:
    """Rows and columns where a pattern (3, H, W) is not zero, as a square where there is room."""
    there = pattern.abs().sum(0) > 0
    rows, columns = there.any(1).nonzero().flatten(), there.any(0).nonzero().flatten()
    if not len(rows):
        return slice(None), slice(None)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
