"""The errors that a user can fix: each message is one line that says what, where and what to do."""

import re


class UserError(Exception):
    """An error that the user can fix. The message is one line: what, where and what to do."""


class ConfigError(UserError, ValueError):
    """A setting out of range, or settings that do not fit together."""


class DataError(UserError, ValueError):
    """A data set is missing, or one of its files cannot be used."""


class MissingData(DataError):
    """A split of a data set, or one of its files, does not exist."""


class CheckpointError(UserError, ValueError):
    """A file that holds no model of this project, or weights that do not fit."""


class TrainingError(UserError, RuntimeError):
    """Training that cannot usefully continue."""


class ExportError(UserError, RuntimeError):
    """An exported file that does not compute what the model computes."""


class Interrupted(UserError):
    """Training was stopped by a signal after its state was saved.

    Args:
        message: what was interrupted and how to resume it.
        code: the exit code, 128 plus the signal's number.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


# Words of torch's errors -> what they mean, and the setting that helps.
FAILURES = {
    "out of memory|not enough memory|can(no|')t allocate memory": "out of memory; set a smaller "
    "recipe.batch_size (and trainer.accumulate_grad_batches for the same step), a "
    "smaller recipe.crop, or a narrower backbone.head_width",
    "more than 1 value per channel": "batch norm needs more than one value for each channel; set a "
    "larger recipe.batch_size or recipe.crop",
    "unable to .*shared memory|shm|bus error|exited unexpectedly|killed by signal": "the loading "
    "processes lack shared memory, or were killed; set data.num_workers=0, or give the "
    "container more (docker run --shm-size=1g)",
    "does not support dense gradients|closure": "recipe.optimizer does not fit this training; use "
    "sgd or adamw",
}


def describe_failure(error: BaseException) -> str | None:
    """Return one line for an error of torch that people meet; None for any other."""
    text = str(error).lower()
    return next((line for words, line in FAILURES.items() if re.search(words, text)), None)


def message_of(error: BaseException) -> str:
    """Return an error's message without the traceback that a loading process puts around it."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.rpartition(f"{type(error).__name__}: ")[2]
    return " ".join(text.split())
