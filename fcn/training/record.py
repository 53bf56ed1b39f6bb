"""run.json: all that a run's numbers depend on, and what of it differs when it is run again."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from fcn import machine
from fcn.config import REPOSITORY, TrainConfig, UserError, printable
from fcn.data.datamodule import SegmentationData
from fcn.inference.evaluation import read_metrics, write_json

FILE = "run.json"
PACKAGES = ("hydra-core", "numpy", "omegaconf", "pillow", "pytorch-lightning", "torch",
            "torchmetrics", "torchvision")  # fmt: skip
# What differs in any two runs.
OWN = ("config.resume", "config.rerun", "command", "overrides", "started", "machine")


def describe(cfg: TrainConfig, data: SegmentationData, device: torch.device) -> dict[str, Any]:
    """Settings, versions, commit, data, machine and command line of a run that begins now."""
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    return {
        "command": shlex.join(sys.argv),
        "overrides": overrides,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {name: version(name) for name in PACKAGES},
        "data": {
            split: {
                "name": files.name,
                "images": len(files),
                "ids_sha256": files.fingerprint(),
                "bytes": files.bytes(),
            }
            for split, files in (("train", data.train), ("val", data.val))
        },
        "machine": machine.describe(device),
        "config": asdict(cfg),
    }


def commit() -> str | None:
    """Of this project's own repository, with `+changes` if files differ from it; None without."""
    if not (REPOSITORY / ".git").exists():
        return None
    git = ["git", "-C", str(REPOSITORY)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:  # no git here
        return None
    changed = "+changes" if status.stdout.strip() else ""
    return head.stdout.strip() + changed if head.returncode == 0 else None


def write(folder: Path, content: dict[str, Any]) -> None:
    write_json(folder / FILE, content)


def read(folder: Path) -> dict[str, Any]:
    """Raises: UserError: `folder` holds no record of a run."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no settings by name")
    except (OSError, ValueError) as error:
        raise UserError(
            f"rerun={folder}: no readable {FILE} there ({error}); name the folder of a run"
        ) from error
    return content


def print_differences(console: Console, before: dict[str, Any], now: dict[str, Any]) -> None:
    """What a run that is run again will not have in common with the first."""
    differ = list(differences(before, now))
    for line in differ:
        console.print(f"differs  {line}", style="yellow", highlight=False)
    if not differ:
        console.print("the same settings, data, versions and commit as the first run")


def differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """One line for every value that differs, by its key with dots."""
    if key in OWN:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from differences(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif before != now:
        yield printable(f"{key}: {now}, was {before}")


def print_comparison(console: Console, metrics: dict[str, Any], first: Path) -> None:
    """Whether a run that was run again came to the same numbers."""
    path = first / "metrics.json"
    if not path.is_file():
        console.print(f"{first} has no metrics.json to compare with")
        return
    before = read_metrics(path)
    same = before["confusion"] == metrics["confusion"]
    verdict = "the same, to the last pixel, as" if same else f"{before['mean_iou']} was that of"
    console.print(f"mean IoU {metrics['mean_iou']}: {verdict} {first}", highlight=False)
