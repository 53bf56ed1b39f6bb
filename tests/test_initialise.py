from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torchvision.models import VGG16_Weights

from fcn.config import ConfigError, ModelConfig
from fcn.inference.checkpoint import write_safetensors
from fcn.models.fcn import FCN
from fcn.training.initialise import WeightsError, initialise
from tests.test_fcn import small, with_random_scores
from tests.test_surgery import torchvision_vgg

CLASSES = ["a", "b", "c", "d", "e"]


def test_random_weights_need_no_surgery() -> None:
    assert initialise(small(), ModelConfig(), None, CLASSES) is None


def test_a_local_state_dict_of_torchvisions_vgg(tmp_path: Path) -> None:
    source = torchvision_vgg().state_dict()
    torch.save(source, tmp_path / "vgg16.pth")
    model = small(stride=8)
    report = initialise(model, ModelConfig(), str(tmp_path / "vgg16.pth"), CLASSES)
    assert report is not None
    assert torch.equal(model.state_dict()["backbone.conv1_2.weight"], source["features.2.weight"])
    assert report.count("reshaped") == 2


@pytest.mark.parametrize("name", ["imagenet", "IMAGENET1K_FEATURES"])
def test_weights_by_name_bring_their_normalisation(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The names and transforms are torchvision's; only the download is replaced."""
    asked = []

    def get_state_dict(self: Any, **options: Any) -> dict[str, torch.Tensor]:
        asked.append((self, options))
        return torchvision_vgg().state_dict()

    monkeypatch.setattr(VGG16_Weights, "get_state_dict", get_state_dict)
    model = small(stride=32)
    initialise(model, ModelConfig(), name, CLASSES)
    ((weights, options),) = asked
    assert options["check_hash"] is True
    expected = "IMAGENET1K_V1" if name == "imagenet" else name
    assert weights is VGG16_Weights[expected]
    transforms = weights.transforms()
    assert model.mean.flatten().tolist() == pytest.approx(transforms.mean)
    assert model.std.flatten().tolist() == pytest.approx(transforms.std)


def test_without_a_network_the_message_says_which_file_goes_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(WeightsError) as caught:
        initialise(small(), ModelConfig(), "imagenet", CLASSES)
    message = str(caught.value)
    assert "https://download.pytorch.org/models/vgg16-" in message
    assert f"{tmp_path}/hub/checkpoints/vgg16-" in message
    assert "backbone.weights=null" in message


def test_the_mini_backbone_has_no_published_weights() -> None:
    with pytest.raises(ConfigError, match="mini backbone has none"):
        initialise(small(backbone="mini"), ModelConfig(), "imagenet", CLASSES)


def test_a_coarser_net_of_ours_and_of_fewer_classes(tmp_path: Path) -> None:
    coarse = with_random_scores(small(stride=32, mean=(0.1, 0.2, 0.3))).eval()
    path = tmp_path / "coarse.safetensors"
    write_safetensors(path, coarse, {"classes": CLASSES})
    config = ModelConfig(init_from=str(path))
    fine = small(stride=16)
    initialise(fine, config, "imagenet", CLASSES)  # init_from wins over the backbone's weights
    assert torch.equal(fine.score_fr.weight, coarse.score_fr.weight)
    assert torch.equal(fine.mean, coarse.mean)

    more = small(stride=32, num_classes=7).eval()
    initialise(more, config, None, [*CLASSES, "f", "g"])
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(more(image)[:, :5], coarse(image))
    assert torch.equal(more(image)[:, 5:], torch.zeros(1, 2, 64, 64))

    others: FCN = small(stride=32, num_classes=7)
    initialise(others, config, None, list("tuvwxyz"))  # other classes: their scores start anew
    assert torch.equal(others.score_fr.weight, torch.zeros_like(others.score_fr.weight))
