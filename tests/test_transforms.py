"""Image and mask are transformed together, and masks get no labels that were not there."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from fcn.config import CONFIGS, RecipeConfig
from fcn.data.transforms import (
    MEAN_COLOUR,
    TrainTransform,
    adjust_colours,
    check_transforms,
    mean_colour,
    pad_collate,
    random_scaled_crop,
    seeded,
)
from fcn.errors import ConfigError


def v2(name: str, **arguments: Any) -> dict[str, Any]:
    """The settings of one of torchvision's transforms."""
    return {"_target_": f"torchvision.transforms.v2.{name}"} | arguments


ROTATION = v2("RandomRotation", degrees=[30, 60])
GEOMETRY = [
    ROTATION,
    v2("RandomAffine", degrees=20, translate=[0.3, 0.3], scale=[0.5, 0.8]),
    v2("RandomPerspective", p=1.0, distortion_scale=0.3),
    v2("ElasticTransform", alpha=100.0),
    v2("RandomCrop", size=[70, 80], padding=12),
    v2("RandomZoomOut", p=1.0),
]
HOLDERS: dict[str, Any] = {
    "alone": lambda entry: entry,
    "RandomApply": lambda entry: v2("RandomApply", p=1.0, transforms=[entry]),
    "RandomChoice": lambda entry: v2("RandomChoice", transforms=[entry, entry]),
    "Compose in RandomApply": lambda entry: v2(
        "RandomApply", p=1.0, transforms=[v2("Compose", transforms=[entry])]
    ),
}


def recipe(*transforms: dict[str, Any], **settings: Any) -> RecipeConfig:
    return RecipeConfig(transforms=list(transforms), **settings)


def coordinates(height: int, width: int) -> tuple[Tensor, Tensor]:
    """An image and a mask that both tell where each pixel was: row and column, in steps of 8."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([y, x, torch.zeros_like(x)]).to(torch.uint8)
    return image, (y // 8 * 16 + x // 8).to(torch.uint8)


def disc() -> tuple[Tensor, Tensor]:
    """An image and a mask of a white disc of class 1 on black."""
    y, x = torch.meshgrid(torch.arange(90), torch.arange(100), indexing="ij")
    target = ((y - 40) ** 2 + (x - 55) ** 2 < 10**2).to(torch.uint8)
    return (255 * target).expand(3, -1, -1), target


def centre(weight: Tensor) -> Tensor:
    """The mean position, (y, x)."""
    y, x = (torch.arange(n, dtype=torch.double) for n in weight.shape)
    return torch.stack([(weight.sum(1) * y).sum(), (weight.sum(0) * x).sum()]) / weight.sum()


def test_masks_hold_only_labels_that_were_there_and_255() -> None:
    target = torch.zeros(60, 60, dtype=torch.uint8)
    target[20:40, 20:40] = 7
    target[30:50, 10:30] = 19
    image = torch.zeros(3, 60, 60, dtype=torch.uint8)
    transform = TrainTransform(48, [0.3, 3.0], True, 0.5)
    seen = torch.cat([transform(image, target)[1].flatten() for _ in range(50)]).unique()
    assert seen.tolist() == [0, 7, 19, 255]


def test_outside_the_image_are_the_mean_colour_and_255() -> None:
    image = torch.full((3, 10, 20), 200, dtype=torch.uint8)
    target = torch.ones(10, 20, dtype=torch.uint8)
    pixels, labels = random_scaled_crop(image, target, 64, [1.0, 1.0])
    outside = labels == 255
    assert int((~outside).sum()) == 200
    assert (pixels[:, outside] == torch.tensor(MEAN_COLOUR)[:, None]).all()
    assert (pixels[:, ~outside] == 200).all()


def test_a_crop_of_ignored_pixels_only_is_drawn_again() -> None:
    target = torch.full((100, 100), 255, dtype=torch.uint8)
    target[:30, :30] = 1
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    crops = [random_scaled_crop(image, target, 20, [1.0, 1.0])[1] for _ in range(200)]
    assert (
        sum(bool((crop == 255).all()) for crop in crops) < 100
    )  # of single draws 0.86 are ignored pixels only; of 10, 0.86^10 = 0.22


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_transforms_keep_the_number_of_channels(channels: int) -> None:
    image, target = torch.full((channels, 40, 50), 100, dtype=torch.uint8), torch.zeros(40, 50)
    transform = TrainTransform(crop=64, scale=(0.5, 2), flip=True, jitter=0.3)
    samples = [transform(image, target.byte()), (image, target.byte())]
    assert tuple(pad_collate(samples)[0].shape) == (2, channels, 64, 64)


@pytest.mark.parametrize("scale", [[1.0, 1.0], [0.7, 0.7], [2.0, 2.0], [0.7, 2.5]])
@pytest.mark.parametrize("flip", [False, True])
def test_an_edge_lies_at_the_same_place_in_image_and_mask(scale: list[float], flip: bool) -> None:
    """A disc drawn in both: image and mask differ only along its edge, and have the same centre.

    A pixel of the mask takes the nearest label, so the centres differ by a fraction of a pixel to
    any side; a shift by half a pixel, or always to one side, would be an error.
    """
    transform, shifts = TrainTransform(96, scale, flip, 0.0), []
    for _ in range(120):
        pixels, labels = transform(*disc())
        bright = pixels[0].double() / 255 * (labels != 255)
        shown = (labels == 1).double()
        inside = shown[3:-3, 3:-3].sum()
        if inside == 0 or inside < shown.sum():  # the crop shows a part of it
            continue
        core = nn.functional.avg_pool2d(shown[None, None], 7, 1, 3)[0, 0] == 1
        around = nn.functional.max_pool2d(shown[None, None], 7, 1, 3)[0, 0] == 1
        assert (bright[core] == 1).all()
        assert (bright[~around] == 0).all()
        shifts.append(centre(bright) - centre(shown))
    assert len(shifts) >= 10
    assert torch.stack(shifts).abs().max() < 0.45
    assert torch.stack(shifts).mean(0).abs().max() < 0.15


def test_whole_images_change_by_flips_and_jitter_alone() -> None:
    """A flip moves image and mask together; jitter leaves masks alone."""
    image, target = coordinates(37, 53)
    transform, flipped = TrainTransform(None, [1.0, 1.0], True, 0.0), 0
    for _ in range(40):
        pixels, labels = transform(image, target)
        mirrored = not torch.equal(pixels, image)
        back = (pixels.flip(-1), labels.flip(-1)) if mirrored else (pixels, labels)
        assert torch.equal(back[0], image)
        assert torch.equal(back[1], target)
        flipped += mirrored
    assert 8 <= flipped <= 32  # binomial(40, 1/2): outside with probability 1e-4
    changed, mask = TrainTransform(None, [1.0, 1.0], False, 0.5)(image, target)
    assert not torch.equal(changed, image)
    assert torch.equal(mask, target)


def test_whole_images_of_any_sizes_make_a_batch() -> None:
    samples = [coordinates(37, 53), coordinates(40, 20), coordinates(12, 12)]
    images, targets = pad_collate(samples)
    assert (images.shape, images.dtype) == ((3, 3, 40, 53), torch.uint8)
    assert (targets.shape, targets.dtype) == ((3, 40, 53), torch.uint8)
    for (image, target), wide, padded in zip(samples, images, targets, strict=True):
        h, w = target.shape
        assert torch.equal(wide[:, :h, :w], image)
        assert torch.equal(padded[:h, :w], target)
        assert int((padded != 255).sum()) == h * w
        assert (wide[:, padded == 255] == torch.tensor(MEAN_COLOUR)[:, None]).all()


def test_colours_are_adjusted_as_torchvision_does_in_three_steps() -> None:
    image = torch.randint(80, 176, (3, 31, 45), dtype=torch.uint8)  # nothing is clamped in between
    for brightness, contrast, saturation in ((1.2, 0.8, 0.7), (0.7, 1.2, 1.3), (1.0, 1.0, 1.0)):
        expected = F.adjust_saturation(image.double() / 255, saturation)
        expected = F.adjust_contrast(expected, contrast)
        expected = F.adjust_brightness(expected, brightness) * 255
        adjusted = adjust_colours(image, brightness, contrast, saturation)
        torch.testing.assert_close(adjusted.double(), expected, atol=0.51, rtol=0)
    bright = adjust_colours(torch.full((3, 2, 2), 250, dtype=torch.uint8), 1.5, 1.0, 1.0)
    assert (bright == 255).all()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize(("holder", "channels"), list(zip(HOLDERS, [3, 5, 1, 3], strict=True)))
@pytest.mark.parametrize("entry", GEOMETRY, ids=lambda entry: entry["_target_"].split(".")[-1])
def test_new_pixels_are_the_mean_and_ignored(
    entry: dict[str, Any], holder: str, channels: int, interpolation: str
) -> None:
    """Of a mask without class 0: a rotation's own default would make its new corners class 0."""
    if not entry["_target_"].endswith(("Crop", "ZoomOut")):
        entry = entry | {"interpolation": interpolation}
    holds = HOLDERS[holder](entry)
    image = torch.full((channels, 64, 80), 200, dtype=torch.uint8)
    target = torch.full((64, 80), 3, dtype=torch.uint8)
    transform = TrainTransform.of(recipe(holds), channels)
    for seed in range(5):
        with seeded(seed):
            pixels, labels = transform(image, target)
        assert labels.unique().tolist() == [3, 255]
        mean = torch.tensor(mean_colour(channels))[:, None, None]
        share = (pixels - mean) / (200 - mean)  # of the old image in each pixel
        old, new = labels == 3, labels == 255
        if "interpolation" in entry and interpolation == "bilinear":
            # Pixels at the edge are neither: torchvision makes them darker than both.
            old, new = (_inside(part) for part in (old, new))
        assert (share[:, old] == 1).all()
        assert (share[:, new] == 0).all()


def _inside(part: Tensor) -> Tensor:
    """Return the pixels of a part whose neighbours are all in it; not those at the frame."""
    others = nn.functional.pad((~part).float()[None], (1, 1, 1, 1), value=1)
    return nn.functional.max_pool2d(others, 3, 1)[0] == 0


@pytest.mark.parametrize(
    "entry",
    [
        v2("RandomRotation", degrees=180),
        v2("RandomAffine", degrees=0, scale=[0.5, 1.5], shear=10),
        v2("RandomPerspective", p=1.0, distortion_scale=0.4),
        v2("ElasticTransform", alpha=60.0),
    ],
    ids=lambda entry: entry["_target_"].split(".")[-1],
)
def test_an_object_moves_in_image_and_mask_together(entry: dict[str, Any]) -> None:
    transform = TrainTransform.of(recipe(entry | {"interpolation": "bilinear"}), 3)
    shifts = []
    for seed in range(20):
        with seeded(seed):
            pixels, labels = transform(*disc())
        shown = (labels == 1).double()
        near = nn.functional.max_pool2d(shown[None, None], 5, 1, 2)[0, 0]  # no edge of the image
        shifts.append(centre(pixels[0] * near) - centre(shown))
    assert torch.stack(shifts).abs().max() < 0.5
    assert torch.stack(shifts).mean(0).abs().max() < 0.15


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("choice", sorted(path.stem for path in CONFIGS.glob("augmentation/*")))
def test_the_choices_fit_images_of_any_size_and_channels(choice: str, channels: int) -> None:
    content: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"augmentation/{choice}.yaml"))
    chosen = recipe(*content.get("transforms", []))
    if choice == "photo" and channels == 4:  # hue is that of RGB
        with pytest.raises(ConfigError, match="1 or 3, but found 4"):
            check_transforms(chosen, channels, 21, (50, 70))
    else:
        check_transforms(chosen, channels, 21, (50, 70))


def test_a_given_fill_is_the_images_alone() -> None:
    image, target = torch.full((3, 40, 40), 9, dtype=torch.uint8), torch.ones(40, 40).byte()
    pixels, labels = TrainTransform.of(recipe(ROTATION | {"fill": 0}), 3)(image, target)
    assert (pixels[:, labels == 255] == 0).all()
    assert labels.unique().tolist() == [1, 255]


class Drawing:
    """A transform that draws from NumPy and Python, and changes the mask as it is told."""

    def __init__(self, mask: str = "keep") -> None:
        self.mask = mask

    def __call__(self, image: Tensor, target: Tensor) -> Any:
        image = (image + np.random.randint(9) + random.randrange(9)).byte()  # noqa: NPY002
        new = {
            "keep": target,
            "float": target.float(),
            "cut": target[1:],
            "black": torch.zeros_like(target),
            "smooth": (target // 2).byte(),
        }
        return image if self.mask == "none" else (image, new[self.mask])


def own(mask: str) -> dict[str, Any]:
    return {"_target_": f"{__name__}.Drawing", "mask": mask}


DRAWING = [own("keep"), ROTATION, v2("ElasticTransform", alpha=60.0)]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"_target_": "nowhere.Transform"}, "nowhere.Transform: No module named 'nowhere'"),
        (v2("RandomRotatoin"), "has no attribute"),
        ({"_target_": "pathlib.Path"}, "pathlib.Path is no transform"),
        ({"degrees": 3}, "no _target_"),
        (ROTATION | {"degres": 3}, "degres"),
        (v2("RandomApply", transforms=[{"_target_": "nowhere.X"}]), "nowhere.X"),
        (v2("AutoAugment"), "Mask are not supported"),
        (v2("ToPILImage"), "returns (Image, Mask), not"),
        (v2("RandomCrop", size=500), "larger than input image size (64, 64)"),
        (v2("Grayscale", num_output_channels=1), "uint8 (1, 64, 64)"),
        (own("none"), "returns Tensor, not image and mask"),
        (own("float"), "float32 (64, 64); both must stay uint8"),
        (own("cut"), "uint8 (63, 64)"),
        (own("black"), "the label 0 where there was none"),
        (own("smooth"), "the label 0 where there was none"),
    ],
)
def test_what_is_no_transform_of_image_and_mask_is_refused(
    entry: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        check_transforms(recipe(entry, crop=64), 3, 8, None)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    check_transforms(recipe(own("keep"), ROTATION, crop=64), 3, 8, None)


def test_a_seed_repeats_every_draw_and_leaves_the_generators_alone() -> None:
    image, target = coordinates(40, 40)
    transform = TrainTransform.of(recipe(own("keep"), ROTATION), 3)

    def drawn(seed: int) -> Tensor:
        with seeded(seed):
            return transform(image, target)[0]

    def states() -> tuple[Any, ...]:
        numpy = np.random.get_state()[1].tolist()  # noqa: NPY002
        return random.getstate(), numpy, torch.get_rng_state().tolist()

    before = states()
    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))
    assert states() == before
