"""The exceptions of this package.

::

    RNNError
    ├── CorpusError        a text that is missing, empty, too short, or not what it should be
    ├── DeviceError        a device that this machine does not have
    ├── CheckpointError    a checkpoint that is damaged or of another run
    ├── VocabularyError    a vocabulary that is damaged
    └── WeightsError       a file of weights that is damaged or none at all
"""


class RNNError(Exception):
    """Base of this package's errors: one line that gives the value, the bound and the mend."""


class CorpusError(RNNError):
    """A corpus cannot be used."""


class DeviceError(RNNError):
    """A device is not there."""


class CheckpointError(RNNError):
    """A checkpoint cannot be gone on from."""


class TokenizerError(RNNError):
    """What was written is no vocabulary."""


class SavedModelError(RNNError):
    """A file holds no trained network."""
