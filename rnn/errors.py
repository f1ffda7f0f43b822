"""Exceptions of the package ``rnn``."""


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
