"""What perfect scores at a network's stride would reach."""

from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fcn.config import DataConfig
from fcn.data.layouts import VOC_CLASSES, open_split
from fcn.device import InferenceModel
from fcn.inference.ceiling import Ceiling
from fcn.inference.metrics import ConfusionMatrix, metrics_of
from fcn.models.fcn import FCN
from fcn.models.upsampling import UPSAMPLINGS, bilinear_kernel, make_upsampling
from tests.conftest import random_model, small

CPU = torch.device("cpu")
SEVEN = [VOC_CLASSES.index(name) for name in ("background", "cat", "cow", "dog", "horse", "person",
                                              "sheep")]  # fmt: skip


def drawn(height: int, width: int, *, seed: int = 0) -> Tensor:
    """A ground truth (1, 1, H, W) of five classes in blobs, with ignored pixels."""
    coarse = np.random.default_rng(seed).integers(0, 6, (1 + height // 5, 1 + width // 7))
    labels = coarse.repeat(5, 0).repeat(7, 1)[:height, :width].astype(np.uint8)
    labels[labels == 5] = 255
    return torch.from_numpy(labels)[None, None]


def test_a_cell_belongs_to_the_class_with_most_of_its_pixels() -> None:
    """Of two cells of 8 x 8: 6 columns of class 1, then 10 of class 0, of which 4 are ignored.

    Shares: 6/8 of class 1 and 2/8 of class 0; 4/8 of class 0. Between the centres the boundary lies
    where 6/8 (1 - t) = 2/8 (1 - t) + 4/8 t, which is t = 1/2: column 7.5.
    """
    target = torch.zeros(1, 1, 8, 16, dtype=torch.uint8)
    target[..., :6] = 1
    target[..., 12:] = 255
    model = InferenceModel(Ceiling(small(stride=8)), CPU)  # type: ignore[arg-type]
    expected = torch.tensor([1] * 8 + [0] * 8).expand(1, 8, 16)
    assert torch.equal(model.predict(target), expected)


@pytest.mark.parametrize("padding", ["aligned", 100])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_scores_are_shares_of_cells_upsampled_by_the_networks_own_kernel(
    stride: int, padding: int | str
) -> None:
    """Written out cell by cell and pixel by pixel, on the network's own grid."""
    model = small(stride=stride, padding=padding)
    target = drawn(45, 71)
    kernel = bilinear_kernel(2 * stride).numpy()
    expected = np.zeros((5, 45, 71))
    for i in range(-1, 45 // stride + 10):
        for j in range(-1, 71 // stride + 10):
            top, left = (n * stride + stride // 2 - model.offset for n in (i, j))
            rows, columns = (slice(max(0, n), max(0, n + stride)) for n in (top, left))
            cell = target[0, 0, rows, columns].numpy()
            if not cell.size:
                continue
            share = np.array([(cell == k).mean() for k in range(5)])
            for y in range(45):
                for x in range(71):
                    u, v = y - top + stride // 2, x - left + stride // 2  # in the kernel
                    if 0 <= u < 2 * stride and 0 <= v < 2 * stride:
                        expected[:, y, x] += kernel[u, v] * share
    with torch.inference_mode():
        assert np.allclose(Ceiling(model)(target)[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("upsampling", "padding"), [*zip(UPSAMPLINGS, cycle(["aligned", 100]), strict=False)]
)
def test_tiles_and_batches_change_no_label(upsampling: str, padding: int | str) -> None:
    model = random_model(stride=16, backbone="mini", upsampling=upsampling, padding=padding)
    target = torch.cat([drawn(203, 171, seed=seed) for seed in (0, 1)])
    whole, tiled = (InferenceModel(Ceiling(model), CPU, tile=tile) for tile in (None, 96))  # type: ignore[arg-type]
    assert len(tiled.tiles((203, 171))) > 4
    expected = whole.predict(target)
    assert len(expected.unique()) == 5
    assert torch.equal(tiled.predict(target), expected)
    assert torch.equal(torch.cat([whole.predict(one[None]) for one in target]), expected)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_layers_start_class_by_class_and_weights_between_classes_are_left_out(
    upsampling: str,
) -> None:
    layer = make_upsampling(upsampling, 8, 3, final=True)
    score = torch.rand(2, 3, 4, 5)
    with torch.no_grad():
        assert torch.allclose(layer.classwise()(score), layer(score), atol=1e-6)
        for parameter in layer.parameters():
            if parameter.ndim == 4 and parameter.shape[1] == 3:
                parameter[0, 1] += 1  # of one class onto another
        first, others = layer.classwise()(score)[:, 0], score.clone()
        others[:, 1:] = 0
        assert torch.allclose(layer.classwise()(others)[:, 0], first, atol=1e-6)


def test_labels_in_another_order_have_the_same_ceiling() -> None:
    model, target = random_model(stride=16, upsampling="learned"), drawn(90, 80)
    order = [2, 0, 1, 4, 3]
    other = torch.where(target == 255, 255, torch.tensor(order)[target.clamp(max=4).long()]).byte()
    expected = InferenceModel(Ceiling(model), CPU).predict(target)  # type: ignore[arg-type]
    found = InferenceModel(Ceiling(model, order), CPU, labels=order).predict(other)  # type: ignore[arg-type]
    assert torch.equal(found, torch.tensor(order)[expected.long()])


@pytest.mark.slow
@pytest.mark.parametrize(("stride", "percent"), [(32, 94.7), (16, 98.7), (8, 99.9)])
def test_ceilings_of_seven_classes_on_pascal_voc(
    voc_root: Path, stride: int, percent: float
) -> None:
    data = DataConfig("voc", root=str(voc_root), folder="VOCdevkit/VOC2012", classes=VOC_CLASSES)
    model = FCN(stride=stride, backbone="mini", width=4, head_width=8)
    perfect, confusion = InferenceModel(Ceiling(model), CPU), ConfusionMatrix(21)  # type: ignore[arg-type]
    for _, target in open_split(data, "val"):  # type: ignore[attr-defined]
        confusion.update(perfect.predict(target[None, None]), target[None])
    iou = metrics_of(confusion.compute()).iou[SEVEN].mean()
    assert 100 * float(iou) == pytest.approx(percent, abs=0.05)
