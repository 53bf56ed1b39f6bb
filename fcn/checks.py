"""What is refused before anything starts: settings outside their choices, or that do not fit."""

import re
from importlib.util import find_spec
from pathlib import Path

from fcn.config import (
    REPOSITORY,
    AblateConfig,
    BenchmarkConfig,
    ConfigError,
    DataConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    ModelConfig,
    PredictConfig,
    RecipeConfig,
    ReportConfig,
    TrainConfig,
)

EXPORT_SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


# Topics of scripts/explain.py in order; the last three are about a trained net.
TOPICS = (
    "matrix", "arithmetic", "operators", "bilinear", "repeat", "checkerboards",
    "network", "learning", "deconvnet",
)  # fmt: skip

# Parts of scripts/benchmark.py in order.
PARTS = ("nets", "sizes", "batches", "upsampling", "loader", "evaluation", "loop")


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
    _recipe_choices(recipe)
    check_data(cfg.data)
    if not 0 <= recipe.jitter <= 1:
        raise ConfigError(f"recipe.jitter must be in 0..1, got {recipe.jitter}")
    for key, value, least in (
        ("seed", cfg.seed, 0),
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
    if recipe.crop is None and recipe.scale != [1, 1]:
        raise ConfigError("recipe.scale resizes crops: set recipe.crop, or leave whole images be")
    if cfg.resume and model.init_from and not cfg.stages:
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


def _recipe_choices(recipe: RecipeConfig) -> None:
    _one_of("recipe.optimizer", recipe.optimizer, ("sgd", "adamw"))
    _one_of("recipe.schedule", recipe.schedule, ("constant", "poly", "cosine"))
    _one_of("recipe.loss_reduction", recipe.loss_reduction, ("sum", "mean"))


def check_data(data: DataConfig) -> None:
    """Raises: ConfigError: a setting of the data outside its choices."""
    _one_of("data.layout", data.layout, ("voc", "sbd", "shapes", "folder", "shards"))
    if not 0 <= data.ignore_index <= 255:
        raise ConfigError(f"data.ignore_index must be 0..255, got {data.ignore_index}")
    _at_least("data.num_workers", data.num_workers or 0, 0)
    if data.url and not data.download:
        raise ConfigError("data.url says where to fetch from; add data.download=true")
    if data.checksum and not data.url:
        raise ConfigError("data.checksum is of the archive at data.url; give that too")
    if data.checksum and not re.fullmatch(r"md5:\w{32}|sha1:\w{40}|sha256:\w{64}", data.checksum):
        raise ConfigError(
            f"data.checksum must be md5:, sha1: or sha256: and that many hex digits, "
            f"got {data.checksum}"
        )


def check_inference(cfg: EvaluateConfig | PredictConfig) -> None:
    """Raises: ConfigError: a setting missing, or outside its choices."""
    if cfg.checkpoint is None:
        raise ConfigError("give checkpoint=PATH, a .ckpt or .safetensors of this project")
    if isinstance(cfg, EvaluateConfig):
        check_data(cfg.data)
        if cfg.submission and not re.fullmatch(r"VOC\d{4}", Path(cfg.data.folder).name):
            raise ConfigError(
                f"submission=true is for Pascal VOC's server, not data={cfg.data.name}"
            )
    elif cfg.input is None or cfg.output is None:
        raise ConfigError("give input=FILE, FOLDER, PATTERN or -, and output=FOLDER to write to")
    _one_of("precision", cfg.precision, ("auto", "32-true", "bf16-mixed"))
    _at_least("batch_size", cfg.batch_size, 1)


def check_ablation(cfg: AblateConfig) -> None:
    """Raises: ConfigError: an empty grid, a choice that there is not, or nothing to work with."""
    for key, group in (("models", "model"), ("upsamplings", "upsampling")):
        choices = tuple(sorted(p.stem for p in (REPOSITORY / "configs" / group).glob("*.yaml")))
        for value in getattr(cfg, key):
            _one_of(key, value, choices)
    for key in ("models", "upsamplings", "seeds"):
        values = getattr(cfg, key)
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{key} must name at least one, and none twice, got {values}")
    _at_least("jobs", cfg.jobs, 1)
    _at_least("time_rounds", cfg.time_rounds, 0)
    taken = ("model", "upsampling", "seed", "hydra.run.dir", "resume", "stages")
    for override in cfg.overrides:
        if override.partition("=")[0].lstrip("+") in taken:
            raise ConfigError(f"overrides: {override} is the grid's own to set")


def check_benchmark(cfg: BenchmarkConfig) -> None:
    """Raises: ConfigError: a setting outside its choices."""
    check_data(cfg.data)
    _recipe_choices(cfg.recipe)
    learning_rate(cfg.recipe, cfg.model)
    for part in cfg.parts:
        _one_of("parts", part, PARTS)
    _one_of("precision", cfg.precision, ("auto", "32-true", "bf16-mixed"))
    if not cfg.parts or len(cfg.size) != 2:
        raise ConfigError("parts must name at least one, and size be [height, width]")
    for key, values, least in (
        ("size", cfg.size, 64),  # two cells of the coarsest grid: batch norm wants more than one
        ("sides", cfg.sides or [64], 64),
        ("batches", cfg.batches or [1], 1),
        ("batch_size", [cfg.batch_size], 1),
        ("num_classes", [cfg.num_classes], 2),
        ("images", [cfg.images], 1),
        ("rounds", [cfg.rounds], 1),
        ("recipe.batch_size", [cfg.recipe.batch_size], 1),
    ):
        _at_least(key, min(values), least)
    if cfg.seconds is not None and cfg.seconds <= 0:
        raise ConfigError(f"seconds must be positive, got {cfg.seconds}")


def check_export(cfg: ExportConfig) -> None:
    """Raises: ConfigError: a setting missing or outside its choices, or a package missing."""
    if cfg.checkpoint is None or cfg.output is None:
        raise ConfigError("give checkpoint=PATH to export and output=FILE to write")
    _one_of("format", cfg.format, tuple(EXPORT_SUFFIX))
    _one_of("input", cfg.input, ("float", "uint8"))
    output, suffix = Path(cfg.output), EXPORT_SUFFIX[cfg.format]
    if output.suffix != suffix:
        raise ConfigError(f"output must end in {suffix} for format={cfg.format}, got {output}")
    if output.is_dir() or output.resolve() == Path(cfg.checkpoint).resolve():
        raise ConfigError(f"output={output} is a folder, or the checkpoint itself; name a new file")
    if cfg.format == "safetensors" and (cfg.argmax or cfg.input != "float"):
        raise ConfigError(
            "format=safetensors holds weights, no graph; input= and argmax= are for onnx and "
            "torch_export"
        )
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if cfg.format == "onnx" and missing:
        raise ConfigError(f'format=onnx needs {", ".join(missing)}: pip install -e ".[export]"')


def check_report(cfg: ReportConfig) -> None:
    """Raises: ConfigError: a setting missing, or outside its choices."""
    if not cfg.runs:
        raise ConfigError("give runs=[FOLDER,...], folders that train.py or evaluate.py left")
    _one_of("the ending of output", Path(cfg.output).suffix, (".html",))
    _at_least("images", cfg.images, 1)


def check_explanation(cfg: ExplainConfig) -> None:
    """Raises: ConfigError: a setting outside its choices."""
    _one_of("explain", cfg.explain, ("all", *TOPICS))
    if cfg.checkpoint is None and cfg.data.layout != "shapes":
        raise ConfigError(
            f"data={cfg.data.name} needs checkpoint=, a net trained on it; without one, a small "
            "net is trained on the embedded sample"
        )
    _at_least("steps", cfg.steps, 1)
    check_data(cfg.data)


def _one_of(key: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{key} must be one of {', '.join(map(str, choices))}, got {value!r}")


def _at_least(key: str, value: float, least: int) -> None:
    if value < least:
        raise ConfigError(f"{key} must be at least {least}, got {value}")
