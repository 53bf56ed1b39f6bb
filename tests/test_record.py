"""A run's folder has one owner, and its record is what resuming and evaluating read."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.callbacks import Callback

from fcn import checkpoint, cli
from fcn.compare.runs import read_run
from fcn.config import CONFIGS, REPOSITORY, BenchmarkConfig, LossConfig, TrainConfig, check
from fcn.errors import ConfigError, Interrupted, UserError
from fcn.hydra_versions import VERSION_BASE
from fcn.output import LOCK, is_live, locked
from fcn.tools import benchmark
from fcn.training import module
from fcn.training.plan import resolve
from fcn.training.record import new_folder, run_of, settings_to_resume
from fcn.training.run import _mean_iou, initial_model, make_module, make_trainer, train
from tests.conftest import (
    ALONE,
    QUICK,
    QUIET,
    Capture,
    Patch,
    Run,
    TinyVOC,
    Within,
    crash,
    kill,
    last_step,
    runner,
)

CHECKPOINTS = "pytorch_lightning.callbacks.ModelCheckpoint"
pytestmark = pytest.mark.usefixtures("no_pictures")
TERM = 15


def record(run: str | Path) -> dict[str, Any]:
    return json.loads((Path(run) / "run.json").read_text())


def interrupt(run_in: Run, *arguments: str, after: int = 1) -> None:
    """Start a run that is stopped after a step."""
    with Within("training_step", after, kill(TERM)), pytest.raises(SystemExit) as stopped:
        run_in("train", *arguments)
    assert stopped.value.code == 128 + TERM


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its third step, and validated after the second."""
    data = TinyVOC(tmp_path_factory.mktemp("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(data.root)
        arguments = [*data.overrides(), *QUICK, "hydra.run.dir=run"]
        interrupt(runner(patch), *arguments, after=2)
    return data.root / "run"


@pytest.fixture
def interrupted_run(interrupted: Path, tiny_voc: TinyVOC) -> None:
    """A copy of it in run/; its data lie elsewhere."""
    shutil.copytree(interrupted, tiny_voc.root / "run")


def test_folders_made_in_one_second_are_different(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_folder(tmp_path / "train"), range(20)))
    assert len(set(made)) == 20


@pytest.mark.slow
def test_four_runs_started_at_once_leave_four_models(tiny_voc: TinyVOC) -> None:
    script = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *tiny_voc.overrides()]
    runs = [
        subprocess.Popen([*script, *QUICK, f"seed={seed}"], cwd=tiny_voc.root) for seed in range(4)
    ]
    assert [run.wait() for run in runs] == [0] * 4
    folders = list((tiny_voc.root / "outputs" / "train").iterdir())
    assert sorted(record(folder)["config"]["seed"] for folder in folders) == [0, 1, 2, 3]
    assert all((folder / "model.safetensors").is_file() for folder in folders)


def test_an_invalid_setting_leaves_no_folder(
    tiny_voc: TinyVOC, error_line: Run, monkeypatch: Patch
) -> None:
    monkeypatch.chdir(tiny_voc.root)
    before = set(tiny_voc.root.rglob("*"))
    data = tiny_voc.overrides()
    assert "recipe.lr=-1.0: must be greater than 0" in error_line("train", *data, "recipe.lr=-1")
    assert "must be 32, 16 or 8" in error_line("train", *data, "model.stride=12")
    line = error_line("train", "data.root=new", "loss.class_weights=[1,2]")
    assert "one number for each of background" in line
    left = set(tiny_voc.root.rglob("*")) - before
    assert left <= {tiny_voc.root / "outputs", tiny_voc.root / "outputs" / "train"}


def test_a_limited_run_resumes_on_its_images_and_is_evaluated_on_all(
    tiny_voc: TinyVOC, run_in: Run, error_line: Run, capsys: Capture
) -> None:
    interrupt(run_in, *tiny_voc.overrides(), *QUICK, "data.limit=3", "hydra.run.dir=run")
    before = record("run")["data"]
    assert {split: before[split]["images"] for split in before} == {"train": 3, "val": 2}
    capsys.readouterr()
    run_in("train", "resume=run")
    assert "images have changed" not in capsys.readouterr().out
    assert record("run")["data"] == before
    model = "checkpoint=run/model.safetensors"
    run_in("evaluate", model, "data.split=train", "hydra.run.dir=eval")
    protocol = json.loads(Path("eval/metrics.json").read_text())["protocol"]
    assert (protocol["split"], protocol["images"]) == ("train", 4)
    assert "tiny" not in error_line("evaluate", "checkpoint=run", "data=folder", "data.root=none")


@pytest.fixture
def scripted_mean_ious(monkeypatch: Patch) -> None:
    """The validations at steps 3, 6 and 8 of a run find these mean IoUs, in turn."""
    said, original = iter([0.9, 0.1, 0.2]), module.metrics_of
    monkeypatch.setattr(
        module, "metrics_of", lambda confusion: replace(original(confusion), mean_iou=next(said))
    )


@pytest.mark.usefixtures("scripted_mean_ious")
def test_a_run_keeps_its_best_model_where_its_folder_was_moved_and_linked(
    tiny_voc: TinyVOC, tmp_path: Path
) -> None:
    cfg, run, link = tiny_voc.training(), tmp_path / "run", tmp_path / "link"
    with Within("training_step", 4, kill(TERM)), pytest.raises(Interrupted):
        train(cfg, run, QUIET)
    link.symlink_to(run.rename(tmp_path / "elsewhere"))
    cfg.resume = "last"
    train(cfg, link, QUIET)
    best = torch.load(link / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 3


def test_last_is_the_newest_unfinished_run_sweeps_included(
    tiny_voc: TinyVOC, run_in: Run, error_line: Run, capsys: Capture
) -> None:
    data = tiny_voc.overrides()
    interrupt(run_in, *data, *QUICK, "hydra.run.dir=outputs/sweep/a/0")
    run_in("train", *data, *QUICK)  # a finished one, and the newest
    capsys.readouterr()
    run_in("train", "resume=last")
    assert "outputs/sweep/a/0 from last.ckpt" in capsys.readouterr().out
    assert last_step("outputs/sweep/a/0") == 4
    assert "unfinished" in error_line("train", "resume=last")
    run_in("train", "resume=last", "trainer.max_steps=6")  # of a finished one: the newest
    assert last_step("outputs/sweep/a/0") == 6


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_is_named_by_its_folder_and_by_any_of_its_files(
    tiny_voc: TinyVOC, run_in: Run
) -> None:
    """Below outputs/ behind a link, and after it was moved, whatever its name."""
    (tiny_voc.root / "disk").mkdir()
    Path("outputs").mkdir()
    Path("outputs/train").symlink_to(tiny_voc.root / "disk")
    interrupt(run_in, *tiny_voc.overrides(), *QUICK)
    interrupt(run_in, "resume=last", after=2)
    (run,) = Path("disk").iterdir()
    moved = run.rename("lr=0.1, it's")
    assert last_step(moved) == 3
    run_in("train", f"resume={cli.quoted(moved / 'checkpoints' / 'last.ckpt')}")
    assert last_step(moved) == 4
    run_in("train", f"resume={cli.quoted(moved / 'checkpoints')}", "trainer.max_steps=5")
    assert last_step(moved) == 5
    assert len(record(moved)["history"]) == 3
    assert "finished" in record(moved)


def test_the_recorded_settings_come_back_wherever_they_came_from(
    tiny_voc: TinyVOC, run_in: Run, monkeypatch: Patch, capsys: Capture
) -> None:
    """Of --config-path, and of an experiment; from another folder than the first one."""
    data = [o for o in tiny_voc.overrides() if not o.startswith("data.root")] + ["data.root=."]
    recipe = ["experiment=voc_mini", "recipe.lr=2e-3", "data.masks=SegmentationClass"]
    recipe += ["data.train_split=train", "recipe.warmup_steps=0"]
    run_in("train", *data, *recipe, *QUICK, "hydra.run.dir=first")
    flags = ["--config-path", str(Path("first/.hydra").absolute()), "--config-name", "config"]
    interrupt(run_in, *flags, "hydra.run.dir=again")
    monkeypatch.chdir("tiny")
    run_in("train", "resume=../again", "recipe.lr=1e-3")
    assert "recipe.lr: 0.002 -> 0.001" in capsys.readouterr().out
    before, after = (record(f"../{name}")["config"] for name in ("first", "again"))
    assert after["recipe"] == before["recipe"] | {"lr": 1e-3}
    assert after["data"] == before["data"]
    assert after["trainer"] == before["trainer"]


# What a command that resumes a run cannot ask for, and what its one line must name.
REFUSED = {
    "backbone.freeze=conv1": "backbone.freeze",
    "recipe.backbone_lr_factor=0.1": "recipe.backbone_lr_factor",
    "recipe.optimizer=sgd": "recipe.optimizer",
    "recipe.ema_decay=0.9": "recipe.ema_decay",
    "model=fcn32s": "model.stride",
    "upsampling=learned": "upsampling.name",
    "loss._target_=torch.nn.CrossEntropyLoss": "loss._target_",
    "data.fold=0": "data.fold",
    "backbone.width=8": "backbone.width",
    "data.classes=[background,cat,dog,cow]": "data.classes",
    "recipe=modern": "keeps its recipe",
    "experiment=voc_mini": "keeps its experiment",
    "stages=[fcn32s]": "keeps its stages",
    "trainer.fast_dev_run=true": "fast_dev_run",
    "trainer.enable_checkpointing=false": "checkpoints",
    "trainer.accumulate_grad_batches=2": "accumulate_grad_batches",
    "trainer.min_steps=20": "trainer.min_steps=20",
    "hydra.mode=MULTIRUN seed=0,1": "leave out --multirun",
    "backbone.weights=vgg.pth": "backbone.weights",
    "backbone.head_weights=null": "backbone.head_weights",
    "recipe.fit_to_features=false": "recipe.fit_to_features",
    "model.init_from=other": "keeps its weights",
    "callbacks.x=mine.Mine": "needs a _target_",
    f"callbacks.x._target_={CHECKPOINTS} callbacks.x.every_n_epochs=5": "use every_n_train_steps",
    "callbacks.x._target_=nowhere.Mine": "No module named 'nowhere'",
    "+logger.x._target_=pathlib.Path": "is no Logger of Lightning's",
}


LOSS_SETTINGS = {
    "cross_entropy": {"label_smoothing": 0.1}, "dice": {"dice_weight": 2.0, "label_smoothing": 0.1},
    "focal": {"gamma": 3.0}, "ohem": {"hardest": 0.5},
}  # fmt: skip


def resumed(folder: Path, *given: str) -> dict[str, Any]:
    """The settings with which a run resumes under a new command line."""
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with hydra.initialize_config_dir(str(CONFIGS), **VERSION_BASE):
        composed: Any = OmegaConf.to_container(hydra.compose("train", list(given)), resolve=True)
        return settings_to_resume(folder, composed, given)


@pytest.mark.parametrize(("before", "now"), list(permutations(LOSS_SETTINGS, 2)))
def test_a_resumed_run_may_have_another_loss(before: str, now: str, tmp_path: Path) -> None:
    """Settings that only the loss before had are gone, whichever is typed first."""
    config = asdict(TrainConfig(loss=LossConfig(name=before, **LOSS_SETTINGS[before])))
    (tmp_path / "run.json").write_text(json.dumps({"config": config}))
    for given in ([f"loss={now}"], ["seed=0", f"loss={now}"]):
        loss = check(resumed(tmp_path, *given)["loss"], LossConfig)
        assert loss.name == now
        kept = set(LOSS_SETTINGS[before]) & set(LOSS_SETTINGS[now])
        assert all(getattr(loss, key) == LOSS_SETTINGS[before][key] for key in kept)
    own = [f"loss.{key}={value}" for key, value in LOSS_SETTINGS[now].items()]
    values = resumed(tmp_path, *own, f"loss={now}")["loss"]
    assert LOSS_SETTINGS[now].items() <= values.items()


def test_a_loss_is_changed_and_changed_back(tmp_path: Path) -> None:
    """A choice of the first command is no mere repetition once another one was typed."""
    content = {"config": asdict(TrainConfig()), "overrides": ["loss=focal"], "history": []}
    for now, name in (("focal", "cross_entropy"), ("dice", "dice"), ("focal", "focal")):
        (tmp_path / "run.json").write_text(json.dumps(content))
        settings = resumed(tmp_path, f"loss={now}")
        assert settings["loss"]["name"] == name  # the first time it is as recorded
        content["config"] = settings
        content["history"].append({"overrides": [f"loss={now}"]})


@pytest.mark.usefixtures("interrupted_run")
def test_a_refused_resume_changes_nothing(tiny_voc: TinyVOC, run_in: Run, error_line: Run) -> None:
    """Another network, other data, a folder in use, damaged files: the run stays as it was."""
    again = [*tiny_voc.overrides(), *QUICK, "hydra.run.dir=run"]
    path, last = Path("run/run.json"), Path("run/checkpoints/last.ckpt")
    before, whole = path.read_bytes(), last.read_bytes()
    for arguments, words in REFUSED.items():
        assert words in error_line("train", "resume=run", *arguments.split())
    with locked(Path("run")):
        assert is_live(Path("run"))
        assert "is being trained" in error_line("train", "resume=run")
        assert "holds a run already" in error_line("train", *again)
    assert not is_live(Path("run"))
    for damaged in (b"", whole[: len(whole) // 2]):
        last.write_bytes(damaged)
        assert "last.ckpt" in error_line("train", f"resume={last}", "trainer.max_steps=9")
    last.write_bytes(whole)
    assert path.read_bytes() == before
    for content in ("{", "[]", '{"overrides": []}'):
        path.write_text(content)
        assert "run.json" in error_line("train", "resume=run")
    path.write_bytes(before)
    run_in("train", "resume=run")
    assert last_step("run") == 4


@pytest.mark.usefixtures("interrupted_run")
def test_a_choice_of_a_users_folder_changes_its_own_keys_alone(run_in: Run) -> None:
    before = record("run")["config"]
    for name, text in {
        "trainer/cluster": "defaults: [cpu, _self_]\nlog_every_n_steps: ${recipe.batch_size}\n",
        "lab/ours": "# @package _global_\ntrainer: {num_nodes: 1}\ndata: {num_workers: 1}\n",
    }.items():
        Path("mine", name).parent.mkdir(parents=True)
        Path("mine", f"{name}.yaml").write_text(text)
    given = ["--config-dir", "mine", "trainer=cluster", "+lab=ours"]
    run_in("train", "resume=run", *given)
    after = record("run")["config"]
    own = {"log_every_n_steps": 2, "num_nodes": 1}
    assert after["trainer"] == before["trainer"] | own
    assert after["data"] == before["data"] | {"num_workers": 1}
    longer = ["trainer.max_steps=5", "trainer.log_every_n_steps=${trainer.val_check_interval}"]
    run_in("train", "resume=run", *longer)
    assert record("run")["config"]["trainer"]["log_every_n_steps"] == 2  # as in the run
    run_in("train", "resume=run", "trainer.log_every_n_steps=3", "trainer.max_steps=6")
    run_in("train", "resume=run", *given, "trainer.max_steps=6")  # the choices are no news
    assert record("run")["config"]["trainer"]["log_every_n_steps"] == 3


@pytest.mark.usefixtures("interrupted_run")
def test_choices_that_a_resumed_run_can_change_are_changed(run_in: Run) -> None:
    choices = ["logger=csv", "loss=focal", "callbacks=early_stopping", "augmentation=aerial"]
    run_in("train", "resume=run", *choices)
    after = record("run")["config"]
    assert len(after["recipe"]["transforms"]) == 2
    assert after["recipe"]["crop"] == 32
    assert (list(after["logger"]), after["loss"]["name"]) == (["csv"], "focal")
    assert list(after["callbacks"]) == ["early_stopping"]
    assert after["trainer"]["max_steps"] == 4  # the recipe's keys stay
    header = Path("run/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "val/loss", "val/mean_iou", "val/iou/background"} <= set(header)


def test_auto_continues_the_run_of_the_same_command_or_starts_one(
    tiny_voc: TinyVOC, run_in: Run
) -> None:
    arguments = [*tiny_voc.overrides(), *QUICK, "resume=auto", "~trainer.val_check_interval"]
    interrupt(run_in, *arguments, "seed=1")
    interrupt(run_in, *arguments, "seed=2")
    run_in("train", *arguments, "seed=1")
    run_in("train", *arguments, "seed=1")  # it is finished: a new one
    found = [record(run)["config"]["seed"] for run in Path("outputs/train").iterdir()]
    assert sorted(found) == [1, 1, 2]
    interrupt(run_in, *arguments, "hydra.run.dir=mine")
    run_in("train", *arguments, "hydra.run.dir=mine")
    assert last_step("mine") == 4


def test_a_run_in_the_folder_of_one_that_left_nothing_has_a_record_of_its_own(
    tiny_voc: TinyVOC, run_in: Run
) -> None:
    own = [*tiny_voc.overrides(), *QUICK, "hydra.run.dir=run"]
    run_in("train", *own, "loss=focal", "trainer.fast_dev_run=true")
    run_in("train", *own, "loss=dice")
    assert "loss=dice" in record("run")["overrides"]
    assert record("run")["history"] == []


def test_stages_are_resumed_as_one_run(tiny_voc: TinyVOC, run_in: Run, error_line: Run) -> None:
    """What is refused changes no record: within a stage, between two, and in a run that is live."""
    own = [*tiny_voc.overrides(), *QUICK, "stages=[fcn32s,fcn16s]", "hydra.run.dir=run"]
    assert error_line("train", *own, "trainer.precision=foo")
    assert not Path("run/run.json").exists()
    refused = ("upsampling=learned", "data.fold=1", "data.root=nowhere", "trainer.precision=foo")
    for part in ("within the first", "between"):
        if part == "between":
            run_in("train", "resume=run", "trainer.enable_progress_bar=false")
            shutil.rmtree("run/fcn16s")
        else:
            interrupt(run_in, *own)
        before = record("run")
        for setting in refused:
            assert error_line("train", "resume=run", setting)
            assert record("run") == before
    with locked(Path("run")):
        assert "is being trained" in error_line("train", "resume=run")
    run_in("train", "resume=run", "trainer.enable_progress_bar=null")
    assert len(record("run")["history"]) == 2


class Unreadable(Callback):
    """A callback whose state no checkpoint can give back."""

    def state_dict(self) -> dict[str, Any]:
        return {"best": np.float64(0.5)}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("tests.test_record.Unreadable", "Unreadable: its state_dict cannot be read back"),
        ("pytorch_lightning.callbacks.StochasticWeightAveraging", "trainer: "),
    ],
)
def test_a_callback_that_does_not_fit_is_said_in_one_line(
    tiny_voc: TinyVOC, error_line: Run, monkeypatch: Patch, target: str, words: str
) -> None:
    monkeypatch.chdir(tiny_voc.root)
    own = [f"callbacks.mine._target_={target}"]
    if target.endswith("Averaging"):
        own.append("callbacks.mine.swa_lrs=0.1")
    assert words in error_line("train", *tiny_voc.overrides(), *QUICK, *own)


def test_logs_of_earlier_runs_are_kept(
    tiny_voc: TinyVOC, run_in: Run, error_line: Run, tmp_path: Path
) -> None:
    own = [*tiny_voc.overrides(), *QUICK[:-1], "logger=csv", f"logger.csv.save_dir={tmp_path}"]
    for seed in range(3):
        run_in("train", *own, f"seed={seed}", f"hydra.run.dir={seed}")
    names = ["metrics.1.csv", "metrics.2.csv", "metrics.csv"]
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == names
    assert error_line("train", "resume=2", "recipe.lr=1e-4")  # its last step is done
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == names


@pytest.mark.usefixtures("scripted_mean_ious")
def test_the_best_is_validated_again_on_another_split(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: Patch
) -> None:
    """On the new split the best so far is worth nothing: the last one becomes the best."""
    monkeypatch.setattr("fcn.training.run._mean_iou", lambda *_: 0.05)
    cfg = tiny_voc.training()
    with Within("training_step", 4, kill(TERM)), pytest.raises(Interrupted):
        train(cfg, tmp_path / "run", QUIET)
    for number in range(2):
        Image.fromarray(np.full((40, 40, 3), 90 * number, np.uint8)).save(
            tiny_voc.image(f"w{number}")
        )
        Image.fromarray(np.full((40, 40), number, np.uint8)).save(tiny_voc.mask(f"w{number}"))
    tiny_voc.listing("val").write_text("w0\nw1\n")
    tiny_voc.listing("train").write_text("t0\nt1\nt2\n")
    cfg.resume = "last"
    train(cfg, tmp_path / "run", QUIET)
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 8


@pytest.mark.parametrize("limit", [None, 1, 0.5])
def test_the_best_is_validated_again_on_what_validation_sees(
    tiny_voc: TinyVOC, tmp_path: Path, limit: float | None
) -> None:
    cfg, folder = tiny_voc.training(), tmp_path / "run"
    cfg.trainer["limit_val_batches"] = limit
    train(cfg, folder, QUIET)
    cfg.resume, path = "last", folder / "checkpoints" / "best.ckpt"
    plan = resolve(cfg, folder, ALONE, QUIET)
    parts = make_trainer(plan, make_module(plan, initial_model(plan, QUIET)[0], QUIET), QUIET)
    seen = checkpoint.read(path).metadata["validation"]["mean_iou"]
    assert _mean_iou(plan, parts, path) == pytest.approx(seen, abs=1e-6)


@pytest.mark.usefixtures("interrupted_run")
@pytest.mark.parametrize(
    "changed",
    ["trainer.limit_val_batches=1", "trainer.overfit_batches=1", "data.ignore_index=254",
     "data.masks=Others"],
)  # fmt: skip
def test_the_best_is_validated_again_when_validation_changes(
    tiny_voc: TinyVOC, run_in: Run, capsys: Capture, changed: str
) -> None:
    shutil.copytree(tiny_voc.mask("v0").parent, tiny_voc.folder / "Others")
    if "ignore_index" in changed:
        for path in tiny_voc.mask("v0").parent.iterdir():
            mask = np.array(Image.open(path))
            Image.fromarray(np.where(mask == 255, 254, mask)).save(path)
    own = f"data.root={tiny_voc.root}"
    run_in("train", "resume=run", own, changed)
    assert "best checkpoint so far was validated again" in capsys.readouterr().out
    run_in("train", "resume=run", "trainer.max_steps=5")
    assert "validated again" not in capsys.readouterr().out


def test_the_model_is_there_before_the_evaluation_fails(
    tiny_voc: TinyVOC, run_in: Run, error_line: Run
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fcn.training.run.evaluate_and_write", fail)
        line = error_line("train", *tiny_voc.overrides(), *QUICK, "hydra.run.dir=run")
    assert "run/model.safetensors is there" in line
    advised = line.split("evaluate.py ")[1].split()[0]
    run_in("evaluate", advised, "hydra.run.dir=later")
    assert (Path("later") / "metrics.json").is_file()


def test_environment_and_arguments_are_as_before(
    tiny_voc: TinyVOC, run_in: Run, monkeypatch: Patch
) -> None:
    """No variable of ours reaches what a command starts."""
    seen: list[str | None] = []
    original = module.SegmentationModule.setup

    def setup(own: module.SegmentationModule, stage: str) -> None:
        seen.append(os.environ.get("HYDRA_FULL_ERROR"))
        original(own, stage)

    monkeypatch.setattr(module.SegmentationModule, "setup", setup)
    arguments = [*tiny_voc.overrides(), *QUICK, "hydra.run.dir=run"]
    run_in("train", *arguments)
    assert seen == [None]
    assert "HYDRA_FULL_ERROR" not in os.environ
    assert sys.argv == ["train.py", *arguments]


def test_a_run_that_crashed_before_its_first_validation_starts_again(
    tiny_voc: TinyVOC, run_in: Run, error_line: Run
) -> None:
    arguments = [*tiny_voc.overrides(), *QUICK, "hydra.run.dir=run"]
    with Within("training_step", 1, crash), pytest.raises(SystemError):
        run_in("train", *arguments)
    assert "no checkpoint" in error_line("train", "resume=run")
    run_in("train", *arguments, "resume=auto")
    assert last_step("run") == 4


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from fcn.output import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="another process"), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    end = time.monotonic() + 10
    while is_live(tmp_path) and time.monotonic() < end:
        time.sleep(0.05)
    with locked(tmp_path):
        pass


def test_a_lock_file_outlives_its_holder(
    tmp_path: Path,
) -> None:
    fcntl = pytest.importorskip("fcntl")
    with locked(tmp_path):
        early = (tmp_path / LOCK).open("rb+")
    with early:
        fcntl.flock(early, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_live(tmp_path)
        with pytest.raises(ConfigError, match="another process"), locked(tmp_path):
            pass
    assert not is_live(tmp_path)


@pytest.mark.parametrize(
    ("of_files", "typed", "left"),
    [
        ("max_steps=5 max_epochs=2", "", "max_epochs"),
        ("max_epochs=2 max_steps=5", "", "max_steps"),
        ("max_epochs=null max_steps=5", "", "max_steps"),
        ("max_steps=5 max_epochs=-1", "max_epochs=-1", "max_steps"),
        ("max_epochs=3 max_steps=-1", "", "max_epochs"),
        ("max_steps=5 max_epochs=3", "max_steps=5", "max_steps"),
        ("max_steps=5 max_epochs=3", "max_epochs=3 max_steps=5", "max_steps"),
        ("max_epochs=3 max_steps=5", "max_steps=5 max_epochs=3", "max_epochs"),
        ("val_check_interval=9 check_val_every_n_epoch=1", "val_check_interval=9",
         "val_check_interval"),
        ("val_check_interval=9 check_val_every_n_epoch=1", "check_val_every_n_epoch=1",
         "check_val_every_n_epoch"),
        ("val_check_interval=9 check_val_every_n_epoch=1",  # refused later on
         "val_check_interval=9 check_val_every_n_epoch=1",
         "val_check_interval check_val_every_n_epoch"),
    ],
)  # fmt: skip
def test_of_two_arguments_for_one_thing_the_later_wins(
    of_files: str, typed: str, left: str
) -> None:
    pairs = (pair.split("=") for pair in of_files.split())
    trainer = {key: None if value == "null" else int(value) for key, value in pairs}
    given = [f"++trainer.{argument}" for argument in typed.split()]
    assert " ".join(cli.later_wins(trainer, given)) == left


def test_a_setting_can_be_changed_and_changed_back(tiny_voc: TinyVOC, run_in: Run) -> None:
    run_in("train", *tiny_voc.overrides(), *QUICK, "recipe.lr=0.01", "hydra.run.dir=run")
    for steps, rate in ((6, 0.001), (8, 0.01)):
        run_in("train", "resume=run", f"recipe.lr={rate}", f"trainer.max_steps={steps}")
        assert record("run")["config"]["recipe"]["lr"] == rate
    run_in("train", "resume=run", "trainer.max_epochs=6")  # two steps each; it wins over steps
    assert last_step("run") == 12


def test_what_a_resumed_run_cannot_continue_is_said_and_recorded(
    tiny_voc: TinyVOC, run_in: Run, error_line: Run, capsys: Capture
) -> None:
    """Of a run at its last step, and of one that was trained by more processes."""
    run_in("train", *tiny_voc.overrides(), *QUICK, "hydra.run.dir=run")
    assert record("run")["processes"] == 1
    Path("run/run.json").write_text(json.dumps(record("run") | {"processes": 2}))
    capsys.readouterr()
    line = error_line("train", "resume=run", "data.val_split=train", "data.train_split=val")
    assert "its last step is done, so data.train_split, data.val_split would change nothing" in line
    run_in("train", "resume=run", "data.num_workers=1")
    shown = capsys.readouterr().out
    assert "nothing to train" in shown
    assert "processes: 2 before, 1 now" in " ".join(shown.split())
    protocol = json.loads(Path("run/metrics.json").read_text())["protocol"]
    assert protocol["split"] == record("run")["config"]["data"]["val_split"] == "val"
    assert "finished" in record("run")


def test_a_folder_holds_one_run_of_one_kind(
    tiny_voc: TinyVOC, run_in: Run, error_line: Run
) -> None:
    own = [*tiny_voc.overrides(), *QUICK]
    run_in("train", *own, "hydra.run.dir=plain")
    run_in("train", *own, "stages=[fcn32s,fcn16s]", "hydra.run.dir=stages")
    start = ["stages=[fcn32s]", "model.init_from=plain", "hydra.run.dir=started"]
    interrupt(run_in, *own, "model=fcn32s", *start)
    run_in("train", "resume=started", "model.init_from='plain'")  # the same, in quotes
    assert record("started/fcn32s")["config"]["model"]["init_from"] == "plain"
    for arguments in (
        [*own, "stages=[fcn32s]", "hydra.run.dir=plain"],
        [*own, "hydra.run.dir=stages"],
        ["resume=stages", "stages=[fcn32s,fcn16s,fcn8s]"],
        ["resume=stages", "trainer.max_steps=6"],  # they are finished
    ):
        kept = [record(run) for run in ("plain", "stages")]
        assert error_line("train", *arguments)
        assert [record(run) for run in ("plain", "stages")] == kept


def test_no_command_changes_what_a_folder_holds(
    tiny_voc: TinyVOC, run_in: Run, error_line: Run
) -> None:
    own, folder = [*tiny_voc.overrides(), *QUICK], Path("sweep/0")
    run_in("train", *own, "hydra.run.dir=sweep/0")
    run_in("evaluate", "checkpoint=sweep/0", "hydra.run.dir=sweep/evaluated")
    theirs = Path("models", "model.safetensors")
    for path in (folder / "benchmark.json", folder / "pages" / "explain.html", theirs):
        path.parent.mkdir(exist_ok=True)
        path.write_text("made before")
    again = ["--config-path", str(Path("sweep/0/.hydra").absolute()), "--config-name=config"]
    paths = [*Path("sweep").rglob("*"), theirs]
    before = {path: path.read_bytes() for path in paths if path.is_file()}
    assert folder / ".hydra" / "config.yaml" in before
    for name, *given in (
        ["train", *own, "seed=1", "hydra.run.dir=sweep/0"],
        ["train", *own, "seed=1", "hydra.run.dir=sweep/evaluated"],
        ["train", *own, "-m", "seed=1", "hydra.sweep.dir=sweep"],
        ["train", *again, "seed=1", "hydra.run.dir=sweep/0"],
        ["train", *again, "-m", "seed=1", "hydra.sweep.dir=sweep"],
        ["train", *own, "hydra.run.dir=models"],
        ["evaluate", "checkpoint=sweep/0", "batch_size=1", "hydra.run.dir=sweep/0"],
        ["explain", "explain=matrix", "hydra.run.dir=sweep/0"],
    ):
        assert "choose another" in (line := error_line(name, *given)) or "holds a run" in line
    with pytest.raises(ConfigError, match="choose another"):
        benchmark.main(BenchmarkConfig(data=tiny_voc.config()), folder, QUIET)
    run_in("compare", "runs=[sweep/0]", "images=0", "hydra.run.dir=sweep/0")
    run_in("prepare_data", *tiny_voc.overrides(), "hydra.run.dir=sweep/0")
    assert {path: path.read_bytes() for path in before} == before


def test_a_finished_run_that_goes_on_has_a_newer_model_and_no_numbers_yet(
    tiny_voc: TinyVOC, run_in: Run
) -> None:
    run_in("train", *tiny_voc.overrides(), *QUICK, "hydra.run.dir=run")
    finished = Path("run/model.safetensors")
    assert checkpoint.find("run") == finished
    read_run(Path("run"))
    interrupt(run_in, "resume=run", "recipe.lr=0.001", "trainer.max_steps=8", after=6)
    assert checkpoint.find("run") == Path("run/checkpoints/best.ckpt")
    with pytest.raises(UserError, match="not a finished run"):
        read_run(Path("run"))
    run_in("train", "resume=run")
    assert checkpoint.find("run") == finished
    assert read_run(Path("run")).settings["recipe.lr"] == "0.001"


def test_files_of_a_user_say_where_and_how_long_to_train(tiny_voc: TinyVOC, run_in: Run) -> None:
    texts = {
        "trainer/long": "max_steps: -1\nmax_epochs: 1\nmin_steps: ${recipe.batch_size}",
        "experiment/steps": "# @package _global_\ntrainer: {max_steps: 5}",
        "experiment/there": "# @package _global_\ndefaults: [steps]\nhydra: {run: {dir: there}}",
    }
    for name, text in texts.items():
        path = Path("mine", f"{name}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    own = [o for o in [*tiny_voc.overrides(), *QUICK] if not o.startswith("trainer.max")]
    for given, steps in (([], 2), (["experiment=steps"], 5), (["experiment=there"], 5)):
        folder = "there" if "experiment=there" in given else "run"
        where = [] if folder == "there" else ["hydra.run.dir=run"]
        run_in("train", "--config-dir", "mine", "trainer=long", *own, *given, *where)
        assert last_step(folder) == steps
        shutil.rmtree(folder)
    assert not list(Path("outputs/train").iterdir())


def test_auto_knows_the_experiment_of_a_config_path(tiny_voc: TinyVOC, run_in: Run) -> None:
    for name in ("one", "two"):
        own = [*tiny_voc.overrides(), *QUICK, f"seed={len(name)}", f"hydra.run.dir={name}"]
        run_in("train", *own, "hydra.job.chdir=false")
    flags = {
        name: ["--config-path", str(Path(name, ".hydra").absolute()), "--config-name", "config"]
        for name in ("one", "two")
    }
    longer = ["trainer.max_steps=6", "hydra.job.chdir=false", "resume=auto"]
    interrupt(run_in, *flags["one"], *longer)
    interrupt(run_in, *flags["two"], *longer)
    assert len(list(Path("outputs/train").iterdir())) == 2
    run_in("train", *flags["one"], *longer)
    assert len(list(Path("outputs/train").iterdir())) == 2


def test_data_that_mean_something_else_are_no_continuation(
    tiny_voc: TinyVOC, run_in: Run, error_line: Run, capsys: Capture
) -> None:
    """Other classes or bands are refused, wherever they stand; another range is validated again."""
    data = [o for o in tiny_voc.overrides() if "data.classes" not in o]
    names = tiny_voc.folder / "dataset.yaml"
    names.write_text("classes: [background, cat, dog]\n")
    interrupt(run_in, *data, *QUICK, "hydra.run.dir=run", after=2)
    names.write_text("classes: [background, dog, cat]\n")
    assert "had the classes background, cat, dog" in error_line("train", "resume=run")
    names.write_text("classes: [background, cat, dog, cow]\n")
    assert "has background, cat, dog, cow" in error_line("train", "resume=run")
    names.write_text("classes: [background, cat, dog]\nbands: [2, 1, 0]\n")
    assert "had the bands RGB, but" in error_line("train", "resume=run")
    names.write_text("classes: [background, cat, dog]\nvalue_range: [0, 200]\n")
    run_in("train", "resume=run")
    shown = capsys.readouterr().out
    assert "value_range of the val images: None -> [0.0, 200.0]" in shown
    assert "best checkpoint so far was validated again" in shown


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_callbacks_of_the_user_keep_files_of_their_own(
    tiny_voc: TinyVOC, run_in: Run, error_line: Run
) -> None:
    target = f"callbacks.mine._target_={CHECKPOINTS}"
    same = ["callbacks.mine.monitor=val/mean_iou", "callbacks.mine.mode=max"]
    own = [*tiny_voc.overrides(), *QUICK, target, *same, "callbacks.mine.filename=best"]
    interrupt(run_in, *own, "hydra.run.dir=run", after=3)
    run_in("train", "resume=run")
    theirs = Path("run") / "checkpoints" / "mine" / "best.ckpt"
    assert run_of(str(theirs)) == Path("run").absolute()
    run_in("train", f"resume={theirs}", "trainer.max_steps=5")
    assert last_step("run") == 5
    run_in("evaluate", f"checkpoint={theirs}", "hydra.run.dir=eval")
    for path in Path("run", "checkpoints").glob("*.ckpt"):
        path.unlink()
    assert "no checkpoint" in error_line("train", "resume=run")
    run_in("train", *own, "hydra.run.dir=run/again", "resume=auto")  # there is none to continue
    shutil.rmtree("run/again")
    Path("run").rename("outputs")
    assert "no run with a checkpoint" in error_line("train", "resume=last")


@pytest.mark.usefixtures("interrupted_run")
def test_a_run_resumes_at_its_last_step_and_without_its_best(run_in: Run) -> None:
    """A copy may change the order of the files' times."""
    best = Path("run") / "checkpoints" / "best.ckpt"
    os.utime(best, (2e9, 2e9))
    interrupt(run_in, "resume=run", after=3)  # from step 3, not 2
    best.unlink()
    run_in("train", "resume=run", "trainer.max_steps=6")
    assert best.is_file()
    assert (Path("run") / "model.safetensors").is_file()
