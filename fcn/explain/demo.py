"""The network that the topics about networks look at: a given one, or a small one trained for them.

`scripts/explain.py` passes its settings to the topics in a JSON file, whose path stands in the
environment variable FCN_EXPLAIN: a class name or a path is data there and never becomes code.
Without it, as when a topic runs by itself, the settings have their defaults.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.console import Console
from torch import Tensor

from fcn import checkpoint
from fcn.config import DataConfig, ExplainConfig, check, quoted
from fcn.data import shapes
from fcn.data.check import print_notes
from fcn.data.dataset import SegmentationDataset
from fcn.data.description import INPUT_DEFAULTS
from fcn.data.download import fetch
from fcn.data.layouts import open_split
from fcn.dataset_info import DatasetInfo
from fcn.errors import ConfigError, UserError
from fcn.models.fcn import FCN
from fcn.output import make_console, write_json
from fcn.pictures.visualize import palette_image
from fcn.training import record

SETTINGS = "FCN_EXPLAIN"  # in the environment
FOLDER = Path("outputs/explain/demo")  # of a topic that runs by itself
DRAWN = "enlarged_sample"  # in the run's folder, which may have a folder `data` of the user's
# Enlarged: the sample's objects are about 32 pixels, the stride of FCN-32s, too small to learn.
ZOOM = 2
COUNTS = {"train": 240, "val": 24}  # images
MEASURED = 24  # images on which networks are compared, at most


@dataclass(frozen=True)
class Subject:
    """A trained network, an image, and what belongs to them."""

    model: FCN  # in evaluation mode
    info: DatasetInfo  # of its data: classes, colours
    image: Tensor  # uint8 (1, C, H, W)
    target: Tensor  # uint8 (H, W), 255 = ignored
    stages: list[FCN]  # networks to compare, coarse to fine, the last one `model`
    data: SegmentationDataset  # that the image is of

    @property
    def classes(self) -> list[str]:
        return self.info.classes


def load() -> Subject:
    """Load the networks and the image of FCN_EXPLAIN; without it, train and load small ones.

    Raises:
        UserError: a network, the data or the image cannot be used.
    """
    if path := os.environ.get(SETTINGS):
        cfg = check(json.loads(Path(path).read_text(encoding="utf-8")), ExplainConfig)
    else:
        cfg = ExplainConfig(data=DataConfig(name="shapes", layout="shapes"))
        cfg = with_networks(cfg, FOLDER, make_console())
    return subject(cfg)


def with_networks(cfg: ExplainConfig, folder: Path, console: Console) -> ExplainConfig:
    """Train small networks in `folder` unless there is a checkpoint; return settings with them."""
    if cfg.data.download:
        fetch(cfg.data, console)
    if cfg.checkpoint:
        return cfg
    data = DataConfig(name="demo", layout="folder", root=str((folder / DRAWN).resolve()))
    fcn32s, fcn16s, fcn8s = (folder / "train" / f"fcn{stride}s" for stride in (32, 16, 8))
    if (fcn32s / record.RECORD).is_file():
        kept = record.read(fcn32s)["config"]
        if (kept["seed"], kept["trainer"]["max_steps"]) != (cfg.seed, cfg.steps):
            raise ConfigError(
                f"{folder / 'train'} holds networks of other steps or another seed; choose another "
                "hydra.run.dir"
            )
    if not (folder / DRAWN / "dataset.yaml").is_file():  # which is written last
        draw(folder / DRAWN)
    if not (fcn8s / "model.safetensors").is_file():
        train(cfg, data, folder / "train", console)
    return ExplainConfig(
        explain=cfg.explain,
        checkpoint=str(fcn8s),
        fcn32s=str(fcn32s),
        fcn16s=str(fcn16s),
        image=cfg.image,
        notebooks=cfg.notebooks,
        data=data,
    )


def draw(root: Path) -> None:
    """Write the sample's first images and masks, enlarged, as data=folder reads them."""
    for split, count in COUNTS.items():
        images, masks = root / "images" / split, root / "annotations" / split
        for part in (images, masks):
            part.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, mask = shapes.draw(split, index)
            size = (ZOOM * mask.shape[1], ZOOM * mask.shape[0])
            large = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
            large.save(images / f"{index:04d}.jpg", quality=shapes.JPEG_QUALITY)
            palette_image(mask).resize(size).save(masks / f"{index:04d}.png")
    write_json(root / "dataset.yaml", {"classes": shapes.CLASSES})  # JSON is YAML


def train(cfg: ExplainConfig, data: DataConfig, folder: Path, console: Console) -> None:
    """Train FCN-32s with fixed upsampling, then 16s from it and 8s from that with learned.

    What an interrupted call has finished is kept, and the run that it left unfinished is resumed.
    """
    before: Path | None = None
    settings = [
        "data=folder",
        f"data.name={data.name}",
        f"data.root={quoted(data.root)}",
        f"seed={cfg.seed}",
        "loss=dice",  # few pixels belong to objects
        "model.dropout=0",
        "recipe.batch_size=8",
        "recipe.crop=192",
        "logger=none",
    ]
    short = cfg.steps // 5
    stages = ((32, "fixed", cfg.steps), (16, "learned", short), (8, "learned", short))
    for stride, upsampling, steps in stages:
        own = (folder / f"fcn{stride}s").resolve()
        stage = [
            f"model=fcn{stride}s",
            f"upsampling={upsampling}",
            f"model.init_from={quoted(before) if before else 'null'}",
            f"trainer.max_steps={steps}",
            f"trainer.val_check_interval={steps}",
            f"hydra.run.dir={quoted(own)}",
            "resume=auto",
        ]
        before = own
        if (own / "model.safetensors").is_file():
            continue
        console.print(f"Training FCN-{stride}s for {steps} steps in {folder / own.name}:")
        command = [sys.executable, "-m", "fcn.cli", "train", *settings, *stage]
        if subprocess.run(command, check=False).returncode:
            raise UserError("training failed, see above; or give a trained model: checkpoint=RUN")


def subject(cfg: ExplainConfig, console: Console | None = None) -> Subject:
    """Read the networks and the image.

    Args:
        cfg: its checkpoint is given.
        console: for notes on the data; None: print none.
    """
    paths = [path for path in (cfg.checkpoint, cfg.fcn32s, cfg.fcn16s) if path]
    trained = [checkpoint.read(path) for path in paths]
    split = cfg.data.split or cfg.data.val_split
    dataset = open_split(cfg.data, split, known=trained[0].info)
    if console:
        print_notes([dataset], console)
    for network in trained:
        network.labels_in(dataset.classes, cfg.data.name)  # raises an error if one is missing
        for key in INPUT_DEFAULTS:  # both are shown one image
            theirs, own = getattr(network.info, key), getattr(trained[0].info, key)
            if theirs != own and not getattr(cfg.data, key):
                raise ConfigError(
                    f"{network.path} was trained with {key}={theirs}, but checkpoint="
                    f"{trained[0].path} with {own}; choose networks that take the same, or set "
                    f"data.{key} for both"
                )
    model, *others = (net.model(dataset.classes).requires_grad_(False) for net in trained)
    image, target = choose(dataset, cfg.image)
    stages = sorted(others, key=lambda net: -net.stride)
    return Subject(model, dataset.info, image[None], target, [*stages, model], dataset)


def choose(dataset: SegmentationDataset, image: str | None) -> tuple[Tensor, Tensor]:
    """Return an image by its id, or the one of the first 30 that shows most classes."""
    if image is None:
        first = (dataset[i] for i in range(min(30, len(dataset))))
        return max(first, key=lambda pair: len(pair[1].unique()))
    if image not in dataset.ids:
        raise ConfigError(
            f"image={image}: no such id in {dataset.name}, which has {dataset.ids[0]}; put an id "
            "with an underscore in quotes: \"image='A_1'\""
        )
    return dataset[dataset.ids.index(image)]
