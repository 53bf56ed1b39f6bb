"""Reading and writing models: .ckpt, .safetensors, and the first weights of a training run."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fcn.dataset_info import INFO_KEYS, DatasetInfo, class_problem, starts_with_background
from fcn.errors import CheckpointError, ConfigError, UserError
from fcn.models.fcn import FCN, MEAN, STD
from fcn.models.surgery import (
    Report,
    SurgeryError,
    TensorReport,
    normalisation_warning,
    transplant,
)
from fcn.models.vgg import Bands
from fcn.output import atomic_write
from fcn.pictures.visualize import palette

if TYPE_CHECKING:
    from rich.table import Table

HUB = "hf://"  # addresses of the Hugging Face Hub: hf://USER/NAME
PREFIX = "model."  # of the model's tensors in a Lightning checkpoint
SHOWN = 5  # tensors of each status in the table of a surgery
WEIGHTS_FILES = (".pth", ".pt", ".ckpt", ".safetensors")


@dataclass
class Checkpoint:
    """A model's state dict, and what is known about it.

    `metadata` holds "model" (FCN's arguments), "classes" (names), and what else its writer knew,
    such as "data", "training" (the recipe), "validation" (of a .ckpt) and "metrics".
    """

    path: Path
    weights: dict[str, Tensor]
    metadata: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        """The names of the labels 0..K-1."""
        return list(self.metadata["classes"])

    @property
    def info(self) -> DatasetInfo:
        """Classes, colours, bands and value range of its data, as far as its writer named them."""
        metadata = {"background": starts_with_background(self.classes)} | self.metadata
        metadata["colours"] = metadata.get("palette", [])
        channels = metadata["model"].get("in_channels", 3)
        if channels != 3 and not metadata.get("bands"):
            metadata["bands"] = list(range(channels))  # as in training: none would mean RGB
        return DatasetInfo(**{key: metadata[key] for key in INFO_KEYS if key in metadata})

    def labels_in(self, classes: Sequence[str], data: str) -> list[int] | None:
        """Match the model's classes with those of a data set, by name.

        Args:
            classes: the data set's, in the order of its labels.
            data: its name, for errors.

        Returns:
            The data set's label of each of the model's classes; None where they are the same.

        Raises:
            CheckpointError: a class is missing on either side.
        """
        own, theirs = self.classes, list(classes)
        if own == theirs:
            return None
        unknown = [name for name in theirs if name not in own]
        missing = [name for name in own if name not in theirs]
        if unknown:
            model = self.metadata["model"]
            settings = [f"backbone={model.get('backbone', 'vgg16')}"]
            settings += [
                f"backbone.{k}={model[k]}" for k in ("width", "head_width") if model.get(k)
            ]
            raise CheckpointError(
                f"checkpoint={self.path} does not know {', '.join(unknown)} of data={data} (it "
                f"knows {', '.join(own)}); train it on this data first, with train.py "
                f"model.init_from={self.path} {' '.join(settings)}, or rename classes of the same "
                "meaning in dataset.yaml"
            )
        if missing:
            raise CheckpointError(
                f"data={data} has no {', '.join(missing)}, which checkpoint={self.path} may "
                "predict; if these classes may occur in the images, write classes: "
                f"[{', '.join(theirs + missing)}] in dataset.yaml beside the data"
            )
        return [theirs.index(name) for name in own]

    def model(self, classes: Sequence[str] | None = None) -> FCN:
        """Return the model, float32, on the CPU, in evaluation mode.

        It is built on the meta device, so no random weights are drawn: loading leaves the random
        state unchanged and is faster.

        Args:
            classes: the model's, in the order in which it is to score them; None: its own order.

        Raises:
            CheckpointError: its description builds no model, or its weights do not fit.
        """
        try:
            with torch.device("meta"):
                model = FCN(**self.metadata["model"])
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path}: cannot build its model: {error}") from error
        try:
            model.load_state_dict({k: _copy(v) for k, v in self.weights.items()}, assign=True)
            if classes is not None:
                transplant(model, self.weights, classes=classes, source_classes=self.classes)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{self.path}: its weights do not fit its description ({reason})"
            ) from error
        return model.eval()


def _copy(tensor: Tensor) -> Tensor:
    """Return a float32 copy, or of integers: the weights may lie in a mapped file that changes."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def find(path: str | Path) -> Path:
    """Find the file of a checkpoint; one on the Hub is downloaded.

    Args:
        path: the file itself; a run's folder, whose best model is meant, of the last stage if there
            are several; or hf://USER/NAME.

    Returns:
        A .safetensors or .ckpt file.

    Raises:
        CheckpointError: there is none.
        ConfigError, UserError: of hf://, see `load`.
    """
    folder = _download(str(path)) if str(path).startswith(HUB) else Path(path)
    if folder.is_file():
        return folder
    folder = last_stage(folder)
    kept = [folder / "model.safetensors", folder / "checkpoints" / "best.ckpt"]
    if is_resumed_unfinished(folder):  # its model may be that of the time before it was resumed
        kept.reverse()
    if found := next((file for file in kept if file.is_file()), None):
        return found
    if folder.is_dir():
        raise CheckpointError(f"{path}: no model.safetensors and no checkpoints/best.ckpt in it")
    raise CheckpointError(f"{path}: no such checkpoint")


def last_stage(run: Path) -> Path:
    """Return the folder of the last stage of a finished run with `stages`, or the run's own."""
    stages = run / "stages.json"
    if not stages.is_file():
        return run
    return run / list(json.loads(stages.read_text(encoding="utf-8")))[-1]


def is_resumed_unfinished(run: Path) -> bool:
    """Return True if a run was resumed and has not come to its end since."""
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        return bool(record["history"]) and "finished" not in record
    except (OSError, ValueError, KeyError, TypeError):  # no run's folder, or a damaged record
        return False


def _download(address: str) -> Path:
    """Download a model of the Hub unless it is in the cache; return its folder."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(f'{address} needs: pip install "fcn-segmentation[hub]"') from None
    try:
        return Path(snapshot_download(address.removeprefix(HUB)))
    except Exception as error:  # of the network, or of the Hub
        raise UserError(f"{address}: {' '.join(str(error).split())[:200]}") from error


def read(path: str | Path) -> Checkpoint:
    """Read a .ckpt or .safetensors file of this project, a run's folder, or hf://USER/NAME.

    Raises:
        CheckpointError: no such file, damaged, or not of this project.
        ConfigError, UserError: of hf://, see `load`.
    """
    path = find(path)
    weights, metadata = _read_file(path)
    if not isinstance(metadata, dict) or not {"model", "classes"} <= metadata.keys():
        raise CheckpointError(f"{path}: not a checkpoint of this project (it describes no model)")
    classes = metadata["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(f"{path}: its class names are not a list of texts")
    if problem := class_problem(classes):
        raise CheckpointError(f"{path}: {problem}; write the model again with other names")
    return Checkpoint(path, weights, metadata)


def load(path: str | Path) -> FCN:
    """Load a model; see `FCN.forward`. All its parameters require gradients, frozen ones too.

    Args:
        path: a .ckpt or .safetensors file of this project, a run's folder, or hf://USER/NAME.

    Returns:
        The model, float32, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: no such file, damaged, or not of this project.
        ConfigError: hf:// needs huggingface_hub, which is not installed.
        UserError: the Hub cannot be reached, or has no such model.
    """
    return read(path).model()


def history(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read the curves of a run.

    Args:
        path: the history.json that a finished run leaves, or a .ckpt, which holds them too.

    Returns:
        "loss" and "mean_iou" (in 0..1), each a list of (step, value); empty if there are none.
    """
    if Path(path).suffix == ".json":
        kept = json.loads(Path(path).read_text(encoding="utf-8"))
    else:
        kept = _nested(_unpickle(Path(path)), "callbacks", "History") or {}
    return {name: [tuple(point) for point in kept.get(name, [])] for name in ("loss", "mean_iou")}


def complete_metadata(model: FCN, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return `metadata` with the model's architecture, colours and normalisation."""
    # Pascal VOC's colours, unless the model has its own.
    colours = palette(DatasetInfo())[: model.arguments["num_classes"]].tolist()
    return {"palette": colours, **metadata} | {
        "model": model.arguments,
        "normalisation": {  # happens inside the model; images are in [0, 1]
            "mean": model.mean.flatten().tolist(),
            "std": model.std.flatten().tolist(),
        },
    }


def info_metadata(info: DatasetInfo) -> dict[str, Any]:
    """Return the info of a data set as `metadata` holds them, see `Checkpoint.info`."""
    metadata = asdict(info)
    metadata["palette"] = metadata.pop("colours")
    return metadata


def without_folder(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return `metadata` without the folder of its data, for files that others will read."""
    if not (division := _nested(metadata, "data", "division")):
        return metadata
    kept = {key: value for key, value in division.items() if key != "root"}
    return metadata | {"data": metadata["data"] | {"division": kept}}


def as_text(metadata: dict[str, Any]) -> dict[str, str]:
    """Return `metadata` as the text that every kind of file can hold."""
    return {"format": "fcn-segmentation", "about": json.dumps(metadata)}


def write_safetensors(path: Path, model: FCN, metadata: dict[str, Any]) -> None:
    """Write a model that `load` reads: its weights, and what is known about it."""
    write_weights(path, model.state_dict(), complete_metadata(model, metadata))


def write_weights(path: Path, weights: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write weights and `metadata`, atomically, to a file that any safetensors reader opens."""
    with atomic_write(path) as temporary:
        contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(contiguous, temporary, as_text(metadata))
        temporary.chmod(0o644)  # safetensors makes files that only their owner may read


def sha256(path: Path) -> str:
    """Return a file's checksum in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def initialise(
    model: FCN,
    source: Checkpoint | None,
    weights: str | None,
    classes: Sequence[str],
    *,
    bands: Bands = (),
    new_head: bool = False,
) -> Report | None:
    """Give a model its first weights.

    Args:
        model: changed in place.
        source: a checkpoint of this project; its scores are kept for the classes it shares.
        weights: used if source is None, for backbone and head: imagenet, another name of
            torchvision's weights, or a file. Mean and std come from torchvision, or from the
            file's metadata or tensors. Its score and upscore layers are not used.
        classes: the model's class names.
        bands: of its images, which are matched by name with those that the weights were learned on.
        new_head: fc6 and fc7 start new.

    Returns:
        What became of every tensor; None if the weights stay random.

    Raises:
        CheckpointError: the weights do not fit.
        ConfigError: torchvision has no weights of this name.
        UserError: they cannot be fetched.
    """
    try:
        if source is not None:
            return _transplant_all(model, source, classes, bands)
        if weights is None:
            return None
        local = Path(weights).suffix in WEIGHTS_FILES
        tensors, known = (
            _read_file(Path(weights)) if local else (_torchvision(model, weights), None)
        )
        # Scores belong to classes, and to a network's own scales of its skips: not to a backbone.
        scores = sorted(name for name in tensors if name.startswith(("score", "upscore")))
        backbone = {name: tensor for name, tensor in tensors.items() if name not in scores}
        if bands:  # a file without mean and std is taken to have the usual ones
            backbone = _normalisation(MEAN, STD) | backbone
        theirs = _nested(known, "bands") or ()
        report = transplant(
            model, backbone, weights, bands=bands, source_bands=theirs, new_head=new_head
        )
        note = "not of the backbone; see model.init_from"
        report.tensors += [
            TensorReport(name, "left over", tuple(tensors[name].shape), note) for name in scores
        ]
        report.warning = normalisation_warning(model) if local else ""
        return report
    except SurgeryError as error:
        raise CheckpointError(str(error)) from error


def surgery_table(report: Report) -> "Table":
    """Return a table of each status, how many tensors have it, and which."""
    from rich.table import Table  # importing it changes Python's random state

    table = Table("status", "tensors", "which", title=f"weights from {report.source}", box=None)
    for status in dict.fromkeys(entry.status for entry in report.tensors):
        entries = [entry for entry in report.tensors if entry.status == status]
        first = sorted(entries, key=lambda entry: not entry.note)[:SHOWN]  # what has a note
        shown = [f"{e.name} ({e.note})" if e.note else e.name for e in first]
        shown += [f"{len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
        table.add_row(status, str(len(entries)), ", ".join(shown))
    return table


def _transplant_all(model: FCN, source: Checkpoint, classes: Sequence[str], bands: Bands) -> Report:
    """Copy a checkpoint's weights, scores too, into a model of the same backbone."""
    path, backbone = str(source.path), model.arguments["backbone"]
    theirs = source.metadata["model"]["backbone"]
    if theirs != backbone:
        raise CheckpointError(
            f"model.init_from={path}: its backbone is {theirs}, but this model's is {backbone}; "
            f"set backbone={theirs}"
        )
    return transplant(
        model,
        source.weights,
        path,
        classes=classes,
        source_classes=source.classes,
        bands=bands,
        source_bands=source.info.bands,
    )


def _torchvision(model: FCN, name: str) -> Mapping[str, Tensor]:
    """Fetch torchvision's weights, checked by hash, with the mean and std that go with them."""
    from torchvision.models import get_model_weights  # as slow to import as torch

    backbone = model.arguments["backbone"]
    published = {} if backbone == "mini" else get_model_weights(backbone).__members__
    wanted = "IMAGENET1K_V1" if name.lower() == "imagenet" else name.upper()
    if wanted not in published:
        choices = ", ".join(["null", "a file", *published])
        raise ConfigError(f"backbone.weights={name}: of {backbone} must be one of {choices}")
    weights = published[wanted]
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        raise UserError(
            f"backbone.weights={name}: could not fetch {weights.url} ({error}); put that file at "
            f"{cache}, give a local file, or set backbone.weights=null to start at random"
        ) from error
    transforms = weights.transforms()
    return state | _normalisation(transforms.mean, transforms.std)


def _normalisation(mean: Sequence[float], std: Sequence[float]) -> dict[str, Tensor]:
    """Return mean and std, of images in [0, 1], as the tensors of a model."""
    return {
        name: torch.tensor(values).view(-1, 1, 1) for name, values in (("mean", mean), ("std", std))
    }


def _read_file(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return a file's tensors, named as in the model, and its metadata; None if not ours."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
                if {"mean", "std"} <= metadata.keys():  # of a backbone alone
                    values = (json.loads(metadata[key]) for key in ("mean", "std"))
                    weights |= _normalisation(*values)
                return weights, json.loads(metadata.get("about", "null"))
        except Exception as error:  # a damaged file makes its reader raise almost anything
            raise _damaged(path, error) from error
    content = _unpickle(path)
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: its state_dict holds {type(state).__name__}, not tensors")
    ours = any(str(name).startswith(f"{PREFIX}backbone.") for name in state)
    weights = {
        name.removeprefix(PREFIX) if ours else name: tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and (not ours or name.startswith(PREFIX))
    }
    metadata = _nested(content, "hyper_parameters", "about")
    curve = _nested(content, "callbacks", "History", "mean_iou")
    if isinstance(metadata, dict) and curve:  # a checkpoint is written after its validation
        metadata |= {"validation": {"step": curve[-1][0], "mean_iou": curve[-1][1]}}
    return weights, metadata


def _nested(content: Any, *keys: str) -> Any:
    """Return content[keys[0]][keys[1]]..., or None where it holds something else."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _unpickle(path: Path) -> dict[str, Any]:
    """Return the content of a file of torch.save: tensors and plain values, nothing that runs."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes its reader raise almost anything
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: it holds {type(content).__name__}, not tensors by name")
    return content


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = re.split(r"\n|\. ", str(error))[0][:200] or type(error).__name__
    return CheckpointError(f"{path}: damaged, or not a checkpoint of this project ({reason})")
