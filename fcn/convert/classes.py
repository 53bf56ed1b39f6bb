"""Which class each value of the masks is.

1. Shapes, segments and classes of separate masks have names, whose numbers are given here.
2. Otherwise `labels=` names values, and the others are ignored.
3. Otherwise, of masks in colours, `data.colours=` lists the colour of each of `data.classes`.
4. Otherwise the lists of the export name its values or colours.
5. Otherwise values number the classes of `data.classes`, classes.txt or dataset.yaml, from 0, or
   from 1 if 0 is ignored; two classes may be any two values, such as 0 and 255.
6. 255, -1 and `data.ignore_index` are ignored, erased pixels are background, and a value without a
   class is an error.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yaml import YAMLError, safe_load

from fcn.config import PrepareDataConfig
from fcn.convert import masks
from fcn.convert.annotation_set import IGNORE, AnnotationSet
from fcn.convert.formats.class_lists import colour_names
from fcn.convert.masks import COLOUR, SMOOTHED, TRANSPARENT
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
RULES = {"labels": "{7: road, 11: building}", "merge": "{truck: car, sky: null}"}


@dataclass
class Scan:
    """What the masks hold."""

    pixels: Counter[int] = field(default_factory=Counter)  # of each value
    first: dict[int, Path] = field(default_factory=dict)  # a mask that holds it
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (width, height) of each mask

    def shares(self, values: Iterable[int]) -> str:
        """Return values with their share of the pixels, as people write them."""
        values, total = list(values), self.pixels.total()
        texts = [f"{shown(v)} ({percent(self.pixels[v] / total)} %)" for v in values[:SHOWN]]
        more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
        return ", ".join(texts) + more


def shown(value: int) -> str:
    """Return a value as people write it: 7, or [128,64,128]."""
    if value < COLOUR:
        return "transparent" if value == TRANSPARENT else str(value)
    return f"[{value >> 16 & 255},{value >> 8 & 255},{value & 255}]"


def check_mappings(cfg: PrepareDataConfig) -> PrepareDataConfig:
    """Return the settings with `labels` and `merge` as mappings, in which null is IGNORE.

    Raises:
        ConfigError: they are none, or data.classes has a name twice.
    """
    classes = [name for name in cfg.data.classes if name.lower() not in IGNORED]
    if twice := [name for name in classes if classes.count(name) > 1]:
        raise ConfigError(
            f"data.classes={cfg.data.classes}: {twice[0]} occurs twice; name it {twice[0]}2 there, "
            f'and to make both one class add "merge={{{twice[0]}2: {twice[0]}}}"'
        )
    return replace(cfg, labels=_mapping(cfg, "labels"), merge=_mapping(cfg, "merge"))


def _mapping(cfg: PrepareDataConfig, key: str) -> dict[Any, str]:
    """Return a setting that is a mapping, or the name of a YAML file of one."""
    given, kind = getattr(cfg, key), int if key == "labels" else str
    try:
        content = safe_load(Path(given).read_text("utf-8")) if isinstance(given, str) else given
        return {kind(k): IGNORE if v is None else str(v) for k, v in (content or {}).items()}
    except (AttributeError, ValueError, YAMLError):
        raise ConfigError(
            f"{key}={given}: must be like {RULES[key]}, or a YAML file of it"
        ) from None


def class_of_values(
    annotations: AnnotationSet, cfg: PrepareDataConfig, scan: Scan
) -> dict[int, str]:
    """Return the class of each value, IGNORE where it has none.

    Args:
        annotations: what was read.
        cfg: the settings, see `check_mappings`.
        scan: what the masks hold.

    Raises:
        ConfigError, DataError: a value without a class, or settings that do not fit.
    """
    names = _named_values(annotations, cfg, scan)
    # Among pictures in colours, a grey one holds colours, too.
    if not cfg.labels and max(scan.pixels, default=0) >= COLOUR:
        colours = {value: name for value, name in names.items() if value >= COLOUR}
        grey = {value: colours.get(COLOUR + value * 0x10101) for value in range(256)}
        shades = {value: name for value, name in grey.items() if name and value in scan.pixels}
        names = colours | names | shades if shades else names
    for value in (-1, VOID):
        names.setdefault(value, IGNORE)
    if cfg.data.ignore_index not in (None, VOID) and annotations.numbered_here:
        raise ConfigError(
            f"data.ignore_index={cfg.data.ignore_index} is a value of masks, but "
            f'{annotations.format} has names; ignore a class with "merge={{NAME: null}}"'
        )
    if cfg.data.ignore_index is not None:
        names[cfg.data.ignore_index] = IGNORE
    background = (name for name in names.values() if name.lower() in BACKGROUND)
    names.setdefault(TRANSPARENT, next(background, IGNORE))
    if unknown := [value for value in scan.pixels if value not in names]:
        names |= _nearest_classes(annotations, cfg, scan, names, unknown)
    if wrong := set(cfg.merge) - set(names.values()):
        known = ", ".join(dict.fromkeys(names.values()))
        raise ConfigError(f"merge: the export has no class {min(wrong)}; its classes are {known}")
    names = {value: cfg.merge.get(name, name) for value, name in names.items()}
    names = {v: IGNORE if name.lower() in IGNORED else name for v, name in names.items()}
    by_letters = dict[str, str]()
    for name in names.values():
        if (other := by_letters.setdefault(" ".join(name.casefold().split()), name)) != name:
            raise DataError(
                f"the classes {other} and {name} differ in case or blanks alone; to make them one: "
                f'"merge={{{name}: {other}}}"'
            )
    return names


def _named_values(annotations: AnnotationSet, cfg: PrepareDataConfig, scan: Scan) -> dict[int, str]:
    """Return the values that have a class: by labels, by colours, by the export, or by number."""
    annotations.check(scan.pixels)
    classes, colours = cfg.data.classes or annotations.classes, cfg.data.colours
    if colours and len(colours) != len(classes):
        raise ConfigError(
            f"data.colours has {len(colours)} colours, but there are {len(classes)} classes: "
            f"data.classes={classes}"
        )
    if cfg.labels and annotations.numbered_here:
        raise ConfigError(
            f"labels={cfg.labels} names values of masks, but {annotations.format} has names: "
            f'{", ".join(annotations.names.values())}; rename with "merge={{OLD: NEW}}"'
        )
    if cfg.labels:
        rest = () if cfg.nearest else scan.pixels.keys() - {TRANSPARENT, *cfg.labels}
        return cfg.labels | dict.fromkeys(rest, IGNORE)
    if _named_by_colours(annotations, cfg, scan):
        return colour_names([*zip(classes, colours, strict=True)], "data.colours")
    if annotations.names:
        return dict(annotations.names)
    masks.check_palettes(item.mask for item in annotations.items)
    return _numbered(annotations.classes or classes, cfg.data.ignore_index, scan)


def _named_by_colours(annotations: AnnotationSet, cfg: PrepareDataConfig, scan: Scan) -> bool:
    """Return True if data.colours says which class a value of the masks is.

    If not, labels= or the export name the values, and data.colours are only the colours to show.
    """
    ignored = {-1, VOID, TRANSPARENT, cfg.data.ignore_index}
    in_numbers = scan.pixels.keys() <= {*annotations.names, *ignored}
    in_numbers &= max(scan.pixels, default=0) < COLOUR
    named = cfg.labels or annotations.numbered_here or (annotations.names and in_numbers)
    return bool(cfg.data.colours) and not named


def _numbered(classes: list[str], ignored: int | None, scan: Scan) -> dict[int, str]:
    """Return the class of each number: from 0, or from 1 if 0 is ignored and none of the classes.

    Without an ignored label 0 is ignored if the labels are 1 to the number of classes, and two
    classes are the two values of the masks, other than 255 beside 0 and 1.
    """
    count, labels = len(classes), scan.pixels.keys() - {TRANSPARENT}
    if TRANSPARENT in scan.pixels and count == 2 and len(labels) == 1:  # paint on nothing
        return dict(zip((TRANSPARENT, *labels), classes, strict=True))
    most = [value for value, _ in scan.pixels.most_common() if value != TRANSPARENT]
    _check_numbered(classes, scan, most)
    two, rest = sorted({0, *most[:2]}), sum(scan.pixels[value] for value in most[2:])
    smoothed = rest <= SMOOTHED * scan.pixels.total()  # the boundary between the two, if at all
    numbers = labels in ({0, 1, 2}, {0, 1, VOID})
    if ignored is None and count == len(two) == 2 and smoothed and not numbers:
        return dict(zip(two, classes, strict=True))
    labels -= {VOID, ignored}
    if ignored is None and labels and min(labels) > 0 and max(labels) == count:
        ignored = 0
    elif ignored is not None and ignored < count and count not in labels:
        if classes[ignored].lower() not in (*BACKGROUND, *IGNORED):
            raise DataError(
                f"data.ignore_index={ignored}: does {classes[ignored]} name it? give "
                + _setting({}, labels)
            )
        return dict(enumerate(classes))  # one of which is that of the ignored label
    rows = (number for number in range(count + 1) if number != ignored)
    return dict(zip(rows, classes, strict=False))


def _check_numbered(classes: list[str], scan: Scan, most: list[int]) -> None:
    """Raise a DataError that asks for colours or classes if masks hold no numbers of classes."""
    highest, several = max(most, default=0), len(classes) > 1
    named = classes if several else ["background", *(classes or ["..."])]
    given = f"data.classes=[{','.join(named)}]"
    if highest >= COLOUR:
        erased = TRANSPARENT in scan.pixels and COLOUR not in scan.pixels
        main = [COLOUR] * erased + most
        raise DataError(
            f"{scan.first[highest]}: the colours of the masks are {scan.shares(most)}; list them "
            f"in the order of the classes: {given} "
            f"data.colours=[{','.join(map(shown, main[: len(classes) if several else SHOWN]))}]"
        )
    if not several:
        raise DataError(
            f"{scan.first[highest]}: the labels in the masks are {scan.shares(sorted(most))}; name "
            f'their classes: {given}, or "labels={RULES["labels"]}"'
        )


def _nearest_classes(
    annotations: AnnotationSet,
    cfg: PrepareDataConfig,
    scan: Scan,
    names: dict[int, str],
    unknown: list[int],
) -> dict[int, str]:
    """Return the nearest class of values that smooth the boundaries between others.

    Raises:
        DataError: they do not, or cfg.nearest does not allow it.
    """
    known = [value for value in scan.pixels if value in names]
    value, pixels = unknown[0], sum(scan.pixels[value] for value in unknown)
    smoothed = (
        len(known) > 1
        and pixels <= SMOOTHED * scan.pixels.total()
        and sum(masks.smoothed_pixels(item.read(), known) for item in annotations.items)
        >= 0.8 * pixels
    )
    if smoothed and cfg.nearest:
        levels = [value for value in known if value >= 0]
        return {value: names[near] for value, near in masks.nearest(unknown, levels).items()}
    if smoothed:
        hint = "they smooth the boundaries between others: nearest=true takes the nearest class"
    elif value >= COLOUR:
        hint = "add them to data.colours and data.classes, where the name ignore leaves them out"
    elif value == len(cfg.data.classes or annotations.classes) and 0 in scan.pixels:
        hint = f"if 0 is unlabelled, set data.ignore_index=0, or else data.ignore_index={value}"
    else:
        hint = f"name all with {_setting(names, (v for v in scan.pixels if abs(v) < COLOUR))}"
        hint += f", or set data.ignore_index={value}" if 0 <= value < VOID else ""
    if cfg.nearest:
        hint = f"nearest=true is for smoothed boundaries, but these lie elsewhere; {hint}"
    raise DataError(
        f"{scan.first[value]}: {scan.shares(unknown)} of the masks has no class; {hint}"
    )


def _setting(names: dict[int, str], values: Iterable[int]) -> str:
    """Return the setting that names some values, for people to complete."""
    rows = (f"{value}: {names.get(value, 'NAME')}" for value in sorted(values)[:SHOWN])
    return f'"labels={{{", ".join(rows)}}}"'


def dataset_info(
    annotations: AnnotationSet, cfg: PrepareDataConfig, scan: Scan, names: dict[int, str]
) -> DatasetInfo:
    """Return what dataset.yaml is to say; its classes are in the order of their labels.

    Args:
        annotations: what was read.
        cfg: the settings; if the export names its values, data.classes chooses some.
        scan: what the masks hold.
        names: see `class_of_values`.

    Raises:
        ConfigError, DataError: fewer than two classes, or a name that cannot be one.
    """
    data, black = cfg.data, dict[str, list[int]]()
    classes = [name for name in dict.fromkeys(names.values()) if name != IGNORE]
    chosen = [name for name in data.classes if name.lower() not in IGNORED]
    chooses = annotations.names or cfg.labels or annotations.classes
    if chosen and chooses and not _named_by_colours(annotations, cfg, scan):
        # What no shape covers is background, though nobody has drawn it.
        background = [name for name in classes[:1] if name.lower() in BACKGROUND]
        if annotations.numbered_here and not {*background} & {*chosen}:
            chosen = [*background, *chosen]
            black = {name: [0, 0, 0] for name in background}
        wrong = [name for name in chosen if name not in classes]
        if annotations.numbered_here and {*classes} <= {*chosen}:
            wrong = []  # classes that no shape has yet
        if wrong:
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
    given = zip(data.classes or annotations.classes, data.colours, strict=False)
    colours = dict[str, list[int]]()
    for name, rgb in (*given, *annotations.colours.items(), *black.items()):
        colours.setdefault(cfg.merge.get(name, name), list(rgb))
    return DatasetInfo(
        classes,
        [colours[name] for name in classes] if colours.keys() >= {*classes} else [],
        background=starts_with_background(classes) if data.background is None else data.background,
        value_range=data.value_range,
        bands=data.bands,
    )
