"""The authors' networks, run by OpenCV and by our import of them; and what an import rejects."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fcn import checkpoint
from fcn.models.caffe import CaffeError, import_fcn, import_vgg, read_caffemodel
from fcn.models.fcn import FCN
from fcn.models.surgery import transplant
from tests.caffe_files import (
    Layers,
    as_read,
    assert_same,
    authors_network,
    caffemodel,
    floats,
    message,
    picture,
    run_opencv,
    run_ours,
    save,
    v1_caffemodel,
    vgg16,
)

MODELS = ["fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce"]
SIZES = [(1, 1), (33, 47), (64, 64), (97, 131)]
LARGE = [(200, 150), (375, 500)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("bilinear", "upsampling"), [(True, "fixed"), (False, "learned")])
def test_scores_are_those_of_another_engine(
    tmp_path: Path, model: str, bilinear: bool, upsampling: str
) -> None:
    network = authors_network(model, bilinear)
    path = save(tmp_path, caffemodel(network.layers))
    ours, _ = import_fcn(read_caffemodel(path), model)
    assert ours.arguments["upsampling"] == upsampling
    assert ours.arguments["padding"] == 100
    assert_same(network, path, ours, SIZES + LARGE * (model == "fcn8s" and bilinear))


@pytest.mark.slow
def test_full_width_scores_are_those_of_another_engine(tmp_path: Path) -> None:
    network = authors_network("fcn8s", width=64, head=4096)
    path = save(tmp_path, caffemodel(network.layers))
    ours, _ = import_fcn(read_caffemodel(path), "fcn8s")
    assert_same(network, path, ours, [(97, 131), (375, 500)])


def test_other_numbers_of_classes(tmp_path: Path) -> None:
    network = authors_network("fcn8s", classes=60)
    path = save(tmp_path, caffemodel(network.layers))
    assert_same(network, path, import_fcn(read_caffemodel(path), "fcn8s")[0], SIZES[1:3])


def test_the_mean_can_be_another_data_sets() -> None:
    blobs = as_read(authors_network("fcn32s", width=1, head=2, classes=40).layers)
    ours, _ = import_fcn(blobs, "fcn32s", mean_bgr=(116.190, 97.203, 92.318))
    torch.testing.assert_close(ours.mean.flatten() * 255, torch.tensor([92.318, 97.203, 116.190]))
    torch.testing.assert_close(ours.std.flatten() * 255, torch.ones(3))


@pytest.mark.parametrize("bilinear", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_every_blob_and_every_tensor_is_reported(model: str, bilinear: bool) -> None:
    layers = authors_network(model, bilinear, width=1, head=2, classes=3).layers
    ours, report = import_fcn(as_read(layers), model)
    blobs = sum(len(blobs) for _, blobs in layers.values())
    assert len(report.tensors) == blobs + 2
    assert {entry.name for entry in report.tensors} >= set(ours.state_dict())
    assert report.with_status("set") == ["mean", "std"]
    assert report.with_status("folded") == ["backbone.conv1_1.weight"]
    recognised = [n for n in layers if n.startswith("scale_")]
    recognised += [f"{n}.weight" for n in layers if n.startswith("up") and bilinear]
    assert sorted(report.with_status("recognised")) == sorted(recognised)
    assert len(report.with_status("copied")) == blobs - 1 - len(recognised)
    assert not any(tensor.is_meta for tensor in ours.state_dict().values())


def test_the_at_once_factors_are_those_of_the_file_and_one_for_each_skip() -> None:
    layers = authors_network("fcn8s_atonce", width=2, head=6, classes=5).layers
    model, _ = import_fcn(as_read(layers), "fcn8s_atonce")
    assert model.arguments["skip_scales"] == {"pool4": 0.01, "pool3": 0.0001}
    layers["scale_pool4"] = ("Scale", [np.linspace(0.01, 0.02, 16)])
    with pytest.raises(CaffeError, match="scale_pool4"):
        import_fcn(as_read(layers), "fcn8s_atonce")


Damage = Callable[[Layers], object]


def first(name: str, index: int, count: int) -> Damage:
    """Keep only the first rows of a blob."""

    def shorten(layers: Layers) -> None:
        layers[name][1][index] = layers[name][1][index][:count]

    return shorten


MISFITS: list[tuple[Damage, str]] = [
    (lambda layers: layers.pop("conv4_2"), "missing: conv4_2; unknown: none"),
    (lambda layers: layers.update(score_fr_geo=layers["score_fr"]), "unknown: score_fr_geo"),
    (lambda layers: layers["fc7"][1].pop(), "layer fc7: .*1 blobs"),
    (first("conv2_2", 1, 3), r"layer conv2_2: .*bias is \(3,\), but should be \(4,\)"),
    (first("upscore8", 0, 1), r"layer upscore8: .*weight is \(1, 5, 16, 16\)"),
]


@pytest.mark.parametrize(("damage", "reason"), MISFITS)
def test_a_layer_that_does_not_fit_is_named(damage: Damage, reason: str) -> None:
    layers = authors_network("fcn8s", width=2, head=6, classes=5).layers
    damage(layers)
    with pytest.raises(CaffeError, match=rf"^a\.caffemodel: .*{reason}"):
        import_fcn(as_read(layers), "fcn8s", name="a.caffemodel")


def test_another_of_the_authors_networks_is_recognised() -> None:
    blobs = as_read(authors_network("fcn8s", width=2, head=6, classes=5).layers)
    for model in ("fcn16s", "fcn8s_atonce"):
        with pytest.raises(CaffeError, match=r"model=fcn8s$"):
            import_fcn(blobs, model)


@pytest.mark.parametrize("write", [caffemodel, v1_caffemodel])
def test_vgg16_starts_an_fcn_with_the_features_of_another_engine(
    tmp_path: Path, write: Callable[[Layers], bytes]
) -> None:
    network = vgg16()
    path = save(tmp_path, write(network.layers))
    weights, report = import_vgg(read_caffemodel(path))
    assert report.with_status("left over") == ["fc8.weight", "fc8.bias"]
    assert {"head.fc6.weight", "head.fc7.weight"} <= set(report.with_status("reshaped"))
    model = FCN(stride=32, num_classes=2, width=2, head_width=6).eval()
    report = transplant(model, weights)
    assert report.with_status("initialised") == ["score_fr.weight", "score_fr.bias"]
    rgb = picture(224, 224)
    (theirs,) = run_opencv(network.prototxt, path, [rgb], "relu7")
    with torch.inference_mode():
        pool5 = model.backbone(model.normalise(torch.from_numpy(rgb).permute(2, 0, 1)[None]))[-1]
        ours = model.head(pool5)[0, :, 3, 3].numpy()  # where fc6 sees all of pool5
    np.testing.assert_allclose(ours, theirs.ravel(), atol=1e-5 * np.abs(theirs).max())


SMALL: Layers = {
    "one": ("Convolution", [np.random.default_rng(0).normal(size=(2, 3, 3, 3)), np.arange(2.0)]),
    "two": ("Scale", [np.array(0.5)]),
}


def test_a_file_reads_as_it_was_written(tmp_path: Path) -> None:
    read = read_caffemodel(save(tmp_path, caffemodel(SMALL)))
    assert list(read) == list(SMALL)
    for name, blobs in as_read(SMALL).items():
        torch.testing.assert_close(read[name], blobs, atol=0, rtol=0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'name: "FCN"\nlayer { name: "data" }\n',
        caffemodel({"empty": ("ReLU", [])}),
        caffemodel(SMALL)[:-3],
        message(100, message(1, "one") + message(7, message(5, floats(np.ones(3))))),
    ],
)
def test_what_is_not_a_caffemodel_is_an_error_with_its_path(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CaffeError, match=r"net\.caffemodel"):
        read_caffemodel(save(tmp_path, content))
    with pytest.raises(CaffeError, match=r"none\.caffemodel"):
        read_caffemodel(tmp_path / "none.caffemodel")


def test_the_command_writes_a_checkpoint_with_the_same_scores(
    tmp_path: Path, command: Callable
) -> None:
    layers = authors_network("fcn8s_atonce", bilinear=False, width=2, head=6).layers
    path, output = save(tmp_path, caffemodel(layers)), tmp_path / "new" / "fcn.safetensors"
    command("import_caffe", f"caffemodel={path}", "network=fcn8s_atonce", f"output={output}")
    loaded = checkpoint.read(output)
    assert loaded.classes[15] == "person"
    expected, _ = import_fcn(read_caffemodel(path), "fcn8s_atonce")
    rgb = picture(33, 47)
    np.testing.assert_array_equal(run_ours(loaded.model(), rgb), run_ours(expected, rgb))


def test_the_command_imports_vgg16_and_overwrites_only_if_asked(
    tmp_path: Path, command: Callable, error_line: Callable
) -> None:
    path, output = save(tmp_path, v1_caffemodel(vgg16().layers)), tmp_path / "vgg16.safetensors"
    settings = [f"caffemodel={path}", "model=vgg16", f"output={output}"]
    command("import_caffe", *settings)
    assert load_file(output)["head.fc6.weight"].shape == (6, 16, 7, 7)
    assert f"{output} exists" in error_line("import_caffe", *settings)
    command("import_caffe", *settings, "overwrite=true")


@pytest.mark.parametrize("setting", ["classes=[a,b]", "model.stride=16"])
def test_what_does_not_fit_the_file_or_is_ignored_is_refused(
    tmp_path: Path, error_line: Callable, setting: str
) -> None:
    path = save(tmp_path, caffemodel(authors_network("fcn8s", width=1, head=2).layers))
    settings = [f"caffemodel={path}", f"output={tmp_path}/a.safetensors", setting]
    assert setting.partition("=")[0] in error_line("import_caffe", *settings)
