"""Example images of a comparison, predicted by the networks of its first groups."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fcn import checkpoint
from fcn.compare.comparison import Group
from fcn.compare.runs import Run
from fcn.config import CompareConfig, DataConfig
from fcn.data.dataset import SegmentationDataset
from fcn.data.layouts import open_split
from fcn.device import InferenceModel, resolve_precision
from fcn.errors import UserError
from fcn.inference.evaluate import predicted_rows
from fcn.inference.metrics import rates
from fcn.output import percent
from fcn.pictures import page, visualize

SHOWN = 4  # groups whose predictions and confusion matrices are on the page
SIDE = 400  # pixels of a picture's longer side


def gallery(groups: Sequence[Group], cfg: CompareConfig, device: torch.device) -> dict[str, Any]:
    """Predict example images with the first run of each of the first groups.

    Returns:
        "cards", image id -> its pictures with their captions; "images", how many they are of;
        "legend", class name -> colour; "errors", likewise.
    """
    first = groups[0].runs[0]
    dataset = _open_recorded(first, first, cfg.data_root)
    info = dataset.info
    chosen = _spread(rates(first.per_image)["mean_iou"], cfg.images)
    cards: dict[str, list[tuple[str, str]]] = {first.ids[index]: [] for index in chosen}
    masks = []
    for group in groups[:SHOWN]:
        same_images = (run for run in group.runs if run.ids == first.ids)
        if (run := next(same_images, None)) is None:
            continue
        taken = _open_recorded(first, run, cfg.data_root)
        predicted = predicted_rows(_load(run, device, dataset.classes), taken, chosen)
        for index, (image, ground_truth, mask) in zip(chosen, predicted, strict=True):
            masks += [ground_truth, mask]
            pictures = cards[first.ids[index]]
            if not pictures:
                pictures.append(("image", _uri(image, "jpeg")))
                pictures.append(("ground truth", _uri(visualize.outlined(ground_truth, info))))
            iou = percent(float(rates(run.per_image[index])["mean_iou"]))
            prediction = visualize.outlined(mask, info)
            errors = visualize.error_map(ground_truth, mask, info)
            pictures.append((f"{group.name}: mean IoU {iou} %", _uri(prediction)))
            pictures.append((f"{group.name}: errors", _uri(errors)))
    legends = {"legend": visualize.legend_of(masks, info), "errors": visualize.error_colours(info)}
    return {"cards": cards, "images": len(first.ids), **legends}


def _open_recorded(run: Run, network: Run, data_root: str | None) -> SegmentationDataset:
    """Open the split that a run was evaluated on, where it lay then or below `data_root`.

    Its images are read with the value range and bands of `network`, which may be another run.
    """
    data, settings = (DataConfig(**of.data) for of in (run, network))
    data.root = data_root or data.root
    data.value_range, data.bands = settings.value_range, settings.bands
    known, takes = (checkpoint.read(of.checkpoint).info for of in (run, network))
    known = replace(known, value_range=takes.value_range, bands=takes.bands)
    dataset = open_split(data, run.metrics["protocol"]["split"], known=known)
    if dataset.ids != run.ids:
        raise UserError(f"{dataset.name} has other images now than when {run.folder} was evaluated")
    return dataset


def _load(run: Run, device: torch.device, classes: Sequence[str]) -> InferenceModel:
    """Load the model of a run as it was evaluated, with the labels of the classes."""
    trained = checkpoint.read(run.checkpoint)
    protocol = run.metrics["protocol"]
    labels = trained.labels_in(classes, protocol["data"])
    precision = resolve_precision("auto", device, trained=protocol["precision"])
    views = {key: protocol[key] for key in ("flip", "scales") if key in protocol}
    return InferenceModel(trained.model(), device, precision, labels=labels, **views)


def _spread(mean_iou: Tensor, images: int) -> list[int]:
    """Return indices evenly spaced over the ranking of images, worst first; NaN stays out."""
    ranking = mean_iou.argsort(stable=True)[: int(mean_iou.isfinite().sum())]
    places = torch.linspace(0, len(ranking) - 1, min(images, len(ranking)), dtype=torch.float64)
    return ranking[places.round().long()].tolist()


def _uri(picture: visualize.UInt8, kind: str = "png") -> str:
    """Return a picture at the size of the gallery."""
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE))
    return page.data_uri(image, kind)
