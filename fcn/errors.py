"""The errors that a user can fix: each message is one line that says what, where and what to do."""


class UserError(Exception):
    """An error that the user can fix. The message is one line: what, where and what to do."""


class ConfigError(UserError, ValueError):
    """A setting out of range, or settings that do not fit together."""


class DataError(UserError, ValueError):
    """A data set is missing, or one of its files cannot be used."""


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
