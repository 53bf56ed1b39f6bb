"""The commands as a user types them: what they leave, and what they say to common mistakes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from fcn import cli
from fcn.checkpoint import find, write_safetensors
from fcn.config import REPOSITORY, SCHEMAS
from fcn.errors import ConfigError
from fcn.inference.evaluate import read_metrics
from fcn.output import make_console, progress
from fcn.processes import RANKS
from tests.conftest import QUICK, Capture, Patch, Run, TinyVOC, last_step, small

pytestmark = pytest.mark.usefixtures("no_pictures")  # in this process; `script` starts others


def script(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs `python scripts/NAME.py ARGUMENTS` in `folder`."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / f"{name}.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_the_library_changes_nothing() -> None:
    """No hook, no limit of Pillow's, no environment variable, no signal's handler, no generator."""
    program = """
import atexit, os, pkgutil, random, signal, sys, warnings
from importlib import import_module
import numpy, PIL.Image, pytorch_lightning, scipy.ndimage, torch, torchmetrics, torchvision
import hydra, rich.progress, jinja2, matplotlib.figure, pydantic, pooch, fsspec, filelock

def state():
    handlers = [signal.getsignal(n) for n in signal.valid_signals()]
    return (PIL.Image.MAX_IMAGE_PIXELS, dict(os.environ), handlers, atexit._ncallbacks(),
            list(warnings.filters), sys.excepthook, torch.get_num_threads(), random.getstate(),
            numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())

import argparse
error = argparse.ArgumentParser.error
before = state()
import fcn
for module in pkgutil.walk_packages(fcn.__path__, "fcn."):
    import_module(module.name)
after = state()
assert before == after, [(b, a) for b, a in zip(before, after) if a != b]
assert argparse.ArgumentParser.error is error
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_slow_library_is_imported_before_it_is_needed() -> None:
    program = """
import sys
import fcn
from fcn.pictures import plots, visualize
assert not {"matplotlib", "torch"} & sys.modules.keys()
fcn.Predictor, fcn.overlay
slow = {"torchvision", "pytorch_lightning", "torch._dynamo", "torchmetrics", "matplotlib", "scipy"}
assert not slow & sys.modules.keys(), slow & sys.modules.keys()
plots.iou_bars([0.5], ["a"])
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SCHEMAS)
def test_help_names_every_key(name: str, command: Run, capsys: Capture) -> None:
    command(name, "--help")
    shown = capsys.readouterr().out
    assert f"python scripts/{name}.py" in shown
    for key in SCHEMAS[name].__dataclass_fields__.keys() - {"trainer"}:
        assert re.search(rf"^  {key}[.=]", shown, re.M), key
    if name == "train":
        assert re.search(r"recipe +accumulated, finetune, heavy, modern, sample\*", shown)
        assert re.search(r"logger +csv\*, mlflow, none, tensorboard\*, wandb", shown)


def test_train_then_evaluate_then_compare_then_resume(
    tiny_voc: TinyVOC, run_in: Run, error_line: Run, capsys: Capture
) -> None:
    """Training in a process of its own: the same numbers, and nothing lost."""
    data, root = tiny_voc.overrides(), tiny_voc.root
    first = script("train", *data, *QUICK, "hydra.run.dir=run", folder=root)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert (root / "run" / "train.log").read_text() == first.stdout
    last_line = first.stdout.strip().splitlines()[-1]
    assert last_line.startswith("mean IoU ")
    assert last_line.endswith(("files in run", "/run"))
    for name in ("predictions.png", "worst.png", "confusion.png", "iou.png", "curves.png"):
        assert (root / "run" / name).stat().st_size > 5000
    metrics = json.loads((root / "run" / "metrics.json").read_text())

    run_in("evaluate", *data, "checkpoint=run", "hydra.run.dir=eval")
    assert json.loads((root / "eval" / "metrics.json").read_text()) == metrics

    run_in("compare", "runs=[run,eval]", "images=1", "hydra.run.dir=page")
    assert (root / "page" / "compare.html").is_file()

    before = (root / "run" / "checkpoints" / "last.ckpt").read_bytes()
    over = error_line("train", *data, *QUICK, "hydra.run.dir=run", "recipe.lr=1")
    assert "holds a run already" in over
    assert (root / "run" / "checkpoints" / "last.ckpt").read_bytes() == before

    run_in("train", "trainer.max_steps=6", "resume=run/checkpoints/last.ckpt")
    assert "step 6/6" in capsys.readouterr().out
    assert not (root / "outputs").exists()  # it continued in its own folder, with its settings
    assert json.loads((root / "run" / "run.json").read_text())["config"]["recipe"]["lr"] == 8e-3


def test_stages_train_one_from_the_other(tiny_voc: TinyVOC, run_in: Run) -> None:
    stages = ["stages=[fcn32s,fcn16s,fcn8s]", "trainer.max_steps=2", "hydra.run.dir=run"]
    mean_iou = run_in("train", *tiny_voc.overrides(), *QUICK, *stages)
    path = tiny_voc.root / "run" / "stages.json"
    results = json.loads(path.read_text())
    assert list(results) == ["fcn32s", "fcn16s", "fcn8s"]
    assert [r["protocol"]["model"]["stride"] for r in results.values()] == [32, 16, 8]
    assert results["fcn8s"]["mean_iou"] == mean_iou
    assert find(path.parent) == path.parent / "fcn8s" / "model.safetensors"
    before = (path.parent / "fcn16s" / "model.safetensors").stat().st_mtime_ns
    assert run_in("train", "resume=last", "hydra.run.dir=run") == mean_iou
    assert (path.parent / "fcn16s" / "model.safetensors").stat().st_mtime_ns == before


def test_a_log_has_neither_colours_nor_progress_bars(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    console = make_console(log=tmp_path / "train.log")
    with progress(console) as bar:
        bar.update(bar.add_task("reading", total=2), advance=1)
        console.print("warning: dark", style="yellow")
    assert (tmp_path / "train.log").read_text() == "warning: dark\n"
    shown = capsys.readouterr().out
    assert "reading" in shown
    assert "\x1b[33m" in shown


@pytest.mark.slow
def test_optuna_searches_with_jobs_that_submitit_starts(tiny_voc: TinyVOC) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    search = ["-m", "hparams_search=optuna", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=sweep"]
    search += ["hydra.sweeper.n_jobs=2", "hydra/launcher=submitit_local"]
    search += ["~hydra.sweeper.params.upsampling"]
    run = script("train", *search, *tiny_voc.overrides(), *QUICK, folder=tiny_voc.root)
    assert run.returncode == 0, run.stderr
    sweep = tiny_voc.root / "sweep"
    scores = [read_metrics(sweep / job / "metrics.json")["mean_iou"] for job in "01"]
    found = OmegaConf.load(sweep / "optimization_results.yaml")
    assert found.best_value == pytest.approx(max(scores))
    assert not (tiny_voc.root / "outputs" / "train").exists()


def test_early_stopping_is_a_choice_of_callbacks(tiny_voc: TinyVOC, run_in: Run) -> None:
    stop = ["callbacks=early_stopping", "callbacks.early_stopping.patience=2", "recipe.lr=1e-8"]
    stop += ["trainer.max_steps=20", "trainer.val_check_interval=1", "hydra.run.dir=run"]
    run_in("train", *tiny_voc.overrides(), *QUICK, *stop)
    assert last_step("run") == 3  # the first validation and two without a better one
    run_in("train", "resume=run")
    assert last_step("run") == 3  # as after a stop within the evaluation
    run_in("train", "resume=run", "callbacks.early_stopping.patience=4")
    assert last_step("run") == 5
    tiny_voc.listing("val").write_text("v1\n")  # another best to wait for
    run_in("train", "resume=run", "callbacks.early_stopping.patience=2")
    assert last_step("run") == 8


# A sweeper that needs a number of each job, as Optuna's does.
SWEEPER = """
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore

class Demanding(BasicSweeper):
    def sweep(self, arguments):
        return [float(job.return_value) for batch in super().sweep(arguments) for job in batch]

node = {"_target_": "hydra_plugins.demanding.Demanding", "max_batch_size": None, "params": None}
ConfigStore.instance().store("demanding", node, "hydra/sweeper")
"""


def test_a_sweep_that_needs_every_job_says_why_one_failed(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "demanding.py").write_text(SWEEPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    given = ["-m", "hydra/sweeper=demanding", "seed=0", "data=folder", "data.root=nowhere"]
    run = script("train", *given, folder=tmp_path)
    assert run.returncode == 1
    assert re.fullmatch("error: .*nowhere.*\n", run.stderr)


@pytest.mark.parametrize(
    ("flags", "makes_folder"),
    [("-cd mine", True), ("-cn train", True), ("--config-dir=mine", True), ("-c job", False),
     ("--cfg=job", False), ("--info defaults", False)],
)  # fmt: skip
def test_flags_that_only_inform_make_no_folder(
    tmp_path: Path, monkeypatch: Patch, flags: str, makes_folder: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (command := cli.Command("train")).arguments(flags.split())
    assert (command.made is not None) == makes_folder
    command.discard_folder()


@pytest.mark.parametrize(
    "flags",
    ["--config-path {} --config-name own", "--config-path={} -cn=own.yaml", "-cp {} -cn own"],
)
@pytest.mark.parametrize("says_where", [True, False])
def test_a_whole_config_works_where_it_says(
    tmp_path: Path, monkeypatch: Patch, flags: str, says_where: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    where = "hydra: {run: {dir: 'there/${seed}'}}" if says_where else "hydra: {}"
    (tmp_path / "own.yaml").write_text(f"seed: ???\n{where}\n")
    command = cli.Command("train")
    given = command.arguments(flags.format(tmp_path).split())
    assert any(a.startswith("hydra.run.dir=") for a in given) != says_where
    assert "hydra.output_subdir=null" in given
    command.discard_folder()


def test_only_the_first_process_makes_a_folder(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    for key in RANKS:
        monkeypatch.delenv(key, raising=False)
    command = cli.Command("train")
    assert command.arguments(["seed=1"]) == ["seed=1"]
    (folder,) = (tmp_path / "outputs" / "train").iterdir()
    assert os.environ[cli.RUN_FOLDER] == f"outputs/train/{folder.name}"
    command.discard_folder()  # nothing was written there
    assert cli.RUN_FOLDER not in os.environ
    assert cli.Command("train").arguments(["hydra.run.dir=a"]) == ["hydra.run.dir=a"]
    monkeypatch.setenv("RANK", "3")
    none = ["hydra.output_subdir=null", "hydra.run.dir=."]
    for given in ([], ["hydra.run.dir=a"], ["-m", "hydra.run.dir='b c'", none[0]]):
        assert cli.Command("train").arguments(["seed=1", *given]) == ["seed=1", *none]
    flag = ["--config-dir", "mine"]
    assert cli.Command("train").arguments(["seed=1", *flag]) == [*flag, "seed=1", *none]
    assert not list((tmp_path / "outputs" / "train").iterdir())


# Of each command: arguments that hold a common mistake, and what its one line must name.
MISTAKES: dict[str, list[tuple[str, str]]] = {
    "train": [
        ("recipe.lrr=1", "did you mean recipe.lr?"),
        ("+recipe.lrr=1", "did you mean recipe.lr?"),
        ("recipe.learning_rate=0.1", "did you mean recipe.lr?"),
        ("epochs=3", "did you mean trainer.max_epochs?"),
        ("recipe.max_steps=3", "did you mean trainer.max_steps?"),
        ("trainer.max_step=3", "did you mean trainer.max_steps?"),
        ("trainer.callbacks=x", "trainer.callbacks is set by the run"),
        ("trainer.devices=[7]", "trainer: `devices`"),
        ("trainer.accelerator=cuda", "trainer.accelerator=cuda is not available"),
        ("model=fcn9s", "fcn9s"),
        ("recipe.lr=fast", "recipe.lr: Value 'fast'"),
        ("loss.name=hinge", "must be one of cross_entropy, dice"),
        ("recipe=heavy model=fcn32s loss=dice", "loss=dice does not fit"),
        ("backbone.name=vgg16", "use backbone=vgg16"),
        ("model.name=fcn32s", "did you mean model=CHOICE?"),
        ("backbone.weights=nowhere.pth", "nowhere.pth: no such weights file"),
        ("model.init_from=notes.ckpt", "notes.ckpt: damaged"),
        ("data.root=nowhere", "nowhere"),
        ("data.train_split=trian", "trian.txt"),
        ("data.val_split=train", "in both"),
        ("data=folder data.folder=. data.root=.", "images"),
        ("data=shapes data.folder=. data.root=mine", "data=folder"),
        ("data=/my/images", "use data=folder data.root=/my/images"),
        ("loss.alpha=1", "loss has name"),
        ("loss=dice loss._target_=torch.nn.CrossEntropyLoss", "leave one out"),
        ("resume=last hydra.run.dir=new", "run.json"),
        ("resume=last", "no run with a checkpoint in outputs"),
        ("stages=[fcn16s,fcn32s]", "coarse to fine"),
        ("hparams_search=optuna", "add -m"),
        ("seed", "seed"),
        ("trainer.devices=0", "trainer: "),
        ("trainer.strategy=fsdp", "trainer.strategy=fsdp: must be one of auto, ddp"),
        ("recipe.optimizer=SparseAdam", "recipe.optimizer"),
        ("recipe.batch_size=1 recipe.crop=32", "use recipe.batch_size=2"),
        ("hydra.run.dir=/proc/run", "/proc/run"),
        ("resume=nowhere", "no run in nowhere"),
        ("resume=nowhere/checkpoints/last.ckpt", "no such checkpoint"),
        ("stages=[fcn32s,fcn9s]", "no model fcn9s"),
        ("stages=[fcn32s,fcn16s] trainer.fast_dev_run=true", "try one stage alone, with model=fcn"),
        ("resume=auto hydra.run.dir=runs/${seed}", "takes no ${...}"),
        ("model.in_channels=5 data.bands=[0,1]", "model.in_channels=5"),
    ],
    "evaluate": [
        ("trainer.precision=foo", "trainer.precision=foo: must be auto"),
        ("checkpoint=nowhere.ckpt", "nowhere.ckpt: no such checkpoint"),
        ("checkpoint=mine", "mine: no model.safetensors"),
        ("checkpoint=???", "checkpoint is missing"),
        ("checkpoint=notes.ckpt", "notes.ckpt: damaged"),
        ("data.classes=[a,b,c]", "does not know a, b, c of data=tiny (it knows background, cat"),
        ("trainer.accelerator=quantum", "trainer: "),
        ("recipe=sample", "evaluate has no group recipe"),
        ("data.limit=2", "data.limit=2: evaluate does not use it"),
    ],
    "predict": [
        ("trainer.max_epochs=2", "is for training"),
        ("input=nowhere", "nowhere"),
    ],
    "export": [("format=tflite", "must be one of onnx, torch_export, safetensors")],
    "import_caffe": [
        ("caffemodel=notes.ckpt", "notes.ckpt"),
        ("model=alexnet", "alexnet"),
        ("output=fcn.npz", "output=fcn.npz: must end in .safetensors"),
    ],
    "prepare_data": [
        ("convert=export(1)", "quotes of their own"),
        ("convert=mine to=new data.group=a", "conversion does not use it; use group= instead"),
        ("convert=mine to=new data.val_split=a", "data.val_split=a: conversion does not use it"),
        ("convert=a.png to=new", "a.png: a file; give the folder in which it lies"),
    ],
    "explain": [("explain=magic", "must be one of all, matrix")],
    "compare": [("runs=[nowhere]", "nowhere"), ("runs=[]", "runs="), ("runs=run", "runs=[...]")],
}
ROWS = [(name, *row) for name, rows in MISTAKES.items() for row in rows]


@pytest.mark.parametrize(("name", "arguments", "words"), ROWS, ids=lambda value: str(value)[:40])
@pytest.mark.usefixtures("run_in")
def test_a_mistake_is_answered_in_one_line(
    tiny_voc: TinyVOC, error_line: Run, name: str, arguments: str, words: str
) -> None:
    root = tiny_voc.root
    write_safetensors(
        root / "m.safetensors", small(num_classes=3), {"classes": list(tiny_voc.classes)}
    )
    (root / "notes.ckpt").write_text("not a checkpoint")
    for folder in ("images/train", "annotations/train"):
        (root / "mine" / folder).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "a.png")
    base = {
        "train": [*tiny_voc.overrides(), *QUICK],
        "evaluate": [*tiny_voc.overrides(), "checkpoint=m.safetensors"],
        "predict": ["checkpoint=m.safetensors", "input=a.png", "output=masks"],
        "export": ["checkpoint=m.safetensors", "output=m.onnx"],
        "import_caffe": ["caffemodel=a.png", "output=b.safetensors"],
        "prepare_data": tiny_voc.overrides(),
    }.get(name, [])
    given = arguments.split()
    keys = {argument.partition("=")[0] for argument in given}
    base = [argument for argument in base if argument.partition("=")[0] not in keys]
    assert words in error_line(name, *base, *given)


@pytest.mark.usefixtures("run_in")
def test_a_damaged_image_of_a_loading_process_ends_training_with_its_name(
    tiny_voc: TinyVOC, error_line: Run
) -> None:
    tiny_voc.image("t1").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    workers = "data.num_workers=1"
    assert "t1.jpg" in error_line("train", *tiny_voc.overrides(), *QUICK, workers)


def test_a_traceback_can_be_asked_for(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["train.py", "resume=last"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        cli.run("train")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"
