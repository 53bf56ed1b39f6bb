"""The page on runs: what it holds and refuses, how sure it is, and how a browser takes it."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from fcn.config import UserError
from fcn.inference import bootstrap, page, report, runs
from fcn.inference.bootstrap import estimate, resample
from fcn.inference.checkpoint import write_safetensors
from fcn.inference.evaluation import metrics_json, write_json, write_per_image
from fcn.models.fcn import FCN
from tests.conftest import TinyVOC
from tests.test_page import Reader

CPU = torch.device("cpu")
QUIET = Console(quiet=True)
NASTY = '<b>&"x"'


class Nasty(TinyVOC):
    classes = ("background", "cat", NASTY, "never")


@pytest.fixture
def data(tmp_path: Path) -> TinyVOC:
    return Nasty(tmp_path)


def make_run(data: TinyVOC, name: str, stride: int = 32, split: str = "train") -> Path:
    """A folder as train.py leaves it, of an untrained net that never says the last class."""
    folder = data.root / name
    (folder / ".hydra").mkdir(parents=True)
    torch.manual_seed(stride)
    model = FCN(stride=stride, num_classes=4, backbone="mini", width=4, head_width=8).eval()
    for part, value in model.named_parameters():
        if value.ndim == 4:
            torch.nn.init.normal_(value, 0, 0.2)
        elif part == "score_fr.bias":
            torch.nn.init.constant_(value[3:], -1e4)
    settings = {"data": vars(data.config()) | {"root": "."}, "recipe": {"name": NASTY}}
    OmegaConf.save(settings, folder / ".hydra" / "config.yaml")
    cwd = {"hydra": {"runtime": {"cwd": str(data.root)}}}
    OmegaConf.save(cwd, folder / ".hydra" / "hydra.yaml")
    files = runs.open_split(data.config(), split)
    evaluation = report.evaluate_split(model, files, QUIET, "", device=CPU, bf16=False)
    metrics = metrics_json(evaluation, files, split, model.arguments, "tiny", "32-true")
    write_json(folder / "metrics.json", metrics)
    write_per_image(folder / "per_image.npz", files.ids, evaluation.per_image)
    write_safetensors(folder / "model.safetensors", model, {"classes": files.classes})
    (folder / "checkpoints").mkdir()
    history = {"loss": [(1, 2.0), (10, 1.0)], "mean_iou": [(10, 0.25)]}
    last = {"callbacks": {"History": history}, "state_dict": {}}
    torch.save(last, folder / "checkpoints" / "last.ckpt")
    return folder


def made_page(*folders: Path, images: int = 3) -> str:
    return page.report_page(runs.open_runs(list(map(str, folders))), images, QUIET, CPU)


def test_the_page_holds_what_was_measured_and_escapes_every_text(data: TinyVOC) -> None:
    folder = make_run(data, "run")
    metrics = json.loads((folder / "metrics.json").read_text())
    text = made_page(folder)
    read = Reader(text)
    assert "b" not in {tag for tag, _ in read.tags}
    assert read.text.count(NASTY) >= 3  # the table, the legend, the recipe
    assert f"{100 * metrics['mean_iou']:.1f}" in read.text
    for entry in metrics["classes"]:
        assert f"{entry['pixels']:,}" in read.text
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    assert all(image["alt"] for image in images)
    assert all(str(image["src"]).startswith("data:image/") for image in images)
    alts = " ".join(str(image["alt"]) for image in images)
    for what in ("Training loss", "Validation mean IoU", "bands round", "Confusion", "t1", "truth"):
        assert what in alts
    assert not [
        a for _, a in read.tags if {"href", "action"} & set(a) and a.get("href") != "data:,"
    ]
    assert sum("data-iou" in a for _, a in read.tags) == 3
    assert made_page(folder) == text  # nothing of it is left to chance


def test_the_gallery_is_spread_over_the_ranking_and_bounded(data: TinyVOC) -> None:
    iou = np.array([0.5, np.nan, 0.1, 0.9, 0.3, 0.7])
    assert page.spread(iou, 3).tolist() == [2, 0, 3]
    assert page.spread(iou, 99).tolist() == [2, 4, 0, 5, 3]
    assert page.spread(iou, 1).tolist() == [2]
    wide = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    mask = np.zeros((900, 1200), np.uint8)
    mask[:, 600:] = 2
    small = page.shrunk((wide, mask, mask))
    assert [array.shape[:2] for array in small] == [(360, 480)] * 3
    assert set(np.unique(small[1])) == {0, 2}
    folder = make_run(data, "run")
    one, four = (len(made_page(folder, images=count)) for count in (1, 4))
    assert four - one < 3 * 12_000  # bytes, for pictures of 64 x 48


def test_old_folders_are_judged_again_to_the_same_numbers(data: TinyVOC) -> None:
    folder = make_run(data, "run")
    whole = made_page(folder)
    (folder / "per_image.npz").unlink()
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["trimap"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert made_page(folder) == whole


def test_runs_that_do_not_compare_are_refused(data: TinyVOC) -> None:
    a, b = make_run(data, "a"), make_run(data, "b", split="val")
    with pytest.raises(UserError, match=r"a and .*b do not compare: .* split train and val"):
        runs.open_runs([str(a), str(b)])
    with pytest.raises(UserError, match="names a folder twice"):
        runs.open_runs([str(a), str(a / ".." / "a")])
    with pytest.raises(UserError, match=r"metrics\.json: not found; a run is a folder"):
        runs.open_runs([str(data.root)])
    metrics = json.loads((a / "metrics.json").read_text())

    def rewritten(**changes: Any) -> None:
        (a / "metrics.json").write_text(json.dumps(metrics | changes))

    rewritten(confusion=(np.array(metrics["confusion"]) + 1).tolist())
    with pytest.raises(UserError, match=r"per_image\.npz: not of the metrics\.json beside it"):
        runs.open_runs([str(a)])
    rewritten(protocol=metrics["protocol"] | {"ids_sha256": "0"})
    with pytest.raises(UserError, match="was judged on other images than are in"):
        runs.open_runs([str(a)])
    rewritten(confusion=None, protocol=3)
    with pytest.raises(UserError, match=r"metrics\.json: damaged"):
        runs.open_runs([str(a)])
    shutil.rmtree(b / ".hydra")
    with pytest.raises(UserError, match=r"\.hydra: not found"):
        runs.open_runs([str(b)])


def test_runs_are_named_by_the_ends_of_their_paths(data: TinyVOC) -> None:
    folders = [make_run(data, name) for name in ("x/run", "y/run")]
    assert [run.name for run in runs.open_runs(list(map(str, folders)))] == ["x/run", "y/run"]
    assert [run.name for run in runs.open_runs([str(folders[1])])] == ["run"]


def one_pixel_images(right: np.ndarray) -> torch.Tensor:
    """(N, 3, 2): images of one pixel of class 0, right or taken for class 1."""
    right = torch.from_numpy(right.astype(np.int64))
    zeros = torch.zeros_like(right)
    hits = torch.stack((right, zeros), -1)
    truth = torch.stack((zeros + 1, zeros), -1)
    predicted = torch.stack((right, 1 - right), -1)
    return torch.stack((hits, truth, predicted), 1)


def test_a_run_less_itself_is_exactly_nothing() -> None:
    per_image = torch.randint(0, 1000, (31, 3, 4))
    per_image[:, 0] = per_image.min(1).values
    for metric in ("mean_iou", "iou", "pixel_accuracy"):
        for one in estimate(resample(per_image), metric, minus=resample(per_image)):
            assert (one.value, one.low, one.high, one.sign) == (0, 0, 0, 0)


def test_intervals_are_as_wide_as_theory_has_them() -> None:
    """Pixel accuracy of one-pixel images is a binomial share: +- 1.96 sqrt(p (1 - p) / n)."""
    n, p = 400, 0.7
    a = np.arange(n) < n * p
    (share,) = estimate(resample(one_pixel_images(a)), "pixel_accuracy")
    half = 1.96 * np.sqrt(p * (1 - p) / n)
    assert share.value == pytest.approx(p)
    assert share.low == pytest.approx(p - half, abs=0.1 * half)
    assert share.high == pytest.approx(p + half, abs=0.1 * half)
    b = a.copy()
    b[-20:] = True  # right wherever a is, and in 5 % more: paired, that is all that varies
    paired = estimate(
        resample(one_pixel_images(b)), "pixel_accuracy", minus=resample(one_pixel_images(a))
    )[0]
    narrow = 1.96 * np.sqrt(0.05 * 0.95 / n)
    assert paired.value == pytest.approx(0.05)
    assert paired.high - paired.low == pytest.approx(2 * narrow, rel=0.1)
    assert paired.sign == 1
    assert narrow < half / 2


def test_an_absent_class_has_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    per_image = torch.ones(5, 3, 3, dtype=torch.int64)
    per_image[:, :, 1] = 0
    per_image[1:, :, 2] = 0  # in one image alone: many resamples lack it
    absent, rare = estimate(resample(per_image), "iou")[1:]
    assert (absent.value, absent.low, absent.high) == (None, None, None)
    assert (rare.value, rare.low, rare.high) == (1, 1, 1)
    monkeypatch.setattr(bootstrap, "SEED", 1)
    assert estimate(resample(per_image), "iou")[0].value == 1


def test_stages_share_their_parents_settings(data: TinyVOC) -> None:
    folder = make_run(data, "run/fcn32s")
    shutil.move(folder / ".hydra", folder.parent / ".hydra")
    (run,) = runs.open_runs([str(folder)])
    assert run.settings["recipe"] == {"name": NASTY}
    (folder.parent / "stages.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds several runs; name them: .*fcn32s"):
        runs.open_runs([str(folder.parent)])


CLICKS = """<script>
addEventListener("load", () => {
  const result = {}, $ = s => document.querySelector(s);
  const all = s => [...document.querySelectorAll(s)];
  const order = () => all("#cards li").map(card => card.dataset.iou.split(" ").map(Number));
  const layers = () => all("#cards li").map(card =>
    [...card.querySelectorAll("[data-layer]")].filter(i => i.offsetParent && !i.hidden)
      .map(i => i.dataset.layer).join());
  const column = n => all("#classes tbody tr").map(row => n ? row.cells[n].dataset.value
    : row.cells[0].textContent);
  result.width = [document.documentElement.scrollWidth, innerWidth];
  result.start = [layers(), order()];
  $('input[value="truth"]').click(); result.truth = layers();
  $(".stack").click(); result.next = layers();
  $('input[value="image"]').click(); result.image = layers();
  $('input[name="order"][value="-1"]').click(); result.best = order();
  $('input[name="key"][value="1-0"]').click(); result.gain = order();
  const heads = all("#classes thead button");
  heads[0].click(); result.names = column(0);
  heads[2].click(); result.down = column(2);
  heads[2].click(); result.up = column(2);
  result.sorted = all("#classes [aria-sort]").map(h => h.getAttribute("aria-sort"));
  $("#strength").value = 25; $("#strength").dispatchEvent(new Event("input"));
  result.opacity = getComputedStyle($("[data-layer]")).opacity;
  document.title = JSON.stringify(result);
});
</script>"""


@pytest.fixture(scope="session")
def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no chromium or google-chrome on the path to open the page with")
    return found


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_sorts_toggles_and_says_no_word(
    browser: str, data: TinyVOC, tmp_path: Path, width: int
) -> None:
    text = made_page(make_run(data, "a", 32), make_run(data, "b", 8), images=4)
    clicked = tmp_path / "clicked.html"
    clicked.write_text(text.replace("</body>", CLICKS + "</body>"), encoding="utf-8")
    flags = "--headless=new --no-sandbox --disable-gpu --enable-logging=stderr --v=0 --dump-dom"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    opened = subprocess.run(
        [browser, *flags.split(), profile, f"--window-size={width},900", clicked.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    assert "CONSOLE" not in opened.stderr
    title = re.search(r"<title>(.*?)</title>", opened.stdout)
    assert title
    result = json.loads(html.unescape(title.group(1)))
    layers, iou = result["start"]
    assert result["width"][0] <= result["width"][1]
    assert layers == ["prediction-0"] * 4
    first = [a for a, _ in iou]
    assert first == sorted(first)
    assert first[0] < first[-1]
    assert result["truth"] == ["truth"] * 4
    assert result["next"] == ["prediction-0"] + ["truth"] * 3
    assert result["image"] == [""] * 4
    assert [a for a, _ in result["best"]] == first[::-1]
    gains = [b - a for a, b in result["gain"]]
    assert gains == sorted(gains, reverse=True)
    assert gains != [b - a for a, b in result["best"]]
    assert result["names"] == sorted(result["names"], key=str.lower)
    assert result["down"][-1] == result["up"][-1] == ""  # the class that is absent
    down = [float(value) for value in result["down"] if value]
    assert down == sorted(down, reverse=True)
    assert down[0] > down[-1]
    assert [float(value) for value in result["up"] if value] == down[::-1]
    assert result["sorted"] == ["ascending"]
    assert float(result["opacity"]) == 0.25
