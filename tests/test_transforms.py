import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fcn.data.transforms import (
    MEAN_COLOUR,
    TrainTransform,
    adjust_colours,
    pad_collate,
    random_scaled_crop,
)


def coordinates(height: int, width: int) -> tuple[Tensor, Tensor]:
    """An image and a mask that both tell where each pixel was: row and column, in steps of 8."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([y, x, torch.zeros_like(x)]).to(torch.uint8)
    return image, (y // 8 * 16 + x // 8).to(torch.uint8)


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
    assert torch.equal(
        pixels[:, outside].float().mean(1), torch.tensor(MEAN_COLOUR, dtype=torch.float)
    )
    assert (pixels[:, ~outside] == 200).all()


def test_a_crop_of_ignored_pixels_only_is_drawn_again() -> None:
    target = torch.full((100, 100), 255, dtype=torch.uint8)
    target[:30, :30] = 1
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    empty = sum(
        bool((random_scaled_crop(image, target, 20, [1.0, 1.0])[1] == 255).all())
        for _ in range(200)
    )
    assert empty < 100  # of single draws 0.86 are ignored pixels only; of 10, 0.86^10 = 0.22


def test_whole_images_stay_whole_and_jitter_leaves_masks_alone() -> None:
    image, target = coordinates(37, 53)
    same, mask = TrainTransform(None, [1.0, 1.0], False, 0.0)(image, target)
    assert torch.equal(same, image)
    assert torch.equal(mask, target)
    changed, mask = TrainTransform(None, [1.0, 1.0], False, 0.5)(image, target)
    assert not torch.equal(changed, image)
    assert torch.equal(mask, target)


@pytest.mark.parametrize("scale", [[1.0, 1.0], [0.6, 0.6], [0.7, 0.7], [2.0, 2.0], [0.7, 2.5]])
@pytest.mark.parametrize("flip", [False, True])
def test_an_edge_lies_at_the_same_place_in_image_and_mask(scale: list[float], flip: bool) -> None:
    """A disc drawn in both: image and mask differ only along its edge, and have the same centre.

    A pixel of the mask takes the nearest label, so the centres differ by a fraction of a pixel to
    any side; a shift by half a pixel, or always to one side, would be an error.
    """
    y, x = torch.meshgrid(torch.arange(90), torch.arange(100), indexing="ij")
    target = ((y - 40) ** 2 + (x - 55) ** 2 < 10**2).to(torch.uint8)
    image = (255 * target).expand(3, -1, -1)
    transform = TrainTransform(96, scale, flip, 0.0)
    shifts = []
    for _ in range(120):
        pixels, labels = transform(image, target)
        bright = pixels[0].double() / 255 * (labels != 255)
        disc = (labels == 1).double()
        inside = disc[3:-3, 3:-3].sum()
        if inside == 0 or inside < disc.sum():  # the crop shows a part of it
            continue
        core = torch.nn.functional.avg_pool2d(disc[None, None], 7, 1, 3)[0, 0] == 1
        around = torch.nn.functional.max_pool2d(disc[None, None], 7, 1, 3)[0, 0] == 1
        assert (bright[core] == 1).all()
        assert (bright[~around] == 0).all()
        shifts.append([_centre(bright, a) - _centre(disc, a) for a in (0, 1)])
    assert len(shifts) >= 10
    assert torch.tensor(shifts).abs().max() < 0.45
    assert torch.tensor(shifts).mean(0).abs().max() < 0.15


def _centre(weight: Tensor, axis: int) -> float:
    place = torch.arange(weight.shape[axis], dtype=weight.dtype)
    return float((weight.sum(1 - axis) * place).sum() / weight.sum())


def test_flipping_moves_image_and_mask_together_and_nothing_else() -> None:
    image, target = coordinates(37, 53)
    transform = TrainTransform(None, [1.0, 1.0], True, 0.0)
    flipped = 0
    for _ in range(40):
        pixels, labels = transform(image, target)
        mirrored = not torch.equal(pixels, image)
        back = (pixels.flip(-1), labels.flip(-1)) if mirrored else (pixels, labels)
        assert torch.equal(back[0], image)
        assert torch.equal(back[1], target)
        flipped += mirrored
    assert 8 <= flipped <= 32  # binomial(40, 1/2): outside with probability 1e-4


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
        outside = wide[:, padded == 255]
        assert torch.equal(outside, torch.tensor(MEAN_COLOUR).byte()[:, None].expand_as(outside))


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
