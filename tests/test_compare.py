"""Runs of a sweep: how they are named, grouped and compared, and the page about them."""

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from fcn.checkpoint import write_safetensors
from fcn.compare import compare, gallery, report
from fcn.compare.comparison import FEW_IMAGES, Group, _letters, compare_runs
from fcn.compare.runs import Run, find_runs, read_run
from fcn.config import CompareConfig, EvaluateConfig, TrainConfig, flat_keys
from fcn.data.layouts import open_split
from fcn.device import InferenceModel
from fcn.errors import ConfigError, UserError
from fcn.inference import evaluate, metrics
from fcn.inference.metrics import METRICS, estimate, rates, resample, tally
from fcn.inference.predictor import Predictor
from fcn.output import make_console, percent
from fcn.pictures import page, visualize
from fcn.training import record
from tests.conftest import QUICK, TinyVOC, random_model

QUIET = make_console(quiet=True)
NASTY = "<b>&\"x'"


class Reader(HTMLParser):
    """Collects start tags as (name, attributes), and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def run_of(confusions: Tensor, names: str | list[str], folder: str, **given: Any) -> Run:
    """Return a run with a confusion matrix for each image, int (N, K, K), of K classes."""
    per_image, pixels = tally(confusions), confusions.sum((0, 2)).tolist()
    mean_iou = float(rates(per_image.sum(0))["mean_iou"])
    metrics = {
        "mean_iou": mean_iou,
        "trimap": [None, mean_iou, mean_iou / 2, None],
        "classes": [{"name": n, "pixels": p} for n, p in zip(names, pixels, strict=True)],
        "protocol": {"data": "tiny", "split": "val", "images": len(confusions)},
    }
    ids = [f"image {i}" for i in range(len(confusions))]
    typed = {key: str(value) for key, value in flat_keys(given).items()}
    data = given.get("data", {})
    return Run(Path("sweep", folder), dict(given), typed, data, metrics, ids, per_image)


def make_run(correct: list[int], folder: str = "0", **given: Any) -> Run:
    """Return a run on images of ten pixels of class 0, the other ones taken for class 1.

    Its mean IoU is half of the share of correct pixels: class 1 has an IoU of 0.
    """
    confusions = torch.tensor([[[right, 10 - right], [0, 0]] for right in correct])
    return run_of(confusions, ["background", "thing"], folder, **given)


def described(*runs: Run) -> list[str]:
    return [group.description for group in compare_runs(runs).groups]


def difference(group: Group) -> float | None:
    """How far the mean IoU of a group is above that of the one it is compared with."""
    assert group.differences is not None
    return group.differences.metrics["mean_iou"].value


def test_groups_are_named_by_the_settings_given_that_differ() -> None:
    fixed = {"seed": 0, "upsampling": "fixed", "lr": 1, "data": {"root": "a"}}
    learned = fixed | {"seed": 1, "upsampling": "learned", "data": {"root": "b"}}
    runs = [make_run([4], **given) for given in (fixed, learned, learned | {"lr": 2})]
    assert described(*runs[:2]) == ["upsampling=fixed", "upsampling=learned"]
    assert described(*runs) == [
        f"upsampling={end}" for end in ("fixed lr=1", "learned lr=1", "learned lr=2")
    ]
    assert described(make_run([4], **fixed), make_run([4], **fixed | {"seed": 1})) == ["sweep/0"]


@pytest.mark.parametrize("key", ["folder", "folds", "fold_seed", "root_of_all", "limit"])
def test_only_whole_names_of_settings_are_left_out(key: str) -> None:
    """data.fold may differ in a row; data.folder may not, though its name begins so."""
    runs = [make_run([4], seed=n, data={"fold": 0, key: n}) for n in (1, 2)]
    assert described(*runs) == [f"data.{key}=1", f"data.{key}=2"]


def test_the_settings_that_a_choice_brings_are_not_named_and_a_default_is() -> None:
    heavy, modern = (
        make_run([4], recipe={"name": name, "lr": lr}) for name, lr in (("heavy", 1), ("modern", 2))
    )
    heavy.given, modern.given = {}, {"recipe": "modern"}
    assert described(heavy, modern) == ["recipe=heavy", "recipe=modern"]


def test_rows_that_nothing_typed_tells_apart_are_named_by_a_setting_or_their_folders() -> None:
    edited = [make_run([4], str(lr), seed=lr, lr=lr, wd=lr) for lr in (1, 2)]
    for run in edited:
        run.given = {}
    assert described(*edited) == ["lr=1", "lr=2"]  # not two seeds of one setting
    again = [make_run([4], folder, seed=0, lr=1) for folder in ("a", "b")]
    assert described(*again) == ["run=sweep/a", "run=sweep/b"]
    assert described(*again, make_run([4], "c", lr=2)) == [
        "lr=1 run=sweep/a",
        "lr=1 run=sweep/b",
        "lr=2 run=sweep/c",
    ]


@pytest.mark.parametrize("brought", [0, 1])
def test_a_choice_is_a_name_only_if_it_brings_what_differs(brought: int) -> None:
    """Typed or by default, it is the same choice."""
    runs = [
        make_run([4], seed=seed, upsampling={"name": net}, recipe={"crop": crop})
        for seed, net, crop in ((0, "x", 0), (1, "x", 0), (2, "y", brought))
    ]
    for run, recipe in zip(runs, ("-", "sample", "modern"), strict=True):
        run.given = (
            {"recipe": recipe, "augmentation": "none"} if run.seed != "0" else {"upsampling": "x"}
        )
    names = [" recipe=sample", " recipe=modern"] if brought else ["", ""]
    assert described(*runs) == [f"upsampling=x{names[0]}", f"upsampling=y{names[1]}"]


def test_groups_average_over_seeds_and_differ_in_pairs() -> None:
    # Shares of correct pixels: fixed 40 % and 60 %, learned 60 % (seed 0) and 90 % (seed 5).
    found = compare_runs(
        [
            make_run([4, 4], seed=0, upsampling="fixed"),
            make_run([6, 6], seed=1, upsampling="fixed"),
            make_run([8, 4], seed=0, upsampling="learned"),
            make_run([9, 9], seed=5, upsampling="learned"),
        ]
    )
    fixed, learned = found.groups
    assert found.mean_iou(fixed) == pytest.approx([0.2, 0.3])
    assert found.trimap(fixed)[:3] == [None, pytest.approx(0.25), pytest.approx(0.125)]
    assert fixed.differences is None
    assert difference(learned) == pytest.approx(0.3 - 0.2)  # seed 0 alone is in both
    _, first, second = compare.table(found)
    spread = "25.00 to 25.00"  # its images are alike
    assert first == ["A", "25.00", "-", "-", spread, "20.00 to 30.00", "12.50", "0 1"]
    assert second[:3] == ["B", "37.50", "+10.00"]
    content = json.loads(json.dumps(compare.as_json(found)))
    assert content["groups"][0]["difference"] is None
    assert content["groups"][0]["trimap"][0] is None
    assert content["groups"][1]["seeds"] == ["0", "5"]
    assert content["groups"][1]["difference"]["mean_iou"]["value"] == pytest.approx(0.1)


def of(fold: int, correct: list[int], net: str, seed: int = 0) -> Run:
    """Return a run on the images of a fold, see `make_run`."""
    run = make_run(
        correct, f"{net}{fold}{seed}", seed=seed, net=net, data={"fold": fold, "name": "tiny"}
    )
    run.ids = [f"{name} of fold {fold}" for name in run.ids]
    return run


def test_every_mean_is_over_the_seeds_of_a_fold_and_then_over_the_folds() -> None:
    """A has three seeds of fold 0, B one: with the same numbers, they are equally good."""
    seeds = [of(0, [2], "a", seed) for seed in range(3)]
    found = compare_runs([*seeds, of(1, [8], "a"), of(0, [2], "b"), of(1, [8], "b")])
    assert [row[1] for row in compare.table(found)[1:]] == ["25.00", "25.00"]
    for group, content in zip(found.groups, compare.as_json(found)["groups"], strict=True):
        assert content["interval"]["value"] == pytest.approx(0.25)
        assert fmean(found.dots(group)) == pytest.approx(0.25)
        assert found.trimap(group)[1] == pytest.approx(0.25)
    shown = {name: [one and one.value for one in row] for name, _, row in report._numbers(found)}
    assert shown["background"] == [pytest.approx(0.5), pytest.approx(0.5), 0]
    assert shown["mean IoU"] == [pytest.approx(0.25), pytest.approx(0.25), 0]


def test_networks_of_folds_on_one_test_set_are_a_row() -> None:
    """Like seeds, and in pairs; the images are not divided."""
    data = {"split": "test", "train_split": "train", "val_split": "val", "name": "tiny"}
    correct = {"a": (2, 4, 6), "b": (5, 6)}
    runs = [
        make_run([right], net=net, seed=0, data=data | {"fold": fold})
        for net, shares in correct.items()
        for fold, right in enumerate(shares)
    ]
    found = compare_runs(runs)
    first, second = found.groups
    assert compare.table(found)[1][1] == "20.00"
    assert compare.table(found)[1][-1] == "0, 3 folds"
    assert found.dots(first) == pytest.approx([0.1, 0.2, 0.3])
    assert difference(second) == pytest.approx(((5 - 2) + (6 - 4)) / 2 / 20)
    assert [group["folds"] for group in compare.as_json(found)["groups"]] == [[0, 1, 2], [0, 1]]
    assert found.notes[0] == "Not in every row: fold 2"
    assert found.protocol["images"] == 1


def test_groups_average_over_folds_and_differ_fold_by_fold() -> None:
    """Folds have other images, and another number of them; b lacks a fold and has a second seed."""
    a = [of(0, [2, 4], "a"), of(1, [6, 8, 4], "a"), of(2, [8], "a")]
    b = [of(0, [4, 6], "b"), of(1, [6, 9, 9], "b", 1), of(1, [7, 7, 7], "b")]
    found = compare_runs([*a, *b])
    first, second = found.groups
    assert found.mean_iou(first) == pytest.approx([0.15, 0.3, 0.4])
    row = compare.table(found)[1]
    assert (row[1], row[-1]) == (percent(0.85 / 3), "0, 3 folds")
    interval = estimate(found.average(first), "mean_iou")[0]
    assert interval.low < interval.value < interval.high  # type: ignore[operator]
    assert interval.value == pytest.approx(0.85 / 3)
    assert difference(second) == pytest.approx(((0.25 - 0.15) + (0.35 - 0.3)) / 2)  # of seed 0
    content = compare.as_json(found)
    assert (content["data"], content["images"]) == ("tiny (folds 0, 1, 2)", 6)
    assert "Not in every row: fold 2, seed 1" in found.notes
    with pytest.raises(UserError, match="no fold in common"):
        compare_runs([a[0], b[1]])
    with pytest.raises(UserError, match="different images"):
        compare_runs([a[0], of(0, [1, 2, 3], "b")])
    with pytest.raises(UserError, match="apart"):
        compare_runs([a[0], make_run([1], seed=0, net="b")])


def test_a_class_that_a_fold_lacks_is_left_out_of_that_fold_alone() -> None:
    """c is in the masks of fold 1 alone; in fold 0 one of two runs predicts it."""

    def of(fold: int, c: list[int], net: str) -> Run:
        run = make_run([4], net, net=net, data={"fold": fold, "name": "tiny"})
        run.metrics["classes"].append({"name": "c", "pixels": c[1]})
        third = torch.tensor(c).reshape(1, 3, 1)
        run.per_image = torch.cat([run.per_image, third], 2)
        return run

    runs = [of(0, [0, 0, 1], "x"), of(0, [0, 0, 0], "y"), of(1, [5, 5, 5], "x")]
    found = compare_runs([*runs, of(1, [4, 5, 4], "y")])
    assert "Means of fold 0 leave out c, of which not all runs have an IoU" in found.notes
    assert found.shared == {0: ["background", "thing"], 1: ["background", "thing", "c"]}
    assert found.mean_iou(found.groups[0]) == pytest.approx([0.2, (0.4 + 0 + 1) / 3])
    assert compare.table(found)[1][1] == percent(fmean([0.2, 1.4 / 3]))
    assert compare.as_json(found)["groups"][0]["interval"]["value"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("false", list(product((0, 1), repeat=4)))
def test_what_is_said_of_a_class_in_no_mask_is_true(false: tuple[int, ...]) -> None:
    """Two networks on two folds, each of which may predict c."""
    runs = list[Run]()
    for (fold, net), predicted in zip(product((0, 1), "xy"), false, strict=True):
        confusions = torch.tensor([[[8, 2, 0], [0, 10 - predicted, predicted], [0, 0, 0]]])
        data = {"fold": fold, "name": "tiny"}
        runs.append(run_of(confusions, "abc", f"{net}{fold}", net=net, data=data))
    found, counted = compare_runs(runs), [all(false[:2]), all(false[2:])]
    assert [("c" in names) for names in found.shared.values()] == counted
    for fold in (0, 1):
        note = f"Means of fold {fold} leave out c, of which not all runs have an IoU"
        assert (note in found.notes) == (any(false) and not counted[fold])
    for change in (group["difference"] for group in compare.as_json(found)["groups"]):
        assert change is None or ("c" in change["classes"]) == any(counted)


def with_false_c(net: str, seed: int, missed: int, false: int, *more: list[list[int]]) -> Run:
    """Return a run on 10 pixels of a, some taken for b, 10 of b, some for c, and `more` images."""
    image = [[10 - missed, missed, 0], [0, 10 - false, false], [0, 0, 0]]
    confusions = torch.tensor([image, *more])
    return run_of(confusions, "abc", f"{net}{seed}", net=net, seed=seed)


@pytest.mark.parametrize("false", list(product((0, 1), repeat=4)))
def test_seeds_are_averaged_over_the_classes_that_each_of_them_has(false: tuple[int, ...]) -> None:
    """c is in no mask: it counts where every seed of both rows predicts it, as in a single pair."""
    rows = [("A", 0, 2), ("A", 1, 2), ("B", 0, 0), ("B", 1, 0)]
    found = compare_runs([with_false_c(*row, n) for row, n in zip(rows, false, strict=True)])
    iou_b = [(10 - n) / (10 + missed) for (_, _, missed), n in zip(rows, false, strict=True)]
    change = [10 / 10 - 8 / 10, fmean(iou_b[2:]) - fmean(iou_b[:2])] + [0] * all(false)
    assert difference(found.groups[1]) == pytest.approx(fmean(change))
    shown = {name: [e and e.value for e in row] for name, _, row in report._numbers(found)}
    every = (false[:2], false[2:], false)
    assert shown["c"] == [0 if all(predicted) else None for predicted in every]


def test_seeds_are_averaged_over_the_classes_that_each_has_in_a_resample() -> None:
    """Without the second image, which all predict rightly, one seed of each row predicts c."""
    second = [[10, 0, 0], [0, 10, 0], [0, 0, 10]]
    rows = [("A", 0, 2, 1), ("A", 1, 2, 0), ("B", 0, 0, 0), ("B", 1, 0, 1)]
    group = compare_runs([with_false_c(*row, second) for row in rows]).groups[1]
    assert group.differences
    change = [10 / 10 - 8 / 10, fmean([10 / 10, 9 / 10]) - fmean([9 / 12, 10 / 12])]
    assert group.differences.metrics["mean_iou"].high == pytest.approx(fmean(change))


def test_without_a_common_seed_all_runs_are_compared() -> None:
    runs = [make_run([4], seed=0, upsampling="fixed"), make_run([9], seed=1, upsampling="learned")]
    assert difference(compare_runs(runs).groups[1]) == pytest.approx(0.45 - 0.2)


@pytest.mark.parametrize("against", ["B", "lr=2", "sweep/1"])
def test_differences_are_from_any_row(against: str) -> None:
    runs = [make_run([4 + i], str(i), lr=1 + i) for i in range(3)]
    found = compare_runs(runs, against)
    assert found.base is found.groups[1]
    one, none, three = found.groups
    assert none.differences is None
    assert difference(one) == pytest.approx(-0.05)
    assert difference(three) == pytest.approx(0.05)
    head, *rows = compare.table(found)
    assert head[2] == "difference from B"
    assert [row[2] for row in rows] == ["-5.00", "-", "+5.00"]
    with pytest.raises(ConfigError, match=r"against=D: no such row.* C: lr=3"):
        compare_runs(runs, "D")


def test_rows_have_short_names_however_many_they_are() -> None:
    names = [_letters(index) for index in range(53)]
    assert names[:2] + names[25:28] + names[51:] == ["A", "B", "Z", "AA", "AB", "AZ", "BA"]


def test_settings_are_shown_as_yaml_has_them() -> None:
    """A setting that is null is no text "None"."""
    recipe = {"crop": None, "flip": True, "lr": 1e-5, "scale": [1.0, 2]}
    run, other = (make_run([4], recipe=recipe | {"crop": crop}, seed=1) for crop in (None, 64))
    shown = {"crop": "null", "flip": "true", "lr": "1e-05", "scale": "[1.0, 2]"}
    assert run.settings == {f"recipe.{key}": value for key, value in shown.items()}
    assert described(run, other) == ["recipe.crop=null", "recipe.crop=64"]


@pytest.mark.parametrize("what", ["ids", "classes", "ground truth"])
def test_runs_on_different_images_or_classes_are_an_error(what: str) -> None:
    one, other = make_run([4, 5], "a", lr=1), make_run([4, 5], "b", lr=2)
    if what == "ids":
        other.ids.reverse()
    elif what == "classes":
        for entry in other.metrics["classes"]:
            entry["name"] += "s"
    else:
        other.per_image[0, 1, 0] += 1
    with pytest.raises(UserError, match="no class in common" if what == "classes" else "different"):
        compare_runs([one, other])


def leave_run(
    data: TinyVOC,
    name: str,
    upsampling: str = "fixed",
    seed: int = 0,
    views: dict[str, Any] | None = None,
    **takes: Any,
) -> Path:
    """Leave a run's folder, as train.py does, of an untrained network evaluated by some views."""
    folder = data.root / name
    (folder / "checkpoints").mkdir(parents=True)
    torch.manual_seed(seed)
    model = random_model(num_classes=4, backbone="mini", upsampling=upsampling)
    config = {
        "data": vars(data.config()),
        "upsampling": {"name": upsampling},
        "recipe": {"name": NASTY},
        "trainer": {},
        "seed": seed,
    }
    record = {"config": config, "overrides": [f"upsampling={upsampling}"]}
    (folder / "run.json").write_text(json.dumps(record))
    dataset = open_split(data.config(), "train")
    prepared = InferenceModel(model, torch.device("cpu"), **views or {})
    found = evaluate.evaluate(prepared, dataset, QUIET, num_workers=0)
    metrics = evaluate.metrics_json(found, prepared, dataset, "tiny", "train")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    np.savez(folder / "per_image.npz", ids=dataset.ids, per_image=found.per_image)
    write_safetensors(folder / "model.safetensors", model, {"classes": dataset.classes} | takes)
    history = {"loss": [(1, 2.0), (10, 1.0)], "mean_iou": [(10, 0.25)]}
    last = {"callbacks": {"History": history}, "state_dict": {"a": torch.zeros(1)}}
    torch.save(last, folder / "checkpoints" / "last.ckpt")
    return folder


def made_page(folder: Path, **settings: Any) -> str:
    """Compare runs in this process; return the page."""
    folder.mkdir()
    compare.main(CompareConfig(device="cpu", images=3, **settings), folder, QUIET)
    return (folder / "compare.html").read_text(encoding="utf-8")


@pytest.fixture
def data(tiny_voc: TinyVOC) -> TinyVOC:
    """Return a data set with a class that must be escaped, and one that never occurs."""
    tiny_voc.classes = ("background", "cat", NASTY, "never")
    return tiny_voc


def test_the_page_escapes_names_and_needs_neither_network_nor_scripts(
    data: TinyVOC, tmp_path: Path
) -> None:
    for number in range(4):
        leave_run(data, f"sweep/{number}", ("fixed", "learned")[number // 2], seed=number % 2)
    text = made_page(tmp_path / "page", sweep=str(tmp_path / "sweep"))
    with Image.open(tmp_path / "page" / "compare.png") as picture:
        assert picture.width > 100
    read = Reader(text)
    assert not {tag for tag, _ in read.tags} & {"b", "script", "iframe"}
    assert not re.search("https?:", text)
    assert read.text.count(NASTY) >= 2  # a class, in the table and the legend
    assert "B − A" in read.text
    assert "upsampling=learned" in read.text
    assert "None" not in read.text
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    assert all(image["alt"] and str(image["src"]).startswith("data:image/") for image in images)
    alts = [str(image["alt"]) for image in images]
    for name in "AB":
        assert sum(f"Confusion matrix of {name}" in alt for alt in alts) == 1
        assert sum(f"{name}: errors" in alt for alt in alts) == 3  # one for each example
    content = json.loads((tmp_path / "page" / "compare.json").read_text())
    assert [group["seeds"] for group in content["groups"]] == [["0", "1"]] * 2


@pytest.mark.usefixtures("no_pictures")
def test_settings_that_differ_in_case_differ(data: TinyVOC, tmp_path: Path) -> None:
    folders = [leave_run(data, name) for name in ("a", "b")]
    for folder, name in zip(folders, ("Net", "net"), strict=True):
        content = json.loads((folder / "run.json").read_text())
        content["config"]["upsampling"]["name"] = name
        (folder / "run.json").write_text(json.dumps(content))
    text = made_page(tmp_path / "page", runs=[str(folder) for folder in folders])
    assert "<td><strong>Net</strong></td><td><strong>net</strong></td>" in text


@pytest.mark.parametrize(
    "missing", ["model.safetensors", "../tiny/ImageSets", "../tiny/JPEGImages"]
)
@pytest.mark.usefixtures("no_pictures")
def test_without_data_or_weights_the_page_has_no_examples_and_says_so(
    data: TinyVOC, tmp_path: Path, missing: str
) -> None:
    folder = leave_run(data, "run")
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = made_page(tmp_path / "page", runs=[str(folder)])
    assert "No example predictions: " in text
    assert "errors" not in Reader(text).text


@pytest.mark.usefixtures("no_pictures")
def test_one_run_alone_has_a_page_and_data_root_says_where_the_data_lies_now(
    data: TinyVOC, tmp_path: Path
) -> None:
    folder = leave_run(data, "run")
    metrics = json.loads((folder / "metrics.json").read_text())
    shutil.move(data.folder, tmp_path / "moved" / "tiny")
    text = made_page(tmp_path / "page", runs=[str(folder)], data_root=str(tmp_path / "moved"))
    assert f"{100 * metrics['mean_iou']:.2f}" in text
    assert "No example predictions" not in text


def test_a_sweep_is_in_the_order_of_its_numbers_and_unfinished_runs_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in ("10", "9", "2", "11"):
        (tmp_path / number).mkdir()
        (tmp_path / number / "run.json").touch()
        if number != "11":
            (tmp_path / number / "metrics.json").touch()
    found = find_runs(CompareConfig(sweep=str(tmp_path)), make_console())
    assert [path.name for path in found] == ["2", "9", "10"]
    (line,) = capsys.readouterr().out.splitlines()
    assert str(tmp_path / "11") in line


def test_stages_differ_in_the_model(data: TinyVOC) -> None:
    """Not in the folder of the stage before, which each seed has."""
    names = ["fcn32s", "fcn8s"]
    for age, (seed, name) in enumerate(product((0, 1), names)):
        folder, before = leave_run(data, f"run/{seed}/{name}", seed=seed), f"/was/{seed}/fcn32s"
        content = json.loads((folder / "run.json").read_text())
        model = {"init_from": None if name == "fcn32s" else before}
        content["config"]["model"] = model | {"stride": int(name[3:-1]), "skip_scales": {}}
        content["overrides"] = ["stages=[fcn32s,fcn8s]"]
        (folder / "run.json").write_text(json.dumps(content))
        content["config"]["model"]["init_from"] = None  # of the whole run
        (folder.parent / "run.json").write_text(json.dumps(content | {"stages": names}))
        os.utime(folder / "metrics.json", (age, age))
    found = find_runs(CompareConfig(sweep=str(data.root / "run")), QUIET)
    assert described(*map(read_run, found)) == ["model=fcn32s", "model=fcn8s"]


def leave_numbers(folder: Path, settings: Mapping[str, Any], trained: str = "32-true") -> None:
    """Leave what every finished run has; auto means the precision that was trained in."""
    run = make_run([5, 5])
    folder.mkdir(parents=True)
    precision = settings["trainer"].get("precision") or "auto"
    run.metrics["protocol"] |= {
        "precision": trained if precision == "auto" else precision,
        "flip": settings.get("flip", False),
        "scales": settings.get("scales", [1.0]),
    }
    metrics = dict.fromkeys(METRICS, 0.5) | {"confusion": [[1]]} | run.metrics
    (folder / "metrics.json").write_text(json.dumps(metrics))
    np.savez(folder / "per_image.npz", ids=run.ids, per_image=run.per_image)


def changed(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with some of them changed, by dotted key."""
    for key, value in changes.items():
        *way, last = key.split(".")
        target = settings
        for part in way:
            target = target[part]
        target[last] = value
    return settings


def leave_training(
    folder: Path, typed: Mapping[str, Any], words: Iterable[str] = (), **content: Any
) -> None:
    """Leave a finished run as train.py does, but for its model; words: choices that were typed."""
    config = changed(asdict(TrainConfig()), {"data.name": "voc"} | dict(typed))
    leave_numbers(folder, config)
    overrides = [*words, *(f"{key}={value}" for key, value in typed.items())]
    record = {"config": config, "overrides": overrides} | content
    (folder / "run.json").write_text(json.dumps(record))


def evaluation_of(checkpoint: Path, typed: Mapping[str, Any] | None = None) -> Run:
    """Leave what evaluate.py does, and read it; the data are those of the run, unless typed."""
    folder, typed = Path(f"{checkpoint}, evaluated"), typed or {}
    config, run = asdict(EvaluateConfig()), record.run_of(str(checkpoint))
    if run and "data.name" not in typed:
        config["data"] = record.read(run)["config"]["data"]
    given = {"checkpoint": str(checkpoint), **typed}
    config = changed(config, given)
    trained = run and record.read(run)["config"]["trainer"].get("precision")
    leave_numbers(folder, config, "32-true" if trained in (None, "auto") else trained)
    (folder / ".hydra").mkdir()
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    overrides = {"task": [f"{key}={value}" for key, value in given.items()]}
    hydra = {"runtime": {"cwd": str(Path.cwd())}, "overrides": overrides}
    OmegaConf.save({"hydra": hydra}, folder / ".hydra" / "hydra.yaml")
    return read_run(folder)


OTHER_DATA = {"data.name": "other"}


@pytest.mark.parametrize(
    ("key", "values", "typed", "name"),
    [
        ("recipe.lr", (1.0, 2.0), {}, "recipe.lr"),
        ("data.limit", (50, 500), {}, "data.limit"),
        ("data.limit", (50, 500), OTHER_DATA, "data.limit"),
        ("data.name", ("voc2012", "voc_aug"), OTHER_DATA, "data.name"),
        (
            "trainer.precision",
            ("bf16-mixed", "32-true"),
            {"trainer.precision": "64-true"},
            "trainer.precision",
        ),
    ],
)
def test_evaluations_of_different_trainings_are_different_rows(
    tmp_path: Path, key: str, values: tuple[Any, Any], typed: dict[str, Any], name: str
) -> None:
    """Not two seeds of one, whatever of the training the evaluation sets for itself."""
    runs = [tmp_path / str(value) for value in values]
    for seed, (run, value) in enumerate(zip(runs, values, strict=True)):
        leave_training(run, {"seed": seed, key: value})
    found = [evaluation_of(run, typed) for run in runs]
    assert described(*found) == [f"{name}={value}" for value in values]


WAYS: list[tuple[dict[str, Any], list[str], dict[str, Any] | None]] = [
    # What is typed of the training, its choices, and what is typed of an evaluation of it, if any.
    ({}, [], None),
    ({}, ["recipe=sample", "augmentation=none"], None),
    ({"trainer.precision": "auto"}, [], None),
    ({"trainer.precision": "32-true"}, [], None),
    ({}, [], {}),
    ({}, ["recipe=sample"], {"submission": True, "batch_size": 1}),
    ({}, [], {"trainer.precision": "auto"}),
    ({"trainer.precision": "auto"}, [], {"trainer.precision": "32-true"}),
    ({}, [], {"flip": False, "scales": [1.0]}),
    ({}, [], OTHER_DATA),
]


def test_what_holds_makes_a_row_not_what_was_typed(tmp_path: Path) -> None:
    runs = list[Run]()
    for seed, (typed, words, evaluated) in enumerate(WAYS):
        folder = tmp_path / str(seed)
        leave_training(folder, {"seed": seed} | typed, words)
        runs.append(read_run(folder) if evaluated is None else evaluation_of(folder, evaluated))
    (row,) = compare_runs(runs).groups
    assert row.runs == runs


@pytest.mark.parametrize(
    ("typed", "evaluated", "name"),
    [
        ({}, {"flip": True}, "flip=true"),
        ({}, {"scales": [0.5]}, "scales=[0.5]"),
        ({}, {"trainer.precision": "bf16-mixed"}, "evaluation.precision=bf16-mixed"),
        ({"trainer.precision": "bf16-mixed"}, {}, "trainer.precision=bf16-mixed"),
        ({}, {"data.value_range": [0, 99]}, "evaluation.value_range=[0, 99]"),
        ({}, {"data.bands": [2, 1, 0]}, "evaluation.bands=[2, 1, 0]"),
        ({"recipe.lr": 2.0}, {}, "recipe.lr=2.0"),
    ],
)
def test_what_differs_makes_another_row(
    tmp_path: Path, typed: dict[str, Any], evaluated: dict[str, Any], name: str
) -> None:
    leave_training(tmp_path / "0", {"seed": 0})
    leave_training(tmp_path / "1", {"seed": 1} | typed)
    runs = [read_run(tmp_path / "0"), evaluation_of(tmp_path / "1", evaluated)]
    assert described(*runs)[1] == name


@pytest.mark.parametrize(("fold", "limit"), list(product((None, 0), (None, 50))))
@pytest.mark.parametrize(
    ("others", "names"),
    [
        ((40, "a"), []),
        ((40, "b"), ["trained_on.checksum=a", "trained_on.checksum=b"]),
        ((90, "b"), ["trained_on.images=40", "trained_on.images=90"]),
    ],
)
def test_what_was_trained_on_other_images_is_another_row(
    tmp_path: Path, fold: int | None, limit: int | None, others: tuple[int, str], names: list[str]
) -> None:
    """Their names and settings are equal, and data.root says where they lie, not what they are.

    With a limit each seed draws other images, and the validation images tell sets apart.
    """
    runs = list[Run]()
    for seed, (images, checksum) in enumerate([(40, "a"), (40, "a"), others, others]):
        where = {"data.root": f"/{seed}", "data.fold": fold, "data.limit": limit}
        drawn = {"images": images, "ids_sha256": f"{checksum}{seed if limit else ''}"}
        data = {"train": drawn, "val": {"images": 9, "ids_sha256": checksum}}
        leave_training(tmp_path / str(seed), {"seed": seed} | where, data=data)
        runs.append(evaluation_of(tmp_path / str(seed), {"data.split": "test"}))
    rows = compare_runs(runs).groups
    assert [len(row.runs) for row in rows] == ([2, 2] if names else [4])
    assert not names or [row.description for row in rows] == names


def test_each_fold_is_trained_on_its_own_images(tmp_path: Path) -> None:
    for fold in range(3):
        data = {"train": {"images": 40 + fold, "ids_sha256": str(fold)}}
        leave_training(tmp_path / str(fold), {"data.fold": fold}, data=data)
    runs = [evaluation_of(tmp_path / str(fold), {"data.split": "test"}) for fold in range(3)]
    assert len(compare_runs(runs).groups) == 1


@pytest.mark.parametrize("typed", [{}, OTHER_DATA, {"data.split": "test"}])
def test_evaluations_of_seeds_are_a_row_wherever_they_were_trained(
    tmp_path: Path, typed: dict[str, Any]
) -> None:
    for seed in range(2):
        where = {"data.root": f"/{seed}", "data.num_workers": seed, "trainer.devices": [seed]}
        leave_training(tmp_path / str(seed), {"seed": seed} | where)
    found = [evaluation_of(tmp_path / str(seed), typed) for seed in range(2)]
    (row,) = compare_runs(found).groups
    assert [run.seed for run in row.runs] == ["0", "1"]


def test_the_file_of_a_run_that_was_evaluated_is_a_setting(tmp_path: Path) -> None:
    for seed in range(2):
        leave_training(tmp_path / str(seed), {"seed": seed})
    names = [Path("checkpoints", name) for name in ("best.ckpt", "last.ckpt")]
    parts = [evaluation_of(tmp_path / str(seed) / name) for seed, name in enumerate(names)]
    assert described(*parts) == [f"weights={name}" for name in names]
    final = [evaluation_of(path) for path in (tmp_path / "0", tmp_path / "1" / "model.safetensors")]
    assert len(compare_runs(final).groups) == 1


def test_the_number_of_processes_is_a_setting(tmp_path: Path) -> None:
    """Each takes recipe.batch_size images; trainer.devices alone says where a run works."""
    runs = [tmp_path / str(processes) for processes in (1, 2, 8)]
    for seed, run in enumerate(runs):
        leave_training(run, {"seed": seed, "trainer.devices": -1}, processes=int(run.name))
    assert described(*map(read_run, runs))[1:] == ["processes=2", "processes=8"]
    assert described(*map(evaluation_of, runs))[1:] == ["processes=2", "processes=8"]


def leave_stages(run: Path, typed: dict[str, Any]) -> None:
    """Leave a finished run of two stages, fcn32s and fcn8s."""
    names, before = ["fcn32s", "fcn8s"], None
    leave_training(run, typed | {"stages": names}, stages=names)
    for path in (run / "metrics.json", run / "per_image.npz"):
        path.unlink()
    for name in names:
        own = {"model.stride": int(name[3:-1]), "model.init_from": before, "stages": []}
        leave_training(run / name, typed | own)
        content = json.loads((run / name / "run.json").read_text())
        content["overrides"] = [f"{k}={v}" for k, v in (typed | {"stages": names}).items()]
        (run / name / "run.json").write_text(json.dumps(content))
        before = str(run / name)
    (run / "stages.json").write_text(json.dumps(dict.fromkeys(names)))


@pytest.mark.parametrize("part", ["", "fcn32s", "fcn8s"])
def test_stages_are_compared_as_other_runs_are(tmp_path: Path, part: str) -> None:
    """The whole run means its last stage: as it is, evaluated, and to compare with."""
    rows = list(product(("fixed", "learned"), (0, 1)))
    runs = [tmp_path / f"{name}{seed}" for name, seed in rows]
    for run, (name, seed) in zip(runs, rows, strict=True):
        leave_stages(run, {"upsampling.name": name, "seed": seed})
    for read in (read_run, evaluation_of):
        found = [read(run / part) for run in runs]
        assert {run.chosen("model") for run in found} == {part or "fcn8s"}
        groups = compare_runs(found).groups
        assert [group.description for group in groups] == [
            "upsampling.name=fixed",
            "upsampling.name=learned",
        ]
    found = [read_run(run / part) for run in runs]
    assert compare_runs(found, str(runs[2] / part)).base.name == "B"


def test_a_network_that_was_trained_in_stages_is_another_one(tmp_path: Path) -> None:
    leave_stages(tmp_path / "staged", {"seed": 0})
    leave_training(tmp_path / "straight", {"seed": 1, "model.stride": 8})
    names = described(read_run(tmp_path / "staged"), read_run(tmp_path / "straight"))
    assert names == ['stages=["fcn32s", "fcn8s"]', "stages=[]"]


@pytest.mark.usefixtures("no_pictures")
def test_an_evaluation_of_what_has_changed_since_is_an_error(
    tiny_voc: TinyVOC, run_in: Callable[..., Any], error_line: Callable[..., str]
) -> None:
    """Its numbers would stand beside the settings and the predictions of another model."""
    run_in("train", *tiny_voc.overrides(), *QUICK, "hydra.run.dir=run")
    run_in("evaluate", "checkpoint=run", "hydra.run.dir=old")
    settings = ["--config-path", str(Path("old/.hydra").absolute()), "--config-name", "config"]
    run_in("evaluate", *settings, "hydra.run.dir=again")  # from what is recorded
    assert Path("again/metrics.json").read_bytes() == Path("old/metrics.json").read_bytes()
    assert read_run(Path("old")).settings["trainer.max_steps"] == "4"
    run_in("train", "resume=run", "trainer.max_steps=6")
    line = error_line("compare", "runs=[run,old]", "hydra.run.dir=page")
    assert f"old: {Path('run').absolute()} has changed since it was evaluated" in line
    run_in("evaluate", "checkpoint=run", "hydra.run.dir=new")
    assert read_run(Path("new")).settings["trainer.max_steps"] == "6"
    shutil.rmtree("run")
    read_run(Path("old"))


@pytest.mark.parametrize("given", ["hf://USER/NAME", "https://host/model", "/data/a", "runs/a"])
def test_a_run_of_evaluate_is_read_where_it_was_started(data: TinyVOC, given: str) -> None:
    """evaluate.py leaves .hydra alone; its paths start in the folder where it was started.

    Of a run that was moved, a note says so.
    """
    folder = leave_run(data, "run")
    shutil.move(folder / "run.json", data.root / "run.json")
    (folder / ".hydra").mkdir()
    OmegaConf.save({"checkpoint": given, "data": {}}, folder / ".hydra" / "config.yaml")
    hydra = {"runtime": {"cwd": "/c"}, "overrides": {"task": [f"checkpoint={given}"]}}
    OmegaConf.save({"hydra": hydra}, folder / ".hydra" / "hydra.yaml")
    run = read_run(folder)
    assert run.checkpoint == ("/c/runs/a" if given == "runs/a" else given)
    assert run.chosen("checkpoint") == given
    assert run.seed == "-"
    note = f"{folder}: without {run.checkpoint} its training is unknown"
    assert (note in compare_runs([run]).notes) == ("://" not in given)
    run.checkpoint = str(folder)
    assert note not in compare_runs([run]).notes


def test_evaluations_of_a_sweep_are_rows_of_its_settings(
    tiny_voc: TinyVOC, run_in: Callable[..., Any]
) -> None:
    own = [*tiny_voc.overrides(), *QUICK, "trainer.max_steps=2", "-m", "hydra.sweep.dir=sweep"]
    run_in("train", *own, "seed=0,1")
    sweep = ["-m", "checkpoint=sweep/0,sweep/1", "hydra.sweep.dir=again"]
    run_in("evaluate", *sweep, "scales=[0.75]")
    runs = [read_run(path) for path in find_runs(CompareConfig(sweep="again"), QUIET)]
    (row,) = compare_runs(runs).groups
    assert [run.seed for run in row.runs] == ["0", "1"]
    assert [Path(run.checkpoint) for run in runs] == [Path.cwd() / "sweep" / n for n in "01"]
    assert described(read_run(Path("sweep/0")), runs[0])[1] == "scales=[0.75]"
    run_in("evaluate", "checkpoint=sweep/1", "trainer.precision=auto", "hydra.run.dir=plain")
    assert len(compare_runs([read_run(Path(name)) for name in ("sweep/0", "plain")]).groups) == 1


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "where",
    ["evaluate.evaluate", "evaluate._write_pictures", "evaluate_checkpoint.write_settings", None],
)
def test_an_interrupted_evaluation_has_no_numbers_with_old_settings(
    data: TinyVOC, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any], where: str | None
) -> None:
    """overwrite=true replaces one evaluation by that of another network, or of no masks."""
    data.classes = ("background", "cat", "dog", "never")
    checkpoints = [f"checkpoint={leave_run(data, name)}" for name in "ab"]
    given = [*data.overrides(), "hydra.run.dir=out", "overwrite=true"]
    monkeypatch.chdir(data.root)
    command("evaluate", checkpoints[0], *given)
    before = read_run(Path("out"))
    assert before.checkpoint == str(data.root / "a")
    if where is None:
        data.listing("val").rename(data.listing("test"))
        shutil.rmtree(data.folder / "SegmentationClass")
        data.folder.rename(data.root / "VOC2012")
        own = ["data.folder=VOC2012", "data.split=test", "submission=true"]
        command("evaluate", checkpoints[1], *given, *own)
    else:
        monkeypatch.setattr(f"fcn.inference.{where}", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command("evaluate", checkpoints[1], *given)
    with pytest.raises(UserError):
        read_run(Path("out"))


def test_mistakes_are_one_line(
    data: TinyVOC, tmp_path: Path, error_line: Callable[..., str]
) -> None:
    out = f"hydra.run.dir={tmp_path / 'out'}"
    assert "runs=" in error_line("compare", out)
    assert str(tmp_path / "none") in error_line("compare", out, f"runs=[{tmp_path / 'none'}]")
    assert "no finished run" in error_line("compare", out, f"sweep={tmp_path}")
    folder = leave_run(data, "run")
    assert "against=Z: no such row" in error_line("compare", out, f"runs=[{folder}]", "against=Z")
    (folder / "run.json").write_text("[")
    assert "run.json" in error_line("compare", out, f"runs=[{folder}]")
    (folder / "run.json").unlink()
    assert "config.yaml" in error_line("compare", out, f"runs=[{folder}]")


def test_examples_are_spread_over_the_ranking_worst_first() -> None:
    iou = torch.tensor([0.5, torch.nan, 0.1, 0.9, 0.3, 0.7])
    assert gallery._spread(iou, 3) == [2, 0, 3]
    assert gallery._spread(iou, 99) == [2, 4, 0, 5, 3]
    assert gallery._spread(iou, 0) == []


def test_figures_escape_their_texts_and_keep_their_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    read = Reader(page.page(NASTY, page.figure(Image.fromarray(pixels), NASTY, NASTY, plot=True)))
    assert read.text.count(NASTY) == 2
    (image,) = (attributes for tag, attributes in read.tags if tag == "img")
    assert (image["alt"], image["width"]) == (NASTY, "9")
    content = io.BytesIO(base64.b64decode(str(image["src"]).partition(";base64,")[2]))
    assert np.array_equal(np.asarray(Image.open(content)), pixels)


@pytest.mark.usefixtures("no_pictures")
def test_runs_with_their_classes_in_other_orders_are_compared_by_name(
    data: TinyVOC, tmp_path: Path
) -> None:
    (tmp_path / "two").mkdir()
    other = TinyVOC(tmp_path / "two")
    other.classes = data.classes
    other.renumber([2, 0, 3, 1])
    folders = [leave_run(data, "a"), leave_run(other, "b")]
    one, two = (read_run(folder) for folder in folders)
    found = compare_runs([one, two])
    assert not any("leave out" in note for note in found.notes)
    for run, group in zip((one, two), found.groups, strict=True):
        assert found.mean_iou(group) == pytest.approx([run.metrics["mean_iou"]])
    assert torch.equal(one.tallies(one.classes), one.per_image)
    for k, name in enumerate(two.classes):
        assert torch.equal(two.tallies(one.classes)[:, :, one.classes.index(name)],
                           two.per_image[:, :, k])  # fmt: skip
    text = made_page(tmp_path / "page", runs=[str(folder) for folder in folders])
    assert "No example predictions" not in text


def only_some_predict(predicted: int, folder: str) -> Run:
    """Return a run on an image of 10 pixels of a and 10 of b, of which b takes some for c."""
    confusion = torch.tensor([[[8, 2, 0], [0, 10 - predicted, predicted], [0, 0, 0]]])
    return run_of(confusion, "abc", folder, model=folder)


def test_means_are_over_the_classes_of_all_runs_and_the_rest_is_named() -> None:
    """c is in no mask: one false pixel of it lowers the paper's mean from 2 classes to 3."""
    clean, false = only_some_predict(0, "clean"), only_some_predict(1, "false")
    assert clean.metrics["mean_iou"] == pytest.approx((8 / 10 + 10 / 12) / 2)
    assert false.metrics["mean_iou"] == pytest.approx((8 / 10 + 9 / 12) / 3)
    found = compare_runs([clean, false])
    assert "Means leave out c, of which not all runs have an IoU" in found.notes
    assert found.mean_iou(found.groups[1]) == pytest.approx([(8 / 10 + 9 / 12) / 2])
    assert difference(found.groups[1]) == pytest.approx((9 / 12 - 10 / 12) / 2)
    # Near boundaries, only the mean over all classes of a run is known.
    near = percent(clean.metrics["trimap"][2])
    assert [row[6] for row in compare.table(found)[1:]] == [near, "-"]


@pytest.mark.usefixtures("no_pictures")
def test_intervals_from_few_images_are_called_rough(data: TinyVOC, tmp_path: Path) -> None:
    (note,) = compare_runs([make_run([5] * 3)]).notes
    assert "few images (3) are rough" in note
    assert not compare_runs([make_run([5] * FEW_IMAGES)]).notes
    text = made_page(tmp_path / "page", runs=[str(leave_run(data, "a"))])
    assert "3 of the 4 images of A's first run" in text
    assert "few images (4) are rough" in text


def with_classes(names: str, folder: str, missed: int) -> Run:
    """Return a run on ten pixels of each class a, b, ..., some of b's taken for a."""
    confusion = 10 * torch.eye(len(names), dtype=torch.int64)
    confusion[1, :2] = torch.tensor([missed, 10 - missed])
    return run_of(confusion[None], names, folder, model=folder)


def test_each_difference_is_over_the_classes_that_both_rows_have() -> None:
    """The third run lacks c, so no mean counts it; the first two differ over a, b and c."""
    runs = [with_classes("abc", "x", 0), with_classes("abc", "y", 5), with_classes("abd", "z", 5)]
    found = compare_runs(runs)
    assert found.shared == {None: ["a", "b"]}
    assert "Means leave out c, d, of which not all runs have an IoU" in found.notes
    iou_a, iou_b = 10 / 15, 5 / 10
    means = [found.mean_iou(group)[0] for group in found.groups]
    assert means == pytest.approx([1, (iou_a + iou_b) / 2, (iou_a + iou_b) / 2])
    _, second, third = found.groups
    assert difference(second) == pytest.approx((iou_a + iou_b + 1) / 3 - 1)
    assert difference(third) == pytest.approx((iou_a + iou_b) / 2 - 1)
    first, *others = (group["difference"] for group in compare.as_json(found)["groups"])
    assert first is None
    assert [change["classes"] for change in others] == [["a", "b", "c"], ["a", "b"]]
    names, pixels, _ = zip(*report._numbers(found), strict=True)
    assert names[:4] == ("a", "b", "c", "d")
    assert pixels[:4] == ("10",) * 4  # of each class in the masks, whichever run knows it
    shown = {name: estimates for name, _, estimates in report._numbers(found)}
    assert [one is None for one in shown["c"]] == [False, False, True, False, True]
    assert [one is None for one in shown["d"]] == [True, True, False, True, True]


def test_differences_of_means_count_the_classes_that_both_have_in_every_resample() -> None:
    whole = estimate(resample(tally(torch.tensor([[[5, 0, 0], [0, 0, 0], [0, 0, 0]]]))), "mean_iou")
    assert whole[0].value == 1
    a = torch.tensor([[[5, 0, 0], [0, 5, 0], [0, 0, 0]], [[5, 0, 0], [0, 0, 0], [0, 0, 0]]])
    b = torch.tensor([[[5, 0, 0], [0, 5, 0], [0, 0, 0]], [[4, 1, 0], [0, 0, 0], [0, 0, 0]]])
    above = metrics.difference(resample(tally(b)), resample(tally(a)))
    (change,) = estimate(above, "mean_iou")
    assert change.value == pytest.approx(((9 / 10 - 1) + (5 / 6 - 1)) / 2)
    assert change.low == pytest.approx(4 / 5 - 1)  # of resamples without the first image: a alone


@pytest.mark.usefixtures("no_pictures")
def test_a_comparison_overwrites_nothing_unasked(
    data: TinyVOC, tmp_path: Path, command: Callable[..., Any], error_line: Callable[..., str]
) -> None:
    folder = leave_run(data, "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    settings = [f"runs=[{folder}]", f"hydra.run.dir={folder}", "images=1", "device=cpu"]
    command("compare", *settings)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert "compare.json exists" in error_line("compare", *settings)
    command("compare", *settings, "overwrite=true")


@pytest.mark.parametrize(
    "takes",
    [
        {"value_range": [100, 140]},
        {"bands": [2, 0, 1]},
        {"views": {"scales": [0.5, 1.5], "flip": True}},
    ],
)
def test_examples_are_predicted_as_each_network_was_evaluated(
    data: TinyVOC, tmp_path: Path, takes: dict[str, Any]
) -> None:
    """In either order, with pictures like those of masks that the predictor gives."""
    folders = [leave_run(data, "a"), leave_run(data, "b", "learned", **takes)]
    for order in (folders, folders[::-1]):
        groups = compare_runs([read_run(folder) for folder in order]).groups
        found = gallery.gallery(groups, CompareConfig(images=3), torch.device("cpu"))
        assert (len(found["cards"]), found["images"]) == (3, 4)
        info = open_split(data.config(), "train").info
        for name, cards in found["cards"].items():
            shown = [uri for caption, uri in cards if ": mean IoU" in caption]
            masks = []
            for run in (group.runs[0] for group in groups):
                views = {key: run.metrics["protocol"][key] for key in ("flip", "scales")}
                masks.append(Predictor(run.checkpoint, "cpu", **views)(data.image(name)))
            assert shown == [gallery._uri(visualize.outlined(mask, info)) for mask in masks]
