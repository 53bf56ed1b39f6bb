"""What are deconvolutional layers? `python scripts/explain.py [explain=TOPIC] [key=value ...]`."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fcn.app import quoted, run
from fcn.checks.scripts import OF_A_NET, TOPICS, check_explanation
from fcn.config import REPOSITORY, ConfigError, ExplainConfig, UserError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from fcn.data.files import SegmentationFiles
    from fcn.explain.story import Section


def main(cfg: ExplainConfig) -> None:
    check_explanation(cfg)

    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from fcn.explain import arithmetic, checkerboards, deconvnet, interpolation, network, story
    from fcn.inference import checkpoint
    from fcn.models.upsampling import LearnedUpsampling

    folder, console = Path(HydraConfig.get().runtime.output_dir), Console(markup=False)
    chosen = TOPICS if cfg.explain == "all" else (cfg.explain,)
    tell: dict[str, Callable[[], Section]] = {
        "matrix": arithmetic.matrix,
        "arithmetic": arithmetic.arithmetic,
        "operators": arithmetic.operators,
        "bilinear": interpolation.bilinear,
        "repeat": checkerboards.repeat,
        "checkerboards": checkerboards.checkerboards,
    }
    if cfg.checkpoint or set(chosen) & OF_A_NET:
        files = open_files(cfg, console)  # before a net is trained: it may not be there
        trained = checkpoint.read(cfg.checkpoint or train(cfg, folder / "run", console))
        trained.check_classes(files.classes, cfg.data.name)
        model = trained.model()
        image, target = picture(files, cfg.image)
        of_net = (model, image, target, trained.classes)
        final = model.upscore_final
        if isinstance(final, LearnedUpsampling):
            kernel = final.diagonal()[-1].detach().double().numpy()
            tell["checkerboards"] = lambda: checkerboards.checkerboards(kernel)
        tell["network"] = lambda: network.network(*of_net)
        tell["learning"] = lambda: network.learning(*of_net)
        tell["deconvnet"] = lambda: deconvnet.deconvnet(model, image)
    sections = []
    for topic in chosen:
        with console.status(topic):
            sections.append(tell[topic]())
        done = sections[-1]
        console.print(f"{done.number}. {done.title}: {done.claims} claims hold", highlight=False)
    path = story.write(sections, folder)
    pictures = sum(len(section.pictures) for section in sections)
    console.print(f"{pictures} pictures and {path}", highlight=False, soft_wrap=True)


def train(cfg: ExplainConfig, folder: Path, console: "Console") -> Path:
    """A short run on the embedded sample with learned upsampling, for the topics about a net."""
    console.print(f"training a net with upsampling=learned for {cfg.steps} steps ...")
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), "upsampling=learned"]
    command += [
        f"recipe.max_steps={cfg.steps}",
        f"recipe.val_every={cfg.steps}",
        f"seed={cfg.seed}",
    ]
    command.append(f"data.root={quoted(Path(cfg.data.root).resolve())}")
    command.append(f"hydra.run.dir={quoted(folder.resolve())}")
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UserError(f"training failed; the error stands above; what it left is in {folder}")
    return folder / "checkpoints" / "best.ckpt"


def open_files(cfg: ExplainConfig, console: "Console") -> "SegmentationFiles":
    """The split to look at. Raises: ConfigError: `cfg.image` is not in it."""
    from fcn.data.datamodule import open_split
    from fcn.data.official import fetch

    if cfg.data.download:
        fetch(cfg.data, console)
    files = open_split(cfg.data, cfg.data.split or cfg.data.val_split)
    if cfg.image is not None and cfg.image not in files.ids:
        raise ConfigError(
            f"image={cfg.image}: no such id in {files.name}, which has {files.ids[0]}; an id with "
            "an underscore wants quotes: \"image='A_1'\""
        )
    return files


def picture(files: "SegmentationFiles", image: str | None) -> tuple["Tensor", "Tensor"]:
    """An image of the split by its id, or one of the first that shows most classes."""
    if image is not None:
        return files[files.ids.index(image)]
    return max((files[i] for i in range(min(30, len(files)))), key=lambda it: len(it[1].unique()))


if __name__ == "__main__":
    run("explain", main)
