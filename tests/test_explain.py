"""The explanation: claims that stop it, the views of a network, and the command end to end."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fcn import checkpoint
from fcn.config import Facts
from fcn.explain import net
from fcn.explain.section import TOPICS, ClaimError, Section
from fcn.explain.story import explain, write
from fcn.models.fcn import FCN
from fcn.models.vgg import VGG
from tests.conftest import random_model, small

CLASSES = ["background", "cat", "dog"]


def subject(model: FCN) -> net.Subject:
    target = torch.zeros(75, 90, dtype=torch.uint8)
    target[20:50, 30:70], target[0] = 2, 255
    image = torch.randint(0, 256, (3, 75, 90), dtype=torch.uint8)
    return net.Subject(model, Facts(CLASSES), image, target)


def test_a_false_claim_raises_and_is_not_counted() -> None:
    section = Section("matrix")
    section.claim("holds", np.ones((2, 3)), torch.ones(1, 1, 2, 3) + 1e-12)
    with pytest.raises(ClaimError, match="matrix"):
        section.claim("does not hold", np.ones((2, 3)), torch.ones(1, 1, 2, 3) + 0.1)
    with pytest.raises(ClaimError):
        section.claim("is not a number", float("nan"))
    assert section.claims == 1


def test_text_is_escaped_and_pictures_are_numbered(tmp_path: Path) -> None:
    section = Section("operators")
    section.text("a *b* of `c` < d")
    section.table(("<i>", "n"), [("<script>", 1)])
    section.picture('a "dot" & <b>', Image.new("RGB", (4, 4)))
    page = write([section], tmp_path).read_text(encoding="utf-8")
    assert "<p>a <i>b</i> of <code>c</code> &lt; d</p>" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["03_1_operators.png", "explain.html"]


@pytest.mark.parametrize("key", list(TOPICS)[:6])
def test_every_topic_without_a_network_checks_claims_and_draws_pictures(key: str) -> None:
    section = explain(key)
    assert section.claims >= 2
    assert section.pictures
    assert all(min(image.size) > 50 for image in section.pictures.values())


@pytest.mark.parametrize(
    ("stride", "upsampling", "claims", "layers"),
    [
        (8, "learned", 2, 3),
        (16, "nonlinear", 1, 5),
        (32, "fixed", 1, 0),
        (8, "learned_channelwise", 2, 3),
        (8, "nearest_conv", 2, 3),
    ],
)
def test_topics_about_a_network_hold_for_every_kind(stride, upsampling, claims, layers) -> None:
    about = subject(random_model(stride=stride, upsampling=upsampling, num_classes=3))
    assert explain("network", about).claims == claims
    pictures = explain("learning", about).pictures
    assert len(pictures) == (layers + 2 if layers else 0)  # kernels of each, lengths, ripple


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


def test_reading_out_at_its_own_stride_is_the_network_itself() -> None:
    model = random_model(stride=16)
    batch = torch.rand(1, 3, 70, 81)
    assert torch.equal(net.read_out(model, 16, batch), model(batch)[0].argmax(0))
    assert net.read_out(model, 32, batch).shape == (70, 81)


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
    assert last == f"25 claims checked: {run / 'explain.html'}"
    page = (run / "explain.html").read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="(\w+)">', page) == list(TOPICS)
    assert page.count('<p class="claim">') == 25
    assert page.count("<figure") == len(list(run.glob("*.png")))


def test_an_unknown_image_is_an_error_that_names_one(error_line, tiny_voc, tmp_path) -> None:
    run, model = tmp_path / "run", tmp_path / "model.safetensors"
    checkpoint.write_safetensors(model, small(num_classes=3), {"classes": CLASSES})
    arguments = ["explain=network", f"checkpoint={model}", "image=nothing"]
    assert "v0" in error_line("explain", *arguments, *tiny_voc.overrides(), f"hydra.run.dir={run}")


@pytest.mark.slow
def test_without_a_checkpoint_a_network_is_trained(command, tmp_path) -> None:
    run = tmp_path / "run"
    data = f"data.root={tmp_path}"
    command("explain", "explain=learning", "steps=2", data, f"hydra.run.dir={run}")
    assert (run / "explain.html").is_file()
    assert checkpoint.load(run / "train").arguments["upsampling"] == "learned"
