"""The schema of every setting: typed, with defaults; unknown keys and wrong types are refused.

The choices lie in `configs/`, one folder a group, one short file a choice. `check` refuses what
does not fit together. Nothing heavy is imported here, so that `--help` stays quick.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

REPOSITORY = Path(__file__).resolve().parents[1]
VOID = 255  # the label of no class, in every target, whatever the files' own void label is
# The image mean that the FCN authors subtract for VOC and PASCAL-Context: blue, green, red of 255.
MEAN_BGR = (104.00699, 116.66877, 122.67892)


class UserError(Exception):
    """Something the user can mend. The message says what, where and what to do, in one line."""


class ConfigError(UserError, ValueError):
    """A setting outside its choices, or settings that do not fit together."""


@dataclass
class ModelConfig:
    name: str = "fcn8s"
    stride: int = 8  # 32, 16 or 8: of the finest scores fused
    padding: int | str = "aligned"  # aligned, or 100 as the authors' nets have it
    skip_scales: dict[str, float] = field(default_factory=dict)  # at-once: factor per skip pool
    dropout: float = 0.5  # after fc6 and fc7
    init_from: str | None = None  # a checkpoint to take weights from: FCN-32s -> 16s -> 8s


@dataclass
class BackboneConfig:
    name: str = "vgg16"  # vgg11, 13, 16, 19, each also with _bn; mini
    width: int | None = None  # channels of the first stage; null: the backbone's own
    head_width: int | None = None  # channels of fc6 and fc7; null: the backbone's own
    weights: str | None = None  # imagenet, one of torchvision's names, or a state-dict file


@dataclass
class UpsamplingConfig:
    # fixed, learned, learned_channelwise, cvpr15, nonlinear, nearest_conv, interpolate
    name: str = "fixed"


@dataclass
class DataConfig:
    name: str = MISSING  # what it is called in metrics.json and on screen
    layout: str = "voc"  # how the files lie: voc, sbd, shapes, folder
    root: str = str(REPOSITORY / "data")  # folder of the data sets
    folder: str = ""  # of this data set, below root
    masks: str = "SegmentationClass"  # folder of the masks, below `folder`
    train_split: str = "train"
    val_split: str = "val"
    split: str | None = None  # which split to evaluate; null: val_split
    classes: list[str] = field(default_factory=list)  # names, background first
    ignore_index: int = 255  # the mask's void label: in no loss, no metric
    num_workers: int = 2  # processes that load training images


@dataclass
class RecipeConfig:
    name: str = MISSING
    optimizer: str = "sgd"  # sgd, adamw
    lr: float | None = None  # null: from lr_by_model
    lr_by_model: dict[str, float] = field(default_factory=dict)  # learning rate by model.name
    momentum: float = 0.9
    weight_decay: float = 5e-4  # on weights, never on biases or norms
    bias_lr_factor: float = 2.0  # biases learn at lr times this
    schedule: str = "constant"  # constant, poly, cosine
    warmup_steps: int = 0  # linear, from 0
    max_steps: int = MISSING  # optimiser steps
    loss_reduction: str = "mean"  # over the non-void pixels of a batch: sum, mean
    batch_size: int = 1  # images of one forward pass and one process
    accumulate: int = 1  # forward passes of one optimiser step
    ema_decay: float | None = None  # null: off; else validate and keep averaged weights
    precision: str = "32-true"  # as Lightning names it; auto: bf16-mixed where the device has it
    val_every: int = 1000  # optimiser steps between validations
    crop: int | None = None  # side of square training crops; null: whole images (batch_size 1)
    scale: list[float] = field(default_factory=lambda: [1.0, 1.0])  # random resize, from .. to
    flip: bool = False  # mirror half of the images
    jitter: float = 0.0  # of brightness, contrast and saturation, 0..1


@dataclass
class TrainerConfig:
    """Lightning's Trainer arguments, under their own names."""

    accelerator: str = "auto"
    devices: Any = "auto"  # how many, or which: [0, 1]
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str | None = None
    max_steps: int = MISSING
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    val_check_interval: int | None = None
    limit_val_batches: int | float | None = None
    num_sanity_val_steps: int = 0
    log_every_n_steps: int = 10
    sync_batchnorm: bool = False
    deterministic: bool = False
    benchmark: bool = False
    detect_anomaly: bool = False
    enable_progress_bar: bool = True
    profiler: str | None = None


@dataclass
class CommonConfig:
    """The keys that every script shares."""

    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0
    debug: bool = False  # show the traceback of an error


@dataclass
class TrainConfig(CommonConfig):
    model: ModelConfig = field(default_factory=ModelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    upsampling: UpsamplingConfig = field(default_factory=UpsamplingConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    resume: str | None = None  # a .ckpt to go on from, or `last`: of the newest run
    stages: list[str] = field(default_factory=list)  # models to train in turn, each from the last


@dataclass
class EvaluateConfig(CommonConfig):
    checkpoint: str | None = None  # any .ckpt or .safetensors that this project wrote
    batch_size: int = 8  # images of one size go through together; numbers do not depend on it
    device: str = "auto"  # auto, cpu, cuda, mps
    precision: str = "auto"  # 32-true, bf16-mixed; auto: as it was trained
    submission: bool = False  # also write the predictions as VOC's evaluation server takes them


@dataclass
class ImportCaffeConfig:
    caffemodel: str | None = None  # the file to import
    model: ModelConfig = field(default_factory=ModelConfig)  # which net it is; vgg16 is one too
    output: str | None = None  # the .safetensors to write
    classes: list[str] = field(default_factory=list)  # names; empty: VOC's for 21, else numbers
    # What the net had subtracted from its images: blue, green, red of 255.
    mean_bgr: list[float] = field(default_factory=lambda: list(MEAN_BGR))
    debug: bool = False  # show the traceback of an error


@dataclass
class WhereConfig:
    root: str | None = None  # folder of the data sets; null: where each run had it


@dataclass
class ReportConfig:
    runs: list[str] = field(default_factory=list)  # folders that train.py or evaluate.py left
    output: str = "report.html"
    images: int = 24  # in the gallery, evenly spaced over the ranking by IoU
    data: WhereConfig = field(default_factory=WhereConfig)
    device: str = "auto"  # auto, cpu, cuda, mps
    debug: bool = False  # show the traceback of an error


SCHEMAS = {  # by script
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "import_caffe": ImportCaffeConfig,
    "report": ReportConfig,
}


def register() -> None:
    """Makes the schemas known to Hydra, as the first default of each root file in `configs/`."""
    store = ConfigStore.instance()
    for name, node in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=node)


def learning_rate(recipe: RecipeConfig, model: ModelConfig) -> float:
    """The rate of this model under this recipe.

    Raises: ConfigError: the recipe has none for it.
    """
    if recipe.lr is not None:
        return recipe.lr
    if model.name not in recipe.lr_by_model:
        raise ConfigError(
            f"recipe={recipe.name} has no learning rate for model {model.name}; set recipe.lr"
        )
    return recipe.lr_by_model[model.name]


def check(cfg: TrainConfig) -> None:
    """Refuses settings outside their choices, or that do not fit together, with the reason.

    Raises: ConfigError.
    """
    model, recipe, trainer = cfg.model, cfg.recipe, cfg.trainer
    _one_of("model.stride", model.stride, (32, 16, 8))
    _one_of("model.padding", model.padding, ("aligned", 100))
    _one_of("recipe.optimizer", recipe.optimizer, ("sgd", "adamw"))
    _one_of("recipe.schedule", recipe.schedule, ("constant", "poly", "cosine"))
    _one_of("recipe.loss_reduction", recipe.loss_reduction, ("sum", "mean"))
    check_data(cfg.data)
    for key, value, least in (
        ("recipe.batch_size", recipe.batch_size, 1),
        ("recipe.accumulate", recipe.accumulate, 1),
        ("recipe.val_every", recipe.val_every, 1),
        ("recipe.crop", 1 if recipe.crop is None else recipe.crop, 1),
        ("trainer.max_steps", trainer.max_steps, 1),
    ):
        _at_least(key, value, least)
    if len(recipe.scale) != 2 or not 0 < recipe.scale[0] <= recipe.scale[1]:
        raise ConfigError(
            f"recipe.scale must be [from, to] with 0 < from <= to, got {recipe.scale}"
        )
    if recipe.crop is None and recipe.batch_size > 1:
        raise ConfigError(
            f"recipe.batch_size={recipe.batch_size} needs recipe.crop, as whole images differ in "
            "size; set recipe.crop, or recipe.batch_size=1 with recipe.accumulate"
        )
    if recipe.crop is None and recipe.scale != [1, 1]:
        raise ConfigError("recipe.scale resizes crops: set recipe.crop, or leave whole images be")
    if cfg.resume and model.init_from:
        raise ConfigError("resume goes on with a run's own weights; leave out model.init_from")
    lr = learning_rate(recipe, model)
    if lr <= 0:
        raise ConfigError(f"recipe.lr must be positive, got {lr}")
    summed = recipe.loss_reduction == "sum"
    if summed and lr > 1e-6:
        raise ConfigError(
            f"recipe.lr={lr:g} does not fit recipe.loss_reduction=sum: a loss summed over some "
            "200,000 pixels wants about 1e-10 (32s) to 1e-14 (8s); lower it, or use mean"
        )
    if summed and trainer.accumulate_grad_batches > 1:
        raise ConfigError(
            "recipe.loss_reduction=sum does not fit recipe.accumulate > 1, which averages over its "
            "forward passes; use accumulate=1, or mean"
        )
    if not summed and lr < 1e-8:
        raise ConfigError(
            f"recipe.lr={lr:g} does not fit recipe.loss_reduction=mean: nothing would be learned; "
            "raise it, or use sum"
        )
    if summed and "16" in str(trainer.precision) and "bf16" not in str(trainer.precision):
        raise ConfigError(
            f"trainer.precision={trainer.precision} does not fit recipe.loss_reduction=sum: "
            "a sum over pixels overflows float16; use 32-true or bf16-mixed"
        )
    staged = model.init_from or cfg.resume or model.skip_scales
    if summed and model.stride < 32 and not staged:
        raise ConfigError(
            f"model={model.name} straight from VGG does not fit recipe={recipe.name}: the unscaled "
            "skips drown the scores; give model.init_from= an FCN of the next coarser stride, or "
            "use model=fcn8s_atonce"
        )


def check_data(data: DataConfig) -> None:
    """Raises: ConfigError: a setting of the data outside its choices."""
    _one_of("data.layout", data.layout, ("voc", "sbd", "shapes", "folder"))
    if not 0 <= data.ignore_index <= 255:
        raise ConfigError(f"data.ignore_index must be 0..255, got {data.ignore_index}")
    _at_least("data.num_workers", data.num_workers, 0)


def check_evaluation(cfg: EvaluateConfig) -> None:
    """Raises: ConfigError: a setting missing, or outside its choices."""
    if cfg.checkpoint is None:
        raise ConfigError("give checkpoint=PATH, a .ckpt or .safetensors of this project")
    _one_of("precision", cfg.precision, ("auto", "32-true", "bf16-mixed"))
    _at_least("batch_size", cfg.batch_size, 1)
    if cfg.submission and not re.fullmatch(r"VOC\d{4}", Path(cfg.data.folder).name):
        raise ConfigError(f"submission=true is for Pascal VOC's server, not data={cfg.data.name}")
    check_data(cfg.data)


def check_report(cfg: ReportConfig) -> None:
    """Raises: ConfigError: a setting missing, or outside its choices."""
    if not cfg.runs:
        raise ConfigError("give runs=[FOLDER,...], folders that train.py or evaluate.py left")
    _one_of("the ending of output", Path(cfg.output).suffix, (".html",))
    _at_least("images", cfg.images, 1)


def _one_of(key: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{key} must be one of {', '.join(map(str, choices))}, got {value!r}")


def _at_least(key: str, value: float, least: int) -> None:
    if value < least:
        raise ConfigError(f"{key} must be at least {least}, got {value}")
