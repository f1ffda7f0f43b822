"""Exceptions of the package ``rnn``.

::

    RNNError
    ├── CellError          a user's own cell is missing, damaged or breaks the contract of a cell
    ├── CorpusError        a corpus is missing, empty, too short or has the wrong content
    ├── DeviceError        a device or its precision is not available
    ├── CheckpointError    a checkpoint is damaged, of another format or of another training
    ├── TokenizerError     a serialized tokenizer is damaged
    └── SavedModelError    a model file is damaged or of another format
"""


class RNNError(Exception):
    """Base class of this package's errors; the message is one line."""


class CellError(RNNError):
    """A user's own cell cannot be used."""


class CorpusError(RNNError):
    """A corpus cannot be used."""


class DeviceError(RNNError):
    """A device, or a precision on it, is not available."""


class CheckpointError(RNNError):
    """A checkpoint cannot be resumed from."""


class TokenizerError(RNNError):
    """A serialized tokenizer cannot be read."""


class SavedModelError(RNNError):
    """A model file cannot be read."""
