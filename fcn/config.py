"""The schema of every setting: typed, with defaults; unknown keys and wrong types are refused.

The choices lie in `configs/`, one folder a group, one short file a choice. What does not fit
together, `fcn.checks` refuses. Nothing heavy is imported here, so that `--help` stays quick.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

REPOSITORY = Path(__file__).resolve().parents[1]
VOID = 255  # the label of no class, in every target, whatever the files' own void label is
# The image mean that the FCN authors subtract for VOC and PASCAL-Context: blue, green, red of 255.
MEAN_BGR = (104.00699, 116.66877, 122.67892)


LONGEST_MESSAGE = 2000  # characters
# What would move a terminal's cursor, change its colours, or turn text round; or is no text.
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """Something the user can mend. The message says what, where and what to do, in one line.

    Names and reasons in it may come from any file, so what is `HIDDEN` is shown as an escape, and
    a message of any length is cut.
    """

    def __str__(self) -> str:
        text = " ".join(super().__str__().split())
        if len(text) > LONGEST_MESSAGE:
            text = f"{text[:LONGEST_MESSAGE]} ..."
        return printable(text)


def printable(text: str) -> str:
    """With escapes for what is `HIDDEN`."""
    return HIDDEN.sub(lambda found: ascii(found.group())[1:-1], text)


class ConfigError(UserError, ValueError):
    """A setting outside its choices, or settings that do not fit together."""


class Interrupted(UserError):
    """Stopped from outside, in good order. `code` is the exit code: 128 and the signal's number."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


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
    layout: str = "voc"  # how the files lie: voc, sbd, shapes, folder, shards
    root: str = str(REPOSITORY / "data")  # folder of the data sets; of shards, an address too
    folder: str = ""  # of this data set, below root
    masks: str = "SegmentationClass"  # folder of the masks, below `folder`
    train_split: str = "train"
    val_split: str = "val"
    split: str | None = None  # which split to evaluate; null: val_split
    classes: list[str] = field(default_factory=list)  # names, background first
    ignore_index: int = 255  # the mask's void label: in no loss, no metric
    num_workers: int | None = None  # processes that load images; null: as suits the machine
    download: bool = False  # fetch what is not there: voc2012, voc2011, voc_aug, sbd
    url: str | None = None  # fetch from here: an archive, or a folder of them that ends in /
    checksum: str | None = None  # of the archive at `url`, if not the official: md5:..., sha256:...


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
    crop: int | None = None  # side of square training crops; null: whole images, padded in a batch
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
    rerun: str | None = None  # a run's folder, to do it again from the start with its settings
    stages: list[str] = field(default_factory=list)  # models to train in turn, each from the last
    compile: bool = False  # torch.compile the training step: pays on a GPU, in long runs


@dataclass
class EvaluateConfig(CommonConfig):
    checkpoint: str | None = None  # any .ckpt or .safetensors that this project wrote
    batch_size: int = 8  # images of one size go through together; numbers do not depend on it
    device: str = "auto"  # auto, cpu, cuda, mps
    precision: str = "auto"  # 32-true, bf16-mixed; auto: as it was trained
    submission: bool = False  # also write the predictions as VOC's evaluation server takes them


@dataclass
class PredictConfig:
    checkpoint: str | None = None  # any .ckpt or .safetensors that this project wrote
    input: str | None = None  # a file, a folder, a pattern, or - for a list on standard input
    output: str | None = None  # the folder to write to
    overlays: bool = True  # also write overlays/NAME.png, the mask's colours over the image
    probabilities: bool = False  # also write NAME.npz, every class's probability at every pixel
    overwrite: bool = False  # false: go on with what was interrupted; true: do everything again
    batch_size: int = 8  # at most so many images of one size go through together
    tile: int | str | None = "auto"  # longest side that goes through at once; auto; null: any
    flip: bool = False  # average over the image and its mirror image
    scales: list[float] = field(default_factory=lambda: [1.0])  # average over these sizes
    device: str = "auto"  # auto, cpu, cuda, mps
    precision: str = "auto"  # 32-true, bf16-mixed; auto: as it was trained
    debug: bool = False  # show the traceback of an error


@dataclass
class PrepareDataConfig(CommonConfig):
    processes: int | None = None  # that read the files; null: one a core, fewer for few
    shards: str | None = None  # a folder to write the splits to, as WebDataset tars for data=shards


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
class ExportConfig:
    checkpoint: str | None = None  # any .ckpt or .safetensors that this project wrote
    format: str = "onnx"  # onnx, torch_export, safetensors
    output: str | None = None  # the file to write: .onnx, .pt2, .safetensors
    input: str = "float"  # RGB images: float in [0, 1], or uint8
    argmax: bool = False  # labels instead of scores
    debug: bool = False  # show the traceback of an error


@dataclass
class ExplainConfig(CommonConfig):
    explain: str = "all"  # or one topic
    checkpoint: str | None = None  # a trained net for the last topics; null: train a small one
    image: str | None = None  # an id of data.split to look at; null: one that shows many classes
    steps: int = 200  # of that training


@dataclass
class AblateConfig:
    models: list[str] = field(default_factory=list)  # choices of model, of upsampling, and seeds
    upsamplings: list[str] = field(default_factory=list)  # the first is what others differ from
    seeds: list[int] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)  # of scripts/train.py, for every run
    jobs: int = 1  # runs at once; they share out the processor's cores
    time_rounds: int = 30  # steps of each net to time at the end, in turns; 0: none
    debug: bool = False  # show the traceback of an error


@dataclass
class BenchmarkConfig(CommonConfig):
    model: ModelConfig = field(default_factory=ModelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    upsampling: UpsamplingConfig = field(default_factory=UpsamplingConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)  # of training steps and crops
    # nets, sizes, batches, upsampling, loader, evaluation, loop
    parts: list[str] = field(default_factory=list)
    quick: bool = False  # a minute or two rather than ten, without memory: for a first look
    size: list[int] = field(default_factory=lambda: [375, 500])  # of the images: height, width
    batch_size: int = 1
    num_classes: int = 21
    sides: list[int] | None = None  # of the square images of `sizes`; null: 128 to 1024
    batches: list[int] | None = None  # images at once; null: 1 to 8, on a GPU 1 to 64 of 512 x 512
    images: int = 16  # of the data set, to evaluate
    rounds: int = 50  # of each measurement, at most; at least 3 are made
    seconds: float | None = None  # after which a measurement ends; null: 30, or 2 if quick
    compile: bool = False  # also this project's net through torch.compile
    device: str = "auto"  # auto, cpu, cuda, mps
    precision: str = "auto"  # 32-true, bf16-mixed; auto: bf16-mixed where the device has it


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
    "predict": PredictConfig,
    "import_caffe": ImportCaffeConfig,
    "prepare_data": PrepareDataConfig,
    "export": ExportConfig,
    "ablate": AblateConfig,
    "benchmark": BenchmarkConfig,
    "explain": ExplainConfig,
    "report": ReportConfig,
}


@cache
def register() -> None:
    """Makes the schemas known to Hydra, as the first default of each root file in `configs/`."""
    store = ConfigStore.instance()
    for name, node in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=node)
