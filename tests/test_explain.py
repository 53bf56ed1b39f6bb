"""The explanation: topics as scripts and as notebooks, claims that stop the page, and its files."""

import json
import re
import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fcn import checkpoint
from fcn.config import DataConfig, ExplainConfig
from fcn.dataset_info import DatasetInfo
from fcn.errors import ConfigError
from fcn.explain import demo, explain, network
from fcn.explain.explain import ABOUT_NETWORK, FILES, TOPICS
from fcn.explain.show import show
from fcn.models.fcn import FCN
from fcn.models.upsampling import LearnedUpsampling
from fcn.models.vgg import VGG
from fcn.output import make_console
from tests.conftest import QUIET, TinyVOC, random_model, small

CLASSES = ["background", "cat", "dog"]


def subject(model: FCN, classes: list[str] = CLASSES) -> demo.Subject:
    target = torch.zeros(75, 90, dtype=torch.uint8)
    target[20:50, 30:70], target[0] = 2, 255
    image = torch.randint(0, 256, (3, 75, 90), dtype=torch.uint8)
    data: Any = [(image, target)]
    model = model.requires_grad_(False)
    return demo.Subject(model, DatasetInfo(classes), image[None], target, [model], data)


def run_script(key: str) -> dict[str, Any]:
    with torch.enable_grad():
        return runpy.run_path(str(FILES / f"{key}.py"))


@pytest.mark.parametrize("key", [key for key in TOPICS if key not in ABOUT_NETWORK])
def test_a_topic_runs_as_a_script(key: str) -> None:
    assert explain.claims(explain.read(key)) > 0
    run_script(key)


class Squared(LearnedUpsampling):
    """A layer of a user's own that is not linear."""

    def full(self, score: Tensor) -> Tensor:
        return super().full(score).square()


@pytest.mark.parametrize(
    ("key", "stride", "upsampling"),
    [
        ("network", 8, "learned"),
        ("network", 16, "nonlinear"),
        ("network", 32, "fixed"),
        ("network", 8, f"{__name__}.Squared"),
        ("learning", 8, "learned_channelwise"),
        ("learning", 16, "nonlinear"),  # of layers with a kernel for every pair of classes
        ("learning", 32, "fixed"),
        ("deconvnet", 8, "learned"),  # whose upsampling it does not look at
    ],
)
def test_a_topic_about_a_network_holds_for_every_kind(key, stride, upsampling, monkeypatch) -> None:
    about = subject(random_model(stride=stride, upsampling=upsampling, num_classes=3))
    monkeypatch.setattr(demo, "load", lambda: about)
    run_script(key)


def test_a_false_claim_stops_the_page_and_is_named(
    error_line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = tmp_path / "topics"
    topics.mkdir()
    text = (FILES / "matrix.py").read_text(encoding="utf-8")
    claim = "assert torch.equal(dy.flatten(), Cx)"
    assert claim in text
    (topics / "matrix.py").write_text(text.replace(claim, claim + " is False"), encoding="utf-8")
    monkeypatch.setattr(explain, "FILES", topics)
    line = error_line("explain", "explain=matrix", f"hydra.run.dir={tmp_path}/run")
    assert f"explain=matrix: not true: {claim} is False" in line
    assert not [*(tmp_path / "run").rglob("*.html")]


def test_pictures_escape_their_texts() -> None:
    html = show({'a "dot" & <b>': [[1.0, 2]]}, "a <caption>")._repr_html_()
    assert 'alt="a &#34;dot&#34; &amp; &lt;b&gt;"' in html
    assert "<figcaption>a &lt;caption&gt;</figcaption>" in html


def test_the_part_of_a_pool_is_a_network_that_scores_from_it_alone() -> None:
    model = random_model(stride=8)
    batch = torch.rand(1, 3, 64, 64)
    parts = network.contributions(model, batch)
    for name in ("score_fr", "score_pool4"):
        for parameter in model.get_submodule(name).parameters():
            nn.init.zeros_(parameter)
    torch.testing.assert_close(parts["pool3"], model(batch)[0])
    parts = network.contributions(model, batch)
    assert not parts["pool5"].any()
    assert not parts["pool4"].any()


class PositiveGradient(torch.autograd.Function):
    """ReLU forward; backward, a ReLU of the gradient whatever the input's sign."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.relu()


@pytest.mark.parametrize("backbone", ["mini", "vgg16"])
def test_the_deconvnet_is_a_backward_pass_with_another_rule_for_relu(backbone: str) -> None:
    layers = VGG(backbone, padding=1, width=8).until("pool3").eval()
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, -1, 1)
            nn.init.normal_(layer.running_mean)
    image = torch.randn(1, 3, 45, 61, requires_grad=True)  # odd sides: the poolings round up
    result = image
    for layer in layers:
        result = PositiveGradient.apply(result) if isinstance(layer, nn.ReLU) else layer(result)
    responses = network.strongest(layers, image.detach(), 3)
    assert len({channel for channel, *_ in responses}) == 3
    for channel, value, pattern in responses:
        top = result[0, channel].max()
        assert value == pytest.approx(float(top.detach()), rel=1e-5)
        (expected,) = torch.autograd.grad(top, image, value * torch.ones(()), retain_graph=True)
        torch.testing.assert_close(pattern, expected[0], atol=1e-5, rtol=1e-4)
        assert pattern.any()


def test_the_deconvnet_holds_for_images_with_flat_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a black border many units have one value; its gradient goes to a single one of them."""
    tied = 0
    for seed in range(6):
        torch.manual_seed(seed)
        about = subject(random_model(num_classes=3, backbone="mini"))
        dark = nn.functional.pad(about.image // 30, (48, 48, 48, 48))
        monkeypatch.setattr(demo, "load", partial(replace, about, image=dark))
        names = run_script("deconvnet")
        tied += int((names["values"] == names["top"]).sum() > 1)
    assert tied


@pytest.mark.parametrize(
    "chosen", [["matrix", "network"], pytest.param(TOPICS, marks=pytest.mark.slow)], ids=len
)
def test_the_command_writes_a_folder_with_every_topic(
    command, capsys, tiny_voc, tmp_path, monkeypatch, chosen
) -> None:
    monkeypatch.setattr(explain, "TOPICS", chosen)
    run, model = tmp_path / "run", tmp_path / "model.safetensors"
    learned = random_model(upsampling="learned", num_classes=3)
    checkpoint.write_safetensors(model, learned, {"classes": CLASSES})
    settings = [f"checkpoint={model}", "notebooks=true", f"hydra.run.dir={run}"]
    command("explain", *settings, *tiny_voc.overrides())
    *topics, last = capsys.readouterr().out.splitlines()
    titles = [explain.read(key).cells[0].source.splitlines()[0][2:] for key in chosen]
    assert topics == [f"{number}. {title}" for number, title in enumerate(titles, 1)]
    pages = run / "pages"
    claims = sum(explain.claims(explain.read(key)) for key in chosen)
    assert last == f"{claims} claims checked: {pages / 'explain.html'}"
    page = (pages / "explain.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)">', page) == chosen
    names = {"index.html", "explain.html", "explorer.html", "preview.png"}
    assert {path.name for path in pages.iterdir()} == names | {f"{key}.ipynb" for key in chosen}
    for name in ("index.html", "explain.html", "explorer.html"):
        text = (pages / name).read_text(encoding="utf-8")
        assert str(tmp_path) not in text
        links = re.findall(r'(?:src|href|content)="([\w.-]+\.(?:html|png|js|css))', text)
        assert links
        assert {*links} <= names
    assert "upscore2: cat" in (pages / "explorer.html").read_text(encoding="utf-8")
    for key in chosen:
        notebook = nbformat.read(pages / f"{key}.ipynb", as_version=4)
        nbformat.validate(notebook)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert outputs
        assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("notebooks", [False, True])
def test_each_file_that_is_written_is_not_overwritten_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notebooks: bool
) -> None:
    monkeypatch.setattr(explain, "execute", lambda *_: None)
    cfg = ExplainConfig(explain="matrix", notebooks=notebooks)
    (tmp_path / "out").mkdir()
    explain.main(cfg, tmp_path / "out", QUIET)
    written = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*")}
    assert (Path("pages/matrix.ipynb") in written) == notebooks
    for name in written:
        (tmp_path / f"only {name.name}" / name).mkdir(parents=True)
        with pytest.raises(ConfigError, match=f"{name} exists; choose another hydra"):
            explain.main(cfg, tmp_path / f"only {name.name}", QUIET)


def test_links_of_the_topics_lead_to_what_the_explorer_knows() -> None:
    """Every address that a topic links to: its names and its settings."""
    html = (Path(explain.__file__).parent / "explorer/index.html").read_text(encoding="utf-8")
    names = re.findall(r'<a href="#([\w-]+)" data-set', html)
    views = re.findall(r'<section id="(\w+)"', html)
    links = [
        link
        for path in [*FILES.glob("*.py"), Path(explain.__file__).with_name("index.html")]
        for link in re.findall(r"explorer\.html#([^)\"]+)", path.read_text(encoding="utf-8"))
    ]
    assert len(links) > 10
    for link in links:
        for part in link.split("&"):
            key, _, value = part.partition("=")
            assert key in names if not value else key in {*"nkspodxwgt", "view"}, link
            assert key != "view" or value in views, link


def test_an_unknown_image_is_an_error_that_names_one(error_line, tiny_voc, tmp_path) -> None:
    run, model = tmp_path / "run", tmp_path / "model.safetensors"
    checkpoint.write_safetensors(model, small(num_classes=3), {"classes": CLASSES})
    arguments = ["explain=network", f"checkpoint={model}", "image=nothing"]
    assert "v0" in error_line("explain", *arguments, *tiny_voc.overrides(), f"hydra.run.dir={run}")


@pytest.mark.parametrize(
    "given", ["fcn32s=RUN", "data=folder", "data.root=/data", "data.val_split=train", "data.fold=0"]
)
def test_what_belongs_to_a_network_needs_one(error_line, tmp_path, given) -> None:
    line = error_line("explain", "explain=network", given, f"hydra.run.dir={tmp_path}/run")
    assert "without checkpoint=" in line


@pytest.mark.slow
def test_without_a_checkpoint_three_networks_are_trained_and_shown(command, tmp_path) -> None:
    """If the training is interrupted, the next call keeps what it has finished and resumes."""
    run = tmp_path / "run"
    command("explain", "explain=network", "steps=5", f"hydra.run.dir={run}")
    page = (run / "pages" / "explain.html").read_text(encoding="utf-8")
    for stride in (32, 16, 8):
        assert f'alt="FCN-{stride}s mean IoU' in page
    *done, last = (run / "train" / f"fcn{stride}s/model.safetensors" for stride in (32, 16, 8))
    assert checkpoint.load(last).arguments["upsampling"] == "learned"
    times = [path.stat().st_mtime_ns for path in done]
    for name in ("model.safetensors", "metrics.json"):  # as if killed before the end
        last.with_name(name).unlink()
    cfg = ExplainConfig(steps=5, data=DataConfig(name="shapes", layout="shapes"))
    with pytest.raises(ConfigError, match="other steps or another seed"):
        demo.with_networks(replace(cfg, seed=1), run, make_console())
    assert demo.with_networks(cfg, run, make_console()).checkpoint == str(last.parent)
    assert last.is_file()
    assert [path.stat().st_mtime_ns for path in done] == times


NASTY = ['back"ground', "it's a \\ and \\n", '# "x"', "$\\foo$", "{x!r} {", "<b>&*a*`b`</script>"]


def test_text_of_a_checkpoint_is_shown_as_text(tmp_path: Path) -> None:
    """Class names go to the notebooks as data: none of them runs, or becomes HTML."""
    stopped = tmp_path / "ran"
    code = f"'); __import__('pathlib').Path({str(stopped)!r}).touch()  # {{}}"
    classes = [*NASTY, code]
    for part in ("images/val", "annotations/val"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "dataset.yaml").write_text(json.dumps({"classes": classes}), encoding="utf-8")
    Image.new("RGB", (64, 64)).save(tmp_path / "images/val/a.png")
    Image.new("L", (64, 64), 5).save(tmp_path / "annotations/val/a.png")
    model = random_model(upsampling="learned", num_classes=len(classes))
    checkpoint.write_safetensors(tmp_path / "m.safetensors", model, {"classes": classes})
    settings = tmp_path / "settings.json"
    values = {"checkpoint": str(tmp_path / "m.safetensors")}
    data = {"name": "folder", "layout": "folder", "root": str(tmp_path)}
    settings.write_text(json.dumps(values | {"data": data}), encoding="utf-8")
    notebooks = {key: explain.read(key) for key in ABOUT_NETWORK}
    explain.execute(notebooks, {demo.SETTINGS: str(settings)})
    sections = [explain.section(key, 1, notebook) for key, notebook in notebooks.items()]
    html = "".join(section.html for section in sections)
    assert not stopped.exists()
    assert "<b>&*a" not in html
    assert "&lt;b&gt;&amp;*a*`b`&lt;/script&gt;" in html
    assert "pathlib" in html


def test_a_set_and_networks_with_their_classes_in_other_orders_show_the_same(
    tiny_voc, tmp_path
) -> None:
    """Their scores of one image; the second network is the first, renumbered."""
    model = random_model(stride=32, num_classes=3, backbone="mini")
    checkpoint.write_safetensors(tmp_path / "a.safetensors", model, {"classes": CLASSES})
    orders = [CLASSES[2], CLASSES[0], CLASSES[1]]
    turned = checkpoint.read(tmp_path / "a.safetensors").model(orders)
    checkpoint.write_safetensors(tmp_path / "b.safetensors", turned, {"classes": orders})
    pair = {"checkpoint": f"{tmp_path}/b.safetensors", "fcn32s": f"{tmp_path}/a.safetensors"}
    about = demo.subject(ExplainConfig(**pair, data=tiny_voc.config()))
    assert about.classes == CLASSES
    first, second = about.stages
    torch.testing.assert_close(first(about.image), second(about.image))


@pytest.mark.parametrize("takes", [{"value_range": [0, 9]}, {"bands": [2, 1, 0]}])
def test_networks_that_take_other_pixels_are_not_shown_one_image(
    tiny_voc: TinyVOC, tmp_path: Path, takes: dict[str, Any]
) -> None:
    model, (key,) = random_model(stride=32, num_classes=3, backbone="mini"), takes
    for name, more in (("a", {}), ("b", takes)):
        checkpoint.write_safetensors(
            tmp_path / f"{name}.safetensors", model, {"classes": CLASSES} | more
        )
    pair = {"checkpoint": f"{tmp_path}/a.safetensors", "fcn32s": f"{tmp_path}/b.safetensors"}
    cfg = ExplainConfig(**pair, data=tiny_voc.config())
    with pytest.raises(ConfigError, match=f"or set data.{key} for both"):
        demo.subject(cfg)
    setattr(cfg.data, key, takes[key])
    assert len(demo.subject(cfg).stages) == 2
