"""Devices and precisions: what is named is computed so, or refused in one line."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fcn
from fcn import checkpoint
from fcn.device import PRECISIONS, SHORT, InferenceModel, computes_bf16, resolve_precision
from fcn.errors import ConfigError
from fcn.models.fast_forms import image_layout, weight_layout
from fcn.models.upsampling import LearnedUpsampling
from tests.conftest import CPU, Patch, random_model, write_random_model

HALF = ("16-mixed", "16-true")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [*PRECISIONS, *SHORT, 16, 32, 64])
def test_a_named_precision_is_used_or_refused(name: str | int, training: bool) -> None:
    full = SHORT.get(str(name), str(name))
    assert resolve_precision(name, torch.device("cuda"), training=training).name == full
    for device, refused in ((CPU, HALF), (torch.device("mps"), ("64-true",))):
        if full in refused:
            with pytest.raises(ConfigError, match=rf"^trainer\.precision={name} .*use auto"):
                resolve_precision(name, device, training=training)
        else:
            assert resolve_precision(name, device, training=training).name == full


@pytest.mark.parametrize("name", ["foo", "", "bf16-mixd", "transformer-engine", 8, True, "float32"])
def test_an_unknown_precision_is_an_error_with_the_choices(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"^key=.*must be auto, 32-true, .*64-true$"):
        resolve_precision(name, CPU, key="key")


def test_auto_is_as_trained_where_the_device_computes_so() -> None:
    fast = "bf16-mixed" if computes_bf16(CPU) else "32-true"
    assert resolve_precision("auto", CPU, training=True).name == fast
    assert resolve_precision(None, CPU, training=True).name == fast
    for trained in (*PRECISIONS, *SHORT, None, "something"):
        full = SHORT.get(str(trained), trained)
        expected = full if full in ("64-true",) else "32-true"
        if full in ("bf16-mixed", "bf16-true") and computes_bf16(CPU):
            expected = full
        assert resolve_precision("auto", CPU, trained=trained).name == expected
    assert resolve_precision("auto", torch.device("cuda"), trained="16-mixed").name == "16-mixed"
    assert resolve_precision("auto", torch.device("mps"), trained="64-true").name == "32-true"


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
@pytest.mark.parametrize("name", [name for name in PRECISIONS if name not in HALF])
def test_inference_computes_at_the_precision_that_it_names(name: str, upsampling: str) -> None:
    """As Lightning does: "true" converts the whole network, "mixed" runs under autocast."""
    model = random_model(upsampling=upsampling)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    image = torch.randint(256, (2, 3, 40, 56), dtype=torch.uint8)
    types = set()
    prepared = InferenceModel(model, CPU, name)
    prepared.model.head.fc6.register_forward_hook(lambda _, __, out: types.add(out.dtype))
    score = prepared.score(image)
    precision = PRECISIONS[name]
    assert prepared.precision == name
    assert types == {precision.autocast or precision.weights}
    assert prepared.model.head.relu6(score).dtype == score.dtype
    own = random_model(upsampling=upsampling)
    own.load_state_dict(before)
    own = own.eval().to(precision.weights)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled="mixed" in name):
        expected = own(image)
    torch.testing.assert_close(score, expected, rtol=0, atol=0)
    with torch.inference_mode():  # floats come to the same
        reached = prepared.score(image.double() / 255)
        assert (reached - score).abs().max() <= 0.02 * score.abs().max()
    for key, value in model.state_dict().items():  # the caller's own stays as it was
        assert torch.equal(value, before[key])
        assert value.dtype == before[key].dtype


def test_gpus_but_apples_get_weights_channels_last() -> None:
    """pytorch#175189: batch norm's backward pass there."""
    assert weight_layout(torch.device("mps")) == torch.contiguous_format
    assert weight_layout(CPU) == torch.contiguous_format
    assert weight_layout(torch.device("cuda", 1)) == torch.channels_last

    class OnApple:
        device = torch.device("mps")

    layer = torch.nn.Conv2d(3, 4, 3)
    assert image_layout(layer, OnApple(), 16) == torch.contiguous_format  # type: ignore[arg-type]


def test_drift_is_computed_on_the_cpu_since_apples_gpus_have_no_float64(monkeypatch: Patch) -> None:
    moved, real_cpu, real_double = set(), Tensor.cpu, Tensor.double

    def cpu(tensor: Tensor) -> Tensor:
        result = real_cpu(tensor).clone()
        moved.add(id(result))
        return result

    def double(tensor: Tensor) -> Tensor:
        assert id(tensor) in moved
        return real_double(tensor)

    layer = LearnedUpsampling(2, 3)
    layer.weight.data *= 2
    monkeypatch.setattr(Tensor, "cpu", cpu)
    monkeypatch.setattr(Tensor, "double", double)
    assert layer.drift() == pytest.approx(1)


def test_loading_and_predicting_leave_every_random_state_alone(tmp_path: Path) -> None:
    def states() -> tuple[Any, ...]:
        numpys = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
        return random.getstate(), numpys, torch.get_rng_state().tolist()

    path = write_random_model(tmp_path / "m.safetensors")
    before = states()
    model = fcn.load(path)
    assert states() == before
    fcn.Predictor(path)(np.zeros((40, 50, 3), np.uint8))
    fcn.optimize(model, "cpu")
    assert states() == before


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_loaded_model_is_float32_and_can_be_trained(
    tmp_path: Path, suffix: str, dtype: torch.dtype
) -> None:
    model = random_model(upsampling="learned", backbone="vgg11_bn").to(dtype)
    about = {"model": model.arguments, "classes": list("abcde")}
    path = tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        state = {f"model.{k}": v.to(memory_format=torch.channels_last) if v.ndim == 4 else v
                 for k, v in model.state_dict().items()}  # fmt: skip
        torch.save({"state_dict": state, "hyper_parameters": {"about": about}}, path)
    else:
        checkpoint.write_safetensors(path, model, about)
    loaded = checkpoint.load(path)
    assert not loaded.training
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].to(tensor.dtype))
        assert tensor.is_contiguous()
        assert tensor.dtype in (torch.float32, torch.int64)
    path.write_bytes(bytes(path.stat().st_size))  # a file copied over it changes no loaded model
    assert torch.equal(loaded.mean, model.mean.float())
    loaded.train()(torch.rand(2, 3, 40, 40)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loaded.parameters())
