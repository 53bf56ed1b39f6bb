"""Loading and writing what this project leaves behind: .ckpt and .safetensors.

Nothing here runs what a file says: `fcn.inference.pickles` opens a .ckpt, and no description of a
model is believed before its weights are known to be there.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fcn.config import HIDDEN, UserError
from fcn.inference import pickles
from fcn.models.fcn import FCN
from fcn.visualize import voc_palette

FORMAT = "fcn-segmentation"
PREFIX = "model."  # of the net's tensors in a Lightning checkpoint
CURVES = ("loss", "mean_iou")  # that fcn.training.callbacks.History keeps


class CheckpointError(UserError, ValueError):
    """A file that holds no model of this project."""


@dataclass
class Checkpoint:
    """A model's weights, and what is known about it.

    `about` holds "model" (FCN's arguments), "classes" (names), and what else its writer knew, such
    as "data", "training" (the recipe), "validation" (a .ckpt's own) and "metrics".
    """

    path: Path
    weights: dict[str, Tensor]
    about: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        return list(self.about["classes"])

    def check_classes(self, classes: Sequence[str], data: str) -> None:
        """Raises: CheckpointError: `data`, with these classes, is not what the net scores."""
        if self.classes != list(classes):
            raise CheckpointError(
                f"checkpoint={self.path} scores {', '.join(self.classes)}; data={data} has "
                f"{', '.join(classes)}; choose the data it was trained on, or data.classes"
            )

    def model(self) -> FCN:
        """The net with these weights, on the CPU, in evaluation mode.

        Raises: CheckpointError: they do not fit its description.
        """
        try:
            with torch.device("meta"):  # which takes no memory, however large the net would be
                needed = FCN(**self.about["model"]).state_dict()
            for name, tensor in needed.items():
                if name not in self.weights or self.weights[name].shape != tensor.shape:
                    raise ValueError(f"{name} should be {tuple(tensor.shape)}")
            if len(self.classes) != self.about["model"]["num_classes"]:
                raise ValueError(f"{len(self.classes)} class names")
            model = FCN(**self.about["model"])
            model.load_state_dict(self.weights)
        except Exception as error:  # a description may be anything
            raise CheckpointError(
                f"{self.path}: its weights do not fit its description: {error}"
            ) from error
        return model.eval()


def load(path: str | Path) -> FCN:
    """The model of a .ckpt or .safetensors file of this project, ready to use.

    Returns: an FCN on the CPU, in evaluation mode: float (B, 3, H, W), RGB in [0, 1] -> scores.
    Raises: CheckpointError: no such file, or none of ours.
    """
    return read(path).model()


def read(path: str | Path) -> Checkpoint:
    """What a .ckpt or .safetensors file of this project holds.

    Raises: CheckpointError: no such file, damaged, or none of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    weights, about = _read_safetensors(path) if path.suffix == ".safetensors" else _read_ckpt(path)
    if not _describes_model(about):
        raise CheckpointError(f"{path}: not a checkpoint of this project (it describes no model)")
    return Checkpoint(path, weights, about)


def write_safetensors(path: Path, model: FCN, about: dict[str, Any]) -> None:
    """A model that `load` gives back: its weights, and what is known about it."""
    write_weights(path, model.state_dict(), describe(model, about))


def describe(model: FCN, about: dict[str, Any]) -> dict[str, Any]:
    """`about`, with what the model says of itself: its architecture, colours and normalisation."""
    return about | {
        "model": model.arguments,
        "palette": voc_palette(model.arguments["num_classes"]).tolist(),  # RGB by label
        "normalisation": {  # happens inside the model; images come as RGB in [0, 1]
            "mean": model.mean.flatten().tolist(),
            "std": model.std.flatten().tolist(),
        },
    }


def metadata(about: dict[str, Any]) -> dict[str, str]:
    """How `about` is kept inside any file: as text by name."""
    return {"format": FORMAT, "about": json.dumps(about)}


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_weights(path: Path, weights: Mapping[str, Tensor], about: dict[str, Any]) -> None:
    """Weights and `about` in one file that any safetensors reader opens."""
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    temporary = path.with_name(path.name + ".part")
    try:
        save_file(weights, temporary, metadata(about))
        temporary.chmod(0o644)  # safetensors leaves files to their owner alone
        temporary.replace(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: cannot be written ({error}); free some space, or name another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of any weights file: one of ours, or a plain state dict of somebody else's.

    Raises: CheckpointError: no such file, or it holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)[0]
    with _reading(path):
        return _tensors(pickles.load(path))


def history(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that training keeps in a .ckpt: "loss" and "mean_iou", each (step, value) points.

    Empty where the file has none. Its weights stay on disk.
    Raises: CheckpointError: no such file, or it is damaged.
    """
    with _reading(path):
        kept = pickles.load(path).get("callbacks", {}).get("History", {})
        return {name: [(int(s), float(v)) for s, v in kept.get(name, [])] for name in CURVES}


def _describes_model(about: Any) -> bool:
    if not isinstance(about, dict) or not isinstance(about.get("model"), dict):
        return False
    names = about.get("classes")
    return isinstance(names, list) and all(
        isinstance(n, str) and not HIDDEN.search(n) for n in names
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong comes out as a CheckpointError: damaged files raise almost anything."""
    try:
        yield
    except Exception as error:
        reason = re.split(r"\n|\. ", str(error))[0][:200] or type(error).__name__
        raise CheckpointError(
            f"{path}: damaged, or not a checkpoint of this project ({reason})"
        ) from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    with _reading(path), safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return weights, json.loads((file.metadata() or {}).get("about", "null"))


def _read_ckpt(path: Path) -> tuple[dict[str, Tensor], Any]:
    with _reading(path):
        content = pickles.load(path)
        about = content.get("hyper_parameters", {}).get("about")
        if isinstance(about, dict) and "History" in content.get("callbacks", {}):
            curve = content["callbacks"]["History"]["mean_iou"]
            if curve:  # a checkpoint is written after the validation that it is judged by
                about |= {"validation": {"step": curve[-1][0], "mean_iou": curve[-1][1]}}
        return _tensors(content), about


def _tensors(content: dict[Any, Any]) -> dict[str, Tensor]:
    """Raises: ValueError: there are none by name. Others: it is no dictionary."""
    state = content.get("state_dict", content)
    ours = any(str(name).startswith(PREFIX + "backbone.") for name in state)
    weights = {
        name.removeprefix(PREFIX) if ours else name: tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and (not ours or name.startswith(PREFIX))
    }
    if not weights or not all(isinstance(name, str) for name in weights):
        raise ValueError("it holds no tensors by name")
    return weights
