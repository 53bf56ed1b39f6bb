import os

# Before torch counts them: tests run a process a core, and so must what they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from fcn.config import REPOSITORY, DataConfig


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def voc_root() -> Path:
    """The folder that holds VOCdevkit, where real Pascal VOC is at hand."""
    if "FCN_VOC_ROOT" not in os.environ:
        pytest.skip("FCN_VOC_ROOT is unset: the folder that holds VOCdevkit/VOC2012")
    return Path(os.environ["FCN_VOC_ROOT"])


def refusal(capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> str:
    """The one line on stderr of a command that must fail, run in this process."""
    GlobalHydra.instance().clear()
    argv, sys.argv = sys.argv, [f"{name}.py", *arguments]
    try:
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(REPOSITORY / "scripts" / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = argv
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: "), error
    assert error.count("\n") == 1, error
    return error


class TinyVOC:
    """A data set in VOC layout that a test may damage: 4 training and 2 validation images."""

    classes = ("background", "cat", "dog")

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

    def overrides(self) -> list[str]:
        """The same as command-line arguments of a script."""
        return [
            "data=voc2012",
            "data.name=tiny",
            f"data.root={self.root}",
            "data.folder=tiny",
            f"data.classes=[{','.join(self.classes)}]",
            "data.num_workers=0",
        ]


@pytest.fixture
def tiny_voc(tmp_path: Path) -> TinyVOC:
    return TinyVOC(tmp_path)
