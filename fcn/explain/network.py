"""Looks into a network: what its parts add to its scores, and which pixels its units answer to."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn.inference.metrics import image_confusions, metrics_of
from fcn.models.fcn import FCN, SKIPS
from fcn.models.upsampling import Upsampling

CROPS = {32: (19,), 16: (5, 27), 8: (5, 9, 31)}  # in the authors' prototxt files


def mean_iou(model: FCN, pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return a network's mean IoU, in 0..1, on some pairs (C, H, W) and (H, W)."""
    total = torch.zeros(())
    for image, target in pairs:
        prediction = model(image[None]).argmax(1)
        total = total + image_confusions(prediction, target[None], model.arguments["num_classes"])
    return metrics_of(total[0]).mean_iou


def upsampling_steps(model: FCN, batch: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """Return name, input and output of each upsampling layer; float (K, h, w) both."""
    passed: list[tuple[str, Tensor, Tensor]] = []
    names = {layer: name for name, layer in model.named_children()}

    def note(layer: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        passed.append((names[layer], given[0][0], result[0]))

    handles = [m.register_forward_hook(note) for m in names if isinstance(m, Upsampling)]
    model(batch)
    for handle in handles:
        handle.remove()
    return passed


def contributions(model: FCN, batch: Tensor) -> dict[str, Tensor]:
    """Return what each pool adds to the scores (K, H, W): the other score layers give zeros."""
    layers = {pool: getattr(model, f"score_{pool}") for pool in SKIPS[model.stride]}
    layers = {"pool5": model.score_fr} | layers
    parts = {}
    for pool in layers:
        others = [layer for name, layer in layers.items() if name != pool]
        handles = [o.register_forward_hook(lambda *call: torch.zeros_like(call[2])) for o in others]
        parts[pool] = model(batch)[0]
        for handle in handles:
            handle.remove()
    return parts


@torch.no_grad()
def strongest(
    backbone: nn.Sequential, image: Tensor, units: int
) -> list[tuple[int, float, Tensor]]:
    """Find the channels that respond most to an image and project each back to the pixels.

    Args:
        backbone: convolutions, batch norms in evaluation mode, ReLUs and 2 x 2 max poolings.
        image: float (1, 3, H, W), normalised.
        units: number of channels.

    Returns:
        For each, its index, its largest value, and the projected pattern (C, H, W).

    Source: Zeiler & Fergus 2014 (arXiv 1311.2901), sec. 2.
    """
    x, ways = image, []
    for layer in backbone:
        x, back = _step(layer, x)
        ways.append(back)
    top = x[0].flatten(1).max(1).values.topk(min(units, x.shape[1]))
    responses = []
    for value, channel in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        signal = torch.zeros_like(x)
        signal[0, channel].view(-1)[x[0, channel].argmax()] = value
        for back in reversed(ways):
            signal = back(signal)
        responses.append((channel, value, signal[0]))
    return responses


def _step(layer: nn.Module, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return a layer's output, and the function that takes a signal back through it."""
    if isinstance(layer, nn.MaxPool2d):
        y, switches = F.max_pool2d(x, 2, ceil_mode=layer.ceil_mode, return_indices=True)
        return y, lambda signal: F.max_unpool2d(signal, switches, (2, 2), output_size=x.shape[-2:])
    if isinstance(layer, nn.ReLU):
        return layer(x), F.relu
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_var is not None
        gain = (layer.weight / (layer.running_var + layer.eps).sqrt()).view(-1, 1, 1)
        return layer(x), lambda signal: signal * gain
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(layer.padding, tuple)
    return layer(x), partial(F.conv_transpose2d, weight=layer.weight, padding=layer.padding)
