"""Judging a model on a split, at the images' original size, and writing down what came out."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcn.config import ConfigError
from fcn.data.files import SegmentationFiles
from fcn.metrics import Scores, Trimap, confusion_matrix, scores

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """What judging a split says."""

    scores: Scores
    trimap: list[float]  # mean IoU within 1, 2, ..., 20 pixels of the truth's borders


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Batches,
    num_classes: int,
    *,
    device: torch.device,
    bf16: bool,
    advance: Callable[[], None] = lambda: None,
) -> Evaluation:
    """One confusion matrix over all batches, and its scores; and the same close to borders.

    Args:
        batches: (image uint8 (B, 3, H, W), target uint8 (B, H, W)).
        bf16: run the net under autocast to bfloat16.
        advance: called after each batch, for a progress bar.
    """
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    confusion, trimap = confusion_matrix(num_classes).to(device), Trimap(num_classes)
    for image, target in batches:
        image = image.to(device, torch.float32, memory_format=torch.channels_last).div_(255)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            prediction = model(image).max(1).indices
        confusion.update(prediction, target.to(device).long())
        trimap.update(prediction, target)
        advance()
    return Evaluation(scores(confusion.compute()), trimap.mean_iou())


def metrics_json(
    evaluation: Evaluation,
    files: SegmentationFiles,
    split: str,
    model: dict[str, Any],
    data: str,
    precision: str,
) -> dict[str, Any]:
    """The contents of metrics.json. Where nothing can be said (an absent class), null."""
    result = evaluation.scores
    return {
        "mean_iou": number(result.mean_iou),
        "pixel_accuracy": number(result.pixel_accuracy),
        "mean_accuracy": number(result.mean_accuracy),
        "frequency_weighted_iou": number(result.frequency_weighted_iou),
        "classes": [
            {"name": name, "iou": number(iou), "accuracy": number(accuracy), "pixels": pixels}
            for name, iou, accuracy, pixels in zip(
                files.classes,
                result.iou.tolist(),
                result.accuracy.tolist(),
                result.confusion.sum(1).tolist(),
                strict=True,
            )
        ],
        "confusion": result.confusion.tolist(),
        "trimap": [number(value) for value in evaluation.trimap],
        "protocol": {
            "data": data,
            "split": split,
            "images": len(files),
            "ids_sha256": files.fingerprint(),
            "size": "original",
            "precision": precision,
            "ignore_index": files.ignore_index,
            "model": model,
            "upsampling": model["upsampling"],
        },
    }


def number(value: float) -> float | None:
    return None if math.isnan(value) else value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all: written beside its place, then moved there."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def pick_device(wanted: str) -> torch.device:
    """`auto` is a GPU where there is one.

    Raises: ConfigError: no such device here.
    """
    if wanted == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device={wanted}: not to be had here ({reason}); use auto") from error
    return torch.device(wanted)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic of its own, so that it pays."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
