"""What is refused before anything starts: settings outside their choices, or that do not fit."""

import re

from fcn.checks.values import (
    MOST_SEED,
    at_least,
    below_one,
    between,
    distinct,
    one_of,
    positive,
    workers,
)
from fcn.config import (
    BackboneConfig,
    ConfigError,
    DataConfig,
    ModelConfig,
    RecipeConfig,
    TrainConfig,
    TrainerConfig,
)

PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed", "64-true")
MOST_CLASSES = 255  # labels are bytes, and one of them is void


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
    check_net(model, cfg.backbone)
    check_recipe(recipe)
    check_data(cfg.data)
    between("seed", cfg.seed, 0, MOST_SEED)
    check_trainer(trainer)
    if cfg.resume and model.init_from and not cfg.stages:
        raise ConfigError("resume goes on with a run's own weights; leave out model.init_from")
    lr = learning_rate(recipe, model)
    positive("recipe.lr", lr)
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


def check_net(model: ModelConfig, backbone: BackboneConfig) -> None:
    """Raises: ConfigError: a setting of the net outside its choices."""
    one_of("model.stride", model.stride, (32, 16, 8))
    one_of("model.padding", model.padding, ("aligned", 100))
    below_one("model.dropout", model.dropout)
    for pool, scale in model.skip_scales.items():
        positive(f"model.skip_scales.{pool}", scale)
    at_least("backbone.width", backbone.width, 1)
    at_least("backbone.head_width", backbone.head_width, 1)


def check_recipe(recipe: RecipeConfig) -> None:
    """Raises: ConfigError: a setting of the recipe outside its choices."""
    one_of("recipe.optimizer", recipe.optimizer, ("sgd", "adamw"))
    one_of("recipe.schedule", recipe.schedule, ("constant", "poly", "cosine"))
    one_of("recipe.precision", recipe.precision, PRECISIONS)
    one_of("recipe.loss_reduction", recipe.loss_reduction, ("sum", "mean"))
    between("recipe.jitter", recipe.jitter, 0, 1)
    below_one("recipe.momentum", recipe.momentum)
    below_one("recipe.ema_decay", recipe.ema_decay)
    for key, value, least in (
        ("recipe.weight_decay", recipe.weight_decay, 0),
        ("recipe.bias_lr_factor", recipe.bias_lr_factor, 0),
        ("recipe.warmup_steps", recipe.warmup_steps, 0),
        ("recipe.max_steps", recipe.max_steps, 1),
        ("recipe.batch_size", recipe.batch_size, 1),
        ("recipe.accumulate", recipe.accumulate, 1),
        ("recipe.val_every", recipe.val_every, 1),
        ("recipe.crop", recipe.crop, 1),
    ):
        at_least(key, value, least)
    if len(recipe.scale) != 2 or not 0 < recipe.scale[0] <= recipe.scale[1]:
        raise ConfigError(
            f"recipe.scale must be [from, to] with 0 < from <= to, got {recipe.scale}"
        )
    if recipe.crop is None and recipe.scale != [1, 1]:
        raise ConfigError("recipe.scale resizes crops: set recipe.crop, or leave whole images be")


def check_trainer(trainer: TrainerConfig) -> None:
    """Raises: ConfigError: an argument of Lightning's that it would refuse late, or not at all."""
    one_of("trainer.accelerator", trainer.accelerator, ("auto", "cpu", "gpu", "cuda", "mps"))
    one_of("trainer.precision", trainer.precision or "auto", PRECISIONS)
    devices, val = trainer.devices, trainer.limit_val_batches
    numbers = devices if isinstance(devices, list) else [0]
    if not (
        devices == "auto"
        or (type(devices) is int and (devices > 0 or devices == -1))
        or (isinstance(devices, list) and devices and len(set(devices)) == len(devices))
    ) or any(type(n) is not int or n < 0 for n in numbers):
        raise ConfigError(
            "trainer.devices must be auto, how many, -1 for all, or which, such as [0,1]; got "
            f"{devices!r}"
        )
    for key, value, least in (
        ("trainer.max_steps", trainer.max_steps, 1),
        ("trainer.num_nodes", trainer.num_nodes, 1),
        ("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, 1),
        ("trainer.val_check_interval", trainer.val_check_interval, 1),
        ("trainer.log_every_n_steps", trainer.log_every_n_steps, 0),
        ("trainer.num_sanity_val_steps", trainer.num_sanity_val_steps, -1),
    ):
        at_least(key, value, least)
    positive("trainer.gradient_clip_val", trainer.gradient_clip_val)
    if val is not None and not (0 <= val <= 1 if isinstance(val, float) else val >= 0):
        raise ConfigError(
            "trainer.limit_val_batches must be a number of batches, or a share of them in "
            f"0.0..1.0, got {val}"
        )


def check_data(data: DataConfig) -> None:
    """Raises: ConfigError: a setting of the data outside its choices."""
    one_of("data.layout", data.layout, ("voc", "sbd", "shapes", "folder", "shards"))
    between("data.ignore_index", data.ignore_index, 0, 255)
    workers("data.num_workers", data.num_workers, 0)
    distinct("data.classes", data.classes)
    if data.classes and not 2 <= len(data.classes) <= MOST_CLASSES:
        raise ConfigError(
            f"data.classes must name 2..{MOST_CLASSES}, background first, got {len(data.classes)}"
        )
    if data.url and not data.download:
        raise ConfigError("data.url says where to fetch from; add data.download=true")
    if data.checksum and not data.url:
        raise ConfigError("data.checksum is of the archive at data.url; give that too")
    if data.checksum and not re.fullmatch(r"md5:\w{32}|sha1:\w{40}|sha256:\w{64}", data.checksum):
        raise ConfigError(
            f"data.checksum must be md5:, sha1: or sha256: and that many hex digits, "
            f"got {data.checksum}"
        )
