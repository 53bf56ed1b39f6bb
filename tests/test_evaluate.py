"""What evaluating a model leaves: numbers computed by hand, files, and VOC's submission."""

import json
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fcn.checkpoint import info_metadata, load
from fcn.config import DataConfig, EvaluateConfig, PredictConfig
from fcn.data.layouts import open_split
from fcn.dataset_info import DatasetInfo
from fcn.device import InferenceModel
from fcn.errors import CheckpointError, ConfigError, UserError
from fcn.inference import evaluate as module
from fcn.inference import evaluate_checkpoint, predict_files
from fcn.inference.evaluate import evaluate, evaluate_and_write, read_metrics, read_per_image
from fcn.inference.metrics import metrics_of, tally
from fcn.inference.predictor import Predictor
from fcn.models.upsampling import FixedUpsampling
from fcn.output import make_console
from fcn.training.run import train
from tests.conftest import CPU, QUIET, TinyVOC, write_random_model


class LeftIsCat(nn.Module):
    """Predicts cat in the first 20 columns of every image, else background, at stride 8."""

    arguments = {"upsampling": "none", "num_classes": 3, "stride": 8}  # noqa: RUF012
    reach, period, offset, upscore_final = 0, 1, 4, FixedUpsampling(8)

    def forward(self, image: Tensor) -> Tensor:
        left = (torch.arange(image.shape[-1]) < 20).float().expand(image[:, 0].shape)
        return torch.stack((1 - left, left, -torch.ones_like(left)), 1)


# v0 is 50 x 40 with a cat, v1 is 48 x 64 with a dog, each in rows and columns 10..29, of which the
# first row is ignored: 19 * 20 = 380 pixels, half of them in the first 20 columns.
V0 = [[800, 800, 0], [190, 190, 0], [0, 0, 0]]
V1 = [[1912, 760, 0], [0, 0, 0], [190, 190, 0]]
CONFUSION = [[2712, 1560, 0], [190, 190, 0], [190, 190, 0]]
IOU = [2712 / (4272 + 3092 - 2712), 190 / (380 + 1940 - 190), 0]


@pytest.fixture
def model() -> InferenceModel:
    return InferenceModel(LeftIsCat(), CPU)  # type: ignore[arg-type]


def counted(tiny_voc: TinyVOC, predict: Callable[[str], np.ndarray]) -> list[list[int]]:
    """The confusion matrix of predictions by the images' names, counted with NumPy."""
    confusion = np.zeros((3, 3), int)
    for name in tiny_voc.ids["val"]:
        ground_truth = np.array(Image.open(tiny_voc.mask(name)))
        seen = ground_truth < 255
        np.add.at(confusion, (ground_truth[seen], predict(name)[seen]), 1)
    assert (confusion.sum(0) > 0).sum() > 1
    return confusion.tolist()


def evaluated(config: DataConfig, run: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    """The metrics of a checkpoint, by the command."""
    folder.mkdir()
    cfg = EvaluateConfig(str(run), config, **{"trainer": {"accelerator": "cpu"}} | settings)
    metrics = evaluate_checkpoint.main(cfg, folder, make_console())
    assert metrics is not None
    return metrics


def test_the_metrics_are_those_computed_by_hand(
    tiny_voc: TinyVOC, model: InferenceModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = open_split(tiny_voc.config(), "val")
    metrics = evaluate_and_write(model, dataset, tmp_path, make_console(), data="tiny", split="val")
    assert metrics["confusion"] == CONFUSION
    assert [c["name"] for c in metrics["classes"]] == ["background", "cat", "dog"]
    assert [c["iou"] for c in metrics["classes"]] == pytest.approx(IOU)
    assert [c["accuracy"] for c in metrics["classes"]] == pytest.approx([2712 / 4272, 0.5, 0])
    assert [c["pixels"] for c in metrics["classes"]] == [4272, 380, 380]
    assert metrics["mean_iou"] == pytest.approx(sum(IOU) / 3)
    assert metrics["pixel_accuracy"] == pytest.approx(2902 / 5032)
    assert metrics["mean_accuracy"] == pytest.approx((2712 / 4272 + 0.5) / 3)
    assert metrics["frequency_weighted_iou"] == pytest.approx((4272 * IOU[0] + 380 * IOU[1]) / 5032)
    protocol = {"data": "tiny", "split": "val", "images": 2, "ids_sha256": dataset.fingerprint()}
    protocol |= {"size": "original", "precision": "32-true", "ignore_index": 255}
    protocol |= {"flip": False, "scales": [1.0]}
    assert metrics["protocol"] == protocol | {"model": LeftIsCat.arguments, "upsampling": "none"}
    assert len(metrics["trimap"]) == 20
    assert read_metrics(tmp_path / "metrics.json") == metrics
    ids, per_image = read_per_image(tmp_path / "per_image.npz")
    assert ids == ["v0", "v1"]
    assert torch.equal(per_image, tally(torch.tensor([V0, V1])))
    pictures = {"predictions", "worst", "iou", "confusion", "trimap"}
    assert {path.stem for path in tmp_path.glob("*.png")} == pictures
    assert f"mean IoU {100 * sum(IOU) / 3:.2f} %" in capsys.readouterr().out


def test_the_worst_images_come_first_in_worst_png(
    tiny_voc: TinyVOC, model: InferenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = []

    def panel(rows: list, classes: list[str], texts: list[str]) -> Image.Image:
        captions.append([text.partition(":")[0] for text in texts])
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr(module.visualize, "panel", panel)
    dataset = open_split(tiny_voc.config(), "train")
    evaluate_and_write(model, dataset, tmp_path, QUIET, data="tiny", split="train")
    # Cats: (800 / 1790 + 190 / 1180) / 2 = 30.4 %; dogs: (1912 / 2862 + 0 + 0) / 3 = 22.3 %.
    assert captions == [["t0", "t1", "t2", "t3"], ["t1", "t3", "t0", "t2"]]


def test_batches_change_no_number(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    """Sizes alternate in the split and batches hold one size: the loader's order is another."""
    dataset = open_split(tiny_voc.config(), "train")
    path = write_random_model(tmp_path / "m.safetensors")
    model = InferenceModel(load(path), CPU)
    one, two, all_ = (evaluate(model, dataset, QUIET, batch_size=size) for size in (1, 2, 8))
    assert (one.metrics.confusion.sum(0) > 0).sum() > 1
    for other in (two, all_):
        assert torch.equal(other.metrics.confusion, one.metrics.confusion)
        assert torch.equal(other.per_image, one.per_image)
        assert other.trimap == one.trimap
    for index, (image, target) in enumerate(dataset):  # type: ignore[arg-type, misc]
        labels = model.predict(image[None])[0]
        right = torch.bincount(target[(labels == target)].int(), minlength=3)
        assert torch.equal(one.per_image[index, 0], right)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "settings",
    [
        {"trainer": {"precision": "32-true"}},
        {"trainer": {"precision": "bf16-mixed"}},
        {"trainer": {"precision": "32-true"}, "scales": [0.75]},
        {"trainer": {"precision": "32-true"}, "scales": [0.5, 1.5], "flip": True},
    ],
)
def test_predicted_masks_score_as_evaluation_says(
    tiny_voc: TinyVOC, tmp_path: Path, settings: dict[str, Any]
) -> None:
    run, output = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    write_random_model(run / "model.safetensors")
    metrics = evaluated(tiny_voc.config(), run, tmp_path / "found", **settings)
    expected = {"flip": False, "scales": [1.0], **settings["trainer"], **settings}
    del expected["trainer"]
    assert expected == {key: metrics["protocol"][key] for key in expected}
    source = str(tiny_voc.folder / "JPEGImages")
    cfg = PredictConfig(str(run), source, str(output), **settings)
    predict_files.main(cfg, tmp_path, QUIET)
    masks = counted(tiny_voc, lambda name: np.array(Image.open(output / f"{name}.png")))
    assert masks == metrics["confusion"]


@pytest.mark.usefixtures("no_pictures")
def test_a_deterministic_run_in_bfloat16_is_evaluated_to_its_own_numbers(
    tiny_voc: TinyVOC, tmp_path: Path
) -> None:
    cfg, run = tiny_voc.training(lr=1e-2), tmp_path / "run"
    cfg.trainer |= {"precision": "bf16-mixed", "deterministic": True}
    assert train(cfg, run, QUIET) is not None
    own = read_metrics(run / "metrics.json")
    trainer = {"accelerator": "cpu", "precision": "bf16-mixed"}
    again = evaluated(tiny_voc.config(), run, tmp_path / "again", trainer=trainer)
    assert own["protocol"]["precision"] == again["protocol"]["precision"] == "bf16-mixed"
    assert own["confusion"] == again["confusion"]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", b"{}", b"[1]"])
def test_missing_and_damaged_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    for name, read in (("metrics.json", read_metrics), ("per_image.npz", read_per_image)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read(tmp_path / name)  # type: ignore[operator]


def test_a_split_without_masks_is_submitted_as_vocs_server_takes_it(
    tiny_voc: TinyVOC, tmp_path: Path
) -> None:
    tiny_voc.listing("test").write_text("v1\nv0\n")
    shutil.rmtree(tiny_voc.mask("v0").parent)
    tiny_voc.folder = tiny_voc.folder.rename(tiny_voc.root / "VOC2012")
    data = replace(tiny_voc.config(), folder="VOC2012", split="test")
    run = write_random_model(tmp_path / "m.safetensors")
    cfg = EvaluateConfig(str(run), data, submission=True, trainer={"accelerator": "cpu"})
    assert evaluate_checkpoint.main(cfg, tmp_path, QUIET) is None
    assert not (tmp_path / "metrics.json").exists()
    with tarfile.open(tmp_path / "results.tar.gz", "r:gz") as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(tmp_path / "unpacked")
    folder = tmp_path / "unpacked/results/VOC2012/Segmentation/comp6_test_cls"
    assert len(list((tmp_path / "unpacked").rglob("*.*"))) == 2
    predictor = Predictor(run, "cpu")
    for name in ("v0", "v1"):
        mask = Image.open(folder / f"{name}.png")
        assert mask.mode == "P"
        assert mask.getpalette()[3:6] == [128, 0, 0]  # type: ignore[index]
        assert np.array_equal(mask, predictor(tiny_voc.image(name)))


def test_what_cannot_be_evaluated_is_an_error(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    path = str(write_random_model(tmp_path / "m.safetensors"))
    cfg = EvaluateConfig(checkpoint=path, data=tiny_voc.config(), submission=True)
    with pytest.raises(ConfigError, match="submission"):
        evaluate_checkpoint.main(cfg, tmp_path, QUIET)
    cfg.submission, cfg.data.bands = False, [0, 1]
    with pytest.raises(ConfigError, match=r"^data\.bands=\[0, 1\]: the checkpoint takes 3$"):
        evaluate_checkpoint.main(cfg, tmp_path, QUIET)
    cfg.data.bands = []
    for mask in tiny_voc.mask("v0").parent.iterdir():
        mask.unlink()
    with pytest.raises(ConfigError, match=r"data\.split=.* submission=true"):
        evaluate_checkpoint.main(cfg, tmp_path, QUIET)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("order", [[2, 0, 1], [0, 2, 1]])
def test_classes_are_matched_by_name_whatever_their_order(
    tiny_voc: TinyVOC, tmp_path: Path, capsys: pytest.CaptureFixture[str], order: list[int]
) -> None:
    run = write_random_model(tmp_path / "m.safetensors")
    before = evaluated(tiny_voc.config(), run, tmp_path / "before")
    assert "by name" not in capsys.readouterr().out
    tiny_voc.renumber(order)
    after = evaluated(tiny_voc.config(), run, tmp_path / "after")
    assert capsys.readouterr().out.count("matched by name") == 1
    confusion = np.array(before["confusion"])
    assert len(np.unique(confusion)) > 3
    assert np.array_equal(after["confusion"], confusion[order][:, order])
    for rates in (before, before["ceiling"]), (after, after["ceiling"]):
        assert rates[0]["mean_iou"] == pytest.approx(before["mean_iou"])
        assert rates[1]["mean_iou"] == pytest.approx(before["ceiling"]["mean_iou"])
    assert [c["name"] for c in after["classes"]] == list(tiny_voc.classes)


@pytest.mark.usefixtures("no_pictures")
def test_a_class_that_the_data_lacks_is_named_and_the_advice_works(
    tiny_voc: TinyVOC, tmp_path: Path
) -> None:
    run = write_random_model(tmp_path / "m.safetensors")
    for mask in tiny_voc.mask("v0").parent.iterdir():  # dogs are now unlabelled
        labels = np.array(Image.open(mask))
        Image.fromarray(np.where(labels == 2, 255, labels).astype(np.uint8)).save(mask)
    config = tiny_voc.config()
    config.classes = []
    description = tiny_voc.folder / "dataset.yaml"
    description.write_text("classes: [background, cat]")
    with pytest.raises(CheckpointError, match="has no dog") as caught:
        evaluated(config, run, tmp_path / "first")
    (advice,) = re.findall(r"write (classes: \[.+?\]) in dataset\.yaml", str(caught.value))
    description.write_text(advice)
    metrics = evaluated(config, run, tmp_path / "second")
    assert [c["pixels"] for c in metrics["classes"]][2] == 0


@pytest.mark.usefixtures("no_pictures")
def test_a_class_that_the_model_lacks_is_named_and_the_advice_works(
    tiny_voc: TinyVOC, tmp_path: Path, command: Callable[..., Any], error_line: Callable[..., str]
) -> None:
    run = write_random_model(tmp_path / "m.safetensors", ["background", "cat"])
    settings = [*tiny_voc.overrides(), f"hydra.run.dir={tmp_path}/first"]
    message = error_line("evaluate", f"checkpoint={run}", *settings)
    assert "does not know dog" in message
    (advice,) = re.findall(r"with train\.py (.+?), or", message)
    settings = [*tiny_voc.overrides(), "trainer.max_steps=1", "trainer.precision=32-true"]
    command("train", *advice.split(), *settings, f"hydra.run.dir={tmp_path}/run", "recipe.crop=32")
    settings = [*tiny_voc.overrides(), f"hydra.run.dir={tmp_path}/second"]
    command("evaluate", f"checkpoint={tmp_path}/run", *settings)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("takes", "said"),
    [
        ({}, "bands: [2, 1, 0]"),
        ({"value_range": [9, 200], "bands": [1, 0, 2]}, "value_range: [0.0, 128.0]"),
    ],
)
def test_a_set_does_not_change_what_a_network_was_trained_to_take(
    tiny_voc: TinyVOC,
    tmp_path: Path,
    takes: dict[str, Any],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Evaluation goes by the checkpoint, as prediction does, and names what it leaves out."""
    info = DatasetInfo(list(TinyVOC.classes), **takes)
    run = write_random_model(tmp_path / "m.safetensors", **info_metadata(info))
    before = evaluated(tiny_voc.config(), run, tmp_path / "before")["confusion"]
    assert "as the checkpoint was trained" not in capsys.readouterr().out
    (tiny_voc.folder / "dataset.yaml").write_text(said)
    after = evaluated(tiny_voc.config(), run, tmp_path / "after")["confusion"]
    out = " ".join(capsys.readouterr().out.split())
    key, value = said.split(": ")
    assert f"note: {key}=" in out
    assert f"not {value}, as the data set says; data.{key} overrides both" in out
    predictor = Predictor(run, "cpu")
    assert after == before == counted(tiny_voc, lambda name: predictor(tiny_voc.image(name)))
    wished = tiny_voc.config()
    setattr(wished, key, [0, 128] if key == "value_range" else [2, 1, 0])
    assert evaluated(wished, run, tmp_path / "wished")["confusion"] != before


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("wished", ["value_range=[0,4080]", "bands=[2,1,0]"])
def test_deep_images_are_predicted_as_they_are_evaluated(
    tiny_voc: TinyVOC,
    tmp_path: Path,
    command: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    wished: str,
) -> None:
    """With 16 bits, a range that the set says and the network does not know, and settings."""
    run = write_random_model(tmp_path / "m.safetensors")
    before = evaluated(tiny_voc.config(), run, tmp_path / "before")["confusion"]
    for name in tiny_voc.ids["val"]:
        pixels = np.array(Image.open(tiny_voc.image(name))).astype(np.uint16) * 16
        file = cv2.imencode(".png", pixels[..., ::-1])[1]
        tiny_voc.image(name).write_bytes(file.tobytes())  # its kind is known by its content
    (tiny_voc.folder / "dataset.yaml").write_text("value_range: [0, 4080]")
    folder = tmp_path / "out"
    arguments = [f"checkpoint={run}", *tiny_voc.overrides(), f"hydra.run.dir={folder}"]
    command("evaluate", *arguments, f"data.{wished}")
    said, ranged = " ".join(capsys.readouterr().out.split()), wished.startswith("value_range")
    assert ("data.value_range overrides both" in said) != ranged
    images = tiny_voc.image("v*")
    command("predict", f"checkpoint={run}", f"input='{images}'", f"output={folder}", wished)
    found = json.loads((folder / "metrics.json").read_text())["confusion"]
    assert found == counted(tiny_voc, lambda name: np.array(Image.open(folder / f"{name}.png")))
    assert (found == before) == ranged


@pytest.mark.usefixtures("no_pictures")
def test_nothing_is_overwritten_unasked(
    tiny_voc: TinyVOC, tmp_path: Path, command: Callable[..., Any], error_line: Callable[..., str]
) -> None:
    run = write_random_model(tmp_path / "m.safetensors")
    folder = tmp_path / "out"
    arguments = [f"checkpoint={run}", *tiny_voc.overrides(), f"hydra.run.dir={folder}"]
    command("evaluate", *arguments)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert (folder / ".hydra" / "config.yaml") in before
    message = error_line("evaluate", *arguments, "batch_size=1")
    assert "metrics.json exists; choose another hydra.run.dir, or overwrite=true" in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    command("evaluate", *arguments, "batch_size=1", "overwrite=true")
    assert "batch_size: 1" in (folder / ".hydra" / "config.yaml").read_text()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("submission", [False, True])
def test_each_file_that_is_written_is_not_overwritten_unasked(
    tiny_voc: TinyVOC, tmp_path: Path, command: Callable[..., Any], submission: bool
) -> None:
    run = write_random_model(tmp_path / "m.safetensors")
    tiny_voc.folder.rename(tmp_path / "VOC2012")
    given = [*tiny_voc.overrides(), "data.folder=VOC2012", f"submission={submission}"]
    command("evaluate", f"checkpoint={run}", *given, f"hydra.run.dir={tmp_path}/out")
    written = {path.name for path in (tmp_path / "out").iterdir()} - {"evaluate.log"}
    assert ("results" in written) == submission
    cfg = EvaluateConfig(str(run), tiny_voc.config(), submission=submission)
    for name in written:
        (tmp_path / f"only {name}" / name).mkdir(parents=True)
        with pytest.raises(ConfigError, match=f"{re.escape(name)} exists; choose another hydra"):
            evaluate_checkpoint.main(cfg, tmp_path / f"only {name}", QUIET)


def test_what_a_mean_counts_is_said() -> None:
    """b is only predicted, c in neither: the mean counts a, b and d."""
    confusion = torch.zeros(4, 4, dtype=torch.int64)
    confusion[0, 0] = confusion[0, 1] = confusion[3, 0] = 1
    remark = module.counted_classes_note(confusion, list("abcd"))
    assert remark is not None
    assert "3 of 4 classes" in remark
    assert remark.index(": b;") < remark.index(": c")
    assert int((~metrics_of(confusion).iou.isnan()).sum()) == 3
    assert module.counted_classes_note(torch.eye(4).long(), list("abcd")) is None
