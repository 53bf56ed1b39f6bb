"""Convert an annotation tool's export to the folder layout: 8-bit masks and dataset.yaml.

Masks are read, their values become classes, images get splits, sizes are checked, and only then
anything is written.
"""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from yaml import safe_dump

from fcn.config import DataConfig, PrepareDataConfig
from fcn.convert import splits
from fcn.convert.annotation_folder import AnnotationFolder, Item
from fcn.convert.annotation_set import AnnotationSet
from fcn.convert.classes import (
    SHOWN,
    Scan,
    check_mappings,
    class_of_values,
    dataset_info,
    shown,
)
from fcn.convert.formats import recognise
from fcn.convert.formats.plain import class_settings
from fcn.convert.unpack import is_table, unpack_table, unpack_zip
from fcn.data.description import DESCRIPTION
from fcn.data.files import nfc
from fcn.data.groups import check_pattern
from fcn.data.images import image_size, orientation
from fcn.dataset_info import VOID, DatasetInfo
from fcn.errors import ConfigError, DataError
from fcn.output import percent, progress
from fcn.pictures.visualize import palette_image
from fcn.processes import usable_cores

RENAMED = "names.csv"  # old and new names, beside the converted data, if they differ


def convert(cfg: PrepareDataConfig, console: Console) -> DataConfig:
    """Convert an export to the folder layout; the export is left as it is.

    Args:
        cfg: the settings; `cfg.convert` is the export, `cfg.to` the new folder.
        console: where it says what was understood.

    Returns:
        The settings that read the new data set.

    Raises:
        ConfigError: settings that do not fit the export.
        DataError: the export lacks something; says which setting supplies it.
    """
    target = _check_target(cfg)
    with TemporaryDirectory(prefix="fcn_") as name:
        scratch, root, images, masks = Path(name), Path(str(cfg.convert)), cfg.images, cfg.masks
        if root.suffix.lower() == ".zip" and root.is_file():
            root = unpack_zip(root, scratch)
        elif is_table(str(cfg.convert)):
            root = unpack_table(str(cfg.convert), scratch, images, masks)
            images = masks = None
        _convert(AnnotationFolder(root, scratch, images, masks), check_mappings(cfg), console)
    console.print(f"converted to {target}: use data=folder data.root={target}")
    return DataConfig(name="folder", layout="folder", root=str(target))


def _check_target(cfg: PrepareDataConfig) -> Path:
    """Return the folder to write, which is new and lies outside the export."""
    if not cfg.convert or not cfg.to:
        raise ConfigError("conversion needs both convert=EXPORT and to=FOLDER, a new folder")
    target = Path(cfg.to)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"to={target}: the folder is not empty; choose a new one")
    for given in (cfg.convert, cfg.images, cfg.masks):
        if given and target.resolve().is_relative_to(Path(given).resolve()):
            raise ConfigError(f"to={target} lies in the export; choose a folder outside it")
    return target


def _convert(folder: AnnotationFolder, cfg: PrepareDataConfig, console: Console) -> None:
    """Convert the export in a folder: read masks, name and check what they hold, write."""
    pattern = check_pattern(cfg.group)
    annotations, own = recognise(folder, cfg), class_settings(folder, cfg)
    annotations.classes = own.pop("classes", [])
    annotations.colours |= dict(zip(annotations.classes, own.pop("colours", []), strict=False))
    if annotations.numbered_here:
        own.pop("ignore_index", None)
    missing = {key: value for key, value in own.items() if getattr(cfg.data, key) in (None, [])}
    cfg = replace(cfg, data=replace(cfg.data, **missing))
    folder.check_images_once(annotations.items)
    console.print(
        f"{annotations.format} in {cfg.convert}: {len(annotations.items)} images with masks"
    )
    left_out = folder.left_out(annotations.items, annotations.format)
    items, list_notes = splits.listed_splits(annotations, folder.files)
    for note in (*annotations.notes, *left_out, *list_notes):
        console.print(note)

    annotations.items = items
    scan = _scan(items, cfg, console)
    names = class_of_values(annotations, cfg, scan)
    info = dataset_info(annotations, cfg, scan, names)
    classes = info.classes
    labels = {value: classes.index(n) if n in classes else VOID for value, n in names.items()}

    items, draw_notes = splits.split_items(items, pattern, folder, cfg)
    items = _fitted(items, scan.sizes, cfg)
    unpacked = (item.image for item in items if item.image.is_relative_to(folder.scratch))
    if cfg.link and (image := next(unpacked, None)):
        raise ConfigError(f"link=true: {image.name} is in no folder of yours; use link=false")
    new_names = names_of_files(items)
    _write(items, new_names, labels, info, cfg, console)

    for note in (*draw_notes, *_overlap_note(annotations, scan)):
        console.print(note)
    counts = Counter(item.split for item in items)
    console.print(", ".join(f"{split} {counts[split]} images" for split in sorted(counts)))
    _print_values(scan, labels, info, console)
    if renamed := sum(a != item.image.stem for a, item in zip(new_names, items, strict=True)):
        console.print(f"{renamed} images have new names, listed in {Path(str(cfg.to), RENAMED)}")


def _each(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    title: str,
    cfg: PrepareDataConfig,
    console: Console,
) -> list[Any]:
    """Call a function for each item in threads, with a progress bar."""
    with progress(console) as bar, ThreadPoolExecutor(cfg.processes or usable_cores()) as pool:
        return list(bar.track(pool.map(function, items), len(items), description=title))


def _scan(items: Sequence[Item], cfg: PrepareDataConfig, console: Console) -> Scan:
    """Read all masks once."""

    def count(item: Item) -> tuple[Any, ...]:
        values = item.read()
        return values.shape, np.unique(values, return_counts=True)

    first, pixels, sizes = dict[int, Path](), Counter[int](), []
    counted = _each(count, items, "reading masks", cfg, console)
    for item, (shape, (values, counts)) in zip(items, counted, strict=True):
        sizes.append((shape[1], shape[0]))
        for value, number in zip(values.tolist(), counts.tolist(), strict=True):
            first.setdefault(value, item.mask)
            pixels[value] += number
    return Scan(Counter(dict(sorted(pixels.items()))), first, sizes)


def _fitted(
    items: Sequence[Item], sizes: Sequence[tuple[int, int]], cfg: PrepareDataConfig
) -> list[Item]:
    """Return the items with masks of their images' size.

    Raises:
        DataError: a mask has another size, unless cfg.resize allows to resize it; or another shape.
    """
    result, wrong = [], list[str]()
    for item, (width, height) in zip(items, sizes, strict=True):
        upright = image_size(item.image)
        stored = upright[::-1] if orientation(item.image) >= 5 else upright
        if (width, height) not in (upright, stored):
            wrong.append(
                f"{item.mask}: the mask is {width} x {height}, but its image {item.image} "
                f"{upright[0]} x {upright[1]}"
            )
            fits = [s for s in (upright, stored) if abs(width - height * s[0] / s[1]) <= 1.5]
            if not fits:
                raise DataError(
                    f"{wrong[-1]}: of other proportions, so it shows another area; export it again"
                )
            item = replace(item, read=partial(_resized, item, fits[0]))
        result.append(item)
    if wrong and not cfg.resize:
        raise DataError(
            f"{wrong[0]} ({len(wrong)} of {len(items)} masks have another size than their image); "
            "resize=true resizes them"
        )
    return result


def _resized(item: Item, size: tuple[int, int]) -> np.ndarray:
    """Read a mask and take the nearest pixel for each one of its image."""
    values = item.read()
    rows, columns = (
        (np.arange(new) * 2 + 1) * old // (2 * new)
        for new, old in zip(size[::-1], values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def names_of_files(items: Sequence[Item]) -> list[str]:
    """Return a new name for each item: that of its image, unless another one is called the same.

    Names that differ only in case, or in how they are composed, are the same to some systems. An
    image with a namesake is named with its folders, and by a number if that name is taken too.
    """
    keys = [(item.split, nfc(item.image.stem).casefold()) for item in items]
    counts, names = Counter(keys), list[str]()
    taken = {key for key in keys if counts[key] == 1}
    for item, key in zip(items, keys, strict=True):
        name, number = nfc(item.image.stem), 1
        if counts[key] > 1:
            name = item.name
            while (item.split, name.casefold()) in taken:
                number += 1
                name = f"{item.name}_{number}"
            taken.add((item.split, name.casefold()))
        names.append(name)
    return names


def _write(
    items: Sequence[Item],
    names: Sequence[str],
    labels: dict[int, int],
    info: DatasetInfo,
    cfg: PrepareDataConfig,
    console: Console,
) -> None:
    """Write the new folder next to its place, and move it there once it is complete."""
    target, values = Path(str(cfg.to)).resolve(), np.array(sorted(labels))
    table = np.array([labels[value] for value in values.tolist()], np.uint8)
    content = {key: value for key, value in asdict(info).items() if value not in (None, [])}
    text = safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
    pairs = list(zip(items, names, strict=True))
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        folder = Path(scratch, "new")

        def write(pair: tuple[Item, str]) -> None:
            item, name = pair
            mask = table[np.searchsorted(values, item.read())]
            with open(folder / "annotations" / item.split / f"{name}.png", "xb") as stream:
                palette_image(mask, info).save(stream, "PNG")
            image = folder / "images" / item.split / f"{name}{item.image.suffix}"
            (_link if cfg.link else _copy)(item.image.resolve(), image)

        for split, part in product({item.split for item in items}, ("images", "annotations")):
            (folder / part / split).mkdir(parents=True)
        _each(write, pairs, "writing", cfg, console)
        (folder / DESCRIPTION).write_text(f"# Converted from {cfg.convert}\n{text}", "utf-8")
        if any(name != item.image.stem for item, name in pairs):
            with open(folder / RENAMED, "x", encoding="utf-8", newline="") as stream:
                rows = [[item.split, name, item.image, item.mask] for item, name in pairs]
                csv.writer(stream).writerows([["split", "name", "image", "mask"], *rows])
        if target.exists():
            target.rmdir()  # it is empty
        folder.rename(target)


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as old, open(target, "xb") as new:
        shutil.copyfileobj(old, new)


def _link(source: Path, target: Path) -> None:
    """Make a hard link, a symbolic one where that fails; neither replaces a file."""
    try:
        os.link(source, target)
    except OSError:
        try:
            target.symlink_to(source)
        except OSError as error:
            raise DataError(f"{source}: cannot be linked ({error}); use link=false") from None


def _overlap_note(annotations: AnnotationSet, scan: Scan) -> list[str]:
    """Return a note on pixels that several classes cover, if there are any."""
    if not (pixels := sum(annotations.overlaps.values())):
        return []
    images = sum(map(bool, annotations.overlaps.values()))
    return [
        f"{pixels} pixels ({percent(pixels / scan.pixels.total())} %) of {images} images lie "
        "under shapes of several classes; the one drawn last counts"
    ]


def _print_values(scan: Scan, labels: dict[int, int], info: DatasetInfo, console: Console) -> None:
    """Print what each value of the masks has become; of many, those that have most pixels."""
    table = Table("in the masks", "label", "class", Column("pixels (%)", justify="right"), box=None)
    for value, pixels in sorted(scan.pixels.most_common(SHOWN)):
        label = labels[value]
        name = "(ignored)" if label == VOID else info.classes[label]
        share = percent(pixels / scan.pixels.total())
        table.add_row(shown(value), str(label), name, share)
    console.print(table)
    if (more := len(scan.pixels) - SHOWN) > 0:
        console.print(f"and {more} values of fewer pixels")
    seen = {labels[value] for value in scan.pixels}
    if absent := [name for label, name in enumerate(info.classes) if label not in seen]:
        console.print(f"in no mask: {', '.join(absent)}")
