"""What judging leaves: numbers by image, pictures of the worst, files for VOC's server."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from fcn.config import UserError
from fcn.data.datamodule import open_split
from fcn.data.files import DataError
from fcn.inference import report
from fcn.inference.evaluation import predict, read_per_image, ready, write_per_image
from fcn.inference.submission import write_submission
from fcn.metrics import image_confusions, scores, tally
from fcn.models.fcn import FCN
from tests.conftest import TinyVOC
from tests.test_fcn import with_random_scores

CPU = torch.device("cpu")
QUIET = Console(quiet=True)


class Bright(nn.Module):
    """Says cat where an image is bright, else background; `right` in some images only."""

    arguments = {"upsampling": "none"}  # noqa: RUF012

    def forward(self, image: Tensor) -> Tensor:
        bright = image.mean(1) - 0.3
        return torch.stack((-bright, bright, torch.full_like(bright, -9)), 1)


def test_results_by_image_are_in_the_order_of_the_split(tiny_voc: TinyVOC) -> None:
    """Sizes take turns in the split, and batches hold one size: their order is another."""
    files = open_split(tiny_voc.config(), "train")
    evaluation = report.evaluate_split(
        Bright(), files, QUIET, "tiny", device=CPU, bf16=False, batch_size=2
    )
    assert evaluation.per_image.shape == (4, 3, 3)
    assert torch.equal(evaluation.per_image.sum(0), tally(evaluation.scores.confusion))
    for index in range(4):
        image, target = files[index]
        prediction = Bright()(image[None] / 255).argmax(1)
        confusion = image_confusions(prediction, target[None], 3)[0]
        assert torch.equal(evaluation.per_image[index], tally(confusion))


def test_judging_leaves_numbers_and_pictures(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panels = {}

    def panel(rows: list, classes: list[str], captions: list[str]) -> Image.Image:
        panels[len(panels)] = captions
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr(report.panels, "panel", panel)
    files = open_split(tiny_voc.config(), "train")
    folder = tmp_path / "run"
    folder.mkdir()
    metrics = report.judge(
        Bright(), files, folder, QUIET, data="tiny", split="train", device=CPU, bf16=False
    )
    ids, per_image = read_per_image(folder / "per_image.npz")
    assert ids == files.ids
    assert torch.equal(per_image.sum(0), tally(torch.tensor(metrics["confusion"])))
    names = {"predictions", "worst", "iou", "confusion", "trimap"}
    assert {path.stem for path in folder.glob("*.png")} == names
    even, worst = ([caption.partition(":")[0] for caption in panels[i]] for i in (0, 1))
    assert even == files.ids
    iou = {i: scores(image_diagonal(p)).mean_iou for i, p in zip(ids, per_image, strict=True)}
    assert worst == sorted(ids, key=lambda i: iou[i])
    assert len(set(iou.values())) > 1


def image_diagonal(counts: Tensor) -> Tensor:
    """A confusion matrix that has this tally (3, 3), where only two classes are predicted."""
    right, truth, predicted = counts
    confusion = torch.diag(right)
    confusion[0, 1] = truth[0] - right[0]
    confusion[1, 0] = truth[1] - right[1]
    confusion[2, 1] = predicted[1] - right[1] - confusion[0, 1]
    confusion[2, 0] = truth[2] - confusion[2, 1]
    return confusion


def test_results_by_image_survive_the_file_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "per_image.npz"
    counts = torch.randint(0, 2**40, (3, 3, 5))
    write_per_image(path, ["a", "val/ü", "c c"], counts)
    ids, read = read_per_image(path)
    assert ids == ["a", "val/ü", "c c"]
    assert torch.equal(read, counts)
    for damaged in (path.read_bytes()[:100], b"nothing of the kind", b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"per_image\.npz: not the results by image"):
            read_per_image(path)


def test_a_split_without_masks_is_submitted_as_vocs_server_takes_it(
    tiny_voc: TinyVOC, tmp_path: Path
) -> None:
    tiny_voc.listing("test").write_text("v1\nv0\n")
    for mask in tiny_voc.mask("v0").parent.iterdir():
        mask.unlink()
    tiny_voc.mask("v0").parent.rmdir()
    files = open_split(tiny_voc.config(), "test")
    assert not files.labelled()
    with pytest.raises(DataError, match="mask not found"):
        files[0]
    calls: list[None] = []
    archive = write_submission(
        Bright(),  # type: ignore[arg-type]
        files,
        tmp_path,
        "VOC2012",
        "test",
        device=CPU,
        bf16=False,
        advance=lambda: calls.append(None),
    )
    folder = "results/VOC2012/Segmentation/comp6_test_cls"
    assert archive == tmp_path / "results.tar.gz"
    with tarfile.open(archive, "r:gz") as tar:
        contents = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    assert set(contents) == {f"{folder}/v1.png", f"{folder}/v0.png"}
    for name, content in contents.items():
        assert (tmp_path / name).read_bytes() == content
        mask = Image.open(io.BytesIO(content))
        photo = np.asarray(Image.open(tiny_voc.image(Path(name).stem)), np.float32)
        assert mask.mode == "P"
        assert mask.getpalette()[3:6] == [128, 0, 0]
        bright = torch.from_numpy(photo / 255).mean(2) > 0.3
        assert (np.asarray(mask) == bright.numpy()).mean() > 0.999  # but for rounding at 0.3
    assert len(calls) == 2

    tiny_voc.image("v0").unlink()
    before = archive.read_bytes()
    with pytest.raises(DataError, match=r"v0\.jpg: image not found"):
        write_submission(Bright(), files, tmp_path, "VOC2012", "test", device=CPU, bf16=False)  # type: ignore[arg-type]
    assert archive.read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_labels_do_not_depend_on_the_batch() -> None:
    """Nor on rounding: a wide net's scores differ in the last bits from batch to batch."""
    model = with_random_scores(FCN(stride=32, num_classes=5, backbone="mini", width=32)).eval()
    images = torch.randint(0, 256, (16, 3, 64, 96), dtype=torch.uint8)
    for bf16 in (False, True):
        labels = [
            torch.cat([predict(model, part, device=CPU, bf16=bf16) for part in images.split(size)])
            for size in (1, 4, 16)
        ]
        assert len(labels[0].unique()) > 1
        assert torch.equal(labels[0], labels[1])
        assert torch.equal(labels[0], labels[2])


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
def test_weights_rounded_once_score_as_weights_rounded_at_every_call(upsampling: str) -> None:
    torch.manual_seed(3)
    for backbone, width in (("vgg11", 8), ("mini", 8)):
        model = FCN(
            backbone=backbone, width=width, head_width=16, num_classes=5, upsampling=upsampling
        )
        with_random_scores(model).eval()
        image = torch.rand(1, 3, 50, 70).to(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            each_call = model(image)
            ready(model, CPU, bf16=True)
            assert torch.equal(model(image), each_call)
        assert model.backbone.conv1_1.weight.dtype == torch.bfloat16
