"""Convert an annotation tool's export to the folder layout: 8-bit masks and dataset.yaml.

Masks are read, their values become classes, images get splits, sizes are checked, and only then
anything is written.
"""

import csv
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from yaml import safe_dump

from fcn.config import DataConfig, PrepareDataConfig
from fcn.convert import splits
from fcn.convert.classes import (
    SHOWN,
    Found,
    Scan,
    choose_classes,
    class_of_values,
    dataset_info,
    mapping,
    shown,
    with_description,
)
from fcn.convert.export import Export, Reading
from fcn.convert.export_folder import ExportFolder, Item
from fcn.convert.formats import recognise
from fcn.convert.unpack import is_table, unpack_table, unpack_zip
from fcn.data.dataset import read_list
from fcn.data.description import DESCRIPTION, read_description
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
    target = _checked_target(cfg)
    with TemporaryDirectory(prefix="fcn_") as scratch:
        root, images, masks = Path(str(cfg.convert)), cfg.images, cfg.masks
        if root.suffix.lower() == ".zip" and root.is_file():
            root = unpack_zip(root, Path(scratch))
        elif is_table(str(cfg.convert)):
            root = unpack_table(str(cfg.convert), Path(scratch), images, masks)
            images = masks = None
        folder = ExportFolder(root, images, masks)
        _convert(folder, cfg, Path(scratch), console)
    console.print(f"converted to {target}: use data=folder data.root={target}")
    return DataConfig(name="folder", layout="folder", root=str(target))


def _convert(folder: ExportFolder, cfg: PrepareDataConfig, scratch: Path, console: Console) -> None:
    """Convert the export in a folder: read masks, name and check what they hold, write."""
    pattern, description = check_pattern(cfg.group), _description(folder, cfg)
    data, listed = with_description(cfg.data, description), description.get("classes", [])
    reading = Reading(
        scratch,
        colours=bool(cfg.data.colours),
        nearest=cfg.nearest,
        mapped=bool(cfg.labels or cfg.data.colours),
        lossless=not {*mapping(cfg.labels, "labels", int)} <= {0, 255},
        line_width=cfg.line_width,
        classes=data.classes,
    )
    export = recognise(folder, reading)
    folder.check_images_once(export.items)
    console.print(f"{export.format} in {cfg.convert}: {len(export.items)} images with masks")
    notes = [*export.notes, *folder.left_out(export.items)]
    export.items, list_notes = splits.listed_splits(export.items, folder.files)
    for note in (*notes, *list_notes):
        console.print(note)

    scan = _scan(export.items, cfg, console)
    names = class_of_values(export, cfg, data, listed, scan)
    classes = choose_classes(cfg, names, by_name=bool(export.names or cfg.labels or listed))
    info = dataset_info(export, cfg, data, classes)
    labels = {value: classes.index(n) if n in classes else VOID for value, n in names.items()}

    items, draw_notes = splits.split_items(export.items, pattern, folder.root, cfg)
    items = _fitted(items, scan.sizes, cfg)
    if cfg.link and (inside := [i.image for i in items if i.image.is_relative_to(scratch)]):
        raise ConfigError(f"link=true: {inside[0].name} is in no folder of yours; use link=false")
    new_names = names_of_files(items)
    _write(items, new_names, labels, info, cfg, console)

    counts = Counter(item.split for item in items)
    for note in (*draw_notes, *_overlap_note(export, scan)):
        console.print(note)
    console.print(", ".join(f"{split} {counts[split]} images" for split in sorted(counts)))
    _print_values(scan, labels, info, console)
    if renamed := sum(a != item.image.stem for a, item in zip(new_names, items, strict=True)):
        console.print(f"{renamed} images have new names, listed in {Path(str(cfg.to), RENAMED)}")


# Read


def _checked_target(cfg: PrepareDataConfig) -> Path:
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


def _description(folder: ExportFolder, cfg: PrepareDataConfig) -> dict[str, Any]:
    """Return what dataset.yaml or classes.txt says of masks; YOLO's dataset.yaml is another one.

    Raises:
        DataError: several classes.txt differ, and no setting names the classes.
    """
    lists = folder.named("classes.txt")
    other = next((path for path in lists if read_list(path) != read_list(lists[0])), None)
    if other and not cfg.labels and not cfg.data.classes:
        raise DataError(
            f"{other} and {lists[0]} name classes differently; convert their folders one by one, "
            "or give data.classes=[...]"
        )
    path = folder.root / DESCRIPTION
    is_yolo = path.is_file() and re.search("^names:", path.read_text("utf-8", "replace"), re.M)
    return {} if is_yolo else read_description(folder.root)


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

    scan = Scan()
    counted = _each(count, items, "reading masks", cfg, console)
    for item, (shape, (values, pixels)) in zip(items, counted, strict=True):
        scan.sizes.append((shape[1], shape[0]))
        for value, number in zip(values.tolist(), pixels.tolist(), strict=True):
            scan.values.setdefault(value, Found(item.mask)).pixels += number
    scan.values = dict(sorted(scan.values.items()))
    return scan


# Check


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
        name = nfc(item.image.stem)
        if counts[key] > 1:
            name, number = item.name, 1
            while (item.split, name.casefold()) in taken:
                number += 1
                name = f"{item.name}_{number}"
            taken.add((item.split, name.casefold()))
        names.append(name)
    return names


# Write


def _write(
    items: Sequence[Item],
    names: Sequence[str],
    labels: dict[int, int],
    info: DatasetInfo,
    cfg: PrepareDataConfig,
    console: Console,
) -> None:
    """Write the new folder next to its place, and move it there once it is complete."""
    target = Path(str(cfg.to)).resolve()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    values = np.array(sorted(labels))
    table = np.array([labels[value] for value in values.tolist()], np.uint8)

    def write(pair: tuple[Item, str]) -> None:
        item, name = pair
        mask = table[np.searchsorted(values, item.read())]
        with open(part / "annotations" / item.split / f"{name}.png", "xb") as stream:
            palette_image(mask, info).save(stream, "PNG")
        image = part / "images" / item.split / f"{name}{item.image.suffix}"
        (_link if cfg.link else _copy)(item.image.resolve(), image)

    part.mkdir(parents=True)
    try:
        for split in {item.split for item in items}:
            (part / "images" / split).mkdir(parents=True)
            (part / "annotations" / split).mkdir(parents=True)
        _each(write, list(zip(items, names, strict=True)), "writing", cfg, console)
        _write_names(items, names, part / RENAMED)
        content = {key: value for key, value in asdict(info).items() if value not in (None, [])}
        text = safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
        head = f"# Converted from {cfg.convert}\n"
        (part / DESCRIPTION).write_text(head + text, encoding="utf-8")
        if target.exists():
            target.rmdir()  # it is empty
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_names(items: Sequence[Item], names: Sequence[str], path: Path) -> None:
    """Write a table of new names and old files, if there are new names."""
    if all(name == item.image.stem for name, item in zip(names, items, strict=True)):
        return
    with open(path, "x", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["split", "name", "image", "mask"])
        for item, name in zip(items, names, strict=True):
            table.writerow([item.split, name, item.image, item.mask])


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


# Report


def _overlap_note(export: Export, scan: Scan) -> list[str]:
    """Return a note on pixels that several classes cover, if there are any."""
    if not (pixels := sum(export.overlaps.values())):
        return []
    images = sum(map(bool, export.overlaps.values()))
    return [
        f"{pixels} pixels ({percent(pixels / scan.pixels)} %) of {images} images have several "
        "classes; the one drawn last counts"
    ]


def _print_values(scan: Scan, labels: dict[int, int], info: DatasetInfo, console: Console) -> None:
    """Print what each value of the masks has become; of many, those that have most pixels."""
    table = Table("in the masks", "label", "class", Column("pixels (%)", justify="right"), box=None)
    most = sorted(scan.values, key=lambda value: -scan.values[value].pixels)[:SHOWN]
    for value, entry in scan.values.items():
        label = labels[value]
        if value not in most:
            continue
        name = "(ignored)" if label == VOID else info.classes[label]
        table.add_row(shown(value), str(label), name, percent(entry.pixels / scan.pixels))
    console.print(table)
    if more := len(scan.values) - len(most):
        console.print(f"and {more} values of fewer pixels")
    absent = [n for k, n in enumerate(info.classes) if k not in {labels[v] for v in scan.values}]
    if absent:
        console.print(f"in no mask: {', '.join(absent)}")
