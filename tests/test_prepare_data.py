"""What prepare_data.py reports, draws and writes."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fcn.config import DataConfig, PrepareDataConfig
from fcn.data.dataset import read_image
from fcn.data.layouts import open_split
from fcn.errors import ConfigError, DataError
from fcn.tools.prepare_data import inspect, main
from tests.conftest import QUIET, TinyVOC


def problems(data: DataConfig, processes: int = 1) -> list[str]:
    return inspect(data, QUIET, processes)[1]


def wrong_label(d: TinyVOC) -> str:
    Image.new("L", (64, 48), 37).save(d.mask("t3"))
    return r"t3\.png: label 37"


def truncated_jpeg(d: TinyVOC) -> str:
    d.image("t1").write_bytes(d.image("t1").read_bytes()[:-400])
    return r"t1\.jpg: unreadable image"


def missing_mask(d: TinyVOC) -> str:
    d.mask("v0").unlink()
    return r"v0\.png: mask not found"


def another_size(d: TinyVOC) -> str:
    Image.new("L", (48, 64)).save(d.mask("v1"))
    return r"v1\.png: mask is 48 x 64"


def duplicate(d: TinyVOC) -> str:
    d.listing("train").write_text("t0\nt1\nt2\nt3\nt1\n")
    return "t1 is listed 2 times"


def id_in_both_splits(d: TinyVOC) -> str:
    d.listing("val").write_text("v0\nv1\nt2\n")
    return r"t2\.jpg: t2 is in both train and val"


def same_pixels(d: TinyVOC) -> str:
    with Image.open(d.image("t3")) as image:
        image.save(d.image("v1"), format="PNG")  # other bytes
    return r"v1\.jpg: in val, has the same pixels as .*t3\.jpg in train"


def no_list(d: TinyVOC) -> str:
    d.listing("val").unlink()
    return r"val\.txt: no such list"


FIVE = (wrong_label, truncated_jpeg, missing_mask, another_size, duplicate)


@pytest.mark.parametrize(
    ("damages", "processes"),
    [(FIVE, 1), (FIVE, 2), ((id_in_both_splits,), 1), ((same_pixels,), 1), ((no_list,), 1)],
)
def test_each_problem_is_reported_once_by_any_number_of_processes(
    tiny_voc: TinyVOC, damages: tuple[Callable[[TinyVOC], str], ...], processes: int
) -> None:
    messages = [damage(tiny_voc) for damage in damages]
    found = problems(tiny_voc.config(), processes)
    assert len(found) == len(messages)
    for message in messages:
        assert sum(bool(re.search(message, problem)) for problem in found) == 1, message


def masks_of(tiny_voc: TinyVOC, labels: list[int]) -> list[str]:
    """The problems if every training mask holds these labels."""
    for name in tiny_voc.ids["train"]:
        with Image.open(tiny_voc.mask(name)) as old:
            mask = np.resize(np.array(labels, np.uint8), (old.height, old.width))
        Image.fromarray(mask).save(tiny_voc.mask(name))
    return problems(tiny_voc.config())


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 255], r"train\.txt.*hold only 0 and 255; 255 is ignored.*to read 255 as class 1"),
        ([1], "only the label 1; .* at least two classes"),
        ([255], "only the label 255"),
    ],
)
def test_masks_of_fewer_than_two_classes_cannot_be_trained_on(
    tiny_voc: TinyVOC, labels: list[int], words: str
) -> None:
    (problem,) = masks_of(tiny_voc, labels)
    assert re.search(words, problem), problem


def test_two_classes_are_enough_but_the_third_is_named(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    assert masks_of(tiny_voc, [0, 2, 255]) == []
    with (console := Console(width=400)).capture() as output:
        main(PrepareDataConfig(data=tiny_voc.config(), processes=1), tmp_path / "out", console)
    assert "note: train: no pixel of cat" in output.get()
    assert "data=tiny can be trained on, but no training mask shows cat" in output.get()


def test_the_numbers_are_those_of_the_files(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    """Against their definitions, from all pixels at once."""
    Image.new("L", (40, 50), 255).save(tiny_voc.mask("t2"))
    main(PrepareDataConfig(data=tiny_voc.config(), processes=1), tmp_path / "out", QUIET)
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    train, ids = content["splits"]["train"], tiny_voc.ids["train"]
    images = [read_image(tiny_voc.image(i)).reshape(3, -1).numpy() / 255 for i in ids]
    pixels = np.concatenate(images, axis=1)
    assert train["mean"] == pytest.approx(pixels.mean(1))
    assert train["std"] == pytest.approx(pixels.std(1))
    masks = [np.array(Image.open(tiny_voc.mask(i))) for i in ids]
    every = np.concatenate([mask.ravel() for mask in masks])
    assert train["pixels"] == pixels.shape[1]
    assert train["ignored_share"] == pytest.approx((every == 255).mean())
    for k, row in enumerate(train["classes"]):
        assert row["pixels"] == (every == k).sum()
        assert row["images"] == sum(bool((mask == k).any()) for mask in masks)
    assert train["sizes"] == {"smallest": [40, 50], "largest": [64, 48]}
    assert train["ids_sha256"] == open_split(tiny_voc.config(), "train").fingerprint()
    assert content["problems"] == []
    assert content["warnings"] == [f"{tiny_voc.mask('t2')}: all pixels are ignored"]


def test_prepare_data_prints_and_writes_its_report(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120, markup=False)
    folder, cfg = tmp_path / "out", PrepareDataConfig(data=tiny_voc.config(), processes=1)
    main(cfg, folder, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"train +4 +4 +40 x 50 +64 x 48 ", printed)
    assert re.search(r"dog +2 +\d+\.\d\d +1 +\d+\.\d\d", printed)
    assert "data=tiny can be trained on" in printed
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width > 500
    with pytest.raises(ConfigError, match=r"report\.json exists"):
        main(cfg, folder, console)
    shards = str(tiny_voc.folder)
    with pytest.raises(DataError, match="not empty"):
        main(replace(cfg, overwrite=True, shards=shards), folder, console)
    missing_mask(tiny_voc)
    with pytest.raises(DataError, match=r"data=tiny cannot be trained on.*: 1,.*report\.json"):
        main(replace(cfg, overwrite=True), folder, console)
    assert "problem: " in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_command_shows_the_images_as_training_sees_them_and_exits_with_1_if_it_would_fail(
    tiny_voc: TinyVOC, tmp_path: Path, command: Callable[..., Any], error_line: Callable[..., str]
) -> None:
    arguments = [*tiny_voc.overrides(), "processes=1", "overwrite=true"]
    arguments.append(f"hydra.run.dir={tmp_path}/out")
    command("prepare_data", *arguments)
    sheet = tmp_path / "out" / "training.png"
    assert not sheet.exists()
    seen = set()
    for choices in (["recipe=finetune"], ["augmentation=aerial", "recipe.crop=32"]):
        command("prepare_data", *arguments, *choices)
        seen.add(sheet.read_bytes())
    assert len(seen) == 2
    wrong = "recipe.transforms=[{_target_: nowhere.X}]"
    assert "nowhere.X" in error_line("prepare_data", *arguments, wrong)
    assert "recipe.crop=0" in error_line("prepare_data", *arguments, "recipe.crop=0")
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    wrong_label(tiny_voc)
    assert "cannot be trained on" in error_line("prepare_data", *arguments)
