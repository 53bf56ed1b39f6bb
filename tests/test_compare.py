"""Runs of a sweep: how they are named, grouped and compared, and the page about them."""

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from fcn.checkpoint import write_safetensors
from fcn.compare import compare
from fcn.compare.compare import Run, group_runs, rows
from fcn.config import CompareConfig
from fcn.data.layouts import open_split
from fcn.device import InferenceModel
from fcn.errors import UserError
from fcn.inference import evaluate
from fcn.inference.metrics import estimate, rates, resample, tally
from fcn.inference.predictor import Predictor
from fcn.output import make_console, percent
from fcn.pictures import page, visualize
from tests.conftest import TinyVOC, random_model

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


def make_run(correct: list[int], folder: str = "0", **given: Any) -> Run:
    """Return a run on images of ten pixels of class 0, the other ones taken for class 1.

    Its mean IoU is half of the share of correct pixels: class 1 has an IoU of 0.
    """
    right = torch.tensor(correct)
    none, all_ten = torch.zeros_like(right), torch.full_like(right, 10)
    columns = ((right, none), (all_ten, none), (right, 10 - right))
    per_image = torch.stack([torch.stack(pair, -1) for pair in columns], 1)
    mean_iou = float(rates(per_image.sum(0))["mean_iou"])
    metrics = {
        "mean_iou": mean_iou,
        "trimap": [None, mean_iou, mean_iou / 2, None],
        "classes": [{"name": name, "pixels": 0} for name in ("background", "thing")],
        "protocol": {"data": "tiny", "split": "val", "images": len(correct)},
    }
    ids = [f"image {i}" for i in range(len(correct))]
    path = Path("sweep", folder)
    return Run(path, Path("."), dict(given), {}, list(given), metrics, ids, per_image)


def names(*runs: Run) -> list[str]:
    return [group.name for group in group_runs(runs)]


def test_groups_are_named_by_the_settings_given_that_differ() -> None:
    fixed = {"seed": 0, "upsampling": "fixed", "lr": 1, "data": {"root": "a"}}
    learned = fixed | {"seed": 1, "upsampling": "learned", "data": {"root": "b"}}
    runs = [make_run([4], **given) for given in (fixed, learned, learned | {"lr": 2})]
    assert names(*runs[:2]) == ["upsampling=fixed", "upsampling=learned"]
    assert names(*runs) == [
        f"upsampling={end}" for end in ("fixed lr=1", "learned lr=1", "learned lr=2")
    ]
    assert names(make_run([4], **fixed), make_run([4], **fixed | {"seed": 1})) == ["sweep/0"]


def test_the_settings_that_a_choice_brings_are_not_named_and_a_default_is() -> None:
    heavy, modern = (make_run([4], recipe={"lr": lr}) for lr in (1, 2))
    heavy.choices, modern.choices = {"recipe": "heavy"}, {"recipe": "modern"}
    heavy.given = []
    assert names(heavy, modern) == ["recipe=heavy", "recipe=modern"]


def test_equal_names_of_different_runs_are_replaced_by_folders() -> None:
    edited = [make_run([4], str(lr), seed=lr, lr=lr) for lr in (1, 2)]
    for run in edited:
        run.given = []
    assert names(*edited) == ["run=sweep/1", "run=sweep/2"]  # not two seeds of one setting


def test_groups_average_over_seeds_and_differ_in_pairs() -> None:
    # Shares of correct pixels: fixed 40 % and 60 %, learned 60 % (seed 0) and 90 % (seed 5).
    groups = group_runs(
        [
            make_run([4, 4], seed=0, upsampling="fixed"),
            make_run([6, 6], seed=1, upsampling="fixed"),
            make_run([8, 4], seed=0, upsampling="learned"),
            make_run([9, 9], seed=5, upsampling="learned"),
        ]
    )
    fixed, learned = groups
    assert fixed.mean_iou == pytest.approx([0.2, 0.3])
    assert fixed.trimap[:3] == [None, pytest.approx(0.25), pytest.approx(0.125)]
    assert fixed.differences == {}
    (change,) = learned.differences["mean_iou"]
    assert change.value == pytest.approx(0.3 - 0.2)  # seed 0 alone is in both
    first, second = rows(groups)
    assert first[:4] == ["upsampling=fixed", "0 1", "25.00", "25.00 to 25.00"]  # images are alike
    assert first[4:] == ["20.00 to 30.00", "12.50", "-", "-"]
    assert second[6] == "+10.00"
    content = json.loads(json.dumps(compare.as_json(groups)))
    assert content["groups"][1]["seeds"] == ["0", "5"]
    assert content["groups"][1]["difference"]["mean_iou"]["value"] == pytest.approx(0.1)


def test_groups_average_over_folds_and_differ_fold_by_fold() -> None:
    """Folds have other images, and another number of them; b lacks a fold and has a second seed."""

    def of(fold: int, correct: list[int], net: str, seed: int = 0) -> Run:
        run = make_run(correct, seed=seed, net=net, data={"fold": fold, "name": "tiny"})
        run.ids = [f"{name} of fold {fold}" for name in run.ids]
        return run

    a = [of(0, [2, 4], "a"), of(1, [6, 8, 4], "a"), of(2, [8], "a")]
    b = [of(0, [4, 6], "b"), of(1, [6, 9, 9], "b", 1), of(1, [7, 7, 7], "b")]
    first, second = group_runs([*a, *b])
    assert first.mean_iou == pytest.approx([0.15, 0.3, 0.4])
    assert rows([first, second])[0][1:3] == ["0, 3 folds", percent(0.85 / 3)]
    assert first.interval.value == pytest.approx(0.85 / 3)
    assert first.interval.low < 0.85 / 3 < first.interval.high  # type: ignore[operator]
    (change,) = second.differences["mean_iou"]
    assert change.value == pytest.approx(((0.25 - 0.15) + (0.35 - 0.3)) / 2)  # of seed 0
    assert change.low <= change.value <= change.high  # type: ignore[operator]
    assert compare.as_json([first, second])["images"] == 6
    with pytest.raises(UserError, match="no fold in common"):
        group_runs([a[0], b[1]])
    with pytest.raises(UserError, match="different images"):
        group_runs([a[0], of(0, [1, 2, 3], "b")])
    with pytest.raises(UserError, match="apart"):
        group_runs([a[0], make_run([1], seed=0, net="b")])


def test_a_class_that_a_fold_lacks_is_left_out_of_that_fold_alone() -> None:
    """c is in the masks of fold 1 alone; in fold 0 one of two runs predicts it."""

    def of(fold: int, c: list[int], folder: str) -> Run:
        run = only_some_predict(c[2], folder)
        run.per_image[0, :, 2] = torch.tensor(c)
        run.config["data"] = {"fold": fold}
        return run

    runs = [of(0, [0, 0, 1], "x"), of(0, [0, 0, 0], "y"), of(1, [5, 5, 5], "x")]
    aligned, note = compare.align_classes([*runs, of(1, [4, 5, 4], "y")])
    assert note == "Where the masks of a fold lack c, it does not count"
    assert all("c" in run.classes for run in aligned)
    assert [int(run.per_image[0, :, 2].sum()) for run in aligned] == [0, 0, 15, 13]
    assert aligned[0].metrics["mean_iou"] == pytest.approx(
        rates(aligned[0].per_image[0])["mean_iou"]
    )


def test_without_a_common_seed_all_runs_are_compared() -> None:
    runs = [make_run([4], seed=0, upsampling="fixed"), make_run([9], seed=1, upsampling="learned")]
    (change,) = group_runs(runs)[1].differences["mean_iou"]
    assert change.value == pytest.approx(0.45 - 0.2)


def test_a_run_compared_with_itself_differs_by_exactly_0() -> None:
    correct = np.random.default_rng(0).integers(0, 10, 30).tolist()
    groups = group_runs([make_run(correct, folder, seed=0) for folder in ("a", "b")])
    assert [group.name for group in groups] == ["run=sweep/a", "run=sweep/b"]
    for estimates in groups[1].differences.values():
        for one in estimates:
            assert (one.value, one.low, one.high) == (0, 0, 0)


@pytest.mark.parametrize("what", ["ids", "classes", "ground truth"])
def test_runs_on_different_images_or_classes_are_an_error(what: str) -> None:
    one, other = make_run([4, 5], "a", lr=1), make_run([4, 5], "b", lr=2)
    if what == "ids":
        other.ids.reverse()
    elif what == "classes":
        other.metrics["classes"][1]["name"] = "other"
    else:
        other.per_image[0, 1, 0] += 1
    with pytest.raises(UserError, match="different images"):
        group_runs([one, other])


def leave_run(
    data: TinyVOC, name: str, upsampling: str = "fixed", seed: int = 0, **takes: Any
) -> Path:
    """Leave a run's folder, as train.py does, of an untrained network."""
    folder = data.root / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    torch.manual_seed(seed)
    model = random_model(num_classes=4, backbone="mini", upsampling=upsampling)
    config = {
        "data": vars(data.config()) | {"root": "."},
        "upsampling": {"name": upsampling},
        "recipe": {"name": NASTY},
        "seed": seed,
    }
    runtime = {"cwd": str(data.root), "choices": {"upsampling": upsampling}}
    hydra = {"runtime": runtime, "overrides": {"task": [f"upsampling={upsampling}"]}}
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    OmegaConf.save({"hydra": hydra}, folder / ".hydra" / "hydra.yaml")
    dataset = open_split(data.config(), "train")
    prepared = InferenceModel(model, torch.device("cpu"))
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
    with Image.open(folder / "compare.png") as picture:
        assert picture.width > 100
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
    read = Reader(text)
    assert not {tag for tag, _ in read.tags} & {"b", "script", "iframe"}
    assert not re.search("https?:", text)
    assert read.text.count(NASTY) >= 3  # a class, in the table and the legend; the recipe
    assert "upsampling=learned − upsampling=fixed" in read.text
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    assert all(image["alt"] and str(image["src"]).startswith("data:image/") for image in images)
    # Three plots, two confusion matrices, and 3 examples with 2 + 2 * 2 pictures each.
    assert len(images) == 3 + 2 + 3 * 6
    content = json.loads((tmp_path / "page" / "compare.json").read_text())
    assert [group["seeds"] for group in content["groups"]] == [["0", "1"]] * 2


@pytest.mark.parametrize(
    "missing", ["model.safetensors", "../tiny/ImageSets", "../tiny/JPEGImages"]
)
def test_without_data_or_weights_the_page_has_no_examples_and_says_so(
    data: TinyVOC, tmp_path: Path, missing: str
) -> None:
    folder = leave_run(data, "run")
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = made_page(tmp_path / "page", runs=[str(folder)])
    assert "No example predictions: " in text
    assert "errors" not in Reader(text).text


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
    found = compare.find_runs(CompareConfig(sweep=str(tmp_path)), make_console())
    assert [path.name for path in found] == ["2", "9", "10"]
    assert capsys.readouterr().out == f"left out, unfinished: {tmp_path / '11'}\n"


def test_stages_are_runs_with_the_settings_of_the_folder_above(data: TinyVOC) -> None:
    folders = [leave_run(data, f"run/{name}") for name in ("fcn32s", "fcn8s")]
    shutil.rmtree(folders[0] / ".hydra")
    shutil.move(folders[1] / ".hydra", data.root / "run" / ".hydra")
    for age, folder in enumerate(folders):
        os.utime(folder / "metrics.json", (age, age))
    found = compare.find_runs(CompareConfig(sweep=str(data.root / "run")), QUIET)
    groups = group_runs([compare.read_run(path) for path in found])
    assert [group.name for group in groups] == ["model=fcn32s", "model=fcn8s"]


def test_mistakes_are_one_line(
    data: TinyVOC, tmp_path: Path, error_line: Callable[..., str]
) -> None:
    out = f"hydra.run.dir={tmp_path / 'out'}"
    assert "runs=" in error_line("compare", out)
    assert str(tmp_path / "none") in error_line("compare", out, f"runs=[{tmp_path / 'none'}]")
    assert "no finished run" in error_line("compare", out, f"sweep={tmp_path}")
    folder = leave_run(data, "run")
    (folder / ".hydra" / "config.yaml").write_text("a: [")
    assert "config.yaml" in error_line("compare", out, f"runs=[{folder}]")


def test_examples_are_spread_over_the_ranking_worst_first() -> None:
    iou = torch.tensor([0.5, torch.nan, 0.1, 0.9, 0.3, 0.7])
    assert compare._spread(iou, 3) == [2, 0, 3]
    assert compare._spread(iou, 99) == [2, 4, 0, 5, 3]
    assert compare._spread(iou, 0) == []


def test_figures_escape_their_texts_and_keep_their_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    read = Reader(page.page(NASTY, page.figure(Image.fromarray(pixels), NASTY, NASTY, plot=True)))
    assert read.text.count(NASTY) == 2
    (image,) = (attributes for tag, attributes in read.tags if tag == "img")
    assert (image["alt"], image["width"]) == (NASTY, "9")
    content = io.BytesIO(base64.b64decode(str(image["src"]).partition(";base64,")[2]))
    assert np.array_equal(np.asarray(Image.open(content)), pixels)


def test_runs_with_their_classes_in_other_orders_are_compared_by_name(
    data: TinyVOC, tmp_path: Path
) -> None:
    (tmp_path / "two").mkdir()
    other = TinyVOC(tmp_path / "two")
    other.classes = data.classes
    other.renumber([2, 0, 3, 1])
    folders = [leave_run(data, "a"), leave_run(other, "b")]
    one, two = (compare.read_run(folder) for folder in folders)
    with pytest.raises(UserError, match="different images"):
        group_runs([one, two])
    (first, second), note = compare.align_classes([one, two])
    assert not note
    assert first is one
    assert second.classes == one.classes
    assert second.metrics["mean_iou"] == pytest.approx(two.metrics["mean_iou"])
    assert torch.equal(second.per_image[:, 1], one.per_image[:, 1])
    for k, name in enumerate(other.classes):
        expected = one.classes.index(name)
        assert torch.equal(second.per_image[:, :, expected], two.per_image[:, :, k])
    text = made_page(tmp_path / "page", runs=[str(folder) for folder in folders])
    assert "No example predictions" not in text


def only_some_predict(predicted: int, folder: str) -> Run:
    """Return a run on an image of 10 pixels of a and 10 of b, of which b takes some for c."""
    confusion = torch.tensor([[8, 2, 0], [0, 10 - predicted, predicted], [0, 0, 0]])
    per_image = tally(confusion[None])
    metrics = {name: float(rates(per_image[0])[name]) for name in evaluate.METRICS}
    metrics |= {
        "trimap": [0.5, 0.5, 0.5, 0.5],
        "confusion": confusion.tolist(),
        "classes": [{"name": name, "pixels": 0} for name in "abc"],
        "protocol": {"data": "tiny", "split": "val", "images": 1},
    }
    given = {"model": folder}
    return Run(Path(folder), Path("."), dict(given), {}, ["model"], metrics, ["x"], per_image)


def test_means_are_over_the_classes_of_all_runs_and_the_rest_is_named() -> None:
    """c is in no mask: one false pixel of it lowers the paper's mean from 2 classes to 3."""
    clean, false = only_some_predict(0, "clean"), only_some_predict(1, "false")
    assert clean.metrics["mean_iou"] == pytest.approx((8 / 10 + 10 / 12) / 2)
    assert false.metrics["mean_iou"] == pytest.approx((8 / 10 + 9 / 12) / 3)
    runs, note = compare.align_classes([clean, false])
    assert note == "Only some of them predict c, in no mask: compared over the other 2 classes"
    groups = group_runs(runs)
    assert groups[1].mean_iou == pytest.approx([(8 / 10 + 9 / 12) / 2])
    (change,) = groups[1].differences["mean_iou"]
    assert change.value == pytest.approx((9 / 12 - 10 / 12) / 2)
    assert rows(groups)[1][5] == "-"  # near boundaries, only the mean over all classes is known
    lacking = false.metrics | {"classes": [{"name": n, "pixels": 0} for n in "abd"]}
    _, note = compare.align_classes([clean, replace(false, metrics=lacking)])
    assert "not all runs have c, d" in note.lower()


def test_differences_of_means_count_the_classes_that_both_have_in_every_resample() -> None:
    whole = estimate(resample(tally(torch.tensor([[[5, 0, 0], [0, 0, 0], [0, 0, 0]]]))), "mean_iou")
    assert whole[0].value == 1
    a = torch.tensor([[[5, 0, 0], [0, 5, 0], [0, 0, 0]], [[5, 0, 0], [0, 0, 0], [0, 0, 0]]])
    b = torch.tensor([[[5, 0, 0], [0, 5, 0], [0, 0, 0]], [[4, 1, 0], [0, 0, 0], [0, 0, 0]]])
    (change,) = estimate(resample(tally(b)), "mean_iou", minus=resample(tally(a)))
    assert change.value == pytest.approx(((9 / 10 - 1) + (5 / 6 - 1)) / 2)
    assert change.low == pytest.approx(4 / 5 - 1)  # of resamples without the first image: a alone


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("hf://USER/NAME", "hf://USER/NAME"),
        ("https://host/shards", "https://host/shards"),
        ("runs/a", "/home/me/runs/a"),
        ("/data/a", "/data/a"),
    ],
)
def test_addresses_are_no_paths(given: str, seen: str) -> None:
    run = make_run([1], checkpoint=given)
    run.cwd = Path("/home/me")
    assert run.checkpoint == run.located(given) == seen


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


@pytest.mark.parametrize("takes", [{"value_range": [100, 140]}, {"bands": [2, 0, 1]}])
def test_examples_are_predicted_from_what_each_network_takes(
    data: TinyVOC, tmp_path: Path, takes: dict[str, Any]
) -> None:
    """In either order, with pictures like those of masks that the predictor gives."""
    folders = [leave_run(data, "a"), leave_run(data, "b", "learned", **takes)]
    for order in (folders, folders[::-1]):
        groups = group_runs([compare.read_run(folder) for folder in order])
        found = compare.gallery(groups, CompareConfig(images=4), torch.device("cpu"))
        info = open_split(data.config(), "train").info
        for name, cards in found["cards"].items():
            shown = [uri for caption, uri in cards if ": mean IoU" in caption]
            masks = [Predictor(g.runs[0].checkpoint, "cpu")(data.image(name)) for g in groups]
            assert shown == [compare._uri(visualize.outlined(mask, info)) for mask in masks]
