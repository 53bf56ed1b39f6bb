"""Every setting: its meaning, type and range, in one place.

The dataclasses are the schema of the commands (`SCHEMAS`). Hydra fills them from `configs/` and the
command line; pydantic checks the ranges; `--help` prints the descriptions.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import partial
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


def setting(
    default: Any, meaning: str, *, needs: str = "", choices: Sequence[str] = (), **rules: Any
) -> Any:
    """Return the field of a setting.

    Args:
        default: its value unless configs/ or the command line say otherwise.
        meaning: for `--help`.
        needs: settings of its group that it requires; giving it without them is an error: "convert"
            must be given, "name=dice,focal" be one of these values.
        choices: the words that it takes, if it takes only some.
        rules: for its value, in pydantic's words: ge, lt, max_length, pattern, ...
    """
    if choices:
        meaning = f"{meaning} (one of: {', '.join(choices)})"
        rules["pattern"] = f"^({'|'.join(choices)})$"
    metadata = {"description": meaning, "needs": needs, **rules}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def help_of(entry: dataclasses.Field[Any], group: str = "") -> str:
    """Return the meaning of a setting for `--help`, with the other settings that it needs.

    Args:
        entry: made by `setting`.
        group: the key of its group; "" for a setting of the command itself.
    """
    needs = [part for part in entry.metadata.get("needs", "").split() if not part.endswith("=null")]
    keys = [part if "=" in part else f"{part}=..." for part in needs if part != "quick=false"]
    if group:
        keys = [f"{group}.{key}".replace(".name=", "=") for key in keys]
    meaning = entry.metadata.get("description", "")
    shown = ", ".join(key.replace(",", " or ") for key in keys)
    return f"{meaning} [with {shown}]" if shown else meaning


def data_set(unused: str = "", needs: str = "", converting: str = "") -> Any:
    """Return the field of a command's data set.

    Args:
        unused: settings of `DataConfig` that the command does nothing with; giving one is an error.
        converting: likewise, of a command with convert=.
        needs: other settings of the command without which it reads no data set; see `setting`.
    """
    names = {"unused": unused.split(), "converting": converting.split()}
    return field(default_factory=DataConfig, metadata={"needs": needs, **names})


# Meanings that several commands share.
CHECKPOINT = "a .ckpt or .safetensors file of this project, a run's folder, or hf://USER/NAME"
DEVICE = "where to compute: auto (a GPU if there is one), cpu, cuda, mps"
OVERWRITE = "replace files that are there already"
FLIP = "average over the image and its mirror image"
SCALES = "average over the image resized by these factors"
PROCESSES = "accelerator, devices, num_nodes, strategy, precision of Lightning's Trainer"
TRAINER = "arguments of Lightning's Trainer; precision may also be auto"
# Words that a setting takes.
CAFFE = ["fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce", "vgg16"]
DIVIDED = "fold folds fold_seed group train_split val_split split"
AN_FCN = f"network={','.join(CAFFE[:4])}"
CHECKSUM = r"^(md5:\w{32}|sha1:\w{40}|sha256:\w{64})$"
FORMATS = ["onnx", "torch_export", "safetensors", "hub", "web"]
SMALLER = ["float32", "float16", "int8"]
SPEED_PRECISIONS = ["auto", "32-true", "bf16-mixed"]
STAGES = ["conv1", "conv2", "conv3", "conv4", "conv5"]
TOOLS = ["coco", "cvat", "labelme", "labelstudio"]
TOPICS = ["all", "matrix", "arithmetic", "channels", "operators", "bilinear", "repeat",
          "checkerboards", "network", "learning", "deconvnet"]  # fmt: skip
# Settings of a part of a command, see `needs`.
NETWORK_TOPICS = "explain=all,network,learning,deconvnet"
OWN_NETWORK = f"checkpoint=null {NETWORK_TOPICS}"
ONNX = "format=onnx,hub,web"
topic_setting = partial(setting, needs=NETWORK_TOPICS)
graph_setting = partial(setting, needs="format=onnx,torch_export")
hub_setting = partial(setting, needs="format=hub")
web_setting = partial(setting, needs="format=web")
small_setting = partial(setting, needs="precision=float16,int8")
label_setting = partial(setting, needs="name=cross_entropy,dice")
conversion = partial(setting, needs="convert")
speed_setting = partial(setting, needs="checkpoint=null")
# What a command does not use of a data set that it compares files on.
NOT_MEASURED = "limit split download url checksum"
# Types with bounds.
Positive = Annotated[int, Field(ge=1)]
Above0 = Annotated[float, Field(gt=0)]
Byte = Annotated[int, Field(ge=0, le=255)]
Colour = Annotated[list[Byte], Field(min_length=3, max_length=3)]
Mean = Annotated[list[float], Field(min_length=3, max_length=3)]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]
Scale = Annotated[list[Above0], Field(min_length=2, max_length=2)]
Size = Annotated[list[Positive], Field(min_length=2, max_length=2)]


class Schema:
    """What all settings have in common: unknown keys, NaN and empty texts are errors."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False, str_min_length=1)


@dataclass
class ModelConfig(Schema):
    stride: int = setting(8, "stride of the finest scores that are fused: 32, 16 or 8")
    in_channels: int | None = setting(None, "channels of an image; null: one per band, or 3", ge=1)
    padding: int | str = setting("aligned", "padding: aligned, or 100 as in the authors' networks")
    skip_scales: dict[str, float] = setting({}, "factors of the skips: {pool4: 0.01, ...}")
    dropout: float = setting(0.5, "rate of dropout after fc6 and fc7", ge=0, lt=1)
    init_from: str | None = setting(None, "a checkpoint to start from: 32s -> 16s -> 8s")

    @property
    def name(self) -> str:
        """What the network is called, on the screen and in recipe.lr_by_model."""
        return f"fcn{self.stride}s_atonce" if self.skip_scales else f"fcn{self.stride}s"


@dataclass
class BackboneConfig(Schema):
    name: str = setting("vgg16", "set by backbone=CHOICE, with its weights; not by itself")
    width: int | None = setting(None, "channels of the first stage; null: its own", ge=1)
    head_width: int | None = setting(None, "channels of fc6 and fc7; null: its own", ge=1)
    weights: str | None = setting(None, "imagenet, a name of torchvision's, a file, or null")
    head_weights: str | None = setting("weights", "null: random fc6, fc7", pattern="^weights$")
    freeze: str | None = setting(None, "the last stage that is not trained", choices=STAGES)


@dataclass
class UpsamplingConfig(Schema):
    name: str = setting("fixed", "set by upsampling=CHOICE; not by itself")
    _target_: str | None = setting(None, "your own subclass of Upsampling instead")


@dataclass
class DataConfig(Schema):
    name: str = setting(MISSING, "a label of your choice, printed and in metrics.json")
    layout: str = setting("voc", "how the files are arranged, see fcn/data/layouts.py")
    root: str = setting(DATA_ROOT, "folder of the data sets; for shards also an address")
    folder: str = setting(".", "folder of VOC below data.root", needs="layout=voc")
    masks: str = setting("SegmentationClass", "folder of the masks", needs="layout=voc")
    train_split: str = setting("train", "split to train on")
    val_split: str = setting("val", "split to validate on")
    split: str | None = setting(None, "split to evaluate; null: val_split")
    fold: int | None = setting(None, "validate on this fold, train on the others; from 0", ge=0)
    folds: int = setting(5, "folds of train_split and val_split together", ge=2)
    fold_seed: int = setting(0, "seed of the draw of folds, independent of seed", ge=0, lt=2**32)
    group: str | None = setting(None, "regular expression; equal matches are in one fold")
    # These six may also stand in dataset.yaml beside the data; the command line wins over the file.
    classes: list[str] = setting([], "names of the labels 0, 1, ...", max_length=255)
    colours: list[Colour] = setting([], "RGB of each class, [[0,0,0],...]; []: VOC's")
    ignore_index: int | None = setting(None, "label to ignore; null: 255", ge=0, le=255)
    background: bool | None = setting(None, "class 0 is background; null: if its name says so")
    value_range: Range | None = setting(None, "values of black and white; null: 0 to 255 or 65535")
    bands: list[int | str] = setting([], "channels to use, by number from 0 or name; []: RGB")
    limit: int | None = setting(None, "number of training images, drawn by seed; null: all", ge=1)
    scan: bool = setting(True, "read all masks before training or evaluation, for errors")
    num_workers: int | None = setting(None, "processes that load images; null: by cores", ge=0)
    download: bool = setting(False, "fetch what is missing: VOC, SBD")
    url: str | None = setting(None, "an archive, or a folder ending in /", needs="download")
    checksum: str | None = setting(None, "md5:..., sha256:...", needs="url", pattern=CHECKSUM)

    @property
    def title(self) -> str:
        """The name, with the fold if one side of it is trained on or evaluated."""
        if self.fold is None or self.split not in (None, self.train_split, self.val_split):
            return self.name
        return f"{self.name} (fold {self.fold} of {self.folds})"


@dataclass
class RecipeConfig(Schema):
    """Settings of training that are no `trainer.*`, as steps, precision and accumulation are."""

    optimizer: str = setting("sgd", "a class of torch.optim: sgd, adamw, RMSprop, ...")
    optimizer_arguments: dict[str, Any] = setting({}, "more arguments of the optimizer")
    lr: float | None = setting(None, "learning rate; null: from lr_by_model", gt=0)
    lr_by_model: dict[str, float] = setting({}, "learning rate by network: fcn32s, ...")
    momentum: float = setting(0.9, "SGD's, or AdamW's beta 1", ge=0, lt=1)
    weight_decay: float = setting(5e-4, "of weights; not of biases, norms and upsampling", ge=0)
    bias_lr_factor: float = setting(2.0, "factor of the learning rate for biases", ge=0)
    backbone_lr_factor: float = setting(1.0, "factor of the learning rate for the backbone", ge=0)
    fit_to_features: bool = setting(True, "rescale skips and a new fc6 to pretrained features")
    schedule: str = setting("constant", "of the rate", choices=["constant", "poly", "cosine"])
    warmup_steps: int = setting(0, "steps of linear warm-up", ge=0)
    loss_reduction: str = setting("mean", "of the pixels' losses", choices=["sum", "mean"])
    batch_size: int = setting(1, "images of one forward pass of one process", ge=1)
    ema_decay: float | None = setting(None, "keep averaged weights; null: off", ge=0, lt=1)
    crop: int | None = setting(None, "side of square training crops; null: whole images", ge=1)
    scale: Scale = setting([1.0, 1.0], "random resize of crops, [from, to]")
    flip: bool = setting(False, "mirror half of the images")
    jitter: float = setting(0.0, "random change of brightness, contrast and saturation", ge=0, le=1)
    transforms: list[dict[str, Any]] = setting([], "of image and mask; see augmentation=")


@dataclass
class LossConfig(Schema):
    name: str = setting("cross_entropy", "set by loss=CHOICE; not by itself")
    _target_: str | None = setting(None, "your own class instead: (score, target) -> loss")
    arguments: dict[str, Any] = setting({}, "its keyword arguments", needs="_target_")
    class_weights: Any = setting(None, "one number per class, balanced (by pixels), or null")
    label_smoothing: float = label_setting(0.0, "share of all classes", ge=0, lt=1)
    dice_weight: float = setting(
        1.0, "factor of Dice beside cross entropy", needs="name=dice", gt=0
    )
    gamma: float = setting(2.0, "exponent, larger favours hard pixels", needs="name=focal", ge=0)
    hardest: float = setting(0.25, "share of the pixels that count", needs="name=ohem", gt=0, le=1)


@dataclass
class TrainConfig(Schema):
    model: ModelConfig = field(default_factory=ModelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    upsampling: UpsamplingConfig = field(default_factory=UpsamplingConfig)
    data: DataConfig = data_set(unused="split")
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    trainer: dict[str, Any] = setting({}, TRAINER)
    logger: dict[str, Any] = setting({}, "Lightning's loggers, each with its _target_")
    callbacks: dict[str, Any] = setting({}, "Lightning's callbacks, likewise")
    seed: int = setting(0, "seed of all random numbers but data.fold_seed", ge=0, lt=2**32)
    resume: str | None = setting(None, "a run's folder or .ckpt, last, or auto")
    stages: list[str] = setting([], "models to train one after the other: [fcn32s,fcn16s,fcn8s]")
    compile: bool = setting(False, "compile the model by torch.compile")


@dataclass
class EvaluateConfig(Schema):
    checkpoint: str = setting(MISSING, CHECKPOINT)
    data: DataConfig = data_set(unused="limit")
    batch_size: int = setting(8, "images at once; changes no number, up to rounding on a GPU", ge=1)
    overwrite: bool = setting(False, OVERWRITE)
    trainer: dict[str, Any] = setting({}, PROCESSES)
    submission: bool = setting(False, "also write VOC's results.tar.gz")
    flip: bool = setting(False, FLIP)
    scales: list[Above0] = setting([1.0], SCALES, min_length=1)


@dataclass
class PredictConfig(Schema):
    checkpoint: str = setting(MISSING, CHECKPOINT)
    input: str = setting(MISSING, "a file, a folder, a pattern, or - for paths on standard input")
    output: str = setting(MISSING, "the folder to write to")
    raw: bool = setting(False, "write masks as plain grey labels, without colours")
    overlays: bool = setting(True, "also write overlays/NAME.png")
    probabilities: bool = setting(False, "also write NAME.npz, float16 (K, H, W)")
    annotations: str | None = setting(None, "also write annotations for a tool", choices=TOOLS)
    overwrite: bool = setting(False, "predict again what is there already")
    tile: int | str | None = setting("auto", "side of a tile: auto (1280), pixels, or null")
    flip: bool = setting(False, FLIP)
    scales: list[Above0] = setting([1.0], SCALES, min_length=1)
    value_range: Range | None = setting(None, "values of black and white; null: the checkpoint's")
    bands: list[int | str] = setting([], "channels, by number from 0 or name; []: the checkpoint's")
    trainer: dict[str, Any] = setting({}, PROCESSES)


@dataclass
class ExportConfig(Schema):
    checkpoint: str = setting(MISSING, CHECKPOINT)
    output: str = setting(MISSING, "a file .onnx, .pt2, .safetensors; for hub and web a folder")
    format: str = setting("onnx", "what to write", choices=FORMATS)
    size: Size | None = graph_setting(None, "[height, width] of images, for OpenCV; null: any")
    input: str = graph_setting("float", "dtype of images", choices=["float", "uint8"])
    argmax: bool = graph_setting(False, "let the file return labels instead of scores")
    precision: str = setting("float32", "dtype of convolutions", needs=ONNX, choices=SMALLER)
    calibration: int = setting(64, "images to measure ranges on", needs="precision=int8", ge=1)
    keep: list[str] = small_setting([], "layers to leave in float32: [conv1_1,fc6]")
    data: DataConfig = data_set(NOT_MEASURED, needs="precision=float16,int8")
    push: str | None = hub_setting(None, "also upload to this repository, USER/NAME")
    space: str | None = hub_setting(None, "also upload the demo to this Space, USER/NAME")
    licence: str | None = hub_setting(None, "of the weights, for the card: mit, cc-by-4.0, ...")
    assets: str | None = web_setting(None, "folder dist of npm's onnxruntime-web; null: a CDN")
    example: str | None = web_setting(None, "a picture that the page starts with")
    overwrite: bool = setting(False, OVERWRITE)


@dataclass
class ImportCaffeConfig(Schema):
    caffemodel: str = setting(MISSING, "the file to import")
    output: str = setting(MISSING, "the file to write", pattern=r"\.safetensors$")
    network: str = setting("fcn8s", "the published network in the file", choices=CAFFE)
    classes: list[str] = setting([], "class names; []: VOC's for 21 classes", needs=AN_FCN)
    mean_bgr: Mean = setting(list(MEAN_BGR), "subtracted from its images; BGR of 255")
    overwrite: bool = setting(False, OVERWRITE)


@dataclass
class PrepareDataConfig(Schema):
    data: DataConfig = data_set(unused="limit", converting=DIVIDED)
    processes: int | None = setting(None, "readers; null: by cores and images", ge=1)
    overwrite: bool = setting(False, OVERWRITE)
    shards: str | None = setting(None, "also write WebDataset tars to this folder")
    recipe: RecipeConfig | None = setting(None, "recipe=, augmentation=: draw what training sees")
    convert: str | None = setting(None, "first convert an export: folder, .zip, hf://datasets/NAME")
    to: str | None = conversion(None, "the new folder to write, for data=folder")
    images: str | None = conversion(None, "a folder, a pattern such as *.jpg, or a column")
    masks: str | None = conversion(None, "the same for masks")
    labels: Any = conversion(None, "{7: road, 11: building}, others are ignored; or a file")
    merge: Any = conversion(None, "{truck: car, sky: null} merges and drops classes")
    val_share: float = conversion(
        0.2, "share of images for val, if it has no such split", gt=0, lt=1
    )
    seed: int = setting(0, "seed of every random draw", ge=0, lt=2**32)
    group: str | None = conversion(None, "regular expression; equal matches stay in one split")
    nearest: bool = conversion(False, "smoothed mask values become the nearest class")
    line_width: float | None = conversion(
        None, "pixels, of lines; null: as the tool draws them", gt=0
    )
    resize: bool = conversion(False, "enlarge or shrink masks to their images")
    link: bool = conversion(False, "link images: editing one then edits the original")


@dataclass
class CompareConfig(Schema):
    runs: list[str] = setting([], "folders of finished runs")
    sweep: str | None = setting(None, "folder of a multirun or of stages")
    against: str | None = setting(None, "row to compare with: letter or folder; null: the first")
    images: int = setting(24, "images in the page's gallery", ge=0)
    data_root: str | None = setting(None, "folder of the data sets; null: as recorded by the runs")
    device: str = setting("auto", DEVICE)
    overwrite: bool = setting(False, OVERWRITE)


@dataclass
class ExplainConfig(Schema):
    explain: str = setting("all", "what to show", choices=TOPICS)
    checkpoint: str | None = topic_setting(None, "a trained model; null: train three small ones")
    fcn32s: str | None = setting(None, "a trained FCN-32s, to show beside it", needs="checkpoint")
    fcn16s: str | None = setting(None, "a trained FCN-16s, to show beside it", needs="checkpoint")
    image: str | None = topic_setting(None, "an image id; null: one with many classes")
    steps: int = setting(280, "training steps of the small FCN-32s", needs=OWN_NETWORK, ge=5)
    notebooks: bool = setting(False, "also write each topic as TOPIC.ipynb")
    seed: int = setting(0, "seed of the small networks", needs=OWN_NETWORK, ge=0, lt=2**32)
    data: DataConfig = data_set("limit", needs="checkpoint")
    overwrite: bool = setting(False, OVERWRITE)


@dataclass
class BenchmarkConfig(Schema):
    quick: bool = speed_setting(False, "fewer rounds: about two minutes")
    size: Size = speed_setting([375, 500], "of the image: [height, width]")
    num_classes: int = speed_setting(21, "number of classes", ge=2)
    rounds: int = setting(15, "of each measurement", needs="checkpoint=null quick=false", ge=3)
    device: str = speed_setting("auto", DEVICE)
    precision: str = speed_setting("auto", "of this network", choices=SPEED_PRECISIONS)
    checkpoint: str | None = setting(None, "measure this network in each runtime here, on a CPU")
    data: DataConfig = data_set(NOT_MEASURED, needs="checkpoint")
    images: int | None = setting(None, "validation images; null: all", needs="checkpoint", ge=1)
    overwrite: bool = setting(False, OVERWRITE)


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
        settings = TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_message(e, schema) for e in error.errors())) from None
    check_used(settings)
    return settings


def check_used(settings: Any, group: str = "") -> None:
    """Check that every changed setting has an effect with the others.

    Those of a data set are left to `check_used_data`: many come with its choice, or its run.

    Args:
        settings: an instance of a schema, or a group of it.
        group: the key of the group; "" for a schema.

    Raises:
        ConfigError: names what the setting needs.
    """
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if isinstance(value, DataConfig):
            continue
        if isinstance(value, Schema):
            check_used(value, entry.name)
        elif value != default_of(entry) and (need := _unmet(settings, group, entry)):
            key = f"{group}.{entry.name}" if group else entry.name
            raise ConfigError(
                f"{key}={as_typed(value)} has no effect without {need}; set both, or leave it out"
            )


def without_unused(values: dict[str, Any], group: str) -> dict[str, Any]:
    """Return the settings of a group of training, without those that do nothing beside the others.

    Args:
        values: by name; a new choice of the group has changed some of them.
        group: loss, model, ...
    """
    schema: Any = TrainConfig.__dataclass_fields__[group].type
    if not hasattr(schema, "__dataclass_fields__"):
        return values
    known = {entry.name for entry in fields(schema)}
    settings = schema(**{name: value for name, value in values.items() if name in known})
    unused = {entry.name for entry in fields(schema) if _unmet(settings, group, entry)}
    return {name: value for name, value in values.items() if name not in unused}


def as_typed(value: object) -> str:
    """Return a value as one types it: null, true."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def check_used_data(settings: Any, typed: Sequence[str], command: str) -> None:
    """Check that a command uses what was typed of its data set.

    Args:
        settings: of the command, checked.
        typed: the command line, such as data=voc_aug data.limit=50.
        command: its name.

    Raises:
        ConfigError: names the key, and what it needs.
    """
    known = {entry.name: entry for entry in fields(DataConfig)}
    whole = next((entry for entry in fields(settings) if entry.name == "data"), None)
    for text in (override.lstrip("+") for override in typed):
        group, _, name = text.partition("=")[0].partition(".")
        if group != "data" or whole is None:
            continue
        if name in known and getattr(settings.data, name) == default_of(known[name]):
            continue
        if name in whole.metadata["unused"]:
            raise ConfigError(f"{text}: {command} does not use it; leave it out")
        if name in whole.metadata["converting"] and settings.convert:
            instead = "use group= instead" if name == "group" else "leave it out"
            raise ConfigError(f"{text}: conversion does not use it; {instead}")
        own = name in known and _unmet(settings.data, "data", known[name])
        if need := _unmet(settings, "", whole) or own:
            raise ConfigError(f"{text} has no effect without {need}; set both, or leave it out")


def default_of(entry: dataclasses.Field[Any]) -> Any:
    """Return the value of a setting that nobody has set."""
    factory = entry.default_factory
    return entry.default if factory is dataclasses.MISSING else factory()


def _unmet(settings: Any, group: str, entry: dataclasses.Field[Any]) -> str:
    """Return the first unmet requirement of a setting as KEY=VALUE, or ""."""
    for condition in entry.metadata.get("needs", "").split():
        key, _, values = condition.partition("=")
        if key == "name" and settings._target_:  # a class of the user's in its place
            return f"{group}._target_=null"
        value = getattr(settings, key)
        given = "null" if value in ([], {}) else as_typed(value)
        if given not in values.split(",") if values else given in ("null", "false"):
            key = group if key == "name" else f"{group}.{key}" if group else key
            return f"{key}={values.replace(',', ' or ') or '...'}"
    return ""


def _message(error: ErrorDetails, schema: type) -> str:
    """Return one of pydantic's errors as `key=value must be ...`."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "unexpected_keyword_argument":
        return unknown_key(key, list(flat_keys(OmegaConf.structured(schema))))
    rule = error["msg"].replace("Input should be", "must be").replace("should", "must")
    pattern = str(error.get("ctx", {}).get("pattern", ""))
    if choices := re.fullmatch(r"\^\(([\w|-]+)\)\$", pattern):
        rule = f"must be one of {choices[1].replace('|', ', ')}"
    elif pattern:
        shown = {CHECKSUM: "md5:, sha1: or sha256: and hexadecimal digits"}
        rule = f"must be {shown.get(pattern, pattern.strip('^$'))}"
        if ending := re.fullmatch(r"\\(\.\w+)\$", pattern):
            rule = f"must end in {ending[1]}"
    return f"{key}=" + str(error["input"]) + f": {rule}"


# What people type -> the key they mean, where spelling does not tell.
SYNONYMS = {
    "learning_rate": "recipe.lr", "batch": "recipe.batch_size", "wd": "recipe.weight_decay",
    "epochs": "trainer.max_epochs", "max_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps", "max_steps": "trainer.max_steps",
    "precision": "trainer.precision", "accumulate": "trainer.accumulate_grad_batches",
    "val_every": "trainer.val_check_interval", "devices": "trainer.devices",
    "gpus": "trainer.devices", "device": "trainer.accelerator", "workers": "data.num_workers",
    "pretrained": "backbone.weights", "early_stopping": "callbacks=early_stopping",
    "output_dir": "hydra.run.dir", "model.name": "model=CHOICE", "recipe.name": "recipe=CHOICE",
    "debug": "HYDRA_FULL_ERROR=1 in the environment",
}  # fmt: skip


def unknown_key(key: str, known: list[str]) -> str:
    """Return the message for a key that does not exist: the one that was meant, if it is clear."""
    group, *names = key.split(".")
    if group in names[:1]:  # recipe.recipe
        return f"unknown key {key}: a file that sets groups starts with a line # @package _global_"
    last = key.split(".")[-1]
    near = get_close_matches(key, known, n=1, cutoff=0.75)
    near = near or [k for k in known if k.split(".")[-1] == last]
    # A synonym may belong to another command.
    groups = {k.split(".")[0] for k in known} | {"hydra", "HYDRA_FULL_ERROR"}
    synonyms = (SYNONYMS.get(word, "") for word in (key, last))
    meant = next((s for s in [*synonyms, *near] if re.split("[.=]", s)[0] in groups), None)
    if meant:
        return f"unknown key {key}: did you mean {meant}?"
    own = [k.partition(".")[2] for k in known if k.startswith(f"{group}.")]
    return f"unknown key {key}: " + (
        f"{group} has {', '.join(own)}" if 0 < len(own) < 10 else "--help lists all keys"
    )


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
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"
