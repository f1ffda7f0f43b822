"""One network of a population."""

from typing import NamedTuple

from rnn.architecture import Architecture
from rnn.known_cell import KnownCell


class Member(NamedTuple):
    """One network of a population: an architecture, and what else tells its training from others.

    Attributes:
        architecture: of the network.
        replicate: which of the architecture's runs: its initial weights, and the order of the text.
        gradient_window: through how many steps, the last among them, a loss's gradient goes.
    """

    architecture: Architecture | KnownCell
    replicate: int = 0
    gradient_window: int = 1
