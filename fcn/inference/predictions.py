"""Segmenting images on disk: read ahead, in batches of one size, and written in the background."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fcn import visualize
from fcn.data.reading import LARGE, DataError, image_size, read_image
from fcn.inference.checkpoint import FORMAT
from fcn.inference.jobs import Job, Stamp
from fcn.inference.predictor import Predictor


def predict(
    predictor: Predictor,
    jobs: Sequence[Job],
    todo: set[Job],
    stamp: Stamp,
    batch_size: int,
) -> Iterator[tuple[Job, DataError | None]]:
    """Segments images and writes what is to be made of them, reading and writing in the background.

    Batches are put together from all `jobs`, done or not: so a mask is the same, to the last bit,
    wherever a run was interrupted.

    Args: todo: those of `jobs` that are to be written. batch_size: at most so many images of one
        size go through the net at once, and no more pixels than a tile has.
    Yields: each of `todo` once it is written, or with what is wrong with its image.
    """
    with ThreadPoolExecutor() as pool:
        by_size = defaultdict[tuple[int, int], list[Job]](list)
        for job, size in zip(jobs, pool.map(_header, jobs), strict=True):
            if not isinstance(size, DataError):
                by_size[size].append(job)
            elif job in todo:
                yield job, size
        batches = [
            (size, batch)
            for size, same in by_size.items()
            for batch in _batches(same, size, batch_size, predictor.tile)
            if not todo.isdisjoint(batch)
        ]
        writing: list[tuple[Job, Future[None]]] = []
        for reading in _read_ahead(pool, batches):
            read: dict[Job, Tensor] = {}
            for job, future in reading:
                image = future.result()
                if not isinstance(image, DataError):
                    read[job] = image
                elif job in todo:
                    yield job, image
            written, writing = writing, []
            if read:
                images = list(read.values())
                masks, kept = predictor.segment(
                    torch.stack(images) if len(images) > 1 else images[0][None],  # without a copy
                    probabilities=jobs[0].probabilities is not None,
                )
                for index, (job, image) in enumerate(read.items()):
                    if job in todo:
                        every = None if kept is None else kept[index].numpy()
                        arguments = (image, masks[index].numpy(), every, predictor.classes, stamp)
                        writing.append((job, pool.submit(_write, job, *arguments)))
            for job, done in written:  # so no more than three batches are in memory
                done.result()
                yield job, None
        for job, done in writing:
            done.result()
            yield job, None


def _header(job: Job) -> tuple[int, int] | DataError:
    """(width, height), or what is wrong."""
    try:
        return image_size(job.image, LARGE)
    except DataError as error:
        return error


def _read(job: Job, size: tuple[int, int]) -> Tensor | DataError:
    """The image, or what is wrong."""
    try:
        image = read_image(job.image, LARGE)
    except DataError as error:
        return error
    if (image.shape[2], image.shape[1]) != size:
        return DataError(f"{job.image}: not of the size that its header says, {size}; replace it")
    return image


def _batches(
    jobs: list[Job], size: tuple[int, int], batch_size: int, tile: int | None
) -> Iterator[list[Job]]:
    if tile is not None:
        batch_size = max(1, min(batch_size, tile**2 // (size[0] * size[1])))
    return (jobs[i : i + batch_size] for i in range(0, len(jobs), batch_size))


Reading = list[tuple[Job, "Future[Tensor | DataError]"]]


def _read_ahead(
    pool: ThreadPoolExecutor, batches: Iterable[tuple[tuple[int, int], list[Job]]]
) -> Iterator[Reading]:
    """Each batch, once the next has begun to be read."""
    waiting: Reading | None = None
    for size, batch in batches:
        reading = [(job, pool.submit(_read, job, size)) for job in batch]
        if waiting is not None:
            yield waiting
        waiting = reading
    if waiting is not None:
        yield waiting


def _write(
    job: Job,
    image: Tensor,
    mask: np.ndarray,
    probabilities: np.ndarray | None,
    classes: list[str],
    stamp: Stamp,
) -> None:
    """The outputs of one image, each whole or not at all."""
    text = json.dumps(stamp)
    about = PngInfo()
    about.add_text(FORMAT, text)
    for path in job.outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
    if job.overlay is not None:
        tinted = visualize.overlay(image.permute(1, 2, 0).numpy(), mask)
        with _whole(job.overlay) as part:  # level 1: a third of the time for little more space
            Image.fromarray(tinted).save(part, "PNG", pnginfo=about, compress_level=1)
    if job.probabilities is not None and probabilities is not None:
        with _whole(job.probabilities) as part, part.open("wb") as file:
            np.savez_compressed(
                file, probabilities=probabilities, classes=np.array(classes), made_by=text
            )
    with _whole(job.mask) as part:
        visualize.palette_image(mask).save(part, "PNG", pnginfo=about)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; what was written is moved there if all went well."""
    part = path.with_name(path.name + ".part")
    yield part
    part.replace(path)
