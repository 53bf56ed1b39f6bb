"""What is known about a data set: dataset.yaml beside it, the settings, and a checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yaml import MappingNode, SafeLoader, YAMLError, load

from fcn.config import DataConfig, check, unknown_key
from fcn.data.dataset import read_list
from fcn.dataset_info import INFO_KEYS, DatasetInfo, class_problem, starts_with_background
from fcn.errors import ConfigError, DataError
from fcn.pictures.visualize import voc_palette

DESCRIPTION = "dataset.yaml"  # its keys are those of `DatasetInfo`
INPUT_DEFAULTS = {"value_range": "all of 8 or 16 bits", "bands": "RGB"}  # what none of them means


class UniqueKeys(SafeLoader):
    """Reads YAML in which no key may stand twice, of which the last would win otherwise."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for (key, _), name in zip(node.value, keys, strict=True):
            if keys.count(name) > 1 and name != "<<":
                line = key.start_mark.line + 1
                raise ConfigError(f"{name} is given twice (line {line}); keep one of them")
        return super().construct_mapping(node, deep)


def read_description(folder: Path) -> dict[str, Any]:
    """Return what folder/dataset.yaml says, and the names in classes.txt where it has none.

    A key without a value (null) says nothing.

    Raises:
        DataError: it is no such file: names the key and the rule.
    """
    path, listed = folder / DESCRIPTION, folder / "classes.txt"
    known: dict[str, Any] = {"classes": read_list(listed)} if listed.is_file() else {}
    if path.is_file():
        try:
            content = load(path.read_text(encoding="utf-8-sig"), UniqueKeys) or {}
            if not isinstance(content, dict):
                raise ConfigError("must be keys with values, such as classes: [background, road]")
            content = {key: value for key, value in content.items() if value is not None}
            if unknown := [key for key in content if key not in INFO_KEYS]:
                raise ConfigError(unknown_key(str(unknown[0]), list(INFO_KEYS)))
            checked = check({"name": DESCRIPTION, **content}, DataConfig)
        except (OSError, UnicodeDecodeError, YAMLError, ConfigError) as error:
            raise DataError(f"{path}: {' '.join(str(error).split())}") from None
        known |= {key: getattr(checked, key) for key in content}
        listed = path if "classes" in content else listed
    if problem := class_problem(known.get("classes", [])):
        raise DataError(f"{listed}: {problem}")
    return known


def check_classes(data: DataConfig, own: Sequence[str], place: str) -> None:
    """Raise a DataError if a data set, at `place`, has other classes than the settings name."""
    if data.classes and own and data.classes != list(own):
        raise DataError(
            f"{place}: its labels 0, 1, ... are named {', '.join(own)}, but data.classes="
            f"[{','.join(data.classes)}]; leave data.classes out, or correct the names in the "
            "data set if they are wrong"
        )


def merge_info(
    data: DataConfig, own: Mapping[str, Any], known: DatasetInfo | None = None
) -> tuple[DatasetInfo, list[str]]:
    """Merge the info of a data set: settings override the set, which overrides a checkpoint.

    A checkpoint supplies the classes if neither the settings nor the set name them. Its value_range
    and bands replace those of the set. If it has none, it was trained on all of 8 or 16 bits, or on
    RGB, and the set's do not apply either.

    Args:
        data: the settings.
        own: what the set says of itself: dataset.yaml, or the index of shards.
        known: what a checkpoint knows.

    Returns:
        The info, and notes where a checkpoint and the set say different things. Defaults: no
        classes, Pascal VOC's colours, ignored label 255, RGB over all of 8 or 16 bits; class 0 is
        background if its name says so.

    Raises:
        ConfigError: the values do not fit together.
    """
    of_network = {key: getattr(known, key) for key in ("classes", *INPUT_DEFAULTS)} if known else {}
    of_set = {key: value for key, value in own.items() if not (known and key in INPUT_DEFAULTS)}
    merged: dict[str, Any] = {}
    for said in (of_network, of_set, {key: getattr(data, key) for key in INFO_KEYS}):
        merged |= {key: value for key, value in said.items() if value not in (None, [])}
    classes = merged.setdefault("classes", [])
    merged.setdefault("background", starts_with_background(classes))
    merged.setdefault("colours", voc_palette(len(classes)).tolist())
    info = DatasetInfo(**merged)
    if problem := class_problem(classes):
        raise ConfigError(f"data.classes={classes}: {problem}")
    if len(info.colours) != len(classes):
        raise ConfigError(
            f"data.colours has {len(info.colours)} colours for {len(classes)} classes"
        )
    if known and info.channels != known.channels:
        raise ConfigError(f"data.bands={info.bands}: the checkpoint takes {known.channels}")
    if info.value_range and info.value_range[0] >= info.value_range[1]:
        raise ConfigError(f"data.value_range={info.value_range}: must be [from, to], from < to")
    return info, _notes(data, own, known, info) if known else []


def _notes(
    data: DataConfig, own: Mapping[str, Any], known: DatasetInfo, info: DatasetInfo
) -> list[str]:
    """Return what a user may not expect where a checkpoint and the set say different things."""
    notes = []
    for key, none in INPUT_DEFAULTS.items():
        if own.get(key) and own[key] != getattr(known, key) and not getattr(data, key):
            notes.append(
                f"{key}={getattr(info, key) or none}, as the checkpoint was trained, not "
                f"{own[key]}, as the data set says; data.{key} overrides both"
            )
    if data.ignore_index is None and known.ignore_index != info.ignore_index:
        notes.append(
            f"label {info.ignore_index} is ignored in these masks; the checkpoint was trained on "
            f"masks that ignore {known.ignore_index}: if these do too, set "
            f"data.ignore_index={known.ignore_index}"
        )
    return notes
