"""Several processes of a run give the numbers of one."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from fcn.checkpoint import write_safetensors
from fcn.config import REPOSITORY, DataConfig
from fcn.data.layouts import VOC_CLASSES, open_split
from fcn.models.fcn import FCN
from tests.conftest import QUICK, Patch, Run, TinyVOC, with_random_scores

TRAIN = str(REPOSITORY / "scripts" / "train.py")
DDP = [*QUICK, "trainer=ddp", "trainer.devices=2"]

VALIDATE = """
import json, sys
from pathlib import Path
import pytorch_lightning as pl
import torch
from fcn.checkpoint import load
from fcn.config import DataConfig, LossConfig, RecipeConfig
from fcn.data.layouts import open_split
from fcn.data.loaders import SegmentationData
from fcn.training.loss import make_loss
from fcn.training.module import SegmentationModule
from fcn.training.run import hide_hints

class Validation(SegmentationModule):
    def on_validation_epoch_end(self):
        confusion = self.confusion.compute().tolist()
        Path(f"{self.global_rank}.json").write_text(json.dumps(confusion))
        super().on_validation_epoch_end()

if __name__ == "__main__":
    hide_hints()
    devices, data = int(sys.argv[1]), DataConfig(**json.loads(sys.argv[2]))
    recipe = RecipeConfig(batch_size=4)  # validates two at a time
    trainer = pl.Trainer(accelerator="cpu", devices=devices,
        strategy="ddp" if devices > 1 else "auto", use_distributed_sampler=False, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    loss = make_loss(LossConfig(), "mean")
    module = Validation(load("model.safetensors"), recipe, loss, 0, {})
    splits = open_split(data, data.train_split), open_split(data, data.val_split)
    both = SegmentationData(*splits, recipe, 0, data.num_workers)
    trainer.validate(module, datamodule=both, verbose=False)
    if devices > 1:
        torch.distributed.destroy_process_group()
"""


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def confusion(folder: Path, data: DataConfig, devices: int) -> list[list[int]]:
    """Validates the model in `folder` in so many processes; all must find the same."""
    own = folder / f"devices{devices}"
    own.mkdir()
    (own / "model.safetensors").symlink_to(folder / "model.safetensors")
    (own / "validate.py").write_text(VALIDATE)
    done = python("validate.py", str(devices), json.dumps(asdict(data)), folder=own)
    assert done.returncode == 0, done.stderr
    found = [json.loads((own / f"{rank}.json").read_text()) for rank in range(devices)]
    assert all(matrix == found[0] for matrix in found)
    return found[0]


def write_random_model(folder: Path, data: DataConfig) -> None:
    model = FCN(num_classes=len(data.classes), backbone="mini", width=4, head_width=8)
    with_random_scores(model)
    image, _ = open_split(data, data.val_split)[0]
    for _ in range(50):  # batch norm's averages, or all places would look alike
        model.train()(image[None])
    write_safetensors(folder / "model.safetensors", model, {"classes": data.classes})


def test_two_processes_count_the_pixels_of_one(tiny_voc: TinyVOC) -> None:
    """Of five images of two sizes, which two processes cannot share evenly."""
    tiny_voc.listing("train").write_text("t0\n")
    tiny_voc.listing("val").write_text("v0\nv1\nt1\nt2\nt3\n")
    data = tiny_voc.config()
    write_random_model(tiny_voc.root, data)
    one, two = (confusion(tiny_voc.root, data, devices) for devices in (1, 2))
    assert one == two
    counted = torch.tensor(one)
    assert counted.sum() == 2 * (50 * 40 - 20) + 3 * (48 * 64 - 20)  # all but ignored pixels
    assert (counted.sum(0) > 0).sum() > 1


@pytest.mark.slow
def test_one_two_and_three_processes_count_the_same_on_real_images(
    voc_root: Path, tmp_path: Path
) -> None:
    data = DataConfig("voc", root=str(voc_root), folder="VOCdevkit/VOC2012", classes=VOC_CLASSES)
    write_random_model(tmp_path, data)
    one, two, three = (confusion(tmp_path, data, devices) for devices in (1, 2, 3))
    assert one == two == three
    assert (torch.tensor(one).sum(0) > 0).sum() > 1


@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_commands_share_their_images_over_processes(
    tiny_voc: TinyVOC, command: Run, monkeypatch: Patch, devices: int
) -> None:
    """evaluate.py: the same files as from one process. predict.py: each image once."""
    root, data = tiny_voc.root, tiny_voc.config()
    tiny_voc.listing("train").write_text("t0\n")
    tiny_voc.listing("val").write_text("v0\nv1\nt1\nt2\nt3\n")
    write_random_model(root, data)
    several = f"trainer.devices={devices}"
    evaluate = [*tiny_voc.overrides(), "checkpoint=model.safetensors", "trainer.accelerator=cpu"]
    monkeypatch.chdir(root)
    command("evaluate", *evaluate, "hydra.run.dir=one")
    script = str(REPOSITORY / "scripts" / "evaluate.py")
    done = python(script, *evaluate, several, "hydra.run.dir=all", folder=root)
    assert done.returncode == 0, done.stderr
    one, all_ = (json.loads((root / name / "metrics.json").read_text()) for name in ("one", "all"))
    assert one == all_
    arrays = [np.load(root / name / "per_image.npz")["per_image"] for name in ("one", "all")]
    assert np.array_equal(*arrays)

    predict = ["checkpoint=model.safetensors", "input=tiny/JPEGImages", "output=masks", several]
    run = [str(REPOSITORY / "scripts" / "predict.py"), *predict, "trainer.accelerator=cpu"]
    done = python(*run, folder=root)
    assert done.returncode == 0, done.stderr
    assert "6 images predicted" in done.stdout
    assert len(list((root / "masks").glob("*.png"))) == 6
    table = root / "masks" / "areas.csv"
    command("predict", *predict[:2], "output=one-by-one", "trainer.accelerator=cpu")
    assert table.read_text() == (root / "one-by-one" / "areas.csv").read_text()
    table.unlink()
    again = python(*run, "annotations=coco", folder=root)
    assert "0 images predicted, 6 were done before" in again.stdout
    assert table.read_text() == (root / "one-by-one" / "areas.csv").read_text()
    assert (root / "masks" / "annotations" / "coco.json").is_file()


def check_run(run: subprocess.CompletedProcess[str], folder: Path, images: int) -> None:
    assert run.returncode == 0, run.stderr
    shown = re.search(r"val mean IoU ([\d.]+) %", run.stdout)
    assert shown
    metrics = json.loads((folder / "metrics.json").read_text())
    # The line is of both processes together, the file of the first alone on all images.
    assert 100 * metrics["mean_iou"] == pytest.approx(float(shown[1]), abs=6e-3)
    assert metrics["protocol"]["images"] == images


def test_two_processes_train_and_validate_as_one(tiny_voc: TinyVOC) -> None:
    """With three validation images, which two processes cannot share evenly."""
    tiny_voc.listing("train").write_text("t0\nt1\nt2\n")
    tiny_voc.listing("val").write_text("v0\nv1\nt3\n")
    command = [TRAIN, *tiny_voc.overrides(), *DDP, "hydra.run.dir=run"]
    run = python(*command, folder=tiny_voc.root)
    check_run(run, tiny_voc.root / "run", images=3)


@pytest.mark.slow
def test_torchrun_trains_in_one_folder(tiny_voc: TinyVOC) -> None:
    two = ["-m", "torch.distributed.run", "--nproc_per_node=2", TRAIN]
    run = python(*two, *tiny_voc.overrides(), *DDP, folder=tiny_voc.root)
    (folder,) = (tiny_voc.root / "outputs" / "train").iterdir()
    check_run(run, folder, images=2)
    assert {path.name for path in tiny_voc.root.iterdir()} == {"tiny", "outputs"}
