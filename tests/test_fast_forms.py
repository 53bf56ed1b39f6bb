"""Layouts of weights and forms of layers: equal scores and gradients; memory that is kept."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import fcn
from fcn.config import REPOSITORY
from fcn.models import fast_forms as speed
from fcn.models.fcn import FCN
from tests.conftest import random_model


def test_the_layout_of_images_changes_neither_scores_nor_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = FCN(backbone="vgg11", head_width=8, num_classes=3, dropout=0)
    for layer in (model.score_fr, model.score_pool4, model.score_pool3):
        nn.init.normal_(layer.weight, std=0.01)
    image = torch.randint(256, (2, 3, 40, 56), dtype=torch.uint8)
    layouts: list[bool] = []
    model.backbone.conv3_1.register_forward_pre_hook(
        lambda _, given: layouts.append(given[0].is_contiguous())
    )
    results = []
    for avx2 in (False, True):
        monkeypatch.setattr(speed, "AVX2", avx2)
        score = model(image)
        gradients = torch.autograd.grad(score.square().sum(), list(model.parameters()))
        results.append((score.detach(), *gradients))
    assert layouts == [False, True]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


def test_optimize_returns_the_network_itself_with_equal_scores_and_gradients() -> None:
    model = random_model().eval().to(memory_format=torch.channels_last)
    image = torch.randint(256, (1, 3, 40, 56), dtype=torch.uint8)
    before = model(image)
    assert fcn.optimize(model, "cpu") is model
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    after = model(image)
    torch.testing.assert_close(after, before)
    after.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is the C library of Linux")
def test_kept_memory_is_not_cleared_by_the_kernel_again() -> None:
    script = """
import resource, torch
from fcn.device import keep_memory
for prepare in (int, keep_memory):
    prepare()
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MB
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)  # of the last
"""
    printed = subprocess.check_output([sys.executable, "-c", script], cwd=REPOSITORY, text=True)
    plain, kept = map(int, printed.split())
    assert kept < 100 < plain
