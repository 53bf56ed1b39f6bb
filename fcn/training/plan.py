"""The settings of a run that follow from others, resolved once: whatever is invalid fails here."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from fcn.config import TrainConfig, check_training, learning_rate, unknown_key
from fcn.data.loaders import SegmentationData
from fcn.device import computes_bf16, pick_device
from fcn.errors import ConfigError
from fcn.processes import rank

# Arguments of Lightning's Trainer that a run sets itself.
OWN_ARGUMENTS = ("callbacks", "logger", "plugins", "default_root_dir", "use_distributed_sampler")


@dataclass
class Plan:
    """Plain values that the steps of a run take."""

    folder: Path
    lr: float
    device: torch.device
    precision: str  # as Lightning names it
    trainer: dict[str, Any]  # arguments of Lightning's Trainer
    resume: Path | None  # the checkpoint to continue from


def resolve(cfg: TrainConfig, folder: Path) -> Plan:
    """Resolve the settings of a run; whatever is invalid fails here.

    Raises:
        ConfigError: settings that do not fit together, an unknown argument of the Trainer, a device
            that is not there, a folder that holds a run already.
    """
    check_training(cfg)
    trainer = dict(cfg.trainer)
    known = [name for name in inspect.signature(pl.Trainer).parameters if name not in OWN_ARGUMENTS]
    for name in trainer:
        if name in OWN_ARGUMENTS:
            hint = f"; use {name}=CHOICE" if name in ("callbacks", "logger") else ""
            raise ConfigError(f"trainer.{name} is set by the run itself{hint}")
        if name not in known:
            raise ConfigError(unknown_key(f"trainer.{name}", [f"trainer.{k}" for k in known]))
    accelerator = trainer.get("accelerator", "auto")
    device = pick_device("auto" if accelerator == "gpu" else accelerator, "trainer.accelerator")
    if accelerator == "gpu" and device.type == "cpu":
        raise ConfigError("trainer.accelerator=gpu is not available on this machine; use auto")
    precision = str(trainer.get("precision") or "auto")
    if precision == "auto":
        precision = "bf16-mixed" if computes_bf16(device) else "32-true"
    if precision.startswith("16") and device.type == "cpu":
        raise ConfigError(f"trainer.precision={precision} needs a GPU; use bf16-mixed or 32-true")
    trainer["precision"] = precision
    if device.type != "cuda":
        trainer["sync_batchnorm"] = False  # torch has it for CUDA alone
    lr = learning_rate(cfg.recipe, cfg.model.name)
    return Plan(folder, lr, device, precision, trainer, _checkpoint_to_resume(cfg.resume, folder))


def _checkpoint_to_resume(resume: str | None, folder: Path) -> Path | None:
    """Return the checkpoint that `resume` means; without it, check that the folder is free."""
    checkpoints = folder / "checkpoints"
    if resume is None and rank() == 0 and any(checkpoints.glob("*.ckpt")):
        raise ConfigError(
            f"{folder} holds a run already: resume=last continues it, another hydra.run.dir starts "
            "a new one"
        )
    if resume != "last":
        if resume and not (resume.endswith(".ckpt") and Path(resume).is_file()):
            raise ConfigError(f"resume={resume}: no such .ckpt; name RUN/checkpoints/last.ckpt")
        return Path(resume) if resume else None
    found = [checkpoints / name for name in ("last.ckpt", "best.ckpt")]
    found = [path for path in found if path.is_file()]
    if not found:
        raise ConfigError(f"resume=last: no checkpoint in {checkpoints}")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def set_length(plan: Plan, data: SegmentationData, batch_size: int) -> None:
    """Resolve epochs, and shares of one, to batches: to Lightning the whole run is one epoch.

    Args:
        plan: its Trainer arguments change in place.
        data: overfit_batches leaves it the images of those batches.
        batch_size: images of one process.
    """
    given = plan.trainer
    devices, accumulate = given.get("devices", "auto"), given.get("accumulate_grad_batches", 1)
    if devices in ("auto", -1, "-1"):
        devices = torch.cuda.device_count() if plan.device.type == "cuda" else 1
    devices = len(devices) if isinstance(devices, list) else devices
    processes = devices * given.get("num_nodes", 1) if isinstance(devices, int) else 1
    epoch = -(-len(data.train) // (batch_size * processes))  # batches of one process
    if overfit := given.pop("overfit_batches", 0):
        epoch = max(1, int(overfit * epoch)) if isinstance(overfit, float) else overfit
        data.keep_first(epoch * batch_size * processes)
        given["limit_val_batches"] = given.get("limit_val_batches", epoch)
    limit = given.get("limit_train_batches")
    if isinstance(limit, float):
        given["limit_train_batches"] = limit = max(1, int(limit * epoch))
    epoch = min(epoch, limit or epoch)
    if (epochs := given.pop("max_epochs", None)) is not None:
        given["max_steps"] = -(-int(epochs) * epoch // accumulate)
    if given.get("max_steps") is None:
        raise ConfigError("set trainer.max_steps or trainer.max_epochs")
    interval = given.get("val_check_interval") or 1.0
    if isinstance(interval, float):
        interval = max(1, int(interval * epoch))
    given["val_check_interval"] = min(interval, given["max_steps"] * accumulate)
    given.setdefault("log_every_n_steps", min(10, given["max_steps"], limit or 10))
    given["check_val_every_n_epoch"] = None  # the interval counts over the whole run
