"""The folders that train.py and evaluate.py leave, read again."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from torch import Tensor

from fcn.config import DataConfig, UserError
from fcn.data.datamodule import open_split
from fcn.data.files import SegmentationFiles
from fcn.data.ranges import is_address
from fcn.inference import checkpoint
from fcn.inference.evaluation import metrics_json, read_metrics, read_per_image
from fcn.inference.report import evaluate_split
from fcn.metrics import tally
from fcn.models.fcn import FCN
from fcn.recorded import read_yaml

SAME = ("data", "split", "images", "ids_sha256", "size", "ignore_index")  # for numbers to compare


class RunError(UserError, ValueError):
    """A folder that is no run, or runs that do not compare."""


@dataclass
class Run:
    """A run, and the split that it was judged on.

    per_image is None, as is metrics["trimap"] missing, where an older version judged it.
    """

    name: str  # the end of its path that no other run shares
    folder: Path
    metrics: dict[str, Any]  # metrics.json
    settings: dict[str, Any]  # .hydra/config.yaml
    weights: Path
    history: dict[str, list[tuple[int, float]]]
    files: SegmentationFiles
    per_image: Tensor | None  # int64 (N, 3, K), in the order of files

    @property
    def protocol(self) -> dict[str, Any]:
        return self.metrics["protocol"]

    @property
    def bf16(self) -> bool:
        return self.protocol.get("precision") == "bf16-mixed"


def open_runs(folders: Sequence[str], root: str | None = None) -> list[Run]:
    """Run folders whose numbers compare.

    Args: root: the folder of the data sets, where it is no longer where the runs had it.
    Raises: UserError: a folder is no run, or not whole; its data is not there, or is other data;
        two runs were judged on different images, or otherwise differently.
    """
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise RunError(f"runs names a folder twice: {', '.join(map(str, paths))}")
    every_metrics = [_read_metrics(path) for path in paths]
    first = every_metrics[0]
    for path, metrics in zip(paths, every_metrics, strict=True):
        for key in SAME:
            one, other = first["protocol"].get(key), metrics["protocol"].get(key)
            if one != other:
                raise RunError(
                    f"{paths[0]} and {path} do not compare: they were judged with {key} {one} and "
                    f"{other}; judge both checkpoints with evaluate.py on one split"
                )
        if _names(first) != _names(metrics):
            raise RunError(f"{paths[0]} and {path} do not compare: their classes differ")
    return [
        _open_run(path, name, metrics, root)
        for path, name, metrics in zip(paths, _short_names(paths), every_metrics, strict=True)
    ]


def judged(run: Run, model: FCN, console: Console, device: torch.device) -> Run:
    """The run with all that judging leaves: as it is, or judged once more where files are old."""
    if run.per_image is not None and "trimap" in run.metrics:
        return run
    evaluation = evaluate_split(
        model, run.files, console, f"judging {run.name}", device=device, bf16=run.bf16
    )
    protocol = run.protocol
    metrics = metrics_json(
        evaluation,
        run.files,
        protocol["split"],
        protocol["model"],
        protocol["data"],
        "bf16-mixed" if run.bf16 else "32-true",
    )
    return replace(run, metrics=metrics, per_image=evaluation.per_image)


def _read_metrics(folder: Path) -> dict[str, Any]:
    if (folder / "stages.json").is_file():
        stages = ", ".join(sorted(str(path.parent) for path in folder.glob("*/metrics.json")))
        raise RunError(f"{folder}: holds several runs; name them: {stages}")
    path = folder / "metrics.json"
    if not path.is_file():
        raise RunError(f"{path}: not found; a run is a folder that train.py or evaluate.py left")
    return read_metrics(path)


def _open_run(folder: Path, name: str, metrics: dict[str, Any], root: str | None) -> Run:
    settings, started_in = _settings(folder)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        if not settings.get("checkpoint"):
            raise RunError(f"{weights}: not found; the run has not ended, or it was moved away")
        weights = started_in / str(settings["checkpoint"])
    with_history = [folder / "checkpoints" / "last.ckpt", weights]
    kept = next((p for p in with_history if p.suffix == ".ckpt" and p.is_file()), None)
    files = _files(folder, settings["data"], started_in, root, metrics)
    return Run(
        name=name,
        folder=folder,
        metrics=metrics,
        settings=settings,
        weights=weights,
        history=checkpoint.history(kept) if kept else {},
        files=files,
        per_image=_per_image(folder / "per_image.npz", files, metrics),
    )


def _settings(folder: Path) -> tuple[dict[str, Any], Path]:
    """What a run was started with, and in which folder; of a stage, its parent's."""
    for place in (folder, folder.parent):
        settings, hydra = (place / ".hydra" / f"{name}.yaml" for name in ("config", "hydra"))
        if settings.is_file() and hydra.is_file():
            content, started = read_yaml(settings), read_yaml(hydra)
            if not isinstance(content, dict) or not isinstance(content.get("data"), dict):
                raise RunError(f"{settings}: damaged, or not settings of a run")
            if place != folder:  # what differs from stage to stage is in the protocol
                content = {k: v for k, v in content.items() if k not in ("model", "stages")}
            try:
                return content, Path(started["hydra"]["runtime"]["cwd"])
            except (KeyError, TypeError):
                raise RunError(f"{hydra}: damaged, or not settings of a run") from None
    raise RunError(f"{folder / '.hydra'}: not found; it says which data the run was judged on")


def _files(
    folder: Path,
    data: dict[str, Any],
    started_in: Path,
    root: str | None,
    metrics: dict[str, Any],
) -> SegmentationFiles:
    known = {field.name for field in fields(DataConfig)}
    try:
        if "${" in str(data):
            raise ValueError("an interpolation of no key there is")
        given = {key: value for key, value in data.items() if key in known}
        config: Any = OmegaConf.to_object(OmegaConf.merge(DataConfig, given))
    except (OmegaConfBaseException, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise RunError(f"{folder / '.hydra' / 'config.yaml'}: data: {reason}") from None
    here = is_address(config.root)
    config.root = root or (config.root if here else str(started_in / config.root))
    try:
        files = open_split(config, metrics["protocol"]["split"])
    except OSError as error:  # of a name that no file can have
        raise RunError(f"{folder}: its data: {error.strerror}") from None
    if files.fingerprint() != metrics["protocol"]["ids_sha256"]:
        raise RunError(f"{folder}: was judged on other images than are in {files.name} now")
    if files.classes != _names(metrics):
        raise RunError(f"{folder}: was judged on other classes than {files.name} has now")
    return files


def _per_image(path: Path, files: SegmentationFiles, metrics: dict[str, Any]) -> Tensor | None:
    if not path.is_file():
        return None
    ids, per_image = read_per_image(path)
    whole = tally(torch.tensor(metrics["confusion"]))
    if ids != files.ids or not torch.equal(per_image.sum(0), whole):
        raise RunError(f"{path}: not of the metrics.json beside it; evaluate again")
    return per_image


def _names(metrics: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in metrics["classes"]]


def _short_names(paths: Sequence[Path]) -> list[str]:
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
