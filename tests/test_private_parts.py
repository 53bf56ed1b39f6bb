"""Parts of other libraries that the code uses although they are not public, each with its reason.

If a new version of a library lacks one, the message says what to look at.
"""

import argparse
import ast
import io
import sys
from operator import attrgetter
from typing import Any

import pytest
import torch
from hydra._internal.utils import get_args_parser
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import RichProgressBar

from fcn.config import PACKAGE
from fcn.hydra_versions import any_help_text

LOOP = Trainer(logger=False, enable_checkpointing=False).fit_loop.epoch_loop
# What is used of what, where, and why there is no other way.
PARTS: list[tuple[str, Any, str, str]] = [
    (
        "_broadcast_sigterm_tensor",
        LOOP,
        "training/interruption.py",
        "Lightning asks all processes for a SIGTERM at every step and waits for the device",
    ),
    (
        "batch_progress.current.completed",
        LOOP,
        "training/interruption.py",
        "a checkpoint between two steps must not count the batch that has just been fetched",
    ),
    (
        "_get_train_description",
        RichProgressBar,
        "training/callbacks.py",
        "the progress bar would number epochs, of which a run has one",
    ),
    (
        "_is_avx512_bf16_supported",
        torch.cpu,
        "device.py",
        "precision=auto must know whether a CPU computes in bfloat16",
    ),
]


@pytest.mark.parametrize(("name", "of", "file", "reason"), PARTS, ids=lambda value: str(value)[:30])
def test_a_private_part_is_there(name: str, of: Any, file: str, reason: str) -> None:
    try:
        attrgetter(name)(of)
    except AttributeError:
        pytest.fail(f"{name} is gone; fcn/{file} used it because {reason}")


def test_pillow_says_how_a_file_is_decoded() -> None:
    """data/pixels.py decodes 16-bit colour by it, which Pillow itself reduces to 8 bits."""
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    with Image.open(file) as image:
        (tile,) = image.tile  # type: ignore[attr-defined]
        assert (tile.codec_name, tile._replace(args="L").args) == ("zip", "L")


def test_no_other_private_part_is_used() -> None:
    known = {name for name, *_ in PARTS}
    known |= {"_check_help"}  # of Python 3.14's argparse: hydra_versions.py
    known |= {"_replace", "_exit"}  # documented in spite of their names
    used, own = set(), set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                (own if of_self else used).add(node.attr)
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("fcn"):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.FunctionDef):
                own.add(node.name)
    private = {name for name in used - own if name.startswith("_") and not name.endswith("_")}
    assert private <= known, "list it in PARTS with its reason, or use something public"


@pytest.mark.skipif(sys.version_info < (3, 14), reason="argparse checks no help before 3.14")
def test_argparse_takes_hydras_help_and_then_checks_others_again() -> None:
    with any_help_text():
        get_args_parser()
    with pytest.raises(ValueError, match="help"):
        argparse.ArgumentParser().add_argument("--a", help="%")
