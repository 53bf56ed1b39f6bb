"""The page on one run or several: numbers with intervals, plots, and a gallery of predictions."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from fcn import page, plots, visualize
from fcn.config import VOID
from fcn.inference import checkpoint
from fcn.inference.bootstrap import LEVEL, RESAMPLES, SEED, estimate, resample
from fcn.inference.evaluation import computes_bf16
from fcn.inference.report import Row, predicted_rows
from fcn.inference.runs import Run, judged
from fcn.metrics import rates

SIDE = 480  # pixels, of the longer side of a picture in the gallery
QUALITY = 80  # of its JPEG
METRICS = {
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
}


def report_page(runs: Sequence[Run], images: int, console: Console, device: torch.device) -> str:
    """A whole HTML document on runs of one protocol; the first is what the others are held against.

    Args: images: how many the gallery shows, evenly spaced over the first run's ranking by IoU.
    """
    complete: list[Run] = []
    predictions: list[list[Row]] = []
    parameters: list[int] = []
    chosen = np.empty(0, int)
    for run in runs:
        run = judged(run, checkpoint.load(run.weights), console, device)
        model = checkpoint.load(run.weights).to(device)  # judging may have rounded the other's
        assert run.per_image is not None
        if not complete:
            chosen = spread(rates(run.per_image)["mean_iou"].numpy(), images)
        bf16 = run.bf16 and computes_bf16(device)
        rows = predicted_rows(model, run.files, chosen, device=device, bf16=bf16)
        shown = track(rows, run.name, len(chosen), console=console, transient=True)
        predictions.append([shrunk(row) for row in shown])
        parameters.append(sum(p.numel() for p in model.parameters()))
        complete.append(run)
    names = [run.name for run in complete]
    body = page.templates().get_template("inference/report.html")
    protocol = complete[0].protocol
    context = {
        "names": names,
        "protocol": protocol,
        "facts": list(facts(complete, parameters)),
        "settings": list(differences(complete)),
        "plots": list(figures(complete)),
        "confusions": [confusion(run, len(names)) for run in complete],
        "gallery": list(gallery(complete, predictions, chosen)),
        "legend": list(legend(predictions, complete[0].files.classes)),
        "errors": [(name, css(rgb)) for name, rgb in visualize.ERROR_COLOURS.items()][1:],
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "level": round(100 * LEVEL)},
    }
    context |= numbers(complete)
    where = f"{protocol['data']} {protocol['split']}"
    title = (
        f"{' and '.join(names)} on {where}" if len(names) < 3 else f"{len(names)} runs on {where}"
    )
    return page.page(title, body.render(context, title=title))


def spread(mean_iou: NDArray[np.float64], images: int) -> NDArray[np.intp]:
    """Indices of images evenly spaced over their ranking, worst first; images all void stay out."""
    ranking = np.argsort(mean_iou, kind="stable")[: np.isfinite(mean_iou).sum()]
    count = min(images, len(ranking))
    return ranking[np.linspace(0, len(ranking) - 1, count).round().astype(int)]


def numbers(runs: Sequence[Run]) -> dict[str, Any]:
    """The tables of all classes together and of each, a column a run, then its difference."""
    resampled = [resample(run.per_image) for run in runs if run.per_image is not None]

    def columns(metric: str) -> list[list[Any]]:
        """For each class: estimates of the runs, then of the later runs less the first."""
        alone = [estimate(one, metric) for one in resampled]
        above = [estimate(one, metric, minus=resampled[0]) for one in resampled[1:]]
        return [list(row) for row in zip(*alone, *above, strict=True)]

    classes = runs[0].metrics["classes"]
    return {
        "metrics": [(label, columns(metric)[0]) for metric, label in METRICS.items()],
        "classes": [
            (entry["name"], entry["pixels"], row)
            for entry, row in zip(classes, columns("iou"), strict=True)
        ],
    }


def facts(runs: Sequence[Run], parameters: Sequence[int]) -> Iterator[tuple[str, list[str]]]:
    """What a reader asks first about each run."""
    models = [run.protocol["model"] for run in runs]
    yield (
        "model",
        [f"FCN-{m['stride']}s{', at once' if m.get('skip_scales') else ''}" for m in models],
    )
    for key in ("backbone", "upsampling", "padding"):
        yield key, [str(m.get(key, "-")) for m in models]
    yield "parameters", [f"{count:,}" for count in parameters]
    yield "recipe", [flat(run.settings).get("recipe.name", "-") for run in runs]
    yield "steps", [flat(run.settings).get("trainer.max_steps", "-") for run in runs]
    yield "precision when judged", [run.protocol.get("precision", "-") for run in runs]
    yield "folder", [str(run.folder) for run in runs]


def differences(runs: Sequence[Run]) -> Iterator[tuple[str, list[str], bool]]:
    """Every setting, its values, and whether they differ; those that differ come first."""
    every = [flat(run.settings) for run in runs]
    keys = dict.fromkeys(key for settings in every for key in settings)
    rows = [(key, [settings.get(key, "-") for settings in every]) for key in keys]
    for key, values in sorted(rows, key=lambda row: len(set(row[1])) == 1):
        yield key, values, len(set(values)) > 1


def flat(settings: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings by their dotted keys, as text."""
    if not isinstance(settings, dict) or not settings:
        return {prefix: str(settings)} if prefix else {}
    result: dict[str, str] = {}
    for key, value in settings.items():
        result |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return result


def figures(runs: Sequence[Run]) -> Iterator[Markup]:
    """The curves of training and the scores near borders, all runs in one plot."""
    loss = {run.name: run.history.get("loss", []) for run in runs}
    mean_iou = {run.name: run.history.get("mean_iou", []) for run in runs}
    trimap = {run.name: run.metrics["trimap"] for run in runs}
    names = ", ".join(loss)
    if any(loss.values()):
        picture = plots.curves(loss, {})
        yield page.figure(picture, f"Training loss over the steps: {names}", plot=True)
    if any(mean_iou.values()):
        best = ", ".join(
            f"{name} {100 * max(value for _, value in points):.1f}"
            for name, points in mean_iou.items()
            if points
        )
        picture = plots.curves({}, mean_iou)
        yield page.figure(picture, f"Validation mean IoU over the steps; best: {best}", plot=True)
    if any(value is not None for values in trimap.values() for value in values):
        picture = plots.trimap_plot(trimap)
        yield page.figure(picture, f"Mean IoU in bands round the borders: {names}", plot=True)


def confusion(run: Run, of: int) -> Markup:
    counts = np.array(run.metrics["confusion"], np.int64)
    picture = plots.confusion_plot(counts, run.files.classes)
    caption = run.name if of > 1 else ""
    return page.figure(picture, f"Confusion matrix of {run.name}", caption, plot=True)


def shrunk(row: Row) -> Row:
    """Image, truth and prediction at the size of the gallery."""
    height, width = row[1].shape
    scale = min(1, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image, *masks = (Image.fromarray(array) for array in row)
    truth, prediction = (mask.resize(size, Image.Resampling.NEAREST) for mask in masks)
    smooth = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(smooth), np.asarray(truth), np.asarray(prediction)


def gallery(
    runs: Sequence[Run], predictions: Sequence[Sequence[Row]], chosen: NDArray[np.intp]
) -> Iterator[dict[str, Any]]:
    """For each image: its name, each run's IoU, and its layers as (key, data URI, alt)."""
    classes = runs[0].files.classes
    iou = [rates(run.per_image[chosen])["mean_iou"] for run in runs if run.per_image is not None]
    for i, index in enumerate(chosen):
        image, truth, _ = predictions[0][i]
        layers = [("truth", mask_uri(truth), f"truth: {content(truth, classes)}")]
        for number, (run, rows) in enumerate(zip(runs, predictions, strict=True)):
            of = f" of {run.name}" if len(runs) > 1 else ""
            mask = rows[i][2]
            seen = f"prediction{of}: {content(mask, classes)}"
            layers.append((f"prediction-{number}", mask_uri(mask), seen))
            layers.append((f"errors-{number}", errors_uri(truth, mask), f"errors{of}"))
        yield {
            "id": runs[0].files.ids[index],
            "photo": page.data_uri(Image.fromarray(image), jpeg_quality=QUALITY),
            "width": image.shape[1],
            "height": image.shape[0],
            "iou": [float(values[i]) for values in iou],
            "layers": layers,
        }


def mask_uri(mask: NDArray[np.uint8]) -> str:
    return page.data_uri(visualize.palette_image(mask), transparent=0)


def errors_uri(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> str:
    """The error map, see-through where the prediction is right."""
    picture = visualize.errors(truth, prediction)
    colours = np.array(list(visualize.ERROR_COLOURS.values()), np.uint8)
    labels = (picture[:, :, None] == colours).all(-1).argmax(-1).astype(np.uint8)
    image = Image.fromarray(labels)
    image.putpalette(colours.tobytes())
    return page.data_uri(image, transparent=0)


def content(mask: NDArray[np.uint8], classes: Sequence[str]) -> str:
    """The names of a mask's classes, but for background."""
    return ", ".join(classes[k] for k in labels_of([mask])) or "background alone"


def legend(
    predictions: Iterable[Sequence[Row]], classes: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Name and colour of the classes that the gallery shows."""
    shown = labels_of(mask for rows in predictions for _, *masks in rows for mask in masks)
    colours = visualize.voc_palette()
    for k in shown:
        yield classes[k], css(colours[k])
    yield "void", css(colours[VOID])


def labels_of(masks: Iterable[NDArray[np.uint8]]) -> list[int]:
    found = {int(label) for mask in masks for label in np.unique(mask)}
    return sorted(found - {0, VOID})


def css(rgb: Iterable[int]) -> str:
    return "rgb({} {} {})".format(*rgb)
