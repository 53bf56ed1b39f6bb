"""A training run: from its settings to the files it leaves."""

import inspect
import logging
import shlex
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Table

from fcn import checkpoint, plots
from fcn.cli import rank
from fcn.config import (
    CONFIGS,
    REPOSITORY,
    ConfigError,
    ModelConfig,
    TrainConfig,
    check_training,
    learning_rate,
    unknown_key,
)
from fcn.data.datamodule import SegmentationData
from fcn.data.download import fetch
from fcn.device import InferenceModel, computes_bf16, describe_machine, pick_device
from fcn.evaluate import evaluate_and_write, print_last_line, read_metrics
from fcn.models.fcn import FCN
from fcn.models.surgery import Report
from fcn.output import percent, write_json
from fcn.training.callbacks import History, Pictures, ProgressBar, Watch, checkpoints
from fcn.training.interruption import AtomicCheckpoints, Interruption
from fcn.training.module import SegmentationModule

# Arguments of Lightning's Trainer that a run sets itself.
OWN_ARGUMENTS = ("callbacks", "logger", "plugins", "default_root_dir", "use_distributed_sampler")
PACKAGES = ("hydra-core", "numpy", "omegaconf", "pillow", "pytorch-lightning", "torch",
            "torchmetrics", "torchvision")  # fmt: skip


def main(cfg: TrainConfig, folder: Path, console: Console) -> float | None:
    """Train one model, or one after the other with `stages`; return the mean IoU, in 0..1."""
    return (train_stages if cfg.stages else train)(cfg, folder, console)


def train(cfg: TrainConfig, folder: Path, console: Console) -> float | None:
    """Train a model, evaluate its best checkpoint, and write what the run leaves.

    Args:
        cfg: validated settings.
        folder: of the run.
        console: for progress and results.

    Returns:
        The mean IoU on the validation split, in 0..1; None in processes other than the first.

    Raises:
        UserError: the settings, the data or the weights make the run impossible.
    """
    started = time.monotonic()
    plan = resolve(cfg, folder)
    data = open_data(cfg, console)
    set_length(plan, data, cfg.recipe.batch_size)
    model, surgery = build_model(cfg, data.classes)
    about = describe(cfg, plan, model, data)
    if plan.resume is not None:
        check_resumed(plan.resume, about)
    module = SegmentationModule(model, cfg.recipe, plan.lr, cfg.seed, about, compile=cfg.compile)
    trainer, history, interruption = make_trainer(cfg, plan, data, console)
    print_start(cfg, plan, trainer, model, surgery, data, console)
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", record(cfg, plan, data))
    with interruption:
        trainer.fit(module, datamodule=data, ckpt_path=plan.resume, weights_only=True)
    best = best_checkpoint(trainer, plan, console)
    if best is None:
        return None
    metrics = evaluate_best(cfg, plan, best, about, history, data, console)
    seconds = time.monotonic() - started
    print_last_line(console, metrics, f"after {seconds:.0f} s", folder)
    return metrics["mean_iou"]


@dataclass
class Plan:
    """The settings of a run that follow from others, resolved once.

    Args:
        folder: of the run.
        lr: the learning rate.
        device: where it computes.
        precision: as Lightning names it.
        trainer: arguments of Lightning's Trainer.
        resume: the checkpoint to continue from.
    """

    folder: Path
    lr: float
    device: torch.device
    precision: str
    trainer: dict[str, Any]
    resume: Path | None


def resolve(cfg: TrainConfig, folder: Path) -> Plan:
    """Resolve the settings of a run; whatever is invalid fails here.

    Raises:
        ConfigError: settings that do not fit together, an unknown argument of the Trainer, a device
            that is not there, a folder that holds a run already.
    """
    check_training(cfg)
    given = dict(cfg.trainer)
    known = [name for name in inspect.signature(pl.Trainer).parameters if name not in OWN_ARGUMENTS]
    for name in given:
        if name in OWN_ARGUMENTS:
            raise ConfigError(f"trainer.{name} is set by the run itself")
        if name not in known:
            raise ConfigError(unknown_key(f"trainer.{name}", [f"trainer.{k}" for k in known]))
    accelerator = given.get("accelerator", "auto")
    device = pick_device("auto" if accelerator == "gpu" else accelerator, "trainer.accelerator")
    if accelerator == "gpu" and device.type == "cpu":
        raise ConfigError("trainer.accelerator=gpu is not available on this machine; use auto")
    precision = given.get("precision") or "auto"
    if precision == "auto":
        precision = "bf16-mixed" if computes_bf16(device) else "32-true"
    if "16-mixed" in str(precision) and "bf16" not in str(precision) and device.type == "cpu":
        raise ConfigError(f"trainer.precision={precision} needs a GPU; use bf16-mixed or 32-true")
    if device.type != "cuda":
        given["sync_batchnorm"] = False  # torch has it for CUDA alone
    resume = None
    if cfg.resume == "last":
        found = [folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt")]
        there = sorted((p for p in found if p.is_file()), key=lambda p: p.stat().st_mtime_ns)
        if not there:
            raise ConfigError(f"resume=last: no checkpoint in {folder / 'checkpoints'}")
        resume = there[-1]
    elif cfg.resume is not None:
        resume = Path(cfg.resume)
        if resume.suffix != ".ckpt" or not resume.is_file():
            raise ConfigError(f"resume={resume}: no such .ckpt; name RUN/checkpoints/last.ckpt")
    elif rank() == 0 and any((folder / "checkpoints").glob("*.ckpt")):
        raise ConfigError(
            f"{folder} holds a run already: resume=last continues it, another hydra.run.dir starts "
            "a new one"
        )
    lr = learning_rate(cfg.recipe, cfg.model.name)
    return Plan(folder, lr, device, str(precision), given | {"precision": precision}, resume)


def open_data(cfg: TrainConfig, console: Console) -> SegmentationData:
    """Fetch what is missing, if wanted, and open both splits."""
    if cfg.data.download:
        fetch(cfg.data, console)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    return SegmentationData(cfg.data, cfg.recipe, cfg.seed)


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
    processes = len(devices) if isinstance(devices, list) else int(devices)
    processes *= given.get("num_nodes", 1)
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


def build_model(cfg: TrainConfig, classes: list[str]) -> tuple[FCN, Report | None]:
    """Build the model with its first weights; a resumed run's come with its checkpoint.

    Raises:
        ConfigError: an argument outside its choices.
        CheckpointError: weights that do not fit.
    """
    try:
        model = FCN(
            stride=cfg.model.stride,
            num_classes=len(classes),
            backbone=cfg.backbone.name,
            upsampling=cfg.upsampling.name,
            padding=cfg.model.padding,
            skip_scales=cfg.model.skip_scales,
            width=cfg.backbone.width,
            head_width=cfg.backbone.head_width,
            dropout=cfg.model.dropout,
        )
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    if cfg.resume:
        return model, None
    surgery = checkpoint.initialise(model, cfg.model.init_from, cfg.backbone.weights, classes)
    return model, surgery


def describe(cfg: TrainConfig, plan: Plan, model: FCN, data: SegmentationData) -> dict[str, Any]:
    """Return what every checkpoint keeps: how to build its model, and how it was trained."""
    training = asdict(cfg.recipe) | {
        "lr": plan.lr,
        "max_steps": plan.trainer["max_steps"],
        "accumulate": plan.trainer.get("accumulate_grad_batches", 1),
    }
    return {
        "model": model.arguments,
        "classes": data.classes,
        "data": {"name": cfg.data.name, "train": data.train.fingerprint()},
        "recipe": cfg.recipe.name,
        "training": training,
        "precision": plan.precision,
        "seed": cfg.seed,
    }


def check_resumed(path: Path, about: dict[str, Any]) -> None:
    """Check that a checkpoint is of the run that is to be resumed.

    Raises:
        ConfigError: its model, classes or optimiser are others.
    """
    theirs = checkpoint.read(path).about
    pairs = {f"model.{k}": (theirs["model"].get(k), v) for k, v in about["model"].items()}
    pairs["data.classes"] = (theirs["classes"], about["classes"])
    pairs["recipe.optimizer"] = tuple(a["training"]["optimizer"] for a in (theirs, about))
    for key, (before, now) in pairs.items():
        if before != now:
            raise ConfigError(
                f"resume={path}: it was trained with {key}={before}, not {now}; resume with the "
                "same settings, or start a new run with model.init_from"
            )


def make_trainer(
    cfg: TrainConfig, plan: Plan, data: SegmentationData, console: Console
) -> tuple[pl.Trainer, History, Interruption]:
    """Return Lightning's Trainer, and the callbacks that the run itself looks at.

    Raises:
        ConfigError: Lightning does not accept an argument.
    """
    hide_hints()
    history = History(console)
    interruption = Interruption(plan.folder / "checkpoints" / "last.ckpt", console)
    callbacks = [
        history,
        Watch(data.classes, console),
        interruption,
        Pictures(data.classes),
        LearningRateMonitor("step"),
    ]
    if cfg.recipe.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=cfg.recipe.ema_decay))
    given = plan.trainer | {"callbacks": callbacks}
    given["enable_progress_bar"] = given.get("enable_progress_bar", True) and console.is_terminal
    if given["enable_progress_bar"]:
        callbacks.append(ProgressBar(leave=False))
    if not given.get("fast_dev_run") and given.get("enable_checkpointing", True):
        callbacks += checkpoints(plan.folder / "checkpoints")
    defaults = {"num_sanity_val_steps": 0, "enable_model_summary": False}
    try:
        trainer = pl.Trainer(
            **defaults | given,
            plugins=[AtomicCheckpoints()],
            default_root_dir=plan.folder,
            logger=TensorBoardLogger(plan.folder, name=None, version=""),
            use_distributed_sampler=False,  # the samplers of fcn.data share out by rank themselves
        )
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"trainer: {error}") from error
    if cfg.recipe.loss_reduction == "sum" and trainer.world_size > 1:
        raise ConfigError(
            "recipe.loss_reduction=sum does not fit several processes, whose gradients are "
            "averaged; use trainer.devices=1, or mean"
        )
    return trainer, history, interruption


def hide_hints() -> None:
    """Hide Lightning's hints that do not concern a user of this project."""
    for name in ("pytorch_lightning", "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",  # their number is a setting with a sensible default
        r".*Checkpoint directory .* exists and is not empty.*",  # as it is in a resumed run
        r".*It is recommended to use `self.log.*sync_dist=True.*",  # the same on every rank
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message=message)


def print_start(
    cfg: TrainConfig,
    plan: Plan,
    trainer: pl.Trainer,
    model: FCN,
    surgery: Report | None,
    data: SegmentationData,
    console: Console,
) -> None:
    """Print what is about to be trained, on what, and where its weights come from."""
    parameters = sum(p.numel() for p in model.parameters())
    kernels = sum(p.numel() for n, p in model.named_parameters() if n.startswith("upscore"))
    images = cfg.recipe.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    weights = f"resumed from {plan.resume}" if plan.resume else surgery and surgery.source
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in {
        "model": f"{cfg.model.name}, backbone {cfg.backbone.name}, padding {cfg.model.padding}",
        "upsampling": f"{cfg.upsampling.name}, {kernels:,} trainable parameters",
        "parameters": f"{parameters:,}",
        "data": f"{cfg.data.name}: {len(data.train)} training images, {len(data.val)} validation "
        f"images, {len(data.classes)} classes",
        "recipe": f"{cfg.recipe.name}: {trainer.max_steps} steps of {images} images, "
        f"{cfg.recipe.optimizer}, {cfg.recipe.loss_reduction} loss",
        "device": f"{plan.device}, precision {plan.precision}",
        "weights": weights or "random",
    }.items():
        table.add_row(name, value)
    console.print(table)
    if surgery is not None:
        console.print(checkpoint.surgery_table(surgery))


def origin() -> dict[str, Any]:
    """Return how a run was started, with which versions."""
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    return {
        "command": shlex.join(sys.argv),
        "overrides": overrides,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def record(cfg: TrainConfig, plan: Plan, data: SegmentationData) -> dict[str, Any]:
    """Return the contents of run.json: what the run's numbers depend on."""
    return origin() | {
        "data": {
            files.name: {"images": len(files), "ids_sha256": files.fingerprint()}
            for files in (data.train, data.val)
        },
        "machine": describe_machine(plan.device),
        "config": asdict(cfg),
    }


def commit() -> str | None:
    """Return this checkout's git commit, with `+changes` if files differ; None without git."""
    if not (REPOSITORY / ".git").exists():
        return None
    git = ["git", "-C", str(REPOSITORY)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:  # git is not installed
        return None
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def best_checkpoint(trainer: pl.Trainer, plan: Plan, console: Console) -> Path | None:
    """Return the checkpoint to evaluate; None where there is none, and in later processes."""
    if plan.trainer.get("fast_dev_run") or not trainer.checkpoint_callbacks:
        console.print("without checkpoints there is nothing to evaluate; no model was saved")
        return None
    best, last = (plan.folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    kept = trainer.checkpoint_callbacks[0]
    assert isinstance(kept, ModelCheckpoint)
    if not kept.best_model_path:  # nothing was validated
        trainer.save_checkpoint(last)
    if not trainer.is_global_zero:
        return None
    return best if best.is_file() else last


def evaluate_best(
    cfg: TrainConfig,
    plan: Plan,
    best: Path,
    about: dict[str, Any],
    history: History,
    data: SegmentationData,
    console: Console,
) -> dict[str, Any]:
    """Evaluate a checkpoint, write the numbers, the pictures and the model; return the metrics."""
    if history.loss and history.mean_iou:
        curves = {"training loss": history.loss}, {"validation mean IoU": history.mean_iou}
        plots.curves(*curves).save(plan.folder / "curves.png")
    model = checkpoint.load(best)
    metrics = evaluate_and_write(
        InferenceModel(model, plan.device, bf16="bf16" in plan.precision),
        data.val,
        plan.folder,
        console,
        data=cfg.data.name,
        split=cfg.data.val_split,
        num_workers=cfg.data.num_workers,
    )
    about = about | {"metrics": metrics}
    checkpoint.write_safetensors(plan.folder / "model.safetensors", model.cpu(), about)
    return metrics


def train_stages(cfg: TrainConfig, folder: Path, console: Console) -> float | None:
    """Train each model of `cfg.stages` from the best checkpoint of the one before.

    FCN-32s, then 16s from it, then 8s (PAMI 2016, sec. 4.3). Each stage is a run of its own in
    folder/NAME. With resume=last finished stages are kept and the interrupted one continues. Ends
    with a table, also in folder/stages.json.

    Returns:
        The mean IoU of the last stage, in 0..1.

    Raises:
        UserError: as `train`; the stages are not in order.
    """
    models = [stage_model(cfg.model, name) for name in cfg.stages]
    strides = [model.stride for model in models]
    if cfg.resume not in (None, "last"):
        raise ConfigError(f"resume={cfg.resume}: stages are resumed with resume=last")
    if strides != sorted(set(strides), reverse=True):
        raise ConfigError(
            f"stages={cfg.stages}: must go from coarse to fine, such as [fcn32s,fcn16s,fcn8s]"
        )
    for index, model in enumerate(models):  # every stage is checked before the first one trains
        source = "the stage before" if index and not cfg.resume else model.init_from
        own = folder / model.name
        resolve(replace(cfg, model=replace(model, init_from=source), resume=None), own) if (
            cfg.resume is None
        ) else check_training(replace(cfg, model=model))
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", origin())
    results: dict[str, dict[str, Any]] = {}
    for index, model in enumerate(models):
        own = folder / model.name
        started = any((own / "checkpoints").glob("*.ckpt"))
        if index:
            model.init_from = str(folder / models[index - 1].name / "checkpoints" / "best.ckpt")
        if not (own / "model.safetensors").is_file():  # the last file that a run writes
            console.rule(model.name)
            if started:
                model.init_from = None
            train(replace(cfg, model=model, resume="last" if started else None), own, console)
        if (own / "metrics.json").is_file():  # written by the first process
            results[model.name] = read_metrics(own / "metrics.json")
    if rank() > 0:
        return None
    write_json(folder / "stages.json", results)
    source = cfg.model.init_from or cfg.backbone.weights or "random weights"
    table = Table(
        "stage", "from", "mean IoU %", "pixel acc. %", "mean acc. %", "f.w. IoU %", box=None
    )
    for name, metrics in results.items():
        keys = ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
        table.add_row(name, source, *(percent(metrics[key]) for key in keys))
        source = name
    console.print(table)
    return results[models[-1].name]["mean_iou"]


def stage_model(base: ModelConfig, name: str) -> ModelConfig:
    """Return the model choice `name`, with the settings that all stages share.

    Raises:
        ConfigError: there is no such choice.
    """
    paths = {path.stem: path for path in sorted((CONFIGS / "model").glob("*.yaml"))}
    if name not in paths:
        raise ConfigError(f"stages: no model {name}; choices: {', '.join(paths)}")
    choice: Any = OmegaConf.to_object(OmegaConf.merge(ModelConfig, OmegaConf.load(paths[name])))
    return replace(choice, padding=base.padding, dropout=base.dropout, init_from=base.init_from)
