"""Segmenting images on disk, as a user does it: what is written, skipped, refused and reported."""

import io
import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

import fcn
from fcn.config import REPOSITORY
from fcn.data import voc
from fcn.inference.checkpoint import write_safetensors
from fcn.visualize import voc_palette
from tests.conftest import TinyVOC
from tests.test_predictor import lively, noise

SCRIPT = REPOSITORY / "scripts" / "predict.py"
CLASSES = ["background", "cat", "dog", "cow", "bus"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with m.safetensors, and 7 images of three sizes in photos/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    write_safetensors(tmp_path / "m.safetensors", lively(), {"classes": CLASSES})
    (tmp_path / "photos").mkdir()
    for index in range(7):
        size = ((40, 50), (50, 40), (33, 70))[index % 3]
        Image.fromarray(noise(*size)).save(tmp_path / "photos" / f"{index}.jpg")
    return tmp_path


def command(
    capsys: pytest.CaptureFixture[str], *arguments: str, script: str = "predict"
) -> tuple[int, str, str]:
    """Runs a script in this process: exit code, what it printed last, and its errors."""
    GlobalHydra.instance().clear()
    given = [f"{script}.py", *arguments]
    if script == "predict":
        given[1:1] = [
            a
            for a in ("checkpoint=m.safetensors", "input=photos", "output=out")
            if not any(b.startswith(a.split("=")[0] + "=") for b in arguments)
        ]
    argv, sys.argv, code = sys.argv, given, 0
    try:
        runpy.run_path(str(REPOSITORY / "scripts" / f"{script}.py"), run_name="__main__")
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    finally:
        sys.argv = argv
    printed = capsys.readouterr()
    return code, printed.out.strip(), printed.err.strip()


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_masks_overlays_and_probabilities_are_the_predictors_own(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, error = command(capsys, "probabilities=true", "batch_size=2")
    assert (code, error) == (0, "")
    assert "7 images segmented; masks in out; " in printed.splitlines()[-1]
    assert printed.endswith(" images per second")
    predictor = fcn.Predictor("m.safetensors")
    assert len(contents(root / "out")) == 3 * 7
    for index in range(7):
        photo = root / "photos" / f"{index}.jpg"
        with Image.open(f"out/{index}.png") as mask, Image.open(photo) as image:
            assert (mask.mode, mask.size) == ("P", image.size)
            assert mask.getpalette() == voc_palette().flatten().tolist()
            labels = np.array(mask)
            overlay = fcn.overlay(np.array(image), labels)
        np.testing.assert_array_equal(labels, predictor(photo))
        np.testing.assert_array_equal(np.array(Image.open(f"out/overlays/{index}.png")), overlay)
        with np.load(f"out/{index}.npz") as arrays:
            assert arrays["classes"].tolist() == CLASSES
            found = arrays["probabilities"]
        assert (found.dtype, found.shape) == (np.float16, (5, *labels.shape))
        np.testing.assert_allclose(found, predictor.probabilities(photo), atol=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_masks_score_as_evaluation_says(
    tiny_voc: TinyVOC,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    """The confusion matrix of the masks on disk, counted by hand, is evaluate.py's."""
    monkeypatch.chdir(tiny_voc.root)
    model = lively(num_classes=3)
    write_safetensors(Path("m.safetensors"), model, {"classes": list(tiny_voc.classes)})
    settings = ["checkpoint=m.safetensors", f"precision={precision}"]
    data = [*tiny_voc.overrides(), "data.split=train", "hydra.run.dir=eval"]
    assert command(capsys, *settings, *data, script="evaluate")[0] == 0
    assert command(capsys, *settings, "input=tiny/JPEGImages")[0] == 0
    confusion = np.zeros((3, 3), int)
    for name in tiny_voc.ids["train"]:
        truth, mask = (
            np.array(Image.open(tiny_voc.mask(name))),
            np.array(Image.open(f"out/{name}.png")),
        )
        np.add.at(confusion, (truth[truth < 255], mask[truth < 255]), 1)
    assert confusion.tolist() == json.loads(Path("eval/metrics.json").read_text())["confusion"]
    assert (confusion.sum(0) > 0).sum() > 1


@pytest.mark.slow
def test_masks_of_real_images_score_as_evaluation_says(
    voc_root: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = lively(num_classes=21)
    write_safetensors(root / "m.safetensors", model, {"classes": voc.CLASSES})
    folder = voc_root / "VOCdevkit" / "VOC2012"
    ids = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    (root / "list.txt").write_text("".join(f"{folder}/JPEGImages/{name}.jpg\n" for name in ids))
    arguments = ["data=voc2012", f"data.root={voc_root}", "hydra.run.dir=eval"]
    assert command(capsys, "checkpoint=m.safetensors", *arguments, script="evaluate")[0] == 0
    with open("list.txt") as lines, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", lines)
        assert command(capsys, "input=-")[0] == 0
    confusion = np.zeros((21, 21), int)
    for name in ids:
        truth = np.array(Image.open(folder / "SegmentationClass" / f"{name}.png"))
        mask = np.array(Image.open(f"out/{name}.png"))
        np.add.at(confusion, (truth[truth < 255], mask[truth < 255]), 1)
    assert confusion.tolist() == json.loads(Path("eval/metrics.json").read_text())["confusion"]


def test_exotic_images_have_masks_of_their_own_upright_size(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = noise(40, 56)
    picture = Image.fromarray(array)
    folder = root / "exotic"
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned a quarter clockwise
    picture.convert("L").save(folder / "grey.png")
    picture.convert("RGBA").save(folder / "alpha.png")
    picture.convert("CMYK").save(folder / "cmyk.JPG")
    picture.convert("P").save(folder / "palette.GIF")
    picture.convert("1").save(folder / "bits.bmp")
    Image.fromarray(array[..., 0].astype(np.uint16) * 257).save(folder / "deep.TIFF")
    picture.transpose(Image.Transpose.ROTATE_90).save(
        folder / "turned.webp", exif=turned, lossless=True
    )
    picture.save(folder / "straight.png")
    code, printed, error = command(capsys, "input=exotic", "overlays=false")
    assert (code, error) == (0, ""), printed
    masks = {path.stem: np.array(Image.open(path)) for path in (root / "out").iterdir()}
    assert {mask.shape for mask in masks.values()} == {(40, 56)}
    assert len(masks) == 8
    for same in ("alpha", "turned"):
        np.testing.assert_array_equal(masks[same], masks["straight"])
    np.testing.assert_array_equal(
        masks["deep"], fcn.Predictor("m.safetensors")(array[..., [0, 0, 0]])
    )


def test_a_second_run_writes_only_what_is_missing(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(capsys, "output=photos/out")
    first = contents(root / "photos" / "out")
    (root / "photos/out/3.png").unlink()
    (root / "photos/out/overlays/4.png").unlink()
    untouched = (root / "photos/out/0.png").stat().st_mtime_ns
    code, printed, _ = command(capsys, "output=photos/out")
    assert code == 0
    assert "2 images segmented, 5 there before; masks in photos/out" in printed
    assert contents(root / "photos" / "out") == first
    assert (root / "photos/out/0.png").stat().st_mtime_ns == untouched
    assert "0 images segmented, 7 there before" in command(capsys, "output=photos/out")[1]
    assert "7 images segmented; masks" in command(capsys, "output=photos/out", "overwrite=true")[1]
    assert contents(root / "photos" / "out") == first
    assert (root / "photos/out/0.png").stat().st_mtime_ns != untouched


def test_a_killed_run_goes_on_to_the_same_folder_bit_for_bit(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(80):
        Image.fromarray(noise(40, 50)).save(root / "photos" / f"many{index}.png")
    settings = ["probabilities=true", "batch_size=3"]
    arguments = ["checkpoint=m.safetensors", "input=photos", "output=out", *settings]
    run = subprocess.Popen([sys.executable, str(SCRIPT), *arguments], stdout=subprocess.DEVNULL)
    while run.poll() is None and len(list(root.glob("out/*.png"))) < 10:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    done = len(list(root.glob("out/*.png")))
    assert 10 <= done < 87
    code, printed, _ = command(capsys, *settings)
    assert code == 0
    assert f"{87 - done} images segmented, {done} there before" in printed
    command(capsys, *settings, "output=whole")
    assert contents(root / "out") == contents(root / "whole")
    assert len(contents(root / "out")) == 3 * 87


def test_bad_images_are_reported_and_the_rest_goes_on(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(capsys, "output=before")
    cut = (root / "photos/3.jpg").read_bytes()
    (root / "photos/3.jpg").write_bytes(cut[: len(cut) // 2])  # its header is whole
    (root / "photos/no [red]image.png").write_text("nothing of the kind")
    code, printed, error = command(capsys)
    assert code == 1
    assert error == "error: 2 of 8 images could not be read; they are named above"
    assert "photos/3.jpg: unreadable image (" in printed
    assert "photos/no [red]image.png: unreadable image (not an image file)" in printed
    assert "6 images segmented; masks in out" in printed.splitlines()[-1]
    good = {name: content for name, content in contents(root / "before").items() if "3" not in name}
    assert contents(root / "out") == good
    code, printed, error = command(capsys)  # they are tried again
    assert code == 1
    assert "0 images segmented, 6 there before" in printed
    (root / "photos/3.jpg").write_bytes(cut)
    (root / "photos/no [red]image.png").unlink()
    assert command(capsys)[0] == 0
    assert contents(root / "out") == contents(root / "before")


def test_a_list_on_standard_input(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"photos/2.jpg\n{root}/photos/5.jpg\ngone.jpg\n"))
    code, printed, error = command(capsys, "input=-", "overlays=false")
    assert code == 1
    assert "gone.jpg: image not found" in printed
    assert "1 of 3 images" in error
    assert sorted(contents(root / "out")) == ["2.png", "5.png"]


def test_patterns_and_single_files(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(capsys, "input=photos/[0-2].jpg")[0] == 1  # Hydra reads [] as a list
    assert command(capsys, 'input="photos/[0-2].jpg"', "overlays=false")[0] == 0
    assert sorted(contents(root / "out")) == ["0.png", "1.png", "2.png"]
    assert command(capsys, "input=photos/*3*", "output=three", "overlays=false")[0] == 0
    assert command(capsys, "input=photos/4.jpg", "output=three", "overlays=false")[0] == 0
    assert sorted(contents(root / "three")) == ["3.png", "4.png"]


def test_options_change_the_mask_as_the_predictors_do(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["flip=true", "scales=[0.75,1,1.25]", "tile=1024"]
    assert command(capsys, *options, "overlays=false")[0] == 0
    predictor = fcn.Predictor("m.safetensors", flip=True, scales=[0.75, 1, 1.25])
    plain = fcn.Predictor("m.safetensors")
    changed = 0
    for index in range(7):
        mask = np.array(Image.open(f"out/{index}.png"))
        assert (mask == predictor(f"photos/{index}.jpg")).mean() > 0.999
        changed += (mask != plain(f"photos/{index}.jpg")).sum()
    assert changed > 100


def test_a_folder_of_other_masks_is_refused_until_overwritten(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(capsys)
    write_safetensors(root / "n.safetensors", lively(), {"classes": CLASSES})
    before = contents(root / "out")
    for arguments, words in (
        (["checkpoint=n.safetensors"], "made with another checkpoint; choose another output, or"),
        (["flip=true"], "made with another flip"),
    ):
        code, _, error = command(capsys, *arguments)
        assert code == 1
        assert words in error
        assert contents(root / "out") == before
    assert command(capsys, "checkpoint=n.safetensors", "overwrite=true")[0] == 0
    command(capsys, "checkpoint=n.safetensors", "output=fresh")
    assert contents(root / "out") == contents(root / "fresh") != before
