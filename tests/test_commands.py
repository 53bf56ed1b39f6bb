"""The commands as a user types them: what they leave, and what they say to common mistakes."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from fcn import cli
from fcn.checkpoint import load, write_safetensors
from fcn.config import REPOSITORY, SCHEMAS
from fcn.errors import ConfigError
from fcn.inference.evaluate import read_metrics
from fcn.output import make_console, progress
from fcn.processes import RANKS
from tests.conftest import TinyVOC, small

pytestmark = pytest.mark.usefixtures("no_pictures")  # in this process; `script` starts others
QUICK = ["backbone.width=4", "backbone.head_width=8", "recipe.crop=32", "recipe.batch_size=2"]
QUICK += ["trainer.max_steps=2", "trainer.val_check_interval=2", "trainer=cpu"]
QUICK += ["trainer.precision=32-true"]


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
    """No hook, no limit of Pillow's, no environment variable, no handler of a signal."""
    program = """
import atexit, os, pkgutil, signal, sys, warnings
from importlib import import_module
import numpy, PIL.Image, pytorch_lightning, scipy.ndimage, torch, torchmetrics, torchvision
import hydra, rich.progress, jinja2, matplotlib.figure, pydantic, pooch, fsspec, filelock

def state():
    handlers = [signal.getsignal(n) for n in signal.valid_signals()]
    return (PIL.Image.MAX_IMAGE_PIXELS, dict(os.environ), handlers, atexit._ncallbacks(),
            list(warnings.filters), sys.excepthook, torch.get_num_threads())

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


def test_inference_imports_no_library_as_slow_as_torch_but_torch() -> None:
    program = """
import sys
import fcn
assert "torch" not in sys.modules
fcn.Predictor, fcn.overlay
slow = {"torchvision", "pytorch_lightning", "torch._dynamo", "torchmetrics", "matplotlib", "scipy"}
assert not slow & sys.modules.keys(), slow & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SCHEMAS)
def test_help_names_every_key_with_its_meaning(name: str, tmp_path: Path) -> None:
    shown = script(name, "--help", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert f"python scripts/{name}.py" in shown.stdout
    keys = [field for field in SCHEMAS[name].__dataclass_fields__ if field != "trainer"]
    for key in keys:
        assert re.search(rf"^  {key}[.=]", shown.stdout, re.M), key
    if name == "train":
        assert re.search(r"recipe +accumulated, finetune, heavy, modern, sample\*", shown.stdout)
        assert re.search(r"logger +csv\*, mlflow, none, tensorboard\*, wandb", shown.stdout)


def test_train_then_evaluate_then_compare_then_resume(
    tiny_voc: TinyVOC,
    command: Callable[..., Any],
    error_line: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training in processes of its own: the same numbers, and nothing lost."""
    data, root = tiny_voc.overrides(), tiny_voc.root
    monkeypatch.chdir(root)
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

    command("evaluate", *data, "checkpoint=run", "hydra.run.dir=eval")
    assert json.loads((root / "eval" / "metrics.json").read_text()) == metrics

    command("compare", "runs=[run,eval]", "images=1", "hydra.run.dir=page")
    assert (root / "page" / "compare.html").is_file()

    before = (root / "run" / "checkpoints" / "last.ckpt").read_bytes()
    over = error_line("train", *data, *QUICK, "hydra.run.dir=run", "recipe.lr=1")
    assert "holds a run already" in over
    assert (root / "run" / "checkpoints" / "last.ckpt").read_bytes() == before

    more = ["trainer.max_steps=4", "resume=run/checkpoints/last.ckpt"]  # the rest is remembered
    on = script("train", *more, folder=root)
    assert on.returncode == 0, on.stderr
    assert "step 4/4" in on.stdout
    assert not (root / "outputs").exists()  # it continued in its own folder
    assert json.loads((root / "run" / "run.json").read_text())["config"]["recipe"]["lr"] == 8e-3


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_the_newest_run_resumes_with_its_settings(
    tiny_voc: TinyVOC, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_voc.root)
    command("train", *tiny_voc.overrides(), *QUICK, "seed=3")
    (run,) = (tiny_voc.root / "outputs" / "train").iterdir()
    command("train", "resume=last", "trainer.max_steps=3")
    record = json.loads((run / "run.json").read_text())
    assert (record["config"]["seed"], record["config"]["trainer"]["max_steps"]) == (3, 3)
    moved = tiny_voc.root / "lr=0.1, it's"
    run.rename(moved)
    path = cli.quoted(moved / "checkpoints" / "last.ckpt")
    command("train", f"resume={path}", "trainer.max_steps=5")
    saved = torch.load(moved / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 5


def test_a_recorded_config_runs_again_to_the_same_numbers(
    tiny_voc: TinyVOC, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra's own way: --config-path RUN/.hydra --config-name config."""
    root = tiny_voc.root
    monkeypatch.chdir(root)
    command("train", *tiny_voc.overrides(), *QUICK, "recipe.lr=2e-3", "hydra.run.dir=run")
    recorded = ["--config-path", str(root / "run" / ".hydra"), "--config-name", "config"]
    command("train", *recorded, "hydra.run.dir=again")
    one, other = (root / name for name in ("run", "again"))
    assert (one / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes()
    weights = load(other).state_dict()
    assert all(torch.equal(tensor, weights[k]) for k, tensor in load(one).state_dict().items())


def test_stages_train_one_from_the_other(
    tiny_voc: TinyVOC, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_voc.root)
    arguments = [*tiny_voc.overrides(), *QUICK, "stages=[fcn32s,fcn16s,fcn8s]", "hydra.run.dir=run"]
    mean_iou = command("train", *arguments)
    path = tiny_voc.root / "run" / "stages.json"
    stages = json.loads(path.read_text())
    assert list(stages) == ["fcn32s", "fcn16s", "fcn8s"]
    assert [s["protocol"]["model"]["stride"] for s in stages.values()] == [32, 16, 8]
    assert stages["fcn8s"]["mean_iou"] == mean_iou
    before = (path.parent / "fcn16s" / "model.safetensors").stat().st_mtime_ns
    assert command("train", "resume=last", "hydra.run.dir=run") == mean_iou
    assert (path.parent / "fcn16s" / "model.safetensors").stat().st_mtime_ns == before


def test_a_multirun_trains_every_combination(
    tiny_voc: TinyVOC, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_voc.root)
    sweep = ["-m", "upsampling=fixed,learned", "seed=0,1", "hydra.sweep.dir=sweep"]
    command("train", *sweep, *tiny_voc.overrides(), *QUICK)
    assert sorted(p.parent.name for p in Path("sweep").glob("*/metrics.json")) == list("0123")
    command("compare", "sweep=sweep", "images=0", "hydra.run.dir=page")
    assert len(json.loads(Path("page/compare.json").read_text())["groups"]) == 2


def test_a_log_has_neither_colours_nor_progress_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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


@pytest.mark.parametrize(
    ("logger", "files"),
    [("csv", {"metrics.csv"}), ("[tensorboard,csv]", {"metrics.csv", "events"}), ("none", set())],
)
def test_loggers_are_a_choice(
    tiny_voc: TinyVOC,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    logger: str,
    files: set[str],
) -> None:
    monkeypatch.chdir(tiny_voc.root)
    command("train", *tiny_voc.overrides(), *QUICK, f"logger={logger}", "hydra.run.dir=run")
    found = {path.name.split(".out.")[0] for path in Path("run").iterdir()}
    assert found & {"metrics.csv", "events"} == files
    if "metrics.csv" in files:
        header = Path("run/metrics.csv").read_text().splitlines()[0].split(",")
        assert {"train/loss", "val/loss", "val/mean_iou", "val/iou/background"} <= set(header)


def test_early_stopping_is_a_choice_of_callbacks(
    tiny_voc: TinyVOC, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_voc.root)
    stop = ["callbacks=early_stopping", "callbacks.early_stopping.patience=2", "recipe.lr=1e-8"]
    stop += ["trainer.max_steps=20", "trainer.val_check_interval=1", "hydra.run.dir=run"]
    command("train", *tiny_voc.overrides(), *QUICK, *stop)
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 3  # the first validation and two without a better one


def test_balanced_weights_follow_the_pixels_of_the_masks(
    tiny_voc: TinyVOC,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two masks of 50 x 40 and two of 48 x 64; each has 380 pixels of an object, 20 ignored."""
    monkeypatch.chdir(tiny_voc.root)
    command("train", *tiny_voc.overrides(), *QUICK, "loss.class_weights=balanced")
    background = 2 * (50 * 40 - 400) + 2 * (48 * 64 - 400)
    total = background + 4 * 380
    expected = f"background {total / 3 / background:.3g}, cat {total / 3 / 760:.3g}"
    assert f"class weights: {expected}" in capsys.readouterr().out


def test_a_split_without_masks_is_predicted_for_vocs_server(
    tiny_voc: TinyVOC,
    command: Callable[..., Any],
    error_line: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, folder = tiny_voc.root, tiny_voc.root / "VOC2012"
    monkeypatch.chdir(root)
    tiny_voc.listing("test").write_text("x0\n")
    shutil.copy(tiny_voc.image("v0"), tiny_voc.image("x0"))
    tiny_voc.folder.rename(folder)
    write_safetensors(
        root / "m.safetensors", small(num_classes=3), {"classes": list(tiny_voc.classes)}
    )
    test = [*tiny_voc.overrides(), "data.folder=VOC2012", "data.split=test"]
    test += ["checkpoint=m.safetensors", "hydra.run.dir=run"]
    assert "submission=true" in error_line("evaluate", *test)
    command("evaluate", *test, "submission=true")
    assert (root / "run" / "results.tar.gz").is_file()
    assert not (root / "run" / "metrics.json").exists()


def test_only_the_first_process_makes_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for key in RANKS:
        monkeypatch.delenv(key, raising=False)
    seed, *made = cli.Command("train").arguments(["seed=1"])
    assert seed == "seed=1"
    (folder,) = (tmp_path / "outputs" / "train").iterdir()
    assert made == [f"hydra.run.dir='outputs/train/{folder.name}'"]
    assert cli.Command("train").arguments(["hydra.run.dir=a"]) == ["hydra.run.dir=a"]
    monkeypatch.setenv("RANK", "3")
    none = ["hydra.output_subdir=null", "hydra.run.dir=."]
    for given in ([], ["hydra.run.dir=a"], ["-m", "hydra.run.dir='b c'", none[0]]):
        assert cli.Command("train").arguments(["seed=1", *given]) == ["seed=1", *none]
    flag = ["--config-dir", "mine"]
    assert cli.Command("train").arguments(["seed=1", *flag]) == [*flag, "seed=1", *none]
    assert len(list((tmp_path / "outputs" / "train").iterdir())) == 1


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
        ("trainer.precision=16-mixed", "needs a GPU"),
        ("trainer.accelerator=cuda", "trainer.accelerator=cuda is not available"),
        ("model=fcn9s", "fcn9s"),
        ("recipe.lr=fast", "recipe.lr: Value 'fast'"),
        ("recipe.lr=-1", "recipe.lr=-1.0: must be greater than 0"),
        ("recipe.optimizer=adagradd", "did you mean Adagrad?"),
        ("loss.name=hinge", "must be one of cross_entropy, dice"),
        ("loss.class_weights=[1,2]", "one number for each of background, cat, dog"),
        ("recipe=heavy model=fcn32s loss=dice", "loss=dice does not fit"),
        ("+callbacks.mine._target_=nowhere.Mine", "nowhere"),
        ("model.stride=12", "stride must be 32, 16 or 8"),
        ("backbone.name=vgg16", "use backbone=vgg16"),
        ("model.name=fcn32s", "did you mean model=CHOICE?"),
        ("upsampling.name=cubic", "upsampling must be one of"),
        ("backbone.weights=nowhere.pth", "nowhere.pth: no such weights file"),
        ("model.init_from=notes.ckpt", "notes.ckpt: damaged"),
        ("data.root=nowhere", "nowhere"),
        ("data.train_split=trian", "trian.txt"),
        ("data.val_split=train", "in both"),
        ("data.classes=[background,cat]", "label 2"),
        ("data=folder data.root=.", "images"),
        ("data=shapes data.root=mine", "data=folder"),
        ("resume=last hydra.run.dir=new", "run.json"),
        ("resume=last", "no run with a checkpoint in outputs"),
        ("stages=[fcn16s,fcn32s]", "coarse to fine"),
        ("hparams_search=optuna", "add -m"),
        ("seed", "seed"),
        ("trainer.devices=0", "trainer: "),
        ("trainer.devices=[]", "trainer: "),
        ("trainer.devices=two", "trainer: "),
        ("trainer.strategy=fsdp", "trainer.strategy=fsdp: must be one of auto, ddp"),
        ("trainer.max_steps=abc", "trainer.max_steps=abc: must be a whole number"),
        ("trainer.max_epochs=abc", "trainer.max_epochs=abc: must be a number above 0"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0"),
        ("trainer.val_check_interval=abc", "must be a number of batches, or a share"),
        ("trainer.accumulate_grad_batches=abc", "must be a whole number"),
        ("trainer.accumulate_grad_batches=0", "must be at least 1"),
        ("trainer.limit_val_batches=2.5", "a share of an epoch must be above 0"),
        ("trainer.gradient_clip_algorithm=sideways", "sideways"),
        ("trainer.precision=foo", "trainer.precision=foo: must be auto"),
        ("trainer.logger=true", "use logger=CHOICE"),
        ("trainer.barebones=true", "scripts/benchmark.py"),
        ("trainer.limit_test_batches=3", "scripts/evaluate.py"),
        ("recipe.optimizer=SparseAdam", "recipe.optimizer"),
        ("recipe.optimizer=LBFGS", "recipe.optimizer"),
        ("recipe.batch_size=1 recipe.crop=32", "use recipe.batch_size=2"),
        ("loss.class_weights=[1,-1,1]", "must be 0 or more"),
        ("loss.class_weights=[a,b,c]", "one number for each"),
        ("loss.class_weights=heavy", "must be balanced"),
        ("hydra.run.dir=/proc/run", "/proc/run"),
        ("resume=nowhere", "no run in nowhere"),
        ("resume=nowhere/checkpoints/last.ckpt", "no such checkpoint"),
        ("resume=last -m seed=0,1", "leave out --multirun"),
        ("stages=[fcn32s,fcn9s]", "no model fcn9s"),
        ("model.in_channels=5 data.bands=[0,1]", "model.in_channels=5"),
    ],
    "evaluate": [
        ("trainer.precision=foo", "trainer.precision=foo: must be auto"),
        ("trainer.precision=16-mixed", "needs a GPU"),
        ("trainer.devices=0", "trainer: "),
        ("checkpoint=nowhere.ckpt", "nowhere.ckpt: no such checkpoint"),
        ("checkpoint=mine", "mine: no model.safetensors"),
        ("checkpoint=???", "checkpoint is missing"),
        ("checkpoint=notes.ckpt", "notes.ckpt: damaged"),
        ("data.classes=[a,b,c]", "does not know a, b, c of data=tiny (it knows background, cat"),
        ("trainer.accelerator=quantum", "trainer: "),
        ("trainer.max_steps=3", "is for training"),
    ],
    "predict": [
        ("trainer.precision=half", "trainer.precision=half: must be auto"),
        ("trainer.max_epochs=2", "is for training"),
        ("input=nowhere", "nowhere"),
        ("tile=100", "tile=100"),
        ("scales=[0]", "scales.0=0.0: must be greater than 0"),
    ],
    "export": [("format=tflite", "must be one of onnx, torch_export, safetensors")],
    "import_caffe": [("caffemodel=notes.ckpt", "notes.ckpt"), ("model=alexnet", "alexnet")],
    "prepare_data": [
        ("data.download=true", "data=tiny"),
        ("convert=export(1)", "quotes of their own"),
    ],
    "explain": [("explain=magic", "must be one of all, matrix")],
    "compare": [("runs=[nowhere]", "nowhere"), ("runs=[]", "runs=")],
}
ROWS = [(name, *row) for name, rows in MISTAKES.items() for row in rows]


@pytest.mark.parametrize(("name", "arguments", "words"), ROWS, ids=lambda value: str(value)[:40])
def test_a_mistake_is_answered_in_one_line(
    tiny_voc: TinyVOC,
    error_line: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    arguments: str,
    words: str,
) -> None:
    root = tiny_voc.root
    monkeypatch.chdir(root)
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


def damage_size(data: TinyVOC) -> str:
    Image.new("L", (9, 9)).save(data.mask("v0"))
    return "v0.png"


def damage_label(data: TinyVOC) -> str:
    Image.new("L", (40, 50), 37).save(data.mask("v0"))
    return "label 37"


def damage_jpeg(data: TinyVOC) -> str:
    data.image("t1").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    return "t1.jpg"


@pytest.mark.parametrize("damage", [damage_size, damage_label, damage_jpeg])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_ends_training_with_its_name(
    tiny_voc: TinyVOC,
    error_line: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[TinyVOC], str],
    workers: int,
) -> None:
    monkeypatch.chdir(tiny_voc.root)
    words = damage(tiny_voc)
    assert words in error_line(
        "train", *tiny_voc.overrides(), *QUICK, f"data.num_workers={workers}"
    )


def test_a_traceback_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["train.py", "resume=last"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        cli.run("train")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"
