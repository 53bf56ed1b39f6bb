import pickle

import pytest
import torch
from torch import Tensor

from fcn.data.transforms import MEAN_COLOUR, random_scaled_crop, train_transform


def coordinates(height: int, width: int) -> tuple[Tensor, Tensor]:
    """An image and a mask that both say where each pixel was: row and column, in steps of 8."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([y, x, torch.zeros_like(x)]).to(torch.uint8)
    return image, (y // 8 * 16 + x // 8).to(torch.uint8)


@pytest.mark.parametrize("scale", [[1.0, 1.0], [0.5, 2.0], [0.35, 0.36]])
@pytest.mark.parametrize("flip", [False, True])
def test_image_and_mask_stay_together(scale: list[float], flip: bool) -> None:
    image, target = coordinates(110, 120)
    transform = train_transform(96, scale, flip, 0.0)
    for _ in range(30):
        pixels, labels = transform(image, target)
        assert pixels.shape == (3, 96, 96)
        assert labels.shape == (96, 96)
        known = labels != 255
        y, x = (labels // 16).float(), (labels % 16).float()
        if scale == [1.0, 1.0]:  # nothing interpolated: exact
            assert torch.equal(pixels[0][known] // 8, labels[known] // 16)
            assert torch.equal(pixels[1][known] // 8, labels[known] % 16)
        # Interpolated or not: the pixel's place lies in its label's cell, but for one pixel.
        slack = 0.5 + 1.5 / (8 * min(1, scale[0]))
        for channel, cell in ((0, y), (1, x)):
            place = pixels[channel].float() / 8 - 0.5
            assert (place - cell)[known].abs().max() <= slack + 0.25


def test_masks_hold_only_labels_that_were_there_and_void() -> None:
    target = torch.zeros(60, 60, dtype=torch.uint8)
    target[20:40, 20:40] = 7
    target[30:50, 10:30] = 19
    image = torch.zeros(3, 60, 60, dtype=torch.uint8)
    transform = train_transform(48, [0.3, 3.0], True, 0.5)
    seen = torch.cat([transform(image, target)[1].flatten() for _ in range(50)]).unique()
    assert seen.tolist() == [0, 7, 19, 255]


def test_outside_the_image_is_mean_colour_and_void() -> None:
    image = torch.full((3, 10, 20), 200, dtype=torch.uint8)
    target = torch.ones(10, 20, dtype=torch.uint8)
    pixels, labels = random_scaled_crop(image, target, 64, [1.0, 1.0])
    outside = labels == 255
    assert int((~outside).sum()) == 200
    assert torch.equal(
        pixels[:, outside].float().mean(1), torch.tensor(MEAN_COLOUR, dtype=torch.float)
    )
    assert (pixels[:, ~outside] == 200).all()


def test_a_crop_of_void_alone_is_drawn_again() -> None:
    target = torch.full((100, 100), 255, dtype=torch.uint8)
    target[:30, :30] = 1
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    lone = sum(
        bool((random_scaled_crop(image, target, 20, [1.0, 1.0])[1] == 255).all())
        for _ in range(200)
    )
    assert lone < 100  # 0.86 of single draws are void alone; of 10 draws, 0.86^10 = 0.22


def test_whole_images_stay_whole_and_jitter_leaves_masks_alone() -> None:
    image, target = coordinates(37, 53)
    same, mask = train_transform(None, [1.0, 1.0], False, 0.0)(image, target)
    assert torch.equal(same, image)
    assert torch.equal(mask, target)
    changed, mask = train_transform(None, [1.0, 1.0], False, 0.5)(image, target)
    assert not torch.equal(changed, image)
    assert torch.equal(mask, target)


def test_a_transform_reaches_a_worker_that_is_spawned() -> None:
    image, target = coordinates(110, 120)
    results = []
    transform = train_transform(32, [0.5, 2.0], True, 0.5)
    for each in (transform, pickle.loads(pickle.dumps(transform))):
        torch.manual_seed(3)
        results.append(each(image, target))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
