"""The authors' nets, run by OpenCV and by our import of them; and what an import refuses."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

import fcn
from fcn.config import REPOSITORY, ImportCaffeConfig, ModelConfig, UserError
from fcn.inference import checkpoint
from fcn.models.caffe_nets import import_fcn, import_vgg
from fcn.models.caffemodel import CaffeError, read_caffemodel
from fcn.models.fcn import FCN
from fcn.models.surgery import Report
from fcn.training.initialise import initialise
from tests.caffe_files import (
    Layers,
    as_read,
    assert_same,
    authors_net,
    caffemodel,
    open_opencv,
    picture,
    run_opencv,
    run_ours,
    save,
    v1_caffemodel,
    vgg16,
)

NETS = ["fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce"]
SIZES = [(1, 1), (33, 47), (64, 64), (97, 131), (200, 150), (375, 500)]


@pytest.mark.parametrize("model", NETS)
@pytest.mark.parametrize(
    ("kernels", "upsampling", "sizes"),
    [
        ("bilinear", "fixed", SIZES),
        ("grouped", "fixed", SIZES[1:2]),
        ("perturbed", "learned", SIZES[:4]),
        ("grouped perturbed", "learned_channelwise", SIZES[1:3]),
    ],
)
def test_scores_are_those_of_another_engine(tmp_path, model, kernels, upsampling, sizes) -> None:
    net = authors_net(model, kernels)
    path = save(tmp_path, caffemodel(net.layers))
    ours, _ = import_fcn(read_caffemodel(path), model)
    assert ours.arguments["upsampling"] == upsampling
    assert ours.arguments["padding"] == 100
    assert_same(net, path, ours, sizes)


@pytest.mark.slow
def test_full_width_scores_are_those_of_another_engine(tmp_path) -> None:
    net = authors_net("fcn8s", width=64, head=4096)
    path = save(tmp_path, caffemodel(net.layers))
    ours, _ = import_fcn(read_caffemodel(path), "fcn8s")
    assert_same(net, path, ours, [(97, 131), (375, 500)])


@pytest.mark.parametrize("classes", [2, 40, 60])
def test_other_numbers_of_classes(tmp_path, classes) -> None:
    net = authors_net("fcn8s", classes=classes)
    path = save(tmp_path, caffemodel(net.layers))
    assert_same(net, path, import_fcn(read_caffemodel(path), "fcn8s")[0], SIZES[1:3])


OLD_NAMES = {
    "fcn8s": {
        "score_fr": "score-fr",
        "upscore2": "score2",
        "score_pool4": "score-pool4",
        "upscore_pool4": "score4",
        "score_pool3": "score-pool3",
        "upscore8": "upsample",
    },
    "fcn32s": {"score_fr": "score59", "upscore": "upsample"},
}


@pytest.mark.parametrize("model", OLD_NAMES)
def test_the_first_releases(tmp_path, model) -> None:
    """Old layer names, V1 layers with four sizes a blob, and biases of upsampling layers."""
    net = authors_net(model, "perturbed")
    if model == "fcn8s":
        head, tail = net.prototxt.split('name: "upscore2"')
        tail = tail.replace("bias_term: false", "bias_term: true", 1)
        net.prototxt = head + 'name: "upscore2"' + tail
        net.layers["upscore2"][1].append(np.linspace(-50, 50, 21))
    else:
        net.layers["upscore"][1].append(np.zeros(21))
    for new, old in OLD_NAMES[model].items():
        net.layers = {old if name == new else name: v for name, v in net.layers.items()}
        net.prototxt = net.prototxt.replace(f'"{new}"', f'"{old}"')
    path = save(tmp_path, v1_caffemodel(net.layers))
    ours, report = import_fcn(read_caffemodel(path), model)
    assert report.named("folded")[0] == "backbone.conv1_1.weight"
    assert report.named("folded")[1:] == ["upscore2.bias" if model == "fcn8s" else "upscore.bias"]
    assert_same(net, path, ours, SIZES[1:3])


def test_the_mean_can_be_another_data_sets() -> None:
    net = authors_net("fcn32s", classes=40)
    blobs = as_read(net.layers)
    ours, _ = import_fcn(blobs, "fcn32s", mean_bgr=(116.190, 97.203, 92.318))
    torch.testing.assert_close(ours.mean.flatten() * 255, torch.tensor([92.318, 97.203, 116.190]))
    torch.testing.assert_close(ours.std.flatten() * 255, torch.ones(3))


@pytest.fixture(scope="module")
def layers() -> Layers:
    return authors_net("fcn8s", width=2, head=6, classes=5).layers


def remove(name: str) -> Callable[[Layers], None]:
    return lambda layers: layers.pop(name) and None


def rename(old: str, new: str) -> Callable[[Layers], None]:
    return lambda layers: layers.update({new: layers.pop(old)})


def change(name: str, index: int, act: Callable[[np.ndarray], np.ndarray]) -> Callable:
    def change_blob(layers: Layers) -> None:
        layers[name][1][index] = act(layers[name][1][index])

    return change_blob


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.where(np.arange(array.size).reshape(array.shape) == 3, value, array)


def add(name: str, *shapes: tuple[int, ...]) -> Callable[[Layers], None]:
    return lambda layers: layers.update({name: ("Convolution", [np.ones(s) for s in shapes])})


REFUSALS: list[tuple[Callable[[Layers], None], str]] = [
    (remove("conv4_2"), "not the layers of fcn8s; missing: conv4_2; unknown: none"),
    (remove("upscore2"), "missing: upscore2"),
    (rename("score_pool3", "score_pool33"), "missing: score_pool3; unknown: score_pool33"),
    (add("conv6_1", (2, 2)), "unknown: conv6_1"),
    (add("scale_pool4", (1,)), "unknown: scale_pool4"),
    (add("score-fr", (5, 6, 1, 1), (5,)), "score-fr is score_fr by its old name; it has both"),
    (lambda layers: layers["fc7"][1].pop(), "layer fc7: 1 blobs, but it should have 2"),
    (lambda layers: layers["fc7"][1].append(np.ones(1)), "layer fc7: 3 blobs"),
    (
        change("conv3_1", 0, lambda b: b[:, :-1]),
        r"layer conv3_1: its weight is \(8, 3, 3, 3\), but",
    ),
    (change("conv3_1", 0, lambda b: b.swapaxes(0, 1)), "layer conv3_1: its weight"),
    (change("conv2_2", 1, lambda b: b[:-1]), "layer conv2_2: its bias"),
    (change("conv1_1", 1, lambda b: b[:-1]), "layer conv1_1: its weight"),
    (change("conv1_1", 0, lambda b: np.ones((2, 4, 3, 3))), "conv1_1: takes 4 channels, .*RGB"),
    (change("fc6", 0, lambda b: b[..., :-1]), "layer fc6: its weight"),
    (change("score_pool4", 0, lambda b: b[:4]), "layer score_pool4: its weight"),
    (change("score_fr", 1, lambda b: b[:1]), "layer score_fr: 1 class"),
    (change("upscore8", 0, lambda b: b[..., :8, :8]), "layer upscore8: its weight"),
    (change("upscore8", 0, lambda b: b[:, :1] + 0.1), "some upsampling layers have one kernel"),
    (change("conv5_3", 0, put(np.nan)), "layer conv5_3: its weight holds values that are not fini"),
    (change("fc7", 1, put(-np.inf)), "layer fc7: its bias holds"),
    (change("upscore2", 0, put(np.inf)), "layer upscore2: its weight holds"),
    (lambda layers: layers["upscore8"][1].append(np.ones(5)), "layer upscore8: a bias"),
    (lambda layers: layers["upscore2"][1].append(np.ones(4)), "layer upscore2: its bias"),
    (rename("score_fr", "score_fr_sem"), "layer score_fr_sem: a net of two heads"),
    (add("score_fr_geo", (3, 6, 1, 1), (3,)), "layer score_fr_geo: .*SIFT Flow"),
    (rename("conv1_1", "conv1_1_bgrd"), "layer conv1_1_bgrd: .*early fusion"),
    (add("conv1_1hha", (2, 3, 3, 3), (2,)), "layer conv1_1hha: .*two streams"),
]


@pytest.mark.parametrize(("damage", "reason"), REFUSALS)
def test_a_net_that_does_not_fit_is_refused(layers, damage, reason) -> None:
    changed = {name: (kind, list(blobs)) for name, (kind, blobs) in layers.items()}
    damage(changed)
    with pytest.raises(CaffeError, match=reason) as refusal:
        import_fcn(as_read(changed), "fcn8s", name="a.caffemodel")
    assert str(refusal.value).startswith("a.caffemodel: ")


def test_another_of_the_authors_nets_is_named(layers) -> None:
    with pytest.raises(CaffeError, match="its layers are those of model=fcn8s"):
        import_fcn(as_read(layers), "fcn16s")
    with pytest.raises(ValueError, match="model must be one of fcn32s"):
        import_fcn(as_read(layers), "fcn4s")


@pytest.mark.parametrize("factors", [np.array([0.01]), np.array(0.01), np.full(16, 0.01)])
def test_the_at_once_factors(factors) -> None:
    layers = authors_net("fcn8s_atonce", width=2, head=6, classes=5).layers
    layers["scale_pool4"] = ("Scale", [factors])
    model, _ = import_fcn(as_read(layers), "fcn8s_atonce")
    assert model.arguments["skip_scales"] == {"pool4": 0.01, "pool3": 0.0001}


@pytest.mark.parametrize("factors", [np.linspace(0.01, 0.02, 16), np.full(15, 0.01), np.nan])
def test_other_at_once_factors_are_refused(factors) -> None:
    layers = authors_net("fcn8s_atonce", width=2, head=6, classes=5).layers
    layers["scale_pool4"] = ("Scale", [np.asarray(factors)])
    with pytest.raises(CaffeError, match="layer scale_pool4: "):
        import_fcn(as_read(layers), "fcn8s_atonce")


@pytest.mark.parametrize("kernels", ["bilinear", "perturbed"])
@pytest.mark.parametrize("model", NETS)
def test_every_blob_and_every_tensor_has_its_fate(model, kernels) -> None:
    layers = authors_net(model, kernels, width=1, head=2, classes=3).layers
    ours, report = import_fcn(as_read(layers), model)
    fates = {entry.name.split(".", 1)[-1] if "." in entry.name else entry.name: entry.fate
             for entry in report.fates}  # fmt: skip
    blobs = sum(len(blobs) for _, blobs in layers.values())
    assert len(report.fates) == blobs + 2  # mean and std
    assert {entry.name for entry in report.fates} >= set(ours.state_dict())
    assert fates["mean"] == fates["std"] == "set"
    assert report.named("folded") == ["backbone.conv1_1.weight"]
    recognised = [n for n in layers if n.startswith("scale_")]
    recognised += [f"{n}.weight" for n in layers if n.startswith("up") and kernels == "bilinear"]
    assert sorted(report.named("recognised")) == sorted(recognised)
    assert report.count("copied") == blobs - 1 - len(recognised)
    assert not any(tensor.is_meta for tensor in ours.state_dict().values())


def test_damage_anywhere_is_refused_or_harmless(tmp_path) -> None:
    """Bytes changed, cut out and put in: an import or our error, never anything else."""
    rng = np.random.default_rng(0)
    whole = caffemodel(authors_net("fcn16s", width=1, head=2, classes=2).layers)
    path, refused = tmp_path / "net.caffemodel", 0
    heads = [i for i in range(len(whole)) if whole[i : i + 4] in (b"conv", b"scor", b"upsc")]
    for trial in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):  # half of the damage near the layers' beginnings
            at = int(rng.integers(len(damaged)))
            if trial % 2:
                at = max(0, int(rng.choice(heads)) + int(rng.integers(-8, 60)))
            put_in = rng.bytes(int(rng.integers(0, 4)))
            damaged[at : at + int(rng.integers(0, 3))] = put_in
        path.write_bytes(damaged)
        try:
            import_fcn(read_caffemodel(path), "fcn16s")
        except CaffeError:
            refused += 1
    assert 100 < refused < 300


@pytest.mark.parametrize("write", [caffemodel, v1_caffemodel])
def test_vgg16_starts_a_net_with_the_features_of_another_engine(tmp_path, write) -> None:
    net = vgg16()
    path = save(tmp_path, write(net.layers))
    weights, report = import_vgg(read_caffemodel(path))
    assert report.named("left over") == ["fc8.weight", "fc8.bias"]
    assert {"head.fc6.weight", "head.fc7.weight"} <= set(report.named("reshaped"))
    file = tmp_path / "vgg16.safetensors"
    checkpoint.write_weights(file, weights, {})
    model = FCN(stride=32, num_classes=2, width=2, head_width=6).eval()
    surgery = initialise(model, ModelConfig(), str(file), ["background", "thing"])
    assert isinstance(surgery, Report)
    assert surgery.named("initialised") == ["score_fr.weight", "score_fr.bias"]
    rgb = picture(224, 224)
    theirs = run_opencv(open_opencv(net.prototxt, path), rgb, "relu7")
    with torch.inference_mode():
        image = torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255
        pool5 = model.backbone((image - model.mean) / model.std)[-1]
        ours = model.head(pool5)[0, :, 3, 3].numpy()  # where fc6 sees the whole of pool5
    np.testing.assert_allclose(ours, theirs.ravel(), atol=1e-5 * np.abs(theirs).max())


def test_another_vgg_is_refused() -> None:
    layers = vgg16().layers
    layers["conv3_4"] = layers["conv3_3"]
    with pytest.raises(
        CaffeError, match="not the layers of vgg16; missing: none; unknown: conv3_4"
    ):
        import_vgg(as_read(layers))


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(REPOSITORY / "scripts" / "import_caffe.py")]
    return subprocess.run([*script, *arguments], capture_output=True, text=True, check=False)


def test_the_script_writes_a_checkpoint_with_the_same_scores(tmp_path) -> None:
    net = authors_net("fcn8s_atonce", "perturbed", width=2, head=6)
    path, output = save(tmp_path, caffemodel(net.layers)), tmp_path / "new" / "fcn.safetensors"
    done = run_script(f"caffemodel={path}", "model=fcn8s_atonce", f"output={output}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert str(output) in done.stdout
    loaded = checkpoint.read(output)
    assert loaded.classes[15] == "person"
    assert loaded.about["source"]["net"] == "fcn8s_atonce"
    assert sorted(p.name for p in output.parent.iterdir()) == [output.name]
    expected, _ = import_fcn(read_caffemodel(path), "fcn8s_atonce")
    rgb = picture(33, 47)
    np.testing.assert_array_equal(run_ours(fcn.load(output), rgb), run_ours(expected, rgb))


def test_the_script_imports_vgg16(tmp_path) -> None:
    path, output = save(tmp_path, v1_caffemodel(vgg16().layers)), tmp_path / "vgg16.safetensors"
    done = run_script(f"caffemodel={path}", "model=vgg16", f"output={output}")
    assert done.returncode == 0, done.stderr
    assert "backbone.weights=" in done.stdout
    assert checkpoint.state_dict(output)["head.fc6.weight"].shape == (6, 16, 7, 7)


def test_the_script_names_classes() -> None:
    from scripts.import_caffe import class_names

    assert class_names(ImportCaffeConfig(), 3) == ["class 0", "class 1", "class 2"]
    assert class_names(ImportCaffeConfig(classes=["a", "b"]), 2) == ["a", "b"]
    with pytest.raises(UserError, match="classes names 2, but the net scores 3"):
        class_names(ImportCaffeConfig(classes=["a", "b"]), 3)
