"""What a recurrent network is before it has a single weight: its switches, its depth, its width."""
# TODO-MERGE Networks of cells that are known, to measure ours by: an LSTM's, a GRU's and Elman's.
# TODO-MERGE One network of a population.

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

StateSource = Literal["new", "old", "both"]
GateInputs = Literal["state", "candidate"]

STATE_SOURCES: tuple[StateSource, ...] = get_args(StateSource)
GATE_INPUTS: tuple[GateInputs, ...] = get_args(GateInputs)

TrainingPrecision = Literal["fp32", "tf32", "bf16"]
Precision = Literal[TrainingPrecision, "fp64"]
"""Precision of the arithmetic.

``bf16``: matrix products in bfloat16, everything else in float32. ``tf32``: a GPU rounds the
factors of matrix products to ten bits. ``fp64``: for numerical checks.
"""

BYTE_VOCAB_SIZE = 256
"""The size of the byte-level vocabulary."""


@dataclass(frozen=True, slots=True)
class GatedConfig:
    """One point of the search: a value that says all that a network's shape depends on.

    Attributes:
        input_gate: gates the layer's input and its previous state before anything reads them.
        forget_gate: scales the new state.
        output_gate: gates the layer's output with a gate of its own; without it the output gates
            itself (the swish activation).
        state_gate: mixes the candidate with the previous state, as a GRU does.
        residual: the read-out sees the layer's input.
        state_source: the states that the read-out sees.
        layers: the number of stacked layers.
        state_size: n, the width of the states, the layers and the embedding.
        gate_inputs: what the state gate and the forget gate see beside the layer's input and
            previous state: nothing more (``"state"``) or the candidate too (``"candidate"``).
            A setting of a whole study, not a searched parameter.

    Raises:
        ValueError: if a value is none of those allowed.
    """

    input_gate: bool
    forget_gate: bool
    output_gate: bool
    state_gate: bool
    residual: bool
    state_source: StateSource
    layers: int
    state_size: int
    gate_inputs: GateInputs = "state"

    def __post_init__(self) -> None:
        if self.state_source not in STATE_SOURCES:
            raise ValueError(f"state_source is {self.state_source!r}; allowed: {STATE_SOURCES}")
        if self.gate_inputs not in GATE_INPUTS:
            raise ValueError(f"gate_inputs is {self.gate_inputs!r}; allowed: {GATE_INPUTS}")
        for name, value in (("layers", self.layers), ("state_size", self.state_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")

    @classmethod
    def of(cls, params: Mapping[str, Any], gate_inputs: GateInputs) -> "GatedConfig":
        """Return the architecture of these values, by the fields' names; others are ignored."""
        names = [field.name for field in fields(cls) if field.name != "gate_inputs"]
        return cls(**{name: params[name] for name in names}, gate_inputs=gate_inputs)

    @property
    def reads_new_state(self) -> bool:
        """Whether the read-out sees the new state."""
        return self.state_source in ("new", "both")

    @property
    def reads_previous_state(self) -> bool:
        """Whether the read-out sees the previous state."""
        return self.state_source in ("old", "both")

    @property
    def has_previous_state_grad(self) -> bool:
        """Whether the read-out's view of the previous state is a way for a gradient to weights."""
        return self.reads_previous_state and self.input_gate

    @property
    def output_depends_on_input(self) -> bool:
        """Whether a layer's output depends on its input at the same step."""
        return self.reads_new_state or self.residual or self.input_gate

    @property
    def label(self) -> str:
        """A short name that no other architecture of the study has.

        For example ``"2×256 forget+state gates, new state, residual"``.
        """
        names = [
            name for name in ("input", "forget", "output", "state") if getattr(self, f"{name}_gate")
        ]
        gates = f"{'+'.join(names) or 'no'} gate{'' if len(names) == 1 else 's'}"
        state = "both states" if self.state_source == "both" else f"{self.state_source} state"
        residual = ", residual" if self.residual else ""
        return f"{self.layers}×{self.state_size} {gates}, {state}{residual}"

    @property
    def key(self) -> str:
        """The architecture in letters that never change: its initial weights are drawn by them."""
        gates = (self.input_gate, self.forget_gate, self.output_gate, self.state_gate)
        switches = "".join(str(int(switch)) for switch in (*gates, self.residual))
        return f"{switches}-{self.state_source}-{self.layers}-{self.state_size}-{self.gate_inputs}"

    def param_shapes(self, vocab_size: int = BYTE_VOCAB_SIZE) -> dict[str, tuple[int, int]]:
        """List the network's affine maps, in the order in which their weights are drawn.

        Returns:
            A map's name to its (inputs, outputs); each has a weight of that shape and a bias of
            shape (outputs,). Switches that are off have none.
        """
        n = self.state_size
        gate_inputs = 3 * n if self.gate_inputs == "candidate" else 2 * n
        read = n * (self.reads_new_state + self.reads_previous_state + self.residual)
        layer = {
            "input_gate": (2 * n, 2 * n) if self.input_gate else None,
            "candidate": (2 * n, n),
            "state_gate": (gate_inputs, n) if self.state_gate else None,
            "forget_gate": (gate_inputs, n) if self.forget_gate else None,
            "read_out": (read, n),
            "output_gate": (n + read, n) if self.output_gate else None,
        }
        shapes = {"embedding": (vocab_size, n)}
        for index in range(self.layers):
            shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items() if shape}
        return shapes | {"head": (n, vocab_size)}

    def parameter_count(self, vocab_size: int = BYTE_VOCAB_SIZE) -> int:
        """Count the weights and biases of the whole network, embedding and head included."""
        param_shapes = self.param_shapes(vocab_size).values()
        return sum((inputs + 1) * outputs for inputs, outputs in param_shapes)


BaselineCell = Literal["elman", "gru", "lstm"]

BASELINE_CELLS: tuple[BaselineCell, ...] = get_args(BaselineCell)

_NAMES: dict[BaselineCell, str] = {"elman": "Elman", "gru": "GRU", "lstm": "LSTM"}

_MAPS: dict[BaselineCell, int] = {"elman": 1, "gru": 3, "lstm": 4}
"""How many maps of a layer's input, and as many of its state, stand side by side."""


@dataclass(frozen=True, slots=True)
class BaselineConfig:
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

    cell: BaselineCell
    layers: int
    state_size: int

    def __post_init__(self) -> None:
        if self.cell not in BASELINE_CELLS:
            raise ValueError(f"cell is {self.cell!r}; allowed: {BASELINE_CELLS}")
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

    def param_shapes(self, vocab_size: int = BYTE_VOCAB_SIZE) -> dict[str, tuple[int, int]]:
        """List the network's affine maps, in the order in which their weights are drawn.

        A layer's ``input`` and ``state`` hold torch's ``weight_ih`` and ``weight_hh``, transposed,
        and their biases, the gates in torch's order.

        Returns:
            A map's name to its (inputs, outputs); see
            :meth:`rnn.config.GatedConfig.param_shapes`.
        """
        n = self.state_size
        shape = n, _MAPS[self.cell] * n
        shapes = {"embedding": (vocab_size, n)}
        for index in range(self.layers):
            shapes |= {f"layers.{index}.input": shape, f"layers.{index}.state": shape}
        return shapes | {"head": (n, vocab_size)}

    def parameter_count(self, vocab_size: int = BYTE_VOCAB_SIZE) -> int:
        """Count the weights and biases of the whole network, embedding and head included."""
        param_shapes = self.param_shapes(vocab_size).values()
        return sum((inputs + 1) * outputs for inputs, outputs in param_shapes)


class TrialConfig(NamedTuple):
    """One network of a population: an architecture, and what else tells its training from others.

    Attributes:
        architecture: of the network.
        replicate: which of the architecture's runs: its initial weights, and the order of the text.
        bptt_steps: through how many steps, the last among them, a loss's gradient goes.
    """

    architecture: GatedConfig | BaselineConfig
    replicate: int = 0
    bptt_steps: int = 1

    @property
    def label(self) -> str:
        """Short name: the architecture, ``bptt_steps`` above 1 and the replicate above 0."""
        bptt_steps = f", bptt_steps {self.bptt_steps}" if self.bptt_steps > 1 else ""
        replicate = f" #{self.replicate}" if self.replicate else ""
        return f"{self.architecture.label}{bptt_steps}{replicate}"
