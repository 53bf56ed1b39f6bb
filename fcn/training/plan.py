"""The plan of a run: every setting that follows from others, decided once and checked.

Invalid settings fail here; checks that need no data come before a data set is downloaded. After
`resolve` the settings are read only for run.json, the loggers and names on the screen.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console

from fcn import checkpoint
from fcn.checkpoint import Checkpoint
from fcn.config import (
    DataConfig,
    LossConfig,
    RecipeConfig,
    TrainConfig,
    UpsamplingConfig,
    unknown_key,
)
from fcn.data.dataset import SegmentationDataset, check_overlap
from fcn.data.download import fetch
from fcn.data.images import image_size
from fcn.data.layouts import VOC_CLASSES, check_folds, open_split
from fcn.data.shapes import CLASSES as SHAPES
from fcn.data.transforms import check_transforms
from fcn.dataset_info import DatasetInfo
from fcn.device import resolve_precision
from fcn.errors import CheckpointError, ConfigError
from fcn.models.fcn import FCN, SKIPS
from fcn.models.upsampling import make_upsampling
from fcn.processes import Processes
from fcn.targets import import_class, reason_of
from fcn.training.loss import check_class_weights, check_loss
from fcn.training.optim import check_batch_norm, clips_gradients, make_optimizer
from fcn.training.record import Record, read_record

# What becomes of each argument of Lightning's Trainer that is not simply passed on.
RESOLVED = {  # to numbers of batches or steps, or to what this machine has
    "accelerator", "accumulate_grad_batches", "check_val_every_n_epoch", "devices",
    "enable_progress_bar", "fast_dev_run", "limit_train_batches", "limit_val_batches",
    "log_every_n_steps", "max_epochs", "max_steps", "min_epochs", "num_nodes", "overfit_batches",
    "precision", "strategy", "sync_batchnorm", "val_check_interval",
}  # fmt: skip
REFUSED = {
    "barebones": "it leaves no checkpoint; scripts/benchmark.py measures speed",
    "callbacks": "use callbacks=CHOICE",
    "default_root_dir": "use hydra.run.dir=FOLDER",
    "enable_autolog_hparams": "the loggers of a run get all settings",
    "limit_predict_batches": "it is for prediction; see scripts/predict.py",
    "limit_test_batches": "there is no test loop; see scripts/evaluate.py",
    "logger": "use logger=CHOICE",
    "model_registry": "use scripts/export.py format=hub push=USER/NAME",
    "plugins": "the run writes its checkpoints itself",
    "reload_dataloaders_every_n_epochs": "the images of a run do not change; each epoch has its "
    "own order",
    "use_distributed_sampler": "the run distributes its images over the processes itself",
}
BATCHES_TO_LOG = 10  # steps between points of the loggers


@dataclass(frozen=True)
class Plan:
    """Everything that defines a run; `settings` is kept for run.json and names on the screen.

    A batch is what one process passes through the network at once; an optimiser step takes
    `trainer["accumulate_grad_batches"]` batches of every process.
    """

    settings: TrainConfig
    folder: Path
    processes: Processes  # that train together
    seed: int
    compile: bool
    precision: str  # as Lightning names it
    train: SegmentationDataset
    val: SegmentationDataset
    val_limit: int | None  # images that validation during training looks at; None: all
    num_workers: int | None
    scan: bool
    recipe: RecipeConfig  # with its learning rate resolved
    model: Mapping[str, Any]  # arguments of FCN
    freeze: str | None  # last stage of the backbone that is not trained
    source: Checkpoint | None  # the FCN that a new run starts from
    weights: str | None  # otherwise, of its backbone: imagenet, a name of torchvision's, or a file
    new_head: bool  # fc6 and fc7 start new
    loss: LossConfig
    class_weights: str | list[float] | None  # "balanced", or one number for each class
    trainer: Mapping[str, Any]  # arguments of Lightning's Trainer, the length in batches and steps
    loggers: tuple[Mapping[str, Any], ...]  # each with its _target_
    callbacks: Mapping[str, Mapping[str, Any]]  # by name
    record: Record | None  # of the run to resume

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.processes.device

    @property
    def max_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.trainer["max_steps"]

    @property
    def resume(self) -> Path | None:
        """The checkpoint to continue from."""
        return self.record.checkpoint if self.record else None


def resolve(cfg: TrainConfig, folder: Path, processes: Processes, console: Console) -> Plan:
    """Decide all that a run is.

    Args:
        cfg: validated settings.
        folder: of the run.
        processes: that train together.
        console: for the progress of a download.

    Raises:
        ConfigError: settings that do not fit together, or not this machine.
        DataError: the data set is not there, or its splits overlap.
        CheckpointError: a checkpoint that cannot be read, or does not fit.
    """
    check_combinations(cfg)
    if cfg.recipe.loss_reduction == "sum" and processes.world > 1:
        raise ConfigError(
            f"{processes.world} processes do not fit recipe.loss_reduction=sum: they average their "
            "gradients; use trainer.devices=1, or mean"
        )
    record = _read_record(cfg, folder)
    trainer = _trainer_arguments(cfg.trainer, processes.device)
    recipe = replace(cfg.recipe, lr=learning_rate(cfg.recipe, cfg.model.name))
    for entry in cfg.logger.values():
        _check_target(entry, "logger", Logger)
    for entry in cfg.callbacks.values():
        _check_target(entry, "callbacks", pl.Callback)
    source = None if record else _read_source(cfg)
    if new := _data_to_make(cfg.data):  # what does not fit it fails before it is fetched or drawn
        _check_learning(cfg, recipe, trainer, new, None)
        _network(cfg, new, source, record)

    train, val = _open_splits(cfg, processes, console)
    if record:
        record.check_data("train", train.name, train.info)
        record.check_data("val", val.name, val.info)
    _check_learning(cfg, recipe, trainer, train.info, train)
    model = _network(cfg, train.info, source, record)
    train = _resolve_length(trainer, train, recipe.batch_size, processes.world)
    return Plan(
        settings=cfg,
        folder=folder,
        processes=processes,
        seed=cfg.seed,
        compile=cfg.compile,
        precision=trainer["precision"],
        train=train,
        val=val,
        val_limit=_resolve_val_limit(trainer, len(val)),
        num_workers=cfg.data.num_workers,
        scan=cfg.data.scan,
        recipe=recipe,
        model=model,
        freeze=cfg.backbone.freeze,
        source=source,
        weights=cfg.backbone.weights,
        new_head=cfg.backbone.head_weights is None,
        loss=cfg.loss,
        class_weights=_class_weights(cfg.loss, train.info),
        trainer=trainer,
        loggers=tuple(cfg.logger.values()),
        callbacks=cfg.callbacks,
        record=record,
    )


def learning_rate(recipe: RecipeConfig, model: str) -> float:
    """Return the learning rate of a model under a recipe.

    Raises:
        ConfigError: the recipe has none for it.
    """
    lr = recipe.lr if recipe.lr is not None else recipe.lr_by_model.get(model)
    if lr is None:
        raise ConfigError(
            f"recipe.lr is null, and recipe.lr_by_model has no rate for {model}: set recipe.lr"
        )
    return lr


def check_combinations(cfg: TrainConfig) -> None:
    """Check that settings fit together: combinations that cannot learn are errors.

    Raises:
        ConfigError: names the keys and the reason.
    """
    check_folds(cfg.data)
    choices: dict[str, LossConfig | UpsamplingConfig]
    choices = {"loss": cfg.loss, "upsampling": cfg.upsampling}
    for group, choice in choices.items():
        if choice._target_ and choice.name != type(choice).name:
            raise ConfigError(
                f"{group}={choice.name} and {group}._target_={choice._target_}: leave one out"
            )
    model, recipe, trainer = cfg.model, cfg.recipe, cfg.trainer
    lr, starts = learning_rate(recipe, model.name), model.init_from or cfg.resume
    if recipe.scale[0] > recipe.scale[1]:
        raise ConfigError(f"recipe.scale={recipe.scale}: must be [from, to] with from <= to")
    if recipe.crop is None and recipe.scale != [1, 1]:
        raise ConfigError("recipe.scale resizes crops: set recipe.crop, or leave scale at [1,1]")
    if cfg.backbone.freeze and not (cfg.backbone.weights or starts):
        raise ConfigError(
            f"backbone.freeze={cfg.backbone.freeze} would keep random weights: set "
            "backbone.weights, or backbone.freeze=null"
        )
    if recipe.loss_reduction == "mean":
        if lr < 1e-8:
            raise ConfigError(
                f"recipe.lr={lr:g} does not fit recipe.loss_reduction=mean: nothing would be "
                "learned; raise it, or use sum"
            )
        return
    unfit = "does not fit recipe.loss_reduction=sum"
    if cfg.loss._target_ is None and cfg.loss.name != "cross_entropy":
        raise ConfigError(
            f"loss={cfg.loss.name} {unfit}: it is a mean by its definition; use "
            "loss=cross_entropy, or mean"
        )
    if lr > 1e-6:
        raise ConfigError(
            f"recipe.lr={lr:g} {unfit}: a loss summed over about 200,000 pixels needs 1e-10 (32s) "
            "to 1e-14 (8s); lower it, or use mean"
        )
    if (trainer.get("accumulate_grad_batches") or 1) != 1:
        raise ConfigError(
            f"trainer.accumulate_grad_batches > 1 {unfit}: it averages over its batches; use 1, or "
            "mean"
        )
    if str(trainer.get("precision")) in ("16-mixed", "16-true", "16"):
        raise ConfigError(
            f"trainer.precision={trainer['precision']} {unfit}: the sum overflows float16; use "
            "32-true or bf16-mixed"
        )
    if model.stride < 32 and not (starts or model.skip_scales):
        raise ConfigError(
            f"{model.name} straight from VGG {unfit}: its unscaled skips would dominate the "
            "scores; set model.init_from to an FCN of the next coarser stride, or use "
            "model=fcn8s_atonce"
        )


def _read_record(cfg: TrainConfig, folder: Path) -> Record | None:
    """Return the record of the run to resume, which these settings may continue."""
    if not cfg.resume:
        return None
    record = read_record(folder, cfg.resume)
    record.check_unchanged(asdict(cfg))
    if cfg.trainer.get("fast_dev_run") or cfg.trainer.get("enable_checkpointing") is False:
        raise ConfigError(
            "resume needs checkpoints: leave out trainer.fast_dev_run and "
            "trainer.enable_checkpointing=false"
        )
    return record


def _trainer_arguments(given: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer that a run takes; others are errors."""
    known = inspect.signature(pl.Trainer).parameters
    for name, value in given.items():
        if name not in known:
            raise ConfigError(unknown_key(f"trainer.{name}", [f"trainer.{k}" for k in known]))
        if name in REFUSED and value != known[name].default:
            raise ConfigError(f"trainer.{name} is set by the run itself: {REFUSED[name]}")
    arguments = {key: value for key, value in given.items() if key not in REFUSED}
    passed_on = {key: value for key, value in arguments.items() if key not in RESOLVED}
    try:
        pl.Trainer(**passed_on | {"logger": False, "enable_checkpointing": False})
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    precision = resolve_precision(arguments.get("precision"), device, training=True).name
    arguments["precision"] = precision
    if device.type != "cuda":
        arguments["sync_batchnorm"] = False  # torch has it for CUDA alone
    return arguments


def _check_target(entry: Mapping[str, Any], group: str, kind: type) -> None:
    """Raise a ConfigError if the `_target_` of a logger or callback is none."""
    if not isinstance(entry, Mapping) or "_target_" not in entry:
        raise ConfigError(f"{group}={entry}: each entry needs a _target_, the name of its class")
    try:
        target = import_class(entry["_target_"])
    except Exception as error:  # of whatever library it is
        raise ConfigError(f"{group}: {entry['_target_']}: {reason_of(error)}") from error
    if not issubclass(target, kind):
        raise ConfigError(f"{group}: {entry['_target_']} is no {kind.__name__} of Lightning's")
    if (entry.get("every_n_epochs") or 1) > 1:
        raise ConfigError(
            f"{group}: {entry['_target_']}: a run is one epoch to Lightning, so every_n_epochs="
            f"{entry['every_n_epochs']} never comes; use every_n_train_steps"
        )


def _read_source(cfg: TrainConfig) -> Checkpoint | None:
    """Read the checkpoint that a new run starts from; check that a backbone's file is there."""
    weights = cfg.backbone.weights
    if cfg.model.init_from:
        return checkpoint.read(cfg.model.init_from)
    if weights and Path(weights).suffix in checkpoint.WEIGHTS_FILES and not Path(weights).is_file():
        raise CheckpointError(f"{weights}: no such weights file")
    return None


def _data_to_make(data: DataConfig) -> DatasetInfo | None:
    """Return the info of a data set that may have to be drawn or downloaded first, or None."""
    if data.layout != "shapes" and not data.download:
        return None
    classes = list(SHAPES) if data.layout == "shapes" else VOC_CLASSES
    return DatasetInfo(classes=data.classes or classes, bands=data.bands)


def _check_learning(
    cfg: TrainConfig,
    recipe: RecipeConfig,
    trainer: Mapping[str, Any],
    info: DatasetInfo,
    train: SegmentationDataset | None,
) -> None:
    """Check the loss, the optimiser and the transforms; the latter on the training images' size."""
    _class_weights(cfg.loss, info)
    check_loss(cfg.loss, recipe.loss_reduction, len(info.classes))
    with torch.device("meta"):
        layer = torch.nn.Conv2d(1, 1, 1)
    assert recipe.lr is not None
    clips = clips_gradients(trainer.get("gradient_clip_val"), trainer["precision"])
    # The meta device has no fused optimisers.
    kept = {k: v for k, v in recipe.optimizer_arguments.items() if clips or k != "fused"}
    make_optimizer(layer, replace(recipe, optimizer_arguments=kept), recipe.lr, fused=False)
    size = None
    if train and recipe.transforms and not recipe.crop:
        width, height = train.pairs[0].size or image_size(train.pairs[0].image)
        size = height, width
    check_transforms(recipe, _channels(cfg, info), len(info.classes), size)


def _class_weights(loss: LossConfig, info: DatasetInfo) -> str | list[float] | None:
    """Return loss.class_weights as one float for each class; None and balanced as they are."""
    weights = loss.class_weights
    return weights if weights in (None, "balanced") else check_class_weights(weights, info.classes)


def _channels(cfg: TrainConfig, info: DatasetInfo) -> int:
    return len(info.bands) or cfg.model.in_channels or 3


def _network(
    cfg: TrainConfig, info: DatasetInfo, source: Checkpoint | None, record: Record | None
) -> dict[str, Any]:
    """Return the arguments of FCN, after building it on the meta device (no memory allocated)."""
    channels, stride = _channels(cfg, info), cfg.model.stride
    if cfg.model.in_channels not in (None, channels):
        raise ConfigError(
            f"model.in_channels={cfg.model.in_channels}: data.bands={info.bands} are {channels} "
            "channels; leave it out"
        )
    # Scores were learned with their own scales.
    theirs = record.model if record else source.metadata["model"] if source else {"skip_scales": {}}
    scales = {k: v for k, v in theirs["skip_scales"].items() if k in SKIPS.get(stride, ())}
    arguments: dict[str, Any] = {
        "stride": stride,
        "num_classes": len(info.classes),
        "in_channels": channels,
        "backbone": cfg.backbone.name,
        "upsampling": cfg.upsampling._target_ or cfg.upsampling.name,
        "padding": cfg.model.padding,
        "skip_scales": scales | cfg.model.skip_scales,
        "width": cfg.backbone.width,
        "head_width": cfg.backbone.head_width,
        "dropout": cfg.model.dropout,
    }
    try:
        with torch.device("meta"):
            model = FCN(**arguments)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    if name := cfg.upsampling._target_:
        try:  # computes scores, which takes memory, but little
            make_upsampling(name, 2, len(info.classes), final=False)
            make_upsampling(name, stride, len(info.classes), final=True)
        except Exception as error:  # of whatever the user wrote
            raise ConfigError(f"model: upsampling {name}: {reason_of(error)}") from error
    if cfg.backbone.freeze:
        model.backbone.freeze(cfg.backbone.freeze)
    check_batch_norm(cfg.recipe, model)
    return arguments


def _open_splits(
    cfg: TrainConfig, processes: Processes, console: Console
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Open both splits of the data set, downloaded or drawn if need be; they must not overlap.

    Rank 0 goes first, so that only it downloads or draws.
    """
    if cfg.data.download and processes.rank == 0:
        fetch(cfg.data, console)
    if processes.rank > 0:
        processes.barrier()
    train = open_split(cfg.data, cfg.data.train_split)
    val = open_split(cfg.data, cfg.data.val_split)
    if processes.rank == 0:
        check_overlap(train, val)
        processes.barrier()
    if cfg.data.limit is not None:
        train = train.limited(cfg.data.limit, cfg.seed)
    channels = cfg.model.in_channels or 3
    if channels != 3 and not train.info.bands:
        for split in (train, val):
            split.info = replace(split.info, bands=list(range(channels)))
    return train, val


def _resolve_length(
    trainer: dict[str, Any], train: SegmentationDataset, batch_size: int, world: int
) -> SegmentationDataset:
    """Convert epochs, and shares of one, to batches and steps; Lightning sees the run as one epoch.

    Changes `trainer`, the arguments of Lightning's Trainer, in place. Returns the images to train
    on: with a limit, the first ones.
    """

    def take(name: str, default: Any = None) -> Any:
        value = trainer.pop(name, None)
        return default if value is None else value

    epoch = math.ceil(len(train) / (batch_size * world))
    limit, overfit = take("limit_train_batches", 1.0), take("overfit_batches")
    key, given = ("overfit", overfit) if overfit else ("limit_train", limit)
    batches = _batches(f"{key}_batches", given, epoch)
    if batches < epoch:
        epoch, train = batches, train.part(range(batches * batch_size * world))
    if overfit:
        trainer.setdefault("limit_val_batches", batches)

    accumulate = _whole("accumulate_grad_batches", take("accumulate_grad_batches", 1))
    steps, epochs = take("max_steps", -1), take("max_epochs", -1)
    if steps != -1:
        steps = _whole("max_steps", steps)
    elif epochs != -1:
        steps = math.ceil(_number("max_epochs", epochs) * epoch / accumulate)
    else:
        raise ConfigError("set trainer.max_steps or trainer.max_epochs")
    if fast := trainer.get("fast_dev_run"):
        steps = 1 if fast is True else _whole("fast_dev_run", fast)
    if least := take("min_epochs"):
        trainer["min_steps"] = math.ceil(_number("min_epochs", least) * epoch / accumulate)
    if (trainer.get("min_steps") or 0) > steps:
        raise ConfigError(f"trainer.min_steps={trainer['min_steps']}: the run has {steps} steps")

    every, interval = take("check_val_every_n_epoch"), take("val_check_interval")
    if every is not None and interval is not None:
        raise ConfigError(
            f"trainer.check_val_every_n_epoch={every} and trainer.val_check_interval={interval} "
            "both say when to validate: leave one of them out"
        )
    if every is not None:
        interval = _whole("check_val_every_n_epoch", every) * epoch
    else:
        interval = _batches("val_check_interval", 1.0 if interval is None else interval, epoch)
    trainer |= {
        "max_steps": steps,
        "min_epochs": 0,  # with min_steps Lightning's is 1: no stop, nor last validation, before
        "accumulate_grad_batches": accumulate,
        # In batches; a step is never cut in two.
        "val_check_interval": min(math.ceil(interval / accumulate), steps) * accumulate,
        "check_val_every_n_epoch": None,  # the interval counts over the whole run
        "log_every_n_steps": take("log_every_n_steps", min(BATCHES_TO_LOG, steps, epoch)),
    }
    return train


def _resolve_val_limit(trainer: dict[str, Any], images: int) -> int | None:
    """Return how many images validation looks at if a share is given; Lightning gets no share."""
    limit = trainer.pop("limit_val_batches", None)
    if isinstance(limit, float) and limit != 0:
        return _batches("limit_val_batches", limit, images)
    if limit is not None:
        trainer["limit_val_batches"] = _whole("limit_val_batches", limit, least=0)
    return None


def _whole(name: str, value: Any, least: int = 1) -> int:
    """Return an argument of the Trainer that must be a whole number."""
    if type(value) not in (int, float) or not math.isfinite(value) or value != int(value):
        raise ConfigError(f"trainer.{name}={value}: must be a whole number")
    if value < least:
        raise ConfigError(f"trainer.{name}={value}: must be at least {least}")
    return int(value)


def _number(name: str, value: Any) -> float:
    """Return an argument of the Trainer that must be a positive number."""
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ConfigError(f"trainer.{name}={value}: must be a number above 0")
    return value


def _batches(name: str, value: Any, epoch: int) -> int:
    """Return a number of batches that may be given as a share of an epoch, such as 0.5."""
    if isinstance(value, str | dict):
        raise ConfigError(
            f"trainer.{name}={value}: must be a number of batches, or a share of an epoch such as "
            "0.5; intervals in time would make a resumed run another one"
        )
    if not isinstance(value, float):
        return _whole(name, value)
    if not 0 < value <= 1:
        raise ConfigError(
            f"trainer.{name}={value}: a share of an epoch must be above 0, at most 1.0"
        )
    return max(1, int(value * epoch))
