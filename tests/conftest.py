"""What many tests share: small networks and data sets, commands, and stops within a run."""

import os

# Before torch counts them: tests run one process per core, and so must what they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from rich.console import Console
from torch import nn

from fcn import cli
from fcn.checkpoint import write_safetensors
from fcn.config import BackboneConfig, DataConfig, ModelConfig, RecipeConfig, TrainConfig
from fcn.models.fcn import FCN
from fcn.processes import Processes
from tests.export_files import Sample, make_samples

Run = Callable[..., Any]  # runs a command: (name, *arguments)
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
QUIET = Console(quiet=True)
CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)
# Settings of a run of a few seconds on a CPU, as command-line arguments.
QUICK = ["backbone.width=4", "backbone.head_width=8", "recipe.crop=32", "recipe.batch_size=2"]
QUICK += ["trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.precision=32-true"]
QUICK += ["trainer.accelerator=cpu", "logger=none"]


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    if torch.are_deterministic_algorithms_enabled():  # a run or Lightning's Trainer has set it
        torch.use_deterministic_algorithms(False)  # imports much, so only if need be


@pytest.fixture(scope="session")
def voc_root() -> Path:
    """The folder that holds VOCdevkit, where real Pascal VOC is at hand."""
    if "FCN_VOC_ROOT" not in os.environ:
        pytest.skip("FCN_VOC_ROOT is unset: the folder that holds VOCdevkit/VOC2012")
    return Path(os.environ["FCN_VOC_ROOT"])


@pytest.fixture(scope="session")
def cases() -> Path:
    """The folder of small data sets as people and annotation tools leave them."""
    if "FCN_CASES_ROOT" not in os.environ:
        pytest.skip("FCN_CASES_ROOT is unset: the folder of the cases binary255, roboflow, ...")
    return Path(os.environ["FCN_CASES_ROOT"])


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Four images of train and two of val; each shows all classes and some ignored pixels."""
    return make_samples(tmp_path)


@pytest.fixture
def no_pictures(monkeypatch: Patch) -> None:
    """Leaves every plot and panel blank: drawing them takes most of the time of a small run."""
    blank = Image.new("RGB", (1, 1))
    monkeypatch.setattr("fcn.pictures.plots.render", lambda axes: blank)
    monkeypatch.setattr("fcn.pictures.visualize._grid", lambda *_: blank)


@pytest.fixture
def listening() -> Iterator[None]:
    """SIGINT acts as in a terminal: a shell's background jobs are started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def runner(monkeypatch: Patch) -> Run:
    def run(name: str, *arguments: str) -> Any:
        GlobalHydra.instance().clear()
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        return cli.run(name)

    return run


@pytest.fixture
def command(monkeypatch: Patch) -> Run:
    """Runs a command in this process: command("train", "key=value", ...) -> what main returned."""
    return runner(monkeypatch)


@pytest.fixture
def error_line(command: Run, capsys: Capture) -> Run:
    """Runs a command that must fail with exit code 1; returns its one line on stderr."""

    def run(name: str, *arguments: str) -> str:
        capsys.readouterr()  # of what came before
        with pytest.raises(SystemExit) as stopped:
            command(name, *arguments)
        assert stopped.value.code == 1
        error = capsys.readouterr().err
        assert error.startswith("error: "), error
        assert error.count("\n") == 1, error
        return error

    return run


class TinyVOC:
    """A data set in VOC layout that a test may damage: 4 training and 2 validation images."""

    classes: tuple[str, ...] = ("background", "cat", "dog")

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "tiny"
        for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (self.folder / part).mkdir(parents=True)
        rng = np.random.default_rng(0)
        self.ids = {"train": ["t0", "t1", "t2", "t3"], "val": ["v0", "v1"]}
        for split, ids in self.ids.items():
            self.listing(split).write_text("\n".join(ids) + "\n")
            for number, name in enumerate(ids):
                height, width = (48, 64) if number % 2 else (50, 40)
                mask = np.zeros((height, width), np.uint8)
                mask[10:30, 10:30] = 1 + number % 2
                mask[10, 10:30] = 255
                image = rng.integers(0, 60, (height, width, 3)) + 90 * mask[..., None].clip(0, 2)
                Image.fromarray(image.astype(np.uint8)).save(self.image(name), quality=95)
                Image.fromarray(mask).save(self.mask(name))

    def image(self, name: str) -> Path:
        return self.folder / "JPEGImages" / f"{name}.jpg"

    def mask(self, name: str) -> Path:
        return self.folder / "SegmentationClass" / f"{name}.png"

    def listing(self, split: str) -> Path:
        return self.folder / "ImageSets" / "Segmentation" / f"{split}.txt"

    def config(self) -> DataConfig:
        return DataConfig(
            name="tiny",
            root=str(self.root),
            folder="tiny",
            classes=list(self.classes),
            num_workers=0,
        )

    def renumber(self, order: list[int]) -> None:
        """Put the classes in another order, in the masks too: class order[k] becomes k."""
        new = np.full(256, 255, np.uint8)
        new[order] = np.arange(len(order))
        for mask in self.mask("v0").parent.iterdir():
            Image.fromarray(new[np.array(Image.open(mask))]).save(mask)
        self.classes = tuple(self.classes[k] for k in order)

    def overrides(self) -> list[str]:
        """The same as command-line arguments."""
        return [
            "data=voc2012",
            "data.name=tiny",
            f"data.root={self.root}",
            "data.folder=tiny",
            f"data.classes=[{','.join(self.classes)}]",
            "data.num_workers=0",
        ]

    def training(self, **recipe: Any) -> TrainConfig:
        """Settings of a run of 8 steps on a very small network; validates at steps 3, 6 and 8."""
        settings: dict[str, Any] = {
            "optimizer": "adamw",
            "lr": 1e-3,
            "batch_size": 2,
            "crop": 32,
        }
        return TrainConfig(
            data=self.config(),
            model=ModelConfig(),
            backbone=BackboneConfig(name="mini", width=4, head_width=8),
            recipe=RecipeConfig(**settings | recipe),
            logger={
                name: {"_target_": f"pytorch_lightning.loggers.{kind}", "name": None, "version": ""}
                for name, kind in {"tensorboard": "TensorBoardLogger", "csv": "CSVLogger"}.items()
            },
            trainer={
                "max_steps": 8,
                "val_check_interval": 3,
                "accelerator": "cpu",
                "precision": "32-true",
            },
        )


@pytest.fixture
def tiny_voc(tmp_path: Path) -> TinyVOC:
    return TinyVOC(tmp_path)


@pytest.fixture
def run_in(tiny_voc: TinyVOC, command: Run, monkeypatch: Patch) -> Run:
    """Runs a command in the folder of a tiny data set."""
    monkeypatch.chdir(tiny_voc.root)
    return command


class Within:
    """Calls something within batch `at` of training, or in a validation right after it."""

    def __init__(self, hook: str, at: int, do: Callable[[], object]) -> None:
        self.hook, self.at, self.do = hook, at, do

    def __enter__(self) -> None:
        from fcn.training.module import SegmentationModule  # as slow to import as torch

        self.module = SegmentationModule
        original = self.original = getattr(SegmentationModule, self.hook)

        def step(own: Any, *arguments: object) -> object:
            if own.trainer.fit_loop.total_batch_idx == self.at:
                do, self.do = self.do, lambda: None  # once
                do()
            return original(own, *arguments)

        setattr(SegmentationModule, self.hook, step)

    def __exit__(self, *_: object) -> None:
        setattr(self.module, self.hook, self.original)


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def crash() -> None:
    raise SystemError("crashed")


def small(**arguments: Any) -> FCN:
    """A very narrow network of five classes."""
    return FCN(**{"width": 4, "head_width": 8, "num_classes": 5} | arguments)


def with_random_scores(model: FCN) -> FCN:
    """The model with random score layers, which are zero at the start."""
    for name, parameter in model.named_parameters():
        if name.startswith("score"):
            nn.init.normal_(parameter)
    return model


def random_model(**arguments: Any) -> FCN:
    """A very narrow network in which every layer matters, and which predicts several classes."""
    model = small(**arguments).eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("score", "upscore")):
            parameter.data += 0.1 * torch.randn_like(parameter)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias, std=0.1)  # so that padding differs from a black image
    with torch.inference_mode():
        score = model(torch.rand(1, model.in_channels, 96, 96))
    model.score_fr.bias.data -= score.mean((0, 2, 3))
    return model


def write_random_model(
    path: Path, classes: Sequence[str] = TinyVOC.classes, **metadata: Any
) -> Path:
    """Write a random network on the smallest backbone, which knows these classes."""
    network = random_model(backbone="mini", num_classes=len(classes))
    write_safetensors(path, network, {"classes": list(classes)} | metadata)
    return path


def last(run: str | Path) -> dict[str, Any]:
    """What the newest checkpoint of a run holds."""
    return torch.load(Path(run) / "checkpoints" / "last.ckpt", weights_only=True)


def last_step(run: str | Path) -> int:
    return last(run)["global_step"]
