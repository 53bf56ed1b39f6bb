"""Predicting image files: what is found, written, skipped and reported."""

import ctypes
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from torch.nn import functional as F

from fcn.config import PredictConfig
from fcn.errors import ConfigError, DataError
from fcn.inference import predict_files
from fcn.inference.origin import origin_of, read_origin
from fcn.inference.predict_files import find_images, plan_jobs
from fcn.inference.predictor import Predictor
from fcn.output import LOCK, make_console
from fcn.pictures.visualize import overlay, palette_image, voc_palette
from fcn.processes import usable_cores
from tests.conftest import write_random_model

CLASSES = ["background", "cat", "dog", "cow", "bus"]
Predict = Callable[..., str]


def photo(height: int, width: int) -> Image.Image:
    image = F.interpolate(torch.rand(1, 3, 6, 7), (height, width), mode="bilinear")
    return Image.fromarray((image[0].permute(1, 2, 0) * 255).byte().numpy())


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with m.safetensors, and 7 images of three sizes in photos/."""
    monkeypatch.chdir(tmp_path)
    write_random_model(tmp_path / "m.safetensors", CLASSES)
    (tmp_path / "photos").mkdir()
    for index in range(7):
        size = ((40, 50), (50, 40), (33, 70))[index % 3]
        photo(*size).save(tmp_path / "photos" / f"{index}.jpg")
    return tmp_path


@pytest.fixture
def predict(root: Path, capsys: pytest.CaptureFixture[str]) -> Predict:
    """Predict photos/ into out/ unless told otherwise; return what was printed."""

    def run(**settings: object) -> str:
        defaults = {"checkpoint": "m.safetensors", "input": "photos", "output": "out"}
        cfg = PredictConfig(**(defaults | settings))  # type: ignore[arg-type]
        predict_files.main(cfg, root, make_console())
        return capsys.readouterr().out

    return run


def contents(folder: Path | str) -> dict[str, bytes]:
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_masks_overlays_and_probabilities_are_the_predictors(predict: Predict) -> None:
    assert predict(probabilities=True) == "7 images predicted; masks in out\n"
    predictor = Predictor("m.safetensors")
    assert len(contents("out")) == 3 * 7 + 2
    for index in range(7):
        image = Path(f"photos/{index}.jpg")
        mask = Image.open(f"out/{index}.png")
        labels = np.array(mask)
        assert mask.getpalette() == voc_palette().flatten().tolist()
        np.testing.assert_array_equal(labels, predictor(image))
        tinted = overlay(np.array(Image.open(image)), labels)
        np.testing.assert_array_equal(Image.open(f"out/overlays/{index}.png"), tinted)
        with np.load(f"out/{index}.npz") as arrays:
            assert arrays["classes"].tolist() == CLASSES
            np.testing.assert_array_equal(arrays["probabilities"], predictor.probabilities(image))


def test_options_reach_the_predictor(predict: Predict) -> None:
    options = {"flip": True, "scales": [0.75, 1.25], "tile": 1024}
    predict(**options)
    predictor, plain = Predictor("m.safetensors", **options), Predictor("m.safetensors")  # type: ignore[arg-type]
    masks = [np.array(Image.open(f"out/{index}.png")) for index in range(7)]
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(mask, predictor(f"photos/{index}.jpg"))
    assert any((mask != plain(f"photos/{i}.jpg")).any() for i, mask in enumerate(masks))


def test_a_second_run_writes_only_what_is_missing(predict: Predict) -> None:
    predict(output="photos/out")
    first = contents("photos/out")
    Path("photos/out/3.png").unlink()
    Path("photos/out/overlays/4.png").unlink()
    untouched = Path("photos/out/0.png").stat().st_mtime_ns
    assert "2 images predicted, 5 were done before" in predict(output="photos/out")
    assert contents("photos/out") == first
    assert Path("photos/out/0.png").stat().st_mtime_ns == untouched
    assert "0 images predicted, 7 were done before" in predict(output="photos/out")
    assert "7 images predicted; " in predict(output="photos/out", overwrite=True)
    assert contents("photos/out") == first
    for photo in Path("photos").glob("*.jpg"):  # as copying does, or a clock that is ahead
        os.utime(photo, (time.time() + 5000,) * 2)
    os.utime("photos/out/predict.json", (time.time() + 5000,) * 2)
    assert "annotations of 7 images" in predict(output="photos/out", annotations="coco")
    Image.open("photos/2.jpg").rotate(90).save("photos/2.jpg")
    assert "1 images predicted, 6 were done before" in predict(output="photos/out")


def test_masks_of_another_input_or_of_a_person_are_kept(predict: Predict) -> None:
    predict(input="photos/*[012].jpg", output="out")
    before = contents("out")
    shutil.copytree("photos", "moved")
    assert "0 images predicted, 3 were done before" in predict(input="moved/*[012].jpg")
    Path("other").mkdir()
    for index in (0, 1):
        Image.open(f"photos/{index}.jpg").rotate(180).save(f"other/{index}.jpg")
    with pytest.raises(DataError, match="2 of 2 images have no usable mask"):
        predict(input="other", annotations="coco")
    kept = contents("out")
    assert {name: kept[name] for name in before} == before
    assert json.loads(kept["annotations/coco.json"])["images"] == []
    info = Predictor("m.safetensors").info
    palette_image(np.full_like(np.asarray(Image.open("out/1.png")), 1), info).save("out/1.png")
    mask = Image.open("out/2.png")
    mask.putpixel((0, 0), (int(mask.getpixel((0, 0))) + 1) % 2)
    mask.save("out/2.png", pnginfo=read_origin(Path("out/2.png")).as_png())  # an editor keeps it
    before = contents("out")
    for index in (1, 2):
        Image.open(f"photos/{index}.jpg").rotate(90).save(f"photos/{index}.jpg")
    predict(input="photos/*[12].jpg", overlays=False)
    assert all(contents("out")[name] == before[name] for name in ("1.png", "2.png"))
    predict(input="photos/*[12].jpg", overlays=False, overwrite=True)
    assert all(contents("out")[name] != before[name] for name in ("1.png", "2.png"))


@pytest.mark.parametrize("tool", ["coco", "cvat", "labelme", "labelstudio"])
@pytest.mark.parametrize("spoilt", ["colours", "size"])
def test_a_mask_that_is_none_any_more_is_named(predict: Predict, tool: str, spoilt: str) -> None:
    predict()
    mask = Image.open("out/3.png")
    (mask.convert("RGB") if spoilt == "colours" else mask.resize((5, 6), 0)).save("out/3.png")
    with pytest.raises(DataError, match=r"out/3\.png: .*(a mask must be|5 x 6)|1 of 7 images"):
        predict(annotations=tool)


def test_earlier_outputs_in_the_input_are_no_photographs(predict: Predict) -> None:
    predict(output="photos/a")
    printed = predict(output="photos/b")
    assert "7 images predicted" in printed
    assert "14 images in outputs of predict.py are left out: photos/a/0.png, .." in printed


def test_what_is_missing_is_made_from_a_mask_that_was_corrected(predict: Predict) -> None:
    predict(overlays=False)
    info = Predictor("m.safetensors").info
    corrected = np.ones_like(np.asarray(Image.open("out/3.png")))
    palette_image(corrected, info).save("out/3.png")
    before = Path("out/3.png").read_bytes()
    assert "7 images predicted" in predict(probabilities=True, annotations="coco")
    assert Path("out/3.png").read_bytes() == before
    photo = np.array(Image.open("photos/3.jpg"))
    tinted = overlay(photo, corrected, info=info)
    np.testing.assert_array_equal(Image.open("out/overlays/3.png"), tinted)
    found = json.loads(Path("out/annotations/coco.json").read_text())
    ids = {image["file_name"]: image["id"] for image in found["images"]}
    areas = [a["area"] for a in found["annotations"] if a["image_id"] == ids["3.jpg"]]
    assert sum(areas) == corrected.size
    rows = [row.split(",") for row in Path("out/areas.csv").read_text().splitlines()]
    assert [row[1:3] for row in rows if row[0] == "3.png" and row[2] != "0"] == [
        [CLASSES[1], str(corrected.size)]
    ]
    Image.new("L", (3, 3)).save("out/3.png")
    Path("out/overlays/3.png").unlink()
    with pytest.raises(DataError, match="images have no usable mask"):
        predict(probabilities=True)


@pytest.mark.parametrize("between", [None, {}, {"flip": True, "overwrite": True}], ids=str)
@pytest.mark.parametrize("kind", ["overlays", "probabilities"])
@pytest.mark.parametrize("removed", [False, True])
def test_no_output_is_of_an_older_mask(
    predict: Predict, between: dict[str, bool] | None, kind: str, removed: bool
) -> None:
    """In the end the folder is as a fresh one, but for a file of the user, which is kept."""
    every = {"overlays": True, "probabilities": True}
    predict(**every)
    users = {"overlays": "overlays/1.png", "probabilities": "1.npz"}[kind]
    if kind == "overlays":
        photo(20, 30).save(f"out/{users}")
    else:
        np.savez(f"out/{users}", origin=[3, 4])
    before = contents("out")
    for index in (0, 1):
        if removed:
            Path(f"out/{index}.png").unlink()
        Image.open(f"photos/{index}.jpg").rotate(180).save(f"photos/{index}.jpg")
    if between is not None:
        predict(**every | {kind: False} | between)
        assert before.keys() == contents("out").keys()
    settings = every | (between or {}) | {"overwrite": False}
    said = predict(**settings)
    assert f"of which image they are: 1, out/{users}, ..; an earlier version" in said
    predict(**settings, output="fresh")
    assert contents("out") == contents("fresh") | {users: before[users]}
    assert "0 images predicted, 7 were done before" in predict(**settings)
    assert "note" not in predict(**settings | {"overwrite": True})
    assert contents("out") == contents("fresh")


def test_files_of_the_user_are_no_outputs_that_were_not_asked_for(predict: Predict) -> None:
    predict(input="photos/0.jpg", overlays=False)
    files = [Path("out/overlays/c.png"), Path("new/0.jpg"), Path("new/0.npz")]
    for path in files:
        path.parent.mkdir(exist_ok=True)
        photo(20, 30).save(path, "PNG")
    before = [path.read_bytes() for path in files]
    for path in files[:2]:
        predict(input=str(path), output=str(path.parents[-2]), overlays=False)
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npz"])
@pytest.mark.parametrize("content", ["empty", "text", "npy", "zip", "png"])
def test_a_file_of_anything_has_no_origin(root: Path, suffix: str, content: str) -> None:
    file = io.BytesIO(b"by somebody" if content == "text" else b"")
    if content == "npy":
        np.save(file, [3, 4])
    elif content == "zip":
        np.savez(file, classes=CLASSES)
    elif content == "png":
        photo(20, 30).save(file, "PNG")
    (path := root / f"a{suffix}").write_bytes(file.getvalue())
    assert read_origin(path) is None


@pytest.mark.parametrize("error", [SyntaxError, struct.error, OverflowError])
def test_a_mask_with_damaged_exif_has_no_origin(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    origin = origin_of(Path("photos/0.jpg"), Path("a.tif"), "0" * 16).with_labels(np.zeros((8, 8)))
    Image.new("L", (8, 8)).save("a.tif", tiffinfo=origin.as_tiff(ImageFileDirectory_v2()))
    assert read_origin(Path("a.tif")) == origin
    monkeypatch.setattr(Image.Image, "getexif", Mock(side_effect=error))
    assert read_origin(Path("a.tif")) is None


def test_the_overlay_of_a_mask_that_was_corrected_is_drawn_again(predict: Predict) -> None:
    predict()
    mask = Image.open("out/3.png")
    corrected = np.ones_like(np.asarray(mask))
    info, text = Predictor("m.safetensors").info, read_origin(Path("out/3.png"))
    for pnginfo in (None, text.as_png()):  # as editors leave it
        corrected += 1
        palette_image(corrected, info).save("out/3.png", pnginfo=pnginfo)
        before = contents("out")
        assert "1 images predicted, 6 were done before" in predict()
        tinted = overlay(np.array(Image.open("photos/3.jpg")), corrected, info=info)
        np.testing.assert_array_equal(Image.open("out/overlays/3.png"), tinted)
        after = contents("out")
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {"overlays/3.png", "areas.csv"}
        assert "0 images predicted, 7 were done before" in predict()


def test_the_mask_of_another_image_is_no_overlay(predict: Predict) -> None:
    Path("photos/overlays").mkdir()
    photo(20, 30).save("photos/overlays/0.jpg")
    predict(overlays=False)
    mask = contents("out")["overlays/0.png"]
    Image.open("photos/0.jpg").rotate(180).save("photos/0.jpg")
    assert "1 images predicted, 7 were done before" in predict(overlays=False)
    assert "1, out/overlays/0.png" in predict(input="photos/0.jpg")
    assert contents("out")["overlays/0.png"] == mask


def test_masks_that_do_not_say_of_which_image_they_are_are_counted(predict: Predict) -> None:
    assert "note" not in predict()
    for index in (2, 5):
        Image.open(f"out/{index}.png").save(f"out/{index}.png")
        Image.open(f"photos/{index}.jpg").rotate(180).save(f"photos/{index}.jpg")
    said = predict(overlays=False)
    assert "0 images predicted, 7 were done before" in said
    assert "note: masks kept that do not say of which image they are: 2; " in said
    assert said.count("note") == 1
    assert "note" not in predict(overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_run_resumes_to_identical_files(
    predict: Predict, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    predict(output="whole")
    if overwrite:  # predictions with other settings do not count as done
        predict(flip=True)
    write, calls = predict_files.write, []

    def interrupted(*arguments: Any) -> list[int]:
        calls.append(arguments)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(predict_files, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(overwrite=overwrite)
    monkeypatch.setattr(predict_files, "write", write)
    assert "4 images predicted, 3 were done before" in predict()
    assert contents("out") == contents("whole")


def test_predictions_with_other_settings_are_not_mixed(predict: Predict, root: Path) -> None:
    predict()
    before = contents("out")
    write_random_model(root / "other.safetensors", CLASSES)
    for settings in ({"checkpoint": "other.safetensors"}, {"flip": True}, {"scales": [1.0, 2.0]}):
        with pytest.raises(ConfigError, match=r"predict\.json"):
            predict(**settings)
    assert contents("out") == before
    predict(checkpoint="other.safetensors", overwrite=True)
    predict(checkpoint="other.safetensors", output="fresh")
    assert contents("out") == contents("fresh") != before
    recorded = json.loads(Path("out/predict.json").read_text())
    assert len(recorded.pop("checkpoint_sha256")) == 64
    assert recorded == {"precision": "32-true", "flip": False, "scales": [1.0]}


def test_the_network_gets_a_range_and_bands_that_it_can_take(predict: Predict) -> None:
    with pytest.raises(ConfigError, match="from < to"):
        predict(value_range=[9.0, 9.0])
    with pytest.raises(ConfigError, match="takes 3"):
        predict(bands=[0, 1, 2, 3])
    assert not contents("out")


@pytest.mark.parametrize("file", ["3.png", "overlays/3.png", "3.npz", "areas.csv"])
def test_files_of_unknown_origin_are_not_overwritten(predict: Predict, file: str) -> None:
    (path := Path("out", file)).parent.mkdir(parents=True)
    path.write_text("by somebody")
    with pytest.raises(ConfigError, match=rf"out/{file} exists and was not written by"):
        predict(probabilities=True)
    assert contents("out") == {file: b"by somebody"}


def test_unreadable_images_are_reported_and_the_rest_is_done(
    predict: Predict, capsys: pytest.CaptureFixture[str], error_line: Callable[..., str]
) -> None:
    predict(output="before")
    whole = Path("photos/3.jpg").read_bytes()
    Path("photos/3.jpg").write_bytes(whole[: len(whole) // 2])
    Path("photos/no [red]image.png").write_text("not an image")
    with pytest.raises(DataError, match="2 of 8"):
        predict()
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("photos/3.jpg:")
    assert second.startswith("photos/no [red]image.png:")
    assert "6 images predicted" in last
    good = {name: content for name, content in contents("before").items() if "3" not in name}
    assert contents("out") | {"areas.csv": b""} == good | {"areas.csv": b""}
    # They are tried again.
    arguments = ("checkpoint=m.safetensors", "input=photos", "output=out")
    assert "2 of 8" in error_line("predict", *arguments)
    Path("photos/3.jpg").write_bytes(whole)
    Path("photos/no [red]image.png").unlink()
    assert "1 images predicted, 6 were done before" in predict()
    assert contents("out") == contents("before")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/ with sub-folders, and files that are not photographs; all empty."""
    monkeypatch.chdir(tmp_path)
    names = ["b.JPG", "a.jpeg", "two words.png", "sub/a.tif", "sub/deep/a.b.webp"]
    for name in [*names, "notes.txt", "paper.pdf", ".hidden.jpg", ".cache/c.jpg", "masks/b.png"]:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return Path("photos")


def named(source: str, output: str, lines: str = "") -> dict[str, str]:
    images, _ = find_images(source, Path(output), lines.splitlines())
    return {str(path): str(name) for path, name in images.items()}


def test_a_folder_means_every_image_below_it_except_the_output(tree: Path) -> None:
    assert named("photos", "photos/masks") == {
        "photos/a.jpeg": "a",
        "photos/b.JPG": "b",
        "photos/sub/a.tif": "sub/a",
        "photos/sub/deep/a.b.webp": "sub/deep/a.b",
        "photos/two words.png": "two words",
    }
    assert "photos/masks/b.png" in named("photos", "elsewhere")
    below = {"photos/sub/a.tif": "a", "photos/sub/deep/a.b.webp": "deep/a.b"}
    assert named("photos/sub", "photos/masks") == below


def test_a_pattern_keeps_the_folders_that_its_wildcards_match(tree: Path) -> None:
    assert named("photos/**/a*", "out") == {
        "photos/a.jpeg": "a",
        "photos/sub/a.tif": "sub/a",
        "photos/sub/deep/a.b.webp": "sub/deep/a.b",
    }
    assert named("photos/*/*.tif", "out") == {"photos/sub/a.tif": "sub/a"}
    assert list(named(str(tree.resolve() / "*.png"), "out").values()) == ["two words"]
    assert "photos/masks/b.png" not in named("photos/**", "photos/masks")


def test_a_file_and_a_list_go_by_their_own_names(tree: Path) -> None:
    assert named("photos/sub/a.tif", "out") == {"photos/sub/a.tif": "a"}
    both = {"photos/b.JPG": "b", "photos/two words.png": "two words"}
    assert named("-", "out", "photos/two words.png\n\nphotos/b.JPG\nphotos/b.JPG\n") == both


@pytest.mark.parametrize(
    ("source", "output"),
    [("nowhere", "out"), ("photos/*.xyz", "out"), ("-", "out"), ("photos", "photos/../photos")],
)
def test_no_images_are_an_error(tree: Path, source: str, output: str) -> None:
    with pytest.raises(ConfigError, match="input"):
        named(source, output)


@pytest.mark.parametrize(
    ("images", "shared"),
    [
        ({"x/a.jpg": "a", "x/a.png": "a"}, "out/a.png"),
        ({"x/a.jpg": "a", "y/a.jpg": "a"}, "out/a.png"),
        ({"x/overlays/a.jpg": "overlays/a", "x/a.jpg": "a"}, "out/overlays/a.png"),
    ],
)
def test_images_that_share_a_name_are_named_and_the_rest_is_planned(
    images: dict[str, str], shared: str
) -> None:
    paths = {Path(image): Path(name) for image, name in images.items()} | {Path("b.jpg"): Path("b")}
    jobs, lines = plan_jobs(paths, Path("out"), overlays=True, probabilities=True)
    assert [job.image for job in jobs] == [Path("b.jpg")]
    assert len(lines) == 1
    assert lines[0].startswith(f"{', '.join(images)}: all belong to {shared}, so none")


def test_no_image_is_overwritten(tree: Path) -> None:
    images, _ = find_images("photos/two words.png", Path("photos"), [])
    with pytest.raises(ConfigError, match="is an image to predict; choose another output"):
        plan_jobs(images, Path("photos"), overlays=True, probabilities=False)


def test_the_advice_for_a_shared_name_works(
    predict: Predict, error_line: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    photo(20, 30).save("photos/3.tif")
    arguments = ("checkpoint=m.safetensors", "input=photos", "output=out")
    error = error_line("predict", *arguments)
    assert "2 of 8 images have no usable mask" in error
    assert sorted(path.name for path in Path("out").glob("*.png")) == [
        f"{index}.png" for index in (0, 1, 2, 4, 5, 6)
    ]
    assert "1 images predicted" in predict(input="photos/3.tif", output="other")
    Path("photos/3.tif").rename("photos/third.tif")
    assert "2 images predicted, 6 were done before" in predict()


def test_linked_folders_and_what_is_left_out_are_seen(predict: Predict, root: Path) -> None:
    (root / "elsewhere").mkdir()
    photo(20, 30).save("elsewhere/linked.png")
    (root / "photos/day1").symlink_to(root / "elsewhere")
    Path("photos/film.mp4").touch()
    Path("photos/.DS_Store").touch()
    said = predict()
    assert "8 images predicted; " in said
    assert Path("out/day1/linked.png").is_file()
    assert "note: 1 file left out: 1 .mp4 (save their frames as PNG)" in said
    with pytest.raises(ConfigError, match=r"no images found.*; 1 file left out: 1 \.mp4"):
        find_images("photos/*.mp4", Path("out"), [])


GROWTH = """
import ctypes, sys
from pathlib import Path
import numpy as np
from PIL import Image
from fcn.config import PredictConfig
from fcn.device import keep_memory
from fcn.inference import predict_files
from fcn.output import LOCK, make_console

keep_memory()
libc, write, used = ctypes.CDLL(None), predict_files.write, []
fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
info = type("Info", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in fields]})
libc.mallinfo2.restype = info
photos, sizes = Path("many"), np.random.default_rng(0).integers(32, 300, (200, 2))
photos.mkdir()
for number, (height, width) in enumerate(sizes):
    Image.new("RGB", (int(width), int(height)), (number, 90, 9)).save(photos / f"{number:03}.png")


def counted(*arguments):
    pixels = write(*arguments)
    used.append(libc.mallinfo2().uordblks)
    return pixels


predict_files.write = counted
cfg = PredictConfig("m.safetensors", "many", "masks", overlays=False)
cfg.trainer = {"accelerator": "cpu"}
predict_files.main(cfg, Path("."), make_console())
print(min(used[-30:]) - min(used[90:120]))  # oneDNN keeps kernels of the first 80 or so
"""


@pytest.mark.slow  # 200 images
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc counts what is used")
def test_memory_does_not_grow_with_the_sizes_of_images(root: Path) -> None:
    command = [sys.executable, "-c", GROWTH]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout.splitlines()[-1]) < 8_000_000


def test_a_few_large_images_wait_or_one_small_one_a_core() -> None:
    large, cores = predict_files.MAX_QUEUED_PIXELS, usable_cores()
    assert not predict_files._is_full([9] * (cores + 1))
    assert predict_files._is_full([9] * (cores + 2))
    assert predict_files._is_full([large, 1])


def test_a_full_disk_is_named_with_the_file(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    predict(output="before")
    smallest = min(path.stat().st_size for path in Path("before").rglob("*.png"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing more is then an OSError
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (smallest - 1, limits[1]))
        with pytest.raises(OSError, match=r"File too large: 'out") as error:
            predict()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "out" in str(error.value.filename)
    assert not list(Path("out").rglob("*.part"))
