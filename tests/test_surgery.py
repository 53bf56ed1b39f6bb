import pytest
import torch
from torch import nn
from torchvision.models import vgg16, vgg16_bn
from torchvision.models.vgg import VGG, make_layers

from fcn.models.fcn import FCN
from fcn.models.surgery import SurgeryError, convolutionalize, expand_score, transplant
from fcn.models.upsampling import UPSAMPLINGS, FixedUpsampling
from tests.test_fcn import small, with_random_scores


def torchvision_vgg(width: int = 4, hidden: int = 8, batch_norm: bool = False) -> VGG:
    """torchvision's own VGG-16 class, narrow."""
    layout = [c * width // 64 if isinstance(c, int) else c for c in (64, 64, "M", 128, 128, "M")]
    layout += [c * width // 64 if isinstance(c, int) else c for c in (256, 256, 256, "M")]
    layout += [c * width // 64 if isinstance(c, int) else c for c in (512, 512, 512, "M") * 2]
    net = VGG(make_layers(layout, batch_norm), num_classes=10)
    net.classifier[0] = nn.Linear(8 * width * 49, hidden)
    net.classifier[3] = nn.Linear(hidden, hidden)
    return net.eval()


@pytest.mark.parametrize("batch_norm", [False, True])
def test_fc6_and_fc7_give_the_classifiers_own_activations(batch_norm: bool) -> None:
    vgg = torchvision_vgg(batch_norm=batch_norm)
    model = small(stride=32, backbone="vgg16_bn" if batch_norm else "vgg16").eval()
    report = transplant(model, vgg.state_dict())
    image = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        normal = (image - model.mean) / model.std
        features = vgg.avgpool(vgg.features(normal)).flatten(1)
        expected = vgg.classifier[:5](features)
        fc7 = model.head(model.backbone(normal)[2])[0, :, 3, 3]
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(fc7, expected[0], atol=1e-4, rtol=0)
    assert report.named("reshaped") == ["head.fc6.weight", "head.fc7.weight"]
    assert report.named("left over") == ["classifier.6.weight", "classifier.6.bias"]


@pytest.mark.slow
@pytest.mark.parametrize("net", [vgg16, vgg16_bn])
def test_full_width_activations(net: type[VGG]) -> None:
    vgg = net(weights=None).eval()
    model = FCN(stride=32, backbone=net.__name__).eval()
    transplant(model, vgg.state_dict())
    image = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        normal = (image - model.mean) / model.std
        expected = vgg.classifier[:5](vgg.avgpool(vgg.features(normal)).flatten(1))
        fc7 = model.head(model.backbone(normal)[2])[0, :, 3, 3]
    torch.testing.assert_close(fc7, expected[0], atol=1e-4, rtol=0)


def test_every_tensor_has_a_fate() -> None:
    source = torchvision_vgg().state_dict()
    model = small(stride=8, upsampling="learned")
    report = transplant(model, source)
    assert {f.name for f in report.fates if f.fate != "left over"} == set(model.state_dict())
    assert report.count("copied") + report.count("reshaped") == len(source) - 2
    untouched = ["mean", "std"] + [n for n in model.state_dict() if "score" in n]
    assert sorted(report.named("initialised")) == sorted(untouched)


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
@pytest.mark.parametrize("padding", ["aligned", 100])
@pytest.mark.parametrize(("coarse", "fine"), [(32, 16), (16, 8)])
def test_a_finer_net_starts_as_the_coarser_one(
    coarse: int, fine: int, padding: int | str, upsampling: str
) -> None:
    """Its new skip is zero, so what differs is only two upsamplings in a row for one."""
    source = with_random_scores(small(stride=coarse, padding=padding, upsampling=upsampling)).eval()
    model = small(stride=fine, padding=padding, upsampling=upsampling).eval()
    report = transplant(model, source.state_dict())
    assert f"score_pool{4 if fine == 16 else 3}.weight" in report.named("initialised")
    image = torch.rand(1, 3, 160, 192)
    inputs: list[torch.Tensor] = []
    source.upscore_final.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.inference_mode():
        before, after = source(image), model(image)
        # The difference, made by hand: x2 then x(fine) of the same coarse scores.
        shift = model.skips[-1].score_crop
        twice = FixedUpsampling(2)(inputs[0])
        whole = FixedUpsampling(fine)(twice, model.offset + shift * fine, (160, 192))
    inside = slice(fine, -fine)
    torch.testing.assert_close(
        after[..., inside, inside], whole[..., inside, inside], atol=1e-5, rtol=1e-4
    )
    assert (after - before).abs().max() > 0
    assert float((after.argmax(1) == before.argmax(1)).float().mean()) > 0.9


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_expand_score_keeps_the_old_scores(upsampling: str) -> None:
    model = with_random_scores(small(stride=8, upsampling=upsampling)).eval()
    grown = expand_score(model, 9)
    image = torch.rand(1, 3, 50, 70)
    score = grown(image)
    torch.testing.assert_close(score[:, :5], model(image), atol=1e-6, rtol=1e-5)
    assert torch.equal(score[:, 5:], torch.zeros(1, 4, 50, 70))
    with pytest.raises(SurgeryError, match="at least the model's 5, got 3"):
        expand_score(model, 3)


def test_a_backbone_tensor_without_source_is_an_error_and_changes_nothing() -> None:
    source = torchvision_vgg().state_dict()
    del source["features.7.weight"]
    model = small(stride=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SurgeryError, match=r"no features\.7\.weight in it"):
        transplant(model, source, "vgg.pth")
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_wrong_sizes_and_wrong_numbers_are_errors() -> None:
    model = small(stride=8)
    with pytest.raises(SurgeryError, match=r"features\.0\.weight is \(8, 3, 3, 3\)"):
        transplant(model, torchvision_vgg(width=8).state_dict())
    source = torchvision_vgg().state_dict()
    source["classifier.0.weight"] = source["classifier.0.weight"] * float("nan")
    with pytest.raises(SurgeryError, match="not finite"):
        transplant(model, source)
    with pytest.raises(SurgeryError, match="100 inputs is no 7 x 7"):
        convolutionalize(torch.zeros(2, 100), 7)


def test_other_classes_start_anew_and_are_reported() -> None:
    source = with_random_scores(small(num_classes=7, upsampling="learned")).state_dict()
    model = small(num_classes=5, upsampling="learned")
    report = transplant(model, source)
    initialised = report.named("initialised")
    assert "score_fr.weight" in initialised
    assert "upscore8.weight" in initialised
    assert torch.equal(model.score_fr.weight, torch.zeros_like(model.score_fr.weight))
