"""Predictions as Pascal VOC's evaluation server takes them."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import torch

from fcn import visualize
from fcn.data.files import SegmentationFiles
from fcn.data.reading import read_image
from fcn.inference.evaluation import predict
from fcn.models.fcn import FCN

COMPETITION = 6  # segmentation, trained on more than VOC's own images: ImageNet's, SBD's


def write_submission(
    model: FCN,
    files: SegmentationFiles,
    folder: Path,
    data: str,
    split: str,
    *,
    device: torch.device,
    bf16: bool,
    advance: Callable[[], None] = lambda: None,
) -> Path:
    """Palette masks of the images' own size, as files and as the archive to upload.

    Masks of the truth are not needed.

    Args: model: `ready`. data: VOC2012, or another year. advance: called after each image.
    Returns: `folder`/results.tar.gz, which holds results/`data`/Segmentation/comp6_`split`_cls/
        ID.png, written below `folder` too.
    Raises: DataError: an image is missing or unreadable; no archive is left then.
    """
    results = Path("results", data, "Segmentation", f"comp{COMPETITION}_{split}_cls")
    (folder / results).mkdir(parents=True, exist_ok=True)
    archive = folder / "results.tar.gz"
    temporary = archive.with_name(archive.name + ".part")
    try:
        with tarfile.open(temporary, "w:gz") as tar:
            for pair in files.pairs:
                image = read_image(pair.image)[None]
                mask = predict(model, image, device=device, bf16=bf16)[0].cpu().numpy()
                name = results / f"{pair.id}.png"
                visualize.palette_image(mask).save(folder / name)
                tar.add(folder / name, name)
                advance()
        temporary.replace(archive)
    finally:
        temporary.unlink(missing_ok=True)
    return archive
