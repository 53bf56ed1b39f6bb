"""Upsampling layers alone, against the dense transposed convolution that all of them equal."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fcn.benchmark.contestants import plain
from fcn.benchmark.measure import Pace, Progress, Task, part_of, take_turns
from fcn.models.upsampling import Upsampling, make_upsampling

FACTORS = (2, 8, 32)
DENSE = "plain deconvolution"  # K x K kernels, as torch computes it


def layers_of(factor: int, num_classes: int, device: torch.device) -> dict[str, Upsampling]:
    """What upsamples bilinearly at the start of training, by upsampling=, and as ports do it."""
    layers = {}
    for name in ("fixed", DENSE, "learned", "learned_channelwise", "interpolate"):
        choice = "learned" if name == DENSE else name
        layer = make_upsampling(choice, factor, num_classes, final=True).requires_grad_(False)
        layers[name] = (plain(layer) if name == DENSE else layer).to(device)
    return layers


def upsampling_layers(
    size: tuple[int, int],
    num_classes: int,
    device: torch.device,
    pace: Pace,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Bilinear upsampling of random float32 scores to `size`, forward, and forward with backward.

    No kernel is trained here: all do the same job, and the gradient is that of the scores.

    Returns: a row a factor and layer: seconds, how much slower than `fixed`, and how much the
        output differs from the plain deconvolution's at most, everywhere and inside.
    """
    rows = []
    for done, factor in enumerate(FACTORS):
        layers = layers_of(factor, num_classes, device)
        score = scores(size, factor, num_classes, device)
        taken = take_turns(
            {
                (name, mode): task
                for name, layer in layers.items()
                for mode, task in tasks(layer, score, size).items()
            },
            device,
            Pace(pace.rounds, pace.seconds / len(FACTORS)),
            part_of(progress, done, len(FACTORS)),
        )
        for name, (everywhere, inside) in differences(layers, score, size).items():
            row: dict[str, Any] = {"factor": factor, "layer": name}
            row |= {"difference": everywhere, "difference_inside": inside}
            for mode in ("forward", "forward_backward"):
                own, fixed = taken[name, mode], taken["fixed", mode]
                row[mode] = {"seconds": asdict(own), "slower": own.median / fixed.median}
            rows.append(row)
    return rows


def scores(size: tuple[int, int], factor: int, num_classes: int, device: torch.device) -> Tensor:
    """Random scores on the grid of stride `factor` of an image of `size`: (1, K, h, w)."""
    height, width = (-(-side // factor) for side in size)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, num_classes, height, width, generator=generator).to(device)


def tasks(layer: Upsampling, score: Tensor, size: tuple[int, int]) -> dict[str, Task]:
    """Upsampling scores to where they lie on the image, and that with its gradient."""
    leaf = score.clone().requires_grad_()
    gradient = torch.ones(*score.shape[:2], *size, device=score.device)

    def forward() -> Tensor:
        with torch.inference_mode():
            return layer(score, layer.factor // 2, size)

    def forward_backward() -> None:
        leaf.grad = None
        layer(leaf, layer.factor // 2, size).backward(gradient)

    return {"forward": forward, "forward_backward": forward_backward}


def differences(
    layers: dict[str, Upsampling], score: Tensor, size: tuple[int, int]
) -> dict[str, tuple[float, float | None]]:
    """Largest absolute differences from the plain deconvolution's output, by layer.

    Returns: everywhere, and at least 2 f from the border; None where nothing is.
    """
    with torch.inference_mode():
        outputs = {name: layer(score, layer.factor // 2, size) for name, layer in layers.items()}
    result = {}
    for name, output in outputs.items():
        apart = (output - outputs[DENSE]).abs()
        off = 2 * layers[name].factor
        inside = apart[..., off:-off, off:-off]
        result[name] = float(apart.max()), float(inside.max()) if inside.numel() else None
    return result
