"""Every setting: its meaning, type and range, in one place.

The dataclasses are the schema of the commands (`SCHEMAS`). Hydra fills them from `configs/` and the
command line; pydantic checks the ranges; `--help` prints the descriptions.
"""

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from fcn.dataset_info import MEAN_BGR
from fcn.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parent
CONFIGS = next(p for p in (PACKAGE / "configs", REPOSITORY / "configs") if p.is_dir())
# In a checkout the data sets lie in its data/ folder, elsewhere in ./data.
DATA_ROOT = str(REPOSITORY / "data") if (REPOSITORY / "pyproject.toml").is_file() else "data"


def about(meaning: str, **rules: Any) -> Any:
    """Return a setting's meaning, for `--help`, and its rules, in pydantic's words."""
    return Field(description=meaning, **rules)


def one_of(meaning: str, *choices: str) -> Any:
    """Return the meaning of a setting that takes one of some words."""
    return about(meaning, pattern=f"^({'|'.join(choices)})$")


DEVICE = about("where to compute: auto, cpu, cuda, mps; auto: a GPU if there is one")
OVERWRITE = about("replace files that are there already")
CHECKPOINT = about("a .ckpt or .safetensors file of this project, or a run's folder")
PRECISION = one_of(
    "32-true, bf16-mixed; auto: the latter where the device computes in bfloat16",
    "auto",
    "32-true",
    "bf16-mixed",
)
Seed = Annotated[int, about("seed of every random draw", ge=0, lt=2**32)]
Positive = Annotated[int, Field(ge=1)]
Colour = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]


class Schema:
    """What all settings have in common: unknown keys, NaN and empty texts are errors."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False, str_min_length=1)


@dataclass
class ModelConfig(Schema):
    name: Annotated[str, about("name of the choice")] = "fcn8s"
    stride: Annotated[int, about("of the finest scores fused: 32, 16 or 8")] = 8
    in_channels: Annotated[
        int | None, about("channels of an image; null: those of data.bands, or 3", ge=1)
    ] = None
    padding: Annotated[int | str, about("aligned, or 100 as in the authors' networks")] = "aligned"
    skip_scales: Annotated[
        dict[str, float], about("factor on a skip's features, by pool; see recipe.fit_to_features")
    ] = field(default_factory=dict)
    dropout: Annotated[float, about("after fc6 and fc7", ge=0, lt=1)] = 0.5
    init_from: Annotated[str | None, about("a checkpoint to start from: 32s -> 16s -> 8s")] = None


@dataclass
class BackboneConfig(Schema):
    name: Annotated[str, about("name of the choice")] = "vgg16"
    width: Annotated[
        int | None, about("channels of the first stage; null: the backbone's own", ge=1)
    ] = None
    head_width: Annotated[
        int | None, about("channels of fc6 and fc7; null: the backbone's own", ge=1)
    ] = None
    weights: Annotated[str | None, about("imagenet, a name of torchvision's, a file, or null")] = (
        None
    )
    head_weights: Annotated[
        str | None, about("of fc6 and fc7: from weights, or null: start new", pattern="^weights$")
    ] = "weights"
    freeze: Annotated[
        str | None,
        about(
            "keep the weights up to this stage as they are: conv1 to conv5", pattern="^conv[1-5]$"
        ),
    ] = None


@dataclass
class UpsamplingConfig(Schema):
    name: Annotated[str, about("how scores are upsampled, see the choices")] = "fixed"


@dataclass
class DataConfig(Schema):
    name: Annotated[str, about("name in metrics.json and on the screen")] = MISSING
    layout: Annotated[str, about("how the files are arranged, see fcn/data/layouts.py")] = "voc"
    root: Annotated[str, about("folder of the data sets; for shards also an address")] = DATA_ROOT
    folder: Annotated[str, about("of this data set, below root")] = "."
    masks: Annotated[str, about("folder of the masks, below data.folder")] = "SegmentationClass"
    train_split: Annotated[str, about("split to train on")] = "train"
    val_split: Annotated[str, about("split to validate on")] = "val"
    split: Annotated[str | None, about("split to evaluate; null: val_split")] = None
    # These six may also stand in dataset.yaml beside the data; the command line wins over the file.
    classes: Annotated[list[str], about("names of the labels 0, 1, ...", max_length=255)] = field(
        default_factory=list
    )
    colours: Annotated[list[Colour], about("RGB of each class, [[0,0,0],...]; []: VOC's")] = field(
        default_factory=list
    )
    ignore_index: Annotated[
        int | None, about("label of pixels to ignore in loss and metrics; null: 255", ge=0, le=255)
    ] = None
    background: Annotated[
        bool | None, about("whether class 0 is background; null: if its name says so")
    ] = None
    value_range: Annotated[
        Annotated[list[float], Field(min_length=2, max_length=2)] | None,
        about("pixel values that become black and white; null: all of 8 or 16 bits"),
    ] = None
    bands: Annotated[
        list[int | str],
        about(
            "channels to use of each image, by number from 0 or name; []: RGB, where transparent "
            "pixels take the mean colour"
        ),
    ] = field(default_factory=list)
    scan: Annotated[bool, about("read all masks before training or evaluation, for errors")] = True
    num_workers: Annotated[
        int | None,
        about("processes that load images; null: one per core, on a CPU one per four", ge=0),
    ] = None
    download: Annotated[bool, about("fetch what is missing: VOC, SBD")] = False
    url: Annotated[str | None, about("fetch from here: an archive, or a folder ending in /")] = None
    checksum: Annotated[
        str | None,
        about(
            "of the archive at url: md5:..., sha1:... or sha256:...",
            pattern=r"^(md5:\w{32}|sha1:\w{40}|sha256:\w{64})$",
        ),
    ] = None


@dataclass
class RecipeConfig(Schema):
    """What Lightning's Trainer does not know; steps, precision and accumulation are `trainer.*`."""

    name: Annotated[str, about("name of the choice")] = MISSING
    optimizer: Annotated[str, about("of torch.optim, by name: sgd, adamw, RMSprop, ...")] = "sgd"
    optimizer_arguments: Annotated[dict[str, Any], about("more arguments of the optimizer")] = (
        field(default_factory=dict)
    )
    lr: Annotated[float | None, about("learning rate; null: from lr_by_model", gt=0)] = None
    lr_by_model: Annotated[dict[str, float], about("learning rate for each model.name")] = field(
        default_factory=dict
    )
    momentum: Annotated[float, about("SGD's, or AdamW's beta 1", ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, about("of weights, not biases or norms", ge=0)] = 5e-4
    bias_lr_factor: Annotated[float, about("biases learn at lr times this", ge=0)] = 2.0
    backbone_lr_factor: Annotated[float, about("the backbone learns at lr times this", ge=0)] = 1.0
    fit_to_features: Annotated[
        bool, about("scale skips and a new fc6 to the size of pretrained features")
    ] = True
    schedule: Annotated[str, one_of("constant, poly or cosine", "constant", "poly", "cosine")] = (
        "constant"
    )
    warmup_steps: Annotated[int, about("steps of linear warm-up", ge=0)] = 0
    loss_reduction: Annotated[
        str, one_of("over the pixels of a batch: sum or mean", "sum", "mean")
    ] = "mean"
    batch_size: Annotated[int, about("images of one forward pass of one process", ge=1)] = 1
    ema_decay: Annotated[
        float | None, about("validate and keep averaged weights; null: off", ge=0, lt=1)
    ] = None
    crop: Annotated[
        int | None, about("side of square training crops; null: whole images", ge=1)
    ] = None
    scale: Annotated[
        list[Annotated[float, Field(gt=0)]],
        about("random resize of crops, [from, to]", min_length=2, max_length=2),
    ] = field(default_factory=lambda: [1.0, 1.0])
    flip: Annotated[bool, about("mirror half of the images")] = False
    jitter: Annotated[float, about("of brightness, contrast and saturation", ge=0, le=1)] = 0.0


@dataclass
class LossConfig(Schema):
    name: Annotated[str, about("name of the choice")] = "cross_entropy"
    class_weights: Annotated[
        Any, about("one number per class, balanced (by pixels of the training masks), or null")
    ] = None
    label_smoothing: Annotated[float, about("of cross entropy", ge=0, lt=1)] = 0.0
    dice_weight: Annotated[float, about("dice: its weight next to cross entropy", gt=0)] = 1.0
    gamma: Annotated[float, about("focal: exponent, larger favours hard pixels", ge=0)] = 2.0
    hardest: Annotated[float, about("ohem: share of the pixels that count", gt=0, le=1)] = 0.25


@dataclass
class TrainConfig(Schema):
    model: ModelConfig = field(default_factory=ModelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    upsampling: UpsamplingConfig = field(default_factory=UpsamplingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    trainer: Annotated[
        dict[str, Any], about("any argument of Lightning's Trainer; precision may also be auto")
    ] = field(default_factory=dict)
    logger: Annotated[dict[str, Any], about("Lightning's loggers, each with its _target_")] = field(
        default_factory=dict
    )
    callbacks: Annotated[dict[str, Any], about("Lightning's callbacks, likewise")] = field(
        default_factory=dict
    )
    seed: Seed = 0
    resume: Annotated[str | None, about("a run's folder or .ckpt, last, or auto")] = None
    stages: Annotated[
        list[str], about("models to train one after the other: [fcn32s,fcn16s,fcn8s]")
    ] = field(default_factory=list)
    compile: Annotated[bool, about("torch.compile the training step")] = False


@dataclass
class EvaluateConfig(Schema):
    checkpoint: Annotated[str, CHECKPOINT] = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    batch_size: Annotated[
        int,
        about("images at once, fewer if large; changes no number, up to rounding on a GPU", ge=1),
    ] = 8
    overwrite: Annotated[bool, OVERWRITE] = False
    trainer: Annotated[
        dict[str, Any],
        about("accelerator, devices, num_nodes, strategy, precision, as in training"),
    ] = field(default_factory=dict)
    submission: Annotated[bool, about("also write VOC's results.tar.gz")] = False


@dataclass
class PredictConfig(Schema):
    checkpoint: Annotated[str, CHECKPOINT] = MISSING
    input: Annotated[
        str, about("a file, a folder, a pattern, or - for paths on standard input")
    ] = MISSING
    output: Annotated[str, about("the folder to write to")] = MISSING
    raw: Annotated[bool, about("write masks as plain grey labels, without colours")] = False
    overlays: Annotated[bool, about("also write overlays/NAME.png")] = True
    probabilities: Annotated[bool, about("also write NAME.npz, float16 (K, H, W)")] = False
    overwrite: Annotated[bool, about("predict again what is there already")] = False
    tile: Annotated[
        int | str | None, about("longest side predicted at once: auto (1280), pixels, or null: any")
    ] = "auto"
    flip: Annotated[bool, about("average over the image and its mirror image")] = False
    scales: Annotated[
        list[Annotated[float, Field(gt=0)]],
        about("average over the image at these sizes", min_length=1),
    ] = field(default_factory=lambda: [1.0])
    trainer: Annotated[
        dict[str, Any],
        about("accelerator, devices, num_nodes, strategy, precision, as in training"),
    ] = field(default_factory=dict)


@dataclass
class ExportConfig(Schema):
    checkpoint: Annotated[str, CHECKPOINT] = MISSING
    output: Annotated[
        str, about("the file to write: .onnx, .pt2, .safetensors; hub, web: a folder")
    ] = MISSING
    format: Annotated[
        str,
        one_of(
            "onnx, torch_export, safetensors, hub or web",
            "onnx",
            "torch_export",
            "safetensors",
            "hub",
            "web",
        ),
    ] = "onnx"
    size: Annotated[
        list[Positive] | None,
        about(
            "onnx, torch_export: images of this [height, width] alone, one at a time, as OpenCV's "
            "DNN module needs it; null: any",
            min_length=2,
            max_length=2,
        ),
    ] = None
    input: Annotated[str, one_of("images: float in [0, 1], or uint8", "float", "uint8")] = "float"
    argmax: Annotated[bool, about("labels instead of scores")] = False
    precision: Annotated[
        str,
        one_of(
            "of the convolutions in ONNX: float32, or float16 or int8, which are compared with it "
            "on the validation images",
            "float32",
            "float16",
            "int8",
        ),
    ] = "float32"
    calibration: Annotated[
        int, about("int8: training images whose activations give the ranges", ge=1)
    ] = 64
    keep: Annotated[
        list[str], about("float16, int8: layers to leave in float32, such as [conv1_1,fc6]")
    ] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    push: Annotated[str | None, about("hub: also upload to this repository, USER/NAME")] = None
    space: Annotated[str | None, about("hub: also upload the demo, to this Space, USER/NAME")] = (
        None
    )
    licence: Annotated[
        str | None, about("hub: of the weights, for the model card: mit, cc-by-4.0, other, ...")
    ] = None
    assets: Annotated[
        str | None, about("web: folder dist of the npm package onnxruntime-web; null: from a CDN")
    ] = None
    example: Annotated[str | None, about("web: a picture that the page starts with")] = None
    overwrite: Annotated[bool, OVERWRITE] = False


@dataclass
class ImportCaffeConfig(Schema):
    caffemodel: Annotated[str, about("the file to import")] = MISSING
    output: Annotated[str, about("the file to write", pattern=r"\.safetensors$")] = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    classes: Annotated[list[str], about("class names; empty: VOC's for 21 classes")] = field(
        default_factory=list
    )
    mean_bgr: Annotated[
        list[float], about("subtracted from its images; BGR of 255", min_length=3, max_length=3)
    ] = field(default_factory=lambda: list(MEAN_BGR))
    overwrite: Annotated[bool, OVERWRITE] = False


@dataclass
class PrepareDataConfig(Schema):
    data: DataConfig = field(default_factory=DataConfig)
    processes: Annotated[int | None, about("readers; null: one per core", ge=1)] = None
    overwrite: Annotated[bool, OVERWRITE] = False
    shards: Annotated[str | None, about("also write WebDataset tars to this folder")] = None
    convert: Annotated[
        str | None, about("first convert an annotation tool's export in this folder")
    ] = None
    to: Annotated[str | None, about("convert: the new folder to write, for data=folder")] = None
    images: Annotated[
        str | None,
        about("convert: where the images are, if it is not clear: a folder, or such as *.jpg"),
    ] = None
    masks: Annotated[str | None, about("convert: where the masks are, likewise")] = None
    labels: Annotated[
        Any, about("convert: {7: road, 11: building}, the rest ignored; or a YAML file of it")
    ] = None
    merge: Annotated[
        Any, about("convert: {truck: car, sky: null}, renames, merges and drops classes")
    ] = None
    val_share: Annotated[
        float, about("convert: images drawn for val where there is no such split", gt=0, lt=1)
    ] = 0.2
    seed: Seed = 0
    group: Annotated[
        str | None,
        about(
            "convert: regular expression; images in whose names it, or its first group, finds the "
            "same text stay on one side of the draw; null: versions by Roboflow"
        ),
    ] = None
    nearest: Annotated[
        bool, about("convert: smoothed boundaries in masks become the class of the nearest value")
    ] = False
    resize: Annotated[bool, about("convert: enlarge or shrink masks to their images")] = False
    link: Annotated[
        bool,
        about(
            "convert: link the images, which saves space, but editing a converted image then "
            "edits the original; false: copy them"
        ),
    ] = False


@dataclass
class CompareConfig(Schema):
    runs: Annotated[list[str], about("folders of finished runs")] = field(default_factory=list)
    sweep: Annotated[str | None, about("folder of a multirun or of stages")] = None
    images: Annotated[int, about("images in the page's gallery", ge=0)] = 24
    data_root: Annotated[
        str | None, about("folder of the data sets; null: as recorded by the runs")
    ] = None
    device: Annotated[str, DEVICE] = "auto"
    overwrite: Annotated[bool, OVERWRITE] = False


@dataclass
class ExplainConfig(Schema):
    explain: Annotated[
        str,
        one_of(
            "all, or one topic",
            "all",
            "matrix",
            "arithmetic",
            "operators",
            "bilinear",
            "repeat",
            "checkerboards",
            "network",
            "learning",
            "deconvnet",
        ),
    ] = "all"
    checkpoint: Annotated[str | None, about("a trained model; null: train a small one")] = None
    fcn32s: Annotated[str | None, about("a trained FCN-32s, to show beside it")] = None
    image: Annotated[str | None, about("an image id; null: one with many classes")] = None
    steps: Annotated[int, about("training steps of the small model", ge=1)] = 200
    seed: Seed = 0
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class BenchmarkConfig(Schema):
    quick: Annotated[bool, about("fewer rounds: about two minutes")] = False
    size: Annotated[
        list[Positive], about("of the image: [height, width]", min_length=2, max_length=2)
    ] = field(default_factory=lambda: [375, 500])
    num_classes: Annotated[int, about("K", ge=2)] = 21
    rounds: Annotated[int, about("of each measurement", ge=3)] = 15
    device: Annotated[str, DEVICE] = "auto"
    precision: Annotated[str, PRECISION] = "auto"
    checkpoint: Annotated[
        str | None, about("measure this network in each runtime at hand instead, on a CPU")
    ] = None
    data: DataConfig = field(default_factory=DataConfig)
    images: Annotated[
        int | None, about("checkpoint: validation images to measure on; null: all", ge=1)
    ] = None


SCHEMAS = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "export": ExportConfig,
    "import_caffe": ImportCaffeConfig,
    "prepare_data": PrepareDataConfig,
    "compare": CompareConfig,
    "explain": ExplainConfig,
    "benchmark": BenchmarkConfig,
}

T = TypeVar("T")


def check(values: Any, schema: type[T]) -> T:
    """Return settings as an instance of their schema.

    Args:
        values: plain values by key.
        schema: one of `SCHEMAS`, or a group of it.

    Raises:
        ConfigError: a mandatory value is missing; a value is out of range; a key is unknown.
    """
    if missing := [key for key, value in flat_keys(values).items() if value == MISSING]:
        raise ConfigError(f"{missing[0]} is missing: give {missing[0]}=VALUE")
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_message(e, schema) for e in error.errors())) from None


def _message(error: ErrorDetails, schema: type) -> str:
    """Return one of pydantic's errors as `key=value must be ...`."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "unexpected_keyword_argument":
        return unknown_key(key, list(flat_keys(OmegaConf.structured(schema))))
    rule = error["msg"].replace("Input should be", "must be").replace("should", "must")
    pattern = str(error.get("ctx", {}).get("pattern", ""))
    if choices := re.fullmatch(r"\^\(([\w|-]+)\)\$", pattern):
        rule = f"must be one of {choices[1].replace('|', ', ')}"
    return f"{key}=" + str(error["input"]) + f": {rule}"


# What people type -> the key they mean, where spelling does not tell.
SYNONYMS = {
    "learning_rate": "recipe.lr",
    "batch": "recipe.batch_size",
    "wd": "recipe.weight_decay",
    "epochs": "trainer.max_epochs",
    "max_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "max_steps": "trainer.max_steps",
    "precision": "trainer.precision",
    "accumulate": "trainer.accumulate_grad_batches",
    "val_every": "trainer.val_check_interval",
    "devices": "trainer.devices",
    "device": "trainer.accelerator",
    "gpus": "trainer.devices",
    "workers": "data.num_workers",
    "class_weights": "loss.class_weights",
    "early_stopping": "callbacks=early_stopping",
    "weights": "backbone.weights",
    "pretrained": "backbone.weights",
    "output_dir": "hydra.run.dir",
    "debug": "HYDRA_FULL_ERROR=1 in the environment",
}


def unknown_key(key: str, known: list[str]) -> str:
    """Return the message for a key that does not exist: the one that was meant, if it is clear."""
    last = key.split(".")[-1]
    near = get_close_matches(key, known, n=1, cutoff=0.75)
    near = near or [k for k in known if k.split(".")[-1] == last]
    # A synonym may belong to another command.
    groups = {k.split(".")[0] for k in known} | {"hydra", "HYDRA_FULL_ERROR"}
    synonyms = (SYNONYMS.get(word, "") for word in (key, last))
    meant = next((s for s in [*synonyms, *near] if re.split("[.=]", s)[0] in groups), None)
    hint = f"did you mean {meant}?" if meant else "--help lists all keys"
    return f"unknown key {key}: {hint}"


def flat_keys(cfg: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted keys."""
    if not isinstance(cfg, dict | DictConfig) or not cfg:
        return {prefix: cfg} if prefix else {}
    result: dict[str, Any] = {}
    for key in cfg:
        missing = isinstance(cfg, DictConfig) and OmegaConf.is_missing(cfg, key)
        value = MISSING if missing else cfg[key]
        result |= flat_keys(value, ".".join([prefix, str(key)] if prefix else [str(key)]))
    return result


def quoted(value: object) -> str:
    """Return a value for Hydra's command line, whatever characters it has."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
