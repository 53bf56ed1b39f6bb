"""Convert an annotation tool's export to the folder layout: 8-bit masks and dataset.yaml."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from yaml import YAMLError, safe_dump, safe_load

from fcn.config import DataConfig, PrepareDataConfig
from fcn.convert.exports import (
    COLOUR,
    IGNORE,
    Export,
    Item,
    Tree,
    check_palettes,
    colour_names,
    recognise,
)
from fcn.data.images import file_errors
from fcn.data.layouts import DESCRIPTION, described
from fcn.dataset_info import BACKGROUND, VOID, DatasetInfo, starts_with_background
from fcn.errors import ConfigError, DataError
from fcn.output import percent, progress
from fcn.pictures.visualize import palette_image
from fcn.processes import usable_cores

SHOWN = 20  # values in a message
FIRST = ("background", "bg", "_background_")  # such a class gets label 0
IGNORED = (IGNORE, "ignored", "__ignore__")  # class names of tools for ignored pixels


@dataclass
class Found:
    """A value in the masks."""

    first: Path  # a mask that holds it
    pixels: int = 0


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
    images, masks = (Path(folder) if folder else None for folder in (cfg.images, cfg.masks))
    tree = Tree(root, images, masks, bool(cfg.data.colours))
    export = recognise(tree)
    data = _completed(cfg.data, root)
    found = _scan(export.items, cfg, console)
    names = _names(export, cfg, data, found)
    classes = _classes(export, cfg, names)
    info = _info(export, cfg, data, classes)
    items = _split(export.items, cfg, console)
    labels = {value: classes.index(n) if n in classes else VOID for value, n in names.items()}
    _write(items, labels, info, cfg, console)
    splits = Counter(item.split for item in items)
    counts = ", ".join(f"{split} {splits[split]}" for split in sorted(splits))
    export.notes.insert(0, f"{export.format} in {root}: {len(items)} images ({counts})")
    if left := sorted(set(tree.photos) - {item.image for item in items}):
        export.notes.append(f"{len(left)} images without a mask are left out, such as {left[0]}")
    for note in export.notes:
        console.print(note)
    _print_values(found, labels, info, console)
    console.print(f"converted to {target}: use data=folder data.root={target}")
    return DataConfig(name="folder", layout="folder", root=str(target))


def _folders(cfg: PrepareDataConfig) -> tuple[Path, Path]:
    """Return the folder of the export and the one to write."""
    if not cfg.convert or not cfg.to:
        raise ConfigError("conversion needs both convert=EXPORT and to=FOLDER, a new folder")
    root, target = Path(cfg.convert), Path(cfg.to)
    if target.exists() and any(target.iterdir()):
        raise DataError(f"to={target}: the folder is not empty; choose a new one")
    if target.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"to={target} lies in the export; choose a folder outside it")
    return root, target


def _completed(data: DataConfig, root: Path) -> DataConfig:
    """Return the settings with what the folder's dataset.yaml or classes.txt adds."""
    own = described(root).items()
    return replace(data, **{key: value for key, value in own if getattr(data, key) in (None, [])})


def _each(
    function: Callable[[Item], Any],
    items: Sequence[Item],
    title: str,
    cfg: PrepareDataConfig,
    console: Console,
) -> list[Any]:
    """Call a function for each item in threads, with a progress bar."""
    with progress(console) as bar, ThreadPoolExecutor(cfg.processes or usable_cores()) as pool:
        return list(bar.track(pool.map(function, items), len(items), description=title))


def _scan(items: Sequence[Item], cfg: PrepareDataConfig, console: Console) -> dict[int, Found]:
    """Read all masks once; return the values in them."""

    def count(item: Item) -> tuple[np.ndarray, np.ndarray]:
        with file_errors(item.mask, "mask"):
            return np.unique(item.read(), return_counts=True)

    found: dict[int, Found] = {}
    counted = _each(count, items, "reading masks", cfg, console)
    for item, (values, pixels) in zip(items, counted, strict=True):
        for value, number in zip(values.tolist(), pixels.tolist(), strict=True):
            found.setdefault(value, Found(item.mask)).pixels += number
    return dict(sorted(found.items()))


def _names(
    export: Export, cfg: PrepareDataConfig, data: DataConfig, found: dict[int, Found]
) -> dict[int, str]:
    """Return the class of each value, IGNORE where it has none.

    Raises:
        ConfigError, DataError: a value without a class, or settings that do not fit.
    """
    names = dict(export.names)
    if cfg.labels:
        names = _mapping(cfg.labels, "labels", int)
        names |= {value: IGNORE for value in found if value not in names}
    elif cfg.data.colours:
        if len(cfg.data.colours) != len(data.classes):
            raise ConfigError(
                f"data.colours has {len(cfg.data.colours)} colours, but there are "
                f"{len(data.classes)} classes: data.classes={data.classes}"
            )
        names = colour_names([*zip(data.classes, cfg.data.colours, strict=True)])
    elif not names:
        check_palettes(item.mask for item in export.items)
        names = _by_number(data, found)
    names |= {value: IGNORE for value in (-1, VOID) if value not in names}
    if data.ignore_index is not None:
        names[data.ignore_index] = IGNORE
    if unknown := [value for value in found if value not in names]:
        raise DataError(_without_class(unknown, found, names, data))
    merge = _mapping(cfg.merge, "merge", str)
    if wrong := set(merge) - set(names.values()):
        known = ", ".join(dict.fromkeys(names.values()))
        raise ConfigError(f"merge: the export has no class {min(wrong)}; its classes are {known}")
    names = {value: merge.get(name, name) for value, name in names.items()}
    return {value: IGNORE if name in IGNORED else name for value, name in names.items()}


def _by_number(data: DataConfig, found: dict[int, Found]) -> dict[int, str]:
    """Return the class of each label of masks that come with no more than a list of classes."""
    classes, most = data.classes, sorted(found, key=lambda value: -found[value].pixels)
    named = classes if len(classes) > 1 else ["background", *(classes or ["..."])]
    given = f"data.classes=[{','.join(named)}]"
    if max(found) >= COLOUR:
        colours = ",".join(map(shown, most[:SHOWN]))
        raise DataError(
            f"{found[max(found)].first}: the colours of the masks are {_shares(most, found)}; list "
            f"them in the order of the classes: {given} data.colours=[{colours}]"
        )
    if len(classes) < 2:
        raise DataError(
            f"{found[max(found)].first}: the labels in the masks are {_shares(found, found)}; name "
            f'their classes: {given}, or "labels={{7: road, 11: building}}"'
        )
    last, ignored = max(found), data.ignore_index
    labels = found.keys() - {VOID, ignored}
    if ignored is None and len(classes) == 2 and found.keys() <= {0, last}:
        return {0: classes[0], last or 1: classes[1]}  # such as 0 and 255
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


def _without_class(
    unknown: list[int], found: dict[int, Found], names: dict[int, str], data: DataConfig
) -> str:
    """Return what to do about values without a class."""
    value = unknown[0]
    hint = f"name all with {_map(names, found)}, or set data.ignore_index={value}"
    if value >= COLOUR:
        hint = "add them to data.colours and data.classes, where the name ignore leaves them out"
    elif value == len(data.classes) and 0 in found:
        hint = f"if 0 is unlabelled, set data.ignore_index=0, or else data.ignore_index={value}"
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


def _classes(export: Export, cfg: PrepareDataConfig, names: dict[int, str]) -> list[str]:
    """Return the classes in the order of their labels."""
    classes = [name for name in dict.fromkeys(names.values()) if name != IGNORE]
    chosen = cfg.data.classes
    if chosen and not cfg.data.colours and (export.names or cfg.labels):
        if wrong := [name for name in chosen if name not in classes]:
            raise ConfigError(
                f"data.classes chooses of {', '.join(classes)}; there is no {wrong[0]}: rename "
                'with "merge={OLD: NEW}"'
            )
        classes = chosen
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


def _split(items: Sequence[Item], cfg: PrepareDataConfig, console: Console) -> list[Item]:
    """Return the items with a split each; val is drawn if there is none."""
    items = [replace(item, split=item.split or "train") for item in items]
    splits = {item.split for item in items}
    if {"train", "val"} <= splits:
        return items
    source = next(split for split in ("train", "val", "test") if split in splits)
    pool = [number for number, item in enumerate(items) if item.split == source]
    size = min(max(1, round(cfg.val_share * len(pool))), len(pool) - 1)
    drawn = set(random.Random(cfg.seed).sample(pool, size))
    for number in pool:
        items[number] = replace(items[number], split="val" if number in drawn else "train")
    console.print(
        f"no validation split: drawn {size} of {len(pool)} images (val_share={cfg.val_share}, "
        f"seed={cfg.seed})"
    )
    return items


def _write(
    items: Sequence[Item],
    labels: dict[int, int],
    info: DatasetInfo,
    cfg: PrepareDataConfig,
    console: Console,
) -> None:
    """Write the new folder next to its place, and move it there once it is complete."""
    target = Path(str(cfg.to))
    part = target.with_name(f"{target.name}.part")
    values = np.array(sorted(labels))
    table = np.array([labels[value] for value in values.tolist()], np.uint8)
    stems = Counter((item.split, item.image.stem) for item in items)

    def write(item: Item) -> None:
        unique = stems[item.split, item.image.stem] == 1
        name = item.image.stem if unique else item.name
        mask = table[np.searchsorted(values, item.read())]
        palette_image(mask, info).save(part / "annotations" / item.split / f"{name}.png")
        image = part / "images" / item.split / f"{name}{item.image.suffix}"
        _link(item.image.resolve(), image, cfg.link)

    try:
        shutil.rmtree(part, ignore_errors=True)  # of an interrupted run
        for split in {item.split for item in items}:
            (part / "images" / split).mkdir(parents=True)
            (part / "annotations" / split).mkdir(parents=True)
        _each(write, items, "writing", cfg, console)
        content = {key: value for key, value in asdict(info).items() if value not in (None, [])}
        text = safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
        head = f"# Converted from {cfg.convert}\n"
        (part / DESCRIPTION).write_text(head + text, encoding="utf-8")
        if target.exists():
            target.rmdir()  # it is empty
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _link(source: Path, target: Path, link: bool) -> None:
    """Make a hard link, a symbolic one where that fails, a copy where both fail."""
    ways = (os.link, os.symlink, shutil.copyfile) if link else (shutil.copyfile,)
    for way in ways:
        try:
            way(source, target)
            return
        except OSError:
            if way is ways[-1]:
                raise


def shown(value: int) -> str:
    """Return a value as people write it: 7, or [128,64,128]."""
    if value < COLOUR:
        return str(value)
    return f"[{value >> 16 & 255},{value >> 8 & 255},{value & 255}]"


def _shares(values: Iterable[int], found: dict[int, Found]) -> str:
    """Return values with their share of the pixels."""
    total, values = sum(entry.pixels for entry in found.values()), list(values)
    texts = [f"{shown(v)} ({percent(found[v].pixels / total)} %)" for v in values[:SHOWN]]
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(texts) + more


def _print_values(
    found: dict[int, Found], labels: dict[int, int], info: DatasetInfo, console: Console
) -> None:
    """Print what each value of the masks has become."""
    total = sum(entry.pixels for entry in found.values())
    table = Table("in the masks", "label", "class", Column("pixels (%)", justify="right"), box=None)
    for value, entry in found.items():
        label = labels[value]
        name = "(ignored)" if label == VOID else info.classes[label]
        table.add_row(shown(value), str(label), name, percent(entry.pixels / total))
    console.print(table)
    absent = [n for k, n in enumerate(info.classes) if k not in {labels[v] for v in found}]
    if absent:
        console.print(f"in no mask: {', '.join(absent)}")
