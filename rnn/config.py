"""Configs of networks and optimizers, and the names of networks.

This module needs no PyTorch. It holds the only lists of cells, of the values of their options, of
precisions and of optimizers.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

StateSource = Literal["new", "old", "both"]
STATE_SOURCES: tuple[StateSource, ...] = get_args(StateSource)
"""States that the read-out of a gated layer can read."""

GateInputs = Literal["state", "candidate"]
GATE_INPUTS: tuple[GateInputs, ...] = get_args(GateInputs)
"""What the state gate and the forget gate of a gated layer can read."""

GATED_CELL = "gated"

_CELL_LABELS = {"elman": "Elman", "gru": "GRU", "lstm": "LSTM"}

BASELINE_CELLS = tuple(_CELL_LABELS)

BUILT_IN_CELLS = (GATED_CELL, *BASELINE_CELLS)
"""Names of the cells that need no file."""

Block = Literal["plain", "residual"]
BLOCKS: tuple[Block, ...] = get_args(Block)
"""What a layer is: its cell, or the cell behind a normalisation, with a residual connection."""

NORM_EPS = 1e-6
"""What RMSNorm of a residual block adds to the mean square."""

BUILT_IN_TASKS = (
    "copy", "adding", "parity", "selective_copy", "induction", "mqar", "words",
    "digits", "mnist1d", "series", "sequences",
)  # fmt: skip
"""Names of the tasks that need no file, but text; some take an argument after a colon."""

TrainingPrecision = Literal["fp32", "tf32", "bf16"]
Precision = Literal[TrainingPrecision, "fp64"]
"""``bf16``: matrix products in bfloat16, everything else in float32. ``tf32``: a GPU rounds the
factors of matrix products to ten bits. ``fp64``: for numerical checks."""

ParamValue = bool | int | float | str
"""Value of a parameter of a trial."""

BYTE_VOCAB_SIZE = 256


@dataclass(frozen=True, slots=True)
class GatedOptions:
    """Options of the gated cell; see :class:`rnn.cells.GatedCell` for the equations.

    Study files have the same parameters, with these types and descriptions.

    Attributes:
        input_gate: whether a gate scales the layer's input and the old state.
        forget_gate: whether a gate scales the new state.
        output_gate: whether a gate scales the output; without it, the output gates itself (SiLU).
        state_gate: whether a gate mixes the candidate with the old state, as in a GRU.
        residual: whether the output reads the layer's input as well as the state.
        state_source: state that the output reads: the new one, the old one, or both.
        gate_inputs: what the state gate and the forget gate read: the layer's input and old state
            (``"state"``), or the candidate as well (``"candidate"``). Fixed within a study.

    Raises:
        ValueError: if a value is not allowed.
    """

    input_gate: bool
    forget_gate: bool
    output_gate: bool
    state_gate: bool
    residual: bool
    state_source: StateSource
    gate_inputs: GateInputs = "state"

    def __post_init__(self) -> None:
        for name, choices in GATED_OPTIONS.items():
            _check_choice(name, getattr(self, name), choices)

    @classmethod
    def of_largest(cls, gate_inputs: GateInputs = "state") -> "GatedOptions":
        """Return the options of the largest network of a shape: all of them."""
        largest: dict[str, Any] = {name: choices[-1] for name, choices in GATED_OPTIONS.items()}
        return cls(**largest | {"gate_inputs": gate_inputs})

    def network(self, layers: int, state_size: int) -> "NetworkConfig":
        """Return the config of a gated network with these options."""
        return NetworkConfig(GATED_CELL, layers, state_size, tuple(asdict(self).items()))

    @property
    def gates_read_candidate(self) -> bool:
        """Whether the state gate and the forget gate read the candidate."""
        return self.gate_inputs == "candidate"

    @property
    def reads_new_state(self) -> bool:
        """Whether the read-out reads the new state."""
        return self.state_source in ("new", "both")

    @property
    def reads_previous_state(self) -> bool:
        """Whether the read-out reads the previous state."""
        return self.state_source in ("old", "both")

    @property
    def has_previous_state_grad(self) -> bool:
        """Whether the read-out of the previous state carries a gradient within the time step."""
        return self.reads_previous_state and self.input_gate

    @property
    def output_depends_on_input(self) -> bool:
        """Whether a layer's output depends on its input at the same time step."""
        return self.reads_new_state or self.residual or self.input_gate

    @property
    def facts(self) -> "CellFacts":
        """What a gradient reaches in a layer, see :class:`CellFacts`."""
        recurrent = 0 if self.reads_new_state else 1
        through_gate = 0 if self.reads_previous_state else recurrent
        lags = {
            "input_gate": through_gate,
            "candidate": recurrent,
            "state_gate": recurrent,
            "forget_gate": recurrent,
            "read_out": 0,
            "output_gate": 0,
        }
        absent = [name for name in lags if name.endswith("_gate") and not getattr(self, name)]
        parts = {name: lag for name, lag in lags.items() if name not in absent}
        sees_input = self.output_depends_on_input
        return CellFacts(parts, 0 if sees_input else 1, sees_input)

    @property
    def label(self) -> str:
        """Short description, such as ``"forget+state gates, new state, residual"``."""
        names = [
            name for name in ("input", "forget", "output", "state") if getattr(self, f"{name}_gate")
        ]
        gates = f"{'+'.join(names) or 'no'} gate{'' if len(names) == 1 else 's'}"
        state = "both states" if self.state_source == "both" else f"{self.state_source} state"
        residual = ", residual" if self.residual else ""
        return f"{gates}, {state}{residual}"


GATED_OPTIONS: dict[str, tuple[ParamValue, ...]] = {
    field.name: (False, True) if field.type is bool else get_args(field.type)
    for field in fields(GatedOptions)
}
"""Values of each option of the gated cell; the last one makes the largest network."""

LATER_SWITCHES: dict[str, ParamValue] = {
    field.name: field.default
    for field in fields(GatedOptions)
    if field.default is not MISSING and field.name != "gate_inputs"
}
"""Switches that were added when studies existed, with their value in these: off."""


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The description of a network: one instance of a cell in each layer.

    Attributes:
        cell: name of a built-in cell, or of the class of a user's own.
        layers: number of stacked layers.
        state_size: size n of a layer's state, input and output, and of the embedding. The state of
            a user's cell may have another size.
        options: names and values of the constructor's options, in its order: all of the gated cell;
            of a user's cell those that the study varies, the others have their defaults.
        sha256: hash of the source file of a user's cell, in hexadecimal digits; None for a built-in
            cell.
        block: what a layer makes of its input x: `plain`, cell(x), or `residual`,
            x + cell(RMSNorm(x)).

    Raises:
        ValueError: if a value is not allowed.
    """

    cell: str
    # Bounds have the names of pydantic's Field, which this package does without.
    layers: Annotated[int, {"ge": 1, "le": 100}]
    state_size: Annotated[int, {"ge": 1, "le": 2**16}]
    options: tuple[tuple[str, ParamValue], ...] = ()
    sha256: str | None = None
    block: Block = "plain"

    def __post_init__(self) -> None:
        for name in ("layers", "state_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:  # a bool is no number here
                raise ValueError(f"{name} is {str(value)[:40]}: expected an integer of 1 or more")
        _check_choice("block", self.block, BLOCKS)
        if not self.is_built_in:
            return
        _check_choice("cell", self.cell, BUILT_IN_CELLS)
        expected = (*GATED_OPTIONS,) if self.is_gated else ()
        if tuple(name for name, _ in self.options) != expected:
            raise ValueError(f"options of cell {self.cell} are {self.options}: expected {expected}")
        if self.is_gated:
            _read_gated_options(self.options)

    @property
    def is_built_in(self) -> bool:
        """Whether the cell is not a user's own."""
        return self.sha256 is None

    @property
    def is_gated(self) -> bool:
        """Whether the cell is the gated one."""
        return self.is_built_in and self.cell == GATED_CELL

    @property
    def is_residual(self) -> bool:
        """Whether each layer is a residual block."""
        return self.block == "residual"

    @property
    def gated(self) -> GatedOptions:
        """Options of the gated cell, if it is the cell."""
        return _read_gated_options(self.options)

    @property
    def label(self) -> str:
        """Short name, unique within a study.

        For example ``"2×256 forget+state gates, new state, residual"``,
        ``"2×256 GRU, residual blocks"`` or ``"2×256 MinGRU, norm, expansion 1.5"``. Of the
        switches of a cell it names those that are on.
        """
        if self.is_gated:
            cell = self.gated.label
        elif self.is_built_in:
            cell = _CELL_LABELS[self.cell]
        else:
            cell = ", ".join([self.cell, *_label_options(self.options)])
        blocks = ", residual blocks" if self.is_residual else ""
        return f"{self.layers}×{self.state_size} {cell}{blocks}"

    @property
    def init_key(self) -> str:
        """String that seeds the initial weights; it must never change."""
        sizes = f"{self.layers}-{self.state_size}{'-residual' if self.is_residual else ''}"
        if not self.is_gated:
            options = "".join(f"-{name}={value!r}" for name, value in self.options)
            return f"{self.cell}{options}-{sizes}"
        gated = self.gated
        gates = (gated.input_gate, gated.forget_gate, gated.output_gate, gated.state_gate)
        switches = "".join(str(int(switch)) for switch in (*gates, gated.residual))
        return f"{switches}-{gated.state_source}-{sizes}-{gated.gate_inputs}"


@dataclass(frozen=True, slots=True)
class CellFacts:
    """What the output of one layer depends on, and what a gradient of it reaches.

    A lag is the least number of time steps that a gradient goes back from the output to reach
    something; None if no gradient ever does.

    Attributes:
        parts: lag of each part of the cell: of the weights with one name in front of the first dot.
            A part is reached if any of its weights is.
        input_lag: lag of the layer's input.
        sees_input: whether the output at a step depends on the input of that step.
    """

    parts: Mapping[str, int | None]
    input_lag: int | None
    sees_input: bool


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """Which parts of a network are trained, and whether its output sees its input.

    Attributes:
        trained: whether a gradient reaches each part by its name: ``embedding``, ``head``, or as
            ``layers.0.candidate`` and ``norms.0`` those of a layer.
        sees_input: whether the output at a step depends on the input of that step.
    """

    trained: Mapping[str, bool]
    sees_input: bool

    @property
    def cell_parts(self) -> dict[str, bool]:
        """Whether each part of the cell is trained in one of the layers."""
        found: dict[str, bool] = {}
        for name, is_trained in self.trained.items():
            if name.startswith("layers."):
                part = name.split(".", 2)[2]
                found[part] = found.get(part, False) or is_trained
        return found


_BASELINE_FACTS = CellFacts({"input": 0, "state": 0}, 0, True)


def describe_network(config: NetworkConfig, cell: CellFacts | None, depth: int) -> NetworkFacts:
    """Return what a gradient reaches in a network.

    Args:
        config: the network.
        cell: facts of its cell, of a user's own; None for a built-in one.
        depth: number of steps, the current one included, that a gradient passes through.
    """
    if config.is_built_in:
        cell = config.gated.facts if config.is_gated else _BASELINE_FACTS
    assert cell is not None, "a user's cell"

    def is_reached(lag: float) -> bool:
        return lag < depth

    through_cell = math.inf if cell.input_lag is None else cell.input_lag
    trained = {"head": True}
    lag = 0.0  # of the output of a layer
    for layer in reversed(range(config.layers)):
        for part, of_part in cell.parts.items():
            trained[f"layers.{layer}.{part}"] = of_part is not None and is_reached(lag + of_part)
        if config.is_residual:  # the connection carries the gradient past the cell
            trained[f"norms.{layer}"] = is_reached(lag + through_cell)
        else:
            lag += through_cell
    trained["embedding"] = is_reached(lag)
    return NetworkFacts(trained, config.is_residual or cell.sees_input)


def _label_options(options: Iterable[tuple[str, ParamValue]]) -> list[str]:
    """Name the switches that are on, and the values of other options."""
    named = ((name.replace("_", " "), value) for name, value in options if value is not False)
    return [name if value is True else f"{name} {value}" for name, value in named]


@cache
def _read_gated_options(options: tuple[tuple[str, ParamValue], ...]) -> GatedOptions:
    values: dict[str, Any] = dict(options)
    return GatedOptions(**values)


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a network reads and predicts at a time step, and by which loss it is trained.

    Attributes:
        inputs: number of tokens of the vocabulary, or of real numbers that a step consists of.
        outputs: number of classes, or of real numbers that are predicted.
        reads_tokens: whether a step is a token.
        predicts_classes: whether a target is a class.
        is_dense: whether every step of a sequence has a target, all of the same weight, and states
            are set to the initial ones before the first step of a sequence only.
        loss: losses (N,) of outputs (N, outputs) and targets (N,) or (N, outputs), as tensors; None
            for the cross-entropy in nats or, of numbers, their mean squared error.
        resets_often: whether states are set to the initial ones every few steps of a batch, so that
            cells read one step at a time even where they have a sequence form.
    """

    inputs: int
    outputs: int
    reads_tokens: bool = True
    predicts_classes: bool = True
    is_dense: bool = True
    loss: Callable[[Any, Any], Any] | None = None
    resets_often: bool = False

    @classmethod
    def of_text(cls, vocab_size: int) -> "TaskSpec":
        """Return what a network of a text reads and predicts: tokens of one vocabulary."""
        return cls(vocab_size, vocab_size)

    @property
    def is_token_stream(self) -> bool:
        """Whether each step is a token that has a target of the same vocabulary, as in a text."""
        tokens = self.reads_tokens and self.predicts_classes and self.inputs == self.outputs
        return tokens and self.is_dense and self.loss is None


BYTES = TaskSpec.of_text(BYTE_VOCAB_SIZE)
"""Text of bytes."""

WHOLE_SEQUENCE = 2**31 - 1
"""As ``bptt_steps`` and ``update_every``: one update for each sequence, by its whole gradient."""


def count_updates(steps: int, sequence_steps: int, update_every: int) -> int:
    """Return the number of updates of a training.

    Windows of ``update_every`` steps, at the end of each of which there is an update, begin anew
    with each sequence; the last one of a sequence, and of the training, may be shorter.

    Args:
        steps: number of time steps.
        sequence_steps: T, the number of steps of a sequence.
        update_every: U, as in :class:`TrialConfig`.
    """
    sequences, rest = divmod(steps, sequence_steps)
    return sequences * -(-sequence_steps // update_every) - (-rest // update_every)


class OptimizerTraits(NamedTuple):
    """What all but the update itself needs to know about an optimizer.

    Attributes:
        title: name for a reader.
        settings: settings of :class:`OptimizerConfig` that it uses, of those that not all use.
        moments: moments of the gradient that it keeps, ``"first"`` or ``"second"``.
        temporaries: number of tensors of the weights' size that an update allocates.
    """

    title: str
    settings: tuple[str, ...]
    moments: tuple[str, ...]
    temporaries: int = 0


OPTIMIZERS = {
    "adam": OptimizerTraits("Adam", ("beta1", "beta2"), ("first", "second")),
    "adamw": OptimizerTraits("AdamW", ("beta1", "beta2"), ("first", "second")),
    "rmsprop": OptimizerTraits("RMSprop", ("beta2",), ("second",), temporaries=2),
    "sgd": OptimizerTraits("SGD", ("momentum",), ("first",)),
}
"""Every optimizer; :mod:`rnn.training.optimizer` has an update for each."""

if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]

Schedule = Literal["constant", "cosine", "linear"]
"""What the learning rate does after its warm-up."""

_Decay = Annotated[float, {"ge": 0, "lt": 1}]
_NonNegative = Annotated[float, {"ge": 0}]


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """Settings of an optimizer; :mod:`rnn.training.optimizer` has the equations.

    Study files have the same settings, ``name`` as ``optimizer``, with these bounds, defaults and
    descriptions. In the equations, α is the learning rate, β₁ and β₂ are the decays, λ is the
    weight decay and μ the momentum.

    Attributes:
        name: optimizer. `adamw` decouples the weight decay from the gradient; the others add it to
            the gradient.
        learning_rate: learning rate; the highest one, if there is a warm-up or a schedule.
        beta1: decay of the running mean of the gradient, in `adam` and `adamw`.
        beta2: decay of the running mean of the squared gradient, in all but `sgd`.
        weight_decay: strength of the weight decay.
        momentum: factor of the previous updates in the next one, in `sgd`.
        gradient_clipping: maximum norm of a network's gradient; 0 for none.
        schedule: learning rate after the warm-up: constant, or falling to 0 by the end of the
            training, along half a cosine or a line.
        warmup_steps: number of updates over which the learning rate rises linearly from 0.
    """

    name: OptimizerName = "adam"
    learning_rate: Annotated[float, {"gt": 0}] = 0.001
    beta1: _Decay = 0.9
    beta2: _Decay = 0.999
    weight_decay: _NonNegative = 0.0
    momentum: _Decay = 0.9
    gradient_clipping: _NonNegative = 0.0
    schedule: Schedule = "constant"
    warmup_steps: Annotated[int, {"ge": 0}] = 0


class TrialConfig(NamedTuple):
    """A network config and what distinguishes its training from other runs of it.

    Attributes:
        architecture: config of the network.
        replicate: number of the run; it seeds the initial weights and the order of the data.
        bptt_steps: W, the number of time steps, the current one included, that a gradient passes
            through; :data:`WHOLE_SEQUENCE` for all of a sequence.
        optimizer: optimizer of its weights.
        varied: names and values of the training settings in which its study varies; they
            distinguish trials that differ in nothing else.
        update_every: U, the number of time steps between two updates, each by the gradient of the
            mean of the last U losses; at most W, or any number if W = 1.
        task_options: names and values of the options of the task in which its study varies.
    """

    architecture: NetworkConfig
    replicate: int = 0
    bptt_steps: int = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    varied: tuple[tuple[str, ParamValue], ...] = ()
    update_every: int = 1
    task_options: tuple[tuple[str, ParamValue], ...] = ()

    @property
    def updates_every_step(self) -> bool:
        """Whether there is an update at every step, by a gradient that crosses none."""
        return self.bptt_steps == 1 and self.update_every == 1

    @property
    def earlier_states(self) -> int:
        """Number of earlier states that updates start from: those of windows that overlap."""
        return (self.bptt_steps - 1) // self.update_every

    @property
    def label(self) -> str:
        """Short name: the architecture, the training settings that vary, the replicate above 0."""
        varied = (*self.task_options, *self.varied)
        settings = "".join(
            f", {name.replace('_', ' ')} {format_value(value)}" for name, value in varied
        )
        replicate = f" #{self.replicate}" if self.replicate else ""
        return f"{self.architecture.label}{settings}{replicate}"


def format_value(value: ParamValue) -> str:
    """Return a parameter's value as it is written in a study file, without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_choice(name: str, value: ParamValue, choices: tuple[ParamValue, ...]) -> None:
    if value not in choices or type(value) is not type(choices[0]):  # 1 is not True
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"{name} is {str(value)[:40]!r}: expected one of {expected}")
