"""The explanation: claims that stop it, the views of a network, and the command end to end."""

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fcn import checkpoint
from fcn.dataset_info import DatasetInfo
from fcn.explain import net
from fcn.explain.section import IMPORTS, TOPICS, ClaimError, Section
from fcn.explain.story import ABOUT_NETWORK, explain, write
from fcn.models.fcn import FCN
from fcn.models.vgg import VGG
from tests.conftest import TinyVOC, random_model, small

CLASSES = ["background", "cat", "dog"]


def subject(model: FCN) -> net.Subject:
    target = torch.zeros(75, 90, dtype=torch.uint8)
    target[20:50, 30:70], target[0] = 2, 255
    image = torch.randint(0, 256, (3, 75, 90), dtype=torch.uint8)
    return net.Subject(model, DatasetInfo(CLASSES), image, target)


def pictures(section: Section) -> int:
    return sum(block.count("<figcaption") for block in section.blocks)


def test_a_false_claim_raises_and_is_not_counted() -> None:
    section = Section("matrix")
    section.claim("holds", np.ones((2, 3)), torch.ones(1, 1, 2, 3) + 1e-12)
    with pytest.raises(ClaimError, match="matrix"):
        section.claim("does not hold", np.ones((2, 3)), torch.ones(1, 1, 2, 3) + 0.1)
    with pytest.raises(ClaimError):
        section.claim("is not a number", float("nan"))
    assert section.claims == 1


def test_text_is_escaped(tmp_path: Path) -> None:
    section = Section("operators")
    section.text("a *b* of `c` < d")
    section.table(("<i>", "n"), [("<script>", 1)])
    section.picture("a caption", [{'a "dot" & <b>': Image.new("RGB", (4, 4))}])
    page = write([section], tmp_path).read_text(encoding="utf-8")
    assert "<p>a <i>b</i> of <code>c</code> &lt; d</p>" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert 'alt="a &#34;dot&#34; &amp; &lt;b&gt;"' in page


@pytest.mark.parametrize("key", list(TOPICS))
def test_the_code_on_the_page_runs_as_it_stands_and_gives_the_numbers_of_its_pictures(key) -> None:
    about = subject(random_model(upsampling="learned", num_classes=3))
    section = explain(key, about)
    page = html.unescape("".join(section.blocks))
    scope = (
        {"model": about.model, "image": about.image[None], "info": about.info}
        if key in ABOUT_NETWORK
        else {}
    )
    exec(IMPORTS, scope)
    listings = re.findall(r"<pre.*?><code>(.+?)</code></pre>", page, re.DOTALL)
    assert section.claims >= len(listings) >= 1
    assert pictures(section) >= 1
    for lines in listings:
        *before, last = lines.splitlines()
        exec("\n".join(before), scope)
        value = eval(last, scope)
        results = value if isinstance(value, tuple) else (value,)
        titles = [t for comment in re.findall("#.*", lines) for t in re.findall('"(.+?)"', comment)]
        titles *= len(results) if len(titles) == 1 else 1
        for result, title in zip(results, titles, strict=True):
            numbers = torch.as_tensor(result).detach().numpy().ravel()
            np.testing.assert_allclose(numbers, section.shown[title].ravel(), 1e-5, 1e-5)


def test_code_that_gives_other_numbers_than_the_picture_stops_the_page() -> None:
    section = Section("matrix")
    section.panels("a caption", {"three": np.full((1, 1), 3.0)}, 1)
    section.code('x = 1\nx + 2  # "three"')
    with pytest.raises(ClaimError, match="x \\+ 3"):
        section.code('x + 3  # "three"')
    assert "<pre" in section.blocks[-1]


@pytest.mark.parametrize(
    ("stride", "upsampling", "claims", "layers"),
    [
        (8, "learned", 6, 3),
        (16, "nonlinear", 4, 5),
        (32, "fixed", 4, 0),
        (8, "learned_channelwise", 6, 3),
        (8, "nearest_conv", 6, 3),
    ],
)
def test_topics_about_a_network_hold_for_every_kind(stride, upsampling, claims, layers) -> None:
    about = subject(random_model(stride=stride, upsampling=upsampling, num_classes=3))
    assert explain("network", about).claims == claims
    drawn = pictures(explain("learning", about))
    assert drawn == (layers + 2 if layers else 0)  # kernels of each, lengths, ripple


def test_the_part_of_a_pool_is_a_network_that_scores_from_it_alone() -> None:
    model = random_model(stride=8)
    batch = torch.rand(1, 3, 64, 64)
    parts = net.contributions(model, batch)
    for name in ("score_fr", "score_pool4"):
        for parameter in model.get_submodule(name).parameters():
            nn.init.zeros_(parameter)
    torch.testing.assert_close(parts["pool3"], model(batch)[0])
    parts = net.contributions(model, batch)
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
    responses = net.strongest(layers, image.detach(), 3)
    assert len({channel for channel, *_ in responses}) == 3
    for channel, value, pattern in responses:
        top = result[0, channel].max()
        assert value == pytest.approx(float(top.detach()), rel=1e-5)
        (expected,) = torch.autograd.grad(top, image, value * torch.ones(()), retain_graph=True)
        torch.testing.assert_close(pattern, expected[0], atol=1e-5, rtol=1e-4)
        assert pattern.any()


def test_the_command_writes_every_topic_to_one_page(command, capsys, tiny_voc, tmp_path) -> None:
    run, model = tmp_path / "run", tmp_path / "model.safetensors"
    learned = random_model(upsampling="learned", num_classes=3)
    checkpoint.write_safetensors(model, learned, {"classes": CLASSES})
    command("explain", f"checkpoint={model}", f"hydra.run.dir={run}", *tiny_voc.overrides())
    *topics, last = capsys.readouterr().out.splitlines()
    assert topics == [f"{number}. {title}" for number, title in enumerate(TOPICS.values(), 1)]
    assert last == f"31 claims checked: {run / 'explain.html'}"
    page = (run / "explain.html").read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="(\w+)">', page) == list(TOPICS)
    assert page.count('<p class="claim">') + page.count('<div class="code">') == 31
    assert (run / "explorer.html").is_file()
    assert {*re.findall(r'href="(\w+\.html)', page)} == {"explorer.html"}


def test_an_unknown_image_is_an_error_that_names_one(error_line, tiny_voc, tmp_path) -> None:
    run, model = tmp_path / "run", tmp_path / "model.safetensors"
    checkpoint.write_safetensors(model, small(num_classes=3), {"classes": CLASSES})
    arguments = ["explain=network", f"checkpoint={model}", "image=nothing"]
    assert "v0" in error_line("explain", *arguments, *tiny_voc.overrides(), f"hydra.run.dir={run}")


@pytest.mark.slow
def test_without_a_checkpoint_fcn8s_and_fcn32s_are_trained_and_shown(command, tmp_path) -> None:
    run = tmp_path / "run"
    data = f"data.root={tmp_path}"
    command("explain", "explain=network", "steps=2", data, f"hydra.run.dir={run}")
    page = (run / "explain.html").read_text(encoding="utf-8")
    assert 'alt="FCN-32s mean IoU' in page
    assert 'alt="FCN-8s mean IoU' in page
    assert checkpoint.load(run / "train").arguments["upsampling"] == "learned"


NASTY = ['back"ground', "it's a \\ and \\n", '# "x"', "$\\foo$", "__import__('os')", "<b>&*a*`b`"]


def test_no_text_of_a_checkpoint_runs(error_line, tiny_voc, tmp_path) -> None:
    """A class name that ends the listing's string and begins a statement."""
    stopped = tmp_path / "ran"
    name = f"""background"\n        __import__("pathlib").Path({str(stopped)!r}).touch()  # "back"""
    model = small(num_classes=3, backbone="mini", upsampling="learned")
    path = tmp_path / "model.safetensors"
    checkpoint.write_safetensors(path, model, {"classes": [name, "cat", "dog"]})
    arguments = ["explain=learning", f"checkpoint={path}", *tiny_voc.overrides()]
    line = error_line("explain", *arguments, f"hydra.run.dir={tmp_path}/run")
    assert "control characters" in line
    about = subject(random_model(upsampling="learned", num_classes=3))
    named = net.Subject(about.model, DatasetInfo([name, "b", "c"]), about.image, about.target)
    for key in ABOUT_NETWORK:  # not from a file, so not refused
        explain(key, named)
    assert not stopped.exists()


@pytest.mark.parametrize("key", list(ABOUT_NETWORK))
def test_class_names_may_hold_quotes_and_backslashes(key: str, tmp_path) -> None:
    about = subject(random_model(upsampling="learned", num_classes=len(NASTY)))
    named = net.Subject(about.model, DatasetInfo(NASTY), about.image, about.target)
    page = write([explain(key, named)], tmp_path).read_text(encoding="utf-8")
    assert "<b>&*a" not in page
    if key == "learning":
        assert html.escape(NASTY[0], quote=True).replace("&quot;", "&#34;") in page


def test_a_set_and_networks_with_their_classes_in_other_orders_show_the_same(
    command, tiny_voc, tmp_path
) -> None:
    """The mean IoU in the pictures' titles; the second network is the first, renumbered."""
    model = random_model(stride=32, num_classes=3, backbone="mini")
    checkpoint.write_safetensors(tmp_path / "a.safetensors", model, {"classes": CLASSES})
    orders = [CLASSES[2], CLASSES[0], CLASSES[1]]
    turned = checkpoint.read(tmp_path / "a.safetensors").model(orders)
    checkpoint.write_safetensors(tmp_path / "b.safetensors", turned, {"classes": orders})
    run = tmp_path / "run"
    pair = [f"checkpoint={tmp_path}/b.safetensors", f"fcn32s={tmp_path}/a.safetensors"]
    settings = ["explain=network", "image=v0", f"hydra.run.dir={run}"]
    command("explain", *pair, *settings, *tiny_voc.overrides())
    page = (run / "explain.html").read_text(encoding="utf-8")
    # Each network is a panel, named by its mean IoU; equal names are one panel.
    assert len(re.findall(r'alt="FCN-32s mean IoU [\d.]+ %', page)) == 1


@pytest.mark.parametrize("takes", [{"value_range": [0, 9]}, {"bands": [2, 1, 0]}])
def test_networks_that_take_other_pixels_are_not_shown_one_image(
    tiny_voc: TinyVOC, command: Any, error_line: Any, tmp_path: Path, takes: dict[str, Any]
) -> None:
    model, (key,) = random_model(stride=32, num_classes=3, backbone="mini"), takes
    for name, more in (("a", {}), ("b", takes)):
        checkpoint.write_safetensors(
            tmp_path / f"{name}.safetensors", model, {"classes": CLASSES} | more
        )
    pair = [f"checkpoint={tmp_path}/a.safetensors", f"fcn32s={tmp_path}/b.safetensors"]
    settings = [*pair, "explain=network", "image=v0", *tiny_voc.overrides()]
    message = error_line("explain", *settings, f"hydra.run.dir={tmp_path}/one")
    assert f"or set data.{key} for both" in message
    wish = f"data.{key}={takes[key]}".replace(" ", "")
    command("explain", *settings, wish, f"hydra.run.dir={tmp_path}/two")
