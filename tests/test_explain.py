"""The story: claims that stop it, the deconvnet against autograd, and the script end to end."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from fcn.config import REPOSITORY
from fcn.explain import arithmetic, checkerboards, interpolation, network
from fcn.explain.deconvnet import strongest
from fcn.explain.story import ClaimError, Section, write
from fcn.models.vgg import VGG
from tests.test_fcn import small, with_random_scores

CLASSES = ["background", "cat", "dog", "cow", "hen"]


def test_a_false_claim_stops_the_story() -> None:
    section = Section(1, "topic", "Title")
    section.claim("holds", 1e-12)
    with pytest.raises(ClaimError, match=r"topic: does not hold: differs by 0\.1"):
        section.claim("does not hold", 0.1)
    with pytest.raises(ClaimError):
        section.claim("is not a number", float("nan"))
    assert section.claims == 1


def test_what_comes_from_elsewhere_is_escaped_and_pictures_are_numbered(tmp_path: Path) -> None:
    section = Section(3, "topic", "a < b")
    section.table(("<i>", "n"), [("<script>", 1)])
    section.picture("dot", Image.new("RGB", (4, 4)), 'a "dot" & <b>')
    page = write([section], tmp_path).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a &lt; b" in page
    assert (tmp_path / "03_1_dot.png").is_file()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "tell",
    [
        arithmetic.matrix, arithmetic.arithmetic, arithmetic.operators, interpolation.bilinear,
        checkerboards.repeat, checkerboards.checkerboards,
    ],
)  # fmt: skip
def test_every_plain_topic_has_claims_and_pictures(tell) -> None:
    section = tell()
    assert section.claims >= 2
    assert all(min(image.size) > 50 for image in section.pictures.values())


@pytest.mark.parametrize("backbone", ["mini", "vgg16"])
def test_the_deconvnet_is_a_backward_pass_whose_relu_passes_what_is_positive(backbone: str) -> None:
    """Zeiler & Fergus's way back, had from autograd with another rule for ReLU."""
    torch.manual_seed(1)
    layers = VGG(backbone, padding=1, width=8).until("pool3").eval()
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, -1, 1)
            nn.init.normal_(layer.running_mean)
    image = torch.randn(1, 3, 45, 61, requires_grad=True)  # odd sides: the pools round up

    result = image
    for layer in layers:
        result = Through.apply(result) if isinstance(layer, nn.ReLU) else layer(result)
    responses = strongest(layers, image.detach(), 3)
    assert len({r.channel for r in responses}) == 3
    for response in responses:
        values = result[0, response.channel].flatten()
        assert response.value == pytest.approx(float(values.max().detach()), rel=1e-5)
        (expected,) = torch.autograd.grad(
            values[values.argmax()] * values.max().detach(), image, retain_graph=True
        )
        torch.testing.assert_close(response.pattern, expected[0], atol=1e-5, rtol=1e-4)
        assert response.pattern.abs().max() > 0


class Through(torch.autograd.Function):
    """ReLU forward; backward, a ReLU of the gradient whatever the input's sign."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.relu()


@pytest.mark.parametrize(
    ("stride", "upsampling"),
    [(8, "learned"), (16, "nonlinear"), (32, "fixed"), (8, "nearest_conv")],
)
def test_topics_of_a_net_hold_for_every_kind(stride: int, upsampling: str) -> None:
    model = with_random_scores(small(stride=stride, upsampling=upsampling)).eval()
    image = torch.randint(0, 256, (3, 75, 90), dtype=torch.uint8)
    target = torch.zeros(75, 90, dtype=torch.uint8)
    target[20:50, 30:70], target[0] = 2, 255
    told = network.network(model, image, target, CLASSES)
    assert told.claims == (2 if model.skips and upsampling != "nonlinear" else 1)
    learned = network.learning(model, image, target, CLASSES)
    assert bool(learned.pictures) == (upsampling != "fixed")
    assert all(parameter.grad is None for parameter in model.parameters())


def explain(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "explain.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_tells_one_topic(tmp_path: Path) -> None:
    done = explain("explain=repeat", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "2 claims hold" in done.stdout
    names = {path.name for path in tmp_path.iterdir()}
    assert {"explain.html", "05_1_repeat.png"} <= names


def test_a_part_is_what_one_pool_brings() -> None:
    """A net that scores from one pool alone is that pool's part."""
    model = with_random_scores(small(stride=8)).eval()
    for name in ("score_fr", "score_pool4"):
        for parameter in model.get_submodule(name).parameters():
            nn.init.zeros_(parameter)
    batch = torch.rand(1, 3, 64, 64)
    parts = network._parts(model, batch)
    torch.testing.assert_close(parts["pool3"], model(batch)[0].detach())
    assert not parts["pool5"].any()
    assert not parts["pool4"].any()
