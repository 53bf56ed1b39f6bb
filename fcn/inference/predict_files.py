"""Predict the masks of image files: read ahead, predicted one by one, written in the background."""

import glob
import json
import sys
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from torch import Tensor

from fcn import checkpoint
from fcn.config import PredictConfig
from fcn.data.dataset import read_labels
from fcn.data.files import finder, is_image, unread_note, walk
from fcn.data.georeference import Georeference, read_georeference
from fcn.data.images import image_size, read_image
from fcn.dataset_info import BACKGROUND, DatasetInfo
from fcn.device import bound_memory, resident_memory, resolve_precision, return_memory
from fcn.errors import ConfigError, DataError
from fcn.inference import annotations, areas
from fcn.inference.origin import (
    KEY,
    OVERLAY_KEY,
    Origin,
    checksum,
    labels_checksum,
    origin_of,
    read_origin,
)
from fcn.inference.predictor import Predictor
from fcn.output import atomic_write, locked, progress, write_json
from fcn.pictures import visualize
from fcn.processes import Processes, launch, usable_cores

SETTINGS = "predict.json"  # in the output folder
SPARE_MEMORY = 500_000_000  # bytes that may stay occupied between images, for speed
MAX_QUEUED_PIXELS = 2**24  # pixels of images read ahead, and of those waiting to be written


def main(cfg: PredictConfig, folder: Path, console: Console) -> None:
    """Predict the masks of all images of `cfg.input` that are not yet in `cfg.output`.

    Raises:
        ConfigError: no images, outputs that collide, or an output folder with other settings.
        DataError: at the end, if images could not be read, or share a name.
    """
    bound_memory()
    output = Path(cfg.output)
    with launch(cfg.trainer) as processes:
        first = processes.rank == 0
        # Only rank 0 reads standard input, which all processes share.
        lines = processes.broadcast(list(sys.stdin) if first and cfg.input == "-" else [])
        images, note = find_images(cfg.input, output, lines)
        if first:
            output.mkdir(parents=True, exist_ok=True)
        with locked(output) if first else nullcontext():
            _predict_images(cfg, images, note, console, processes)


def _predict_images(
    cfg: PredictConfig,
    images: dict[Path, Path],
    note: str,
    console: Console,
    processes: Processes,
) -> None:
    """Predict images (path -> name), see `main`; `note` says which files are left out."""
    output, first = Path(cfg.output), processes.rank == 0
    jobs, shared = plan_jobs(images, output, overlays=cfg.overlays, probabilities=cfg.probabilities)
    predictor, settings = _load(cfg, processes)
    if first:
        _claim_folder(cfg, output, settings, jobs)
    processes.barrier()
    key = checksum(json.dumps(settings, sort_keys=True).encode())
    jobs, foreign, kept = compare_with_outputs(jobs, key, overwrite=cfg.overwrite)
    table = areas.Areas(output, predictor.classes, [job.mask for job in jobs])
    done = [job.mask for job in jobs if not job.missing]
    todo = [job for job in jobs if job.missing]
    processes.barrier()  # all have seen what there is to do
    share = slice(processes.rank, None, processes.world)
    _fill(table, (done + table.others)[share], predictor, todo[share], cfg.raw, console)
    counted = table.gather(processes)
    if not first:
        return
    notes = table.write({job.mask: job.georeference for job in jobs})
    usable = [job for job in jobs if job.mask in counted]
    predicted = sum(job.mask in counted for job in todo)
    for line in (*shared, *foreign):
        print(line, flush=True)
    before = f", {len(done)} were done before" if done else ""
    console.print(f"{predicted} images predicted{before}; masks in {output}")
    if cfg.annotations:
        _annotate(cfg, usable, predictor.info, console)
    for line in filter(None, (note, *kept, *notes)):
        console.print(f"note: {line}")
    if left := len(images) - len(usable):
        raise DataError(
            f"{left} of {len(images)} images have no usable mask; they are listed above"
        )


def _load(cfg: PredictConfig, processes: Processes) -> tuple[Predictor, dict[str, Any]]:
    """Return the predictor, and the settings on which its masks depend."""
    precision = cfg.trainer.get("precision", "auto")
    resolve_precision(precision, processes.device)  # its error names this command's setting
    predictor = Predictor(
        cfg.checkpoint,
        str(processes.device),
        precision=precision,
        tile=cfg.tile,
        flip=cfg.flip,
        scales=cfg.scales,
    )
    channels = predictor.model.model.in_channels
    if cfg.value_range and cfg.value_range[0] >= cfg.value_range[1]:
        raise ConfigError(f"value_range={cfg.value_range}: must be [from, to], from < to")
    if cfg.bands and len(cfg.bands) != channels:
        raise ConfigError(f"bands={cfg.bands}: {cfg.checkpoint} takes {channels}")
    takes: dict[str, Any] = {"value_range": cfg.value_range, "bands": cfg.bands}
    takes = {key: value for key, value in takes.items() if value}  # in place of the checkpoint's
    predictor.info = replace(predictor.info, **takes)
    settings = {
        "checkpoint_sha256": checkpoint.sha256(checkpoint.find(cfg.checkpoint)),
        "precision": predictor.model.precision,
        "flip": cfg.flip,
        "scales": cfg.scales,
        **takes,
    }
    return predictor, settings | ({"raw": True} if cfg.raw else {})


@dataclass(frozen=True)
class Job:
    """An image, and the files to write for it: mask, and overlay and probabilities if wanted."""

    image: Path
    name: Path  # the image's, without suffix
    outputs: dict[str, Path]
    georeference: Georeference | None = None
    settings: str = ""  # checksum of those on which its mask depends
    missing: tuple[str, ...] = ()  # outputs to write

    @property
    def mask(self) -> Path:
        return self.outputs["mask"]


def find_images(source: str, output: Path, lines: Iterable[str]) -> tuple[dict[Path, Path], str]:
    """Find the images that `input=` names, sorted, and the name of each: a path without suffix.

    Sub-folders of a folder, and those that a pattern's wildcards match, are kept in the names.
    Linked folders count as folders. Hidden files, the output folder, and files that are not read
    here are left out; so are folders in it that this command has written.

    Args:
        source: a file, a folder, a glob pattern, or - for the paths in `lines`.
        output: the folder to write to.
        lines: one path a line.

    Returns:
        The names, and a note on files that look like images but are not read; "" without any.
    """
    base, note, find = Path(source), "", finder()
    if source == "-":
        images = {find(Path(line.rstrip("\r\n"))) for line in lines if line.strip()}
        names = {path: Path(path.stem) for path in sorted(images)}
    elif base.is_file():
        names = {base: Path(base.stem)}
    else:
        if base.is_dir():
            found: Iterable[Path] = walk(base)
        else:
            found = map(Path, glob.iglob(source, recursive=True))
            base = Path(*takewhile(lambda part: not glob.has_magic(part), base.parts))
        files = [
            path
            for path in sorted(found)
            if not path.is_dir()
            and not any(part.startswith(".") for part in path.relative_to(base).parts)
            and output.resolve() not in path.absolute().parents
            and output.resolve() not in path.resolve().parents
        ]
        is_output = cache(lambda folder: (base / folder / SETTINGS).is_file())
        folders = {path: path.relative_to(base).parents[:-1] for path in files}
        left_out = {path for path in files if any(map(is_output, folders[path]))}
        files = [path for path in files if path not in left_out]
        own = set(filter(is_image, left_out))
        names = {path: path.relative_to(base).with_suffix("") for path in files if is_image(path)}
        note = unread_note(files)
        if own:
            written = f"{len(own)} images in outputs of predict.py are left out: {min(own)}, .."
            note = "; ".join(filter(None, (note, written)))
    if not names:
        if not (base.exists() or glob.has_magic(source) or source == "-"):
            raise ConfigError(f"input={source}: no such file or folder")
        found_none = f"input={source}: no images found outside output={output}; check the paths"
        raise ConfigError(f"{found_none}; {note}" if note else found_none)
    return names, note


def plan_jobs(
    images: dict[Path, Path], output: Path, *, overlays: bool, probabilities: bool
) -> tuple[list[Job], list[str]]:
    """Return what to write for each image, and a line for each name that several images share.

    Raises:
        ConfigError: an image would be overwritten.
    """
    jobs: list[Job] = []
    owners = defaultdict[Path, list[Path]](list)
    given = {image.resolve() for image in images}
    for image, name in images.items():
        georeference = read_georeference(image)
        outputs = {"mask": output / f"{name}{'.tif' if georeference else '.png'}"}
        if overlays:
            outputs["overlay"] = output / "overlays" / f"{name}.png"
        if probabilities:
            outputs["probabilities"] = output / f"{name}.npz"
        for path in outputs.values():
            if path.resolve() in given:
                raise ConfigError(
                    f"{image} would be written to {path}, which is an image to predict; choose "
                    "another output"
                )
            owners[path].append(image)
        jobs.append(Job(image, name, outputs, georeference))
    shared = {tuple(owning): path for path, owning in reversed(owners.items()) if owning[1:]}
    lines = [
        f"{', '.join(map(str, owning))}: all belong to {path}, so none is predicted; rename all "
        "but one, or predict each into an output of its own"
        for owning, path in shared.items()
    ]
    left_out = set(chain(*shared))
    return [job for job in jobs if job.image not in left_out], lines


def compare_with_outputs(
    jobs: Iterable[Job], settings: str, *, overwrite: bool
) -> tuple[list[Job], list[str], list[str]]:
    """Decide which outputs of each image to write.

    A mask is predicted again only if this command has predicted it, nobody has changed it, and its
    image or the settings are others now. Its overlay and probabilities are written if they are
    missing, or were made of another image, of other settings or, an overlay, of other labels.
    Those that do not say so may be of the user, and stay.

    Args:
        jobs: the images.
        settings: checksum of those on which masks depend.
        overwrite: write everything.

    Returns:
        The jobs with what is missing; a line for each image whose name the mask of another has;
        notes on files that are kept although they may be of another image or of other settings.
    """
    result, foreign, kept, unknown, strange = list[Job](), list[str](), 0, 0, list[Path]()
    for job in jobs:
        kept_kinds, now = set[str](), None
        if not overwrite and any(path.exists() for path in job.outputs.values()):
            with suppress(OSError):  # said when the image is read
                now = origin_of(job.image, job.mask, settings)
        if now is not None and job.mask.exists():
            origin = read_origin(job.mask)
            made = origin or now
            if made.image != now.image and made.path != now.path:
                foreign.append(
                    f"{job.mask} is the mask of another image than {job.image}; choose another "
                    "output, or overwrite=true"
                )
                continue
            labels = labels_checksum(job.mask)
            if made.fits(now) or labels != made.labels:
                if problem := _size_problem(job):
                    foreign.append(problem)
                    continue
                kept += not made.fits(now)
                unknown += origin is None
                kept_kinds.add("mask")
                now = replace(now, labels=labels)
        if now is not None:
            others = _others_to_keep(job, now)
            kept_kinds |= others.keys()
            strange += [job.outputs[kind] for kind, origin in others.items() if origin is None]
        missing = tuple(kind for kind in job.outputs if kind not in kept_kinds)
        result.append(replace(job, settings=settings, missing=missing))
    note = f"{kept} corrected mask{'s' * (kept > 1)} kept, although image or settings have changed"
    notes = [f"{note} since; overwrite=true replaces corrections"] if kept else []
    if unknown:
        notes.append(
            f"masks kept that do not say of which image they are: {unknown}; another program has "
            "saved them; overwrite=true predicts them again"
        )
    if strange:
        notes.append(
            "overlays and probabilities kept that do not say of which image they are: "
            f"{len(strange)}, {min(strange)}, ..; an earlier version or another program has saved "
            "them; those that are removed are written again"
        )
    return result, foreign, notes


def _others_to_keep(job: Job, now: Origin) -> dict[str, Origin | None]:
    """Return the origins of an overlay and of probabilities that are there and fit `now`.

    An overlay fits only a mask that is kept, of which `now` has the labels. None: of an earlier
    version, or of the user.
    """
    result = dict[str, Origin | None]()
    for kind, path in job.outputs.items():
        if kind != "mask" and path.exists():
            is_overlay = kind == "overlay"
            origin = read_origin(path, OVERLAY_KEY if is_overlay else KEY)
            if origin is None or origin.fits(now, labels=is_overlay):
                result[kind] = origin
    return result


def _size_problem(job: Job) -> str:
    """Return what is wrong with a mask of another size than its image, or ""."""
    try:
        mask, image = image_size(job.mask), image_size(job.image)
    except DataError:  # said when they are read
        return ""
    if mask == image:
        return ""
    return (
        f"{job.mask}: {mask[0]} x {mask[1]} pixels, but {job.image} has {image[0]} x {image[1]}; "
        "remove the mask to predict it again"
    )


def _annotate(cfg: PredictConfig, jobs: list[Job], info: DatasetInfo, console: Console) -> None:
    """Write the masks of these jobs for the tool that the settings name."""
    assert cfg.annotations
    path = Path(cfg.output) / annotations.PLACES[cfg.annotations]
    predictions = [
        annotations.Prediction(job.image, Path(f"{job.name}{job.image.suffix}"), job.mask)
        for job in jobs
    ]
    kept = annotations.write(cfg.annotations, predictions, info, path, cfg.overwrite)
    console.print(f"annotations of {len(predictions)} images: {path}")
    if kept:
        console.print(
            f"note: {kept} of them kept, as they are not as this command wrote them; "
            "overwrite=true replaces them"
        )
    if info.background and info.classes[0].lower() != BACKGROUND[0]:
        console.print(
            f"note: {info.classes[0]} is left out as background; when the annotations are "
            f'converted, give it its name with "merge={{{BACKGROUND[0]}: {info.classes[0]}}}"'
        )


def _claim_folder(
    cfg: PredictConfig, output: Path, settings: dict[str, Any], jobs: list[Job]
) -> None:
    """Write the settings on which masks depend to output/predict.json, unless they stand there.

    A table of masks of other settings is removed.

    Raises:
        ConfigError: masks there were made with others, or a file was not written by this command.
    """
    record, table = output / SETTINGS, output / areas.NAME
    if record.is_file():
        try:
            recorded = dict(json.loads(record.read_text(encoding="utf-8")))
            different = [k for k in recorded | settings if recorded.get(k) != settings.get(k)]
            if not different:
                return
            keys = ", ".join(different).replace("checkpoint_sha256", "checkpoint")
            problem = f"{record}: the masks there were made with another {keys}"
        except (ValueError, TypeError):
            problem = f"{record}: damaged"
    else:
        files = [path for job in jobs for path in job.outputs.values()]
        files.append(table)
        if cfg.annotations:
            files.append(output / annotations.PLACES[cfg.annotations])
        existing = next((path for path in files if path.exists()), None)
        problem = f"{existing} exists and was not written by this command" if existing else ""
    if problem and not cfg.overwrite:
        raise ConfigError(f"{problem}; choose another output, or overwrite=true")
    table.unlink(missing_ok=True)
    write_json(record, settings)


def _fill(
    table: areas.Areas,
    masks: Iterable[Path],
    predictor: Predictor,
    jobs: list[Job],
    raw: bool,
    console: Console,
) -> None:
    """Add to the table the masks that are there, and those that are predicted now.

    What has no mask of labels is printed, by whichever process.
    """
    for mask in masks:
        try:
            table.add(mask, areas.count(read_labels(mask)))
        except DataError as error:
            print(error, flush=True)
    with progress(console) as bar:
        predicted = _predict(predictor, jobs, raw)
        for job, found in bar.track(predicted, len(jobs), description="images"):
            if isinstance(found, DataError):
                print(found, flush=True)
            else:
                table.add(job.mask, found)


def _predict(
    predictor: Predictor, jobs: list[Job], raw: bool
) -> Iterator[tuple[Job, list[int] | DataError]]:
    """Predict and write images; yield each with its pixels, see `write`, or why it has none."""
    writing, info = deque[tuple[int, Job, Future[list[int]]]](), predictor.info
    above = resident_memory() + SPARE_MEMORY
    with ThreadPoolExecutor() as pool:
        for job, reading in _read_ahead(pool, jobs, info):
            try:
                image = reading.result()
                # A mask of an earlier call, which may have been corrected, is not written again.
                mask = None if "mask" in job.missing else read_labels(job.mask)
            except DataError as error:
                yield job, error
                continue
            del reading  # or it would keep the image while the next one is read
            kept = None
            if mask is None or "probabilities" in job.missing:
                wanted = "probabilities" in job.missing
                predicted, kept = predictor.segment(image, probabilities=wanted)
                mask = predicted if mask is None else mask
                del predicted
            done = pool.submit(write, job, image, mask, kept, info, raw)
            writing.append((mask.size, job, done))
            del image, mask, kept, done
            while _is_full([size for size, *_ in writing]):
                _, written, future = writing.popleft()
                yield written, future.result()
                del future
            return_memory(above)
        for _, written, future in writing:
            yield written, future.result()


def _read_ahead(
    pool: ThreadPoolExecutor, jobs: Iterable[Job], info: DatasetInfo
) -> Iterator[tuple[Job, Future[Tensor]]]:
    """Yield each job with its image, while the next ones are read: one per core, if small."""
    waiting = deque[tuple[int, Job, Future[Tensor]]]()
    for job in jobs:
        pixels = _pixels(job.image)
        while waiting and _is_full([pixels, *(size for size, *_ in waiting)]):
            yield waiting.popleft()[1:]
        waiting.append((pixels, job, pool.submit(read_image, job.image, info)))
    while waiting:
        yield waiting.popleft()[1:]


def _pixels(image: Path) -> int:
    """Return the number of pixels of an image; very many if its header cannot be read."""
    try:
        width, height = image_size(image)
    except DataError:
        return MAX_QUEUED_PIXELS
    return width * height


def _is_full(sizes: Sequence[int]) -> bool:
    """Return True if images of these numbers of pixels are too many to keep in memory."""
    return len(sizes) > usable_cores() + 1 or sum(sizes) > MAX_QUEUED_PIXELS


def write(
    job: Job,
    image: Tensor,
    mask: np.ndarray,
    probabilities: np.ndarray | None,
    info: DatasetInfo,
    raw: bool,
) -> list[int]:
    """Write the outputs of one image that are missing, each of them atomically.

    Returns:
        The number of pixels of each label 0..255.
    """
    origin = origin_of(job.image, job.mask, job.settings).with_labels(mask)
    for kind in sorted(job.missing, key=lambda kind: kind == "mask"):  # last: then all are there
        path = job.outputs[kind]
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            if kind == "mask":
                picture = Image.fromarray(mask) if raw else visualize.palette_image(mask, info)
                if job.georeference is None:
                    picture.save(file, "PNG", pnginfo=origin.as_png())
                else:
                    tags = origin.as_tiff(job.georeference.directory())
                    picture.save(file, "TIFF", compression="tiff_adobe_deflate", tiffinfo=tags)
            elif kind == "overlay":
                picture = Image.new("RGB", mask.shape[::-1])
                rgb = visualize.as_rgb(image)
                for top, strip in visualize.overlay_strips(rgb, mask, info=info):
                    picture.paste(Image.fromarray(strip), (0, top))
                text = origin.as_png(OVERLAY_KEY)
                picture.save(file, "PNG", pnginfo=text, compress_level=1)  # three times as fast
            elif probabilities is not None:
                np.savez_compressed(
                    file,
                    probabilities=probabilities,
                    classes=np.array(info.classes),
                    origin=np.array(origin.as_text()),
                )
    return areas.count(mask)
