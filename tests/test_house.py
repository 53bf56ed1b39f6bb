"""The laws of the house: who may import whom, and how long a file may be."""

import ast
from pathlib import Path

import pytest

from fcn.config import REPOSITORY

MAY_IMPORT = {
    "__init__.py": set(),
    "app.py": {"checks", "config", "messages"},
    "messages.py": {"config"},
    "checks": {"checks", "config"},
    "config.py": set(),
    "machine.py": set(),
    "recorded.py": {"config"},
    "models": {"config", "models"},
    "data": {"config", "data", "machine"},
    "metrics.py": {"config"},
    "visualize.py": {"config"},
    "panels.py": {"config", "visualize"},
    "plots.py": set(),
    "page.py": set(),
    "inference": {
        "config",
        "models",
        "data",
        "metrics",
        "panels",
        "visualize",
        "plots",
        "page",
        "recorded",
        "inference",
    },
}
MAY_IMPORT["training"] = MAY_IMPORT["inference"] | {
    "app",
    "checks",
    "machine",
    "messages",
    "training",
}
MAY_IMPORT["explain"] = MAY_IMPORT["training"] | {"explain"}
MAY_IMPORT["benchmark"] = MAY_IMPORT["training"] | {"benchmark"}
FILES = sorted((REPOSITORY / "fcn").rglob("*.py"))


def rooms_imported(path: Path) -> set[str]:
    """The parts of fcn that a file imports when it runs (not for type checkers alone)."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fcn"):
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("fcn.")}
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(REPOSITORY / "fcn").parts[0]
    assert rooms_imported(path) <= MAY_IMPORT[room]


def test_files_stay_short() -> None:
    long = {p.name: n for p in FILES if (n := len(p.read_text().splitlines())) > 300}
    assert not long
