"""What Hydra left in a run's folder, read again.

The folder may come from anywhere, and Hydra's settings can run any program: nothing is believed.
"""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from fcn.config import REPOSITORY, ConfigError, TrainConfig

LONGEST, DEEPEST = 2**18, 20  # bytes of a file; lists and dictionaries within one another


def read_overrides(path: Path) -> list[str]:
    """What a run was started with, from its .hydra/overrides.yaml; nothing where that is missing.

    Hydra's own settings and flags can run any program, and the folder may come from anywhere: keys
    other than training's are refused.
    Raises: ConfigError: it holds one, or is damaged.
    """
    return _checked(read_yaml(path) if path.is_file() else [], path)


def first_overrides(run: Path) -> list[str]:
    """What a run was first started with, from its run.json; checked as `read_overrides` does.

    Raises: ConfigError: it has none, it holds other keys, or is damaged.
    """
    path = run / "run.json"
    try:
        overrides = json.loads(path.read_text(encoding="utf-8"))["overrides"]
    except Exception as error:  # a damaged file may hold anything
        raise ConfigError(
            f"rerun={run}: no readable run.json there ({error}); name the folder of a run"
        ) from None
    return _checked(overrides, path)


def _checked(overrides: Any, path: Path) -> list[str]:
    if not isinstance(overrides, list):
        raise ConfigError(f"{path}: damaged, or not the overrides of a run")
    known = {field.name for field in fields(TrainConfig)}
    known |= {group.name for group in (REPOSITORY / "configs").iterdir() if group.is_dir()}
    for override in overrides:
        found = re.match(r"(?:\+{0,2}|~)(\w+)(?:[./][\w./]+)?(?:=|$)", str(override))
        if found is None or found.group(1) not in known:
            raise ConfigError(f"{path}: {str(override)!r} is no setting of a training run")
    return list(map(str, overrides))


def read_yaml(path: Path) -> Any:
    """The settings that Hydra left in a run's folder: dictionaries, lists and plain values.

    A folder may come from anywhere, so nothing is done for it but that a value `${KEY}` becomes
    what is at KEY; any other text is left as it is, environment variables unread.
    Raises: ConfigError: missing, damaged, or not as Hydra writes it.
    """
    try:
        if path.stat().st_size > LONGEST:
            raise ValueError("too long")
        text = path.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("an alias, which can multiply without end")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:  # the parser's time grows with the square of the depth
                raise ValueError("too deep")
        settings = yaml.safe_load(text)
        return _resolved(settings, settings)
    except Exception as error:  # a damaged file makes a parser raise almost anything
        raise ConfigError(f"{path}: damaged, or not settings of a run ({error})") from None


def _resolved(node: Any, root: Any) -> Any:
    if isinstance(node, dict):
        return {str(key): _resolved(value, root) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolved(value, root) for value in node]
    if isinstance(node, str) and (found := re.fullmatch(r"\$\{([\w.]+)\}", node)):
        for key in found.group(1).split("."):
            root = root.get(key) if isinstance(root, dict) else None
        return node if isinstance(root, dict | list) else root
    return node
