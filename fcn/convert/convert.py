"""Convert an annotation tool's export to the folder layout: 8-bit masks and dataset.yaml.

Files are read, values become classes, images get splits, all is checked, and then written.
"""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from yaml import YAMLError, safe_dump, safe_load

from fcn.config import DataConfig, PrepareDataConfig
from fcn.convert import splits
from fcn.convert.export_folder import ExportFolder, Item
from fcn.convert.exports import IGNORE, Export, Reading, colour_names, recognise
from fcn.convert.masks import (
    COLOUR,
    SMOOTHED,
    TRANSPARENT,
    check_palettes,
    nearest,
    rims,
    smoothed_pixels,
)
from fcn.data.dataset import read_list
from fcn.data.files import nfc
from fcn.data.images import image_size, orientation
from fcn.data.layouts import DESCRIPTION, described
from fcn.dataset_info import BACKGROUND, VOID, DatasetInfo, starts_with_background
from fcn.errors import ConfigError, DataError
from fcn.output import percent, progress
from fcn.pictures.visualize import palette_image
from fcn.processes import usable_cores

SHOWN = 20  # values in a message
RENAMED = "names.csv"  # old and new names, beside the converted data, if they differ
FIRST = ("background", "bg", "_background_")  # such a class gets label 0
IGNORED = (IGNORE, "ignored", "__ignore__")  # class names of tools for ignored pixels


@dataclass
class Found:
    """A value in the masks."""

    first: Path  # a mask that holds it
    pixels: int = 0


@dataclass
class Scan:
    """What the masks hold."""

    values: dict[int, Found] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (width, height) of each mask
    rims: Counter[tuple[int, ...]] = field(default_factory=Counter)  # see `masks.rims`
    contacts: Counter[tuple[int, ...]] = field(default_factory=Counter)

    @property
    def pixels(self) -> int:
        return sum(found.pixels for found in self.values.values())


def convert(cfg: PrepareDataConfig, console: Console) -> DataConfig:
    """Convert an export to the folder layout; the export is left as it is.

    Args:
        cfg: the settings; `cfg.convert` is the export's folder, `cfg.to` the new one.
        console: where it says what was understood.

    Returns:
        The settings that read the new data set.

    Raises:
        ConfigError: settings that do not fit the export.
        DataError: the export lacks something; says which setting supplies it.
    """
    root, target = _folders(cfg)
    pattern = splits.check_pattern(cfg.group)
    described_here = described(root)
    data = _with_description(cfg.data, described_here)
    listed = list(described_here.get("classes", []))
    folder = ExportFolder(root, cfg.images, cfg.masks)
    _check_class_files(folder, cfg)
    mapped = bool(cfg.labels or cfg.data.colours)
    export = recognise(folder, Reading(bool(cfg.data.colours), cfg.nearest, mapped))
    _check_images_once(export.items)
    console.print(f"{export.format} in {root}: {len(export.items)} images with masks")
    for note in (*export.notes, *folder.left_out(export.items)):
        console.print(note)

    scan = _scan(export.items, cfg, console)
    names = class_of_values(export, cfg, data, listed, scan)
    classes = _classes(cfg, names, by_name=bool(export.names or cfg.labels or listed))
    info = _info(export, cfg, data, classes)
    labels = {value: classes.index(n) if n in classes else VOID for value, n in names.items()}

    items = _fitted(export.items, scan.sizes, cfg)
    items, list_notes = splits.listed_splits(items, folder.files)
    items, draw_notes = _split(items, pattern, cfg)
    new_names = names_of_files(items)
    _write(items, new_names, labels, info, cfg, console)

    counts = Counter(item.split for item in items)
    for note in (*list_notes, *draw_notes, *_mask_notes(export, scan, cfg.nearest)):
        console.print(note)
    console.print(", ".join(f"{split} {counts[split]} images" for split in sorted(counts)))
    _print_values(scan, labels, info, console)
    if renamed := sum(a != item.image.stem for a, item in zip(new_names, items, strict=True)):
        console.print(f"{renamed} images have new names, listed in {target / RENAMED}")
    console.print(f"converted to {target}: use data=folder data.root={target}")
    return DataConfig(name="folder", layout="folder", root=str(target))


# Read


def _folders(cfg: PrepareDataConfig) -> tuple[Path, Path]:
    """Return the folder of the export and the one to write."""
    if not cfg.convert or not cfg.to:
        raise ConfigError("conversion needs both convert=EXPORT and to=FOLDER, a new folder")
    root, target = Path(cfg.convert), Path(cfg.to)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"to={target}: the folder is not empty; choose a new one")
    for given in (cfg.convert, cfg.images, cfg.masks):
        if given and target.resolve().is_relative_to(Path(given).resolve()):
            raise ConfigError(f"to={target} lies in the export; choose a folder outside it")
    return root, target


def _with_description(data: DataConfig, own: dict[str, Any]) -> DataConfig:
    """Return the settings with what the folder's dataset.yaml or classes.txt adds."""
    missing = {key: value for key, value in own.items() if getattr(data, key) in (None, [])}
    data = replace(data, **missing)
    twice = [n for n, count in Counter(data.classes).items() if count > 1 and n not in IGNORED]
    if twice:
        raise ConfigError(
            f"data.classes={data.classes}: {twice[0]} occurs twice; name it {twice[0]}2 there, and "
            f'to make both one class add "merge={{{twice[0]}2: {twice[0]}}}"'
        )
    return data


def _check_class_files(folder: ExportFolder, cfg: PrepareDataConfig) -> None:
    """Raise a DataError if several classes.txt differ, unless settings name the classes."""
    if cfg.labels or cfg.data.classes:
        return
    paths = folder.named("classes.txt")
    for path in paths:
        if read_list(path) != read_list(paths[0]):
            raise DataError(
                f"{path} and {paths[0]} name classes differently; convert their folders one by "
                "one, or give data.classes=[...]"
            )


def _check_images_once(items: Sequence[Item]) -> None:
    """Raise a DataError if an image has two masks."""
    masks = dict[Path, Path]()
    for item in items:
        if item.image in masks:
            raise DataError(
                f"{item.image} has masks in {masks[item.image]} and in {item.mask}; convert a "
                "copy of the export with one of them"
            )
        masks[item.image] = item.mask


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
        return values.shape, np.unique(values, return_counts=True), rims(values)

    scan = Scan()
    counted = _each(count, items, "reading masks", cfg, console)
    for item, (shape, (values, pixels), (lines, contacts)) in zip(items, counted, strict=True):
        scan.sizes.append((shape[1], shape[0]))
        for value, number in zip(values.tolist(), pixels.tolist(), strict=True):
            scan.values.setdefault(value, Found(item.mask)).pixels += number
        scan.rims.update(lines)
        scan.contacts.update(contacts)
    scan.values = dict(sorted(scan.values.items()))
    return scan


# Classes, and the class of each value


def class_of_values(
    export: Export, cfg: PrepareDataConfig, data: DataConfig, listed: list[str], scan: Scan
) -> dict[int, str]:
    """Return the class of each value, IGNORE where it has none.

    Args:
        export: what was read.
        cfg: the settings.
        data: the settings of the data set, with what dataset.yaml or classes.txt adds.
        listed: the classes in these files.
        scan: the values in the masks.

    Raises:
        ConfigError, DataError: a value without a class, or settings that do not fit.
    """
    found = scan.values
    names = _named_values(export, cfg, data, listed, found)
    names |= {value: IGNORE for value in (-1, VOID) if value not in names}
    if data.ignore_index is not None:
        names[data.ignore_index] = IGNORE
    if TRANSPARENT in found:
        background = (name for name in names.values() if name.lower() in BACKGROUND)
        names.setdefault(TRANSPARENT, next(background, IGNORE))
    if unknown := [value for value in found if value not in names]:
        known = [value for value in found if value in names]
        share = sum(found[value].pixels for value in unknown) / scan.pixels
        smoothed = share <= SMOOTHED and _are_smoothed(export.items, known, unknown, found)
        if not smoothed or not cfg.nearest:
            raise DataError(_without_class(unknown, found, names, data, smoothed, cfg.nearest))
        levels = [value for value in known if value >= 0]
        names |= {value: names[near] for value, near in nearest(unknown, levels).items()}
    merge = _mapping(cfg.merge, "merge", str)
    if wrong := set(merge) - set(names.values()):
        known_names = ", ".join(dict.fromkeys(names.values()))
        raise ConfigError(
            f"merge: the export has no class {min(wrong)}; its classes are {known_names}"
        )
    names = {value: merge.get(name, name) for value, name in names.items()}
    return {value: IGNORE if name in IGNORED else name for value, name in names.items()}


def _named_values(
    export: Export,
    cfg: PrepareDataConfig,
    data: DataConfig,
    listed: list[str],
    found: dict[int, Found],
) -> dict[int, str]:
    """Return the values that have a class: by labels, by colours, by the export, or by number."""
    export.check(found)
    if cfg.labels:
        names = _mapping(cfg.labels, "labels", int)
        rest = {} if cfg.nearest else {v: IGNORE for v in found if v not in names}
        return names | {value: name for value, name in rest.items() if value != TRANSPARENT}
    if cfg.data.colours:
        if len(cfg.data.colours) != len(data.classes):
            raise ConfigError(
                f"data.colours has {len(cfg.data.colours)} colours, but there are "
                f"{len(data.classes)} classes: data.classes={data.classes}"
            )
        return colour_names([*zip(data.classes, cfg.data.colours, strict=True)])
    if export.names:
        return dict(export.names)
    check_palettes(item.mask for item in export.items)
    return _named_by_number(replace(data, classes=listed or data.classes), found)


def _named_by_number(data: DataConfig, found: dict[int, Found]) -> dict[int, str]:
    """Return the class of each label of masks that come with no more than a list of classes."""
    classes, erased = data.classes, TRANSPARENT in found
    found = {value: entry for value, entry in found.items() if value != TRANSPARENT}
    if erased and len(classes) == 2 and len(found) == 1:  # paint on nothing
        return {TRANSPARENT: classes[0], min(found): classes[1]}
    most = sorted(found, key=lambda value: -found[value].pixels)
    named = classes if len(classes) > 1 else ["background", *(classes or ["..."])]
    given = f"data.classes=[{','.join(named)}]"
    if max(found, default=0) >= COLOUR:
        main = [COLOUR, *most] if erased and COLOUR not in found else most
        main = main[: len(classes) if len(classes) > 1 else SHOWN]
        raise DataError(
            f"{found[max(found)].first}: the colours of the masks are {_shares(most, found)}; list "
            f"them in the order of the classes: {given} "
            f"data.colours=[{','.join(map(shown, main))}]"
        )
    if len(classes) < 2:
        raise DataError(
            f"{found[max(found)].first}: the labels in the masks are {_shares(found, found)}; name "
            f'their classes: {given}, or "labels={{7: road, 11: building}}"'
        )
    ignored = data.ignore_index
    if ignored is None and len(classes) == 2 and (two := _two_values(found)):
        return dict(zip(two, classes, strict=True))  # such as 0 and 255
    labels = found.keys() - {VOID, ignored}
    if ignored is None and labels and min(labels) > 0 and max(labels) == len(classes):
        ignored = 0  # labels 1..K
    elif ignored is not None and ignored < len(classes) and len(classes) not in labels:
        if classes[ignored].lower() not in (*BACKGROUND, *IGNORED):
            raise DataError(
                f"data.ignore_index={ignored}: does {classes[ignored]} name it? give "
                + _map({}, labels)
            )
        return dict(enumerate(classes))  # one of which is the ignored label
    numbers = (n for n in range(len(classes) + 1) if n != ignored)
    return dict(zip(numbers, classes, strict=False))


def _two_values(found: dict[int, Found]) -> tuple[int, int] | None:
    """Return the two values of masks of two classes, between which others may be smoothed."""
    if found.keys() <= {0, last := max(found, default=0)}:
        return 0, last or 1
    if found.keys() <= {0, 1, VOID}:
        return None
    most = sorted(found, key=lambda value: -found[value].pixels)[:2]
    total = sum(entry.pixels for entry in found.values())
    rest = 1 - sum(found[value].pixels for value in most) / total
    if len(found) > 2 and rest <= SMOOTHED and max(found) > 2 and min(most) == 0:
        return 0, max(most)
    return None


def _are_smoothed(
    items: Sequence[Item], known: Sequence[int], unknown: Sequence[int], found: dict[int, Found]
) -> bool:
    """Return whether nearly all pixels of unknown values lie between two known ones."""
    if len(known) < 2:
        return False
    total = sum(found[value].pixels for value in unknown)
    return sum(smoothed_pixels(item.read(), known) for item in items) >= 0.8 * total


def _without_class(
    unknown: list[int],
    found: dict[int, Found],
    names: dict[int, str],
    data: DataConfig,
    smoothed: bool,
    take_nearest: bool,
) -> str:
    """Return what to do about values without a class."""
    value = unknown[0]
    hint = f"name all with {_map(names, found)}"
    if value < VOID:
        hint += f", or set data.ignore_index={value}"
    if smoothed:
        hint = "they smooth the boundaries between others: nearest=true takes the nearest class"
    elif value >= COLOUR:
        hint = "add them to data.colours and data.classes, where the name ignore leaves them out"
    elif value == len(data.classes) and 0 in found:
        hint = f"if 0 is unlabelled, set data.ignore_index=0, or else data.ignore_index={value}"
    if take_nearest and not smoothed:
        hint = f"nearest=true is for smoothed boundaries, but these lie elsewhere; {hint}"
    return f"{found[value].first}: {_shares(unknown, found)} of the masks has no class; {hint}"


def _map(names: dict[int, str], values: Iterable[int]) -> str:
    """Return the setting that names some values, for people to complete."""
    rows = (f"{value}: {names.get(value, 'NAME')}" for value in sorted(values)[:SHOWN])
    return f'"labels={{{", ".join(rows)}}}"'


def _mapping(given: Any, key: str, kind: Callable[[Any], Any]) -> dict[Any, str]:
    """Return a setting that is a mapping, or the name of a YAML file of one; null is IGNORE."""
    try:
        content = safe_load(Path(given).read_text("utf-8")) if isinstance(given, str) else given
        return {kind(k): IGNORE if v is None else str(v) for k, v in (content or {}).items()}
    except (AttributeError, ValueError, YAMLError):
        rule = "{7: road, 11: building}" if kind is int else "{truck: car, sky: null}"
        raise ConfigError(f"{key}={given}: must be like {rule}, or a YAML file of it") from None


def _classes(cfg: PrepareDataConfig, names: dict[int, str], *, by_name: bool) -> list[str]:
    """Return the classes in the order of their labels; data.classes may choose some by name."""
    classes = [name for name in dict.fromkeys(names.values()) if name != IGNORE]
    chosen = cfg.data.classes
    if chosen and not cfg.data.colours and by_name:
        if wrong := [name for name in chosen if name not in classes]:
            raise ConfigError(
                f"data.classes chooses of {', '.join(classes)}; there is no {wrong[0]}: rename "
                'with "merge={OLD: NEW}"'
            )
        classes = list(chosen)
    elif not chosen:
        classes.sort(key=lambda name: name.lower() not in FIRST)  # keeps the order of the others
    if not 2 <= len(classes) <= VOID:
        raise DataError(f"{cfg.convert}: {len(classes)} classes; training needs 2 to {VOID}")
    return classes


def _info(
    export: Export, cfg: PrepareDataConfig, data: DataConfig, classes: list[str]
) -> DatasetInfo:
    """Return what dataset.yaml is to say."""
    merge, colours = _mapping(cfg.merge, "merge", str), dict[str, list[int]]()
    for name, rgb in (*zip(data.classes, data.colours, strict=False), *export.colours.items()):
        colours.setdefault(merge.get(name, name), list(rgb))
    known = set(classes) <= set(colours)
    background = data.background
    return DatasetInfo(
        classes,
        [colours[name] for name in classes] if known else [],
        background=starts_with_background(classes) if background is None else background,
        value_range=data.value_range,
        bands=data.bands,
    )


# Splits


def _split(
    items: Sequence[Item], pattern: Any, cfg: PrepareDataConfig
) -> tuple[list[Item], list[str]]:
    """Return the items with a split each, and notes; val is drawn if there is none."""
    groups = [splits.group_of(item, pattern, Path(str(cfg.convert))) for item in items]
    alone = sum(group == str(item.image) for group, item in zip(groups, items, strict=True))
    if cfg.group and alone == len(items):
        raise ConfigError(f"group={cfg.group}: is in no image's name, such as {items[0].image}")
    result, pool = splits.draw(items, groups, cfg.val_share, cfg.seed)
    notes = []
    if pool:
        by = f"by group={cfg.group}" if cfg.group else "by names before .rf."
        if alone == len(items):
            by = "each image alone; group=REGEX keeps those of one film or scene on one side"
        elif alone:
            by += f", {alone} images alone"
        notes.append(
            f"no validation split: drawn {splits.draw_note(result, groups, pool)} ({by}; "
            f"val_share={cfg.val_share}, seed={cfg.seed})"
        )
    if shared := splits.shared_groups(result, groups):
        notes.append(
            f"train and val share {len(shared)} groups, such as {shared[0]}: if these are versions "
            "of one picture, the validation is too good"
        )
    return result, notes


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


def shown(value: int) -> str:
    """Return a value as people write it: 7, or [128,64,128]."""
    if value < COLOUR:
        return "transparent" if value == TRANSPARENT else str(value)
    return f"[{value >> 16 & 255},{value >> 8 & 255},{value & 255}]"


def _shares(values: Iterable[int], found: dict[int, Found]) -> str:
    """Return values with their share of the pixels."""
    total, values = sum(entry.pixels for entry in found.values()), list(values)
    texts = [f"{shown(v)} ({percent(found[v].pixels / total)} %)" for v in values[:SHOWN]]
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(texts) + more


def _mask_notes(export: Export, scan: Scan, take_nearest: bool) -> list[str]:
    """Return notes on masks that overlap and on labels that smoothing may have made."""
    notes = []
    if pixels := sum(export.overlaps.values()):
        images = sum(map(bool, export.overlaps.values()))
        notes.append(
            f"{pixels} pixels of {images} images are in several masks; the later class counts"
        )
    for (low, label, high), pixels in scan.rims.items():
        if not take_nearest and pixels >= max(SHOWN, contacts := scan.contacts[low, high]):
            notes.append(
                f"{pixels} pixels of {label} are a thin line between {low} and {high}, which touch "
                f"in {contacts} places: if the masks were resized with smoothing, these are wrong; "
                "export them again"
            )
    return notes


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
