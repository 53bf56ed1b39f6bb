"""The plan of a run: every setting that follows from others, decided once and checked.

What is invalid fails here; what needs no data, before a data set is fetched or drawn. After
`resolve` the settings are read only for run.json, the loggers and names on the screen.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console

from fcn import checkpoint
from fcn.checkpoint import Checkpoint
from fcn.config import LossConfig, RecipeConfig, TrainConfig, unknown_key
from fcn.data.dataset import SegmentationDataset, check_overlap
from fcn.data.download import fetch
from fcn.data.layouts import VOC_CLASSES, open_split
from fcn.data.shapes import CLASSES as SHAPES
from fcn.dataset_info import DatasetInfo
from fcn.device import resolve_precision
from fcn.errors import CheckpointError, ConfigError
from fcn.models.fcn import FCN, SKIPS
from fcn.processes import Processes
from fcn.training.loss import check_class_weights, make_loss
from fcn.training.optim import check_batch_norm, make_optimizer
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
class Length:
    """How long a run is.

    A batch is what one process passes through the network at once; an optimiser step takes
    `accumulate` batches of every process.
    """

    accumulate: int
    max_steps: int


@dataclass(frozen=True)
class FirstWeights:
    """Where the weights of a new run come from: a checkpoint, a backbone, or nothing."""

    source: Checkpoint | None  # an FCN
    backbone: str | None  # imagenet, a name of torchvision's, or a file
    new_head: bool
    fit_to_features: bool


@dataclass(frozen=True)
class Plan:
    """Everything that defines a run; `settings` is kept for run.json and names on the screen."""

    settings: TrainConfig
    folder: Path
    seed: int
    compile: bool
    device: torch.device
    precision: str  # as Lightning names it
    train: SegmentationDataset
    val: SegmentationDataset
    val_limit: int | None  # images that validation during training looks at; None: all
    num_workers: int | None
    scan: bool
    length: Length
    recipe: RecipeConfig  # with its learning rate resolved
    model: Mapping[str, Any]  # arguments of FCN
    freeze: str | None
    weights: FirstWeights
    loss: LossConfig
    class_weights: str | list[float] | None  # "balanced", or one number for each class
    trainer: Mapping[str, Any]  # arguments of Lightning's Trainer
    loggers: tuple[Mapping[str, Any], ...]  # each with its _target_
    callbacks: Mapping[str, Mapping[str, Any]]  # by name
    record: Record | None  # of the run to resume

    @property
    def resume(self) -> Path | None:
        """The checkpoint to continue from."""
        return self.record.checkpoint if self.record else None


def resolve(cfg: TrainConfig, folder: Path, processes: Processes, console: Console) -> Plan:
    """Decide all that a run is.

    What needs no data is checked before a data set is fetched, drawn or opened.

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
    record = read_record(folder, cfg.resume) if cfg.resume else None
    if record:
        record.check_unchanged(asdict(cfg))
        if cfg.trainer.get("fast_dev_run") or cfg.trainer.get("enable_checkpointing") is False:
            raise ConfigError("resume needs checkpoints: leave out trainer.fast_dev_run and others")
    trainer = _checked_arguments(cfg.trainer)
    device = processes.device
    precision = resolve_precision(trainer.get("precision"), device, training=True).name
    trainer["precision"] = precision
    if device.type != "cuda":
        trainer["sync_batchnorm"] = False  # torch has it for CUDA alone
    recipe = replace(cfg.recipe, lr=learning_rate(cfg.recipe, cfg.model.name))
    for group in ("logger", "callbacks"):
        for entry in getattr(cfg, group).values():
            _check_target(entry, group)
    source = None if record else _source(cfg)
    known = _classes_before_reading(cfg)
    _check_learning(cfg, recipe, known)
    _network(cfg, DatasetInfo(classes=list(known or VOC_CLASSES)), source, record)

    train, val = _open_splits(cfg, processes, console)
    info = train.info
    if record and record.model["num_classes"] != len(info.classes):
        raise ConfigError(
            f"resume={folder}: it has {record.model['num_classes']} classes, but {train.name} has "
            f"{len(info.classes)}; start a new run with model.init_from={folder}"
        )
    model = _network(cfg, info, source, record)
    train, length = _length(trainer, train, recipe.batch_size, processes.world)
    return Plan(
        settings=cfg,
        folder=folder,
        seed=cfg.seed,
        compile=cfg.compile,
        device=device,
        precision=precision,
        train=train,
        val=val,
        val_limit=_val_limit(trainer, len(val)),
        num_workers=cfg.data.num_workers,
        scan=cfg.data.scan,
        length=length,
        recipe=recipe,
        model=model,
        freeze=cfg.backbone.freeze,
        weights=FirstWeights(
            source, cfg.backbone.weights, cfg.backbone.head_weights is None, recipe.fit_to_features
        ),
        loss=cfg.loss,
        class_weights=_class_weights(cfg, info.classes),
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
    model, recipe, trainer = cfg.model, cfg.recipe, cfg.trainer
    lr, reduction = learning_rate(recipe, model.name), recipe.loss_reduction
    if recipe.scale[0] > recipe.scale[1]:
        raise ConfigError(f"recipe.scale={recipe.scale}: must be [from, to] with from <= to")
    if recipe.crop is None and recipe.scale != [1, 1]:
        raise ConfigError("recipe.scale resizes crops: set recipe.crop, or leave scale at [1,1]")
    if cfg.backbone.freeze and not (cfg.backbone.weights or model.init_from or cfg.resume):
        raise ConfigError(
            f"backbone.freeze={cfg.backbone.freeze} would keep random weights: set "
            "backbone.weights, or backbone.freeze=null"
        )
    if reduction == "mean" and lr < 1e-8:
        raise ConfigError(
            f"recipe.lr={lr:g} does not fit recipe.loss_reduction=mean: nothing would be learned; "
            "raise it, or use sum"
        )
    if reduction == "mean":
        return
    if cfg.loss.name != "cross_entropy":
        raise ConfigError(
            f"loss={cfg.loss.name} does not fit recipe.loss_reduction=sum: it is a mean by its "
            "definition; use loss=cross_entropy, or mean"
        )
    if lr > 1e-6:
        raise ConfigError(
            f"recipe.lr={lr:g} does not fit recipe.loss_reduction=sum: a loss summed over about "
            "200,000 pixels needs 1e-10 (32s) to 1e-14 (8s); lower it, or use mean"
        )
    if (trainer.get("accumulate_grad_batches") or 1) != 1:
        raise ConfigError(
            "recipe.loss_reduction=sum does not fit trainer.accumulate_grad_batches > 1, which "
            "averages over its batches; use 1, or mean"
        )
    if str(trainer.get("precision")) in ("16-mixed", "16-true", "16"):
        raise ConfigError(
            f"trainer.precision={trainer['precision']} does not fit recipe.loss_reduction=sum: "
            "the sum overflows float16; use 32-true or bf16-mixed"
        )
    if model.stride < 32 and not (model.init_from or cfg.resume or model.skip_scales):
        raise ConfigError(
            f"{model.name} straight from VGG does not fit recipe.loss_reduction=sum: its unscaled "
            "skips would drown the scores; set model.init_from to an FCN of the next coarser "
            "stride, or use model=fcn8s_atonce"
        )


def _checked_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of Lightning's Trainer that a run takes; others are errors."""
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
    return arguments


def _check_target(entry: Mapping[str, Any], group: str) -> None:
    """Raise a ConfigError if the `_target_` of a logger or callback is none."""
    if not isinstance(entry, Mapping) or "_target_" not in entry:
        raise ConfigError(f"{group}={entry}: each entry needs a _target_, the name of its class")
    try:
        target = class_named(entry["_target_"])
    except Exception as error:  # of whatever library it is
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(f"{group}: {entry['_target_']}: {reason}") from error
    kind = Logger if group == "logger" else pl.Callback
    if not issubclass(target, kind):
        raise ConfigError(f"{group}: {entry['_target_']} is no {kind.__name__} of Lightning's")


def class_named(name: str) -> type:
    """Return a class by its module and name; unlike Hydra's, without lines on the screen."""
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute)
    if not inspect.isclass(found):
        raise TypeError(f"{name} is no class")
    return found


def _source(cfg: TrainConfig) -> Checkpoint | None:
    """Read the checkpoint that a new run starts from; check that a backbone's file is there."""
    weights = cfg.backbone.weights
    if cfg.model.init_from:
        return checkpoint.read(cfg.model.init_from)
    if weights and Path(weights).suffix in checkpoint.WEIGHTS_FILES and not Path(weights).is_file():
        raise CheckpointError(f"{weights}: no such weights file")
    return None


def _classes_before_reading(cfg: TrainConfig) -> list[str]:
    """Return the classes of a data set that has still to be drawn or fetched, if they are known."""
    if cfg.data.classes:
        return cfg.data.classes
    if cfg.data.layout == "shapes":
        return list(SHAPES)
    return VOC_CLASSES if cfg.data.download else []


def _check_learning(cfg: TrainConfig, recipe: RecipeConfig, classes: Sequence[str]) -> None:
    """Check the loss and the optimiser, on the meta device (no memory is allocated)."""
    make_loss(cfg.loss, recipe.loss_reduction)
    if classes:
        _class_weights(cfg, classes)
    with torch.device("meta"):
        layer = torch.nn.Conv2d(1, 1, 1)
    assert recipe.lr is not None
    make_optimizer(layer, recipe, recipe.lr, fused=False)


def _class_weights(cfg: TrainConfig, classes: Sequence[str]) -> str | list[float] | None:
    """Return loss.class_weights as one float for each class; None and balanced as they are."""
    weights = cfg.loss.class_weights
    return weights if weights in (None, "balanced") else check_class_weights(weights, classes)


def _network(
    cfg: TrainConfig, info: DatasetInfo, source: Checkpoint | None, record: Record | None
) -> dict[str, Any]:
    """Return the arguments of FCN, after building it on the meta device (no memory allocated)."""
    channels = len(info.bands) or cfg.model.in_channels or 3
    if cfg.model.in_channels not in (None, channels):
        raise ConfigError(
            f"model.in_channels={cfg.model.in_channels}: data.bands={info.bands} are {channels} "
            "channels; leave it out"
        )
    scales = cfg.model.skip_scales
    theirs = record.model if record else source.about["model"] if source else {}
    if theirs:  # scores were learned with their own scales
        inherited = theirs["skip_scales"]
        scales = {k: v for k, v in inherited.items() if k in SKIPS.get(cfg.model.stride, ())}
        scales |= cfg.model.skip_scales
    arguments: dict[str, Any] = {
        "stride": cfg.model.stride,
        "num_classes": len(info.classes),
        "in_channels": channels,
        "backbone": cfg.backbone.name,
        "upsampling": cfg.upsampling.name,
        "padding": cfg.model.padding,
        "skip_scales": scales,
        "width": cfg.backbone.width,
        "head_width": cfg.backbone.head_width,
        "dropout": cfg.model.dropout,
    }
    try:
        with torch.device("meta"):
            model = FCN(**arguments)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    if cfg.backbone.freeze:
        model.backbone.freeze(cfg.backbone.freeze)
    check_batch_norm(cfg.recipe, model)
    return arguments


def _open_splits(
    cfg: TrainConfig, processes: Processes, console: Console
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Open both splits of the data set, fetched or drawn first if need be; they must not overlap.

    The first process comes first, so that one alone fetches or draws.
    """
    if cfg.data.download and processes.rank == 0:
        fetch(cfg.data, console)
    if processes.rank > 0:
        processes.wait()
    train = open_split(cfg.data, cfg.data.train_split)
    val = open_split(cfg.data, cfg.data.val_split)
    if processes.rank == 0:
        check_overlap(train, val)
        processes.wait()
    if cfg.data.limit is not None:
        train = train.limited(cfg.data.limit, cfg.seed)
    channels = cfg.model.in_channels
    if channels not in (None, 3) and not train.info.bands:
        for split in (train, val):
            split.info = replace(split.info, bands=list(range(channels or 3)))
    return train, val


def _length(
    trainer: dict[str, Any], train: SegmentationDataset, batch_size: int, world: int
) -> tuple[SegmentationDataset, Length]:
    """Convert epochs, and shares of one, to batches and steps; Lightning sees the run as one epoch.

    Args:
        trainer: arguments of Lightning's Trainer; those about the length change in place.
        train: the training split; a limit leaves its first images.
        batch_size: images of one process.
        world: processes.

    Returns:
        The images to train on, and how long the run is.
    """
    accumulate = _count(trainer, "accumulate_grad_batches", 1)
    limit = trainer.pop("limit_train_batches", None)
    overfit = trainer.pop("overfit_batches", None) or None
    epoch = math.ceil(len(train) / (batch_size * world))
    if limit is not None or overfit is not None:
        key, given = ("overfit", overfit) if overfit is not None else ("limit_train", limit)
        batches = _batches(f"trainer.{key}_batches", given, epoch)
        if batches < epoch:
            epoch = batches
            train = train.part(range(batches * batch_size * world))
        if overfit is not None:
            trainer.setdefault("limit_val_batches", batches)
    steps = trainer.pop("max_steps", None)
    epochs = trainer.pop("max_epochs", None)
    if steps in (None, -1) and epochs in (None, -1):
        raise ConfigError("set trainer.max_steps or trainer.max_epochs")
    if steps in (None, -1):
        steps = math.ceil(_number("trainer.max_epochs", epochs) * epoch / accumulate)
    else:
        steps = _whole("trainer.max_steps", steps)
    if fast := trainer.get("fast_dev_run"):
        steps = 1 if fast is True else _whole("trainer.fast_dev_run", fast)
    every = trainer.pop("check_val_every_n_epoch", None)
    interval = trainer.pop("val_check_interval", None)
    if every is not None and interval is not None:
        raise ConfigError(
            f"trainer.check_val_every_n_epoch={every} and trainer.val_check_interval={interval} "
            "both say when to validate: leave one of them out"
        )
    if every is not None:
        interval = _whole("trainer.check_val_every_n_epoch", every) * epoch
    else:
        interval = 1.0 if interval is None else interval
        interval = _batches("trainer.val_check_interval", interval, epoch)
    interval = math.ceil(interval / accumulate) * accumulate  # a step is never cut in two
    interval = min(interval, steps * accumulate)
    if least := trainer.pop("min_epochs", None):
        trainer["min_steps"] = math.ceil(_number("trainer.min_epochs", least) * epoch / accumulate)
    if (trainer.get("min_steps") or 0) > steps:
        raise ConfigError(f"trainer.min_steps={trainer['min_steps']}: the run has {steps} steps")
    trainer |= {
        "max_steps": steps,
        "accumulate_grad_batches": accumulate,
        "val_check_interval": interval,
        "check_val_every_n_epoch": None,  # the interval counts over the whole run
    }
    if trainer.get("log_every_n_steps") is None:
        trainer["log_every_n_steps"] = min(BATCHES_TO_LOG, steps, epoch)
    return train, Length(accumulate, steps)


def _val_limit(trainer: dict[str, Any], images: int) -> int | None:
    """Return how many images validation looks at if a share is given; Lightning gets no share."""
    limit = trainer.get("limit_val_batches")
    if not isinstance(limit, float):
        if limit is not None:
            trainer["limit_val_batches"] = _whole("trainer.limit_val_batches", limit, least=0)
        return None
    del trainer["limit_val_batches"]
    if limit == 0:
        trainer["limit_val_batches"] = 0
        return None
    return _batches("trainer.limit_val_batches", limit, images)


def _count(trainer: dict[str, Any], name: str, default: int) -> int:
    value = trainer.pop(name, None)
    return default if value is None else _whole(f"trainer.{name}", value)


def _whole(key: str, value: Any, least: int = 1) -> int:
    """Return a setting that must be a whole number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value != int(value):
        raise ConfigError(f"{key}={value}: must be a whole number")
    if value < least:
        raise ConfigError(f"{key}={value}: must be at least {least}")
    return int(value)


def _number(key: str, value: Any) -> float:
    """Return a setting that must be a positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{key}={value}: must be a number above 0")
    return value


def _batches(key: str, value: Any, epoch: int) -> int:
    """Return a number of batches that may be given as a share of an epoch, such as 0.5."""
    if isinstance(value, float):
        if not 0 < value <= 1:
            raise ConfigError(f"{key}={value}: a share of an epoch must be above 0, at most 1.0")
        return max(1, int(value * epoch))
    if isinstance(value, str | dict):
        raise ConfigError(
            f"{key}={value}: must be a number of batches, or a share of an epoch such as 0.5; "
            "intervals in time would make a resumed run another one"
        )
    return _whole(key, value)
