"""Exceptions of all packages that stand for a cause outside of this program.

::

    UserError                        bad input, or a file or a service that cannot be used
    ├── CellError                    a user's cell
    ├── TaskError                    a task
    ├── CorpusError                  a corpus
    ├── DeviceError                  a device, or a precision on it
    ├── CheckpointError              a checkpoint
    ├── StorageError …               of studies.errors
    └── LaunchError …                of search.errors

A class of its own has what some code catches by name.
"""

import re


class UserError(Exception):
    """Bad input, or a file or service that cannot be used.

    The message is one line with the problem, what was expected and what to do. Commands print it
    and exit with code 2.
    """


class CellError(UserError):
    """A user's own cell is missing, damaged or breaks the contract of a cell."""


class TaskError(UserError):
    """A task is missing, cannot be read, or breaks the contract of a task."""


class CorpusError(UserError):
    """A corpus is missing, empty, too short or has the wrong content."""


class DeviceError(UserError):
    """A device, or a precision on it, is not available."""


class CheckpointError(UserError):
    """A checkpoint is damaged, of another format or of another training."""


def find_user_line(error: BaseException) -> int:
    """Return the last line of a user's cell or task that an exception passed; 0 if it passed none.

    Modules of users' files have the names that :mod:`rnn.own_code` gives them.
    """
    line = 0
    traceback = error.__traceback__
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if re.fullmatch("(cell|task)_[0-9a-f]{16}", str(module)):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


_OUT_OF_MEMORY = re.compile(
    "DefaultCPUAllocator|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that a device or this machine ran out of memory.

    An error that hides another, as the end of a recording does on a GPU, is looked behind.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # PyTorch's
        return True
    # PyTorch's other errors have no class: its CPU allocator's, those of cuBLAS and CUDA.
    if isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)):
        return True
    earlier = error.__cause__ or error.__context__
    return isinstance(error, RuntimeError) and earlier is not None and is_out_of_memory(earlier)
