"""What Hydra 1.3 needs and Hydra 1.4 does not, or the other way round.

This file and its uses go as soon as Hydra 1.4 is released and required.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hydra

IS_1_3 = hydra.__version__.startswith("1.3.")
# 1.3 asks for version_base; 1.4 warns of it.
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if IS_1_3 else {}


@contextmanager
def any_help_text() -> Iterator[None]:
    """Let argparse take any help text for a while, as it did before Python 3.14.

    Hydra 1.3 gives an object instead of a text for --shell-completion, so without this no command
    starts on Python 3.14.
    """
    parser: Any = argparse.ArgumentParser
    if not IS_1_3 or sys.version_info < (3, 14):
        yield
        return
    check = parser._check_help
    parser._check_help = lambda self, action: None
    try:
        yield
    finally:
        parser._check_help = check
