"""Which class each value of the masks of an export is: by settings, by its lists, or by number."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yaml import YAMLError, safe_load

from fcn.config import DataConfig, PrepareDataConfig
from fcn.convert.export import IGNORE, Export
from fcn.convert.export_folder import Item
from fcn.convert.formats.class_lists import colour_names
from fcn.convert.masks import (
    COLOUR,
    SMOOTHED,
    TRANSPARENT,
    check_palettes,
    nearest,
    smoothed_pixels,
)
from fcn.dataset_info import (
    BACKGROUND,
    IGNORED,
    VOID,
    DatasetInfo,
    class_problem,
    starts_with_background,
)
from fcn.errors import ConfigError, DataError
from fcn.output import percent

SHOWN = 20  # values in a message


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

    @property
    def pixels(self) -> int:
        return sum(found.pixels for found in self.values.values())


def with_description(data: DataConfig, own: dict[str, Any]) -> DataConfig:
    """Return the settings with what the folder's dataset.yaml or classes.txt adds."""
    missing = {key: value for key, value in own.items() if getattr(data, key) in (None, [])}
    data = replace(data, **missing)
    counts = Counter(name for name in data.classes if name.lower() not in IGNORED)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConfigError(
            f"data.classes={data.classes}: {twice[0]} occurs twice; name it {twice[0]}2 there, and "
            f'to make both one class add "merge={{{twice[0]}2: {twice[0]}}}"'
        )
    return data


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
    merge = mapping(cfg.merge, "merge", str)
    if wrong := set(merge) - set(names.values()):
        known_names = ", ".join(dict.fromkeys(names.values()))
        raise ConfigError(
            f"merge: the export has no class {min(wrong)}; its classes are {known_names}"
        )
    names = {value: merge.get(name, name) for value, name in names.items()}
    names = {v: IGNORE if name.lower() in IGNORED else name for v, name in names.items()}
    by_letters = dict[str, str]()
    for name in names.values():
        if (other := by_letters.setdefault(" ".join(name.casefold().split()), name)) != name:
            raise DataError(
                f"the classes {other} and {name} differ in case or blanks alone; to make them one: "
                f'"merge={{{name}: {other}}}"'
            )
    return names


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
        names = mapping(cfg.labels, "labels", int)
        rest = {} if cfg.nearest else {v: IGNORE for v in found if v not in names}
        return names | {value: name for value, name in rest.items() if value != TRANSPARENT}
    if cfg.data.colours:
        if len(cfg.data.colours) != len(data.classes):
            raise ConfigError(
                f"data.colours has {len(cfg.data.colours)} colours, but there are "
                f"{len(data.classes)} classes: data.classes={data.classes}"
            )
        rows = [*zip(data.classes, cfg.data.colours, strict=True)]
        return colour_names(rows, "data.colours")
    if export.names:
        return dict(export.names)
    check_palettes(item.mask for item in export.items)
    return _named_by_number(replace(data, classes=listed or data.classes), found)


def _named_by_number(data: DataConfig, found: dict[int, Found]) -> dict[int, str]:
    """Return the class of each label of masks that come with no more than a list of classes.

    Two classes are the two values, such as 0 and 255. Otherwise the labels count from 0; from 1 if
    the last is the number of classes, or if 0 is ignored and none of the classes.
    """
    classes, ignored, labels = data.classes, data.ignore_index, found.keys() - {TRANSPARENT}
    if TRANSPARENT in found and len(classes) == 2 and len(labels) == 1:  # paint on nothing
        return {TRANSPARENT: classes[0], min(labels): classes[1]}
    _check_numbered(classes, found)
    if ignored is None and len(classes) == 2 and (two := _two_values(found)):
        return dict(zip(two, classes, strict=True))
    labels -= {VOID, ignored}
    if ignored is None and labels and min(labels) > 0 and max(labels) == len(classes):
        ignored = 0
    elif ignored is not None and ignored < len(classes) and len(classes) not in labels:
        if classes[ignored].lower() not in (*BACKGROUND, *IGNORED):
            raise DataError(
                f"data.ignore_index={ignored}: does {classes[ignored]} name it? give "
                + _map({}, labels)
            )
        return dict(enumerate(classes))  # one of which is the ignored label
    numbers = (n for n in range(len(classes) + 1) if n != ignored)
    return dict(zip(numbers, classes, strict=False))


def _check_numbered(classes: list[str], found: dict[int, Found]) -> None:
    """Raise a DataError that asks for colours or classes if masks hold no numbers of classes."""
    most = sorted(found.keys() - {TRANSPARENT}, key=lambda value: -found[value].pixels)
    named = classes if len(classes) > 1 else ["background", *(classes or ["..."])]
    given = f"data.classes=[{','.join(named)}]"
    if (highest := max(most, default=0)) >= COLOUR:
        main = [COLOUR, *most] if TRANSPARENT in found and COLOUR not in found else most
        main = main[: len(classes) if len(classes) > 1 else SHOWN]
        raise DataError(
            f"{found[highest].first}: the colours of the masks are {shares(most, found)}; list "
            f"them in the order of the classes: {given} "
            f"data.colours=[{','.join(map(shown, main))}]"
        )
    if len(classes) < 2:
        raise DataError(
            f"{found[highest].first}: the labels in the masks are {shares(sorted(most), found)}; "
            f'name their classes: {given}, or "labels={{7: road, 11: building}}"'
        )


def _two_values(found: dict[int, Found]) -> tuple[int, int] | None:
    """Return the two values of masks of two classes, between which others may be smoothed."""
    found = {value: entry for value, entry in found.items() if value != TRANSPARENT}
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
    labels = [v for v in found if v < COLOUR and v != TRANSPARENT]
    hint = f"name all with {_map(names, labels)}"
    if 0 <= value < VOID:
        hint += f", or set data.ignore_index={value}"
    if smoothed:
        hint = "they smooth the boundaries between others: nearest=true takes the nearest class"
    elif value >= COLOUR:
        hint = "add them to data.colours and data.classes, where the name ignore leaves them out"
    elif value == len(data.classes) and 0 in found:
        hint = f"if 0 is unlabelled, set data.ignore_index=0, or else data.ignore_index={value}"
    if take_nearest and not smoothed:
        hint = f"nearest=true is for smoothed boundaries, but these lie elsewhere; {hint}"
    return f"{found[value].first}: {shares(unknown, found)} of the masks has no class; {hint}"


def _map(names: dict[int, str], values: Iterable[int]) -> str:
    """Return the setting that names some values, for people to complete."""
    rows = (f"{value}: {names.get(value, 'NAME')}" for value in sorted(values)[:SHOWN])
    return f'"labels={{{", ".join(rows)}}}"'


def mapping(given: Any, key: str, kind: Callable[[Any], Any]) -> dict[Any, str]:
    """Return a setting that is a mapping, or the name of a YAML file of one; null is IGNORE."""
    try:
        content = safe_load(Path(given).read_text("utf-8")) if isinstance(given, str) else given
        return {kind(k): IGNORE if v is None else str(v) for k, v in (content or {}).items()}
    except (AttributeError, ValueError, YAMLError):
        rule = "{7: road, 11: building}" if kind is int else "{truck: car, sky: null}"
        raise ConfigError(f"{key}={given}: must be like {rule}, or a YAML file of it") from None


def choose_classes(cfg: PrepareDataConfig, names: dict[int, str], *, by_name: bool) -> list[str]:
    """Return the classes in the order of their labels; data.classes may choose some by name."""
    classes = [name for name in dict.fromkeys(names.values()) if name != IGNORE]
    chosen = [name for name in cfg.data.classes if name.lower() not in IGNORED]
    if chosen and not cfg.data.colours and by_name:
        if wrong := [name for name in chosen if name not in classes]:
            raise ConfigError(
                f"data.classes chooses of {', '.join(classes)}; there is no {wrong[0]}: rename "
                'with "merge={OLD: NEW}"'
            )
        classes = list(chosen)
    elif not chosen:
        classes.sort(key=lambda name: name.lower() not in BACKGROUND)  # stable
    if problem := class_problem(classes):
        raise DataError(f"{cfg.convert}: {problem}; rename it in the tool")
    if not 2 <= len(classes) <= VOID:
        hint = f" (the names {', '.join(IGNORED)} are of ignored pixels)" if not classes[1:] else ""
        raise DataError(f"{cfg.convert}: {len(classes)} classes; training needs 2 to {VOID}{hint}")
    return classes


def dataset_info(
    export: Export, cfg: PrepareDataConfig, data: DataConfig, classes: list[str]
) -> DatasetInfo:
    """Return what dataset.yaml is to say."""
    merge, colours = mapping(cfg.merge, "merge", str), dict[str, list[int]]()
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


def shown(value: int) -> str:
    """Return a value as people write it: 7, or [128,64,128]."""
    if value < COLOUR:
        return "transparent" if value == TRANSPARENT else str(value)
    return f"[{value >> 16 & 255},{value >> 8 & 255},{value & 255}]"


def shares(values: Iterable[int], found: dict[int, Found]) -> str:
    """Return values with their share of the pixels."""
    total, values = sum(entry.pixels for entry in found.values()), list(values)
    texts = [f"{shown(v)} ({percent(found[v].pixels / total)} %)" for v in values[:SHOWN]]
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(texts) + more
