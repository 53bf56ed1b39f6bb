"""Several processes give the numbers of one, and share their fate.

A process that outlived its run would keep its end of the pipes that `subprocess.run` reads, and
run into the time limit.
"""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from fcn.config import REPOSITORY, ConfigError, DataConfig
from fcn.data.datamodule import SameSizeBatches, TrainingBatches, open_split
from fcn.inference import checkpoint
from fcn.models.fcn import FCN
from fcn.training.ranks import check_world
from tests.conftest import TinyVOC
from tests.test_scripts import QUICK

TRAIN = str(REPOSITORY / "scripts" / "train.py")
FAULTY = str(REPOSITORY / "tests" / "faulty_train.py")
TORCHRUN = ["-m", "torch.distributed.run"]
DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "hydra.run.dir=run"]
DAMAGED = "error: x.jpg: it is damaged; mend it"
LIMIT = 180  # seconds; a run that fails takes some 10 where nothing else runs


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize(("images", "batch"), [(1, 1), (2, 3), (7, 2), (31, 4), (30, 5)])
def test_ranks_take_turns_over_the_batches_of_one(world: int, images: int, batch: int) -> None:
    """So every pass visits every image once, however the sizes divide."""
    passes = 3
    steps = -(-passes * images // (batch * world))
    one = list(TrainingBatches(images, batch, steps * world, 7))
    ranks = [list(TrainingBatches(images, batch, steps, 7, rank, world)) for rank in range(world)]
    assert [b for step in zip(*ranks, strict=True) for b in step] == one
    drawn = [sample for b in one for sample in b]
    for start in range(0, passes * images, images):
        assert sorted(index for index, _ in drawn[start : start + images]) == list(range(images))
    assert len({seed for _, seed in drawn}) == len(drawn)
    orders = {tuple(i for i, _ in drawn[k * images : (k + 1) * images]) for k in range(passes)}
    assert len(orders) == passes or images < 7


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("images", [1, 2, 7])
def test_evaluation_sees_every_image_once_in_batches_of_one_size(
    world: int, batch: int, images: int
) -> None:
    sizes = [(5, 4), (3, 3), (5, 4), (5, 4), (3, 3), (9, 1), (5, 4)][:images]
    ranks = [SameSizeBatches(sizes, batch, rank, world) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1  # or a collective call would wait for ever
    for rank in ranks:
        for indices in rank:
            assert len(indices) <= batch
            assert len({sizes[i if i >= 0 else ~i] for i in indices}) == 1
    counted = Counter(i for rank in ranks for indices in rank for i in indices if i >= 0)
    assert counted == dict.fromkeys(range(images), 1)
    judged = [[i for i in indices if i >= 0] for rank in ranks for indices in rank]
    one = SameSizeBatches(sizes, batch)  # the same images in a batch: the same sums, bit by bit
    assert sorted(filter(None, judged)) == sorted(one)


def python(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT if "FAULT" in environment else None,
    )


def errors(run: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in run.stderr.splitlines() if line.startswith("error: ")]


def confusion(folder: Path, data: DataConfig, devices: int) -> list[list[int]]:
    """Of validating a random net in so many processes, which all must know it."""
    torch.manual_seed(1)
    model = FCN(stride=8, num_classes=len(data.classes), backbone="mini", width=4, head_width=8)
    for name, parameter in model.named_parameters():
        if name.startswith("score"):
            torch.nn.init.normal_(parameter)  # they start at zero: background everywhere
    image, _ = open_split(data, data.val_split)[0]
    for _ in range(50):  # of batch norm's averages, or all places would look alike
        model.train()(image[None] / 255)
    checkpoint.write_safetensors(folder / "net.safetensors", model, {"classes": data.classes})
    results = folder / f"devices{devices}"
    results.mkdir()
    settings = {
        "checkpoint": str(folder / "net.safetensors"),
        "data": asdict(data),
        "devices": devices,
        "folder": str(results),
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    program = str(REPOSITORY / "tests" / "validate_in_ranks.py")
    done = python(program, "settings.json", folder=folder)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in results.iterdir()} == {f"{rank}.json" for rank in range(devices)}
    found = [json.loads(path.read_text()) for path in results.iterdir()]
    assert all(matrix == found[0] for matrix in found)
    return found[0]


def test_two_processes_count_the_pixels_of_one(tiny_voc: TinyVOC) -> None:
    """Of five images of two sizes, which two processes cannot share evenly."""
    tiny_voc.listing("train").write_text("t0\n")
    tiny_voc.listing("val").write_text("v0\nv1\nt1\nt2\nt3\n")
    one, two = (confusion(tiny_voc.root, tiny_voc.config(), devices) for devices in (1, 2))
    assert one == two
    counted = torch.tensor(one)
    assert counted.sum() == 2 * (50 * 40 - 20) + 3 * (48 * 64 - 20)  # all but void
    assert (counted.sum(0) > 0).sum() > 1


@pytest.mark.slow
def test_one_two_and_three_processes_count_the_same_on_real_images(
    voc_root: Path, tmp_path: Path
) -> None:
    classes = [str(number) for number in range(21)]
    data = DataConfig("voc", root=str(voc_root), folder="VOCdevkit/VOC2012", classes=classes)
    one, two, three = (confusion(tmp_path, data, devices) for devices in (1, 2, 3))
    assert one == two == three
    assert (torch.tensor(one).sum(0) > 0).sum() > 1


def test_two_processes_train_and_validate_as_one(tiny_voc: TinyVOC) -> None:
    """Over gloo, with three validation images, which two processes cannot share evenly."""
    tiny_voc.listing("train").write_text("t0\nt1\nt2\n")
    tiny_voc.listing("val").write_text("v0\nv1\nt3\n")
    run = python(TRAIN, *tiny_voc.overrides(), *QUICK, *DDP, folder=tiny_voc.root)
    check_run(run, tiny_voc.root / "run", images=3)
    assert run.stderr == ""


def check_run(run: subprocess.CompletedProcess[str], folder: Path, images: int) -> None:
    assert run.returncode == 0, run.stderr
    shown = re.search(r"val mean IoU ([\d.]+)", run.stdout)
    assert shown
    metrics = json.loads((folder / "metrics.json").read_text())
    # The line is of both processes together, the file of the first alone on all images.
    assert metrics["mean_iou"] == pytest.approx(float(shown.group(1)), abs=6e-5)
    assert metrics["protocol"]["images"] == images


@pytest.mark.slow
def test_torchrun_trains_in_one_folder(tiny_voc: TinyVOC) -> None:
    two = [*TORCHRUN, "--nproc_per_node=2", TRAIN, *tiny_voc.overrides(), *QUICK, *DDP[:-1]]
    run = python(*two, folder=tiny_voc.root)
    (folder,) = (tiny_voc.root / "outputs" / "train").iterdir()
    check_run(run, folder, images=2)
    assert {path.name for path in tiny_voc.root.iterdir()} == {"tiny", "outputs"}
    stages = ["stages=[fcn32s,fcn16s]", "hydra.run.dir=run"]
    assert python(*two, *stages, folder=tiny_voc.root).returncode == 0
    assert (tiny_voc.root / "run" / "stages.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "0,1,error", "1,1,kill"])
def test_two_machines_train_together(tiny_voc: TinyVOC, fault: str) -> None:
    """Both of them this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    two = [*tiny_voc.overrides(), *QUICK, *DDP, "trainer.devices=1", "trainer.num_nodes=2"]

    def agent(node: int) -> subprocess.CompletedProcess[str]:
        where = [f"--node_rank={node}", "--master_addr=127.0.0.1", f"--master_port={port}"]
        command = [*TORCHRUN, "--nnodes=2", "--nproc_per_node=1", *where]
        if fault:
            return python(*command, FAULTY, *two, folder=tiny_voc.root, FAULT=fault)
        return python(*command, TRAIN, *two, folder=tiny_voc.root)

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(agent, (0, 1)))
    if not fault:
        check_run(runs[0], tiny_voc.root / "run", images=2)
        assert runs[1].returncode == 0
        return
    assert all(run.returncode == 1 for run in runs)
    rank, _, how = fault.split(",")
    own, other = runs[int(rank)], runs[1 - int(rank)]
    if how == "error":
        assert errors(own) == [DAMAGED]
    else:
        assert "Signal 9 (SIGKILL)" in own.stderr
    (error,) = errors(other)
    assert "another process of the run is gone" in error


@pytest.mark.parametrize(
    "failing", [pytest.param("0", marks=pytest.mark.slow), "1"], ids=["first", "second"]
)
def test_under_torchrun_the_one_that_fails_says_why(tiny_voc: TinyVOC, failing: str) -> None:
    command = [*TORCHRUN, "--nproc_per_node=2", FAULTY, *tiny_voc.overrides(), *QUICK, *DDP]
    run = python(*command, folder=tiny_voc.root, FAULT=f"{failing},1,error")
    assert run.returncode == 1
    assert errors(run) == [DAMAGED]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["0,1,error", "1,1,error", "0,1,kill", "1,1,kill"])
def test_under_lightning_s_launcher_one_that_fails_ends_the_run(
    tiny_voc: TinyVOC, fault: str
) -> None:
    run = python(FAULTY, *tiny_voc.overrides(), *QUICK, *DDP, folder=tiny_voc.root, FAULT=fault)
    if fault == "0,1,kill":  # what started it sees that; nobody else speaks
        assert run.returncode == -9
        assert run.stderr == ""
        return
    assert run.returncode in (1, -9)  # Lightning's watch may come first, and kill the first one
    if fault == "1,1,kill":
        assert re.search(
            r"process 1 of the run \(pid \d+\) was ended by SIGKILL|code -9", run.stderr
        )
        assert len(errors(run)) <= 1
    else:
        assert errors(run) == [DAMAGED]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["error", "kill"])
def test_those_whose_first_process_fails_do_not_wait_for_it(tiny_voc: TinyVOC, how: str) -> None:
    """It fails before they meet; they would wait for half an hour."""
    command = [FAULTY, *tiny_voc.overrides(), *QUICK, *DDP]
    run = python(*command, folder=tiny_voc.root, FAULT=f"0,start,{how}")
    assert run.returncode == (1 if how == "error" else -9)
    assert errors(run) == ([DAMAGED] if how == "error" else [])


@pytest.mark.slow
def test_what_is_known_at_the_start_is_said_once(tiny_voc: TinyVOC) -> None:
    two = [*TORCHRUN, "--nproc_per_node=2", TRAIN, *tiny_voc.overrides(), *QUICK]
    for argument, words in (
        ("recipe.lrr=1", "unknown key recipe.lrr"),
        ("seed=-1", "seed must be at least 0"),
        ("seed=0", "2 processes were started, but trainer.devices x trainer.num_nodes is 1"),
    ):
        run = python(*two, argument, folder=tiny_voc.root)
        assert run.returncode == 1
        (error,) = errors(run)
        assert words in error
        assert not list(tiny_voc.root.glob("outputs/**/*.ckpt"))


def test_processes_that_would_not_train_together_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, barebones=True
    )
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    check_world(trainer)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes were started, but .* is 1"):
        check_world(trainer)


def test_only_the_first_process_makes_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    leaving_nothing = runpy.run_path(TRAIN)["leaving_nothing"]
    for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(key, raising=False)
    assert leaving_nothing(["seed=1"]) == ["seed=1"]
    monkeypatch.setenv("RANK", "3")
    none = "hydra.output_subdir=null"
    assert leaving_nothing(["seed=1"]) == ["seed=1", none, "hydra.run.dir=."]
    assert leaving_nothing(["hydra.run.dir=a"]) == ["hydra.run.dir=a", none]
    assert leaving_nothing([none]) == [none]  # of Lightning's launcher
    with pytest.raises(ConfigError, match=r"hydra.run.dir="):
        leaving_nothing(["stages=[fcn32s,fcn16s]"])
