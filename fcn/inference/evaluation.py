"""Judging a model on a split, at the images' original size, and writing down what came out."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fcn.config import HIDDEN, ConfigError, UserError
from fcn.data.files import SegmentationFiles
from fcn.inference import npz
from fcn.metrics import Scores, Trimap, image_confusions, scores, tally
from fcn.models.fcn import lay_out

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """What judging a split says."""

    scores: Scores
    trimap: list[float]  # mean IoU within 1, 2, ..., 20 pixels of the truth's borders
    per_image: Tensor  # int64 (N, 3, K): right, truth and predicted pixels of each image's classes


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
    """One confusion matrix over all batches, and its scores; the same close to borders, by image.

    Args:
        model: made `ready` in place.
        batches: (image uint8 (B, 3, H, W), target uint8 (B, H, W)).
        bf16: run the net under autocast to bfloat16.
        advance: called after each batch, for a progress bar.
    Returns: with images in the order of the batches.
    """
    ready(model, device, bf16)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    trimap, per_image = Trimap(num_classes), [torch.zeros(0, 3, num_classes, dtype=torch.int64)]
    for image, target in batches:
        prediction = predict(model, image, device=device, bf16=bf16)
        confusions = image_confusions(prediction, target.to(device), num_classes).cpu()
        confusion += confusions.sum(0)
        per_image.append(tally(confusions))
        trimap.update(prediction, target)
        advance()
    return Evaluation(scores(confusion), trimap.mean_iou(), torch.cat(per_image))


def ready(model: nn.Module, device: torch.device, bf16: bool) -> None:
    """Makes a net ready to predict, in place: where and how it is fastest, with the same scores.

    Args: bf16: it will run under autocast, which would round the weights of every convolution anew
        at every call; they are rounded here, once. Such a net is no longer one to train or store.
    """
    lay_out(model.eval(), device)
    for layer in model.modules():
        if bf16 and isinstance(layer, nn.Conv2d):
            layer.to(torch.bfloat16)


@torch.inference_mode()
def predict(model: nn.Module, image: Tensor, *, device: torch.device, bf16: bool) -> Tensor:
    """uint8 (B, 3, H, W) -> the label of every pixel, int64 (B, H, W) on the device.

    A CPU takes images one by one: it is no slower so, and the sums inside a convolution, which it
    orders by the batch's size, then give the same labels however images were batched.

    Args: model: `ready`.
    """
    if device.type == "cpu" and len(image) > 1:
        parts = [predict(model, one, device=device, bf16=bf16) for one in image.split(1)]
        return torch.cat(parts)
    image = image.to(device, torch.float32, memory_format=torch.channels_last).div_(255)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        return model(image).max(1).indices


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


def read_metrics(path: Path) -> dict[str, Any]:
    """A metrics.json of any version, what is in it as `metrics_json` says.

    Raises: UserError: damaged, or another file.
    """
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        _check_metrics(metrics)
    except Exception as error:  # it may hold anything
        raise UserError(f"{path}: damaged, or not this project's ({error!r})") from None
    return metrics


def _check_metrics(metrics: dict[str, Any]) -> None:
    protocol, classes = metrics["protocol"], metrics["classes"]
    confusion = torch.tensor(metrics["confusion"], dtype=torch.int64)
    texts = [protocol[key] for key in ("data", "split", "ids_sha256")]
    texts += [entry["name"] for entry in classes]
    counts = [protocol["images"], protocol["model"]["stride"]]
    counts += [entry["pixels"] for entry in classes]
    rates = [metrics["mean_iou"], *metrics.get("trimap", [])]
    for text in texts:
        if not isinstance(text, str) or HIDDEN.search(text):
            raise ValueError(f"{text!r} is no name")
    for count in counts:
        if type(count) is not int or count < 0:
            raise ValueError(f"{count!r} is no count")
    for rate in rates:
        if rate is not None and not 0 <= rate <= 1:
            raise ValueError(f"{rate!r} is not in 0..1")
    if confusion.shape != (len(classes), len(classes)) or (confusion < 0).any():
        raise ValueError("confusion holds other than counts")


def number(value: float) -> float | None:
    return None if math.isnan(value) else value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all: written beside its place, then moved there."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def write_per_image(path: Path, ids: Sequence[str], per_image: Tensor) -> None:
    """An .npz of `ids` (N,) and `per_image` int64 (N, 3, K), whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        np.savez_compressed(file, ids=np.array(ids), per_image=per_image.numpy())
    temporary.replace(path)


def read_per_image(path: Path) -> tuple[list[str], Tensor]:
    """What `write_per_image` wrote: ids and int64 (N, 3, K).

    Raises: UserError: it is damaged, or another file.
    """
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            ids = npz.array(file, "ids", "U", 1).tolist()
            per_image = torch.from_numpy(npz.array(file, "per_image", "i", 3))
    except Exception as error:  # a damaged file makes numpy raise almost anything
        raise UserError(f"{path}: not the results by image ({error}); evaluate again") from None
    return ids, per_image


def pick_device(wanted: str, key: str = "device") -> torch.device:
    """`auto` is a GPU where there is one.

    Raises: ConfigError: no such device here; it is what `key` names.
    """
    if wanted == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if not re.fullmatch(r"cpu|(cuda|mps|xpu)(:\d+)?", wanted):
        raise ConfigError(f"{key} must be one of auto, cpu, cuda, mps, got {wanted!r}")
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = re.split(r"\n|\. ", str(error))[0]
        raise ConfigError(f"{key}={wanted}: not to be had here ({reason}); use auto") from error
    return torch.device(wanted)


def uses_bf16(wanted: str, trained: Mapping[str, Any], device: torch.device) -> bool:
    """Whether to run a checkpoint under autocast to bfloat16.

    Args: wanted: 32-true; bf16-mixed; auto: as it was trained, where the device computes bfloat16.
        trained: what the checkpoint says about itself.
    """
    if wanted == "auto":
        return trained.get("precision") == "bf16-mixed" and computes_bf16(device)
    return wanted == "bf16-mixed"


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic of its own, so that it pays."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
