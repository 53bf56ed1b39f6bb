"""The command evaluate: a checkpoint on a split of a data set, and VOC's submission."""

import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from fcn import checkpoint
from fcn.config import EvaluateConfig
from fcn.data.check import print_notes, scan
from fcn.data.dataset import SegmentationDataset, read_image
from fcn.data.download import fetch
from fcn.data.layouts import open_split, overlap_with_training
from fcn.device import InferenceModel, resolve_precision
from fcn.errors import ConfigError
from fcn.inference.evaluate import evaluate_and_write, predicted_mask, print_last_line
from fcn.output import progress, refuse_overwriting, write_settings
from fcn.pictures import visualize
from fcn.processes import Processes, is_first, launch

FILES = ("metrics.json", "per_image.npz", "predictions.png", "worst.png", "iou.png",
         "confusion.png", "trimap.png", ".hydra")  # fmt: skip
SUBMISSION = ("results", "results.tar.gz")


def main(cfg: EvaluateConfig, folder: Path, console: Console) -> dict[str, Any] | None:
    """Evaluate a checkpoint on a split, and write VOC's submission if asked for.

    Returns:
        The contents of metrics.json; None for a split without masks.
    """
    if is_first():
        written = [*FILES, *(SUBMISSION if cfg.submission else ())]
        refuse_overwriting([folder / name for name in written], cfg.overwrite, "hydra.run.dir")
    with launch(cfg.trainer) as processes:
        checksum = checkpoint.sha256(checkpoint.find(cfg.checkpoint))  # before it changes
        metrics = _evaluate_checkpoint(cfg, folder, console, processes)
        if processes.rank == 0:
            write_settings(asdict(cfg), folder, checkpoint_sha256=checksum)
        return metrics


def _evaluate_checkpoint(
    cfg: EvaluateConfig, folder: Path, console: Console, processes: Processes
) -> dict[str, Any] | None:
    trained = checkpoint.read(cfg.checkpoint)
    year = Path(cfg.data.folder).name
    if cfg.submission and not re.fullmatch(r"VOC\d{4}", year):
        raise ConfigError(
            f"submission=true is for Pascal VOC's server, not for data={cfg.data.name}"
        )
    if cfg.data.download:
        fetch(cfg.data, console)
    split = cfg.data.split or cfg.data.val_split
    dataset = open_split(cfg.data, split, known=trained.info)
    has_masks = dataset.has_masks()
    if not has_masks and not cfg.submission:
        raise ConfigError(
            f"data.split={split}: {dataset.name} has no masks to evaluate with; choose another "
            "split, or submission=true to write the predictions"
        )
    labels = trained.labels_in(dataset.classes, cfg.data.name)
    if processes.rank == 0:
        if problem := overlap_with_training(cfg.data, dataset, trained.metadata):
            console.print(f"warning: {problem}", style="yellow")
        if labels is not None:
            console.print(
                f"{dataset.name} lists its classes in another order than the model: matched by name"
            )
        if has_masks and cfg.data.scan:
            scan([dataset], console, training=False)
        else:
            print_notes([dataset], console)
    precision = resolve_precision(
        cfg.trainer.get("precision"), processes.device, trained=trained.metadata.get("precision")
    )
    model = InferenceModel(
        trained.model(),
        processes.device,
        precision,
        labels=labels,
        flip=cfg.flip,
        scales=cfg.scales,
    )
    del trained  # its weights, which the model has copied
    if processes.rank == 0:  # new numbers never stand beside old settings, if it is interrupted
        for name in ("metrics.json", ".hydra/config.yaml"):
            (folder / name).unlink(missing_ok=True)
    if cfg.submission and processes.rank == 0:
        archive = write_submission(model, dataset, folder, console, year=year, split=split)
        console.print(f"predictions of {len(dataset)} images for VOC's server: {archive}")
    if not has_masks:
        return None
    metrics = evaluate_and_write(
        model,
        dataset,
        folder,
        console,
        data=cfg.data.title,
        split=split,
        batch_size=cfg.batch_size,
        num_workers=cfg.data.num_workers,
        processes=processes,
    )
    if metrics is not None:
        print_last_line(console, metrics, f"from {cfg.checkpoint}", folder)
    return metrics


def write_submission(
    model: InferenceModel,
    dataset: SegmentationDataset,
    folder: Path,
    console: Console,
    *,
    year: str,
    split: str,
) -> Path:
    """Write the predictions as Pascal VOC's evaluation server takes them; needs no masks.

    Returns:
        The archive to upload, folder/results.tar.gz. It holds palette masks of the images' own
        size, results/VOC2012/Segmentation/comp6_test_cls/ID.png, also written below `folder`.
    """
    # comp6: segmentation, trained on more than VOC's own images (ImageNet, SBD).
    results = Path("results", year, "Segmentation", f"comp6_{split}_cls")
    (folder / results).mkdir(parents=True, exist_ok=True)
    with progress(console) as bar:
        for pair in bar.track(dataset.pairs, description=f"{year} {split}"):
            mask = predicted_mask(model, read_image(pair.image, dataset.info))
            visualize.palette_image(mask).save(folder / results / f"{pair.id}.png")
    return Path(shutil.make_archive(str(folder / "results"), "gztar", folder, results))
