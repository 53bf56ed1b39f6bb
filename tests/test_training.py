"""Training end to end: it can learn, it can be resumed, and it leaves what it promises."""

import json
import os
import signal
import time
from itertools import count, islice
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

import fcn
from fcn import checkpoint
from fcn.config import DataConfig, RecipeConfig
from fcn.data import loaders, shapes
from fcn.data.layouts import open_split
from fcn.errors import Interrupted, TrainingError, UserError
from fcn.inference.metrics import image_confusions, metrics_of
from fcn.models.fcn import FCN
from fcn.training import interruption, module
from fcn.training.interruption import AtomicCheckpoints
from fcn.training.loss import Loss, cross_entropy_loss
from fcn.training.optim import make_optimizer, make_schedule, rate_at
from fcn.training.run import train
from tests.conftest import QUIET, Patch, TinyVOC, Within, kill, last

pytestmark = pytest.mark.usefixtures("listening", "no_pictures")
STEPS = 8  # of TinyVOC.training, which validates after steps 3, 6 and 8


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor]:
    """Corners of two scenes that show at least three kinds of objects: uint8 B3HW and BHW."""
    root = str(tmp_path_factory.mktemp("data"))
    scenes = open_split(DataConfig("shapes", "shapes", root), "train")
    corners = (
        (image[:, :96, :96], target[:96, :96])
        for image, target in (scenes[i] for i in range(len(scenes)))
        if (counts := target[:96, :96].unique(return_counts=True)[1]).numel() >= 5
        and counts.min() >= 100  # pixels of each class
        and shapes.CLASSES.index("bolt") not in target  # the thinnest: 5 pixels
    )
    images, targets = zip(*islice(corners, 2), strict=True)
    return torch.stack(images), torch.stack(targets)


@pytest.mark.parametrize(
    ("stride", "upsampling"), [(8, "fixed"), (8, "learned"), (16, "learned"), (32, "fixed")]
)
def test_two_images_are_learned_by_heart(
    sample: tuple[Tensor, Tensor], stride: int, upsampling: str
) -> None:
    """Stride 8 on thin shapes; the coarser ones on a ground truth as coarse as they are."""
    images, targets = (tensor.clone() for tensor in sample)
    if stride > 8:
        targets = torch.zeros_like(targets)
        targets[0, :, 48:], targets[1, 48:, :] = 1, 2
        images[0, 0, :, 48:], images[1, 2, 48:, :] = 0, 0
    model = FCN(stride=stride, num_classes=8, backbone="mini", upsampling=upsampling, dropout=0.0)
    recipe = RecipeConfig(
        optimizer="adamw", weight_decay=0.0, bias_lr_factor=1.0, schedule="cosine"
    )
    steps = 120 if stride == 8 else 50
    optimizer = make_optimizer(model, recipe, 6e-3)
    schedule = make_schedule(optimizer, recipe, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy_loss(model(images), targets.long(), "mean").backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        prediction = model.eval()(images).argmax(1)
    assert metrics_of(image_confusions(prediction, targets, 8).sum(0)).mean_iou > 0.95


def test_a_run_leaves_what_it_promises(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    mean_iou = train(tiny_voc.training(), folder, QUIET)
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "model.safetensors", ""):
        assert fcn.load(folder / name).arguments["num_classes"] == 3
    assert list(folder.glob("events.out.tfevents.*"))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["mean_iou"] == mean_iou
    assert [c["name"] for c in metrics["classes"]] == list(tiny_voc.classes)
    assert sum(map(sum, metrics["confusion"])) == sum(c["pixels"] for c in metrics["classes"])
    protocol = metrics["protocol"]
    assert (protocol["images"], protocol["split"], protocol["size"]) == (2, "val", "original")
    best, safe = (fcn.load(folder / n) for n in ("checkpoints/best.ckpt", "model.safetensors"))
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(best(image), safe(image))
    metadata = checkpoint.read(folder / "checkpoints" / "best.ckpt").metadata
    assert metadata["training"]["batch_size"] == 2
    assert metadata["validation"]["mean_iou"] == pytest.approx(mean_iou, abs=1e-6)
    assert checkpoint.read(folder / "model.safetensors").metadata["metrics"] == metrics
    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["recipe"]["lr"] == 1e-3
    assert [d["images"] for d in record["data"].values()] == [4, 2]


def assert_same_end(one: Path, other: Path) -> None:
    """The same weights, bit for bit, and the same metrics.json."""
    ours, theirs = last(one)["state_dict"], last(other)["state_dict"]
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert (one / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes()


def test_a_run_stopped_in_any_step_ends_as_one_left_alone(
    tiny_voc: TinyVOC, tmp_path: Path
) -> None:
    """By SIGTERM and SIGINT alternately; the signals' handlers are afterwards as before."""
    cfg = tiny_voc.training(schedule="cosine")
    train(cfg, tmp_path / "whole", QUIET)
    run, numbers = tmp_path / "stopped", (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    for step in range(STEPS):
        number = numbers[step % 2]
        stop = Within("training_step", step, kill(number))
        with stop, pytest.raises(Interrupted, match=f"step {step + 1},") as stopped:
            train(cfg, run, QUIET)
        assert stopped.value.code == 128 + number
        assert [signal.getsignal(number) for number in numbers] == before
        assert last(run)["global_step"] == step + 1
        cfg.resume = "last"
    train(cfg, run, QUIET)
    assert_same_end(run, tmp_path / "whole")


def test_an_average_of_weights_follows_a_run_of_few_steps(
    tiny_voc: TinyVOC, tmp_path: Path
) -> None:
    """A constant decay of 0.999 would leave it where it started: 8 steps move it by 0.8 %."""
    cfg = tiny_voc.training(ema_decay=0.999)
    train(cfg, tmp_path, QUIET)
    name, kept = "head.fc7.weight", last(tmp_path)
    average, now = (kept[key][f"model.{name}"] for key in ("state_dict", "current_model_state"))
    torch.manual_seed(cfg.seed)
    start = FCN(**checkpoint.read(tmp_path / "model.safetensors").metadata["model"])
    moved, whole = (tensor - start.get_parameter(name) for tensor in (average, now))
    assert 0.5 < moved.norm() / whole.norm() < 0.99


def test_a_validation_that_is_due_is_finished_first(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    cfg = tiny_voc.training(ema_decay=0.9)
    train(cfg, tmp_path / "whole", QUIET)
    cfg.data.num_workers = 2
    stop = Within("validation_step", 2, kill(signal.SIGTERM))
    with stop, pytest.raises(Interrupted, match="step 3,"):
        train(cfg, tmp_path / "run", QUIET)
    cfg.resume = "last"
    train(cfg, tmp_path / "run", QUIET)
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_a_second_signal_stops_at_once(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    stop = pytest.raises(Interrupted, match=r"stopped at once by SIGINT.*last\.ckpt is kept")
    with Within("training_step", 4, twice), stop as stopped:
        train(tiny_voc.training(), tmp_path, QUIET)
    assert stopped.value.code == 130
    assert last(tmp_path)["global_step"] == 3  # of the validation before


def test_a_signal_ends_a_wait_for_data_that_never_comes(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: Patch
) -> None:
    """As when the loading processes have died of too little shared memory."""
    drawn, original = count(), loaders.TrainingSamples.__getitem__

    def getitem(own: loaders.TrainingSamples, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        if next(drawn) == 9:  # of the fifth batch of two
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return original(own, item)

    monkeypatch.setattr(loaders.TrainingSamples, "__getitem__", getitem)
    monkeypatch.setattr(interruption, "DATA_PATIENCE", 0.2)
    begin = time.monotonic()
    with pytest.raises(Interrupted, match=r"SIGTERM after step \d, saved") as stopped:
        train(tiny_voc.training(), tmp_path, QUIET)
    assert stopped.value.code == 143
    assert time.monotonic() - begin < 30
    assert last(tmp_path)["global_step"] in (3, 4)


def test_in_a_slurm_job_sigusr1_stops_after_the_step(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: Patch
) -> None:
    job = {"JOB_ID": "1", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    job |= {"JOB_NAME": "train", "JOB_NODELIST": "localhost"}
    for key, value in job.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    stop = Within("training_step", 4, kill(signal.SIGUSR1))
    with stop, pytest.raises(Interrupted, match="SIGUSR1 after step 5"):
        train(tiny_voc.training(), tmp_path, QUIET)


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    writer, path = AtomicCheckpoints(), tmp_path / "last.ckpt"
    writer.save_checkpoint({"weights": torch.zeros(5)}, path)
    whole = path.read_bytes()
    (tmp_path / "last.ckpt.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"last\.ckpt.*No space left"):
        writer.save_checkpoint({"weights": torch.ones(10**6)}, path)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_resumed_at_another_rate_learns_at_that_rate(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: Patch
) -> None:
    cfg = tiny_voc.training(schedule="cosine")
    with Within("training_step", 4, kill(signal.SIGTERM)), pytest.raises(Interrupted):
        train(cfg, tmp_path, QUIET)
    cfg.resume, cfg.recipe.lr, cfg.recipe.weight_decay = "last", 2e-4, 0.25
    rates: list[float] = []
    original = module.SegmentationModule.training_step

    def step(own: module.SegmentationModule, batch: module.Batch, index: int) -> Tensor:
        group = own.trainer.optimizers[0].param_groups[0]
        assert group["weight_decay"] == 0.25
        rates.append(group["lr"])
        return original(own, batch, index)

    monkeypatch.setattr(module.SegmentationModule, "training_step", step)
    train(cfg, tmp_path, QUIET)
    assert rates == pytest.approx([2e-4 * rate_at(t, cfg.recipe, STEPS) for t in (5, 6, 7)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_resumed_without_clipping_has_a_fused_optimizer(
    tiny_voc: TinyVOC, tmp_path: Path
) -> None:
    cfg = tiny_voc.training()
    cfg.trainer |= {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed"}
    cfg.trainer["gradient_clip_val"] = 1.0  # which excludes it
    with Within("training_step", 4, kill(signal.SIGTERM)), pytest.raises(Interrupted):
        train(cfg, tmp_path, QUIET)
    cfg.resume = "last"
    del cfg.trainer["gradient_clip_val"]
    train(cfg, tmp_path, QUIET)
    assert last(tmp_path)["global_step"] == STEPS


@pytest.mark.parametrize("kind", ["nan", "step too large"])
def test_a_loss_that_is_no_number_stops_the_run_and_names_its_images(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: Patch, kind: str
) -> None:
    """The checkpoints of the last sound validation stay."""
    calls = iter(range(100))

    def make_loss(*_: object) -> Loss:
        def loss(score: Tensor, target: Tensor) -> Tensor:
            training = score.requires_grad
            factor = float("nan") if kind == "nan" else 1e38
            due = training and next(calls) == 4
            return cross_entropy_loss(score, target, "mean") * (factor if due else 1)

        return loss

    monkeypatch.setattr("fcn.training.run.make_loss", make_loss)
    with pytest.raises(TrainingError) as error:
        train(tiny_voc.training(optimizer="sgd", lr=1e-2), tmp_path, QUIET)
    assert "step" in str(error.value)
    if kind == "nan":
        assert "in step 5" in str(error.value)
        assert any(f"images {name}" in str(error.value) for name in tiny_voc.ids["train"])
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        saved = torch.load(path, weights_only=True)
        assert saved["global_step"] == 3
        assert all(t.abs().max() < 1e3 for t in saved["state_dict"].values())


def test_one_class_everywhere_is_reported_once(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    cfg = tiny_voc.training(lr=1e-7)
    cfg.trainer["val_check_interval"] = 1
    with (console := Console(width=400)).capture() as output:
        train(cfg, tmp_path, console)
    assert output.get().count("every pixel was predicted background") == 1


def test_learned_kernels_move_and_fixed_ones_do_not(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    moved = {}
    for name in ("learned", "cvpr15"):
        cfg = tiny_voc.training()
        cfg.upsampling.name = name
        train(cfg, tmp_path / name, QUIET)
        model = fcn.load(tmp_path / name / "checkpoints" / "last.ckpt")
        fresh = FCN(**model.arguments).state_dict()
        moved[name] = {
            key: float((tensor - fresh[key]).abs().max())
            for key, tensor in model.state_dict().items()
            if key.startswith("upscore")
        }
    assert set(moved["learned"]) == {f"upscore{x}.weight" for x in ("2", "_pool4", "8")}
    assert set(moved["cvpr15"]) == {f"upscore{x}.weight" for x in ("2", "_pool4")}
    assert all(distance > 1e-4 for of in moved.values() for distance in of.values())


def test_a_fast_dev_run_leaves_no_model(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    cfg = tiny_voc.training()
    cfg.trainer["fast_dev_run"] = True
    assert train(cfg, tmp_path, QUIET) is None
    assert not list(tmp_path.glob("**/*.ckpt"))


def test_without_validation_the_last_checkpoint_is_evaluated(
    tiny_voc: TinyVOC, tmp_path: Path
) -> None:
    cfg = tiny_voc.training()
    cfg.trainer["limit_val_batches"] = 0
    assert train(cfg, tmp_path, QUIET) is not None
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.slow  # the compiler needs its time
def test_a_compiled_run_learns_the_same(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    weights = []
    for compiled in (False, True):
        cfg = tiny_voc.training(optimizer="sgd", lr=1e-2)
        cfg.compile = compiled
        cfg.model.dropout = 0.0  # compiled, it draws from a generator of its own
        train(cfg, tmp_path / str(compiled), QUIET)
        weights.append(fcn.load(tmp_path / str(compiled)).state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)
