"""What the other scripts refuse before anything starts."""

import re
from importlib.util import find_spec
from pathlib import Path

from fcn.checks.training import (
    MOST_CLASSES,
    check_data,
    check_net,
    check_recipe,
    learning_rate,
)
from fcn.checks.values import (
    MOST_SEED,
    at_least,
    between,
    distinct,
    one_of,
    positive,
    workers,
    writable,
)
from fcn.config import (
    REPOSITORY,
    AblateConfig,
    BenchmarkConfig,
    ConfigError,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    ImportCaffeConfig,
    PredictConfig,
    PrepareDataConfig,
    ReportConfig,
)

EXPORT_SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")

CAFFE_NETS = ("fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce", "vgg16")
# Topics of scripts/explain.py in order; the last three are about a trained net.
TOPICS = (
    "matrix", "arithmetic", "operators", "bilinear", "repeat", "checkerboards",
    "network", "learning", "deconvnet",
)  # fmt: skip
OF_A_NET = set(TOPICS[-3:])

# Parts of scripts/benchmark.py in order.
PARTS = ("nets", "sizes", "batches", "upsampling", "loader", "evaluation", "loop")


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
    else:
        writable("output", Path(cfg.output))
    one_of("precision", cfg.precision, ("auto", "32-true", "bf16-mixed"))
    at_least("batch_size", cfg.batch_size, 1)


def check_ablation(cfg: AblateConfig) -> None:
    """Raises: ConfigError: an empty grid, a choice that there is not, or nothing to work with."""
    for key, group in (("models", "model"), ("upsamplings", "upsampling")):
        choices = tuple(sorted(p.stem for p in (REPOSITORY / "configs" / group).glob("*.yaml")))
        for value in getattr(cfg, key):
            one_of(key, value, choices)
    for key in ("models", "upsamplings", "seeds"):
        values = getattr(cfg, key)
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{key} must name at least one, and none twice, got {values}")
    for seed in cfg.seeds:
        between("seeds", seed, 0, MOST_SEED)
    workers("jobs", cfg.jobs, 1)
    at_least("time_rounds", cfg.time_rounds, 0)
    taken = ("model", "upsampling", "seed", "hydra.run.dir", "resume", "stages")
    for override in cfg.overrides:
        if override.partition("=")[0].lstrip("+") in taken:
            raise ConfigError(f"overrides: {override} is the grid's own to set")


def check_benchmark(cfg: BenchmarkConfig) -> None:
    """Raises: ConfigError: a setting outside its choices."""
    check_net(cfg.model, cfg.backbone)
    check_recipe(cfg.recipe)
    positive("recipe.lr", learning_rate(cfg.recipe, cfg.model))
    check_data(cfg.data)
    between("seed", cfg.seed, 0, MOST_SEED)
    one_of("precision", cfg.precision, ("auto", "32-true", "bf16-mixed"))
    for part in cfg.parts:
        one_of("parts", part, PARTS)
    if not cfg.parts or len(set(cfg.parts)) < len(cfg.parts):
        raise ConfigError(f"parts must name at least one, and none twice, got {cfg.parts}")
    if len(cfg.size) != 2:
        raise ConfigError(f"size must be [height, width], got {cfg.size}")
    for key, values, least in (
        ("size", cfg.size, 64),  # two cells of the coarsest grid: batch norm wants more than one
        ("sides", cfg.sides, 64),
        ("batches", cfg.batches, 1),
    ):
        if values == []:
            raise ConfigError(f"{key} must name at least one")
        at_least(key, min(values or [least]), least)
    between("num_classes", cfg.num_classes, 2, MOST_CLASSES)
    at_least("batch_size", cfg.batch_size, 1)
    at_least("images", cfg.images, 1)
    at_least("rounds", cfg.rounds, 1)
    positive("seconds", cfg.seconds)


def check_export(cfg: ExportConfig) -> None:
    """Raises: ConfigError: a setting missing or outside its choices, or a package missing."""
    if cfg.checkpoint is None or cfg.output is None:
        raise ConfigError("give checkpoint=PATH to export and output=FILE to write")
    one_of("format", cfg.format, tuple(EXPORT_SUFFIX))
    one_of("input", cfg.input, ("float", "uint8"))
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
    writable("output", output.parent)
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if cfg.format == "onnx" and missing:
        raise ConfigError(f'format=onnx needs {", ".join(missing)}: pip install -e ".[export]"')


def check_report(cfg: ReportConfig) -> None:
    """Raises: ConfigError: a setting missing, or outside its choices."""
    if not cfg.runs:
        raise ConfigError("give runs=[FOLDER,...], folders that train.py or evaluate.py left")
    output = Path(cfg.output)
    if output.suffix != ".html" or output.is_dir():
        raise ConfigError(f"output must be a file that ends in .html, got {output}")
    at_least("images", cfg.images, 1)
    writable("output", output.parent)


def check_explanation(cfg: ExplainConfig) -> None:
    """Raises: ConfigError: a setting outside its choices."""
    one_of("explain", cfg.explain, ("all", *TOPICS))
    if cfg.checkpoint is None and cfg.data.layout != "shapes":
        raise ConfigError(
            f"data={cfg.data.name} needs checkpoint=, a net trained on it; without one, a small "
            "net is trained on the embedded sample"
        )
    if cfg.image is not None and not cfg.checkpoint and cfg.explain not in {"all", *OF_A_NET}:
        raise ConfigError(f"image={cfg.image} is for topics about a net, not explain={cfg.explain}")
    at_least("steps", cfg.steps, 1)
    between("seed", cfg.seed, 0, MOST_SEED)
    check_data(cfg.data)


def check_preparation(cfg: PrepareDataConfig) -> None:
    """Raises: ConfigError: a setting outside its choices, or nowhere to write shards."""
    check_data(cfg.data)
    workers("processes", cfg.processes, 1)
    if cfg.shards is not None:
        writable("shards", Path(cfg.shards))


def check_import(cfg: ImportCaffeConfig) -> None:
    """Raises: ConfigError: a setting missing, or outside its choices."""
    if cfg.caffemodel is None or cfg.output is None:
        raise ConfigError("give caffemodel=FILE to import and output=FILE.safetensors to write")
    output = Path(cfg.output)
    if output.suffix != ".safetensors" or output.is_dir():
        raise ConfigError(f"output must be a file that ends in .safetensors, got {output}")
    if len(cfg.mean_bgr) != 3:
        raise ConfigError(f"mean_bgr must be three numbers, got {cfg.mean_bgr}")
    one_of("model.name", cfg.model.name, CAFFE_NETS)
    distinct("classes", cfg.classes)
    writable("output", output.parent)
