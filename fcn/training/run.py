"""A training run: from its settings to the files it leaves."""

import inspect
import logging
import shlex
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Table

from fcn import checkpoint
from fcn.config import CONFIGS, REPOSITORY, ModelConfig, TrainConfig, check_training, flat_keys
from fcn.data.check import class_pixels, scan
from fcn.data.download import fetch
from fcn.data.images import range_note
from fcn.data.loaders import SegmentationData
from fcn.dataset_info import DatasetInfo
from fcn.device import InferenceModel, describe_machine
from fcn.errors import ConfigError
from fcn.inference.evaluate import evaluate_and_write, print_last_line, read_metrics
from fcn.models.fcn import FCN, SKIPS
from fcn.models.surgery import Report, fit_to_features
from fcn.output import percent, write_json
from fcn.pictures import plots
from fcn.processes import rank
from fcn.training.callbacks import History, Pictures, ProgressBar, Watch, checkpoints
from fcn.training.interruption import AtomicCheckpoints, Interruption
from fcn.training.loss import Loss, make_loss
from fcn.training.module import SegmentationModule
from fcn.training.plan import Plan, resolve, set_length

PACKAGES = ("hydra-core", "numpy", "omegaconf", "pillow", "pytorch-lightning", "torch",
            "torchmetrics", "torchvision")  # fmt: skip
MEASURED = 8  # training images on which the size of pretrained features is measured


def main(cfg: TrainConfig, folder: Path, console: Console) -> float | None:
    """Train one model, or one after the other with `stages`; return the mean IoU, in 0..1."""
    try:
        return (train_stages if cfg.stages else train)(cfg, folder, console)
    finally:
        if torch.distributed.is_initialized():  # its threads may abort a process that exits
            torch.distributed.destroy_process_group()


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
    data = _open_data(cfg, console)
    set_length(plan, data, cfg.recipe.batch_size)
    model = _build_model(cfg, plan, data.train.info)
    surgery = None if plan.resume else _first_weights(cfg, model, data, console)
    about = _describe(cfg, plan, model, data)
    if plan.resume is not None:
        _check_resumed(plan.resume, about)
    loss = _make_loss(cfg, data, plan.device, console)
    module = SegmentationModule(
        model, cfg.recipe, loss, plan.lr, cfg.seed, about, compile=cfg.compile
    )
    trainer, history, interruption = _make_trainer(cfg, plan, data, console)
    _print_start(cfg, plan, trainer, model, surgery, data, console)
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", _record(cfg, plan, data))
    with interruption:
        trainer.fit(module, datamodule=data, ckpt_path=plan.resume, weights_only=True)
    best = _best_checkpoint(trainer, plan, console)
    if best is None:
        return None
    metrics = _evaluate_best(cfg, plan, best, about, history, data, console)
    for logger in trainer.loggers:
        _log_settings(logger, cfg, metrics["mean_iou"])
    seconds = time.monotonic() - started
    print_last_line(console, metrics, f"after {seconds:.0f} s", folder)
    return metrics["mean_iou"]


def _open_data(cfg: TrainConfig, console: Console) -> SegmentationData:
    """Fetch what is missing, if wanted, open both splits, and look through their masks."""
    if cfg.data.download:
        fetch(cfg.data, console)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data, channels = SegmentationData(cfg.data, cfg.recipe, cfg.seed), cfg.model.in_channels
    for split in (data.train, data.val):
        if channels not in (None, 3) and not split.info.bands:
            split.info = replace(split.info, bands=list(range(channels)))
    _ = data.train[0]  # an image that does not fit the settings stops the run before it starts
    if note := range_note([pair.image for pair in data.train.pairs], data.train.info):
        console.print(f"warning: {note}", style="yellow")
    if cfg.data.scan and rank() == 0:
        scan([data.train, data.val], console, training=True)
    return data


def _build_model(cfg: TrainConfig, plan: Plan, info: DatasetInfo) -> FCN:
    """Build the model for a data set."""
    channels = len(info.bands) or 3
    if cfg.model.in_channels not in (None, channels):
        raise ConfigError(
            f"model.in_channels={cfg.model.in_channels}: data.bands={info.bands} are {channels} "
            "channels; leave it out"
        )
    scales = cfg.model.skip_scales
    if source := plan.resume or cfg.model.init_from:  # its scores were learned with its own scales
        theirs = checkpoint.read(source).about["model"]["skip_scales"]
        scales = {k: v for k, v in theirs.items() if k in SKIPS[cfg.model.stride]} | scales
    try:
        model = FCN(
            stride=cfg.model.stride,
            num_classes=len(info.classes),
            in_channels=channels,
            backbone=cfg.backbone.name,
            upsampling=cfg.upsampling.name,
            padding=cfg.model.padding,
            skip_scales=scales,
            width=cfg.backbone.width,
            head_width=cfg.backbone.head_width,
            dropout=cfg.model.dropout,
        )
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    if cfg.backbone.freeze:
        model.backbone.freeze(cfg.backbone.freeze)
    return model


def _first_weights(
    cfg: TrainConfig, model: FCN, data: SegmentationData, console: Console
) -> Report | None:
    """Give the model its first weights; None if they stay random."""
    surgery = checkpoint.initialise(
        model,
        cfg.model.init_from,
        cfg.backbone.weights,
        data.classes,
        new_head=cfg.backbone.head_weights is None,
    )
    if surgery and cfg.recipe.fit_to_features:
        first = [data.train[index][0] for index in range(min(len(data.train), MEASURED))]
        fit_to_features(model, first, surgery)
    if surgery and surgery.warning:
        console.print(f"warning: {surgery.source}: {surgery.warning}", style="yellow")
    return surgery


def _make_loss(
    cfg: TrainConfig, data: SegmentationData, device: torch.device, console: Console
) -> Loss:
    """Return the loss, with class weights as given or in balance with the training masks."""
    weights = cfg.loss.class_weights
    if weights is None:
        return make_loss(cfg.loss, cfg.recipe.loss_reduction)
    if weights == "balanced":
        counts = class_pixels(data.train, console)
        weights = [sum(counts) / (len(counts) * max(n, 1)) for n in counts]
        shown = (f"{k} {w:.3g}" for k, w in zip(data.classes, weights, strict=True))
        console.print(f"class weights: {', '.join(shown)}")
    if not isinstance(weights, list) or len(weights) != len(data.classes):
        raise ConfigError(
            f"loss.class_weights={weights}: must be balanced, or one number for each of "
            f"{', '.join(data.classes)}"
        )
    return make_loss(cfg.loss, cfg.recipe.loss_reduction, torch.tensor(weights, device=device))


def _describe(cfg: TrainConfig, plan: Plan, model: FCN, data: SegmentationData) -> dict[str, Any]:
    """Return what every checkpoint keeps: how to build its model, and how it was trained."""
    training = asdict(cfg.recipe) | {
        "lr": plan.lr,
        "max_steps": plan.trainer["max_steps"],
        "accumulate": plan.trainer.get("accumulate_grad_batches", 1),
    }
    return {
        "model": model.arguments,
        **checkpoint.info_metadata(data.train.info),
        "data": {"name": cfg.data.name, "train": data.train.fingerprint()},
        "recipe": cfg.recipe.name,
        "training": training,
        "precision": plan.precision,
        "seed": cfg.seed,
    }


def _check_resumed(path: Path, about: dict[str, Any]) -> None:
    """Check that a checkpoint is of the run that is to be resumed."""
    theirs = checkpoint.read(path).about
    pairs = {f"model.{k}": (theirs["model"].get(k, v), v) for k, v in about["model"].items()}
    pairs["data.classes"] = (theirs["classes"], about["classes"])
    pairs["recipe.optimizer"] = tuple(a["training"]["optimizer"] for a in (theirs, about))
    for key, (before, now) in pairs.items():
        if before != now:
            raise ConfigError(
                f"resume={path}: it was trained with {key}={before}, not {now}; resume with the "
                "same settings, or start a new run with model.init_from"
            )


def _make_trainer(
    cfg: TrainConfig, plan: Plan, data: SegmentationData, console: Console
) -> tuple[pl.Trainer, History, Interruption]:
    """Return Lightning's Trainer, and the callbacks that the run itself looks at."""
    hide_hints()
    history = History(console)
    interruption = Interruption(plan.folder / "checkpoints" / "last.ckpt", console)
    log = plan.folder / "metrics.csv"
    if log.is_file() and rank() == 0:  # of a resumed run; Lightning's logger would delete it
        log.rename(log.with_suffix(f".{len(list(plan.folder.glob('metrics*.csv')))}.csv"))
    loggers = [_instantiate(entry, "logger", save_dir=plan.folder) for entry in cfg.logger.values()]
    callbacks = [_instantiate(entry, "callbacks") for entry in cfg.callbacks.values()]
    callbacks += [
        history,
        Watch(data.classes, console),
        interruption,
        Pictures(data.train.info),
    ]
    if loggers:
        callbacks.append(LearningRateMonitor("step"))
    if cfg.recipe.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=cfg.recipe.ema_decay))
    given = plan.trainer | {"callbacks": callbacks}
    given["enable_progress_bar"] = given.get("enable_progress_bar", True) and console.is_terminal
    if given["enable_progress_bar"]:
        callbacks.append(ProgressBar(leave=False))
    if not given.get("fast_dev_run") and given.get("enable_checkpointing", True):
        callbacks += checkpoints(plan.folder / "checkpoints")
    defaults: dict[str, Any] = {"num_sanity_val_steps": 0, "enable_model_summary": False}
    try:
        trainer = pl.Trainer(
            **defaults | given,
            plugins=[AtomicCheckpoints()],
            default_root_dir=plan.folder,
            logger=loggers,
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


def _instantiate(entry: dict[str, Any], group: str, **defaults: Any) -> Any:
    """Return what a `_target_` names; `defaults` fill the arguments that it knows and lacks."""
    try:
        target = get_class(entry["_target_"])
        known = inspect.signature(target).parameters
        own = {key: value for key, value in defaults.items() if key in known and key not in entry}
        if entry.get("tracking_uri", "") is None:  # MLflow's
            folder = defaults["save_dir"].absolute()
            own = {"tracking_uri": f"sqlite:///{folder}/mlflow.db"}
            own["artifact_location"] = str(folder / "mlruns")
        return instantiate(entry, **own)
    except Exception as error:  # of whatever library it is
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(f"{group}: {entry.get('_target_', entry)}: {reason}") from error


def _log_settings(logger: Logger, cfg: TrainConfig, mean_iou: float) -> None:
    """Log the settings, and the final mean IoU as what runs are ranked by."""
    settings = {key: str(value) for key, value in flat_keys(asdict(cfg)).items()}
    if isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(settings, {"hp_metric": mean_iou})
    else:
        logger.log_hyperparams(settings)
        logger.log_metrics({"hp_metric": mean_iou})
    logger.finalize("success")


def hide_hints() -> None:
    """Hide Lightning's hints that do not concern a user of this project."""
    for name in ("pytorch_lightning", "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",  # their number is a setting with a sensible default
        r".*Checkpoint directory .* exists and is not empty.*",  # as it is in a resumed run
        r".*Experiment logs directory .* exists and is not empty.*",  # it is the run's folder
        r".*It is recommended to use `self.log.*sync_dist=True.*",  # the same on every rank
        r".*Found .* module\(s\) in eval mode.*",  # frozen batch norm
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message=message)


def _print_start(
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
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    kernels = sum(p.numel() for n, p in model.named_parameters() if n.startswith("upscore"))
    images = cfg.recipe.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    weights = f"resumed from {plan.resume}" if plan.resume else surgery and surgery.source
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in {
        "model": f"{cfg.model.name}, backbone {cfg.backbone.name}, padding {cfg.model.padding}",
        "upsampling": f"{cfg.upsampling.name}, {kernels:,} trainable parameters",
        "parameters": f"{parameters:,}" + (f", {frozen:,} of them frozen" if frozen else ""),
        "data": f"{cfg.data.name} in {cfg.data.root}: {len(data.train)} training images, "
        f"{len(data.val)} validation images, {len(data.classes)} classes"
        + (f", bands {', '.join(map(str, bands))}" if (bands := data.train.info.bands) else ""),
        "recipe": f"{cfg.recipe.name}: {trainer.max_steps} steps of {images} images, "
        f"{cfg.recipe.optimizer}, {cfg.recipe.loss_reduction} loss",
        "device": f"{plan.device}, precision {plan.precision}",
        "weights": weights or "random",
    }.items():
        table.add_row(name, value)
    console.print(table)
    if surgery is not None:
        console.print(checkpoint.surgery_table(surgery))
    elif plan.resume is None and cfg.data.layout != "shapes":
        console.print(
            "note: a network for photographs learns far more from ImageNet weights: "
            "backbone=vgg16 recipe=finetune"
        )


def _origin() -> dict[str, Any]:
    """Return how a run was started, with which versions."""
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    return {
        "command": shlex.join(sys.argv),
        "overrides": overrides,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _record(cfg: TrainConfig, plan: Plan, data: SegmentationData) -> dict[str, Any]:
    """Return the contents of run.json: what the run's numbers depend on."""
    return _origin() | {
        "data": {
            files.name: {"images": len(files), "ids_sha256": files.fingerprint()}
            for files in (data.train, data.val)
        },
        "machine": describe_machine(plan.device),
        "config": asdict(cfg),
    }


def _commit() -> str | None:
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


def _best_checkpoint(trainer: pl.Trainer, plan: Plan, console: Console) -> Path | None:
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


def _evaluate_best(
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
    assert metrics is not None
    about = about | {"metrics": metrics}
    checkpoint.write_safetensors(plan.folder / "model.safetensors", model.cpu(), about)
    return metrics


def train_stages(cfg: TrainConfig, folder: Path, console: Console) -> float | None:
    """Train each model of `cfg.stages` from the best checkpoint of the one before.

    FCN-32s, then 16s from it, then 8s (PAMI 2016, sec. 4.3). Each stage is a run of its own in
    folder/NAME. With resume=last finished stages are kept and the interrupted one continues.

    Returns:
        The mean IoU of the last stage, in 0..1.

    Raises:
        UserError: as `train`; the stages are not in order.
    """
    models = [_stage_model(cfg.model, name) for name in cfg.stages]
    strides = [model.stride for model in models]
    if cfg.resume not in (None, "last"):
        raise ConfigError(f"resume={cfg.resume}: stages are resumed with resume=last")
    if strides != sorted(set(strides), reverse=True):
        raise ConfigError(
            f"stages={cfg.stages}: must go from coarse to fine, such as [fcn32s,fcn16s,fcn8s]"
        )
    for model in models:  # every stage is checked before the first one trains
        previous = "the stage before" if model is not models[0] else model.init_from
        staged = replace(cfg, model=replace(model, init_from=previous), resume=None)
        resolve(staged, folder / model.name) if cfg.resume is None else check_training(staged)
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", _origin())
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


def _stage_model(base: ModelConfig, name: str) -> ModelConfig:
    """Return the model choice `name`, with the settings that all stages share."""
    paths = {path.stem: path for path in sorted((CONFIGS / "model").glob("*.yaml"))}
    if name not in paths:
        raise ConfigError(f"stages: no model {name}; choices: {', '.join(paths)}")
    choice: Any = OmegaConf.to_object(OmegaConf.merge(ModelConfig, OmegaConf.load(paths[name])))
    return replace(choice, padding=base.padding, dropout=base.dropout, init_from=base.init_from)
