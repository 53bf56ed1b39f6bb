"""The scan of all masks before a run, and sets without a background class."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from fcn import checkpoint
from fcn.config import DataConfig, PrepareDataConfig
from fcn.data import check
from fcn.data.check import class_pixels, count_labels, read_masks, scan
from fcn.data.layouts import open_split
from fcn.dataset_info import DatasetInfo
from fcn.errors import DataError
from fcn.inference.evaluate import one_class_warning
from fcn.inference.predictor import Predictor
from fcn.pictures import visualize
from fcn.tools.prepare_data import inspect
from fcn.tools.prepare_data import main as prepare_data
from tests.conftest import QUICK, QUIET, TinyVOC

COLOURS = [[200, 10, 10], [10, 200, 10], [10, 10, 200]]
STREET = DatasetInfo(["sky", "road", "car"], COLOURS, ignore_index=9, background=False)


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """A folder of three classes without background, label 9 to ignore, described in a file."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for part in ("images", "annotations"):
            (tmp_path / part / split).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((32, 40), np.uint8)
            mask[16:], mask[8:24, 10:30], mask[16] = 1, 2, 9
            image = np.array(COLOURS + [[0, 0, 0]] * 7, np.uint8)[mask] // 2
            image += rng.integers(0, 50, image.shape, dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / f"images/{split}/{number}.png")
            Image.fromarray(mask).save(tmp_path / f"annotations/{split}/{number}.png")
    about = {"classes": STREET.classes, "colours": COLOURS, "ignore_index": 9, "background": False}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(about))
    return tmp_path


def folder(root: Path) -> DataConfig:
    return DataConfig("folder", layout="folder", root=str(root))


def training(root: Path, run: Path) -> list[str]:
    """A run of a few steps on a very small network, as command-line arguments."""
    data = ["data=folder", f"data.root={root}", "data.num_workers=0"]
    return [*data, *QUICK, f"hydra.run.dir={run}"]


def test_a_set_without_background_goes_through_every_command_and_is_described_once(
    street: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    data, run = ("data=folder", f"data.root={street}"), tmp_path / "run"
    command("train", *training(street, run))
    assert checkpoint.read(run / "checkpoints/best.ckpt").info == STREET
    assert checkpoint.read(run).info == Predictor(run).info == STREET
    metrics = json.loads((run / "metrics.json").read_text())
    assert [entry["name"] for entry in metrics["classes"]] == STREET.classes
    assert np.sum(metrics["confusion"]) == 2 * 31 * 40  # without the row of ignored pixels
    pictures = f"input={street}/images/val", f"output={tmp_path}/masks"
    command("predict", f"checkpoint={run}", *pictures, f"hydra.run.dir={tmp_path}/p")
    with Image.open(tmp_path / "masks/0.png") as mask:
        assert mask.getpalette()[:9] == np.ravel(COLOURS).tolist()
    described = (street / "dataset.yaml").rename(street / "elsewhere.yaml")
    undescribed = ("data.num_workers=0", "data.ignore_index=9", f"hydra.run.dir={tmp_path}/e")
    again = command("evaluate", f"checkpoint={run}", *data, *undescribed)
    assert again["confusion"] == metrics["confusion"]
    described.rename(street / "dataset.yaml")
    command("compare", f"runs=[{run},{tmp_path}/e]", f"hydra.run.dir={tmp_path}/c")
    page = (tmp_path / "c/compare.html").read_text()
    assert "rgb(200 10 10)" in page
    assert "missed object" not in page
    shards = tmp_path / "shards"
    command("prepare_data", *data, f"hydra.run.dir={tmp_path}/d", f"shards={shards}")
    assert open_split(DataConfig("s", layout="shards", root=str(shards)), "train").info == STREET


def test_pictures_treat_class_0_as_any_other_where_there_is_no_background() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 1
    image = np.full((40, 40, 3), 100, np.uint8)
    picture = visualize.overlay(image, mask, 0.5, STREET)
    assert picture[0, 0].tolist() == [150, 55, 55]  # half of (200, 10, 10)
    assert picture[9, 15].tolist() == [255] * 3  # the boundary on the side of class 0
    shown = visualize.error_map(mask, 1 - mask, STREET)
    assert np.unique(shown.reshape(-1, 3), axis=0).tolist() == [[240, 228, 66]]  # wrong class
    assert "missed object" not in visualize.error_colours(STREET)
    assert visualize.legend_of([mask], STREET) == {"sky": (200, 10, 10), "road": (10, 200, 10)}


def test_masks_are_read_once_and_counted_again_when_they_change(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(check, "CACHED_FROM", 1)
    split, read, own = open_split(folder(street), "train"), [], check.read_labels_and_palette
    reader = lambda mask: read.append(mask.name) or own(mask)  # noqa: E731
    monkeypatch.setattr(check, "read_labels_and_palette", reader)
    first = count_labels(read_masks(split, QUIET))
    assert first[0, [0, 1, 2, 9]].tolist() == [16 * 40 - 160, 15 * 40 - 140, 300, 40]
    assert sorted(read) == ["0.png", "1.png", "2.png", "3.png"]
    assert np.array_equal(count_labels(read_masks(split, QUIET)), first)
    Image.new("L", (40, 32), 2).save(street / "annotations/train/1.png")
    changed = count_labels(read_masks(split, QUIET))
    assert read[4:] == ["1.png"]
    assert changed[1, 2] == 32 * 40
    assert np.array_equal(np.delete(changed, 1, 0), np.delete(first, 1, 0))
    assert class_pixels(split, QUIET) == changed[:, :3].sum(0).tolist()
    (cache,) = (tmp_path / "cache/fcn-segmentation/masks").iterdir()
    cache.write_text("{")  # damaged: the masks are read again
    assert np.array_equal(count_labels(read_masks(split, QUIET)), changed)
    assert not [path for path in street.iterdir() if path.name.startswith(".")]


def test_a_bad_label_stops_a_run_before_it_starts(
    street: Path, tmp_path: Path, error_line: Callable[..., str]
) -> None:
    bad, run = street / "annotations/train/2.png", tmp_path / "run"
    Image.new("L", (40, 32), 3).save(bad)
    advice = r"2\.png: label 3 .*is 3 your ignore label\? .*or are the classes 1\.\.3"
    with pytest.raises(DataError, match=advice):
        scan([open_split(folder(street), "train")], QUIET, training=False)
    Image.new("L", (40, 32), 77).save(bad)
    assert "2.png: label 77" in error_line("train", *training(street, run))
    assert not (run / "run.json").exists()


def problems_of(root: Path) -> list[str]:
    """What prepare_data finds; a scan before training must find it too, from its cache as well."""
    data = folder(root)
    found = inspect(data, QUIET, 1)[1]
    for _ in range(2):
        said = pytest.raises(DataError, match=re.escape(found[0])) if found else nullcontext()
        with said:
            scan([open_split(data, split) for split in ("train", "val")], QUIET, training=True)
    return found


PALETTE = np.array([*COLOURS, [1, 2, 3], *[[0, 0, 0]] * 6], np.uint8)  # 9 is ignored
PALETTES = {  # of one mask -> whether it contradicts the others
    "sorted": (PALETTE[[1, 0, *range(2, 10)]], True),
    "another used colour": (np.concatenate([PALETTE[:9], PALETTE[:1]]), True),
    "another unused colour": (np.concatenate([PALETTE[:8], PALETTE[:1], PALETTE[9:]]), False),
    "longer": (np.concatenate([PALETTE, PALETTE]), False),
    "shorter": (PALETTE[:3], False),
    "none": (None, False),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("palette", PALETTES)
def test_a_label_has_one_colour_in_all_palettes(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, palette: str, split: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(check, "CACHED_FROM", 1)
    other, contradicts = PALETTES[palette]
    for path in sorted(street.glob("annotations/*/*.png")):
        with Image.open(path) as file:
            mask = file.copy()
        chosen = other if path.match(f"{split}/1.png") else PALETTE
        if chosen is not None:
            mask.putpalette(chosen.ravel().tolist())
        mask.save(path)
    found = problems_of(street)
    assert len(found) == contradicts
    if contradicts:
        assert re.search(rf"{split}.1\.png: label \d has the colour .* in .*train.0\.png", found[0])


TURNS = {  # orientation, height and width as stored, whether the mask is stored upright
    "turned": (6, 32, 40, False),
    "upright": (8, 32, 40, True),
    "half": (3, 32, 40, False),
    "mirrored": (2, 32, 40, False),
    "square": (6, 32, 32, False),
}


@pytest.mark.parametrize("evidence", [(), ("turned",), ("upright",), ("turned", "upright")])
@pytest.mark.parametrize("unclear", ["half", "mirrored", "square"])
def test_masks_whose_size_hides_a_turn_are_judged_by_the_others(
    tmp_path: Path, unclear: str, evidence: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "dataset.yaml").write_text("classes: [sky, road]")
    for split, kinds in (("train", (*evidence, "plain")), ("val", (unclear,))):
        for part in ("images", "annotations"):
            (tmp_path / part / split).mkdir(parents=True)
        for kind in kinds:
            turn, height, width, upright = TURNS.get(kind, (1, 32, 40, True))
            exif, pixels = Image.Exif(), rng.integers(0, 256, (height, width, 3), np.uint8)
            exif[0x0112] = turn
            mask = np.eye(*((width, height) if upright and turn > 4 else (height, width)))
            Image.fromarray(pixels).save(tmp_path / f"images/{split}/{kind}.png", exif=exif)
            Image.fromarray(mask.astype(np.uint8)).save(
                tmp_path / f"annotations/{split}/{kind}.png"
            )
    found = problems_of(tmp_path)
    if "turned" in evidence:
        (problem,) = found
        assert re.search(rf"{unclear}\.png: EXIF .* as .*turned\.png .*exiftool", problem)
        return
    assert not found
    cfg = PrepareDataConfig(data=folder(tmp_path), processes=1)
    notes = prepare_data(cfg, tmp_path / "out", QUIET)["warnings"]
    assert ["does not tell" in note for note in notes] == [True]


def test_numbers_that_rest_on_one_class_are_called_so() -> None:
    def remark(rows: list[list[int]]) -> str:
        return one_class_warning(torch.tensor(rows), ["background", "crack"])

    assert "the masks hold background alone" in remark([[9, 1], [0, 0]])
    assert "predictions hold background alone" in remark([[9, 0], [4, 0]])
    assert "imbalance, where loss.class_weights=balanced" in remark([[9, 0], [4, 0]])
    assert remark([[9, 0], [4, 1]]) == ""


def test_an_absent_class_is_named_before_the_run(street: Path) -> None:
    for path in (street / "annotations/train").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(mask.clip(0, 1)).save(path)
    with (console := Console(width=400)).capture() as output:
        scan([open_split(folder(street), s) for s in ("train", "val")], console, training=True)
    assert output.get().count("no pixel of") == 1
    assert "no pixel of car" in output.get()


CASES = {  # folder of the cases -> what training says
    "binary255": r"hold only 0 and 255; 255 is ignored.*to read 255 as class 1, run .*convert=",
    "rgbmask": r"im01\.png: .* mode RGB; to convert it, run .*convert=",
    "adelike": r"im01\.png: label 3 .*or are the classes 1\.\.3, and 0 is unlabelled\? .*convert=",
    "suffix": r"annotations/train holds im01_mask\.png.* run .*convert=",
    "tifmask": r"annotations/train holds im01\.tif.* run .*convert=",
    "onlytrain": r"images/val: no such folder.*draw a validation split from train, .*convert=",
    "roboflow": r"images/train: no such folder.*convert=",
}


@pytest.mark.parametrize("case", CASES)
def test_what_annotation_tools_leave_is_named_by_prepare_data_and_training(
    cases: Path, tmp_path: Path, error_line: Callable[..., str], case: str
) -> None:
    data = folder(cases / case)
    with pytest.raises(DataError, match=CASES[case]):
        scan([open_split(data, split) for split in ("train", "val")], QUIET, training=True)
    arguments = ["data=folder", f"data.root={cases / case}", f"hydra.run.dir={tmp_path}/p"]
    assert "cannot be trained on" in error_line("prepare_data", *arguments)


def test_a_validation_split_of_another_name_is_named(street: Path) -> None:
    for part in ("images", "annotations"):
        (street / part / "val").rename(street / part / "validation")
    with pytest.raises(DataError, match=r"holds train, validation: choose with data\.val_split="):
        open_split(folder(street), "val")


def test_paths_start_where_the_command_did_whatever_hydra_changes(
    tiny_voc: TinyVOC, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_voc.root)
    arguments = [*tiny_voc.overrides(), "data.root=.", "processes=1", "hydra.job.chdir=true"]
    command("prepare_data", *arguments, "hydra.run.dir=out")
    assert (tiny_voc.root / "out/report.json").is_file()


@pytest.mark.slow
def test_training_needs_nothing_that_windows_lacks(street: Path, tmp_path: Path) -> None:
    """Windows imitated: Unix's signals and process groups are gone before anything is imported."""
    script = """if True:
        import os, platform, signal
        kept = {signal.SIGINT, signal.SIGTERM, signal.SIGABRT, signal.SIGFPE, signal.SIGSEGV}
        for number in set(signal.Signals) - kept:
            delattr(signal, number.name)
        signal.valid_signals = lambda: kept
        del os.setpgrp, os.getpgid
        platform.system = lambda: "Windows"
        from fcn import cli
        cli.run("train")
    """
    command = [sys.executable, "-c", script, *training(street, tmp_path / "run")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run/model.safetensors").is_file()
