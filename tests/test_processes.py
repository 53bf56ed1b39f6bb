"""Several processes of a command give the numbers of one, and end together, whatever happens."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fcn.config import REPOSITORY
from tests.conftest import QUICK, Patch, Run, TinyVOC, last_step, write_random_model

TRAIN, EVALUATE, PREDICT = (
    str(REPOSITORY / "scripts" / f"{name}.py") for name in ("train", "evaluate", "predict")
)
DDP = [*QUICK, "trainer=ddp"]
TWO = ["trainer.devices=2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
STEPS = ["trainer.max_steps=400", "trainer.val_check_interval=4"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

ASK = """
import sys
from fcn.processes import launch

with launch({"accelerator": "cpu", "devices": 2, "strategy": "ddp"}) as processes:
    rank = processes.rank
    heard = [processes.any_signal(15 if rank and step == 2 else 0) for step in range(5)]
    last = processes.any_signal(0, at_once=True)
    sys.stdout.write(f"{rank} {processes.broadcast(rank)} {heard} {last}" + chr(10))  # in one piece
    sys.stdout.flush()
    if len(sys.argv) > 1 and rank == int(sys.argv[1]):
        from fcn.errors import DataError
        raise DataError("only this process saw it")
    processes.barrier()
"""


def start(*command: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def python(*arguments: str, folder: Path) -> tuple[str, str]:
    """Run Python, which must succeed; return what it prints and its errors."""
    process = start(sys.executable, *arguments, folder=folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def family(pid: int) -> list[int]:
    """Return a process and all that it has started, itself first."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in family(int(child)))]


def wait_for(run: Path, pattern: str = "checkpoints/last.ckpt") -> None:
    end = time.monotonic() + 120
    while not any(run.glob(pattern)) and time.monotonic() < end:
        time.sleep(0.1)
    assert any(run.glob(pattern))


def test_processes_agree_at_the_same_step(tmp_path: Path) -> None:
    (tmp_path / "ask.py").write_text(ASK)
    out, _ = python("ask.py", folder=tmp_path)
    answer = "0 [0, 0, 0, 15, 0] 0"  # a step after it was received
    assert sorted(out.splitlines()) == [f"0 {answer}", f"1 {answer}"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_error_is_said_once_and_ends_all(tmp_path: Path, rank: str) -> None:
    (tmp_path / "ask.py").write_text(ASK)
    process = start(sys.executable, "ask.py", rank, folder=tmp_path)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1, err
    assert err.count("DataError: only this process saw it") == 1
    assert "frame #" not in err


@pytest.mark.slow
def test_a_damaged_image_of_one_process_is_one_line(tiny_voc: TinyVOC) -> None:
    tiny_voc.image("t1").write_bytes(tiny_voc.image("t1").read_bytes()[:700])
    command = [TRAIN, *tiny_voc.overrides(), *DDP, *TWO, *STEPS, "hydra.run.dir=run"]
    for workers in (0, 2):
        own = f"data.num_workers={workers}"
        process = start(sys.executable, *command, own, folder=tiny_voc.root)
        _, err = process.communicate(timeout=200)
        assert process.returncode == 1
        assert len(err.strip().splitlines()) == 1, err
        assert "t1.jpg" in err
        assert len(err) < 300


@pytest.mark.slow
@pytest.mark.parametrize("several", [[], TWO])
def test_a_signal_to_every_process_saves_once(tiny_voc: TinyVOC, several: list[str]) -> None:
    """As systemd and SLURM send it, to the loading processes too."""
    command = [TRAIN, *tiny_voc.overrides(), *DDP, *several, *STEPS, "hydra.run.dir=run"]
    process = start(sys.executable, *command, "data.num_workers=2", folder=tiny_voc.root)
    wait_for(tiny_voc.root / "run")
    members = family(process.pid)
    assert len(members) >= 3
    for member in reversed(members):
        os.kill(member, signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    assert "Traceback" not in out + err
    assert err.count("interrupted by SIGTERM after step") == 1
    step = int(re.findall(r"after step (\d+)", err)[0])
    assert last_step(tiny_voc.root / "run") == step


@pytest.mark.slow
def test_a_killed_worker_is_restarted_and_nothing_changes(tiny_voc: TinyVOC) -> None:
    steps = ["trainer.max_steps=60", "trainer.val_check_interval=4"]
    command = [TRAIN, *tiny_voc.overrides(), *DDP, *TWO, *steps]
    python(*command, "hydra.run.dir=whole", folder=tiny_voc.root)
    elastic = [*TORCHRUN, "--max-restarts=2", *command, "resume=auto"]
    process = start(*elastic, folder=tiny_voc.root)
    wait_for(tiny_voc.root, "outputs/train/*/checkpoints/last.ckpt")
    os.kill(family(process.pid)[-1], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (run,) = (tiny_voc.root / "outputs" / "train").iterdir()
    one, other = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (run, tiny_voc.root / "whole")
    )
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.slow
def test_two_nodes_are_one_run(tiny_voc: TinyVOC) -> None:
    """Two agents on the loopback, one process each: the same validation as of one process."""
    own = [*tiny_voc.overrides(), *DDP]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    agent += ["--master_addr=127.0.0.1", "--master_port=29611"]
    nodes = [
        start(*agent, f"--node_rank={rank}", TRAIN, *own, "trainer.num_nodes=2",
              "trainer.devices=1", folder=tiny_voc.root)
        for rank in range(2)
    ]  # fmt: skip
    for node in nodes:
        _, err = node.communicate(timeout=300)
        assert node.returncode == 0, err
    (run,) = (tiny_voc.root / "outputs" / "train").iterdir()
    one = [f"checkpoint={run}", "trainer.accelerator=cpu", "hydra.run.dir=one"]
    python(EVALUATE, *one, folder=tiny_voc.root)
    found, expected = (
        json.loads((folder / "metrics.json").read_text()) for folder in (run, tiny_voc.root / "one")
    )
    assert found == expected


@pytest.mark.slow
def test_torchrun_trains_stages_in_one_folder(tiny_voc: TinyVOC) -> None:
    own = [*tiny_voc.overrides(), *DDP, *TWO, "stages=[fcn32s,fcn16s]"]
    python(*TORCHRUN[1:], TRAIN, *own, folder=tiny_voc.root)
    assert {path.name for path in tiny_voc.root.iterdir()} == {"tiny", "outputs"}
    (run,) = (tiny_voc.root / "outputs" / "train").iterdir()
    assert list(json.loads((run / "stages.json").read_text())) == ["fcn32s", "fcn16s"]


@pytest.mark.slow
def test_two_processes_share_the_paths_of_a_pipe(tiny_voc: TinyVOC) -> None:
    own = [*tiny_voc.overrides(), *DDP]
    python(TRAIN, *own, "trainer.devices=1", "hydra.run.dir=run", folder=tiny_voc.root)
    predict = [PREDICT, "checkpoint=run", "input=-", *TWO]
    paths = "".join(f"{path}\n" for path in sorted(tiny_voc.image("t0").parent.iterdir()))
    done = subprocess.run(
        [sys.executable, *predict, "trainer.accelerator=cpu", "output=masks"],
        cwd=tiny_voc.root, env=ENVIRONMENT, input=paths, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "6 images predicted" in done.stdout
    assert len(list((tiny_voc.root / "masks").glob("*.png"))) == 6


@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_commands_share_their_images_over_processes(
    tiny_voc: TinyVOC, command: Run, monkeypatch: Patch, devices: int
) -> None:
    """evaluate.py: the same files as from one process. predict.py: each image once."""
    root = tiny_voc.root
    tiny_voc.listing("train").write_text("t0\n")
    tiny_voc.listing("val").write_text("v0\nv1\nt1\nt2\nt3\n")
    write_random_model(root / "model.safetensors")
    several = f"trainer.devices={devices}"
    evaluate = [*tiny_voc.overrides(), "checkpoint=model.safetensors", "trainer.accelerator=cpu"]
    monkeypatch.chdir(root)
    command("evaluate", *evaluate, "hydra.run.dir=one")
    python(EVALUATE, *evaluate, several, "hydra.run.dir=all", folder=root)
    one, all_ = (json.loads((root / name / "metrics.json").read_text()) for name in ("one", "all"))
    assert one == all_
    arrays = [np.load(root / name / "per_image.npz")["per_image"] for name in ("one", "all")]
    assert np.array_equal(*arrays)

    predict = ["checkpoint=model.safetensors", "input=tiny/JPEGImages", "annotations=coco"]
    predict.append("trainer.accelerator=cpu")
    command("predict", *predict, "output=one-by-one")
    out, _ = python(PREDICT, *predict, several, "output=masks", folder=root)
    assert "6 images predicted" in out
    assert len(list((root / "masks").glob("*.png"))) == 6
    for file in ("areas.csv", "annotations/coco.json"):
        assert (root / "masks" / file).read_bytes() == (root / "one-by-one" / file).read_bytes()


def test_two_processes_validate_as_one(tiny_voc: TinyVOC) -> None:
    """With three validation images, which two processes cannot share evenly."""
    tiny_voc.listing("train").write_text("t0\nt1\nt2\n")
    tiny_voc.listing("val").write_text("v0\nv1\nt3\n")
    own = [TRAIN, *tiny_voc.overrides(), *DDP, *TWO, "trainer.max_steps=2", "hydra.run.dir=run"]
    shown = re.search(r"val mean IoU ([\d.]+) %", python(*own, folder=tiny_voc.root)[0])
    assert shown
    metrics = json.loads((tiny_voc.root / "run" / "metrics.json").read_text())
    # The line is of both processes together, the file of the first alone on all images.
    assert 100 * metrics["mean_iou"] == pytest.approx(float(shown[1]), abs=6e-3)
    assert metrics["protocol"]["images"] == 3
