"""The command `explain`: nine topics on one page, with every claim checked on the spot."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from torch import Tensor

from fcn import checkpoint
from fcn.config import ExplainConfig, quoted
from fcn.data.check import print_notes
from fcn.data.dataset import SegmentationDataset
from fcn.data.download import fetch
from fcn.data.layouts import NETWORK, open_split
from fcn.errors import ConfigError, UserError
from fcn.explain import net, topics
from fcn.explain.net import Subject
from fcn.explain.section import IMPORTS, TOPICS, Section
from fcn.output import atomic_write, progress
from fcn.pictures.page import page, templates

ABOUT_NETWORK = {"network": net.network, "learning": net.learning, "deconvnet": net.deconvnet}


def main(cfg: ExplainConfig, folder: Path, console: Console) -> None:
    """Write explain.html and explorer.html to `folder`."""
    chosen = list(TOPICS) if cfg.explain == "all" else [cfg.explain]
    subject = _subject(cfg, folder, console) if ABOUT_NETWORK.keys() & set(chosen) else None
    sections = []
    with progress(console) as bar:
        for key in bar.track(chosen, description="topics"):
            section = explain(key, subject)
            console.print(f"{section.number}. {section.title}")
            sections.append(section)
    claims = sum(section.claims for section in sections)
    console.print(f"{claims} claims checked: {write(sections, folder)}")


def explain(key: str, subject: Subject | None = None) -> Section:
    """Return a topic; one about a network needs a subject."""
    section = Section(key)
    if key in ABOUT_NETWORK:
        assert subject is not None
        ABOUT_NETWORK[key](section, subject)
    else:
        getattr(topics, key)(section)
    return section


def write(sections: Sequence[Section], folder: Path) -> Path:
    """Write explain.html and explorer.html; return the path of the first."""
    shutil.copyfile(Path(__file__).with_name("explorer.html"), folder / "explorer.html")
    path = folder / "explain.html"
    body = templates().get_template("explain/story.html").render(sections=sections, imports=IMPORTS)
    with atomic_write(path) as temporary:
        temporary.write_text(page("What are deconvolutional layers?", body), encoding="utf-8")
    return path


def _subject(cfg: ExplainConfig, folder: Path, console: Console) -> Subject:
    """Return the networks, trained for a moment unless they are given, and the image."""
    if cfg.data.download:
        fetch(cfg.data, console)
    paths: list[str | Path | None] = [cfg.checkpoint, cfg.fcn32s]
    if not cfg.checkpoint:
        paths[0] = _train(cfg, "fcn8s", "learned", folder / "train", console)
        if not cfg.fcn32s and cfg.explain in ("all", "network"):
            paths[1] = _train(cfg, "fcn32s", "fixed", folder / "fcn32s", console)
    trained = [checkpoint.read(path) for path in paths if path]
    split = cfg.data.split or cfg.data.val_split
    dataset = open_split(cfg.data, split, known=trained[0].info)
    print_notes([dataset], console)
    for network in trained:
        network.labels_in(dataset.classes, cfg.data.name)  # raises an error if one is missing
        for key in NETWORK:  # both are shown one image
            theirs, own = getattr(network.info, key), getattr(trained[0].info, key)
            if theirs != own and not getattr(cfg.data, key):
                raise ConfigError(
                    f"fcn32s={network.path} was trained with {key}={theirs}, but checkpoint="
                    f"{trained[0].path} with {own}; choose networks that take the same, or set "
                    f"data.{key} for both"
                )
    models = [network.model(dataset.classes) for network in trained]
    image, target = _choose(dataset, cfg.image)
    return Subject(models[0], dataset.info, image, target, *models[1:])


def _choose(dataset: SegmentationDataset, image: str | None) -> tuple[Tensor, Tensor]:
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


def _train(cfg: ExplainConfig, model: str, upsampling: str, folder: Path, console: Console) -> Path:
    """Train a network on the embedded sample; return its folder."""
    console.print(f"Training {model}, upsampling={upsampling}, for {cfg.steps} steps in {folder}:")
    settings = [
        f"seed={cfg.seed}",
        f"model={model}",
        f"upsampling={upsampling}",
        "logger=none",
        f"trainer.max_steps={cfg.steps}",
        f"trainer.val_check_interval={cfg.steps}",
        f"data.root={quoted(Path(cfg.data.root).resolve())}",
        f"hydra.run.dir={quoted(folder.resolve())}",
    ]
    command = [sys.executable, "-m", "fcn.cli", "train", *settings]
    if subprocess.run(command, check=False).returncode:
        raise UserError("the training failed, see above; or give a trained model: checkpoint=RUN")
    return folder
