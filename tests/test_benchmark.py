"""The benchmark: what it compares is what it says, its numbers come out right, and it runs."""

import copy
import io
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from fcn.benchmark import ceiling, layers, measure, nets, tables
from fcn.benchmark.contestants import contestants, default, plain, reference
from fcn.benchmark.measure import Pace, Samples, flops, take_turns
from fcn.benchmark.memory import peak_memory
from fcn.benchmark.run import benchmark
from fcn.benchmark.runner import Labels, Steps, autocast, batch, floats
from fcn.checks.scripts import PARTS
from fcn.config import (
    REPOSITORY,
    BackboneConfig,
    BenchmarkConfig,
    ModelConfig,
    RecipeConfig,
    UpsamplingConfig,
)
from fcn.models.fcn import FCN
from tests.conftest import TinyVOC

CPU = torch.device("cpu")


def settings(**changes: object) -> BenchmarkConfig:
    cfg = BenchmarkConfig(
        model=ModelConfig(),
        backbone=BackboneConfig(name="mini", width=4, head_width=8),
        recipe=RecipeConfig(name="x", lr=1e-2, max_steps=9, batch_size=2, crop=64),
        parts=list(PARTS),
        size=[64, 70],
        num_classes=3,
        images=2,
    )
    cfg.data.name = "x"
    return replace(cfg, **changes)  # type: ignore[arg-type]


def test_operations_are_those_counted_by_hand() -> None:
    layer = nn.Conv2d(3, 8, 5, stride=2, padding=2)
    image = torch.rand(2, 3, 20, 31, requires_grad=True)
    forward = 2 * (2 * 8 * 10 * 16) * (3 * 5 * 5)  # a multiplication and an addition a tap
    assert flops(lambda: layer(image)) == forward
    assert flops(lambda: layer(image).sum().backward()) == 3 * forward  # of weights, and of inputs
    assert flops(lambda: layer(image.detach()).sum().backward()) == 2 * forward
    left, right = torch.rand(4, 5), torch.rand(5, 6)
    assert flops(lambda: left @ right) == 2 * 4 * 5 * 6


def test_padding_by_100_costs_what_it_adds_to_the_image() -> None:
    own = default(settings(), CPU)
    for contestant, height, width in ((own, 64, 96), (reference(own), 64 + 198, 96 + 198)):
        layer = contestant.net().get_submodule("backbone.conv1_1")
        image = torch.rand(1, 3, 64, 96)
        assert flops(partial(layer, image)) == 2 * height * width * 4 * 27


def test_samples_have_their_median_and_quartiles() -> None:
    assert Samples.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Samples(3.0, (2.0, 4.0), 5)
    with pytest.raises(ValueError, match="at least one sample"):
        Samples.of([])


@pytest.mark.parametrize(("rounds", "seconds", "made"), [(5, 60.0, 5), (1, 60.0, 3), (99, 1e-9, 3)])
def test_tasks_take_turns(
    monkeypatch: pytest.MonkeyPatch, rounds: int, seconds: float, made: int
) -> None:
    """Each comes once a round, whatever the order; what memory does not hold is left out."""
    monkeypatch.setattr(measure, "LEAST_SECONDS", 0.0)
    called, shares = [], []

    def fail() -> None:
        raise torch.OutOfMemoryError

    tasks = {name: lambda name=name: called.append(name) for name in "abc"}  # type: ignore[misc]
    taken = take_turns({**tasks, "d": fail}, CPU, Pace(rounds, seconds), shares.append)
    assert called[:6] == list("aabbcc")  # to warm up
    turns = ["".join(called[i : i + 3]) for i in range(6, len(called), 3)]
    assert [sorted(turn) for turn in turns] == [list("abc")] * made
    assert {name: samples.n for name, samples in taken.items()} == dict.fromkeys("abc", made)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_quick_tasks_are_repeated_within_a_sample() -> None:
    (samples,) = take_turns({"a": lambda: None}, CPU, Pace(3, 60)).values()
    assert samples.calls > 1000
    assert samples.median < 1e-5


def test_speeds_and_ratios_follow_from_the_samples() -> None:
    fast, slow = Samples(0.5, (0.4, 0.6), 3, flops=10), Samples(2.0, (2.0, 2.0), 3, flops=30)
    rows = [
        {mode: nets.speed(samples, 4, fastest=40.0) for mode in nets.MODES}
        for samples in (fast, slow)
    ]
    own, other = nets.compared(rows)
    assert own["inference"]["images_per_second"] == 8
    assert other["training"]["images_per_second"] == 2
    assert own["inference"]["flops_per_second"] == 20
    assert own["inference"]["share_of_ceiling"] == 0.5
    assert other["training"]["share_of_ceiling"] == 0.375
    assert own["training"]["slower"] == 1
    assert other["inference"]["slower"] == 4


def test_numbers_keep_three_digits() -> None:
    shown = [tables.digits(value) for value in (0.123, 9.87, 12.34, 123.4, 5678.0)]
    assert shown == ["0.12", "9.87", "12.3", "123", "5678"]


def test_the_known_ports_net_is_ours_on_an_image_padded_by_99() -> None:
    """With the same weights, in float32: 99 pixels of zeros, after normalisation, lie around it.

    Away from the border, where its scores end for want of padding in fc6, the two are one.
    """
    own = default(settings(precision="32-true"), CPU)
    theirs = reference(own).net().eval()
    ours = own.net().eval()
    assert isinstance(ours, FCN)
    assert isinstance(theirs, FCN)
    missing, surplus = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(missing) == {"upscore2.weight", "upscore_pool4.weight", "upscore8.weight"}
    assert not surplus
    image = torch.rand(1, 3, 200, 231)
    padded = ours.mean.expand(1, 3, 398, 429).clone()
    padded[..., 99:-99, 99:-99] = image
    with torch.inference_mode():
        here, there = ours(padded)[..., 99:-99, 99:-99], theirs(image)
    apart = (here - there).abs() / there.abs().max()
    assert apart[..., 64:-64, 64:-64].max() < 1e-5
    assert apart.max() > 1e-2


def test_contestants_are_what_their_names_say() -> None:
    ours, compiled, port, shipped, alike = contestants(
        settings(compile=True, precision="bf16-mixed"), CPU
    )
    assert [c.precision for c in (ours, compiled, port, shipped, alike)] == [
        "bf16-mixed", "bf16-mixed", "32-true", "32-true", "bf16-mixed",
    ]  # fmt: skip
    assert [c.compiled for c in (ours, compiled)] == [False, True]
    net = port.net()
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert frozen == ["upscore2.weight", "upscore_pool4.weight", "upscore8.weight"]
    assert net.get_parameter("upscore8.weight").shape == (3, 3, 16, 16)
    assert all(p.any() for n, p in ours.net().named_parameters() if n.startswith("score_"))
    assert [(c.alike, c.ours, c.layout) for c in (ours, port, shipped, alike)] == [
        (True, True, "channels_last"),
        (False, False, "contiguous"),
        (False, False, "contiguous"),
        (True, False, "channels_last"),
    ]


def test_plain_layers_are_torchs_own_and_score_alike() -> None:
    own = default(settings(upsampling=UpsamplingConfig("learned")), CPU).net().eval()
    theirs = copy.deepcopy(own)
    plain(theirs)
    image = torch.rand(1, 3, 70, 90)
    with torch.inference_mode():
        torch.testing.assert_close(own(image), theirs(image))
    ran: dict[str, list[str]] = {}
    for name, net in (("own", own), ("theirs", theirs)):
        with profile(activities=[ProfilerActivity.CPU]) as profiler, torch.inference_mode():
            net(image)
        ran[name] = [event.key for event in profiler.key_averages()]
    assert "aten::im2col" in ran["own"]
    assert "aten::im2col" not in ran["theirs"]


@pytest.mark.parametrize("index", range(4))
def test_every_contestant_labels_and_learns(index: int) -> None:
    contestant = contestants(settings(precision="bf16-mixed"), CPU)[index]
    image, target = batch((2, 64, 70), 3, CPU)
    labels = Labels(contestant, settings(), CPU)
    found = labels(image)
    with torch.inference_mode(), autocast(contestant, CPU):
        score = labels.net(floats(contestant, image[1:]))
    assert found.shape == (2, 64, 70)
    assert torch.equal(found[1:], score.max(1).indices)
    step = Steps(contestant, settings(), CPU)
    weights = [p for p in step.net.parameters() if p.requires_grad]
    before = [p.clone() for p in weights]
    step(image, target)
    assert not all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    assert all(p.grad is None for p in weights)


@pytest.mark.parametrize("factor", layers.FACTORS)
def test_layers_do_one_job(factor: int) -> None:
    """All are the dense deconvolution; F.interpolate goes on at the border where it fades."""
    size = 375, 500
    every = layers.layers_of(factor, 4, CPU)
    score = layers.scores(size, factor, 4, CPU)
    apart = layers.differences(every, score, size)
    for name in ("fixed", "learned", "learned_channelwise"):
        assert apart[name][0] < 1e-5
    assert apart[layers.DENSE][0] == 0
    everywhere, inside = apart["interpolate"]
    assert everywhere > 0.5
    assert inside is not None
    assert inside < 1e-5
    tasks = layers.tasks(every["fixed"], score, size)
    output = tasks["forward"]()
    assert isinstance(output, torch.Tensor)
    assert output.shape == (1, 4, *size)
    middle = F.interpolate(score, scale_factor=factor, mode="bilinear")[..., :375, :500]
    off = 2 * factor
    torch.testing.assert_close(output[..., off:-off, off:-off], middle[..., off:-off, off:-off])


def test_memory_is_the_contestants_own() -> None:
    """Of a fresh process: what this one has taken before does not hide it."""
    taken = torch.ones(2**26)  # 256 MiB
    cfg = settings(backbone=BackboneConfig(name="mini", width=16, head_width=2048))
    contestant = default(cfg, CPU)
    weights = sum(4 * p.numel() for p in contestant.net().parameters())
    peak = peak_memory(contestant, cfg, CPU)
    assert taken.all()
    assert weights <= peak["inference"] < 4 * weights
    # Weights, gradients, and what momentum keeps.
    assert 3 * weights <= peak["training"] < 8 * weights


def test_a_quick_run_leaves_tables_numbers_and_a_picture(
    tiny_voc: TinyVOC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ceiling.SIDES, "cpu", (64, 128))
    cfg = settings(
        data=tiny_voc.config(), quick=True, seconds=0.01, rounds=3, sides=[64, 80], batches=[1, 2]
    )
    console = Console(width=100, record=True, file=io.StringIO())
    benchmark(cfg, tmp_path, console)
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert set(report) == {"command", "commit", "settings", "machine", "parts", "seconds"}
    assert {"cpu", "cores", "threads", "isa", "gpu", "torch"} <= set(report["machine"])
    assert list(report["parts"]) == list(PARTS)
    parts = report["parts"]
    for row in parts["nets"]["rows"]:
        assert {"name", "about", "ours", "precision", "layout"} <= set(row)
        for mode in nets.MODES:
            seconds = row[mode]["seconds"]
            low, high = seconds["quartiles"]
            assert 0 < low <= seconds["median"] <= high
            assert seconds["n"] == 3
            assert seconds["flops"] > 0
    ours, port = (row["training"]["seconds"] for row in parts["nets"]["rows"][:2])
    assert port["flops"] > ours["flops"]
    assert [(row["side"], row["name"]) for row in parts["sizes"]][::2] == [
        (64, "this project"), (80, "this project"),
    ]  # fmt: skip
    assert [row["batch"] for row in parts["batches"]] == [1, 2]
    assert len(parts["upsampling"]) == 5 * len(layers.FACTORS)
    assert parts["loader"]["feeds"] == pytest.approx(
        parts["loader"]["images_per_second"] / parts["loader"]["step"]["images_per_second"]
    )
    assert parts["evaluation"]["images"] == 2
    for part, pair in (("evaluation", ("evaluate", "forward")), ("loop", ("trainer", "bare"))):
        one, other = (parts[part][key]["seconds"]["median"] for key in pair)
        assert parts[part]["slower"] == pytest.approx(one / other)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    with Image.open(tmp_path / "benchmark.png") as picture:
        assert picture.width > 1000


def test_quick_is_an_option_too(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / "benchmark.py"), "--quick"]
    command += ["parts=[upsampling]", "size=[64,64]", "seconds=0.01", "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == f"benchmark.json in {tmp_path / 'run'}"
    assert json.loads((tmp_path / "run" / "benchmark.json").read_text())["settings"]["quick"]
