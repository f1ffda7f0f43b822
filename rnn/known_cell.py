"""Networks of cells that are known, to measure ours by: an LSTM's, a GRU's and Elman's."""

from dataclasses import dataclass
from typing import Literal, get_args

from rnn.architecture import BYTES

Cell = Literal["elman", "gru", "lstm"]

CELLS: tuple[Cell, ...] = get_args(Cell)

_NAMES: dict[Cell, str] = {"elman": "Elman", "gru": "GRU", "lstm": "LSTM"}

_MAPS: dict[Cell, int] = {"elman": 1, "gru": 3, "lstm": 4}
"""How many maps of a layer's input, and as many of its state, stand side by side."""


@dataclass(frozen=True, slots=True)
class KnownCell:
    """A network of torch's own cells: between its embedding and its head there is nothing else.

    Attributes:
        cell: ``elman`` (Elman, *Finding Structure in Time*, 1990), ``gru`` (Cho et al., *Learning
            Phrase Representations using RNN Encoder–Decoder*, 2014) or ``lstm`` (Hochreiter &
            Schmidhuber, *Long Short-Term Memory*, 1997, with Gers' forget gate), as
            :class:`torch.nn.RNNCell`, ``GRUCell`` and ``LSTMCell`` have them.
        layers: the number of stacked layers.
        state_size: n, the width of the states, the layers and the embedding.

    Raises:
        ValueError: if a value is none of those allowed.
    """

    cell: Cell
    layers: int
    state_size: int

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(f"cell is {self.cell!r}; allowed: {CELLS}")
        for name, value in (("layers", self.layers), ("state_size", self.state_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")

    @property
    def label(self) -> str:
        """A short name, for example ``"2×256 GRU"``."""
        return f"{self.layers}×{self.state_size} {_NAMES[self.cell]}"

    @property
    def key(self) -> str:
        """The architecture in letters that never change: its initial weights are drawn by them."""
        return f"{self.cell}-{self.layers}-{self.state_size}"

    def products(self, vocabulary_size: int = BYTES) -> dict[str, tuple[int, int]]:
        """List the network's affine maps, in the order in which their weights are drawn.

        A layer's ``input`` and ``state`` hold torch's ``weight_ih`` and ``weight_hh``, transposed,
        and their biases, the gates in torch's order.

        Returns:
            A map's name to its (inputs, outputs); see
            :meth:`rnn.architecture.Architecture.products`.
        """
        n = self.state_size
        shape = n, _MAPS[self.cell] * n
        shapes = {"embedding": (vocabulary_size, n)}
        for index in range(self.layers):
            shapes |= {f"layers.{index}.input": shape, f"layers.{index}.state": shape}
        return shapes | {"head": (n, vocabulary_size)}

    def parameter_count(self, vocabulary_size: int = BYTES) -> int:
        """Count the weights and biases of the whole network, embedding and head included."""
        products = self.products(vocabulary_size).values()
        return sum((inputs + 1) * outputs for inputs, outputs in products)
