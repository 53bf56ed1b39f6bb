"""Weights moved between networks give the activations and scores they gave before."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import vgg16, vgg16_bn
from torchvision.models.vgg import VGG, make_layers

from fcn.models.fcn import FCN
from fcn.models.surgery import SurgeryError, transplant
from fcn.models.upsampling import FixedUpsampling
from tests.conftest import random_model, small


def torchvision_vgg(width: int = 4, hidden: int = 8, batch_norm: bool = False) -> VGG:
    """torchvision's own VGG-16 class, narrow."""
    stages = [(2, 1), (2, 2), (3, 4), (3, 8), (3, 8)]
    layout = [c for n, times in stages for c in (*[times * width] * n, "M")]
    with torch.device("meta"):  # its own classifier, which is replaced, is large
        network = VGG(nn.Sequential(), num_classes=10)
    network.features = make_layers(layout, batch_norm)
    network.classifier[0] = nn.Linear(8 * width * 49, hidden)
    network.classifier[3] = nn.Linear(hidden, hidden)
    network.classifier[6] = nn.Linear(hidden, 10)
    return network.eval()


@torch.inference_mode()
def assert_same_fc7(model: FCN, vgg: VGG) -> None:
    image = torch.rand(1, 3, 224, 224)
    normal = (image - model.mean) / model.std
    expected = vgg.classifier[:5](vgg.avgpool(vgg.features(normal)).flatten(1))[0]
    fc7 = model.head(model.backbone(normal)[2])[0, :, 3, 3]  # where fc6 sees all of pool5
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(fc7, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_fc6_and_fc7_give_the_classifiers_own_activations(batch_norm: bool) -> None:
    vgg = torchvision_vgg(batch_norm=batch_norm)
    backbone = "vgg16_bn" if batch_norm else "vgg16"
    model = small(stride=32, backbone=backbone, upsampling="learned").eval()
    report = transplant(model, vgg.state_dict())
    assert_same_fc7(model, vgg)
    kept = {entry.name for entry in report.tensors if entry.status != "left over"}
    assert kept == set(model.state_dict())  # every tensor is reported
    assert report.with_status("reshaped") == ["head.fc6.weight", "head.fc7.weight"]
    assert report.with_status("left over") == ["classifier.6.weight", "classifier.6.bias"]
    new = ["mean", "std"] + [name for name in model.state_dict() if "score" in name]
    assert sorted(report.with_status("initialised")) == sorted(new)


@pytest.mark.slow
@pytest.mark.parametrize("network", [vgg16, vgg16_bn])
def test_full_width_activations(network: type[VGG]) -> None:
    vgg = network(weights=None).eval()
    model = FCN(stride=32, backbone=network.__name__).eval()
    transplant(model, vgg.state_dict())
    assert_same_fc7(model, vgg)


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
@pytest.mark.parametrize("padding", ["aligned", 100])
@pytest.mark.parametrize(("coarse", "fine", "pool"), [(32, 16, "pool4"), (16, 8, "pool3")])
def test_a_finer_network_starts_as_the_coarser_one(
    coarse: int, fine: int, pool: str, padding: int | str, upsampling: str
) -> None:
    """Its new skip is zero, so all that differs is that two upsamplings replace one."""
    source = small(stride=coarse, padding=padding, upsampling=upsampling).eval()
    for name, layer in source.named_children():
        if name.startswith("score"):
            nn.init.normal_(layer.weight, std=0.1)
    model = small(stride=fine, padding=padding, upsampling=upsampling).eval()
    report = transplant(model, source.state_dict())
    assert f"score_{pool}.weight" in report.with_status("initialised")
    image = torch.rand(1, 3, 160, 192)
    inputs: list[Tensor] = []
    source.upscore_final.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.inference_mode():
        before, after = source(image), model(image)
        # The difference, by hand: x2 then x(fine) of the same coarse scores.
        shift = max(-model.crops[f"score_{pool}"], 0)
        twice = FixedUpsampling(2)(inputs[0])
        whole = FixedUpsampling(fine)(twice, model.offset + shift * fine, (160, 192))
    inner = (..., slice(fine, -fine), slice(fine, -fine))
    torch.testing.assert_close(after[inner], whole[inner], atol=1e-5, rtol=1e-4)
    assert 0.9 < float((after.argmax(1) == before.argmax(1)).float().mean()) < 1


@pytest.mark.parametrize(
    "upsampling", ["fixed", "learned", "learned_channelwise", "nonlinear", "nearest_conv"]
)
def test_score_rows_are_matched_by_class_name(upsampling: str) -> None:
    """The classes both know keep their scores; a new one starts at zero."""
    old, new = ["background", "cat", "dog"], ["background", "dog", "owl", "cat"]
    source = small(num_classes=3, upsampling=upsampling, mean=(0.1, 0.2, 0.3)).eval()
    for layer in source.children():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.1)
    model = small(num_classes=4, upsampling=upsampling).eval()
    transplant(model, source.state_dict(), classes=new, source_classes=old)
    image = torch.rand(1, 3, 50, 70)
    with torch.inference_mode():
        score = model(image)
        torch.testing.assert_close(score[:, [0, 3, 1]], source(image), atol=1e-6, rtol=1e-5)
    assert not score[:, 2].any()


@pytest.mark.parametrize(
    ("upsampling", "source_upsampling"),
    [("learned", "learned_channelwise"), ("learned_channelwise", "learned")],
)
def test_as_many_other_classes_do_not_inherit_scores_silently(
    upsampling: str, source_upsampling: str
) -> None:
    old, new = ["background", "cat", "dog"], ["background", "bus", "car"]
    source = random_model(num_classes=3, upsampling=source_upsampling, mean=(0.1, 0.2, 0.3))
    model = small(num_classes=3, upsampling=upsampling)
    report = transplant(model, source.state_dict(), classes=new, source_classes=old)
    assert torch.equal(model.score_fr.weight[0], source.score_fr.weight[0])
    assert not model.score_fr.weight[1:].any()
    assert torch.equal(model.mean, source.mean)
    assert "upscore8.weight" in report.with_status("initialised")
    assert "bus" in next(f.note for f in report.tensors if f.name == "score_fr.weight")


def test_another_number_of_unnamed_classes_starts_anew_and_is_reported() -> None:
    model = small(num_classes=5, upsampling="learned")
    source = random_model(num_classes=7, upsampling="learned").state_dict()
    initialised = transplant(model, source).with_status("initialised")
    assert {"score_fr.weight", "upscore8.weight"} <= set(initialised)
    assert not model.score_fr.weight.any()


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("features.7.weight", None),
        ("features.7.weight", torch.zeros(4, 4, 3, 3)),
        ("classifier.0.weight", torch.zeros(8, 512)),
        ("classifier.0.weight", torch.full((8, 32 * 49), float("nan"))),
    ],
)
def test_a_source_that_does_not_fit_is_an_error_and_changes_nothing(
    key: str, tensor: Tensor | None
) -> None:
    source = torchvision_vgg().state_dict()
    del source[key]
    if tensor is not None:
        source[key] = tensor
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SurgeryError, match=rf"vgg\.pth.*{key}"):
        transplant(model, source, "vgg.pth")
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("channels", [4, 6])
def test_further_channels_start_at_the_mean_of_rgb(channels: int) -> None:
    rgb, model = random_model(), small(in_channels=channels)
    report = transplant(model, rgb.state_dict())
    ours, theirs = model.backbone.conv1_1.weight, rgb.backbone.conv1_1.weight
    assert torch.equal(ours[:, :3], theirs)
    for channel in range(3, channels):
        torch.testing.assert_close(ours[:, channel], theirs.mean(1))
    assert report.with_status("adapted") == ["backbone.conv1_1.weight"]
    assert torch.equal(model.mean[:3], rgb.mean)
    torch.testing.assert_close(model.std[3:], rgb.std.mean(0).expand(channels - 3, 1, 1))
    assert not transplant(small(in_channels=channels), model.state_dict()).with_status("adapted")


BANDS = {  # (of the source, of the model) -> the source's channel of each; None: the mean
    ((), ("nir", "Red", "green", "BLUE")): [None, 0, 1, 2],
    ((), ("nir", "red", "green")): [None, 0, 1],
    ((), ("red", "nir")): [0, None],
    ((), ("red", "green", "blue")): [0, 1, 2],
    ((), ("blue", 3, "red")): [2, None, 0],
    ((), ("swir1", "swir2", "nir", "tir")): [None] * 4,
    (("grey",), ()): [None] * 3,
    ((), (3, 0, 1, 2)): [0, 1, 2, None],
    ((), (2, 1, 0)): [0, 1, 2],
    (("nir", "red", "green", "blue"), ()): [1, 2, 3],
    (("nir", "red", "green", "blue"), ("RED", "green", "blue", "nir")): [1, 2, 3, 0],
    (("nir", "red", "green", "blue"), ("nir", "swir")): [0, None],
    (("nir", "red", "green", "blue"), (0, 1, 2, 3)): [0, 1, 2, 3],
    ((3, 0, 1, 2), ("nir", "red", "green", "blue")): [0, 1, 2, 3],
}


@pytest.mark.parametrize(("bands", "places"), BANDS.items())
def test_the_first_layer_follows_the_names_of_bands(
    bands: tuple[tuple, tuple], places: list[int | None]
) -> None:
    theirs, own = bands
    source = small(in_channels=len(theirs) or 3)
    source.mean.uniform_()
    source.std.uniform_(0.1, 1)
    model = small(in_channels=len(own) or 3)
    report = transplant(model, source.state_dict(), bands=own, source_bands=theirs)
    for name, dim in (("mean", 0), ("std", 0), ("backbone.conv1_1.weight", 1)):
        before, after = source.state_dict()[name], model.state_dict()[name]
        least = 1 if any(place is not None for place in places) else 0
        weight = max(least, source.in_channels / model.in_channels) if dim else 1
        for channel, place in enumerate(places):
            expected = before.mean(dim) if place is None else before.select(dim, place)
            torch.testing.assert_close(after.select(dim, channel), weight * expected)
    (entry,) = (t for t in report.tensors if t.name == "backbone.conv1_1.weight")
    moved = places != list(range(source.in_channels))
    assert entry.status == ("adapted" if moved else "copied")
    if moved and any(isinstance(band, str) for band in own):
        missing = [str(band) for band, place in zip(own, places, strict=True) if place is None]
        assert entry.note.endswith(f"; {', '.join(missing)}: the mean" if missing else "by name")


def test_bands_without_names_must_be_as_many() -> None:
    source = small(in_channels=4).state_dict()
    for bands in ((), (0, 1), (0, 1, 2, 3, 4)):
        model = small(in_channels=len(bands) or 3)
        with pytest.raises(SurgeryError, match=r"conv1_1\.weight is \(4, 4, 3, 3\), but"):
            transplant(model, source, bands=bands, source_bands=(0, 1, 2, 3))


@pytest.mark.parametrize("channels", [1, 2])
@torch.inference_mode()
def test_fewer_channels_answer_to_grey_as_rgb_does(channels: int) -> None:
    even = {"mean": [0.5] * 3, "std": [0.25] * 3}
    rgb, model = random_model(**even), small(in_channels=channels, **even).eval()
    transplant(model, rgb.state_dict())
    grey = torch.rand(1, 1, 40, 50)
    expected = rgb(grey.expand(1, 3, 40, 50))
    torch.testing.assert_close(model(grey.expand(1, channels, 40, 50)), expected)
