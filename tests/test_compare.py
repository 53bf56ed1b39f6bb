"""Runs of a sweep: how they are named, grouped and compared, and the page about them."""

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from fcn import compare, evaluate, page
from fcn.checkpoint import write_safetensors
from fcn.compare import Run, group_runs, naming_keys, rows
from fcn.config import CompareConfig, UserError
from fcn.data.layouts import open_split
from fcn.device import InferenceModel
from fcn.metrics import rates
from fcn.models.fcn import FCN
from tests.conftest import TinyVOC

QUIET = Console(quiet=True)
NASTY = "<b>&\"x'"
SMALL = {"num_classes": 2, "backbone": "mini", "width": 4, "head_width": 8}


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


def make_run(correct: list[int], folder: str = "0", **config: Any) -> Run:
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
        "protocol": {
            "data": "tiny",
            "split": "val",
            "images": len(correct),
            "model": SMALL | {"upsampling": config.get("upsampling", "fixed")},
        },
    }
    nested = {
        key: {"name": value} if key == "upsampling" else value for key, value in config.items()
    }
    ids = [f"image {i}" for i in range(len(correct))]
    return Run(Path("sweep", folder), Path("."), nested, metrics, ids, per_image)


def test_runs_are_named_by_the_settings_that_differ() -> None:
    fixed = {"seed": "0", "upsampling.name": "fixed", "data.root": "a", "recipe.lr": "0.1"}
    learned = {"seed": "1", "upsampling.name": "learned", "data.root": "b", "recipe.lr": "0.1"}
    assert naming_keys([fixed, learned]) == {"upsampling": "upsampling.name"}
    faster = learned | {"recipe.lr": "1.0"}
    names = {"upsampling": "upsampling.name", "lr": "recipe.lr"}
    assert naming_keys([fixed, learned, faster]) == names
    assert naming_keys([fixed]) == naming_keys([fixed, fixed | {"seed": "1"}]) == {}
    assert naming_keys([fixed, {"checkpoint": "x", "seed": "0"}]) == {}  # keys of both alone count


def test_what_follows_from_a_choice_is_not_named() -> None:
    coarse = {"model.name": "fcn32s", "model.stride": "32", "model.dropout": "0.5"}
    fine = {"model.name": "fcn8s", "model.stride": "8", "model.dropout": "0.5"}
    assert [*naming_keys([coarse, fine])] == ["model"]
    assert [*naming_keys([coarse, fine, fine | {"model.dropout": "0"}])] == ["model", "dropout"]
    heavy = {"recipe.name": "heavy", "trainer.max_steps": "10"}
    modern = {"recipe.name": "modern", "trainer.max_steps": "20"}
    assert [*naming_keys([heavy, modern])] == ["recipe"]
    assert [*naming_keys([heavy, modern, heavy | {"trainer.max_steps": "30"}])] == [
        "recipe",
        "max_steps",
    ]


def test_short_names_that_are_ambiguous_stay_dotted() -> None:
    one = {"recipe.scale": "1", "model.scale": "1"}
    other = {"recipe.scale": "2", "model.scale": "2"}
    assert [*naming_keys([one, other])] == ["recipe.scale", "model.scale"]


def test_groups_average_over_seeds_and_differ_in_pairs() -> None:
    # Shares of correct pixels: fixed 40 % and 60 %, learned 60 % (seed 0) and 100 % (seed 5).
    groups = group_runs(
        [
            make_run([4, 4], seed=0, upsampling="fixed"),
            make_run([6, 6], seed=1, upsampling="fixed"),
            make_run([8, 4], seed=0, upsampling="learned"),
            make_run([9, 9], seed=5, upsampling="learned"),
        ]
    )
    fixed, learned = groups
    assert [group.name for group in groups] == ["upsampling=fixed", "upsampling=learned"]
    assert fixed.mean_iou == pytest.approx([0.2, 0.3])
    assert fixed.trimap[:3] == [None, pytest.approx(0.25), pytest.approx(0.125)]
    (change,) = learned.differences["mean_iou"]
    assert change.value == pytest.approx(0.3 - 0.2)  # seed 0 alone is in both
    assert rows(groups)[0] == ["upsampling=fixed", "0 1", "25.00\n20.00..30.00", "12.50", "-", "0"]
    assert rows(groups)[1][4].startswith("+10.00\n")
    assert learned.upsampling_weights == 4 * (2 * 4 * 4 + 16 * 16)  # x2, x2, x8; 2 to 2 classes
    assert fixed.differences == {}
    content = json.loads(json.dumps(compare.as_json(groups)))
    assert content["groups"][1]["seeds"] == ["0", "5"]
    assert content["groups"][1]["difference"]["mean_iou"]["value"] == pytest.approx(0.1)


def test_without_a_common_seed_all_runs_are_compared() -> None:
    runs = [make_run([4], seed=0, upsampling="fixed"), make_run([9], seed=1, upsampling="learned")]
    (change,) = group_runs(runs)[1].differences["mean_iou"]
    assert change.value == pytest.approx(0.45 - 0.2)


def test_a_run_compared_with_itself_differs_by_exactly_0() -> None:
    correct = np.random.default_rng(0).integers(0, 10, 30).tolist()
    groups = group_runs([make_run(correct, folder, seed=0) for folder in ("a", "b")])
    assert [group.name for group in groups] == ["run=a", "run=b"]
    for estimates in groups[1].differences.values():
        for one in estimates:
            assert (one.value, one.low, one.high, one.sign) == (0, 0, 0, 0)


def test_intervals_contain_the_difference() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 9, (2, 40)).tolist()
    groups = group_runs([make_run(first, seed=0, lr=1), make_run(second, seed=0, lr=2)])
    for metric in ("mean_iou", "pixel_accuracy"):
        (change,) = groups[1].differences[metric]
        assert change.low < change.value < change.high  # type: ignore[operator]


@pytest.mark.parametrize("what", ["ids", "classes", "ground truth"])
def test_runs_on_different_images_or_classes_are_an_error(what: str) -> None:
    one, other = make_run([4, 5], "a", lr=1), make_run([4, 5], "b", lr=2)
    if what == "ids":
        other.ids.reverse()
    elif what == "classes":
        other.metrics["classes"][1]["name"] = "other"
    else:
        other.per_image[0, 1, 0] += 1
    with pytest.raises(UserError, match=r"a and .*b were evaluated on different"):
        group_runs([one, other])


def leave_run(data: TinyVOC, name: str, upsampling: str = "fixed", seed: int = 0) -> Path:
    """Leave a run's folder, as train.py does, of an untrained network."""
    folder = data.root / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    torch.manual_seed(seed)
    model = FCN(upsampling=upsampling, **SMALL | {"num_classes": 4}).eval()
    for weights in (model.score_fr.weight, model.score_pool4.weight, model.score_pool3.weight):
        torch.nn.init.normal_(weights, 0, 0.2)
    config = {
        "data": vars(data.config()) | {"root": "."},
        "upsampling": {"name": upsampling},
        "recipe": {"name": NASTY},
        "seed": seed,
    }
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    cwd = {"hydra": {"runtime": {"cwd": str(data.root)}}}
    OmegaConf.save(cwd, folder / ".hydra" / "hydra.yaml")
    dataset = open_split(data.config(), "train")
    prepared = InferenceModel(model, torch.device("cpu"), bf16=False)
    found = evaluate.evaluate(prepared, dataset, QUIET, num_workers=0)
    metrics = evaluate.metrics_json(found, prepared, dataset, "tiny", "train")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    np.savez(folder / "per_image.npz", ids=dataset.ids, per_image=found.per_image)
    write_safetensors(folder / "model.safetensors", model, {"classes": dataset.classes})
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
    for number, (upsampling, seed) in enumerate(
        (u, s) for u in ("fixed", "learned") for s in (0, 1)
    ):
        leave_run(data, f"sweep/{number}", upsampling, seed)
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


def test_one_run_alone_has_a_page(data: TinyVOC, tmp_path: Path) -> None:
    folder = leave_run(data, "run")
    metrics = json.loads((folder / "metrics.json").read_text())
    text = Reader(made_page(tmp_path / "page", runs=[str(folder)])).text
    assert f"{100 * metrics['mean_iou']:.2f}" in text
    assert "−" not in text.partition("Example")[0]  # no differences


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


def test_data_root_says_where_the_data_lies_now(data: TinyVOC, tmp_path: Path) -> None:
    folder = leave_run(data, "run")
    shutil.move(data.folder, tmp_path / "moved" / "tiny")
    moved = made_page(tmp_path / "page", runs=[str(folder)], data_root=str(tmp_path / "moved"))
    assert "No example predictions" not in moved


def test_a_sweep_is_in_the_order_of_its_numbers_and_unfinished_runs_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in ("10", "9", "2", "11"):
        (tmp_path / number / ".hydra").mkdir(parents=True)
        if number != "11":
            (tmp_path / number / "metrics.json").touch()
    found = compare.find_runs(CompareConfig(sweep=str(tmp_path)), Console())
    assert [path.name for path in found] == ["2", "9", "10"]
    assert "1 unfinished left out: 11" in capsys.readouterr().out
    again = CompareConfig(runs=[str(tmp_path / "9")], sweep=str(tmp_path))
    assert [path.name for path in compare.find_runs(again, QUIET)] == ["9", "2", "10"]


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
    assert compare.spread(iou, 3) == [2, 0, 3]
    assert compare.spread(iou, 99) == [2, 4, 0, 5, 3]
    assert compare.spread(iou, 1) == [2]
    assert compare.spread(iou, 0) == []


def test_pictures_survive_their_data_uri() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    kind, _, content = page.data_uri(Image.fromarray(pixels)).partition(";base64,")
    assert kind == "data:image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), pixels)
    assert page.data_uri(Image.fromarray(pixels), 80).startswith("data:image/jpeg;")


@pytest.mark.parametrize("plot", [False, True])
def test_pages_and_figures_escape_their_texts(plot: bool) -> None:
    figure = page.figure(Image.new("RGB", (12, 8)), NASTY, NASTY, plot=plot)
    read = Reader(page.page(NASTY, figure))
    assert read.text.count(NASTY) == 2
    (image,) = (attributes for tag, attributes in read.tags if tag == "img")
    assert image["alt"] == NASTY
    assert (image["width"], image["height"]) == (("9", "6") if plot else ("12", "8"))
    assert re.search("<!doctype html>", page.page("", ""))
