"""Training end to end: it can learn, it can be resumed, and it leaves what it promises."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from rich.console import Console

import fcn
from fcn.config import BackboneConfig, ModelConfig, RecipeConfig, TrainConfig, TrainerConfig
from fcn.data import shapes
from fcn.data.files import SegmentationFiles
from fcn.data.voc import voc
from fcn.inference import checkpoint
from fcn.inference.evaluation import evaluate
from fcn.models.fcn import FCN
from fcn.training import module
from fcn.training.loss import segmentation_loss
from fcn.training.recipe import make_optimizer, make_schedule
from fcn.training.run import train
from tests.conftest import TinyVOC


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SegmentationFiles:
    folder = shapes.prepare(tmp_path_factory.mktemp("data"))
    return voc(folder, "train", classes=shapes.CLASSES)


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_two_images_are_learned_by_heart(
    sample: SegmentationFiles, stride: int, upsampling: str
) -> None:
    """Stride 8 on the sample's thin shapes; the coarser ones on truth as coarse as they are."""
    images, targets = two_images(sample)
    if stride > 8:
        targets = torch.zeros_like(targets)
        targets[0, :, 48:], targets[1, 48:, :] = 1, 2
        images[0, 0, :, 48:], images[1, 2, 48:, :] = 0, 0
    model = FCN(stride=stride, num_classes=8, backbone="mini", upsampling=upsampling, dropout=0.0)
    recipe = RecipeConfig(
        name="x", optimizer="adamw", weight_decay=0.0, bias_lr_factor=1.0, schedule="cosine"
    )
    optimizer = make_optimizer(model, recipe, 6e-3)
    steps = 160 if stride == 8 else 80
    schedule = make_schedule(optimizer, recipe, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        segmentation_loss(model(images.float() / 255), targets.long(), "mean").backward()
        optimizer.step()
        schedule.step()
    batches = [(images, targets)]
    result = evaluate(model, batches, 8, device=torch.device("cpu"), bf16=False).scores
    assert result.mean_iou > 0.95, result.iou


def two_images(sample: SegmentationFiles, side: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """Corners of two images that show at least three kinds of objects: uint8 B3HW and BHW."""
    rich = (
        (image[:, :side, :side], target[:side, :side])
        for image, target in (sample[i] for i in range(len(sample)))
        if (counts := target[:side, :side].unique(return_counts=True)[1]).numel() >= 5
        and counts.min() >= 100  # pixels of each class, background and void among them
        and shapes.CLASSES.index("bolt") not in target  # the thinnest: 5 pixels
    )
    images, targets = zip(*islice(rich, 2), strict=True)
    return torch.stack(images).clone(), torch.stack(targets)


def config(tiny_voc: TinyVOC, **recipe: object) -> TrainConfig:
    return TrainConfig(
        data=tiny_voc.config(),
        model=ModelConfig(),
        backbone=BackboneConfig(name="mini", width=4, head_width=8),
        recipe=RecipeConfig(
            **{
                "name": "test",
                "optimizer": "adamw",
                "lr": 1e-3,
                "max_steps": 8,
                "batch_size": 2,
                "crop": 32,
                "val_every": 3,
            }
            | recipe  # type: ignore[arg-type]
        ),
        trainer=TrainerConfig(
            max_steps=8, accelerator="cpu", enable_progress_bar=False, precision="32-true"
        ),
    )


def quiet() -> Console:
    return Console(quiet=True)


def test_a_run_leaves_what_it_promises(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = train(config(tiny_voc), folder, quiet())
    assert run is not None
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "model.safetensors"):
        assert fcn.load(folder / name).arguments["num_classes"] == 3
    for name in ("predictions.png", "confusion.png", "iou.png", "curves.png"):
        assert (folder / name).stat().st_size > 5000
    assert list(folder.glob("events.out.tfevents.*"))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == run.metrics
    assert [c["name"] for c in metrics["classes"]] == list(tiny_voc.classes)
    assert sum(map(sum, metrics["confusion"])) == sum(c["pixels"] for c in metrics["classes"])
    protocol = metrics["protocol"]
    assert (protocol["images"], protocol["split"], protocol["size"]) == (2, "val", "original")
    best, safe = (fcn.load(folder / n) for n in ("checkpoints/best.ckpt", "model.safetensors"))
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(best(image), safe(image))
    about = checkpoint.read(folder / "checkpoints" / "best.ckpt").about
    assert about["training"]["batch_size"] == config(tiny_voc).recipe.batch_size
    assert about["validation"]["mean_iou"] == pytest.approx(metrics["mean_iou"], abs=1e-6)
    assert checkpoint.read(folder / "model.safetensors").about["metrics"] == metrics


@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_ends_as_one_left_alone(
    tiny_voc: TinyVOC, tmp_path: Path, ema_decay: float | None, accumulate: int
) -> None:
    """Bit for bit: weights, batches, dropout, schedule, average."""
    cfg = config(tiny_voc, schedule="cosine", ema_decay=ema_decay, accumulate=accumulate)
    cfg.trainer.accumulate_grad_batches = accumulate
    whole = train(cfg, tmp_path / "whole", quiet())
    interrupted = tmp_path / "interrupted"
    stop = Interrupt(at=5)
    with pytest.raises(SystemError, match="interrupted"), stop:
        train(cfg, interrupted, quiet())
    cfg.resume = "last"
    resumed = train(cfg, interrupted, quiet())
    assert whole is not None
    assert resumed is not None
    assert resumed.metrics == whole.metrics
    last = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        for run in (tmp_path / "whole", interrupted)
    ]
    assert last[0]["global_step"] == last[1]["global_step"] == 8
    for name, tensor in last[0]["state_dict"].items():
        assert torch.equal(tensor, last[1]["state_dict"][name]), name


class Interrupt:
    """Ends training at a step the hard way: nothing gets a chance to save."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __enter__(self) -> None:
        original = self.original = module.SegmentationModule.training_step

        def step(own: module.SegmentationModule, batch: module.Batch, index: int) -> torch.Tensor:
            if own.trainer.global_step >= self.at:
                raise SystemError("interrupted")
            return original(own, batch, index)

        module.SegmentationModule.training_step = step  # type: ignore[method-assign]

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        module.SegmentationModule.training_step = self.original  # type: ignore[method-assign]


@pytest.mark.slow  # the compiler takes its time
def test_a_compiled_run_learns_the_same(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    weights = []
    for compiled in (False, True):
        cfg = config(tiny_voc, optimizer="sgd", lr=1e-2)
        cfg.compile = compiled
        cfg.model.dropout = 0.0  # compiled, it draws from a generator of its own
        run = train(cfg, tmp_path / str(compiled), quiet())
        assert run is not None
        weights.append(fcn.load(run.folder / "model.safetensors").state_dict())
    plain, compiled_weights = weights
    assert plain.keys() == compiled_weights.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled_weights[name], tensor, rtol=1e-3, atol=1e-4)


def test_learned_kernels_move_and_fixed_ones_do_not(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    moved = {}
    for name in ("learned", "cvpr15"):
        cfg = config(tiny_voc)
        cfg.upsampling.name = name
        train(cfg, tmp_path / name, quiet())
        model = fcn.load(tmp_path / name / "checkpoints" / "last.ckpt")
        fresh = FCN(**model.arguments)
        moved[name] = {
            key: float((tensor - fresh.state_dict()[key]).abs().max())
            for key, tensor in model.state_dict().items()
            if key.startswith("upscore")
        }
    assert set(moved["learned"]) == {f"upscore{x}.weight" for x in ("2", "_pool4", "8")}
    assert set(moved["cvpr15"]) == {f"upscore{x}.weight" for x in ("2", "_pool4")}
    assert all(distance > 1e-4 for of in moved.values() for distance in of.values())
