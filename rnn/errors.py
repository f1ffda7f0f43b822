"""Exceptions of the package ``rnn``."""

import re


class RNNError(Exception):
    """Base class of this package's errors; the message is one line."""


class CellError(RNNError):
    """A user's own cell is missing, damaged or breaks the contract of a cell."""


class TaskError(RNNError):
    """A task is missing, cannot be read, or breaks the contract of a task."""


class CorpusError(RNNError):
    """A corpus is missing, empty, too short or has the wrong content."""


class DeviceError(RNNError):
    """A device, or a precision on it, is not available."""


class CheckpointError(RNNError):
    """A checkpoint is damaged, of another format or of another training."""


class TokenizerError(RNNError):
    """A serialized tokenizer is damaged."""


class SavedModelError(RNNError):
    """A model file is damaged or of another format."""


def find_user_line(error: BaseException) -> int:
    """Return the last line of a user's cell or task that an exception passed; 0 if it passed none.

    Modules of users' files have the names that :mod:`rnn.own_code` gives them.
    """
    line, traceback = 0, error.__traceback__
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if re.fullmatch("(cell|task)_[0-9a-f]{16}", str(module)):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
