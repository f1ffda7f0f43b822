"""A network as a plain module: embedding, layers of one cell, linear head.

T is the number of time steps, B the number of streams, n the state size, V the number of outputs:
classes, tokens of the vocabulary or numbers.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from rnn.cells import CELLS
from rnn.config import (
    BYTES,
    NORM_EPS,
    OPTIMIZERS,
    WHOLE_SEQUENCE,
    NetworkConfig,
    NetworkFacts,
    Precision,
    TaskSpec,
    TrialConfig,
)
from rnn.errors import CellError, is_out_of_memory
from rnn.own_code import describe_error, load_class, loaded_source

NamedTensors = dict[str, Tensor]
"""A network's weights and biases, or one number for each of them, by their names in its state
dict."""

SEQUENCE_FORM = "forward_sequence"
"""Name of the method of a cell that advances by several steps at once; see :mod:`rnn.cells`."""


class Network(nn.Module):
    """A recurrent network; one instance of a cell (:mod:`rnn.cells`) is one layer.

    The states of all layers, each a tensor or a tuple of tensors, are handled as one list.
    Gradients pass through all T time steps that :meth:`forward` is given, and through the states
    that it starts from unless the caller detaches them.

    Args:
        config: config of the network.
        spec: what it reads and predicts.

    Raises:
        CellError: if a user's cell is not loaded, its constructor raises an exception, or its
            parameters cannot be trained.
    """

    def __init__(self, config: NetworkConfig, spec: TaskSpec = BYTES) -> None:
        super().__init__()
        self.cell = config.label if config.is_built_in else config.cell
        self.reads_tokens = spec.reads_tokens
        self.embedding = nn.Linear(spec.inputs, config.state_size)
        self.layers = nn.ModuleList(_build_layer(config) for _ in range(config.layers))
        blocks = config.layers if config.is_residual else 0
        self.norms = nn.ModuleList(nn.RMSNorm(config.state_size, NORM_EPS) for _ in range(blocks))
        self.head = nn.Linear(config.state_size, spec.outputs)
        # The number of tensors in the tuple of each layer; None for a single tensor.
        self._tuple_sizes: list[int | None] = []
        self._reads_sequences = not spec.resets_often
        self._check_parameters()

    def _check_parameters(self) -> None:
        names: dict[int, str] = {}
        for name, tensor in named_tensors(self).items():
            kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            if kind == "parameter" and tensor.is_complex():
                raise CellError(
                    f"parameter {name} of cell {self.cell} is complex: expected real parameters, "
                    "as in a pair of the real and the imaginary part"
                )
            if (other := names.setdefault(id(tensor), name)) != name:
                raise CellError(
                    f"cell {self.cell} has one {kind} under two names, {other} and {name}: "
                    f"expected each {kind} once"
                )

    def initial_states(self, streams: int) -> list[Tensor]:
        """Return the states of all layers at a sequence's start, (B, …) each."""
        weight = self.head.weight
        states = []
        self._tuple_sizes = []
        for layer in self.layers:
            initial_state = getattr(layer, "initial_state", None)
            if initial_state is not None:
                state = initial_state(streams)
            else:
                state = weight.new_zeros(streams, self.head.in_features)
            tensors = list_parts(state)
            if not tensors or not all(map(_is_real_tensor, tensors)):
                raise CellError(
                    f"cell {self.cell}: initial_state returned {_describe(state)}: expected a real "
                    "tensor or a tuple of real tensors"
                )
            self._tuple_sizes.append(len(tensors) if isinstance(state, tuple) else None)
            for tensor in tensors:
                if tensor.shape[:1] != (streams,):
                    raise CellError(
                        f"cell {self.cell}: initial_state returned a tensor of shape "
                        f"{tuple(tensor.shape)} for a batch size of {streams}: expected the batch "
                        "size as its first axis"
                    )
                dtype = weight.dtype if tensor.is_floating_point() else tensor.dtype
                if dtype == torch.float32:  # that of an export, which does not convert it
                    self._require_dtype("initial_state returned a state", tensor, dtype)
                states.append(tensor.to(weight.device, dtype))
        return states

    def forward(
        self,
        inputs: Tensor,
        states: Sequence[Tensor] | None = None,
        outputs: int | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Read T steps of each stream and predict what belongs to each.

        Args:
            inputs: tokens (T, B), or numbers (T, B, inputs).
            states: states of all layers before the first step; None for the initial ones, with
                their gradients.
            outputs: U ≤ T, the number of last steps of which to return the outputs; None for all.
            places: places (N,) among these U·B outputs, of which to compute them; None for all.

        Returns:
            The outputs (U, B, V) or (N, V), logits of classes or numbers, and the states of all
            layers after the last step.

        Raises:
            ValueError: if the inputs have another shape.
        """
        numbers = self.embedding.in_features
        is_shaped = inputs.ndim == 2 if self.reads_tokens else inputs.shape[2:] == (numbers,)
        if not is_shaped or not len(inputs):
            kind = "tokens (T, B)" if self.reads_tokens else f"numbers (T, B, {numbers})"
            raise ValueError(
                f"the inputs have the shape {tuple(inputs.shape)}: expected {kind} of T time steps "
                "and B streams"
            )
        if states is None:
            states = self.initial_states(inputs.shape[1])
        elif not self._tuple_sizes:  # they come from another network
            self.initial_states(1)
        remaining = iter(states)
        if self.reads_tokens:
            # A linear map of a one-hot token is a row of its weights.
            xs = functional.embedding(inputs, self.embedding.weight.T)  # (T, B, n)
            xs = xs + self.embedding.bias  # (T, B, n)
        else:
            xs = self.embedding(inputs).to(self.embedding.bias.dtype)  # (T, B, n)
        dtype = xs.dtype
        next_states = []
        for index, (layer, size) in enumerate(zip(self.layers, self._tuple_sizes, strict=True)):
            old = [next(remaining) for _ in range(size or 1)]
            needed = len(inputs)
            if layer is self.layers[-1]:
                needed = outputs or len(inputs)
            read = self.norms[index](xs) if self.norms else xs  # (T, B, n)
            ys, new = self._unroll(layer, read, old, size is not None, needed)
            xs = xs[len(xs) - needed :] + ys if self.norms else ys  # (U, B, n)
            next_states += new
        if places is not None:
            xs = xs.flatten(0, 1).index_select(0, places)  # (N, n)
        return self.head(xs).to(dtype), next_states

    def _unroll(
        self, layer: nn.Module, xs: Tensor, old: list[Tensor], is_tuple: bool, outputs: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Advance a layer by T steps; return its last outputs (U, B, n) and its state's tensors."""
        if len(xs) == 1:
            y, new = self._advance(layer, "forward", xs[0], old, is_tuple)  # (B, n)
            return y[None], new
        if self._reads_sequences and has_sequence_form(layer):
            ys, new = self._advance(layer, SEQUENCE_FORM, xs, old, is_tuple)  # (T, B, n)
            return ys[len(ys) - outputs :], new
        stepwise = []
        for x in xs:
            y, old = self._advance(layer, "forward", x, old, is_tuple)  # (B, n)
            stepwise.append(y)
        return torch.stack(stepwise[len(stepwise) - outputs :]), old

    def _advance(
        self, layer: nn.Module, form: str, x: Tensor, old: list[Tensor], is_tuple: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Call a method of a layer; return its output, of the shape of x, and its state's tensors.

        Both keep their shapes and dtypes: what a cell returns in bfloat16 under ``torch.autocast``
        is converted.
        """
        before = tuple(old) if is_tuple else old[0]
        # A call of the layer, and not of its method forward, runs the hooks of PyTorch.
        result = layer(x, before) if form == "forward" else getattr(layer, form)(x, before)
        if not isinstance(result, tuple) or len(result) != 2:
            raise CellError(
                f"cell {self.cell}: {form} returned {_describe(result)}: expected the output and "
                "the new state"
            )
        (output,) = self._convert(form, "output", result[0], x, "input")
        return output, self._convert(form, "state", result[1], before, "initial state")

    def _convert(self, form: str, part: str, value: Any, like: Any, original: str) -> list[Tensor]:
        """Return the tensors of what a method returned, in the dtypes of its arguments."""
        tensors = list_parts(value)
        originals = list_parts(like)
        shapes = [getattr(tensor, "shape", None) for tensor in tensors]
        is_like = isinstance(value, tuple) == isinstance(like, tuple)
        if not is_like or shapes != [tensor.shape for tensor in originals]:
            raise CellError(
                f"cell {self.cell}: {form} returned {_describe(value)} as the {part}: expected "
                f"{_describe(like)}, like the {original}"
            )
        article = "an output" if part == "output" else "a state"
        for tensor, other in zip(tensors, originals, strict=True):
            self._require_dtype(f"{form} returned {article}", tensor, other.dtype)
        return [tensor.to(other.dtype) for tensor, other in zip(tensors, originals, strict=True)]

    def _require_dtype(self, returned: str, tensor: Tensor, expected: torch.dtype) -> None:
        """Refuse a tensor of another dtype, but for a float under ``torch.autocast``."""
        if tensor.dtype == expected:
            return
        are_floats = tensor.is_floating_point() and expected.is_floating_point
        if not are_floats or not torch.is_autocast_enabled(tensor.device.type):
            raise CellError(f"cell {self.cell}: {returned} of {tensor.dtype}: expected {expected}")


def has_sequence_form(cell: object) -> bool:
    """Return whether a cell, or its class, has a sequence form.

    It is a method of the class, of which a study keeps a record. None as the attribute is none.
    """
    owners = (cell, cell if isinstance(cell, type) else type(cell))
    return all(getattr(owner, SEQUENCE_FORM, None) is not None for owner in owners)


def _build_layer(config: NetworkConfig) -> nn.Module:
    n = config.state_size
    options: dict[str, Any] = dict(config.options)
    if config.sha256 is None:
        return CELLS[config.cell](n, n, **options)
    cls: type[nn.Module] = load_class(loaded_source(config.cell, config.sha256))
    try:
        return cls(input_size=n, state_size=n, **options)
    except Exception as error:  # the constructor may raise any
        if is_out_of_memory(error):
            raise
        given = "".join(f", {name}={value!r}" for name, value in options.items())
        raise CellError(
            f"cell {config.cell}(input_size={n}, state_size={n}{given}) raises "
            f"{describe_error(error)}"
        ) from error


def list_parts(state: Any) -> list[Any]:
    """Return the tensors of a cell's state."""
    return list(state) if isinstance(state, tuple) else [state]


def reset_states(
    states: Iterable[Tensor], initial: Iterable[Tensor], streams: Tensor
) -> list[Tensor]:
    """Return states in which some streams have the initial ones.

    Args:
        states: (…, B, …)
        initial: the initial states, of the same shapes.
        streams: which streams have them (…, B).
    """
    reset = []
    for old, new in zip(states, initial, strict=True):
        chosen = streams.view(*streams.shape, *[1] * (old.dim() - streams.dim()))
        reset.append(torch.where(chosen, new, old))
    return reset


def _is_real_tensor(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_complex()


def _describe(value: object) -> str:
    """Return a value's type with an article, and the shapes of its tensors."""
    if isinstance(value, Tensor):
        kind = "complex tensor" if value.is_complex() else "tensor"
        return f"a {kind} of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_describe, value))})"
    return "None" if value is None else f"a value of type {type(value).__name__}"


class Batch(NamedTuple):
    """Sequences, the time as the first axis.

    Attributes:
        inputs: tokens (T, B), or numbers (T, B, inputs).
        targets: classes (T, B), or numbers (T, B, outputs).
        mask: weights of the targets (T, B); None if all are 1.
        resets: whether states are set to the initial ones before a step (T, B); None if they are
            before the first step only.
        slices: integers (T, B) by name.
    """

    inputs: npt.NDArray[Any]
    targets: npt.NDArray[Any]
    mask: npt.NDArray[np.float32] | None = None
    resets: npt.NDArray[np.bool_] | None = None
    slices: Mapping[str, npt.NDArray[np.int64]] = {}

    @property
    def weights(self) -> npt.NDArray[np.float32]:
        """Weights of the targets (T, B)."""
        if self.mask is None:
            return np.ones(self.inputs.shape[:2], np.float32)
        return self.mask


class Window(NamedTuple):
    """What one update of K networks reads: T time steps, and the targets of the last of them.

    Networks that read separate data have an axis K behind that of the steps.

    Attributes:
        inputs: tokens (T, B), or numbers (T, B, inputs).
        targets: of the last U steps: classes (U, B), or numbers (U, B, outputs).
        mask: weights of the targets (U, B); None if all are 1.
        resets: steps at which streams (B,) are set to the initial states, from the first on.
        begins: whether the first step is that of a sequence, which starts from the initial states.
        advance: number of last steps that are new; the earlier ones are read once more.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor | None = None
    resets: tuple[tuple[int, Tensor], ...] = ()
    begins: bool = False
    advance: int = 1


# ------------------------------------------------------------------ tensors of a module


def is_trained(tensor: Tensor) -> bool:
    """Return whether a tensor of a module is trained: a parameter that requires a gradient."""
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers under all of their names, saved or not."""
    parameters = module.named_parameters(remove_duplicate=False)
    return dict(parameters) | dict(module.named_buffers(remove_duplicate=False))


def split_tensors(module: nn.Module) -> tuple[NamedTensors, NamedTensors]:
    """Return the trained tensors of a module's state dict, and the constant ones."""
    tensors = named_tensors(module)
    # The others are what get_extra_state returns.
    saved = {name: tensors[name] for name in module.state_dict() if name in tensors}
    return (
        {name: tensor.detach() for name, tensor in saved.items() if is_trained(tensor)},
        {name: tensor.detach() for name, tensor in saved.items() if not is_trained(tensor)},
    )


# ------------------------------------------------------------------ shapes


class NetworkShapes(NamedTuple):
    """Shapes of what a network trains and carries on.

    Attributes:
        parameters: trained tensors by their names in the state dict, such as
            ``layers.0.candidate.bias``; weights of linear maps have the shape (outputs, inputs).
        states: number of numbers in the states of all layers, of one stream.
    """

    parameters: dict[str, tuple[int, ...]]
    states: int

    @property
    def parameter_count(self) -> int:
        """Number of weights and biases."""
        return sum(map(math.prod, self.parameters.values()))

    def count_trained(self, facts: NetworkFacts) -> int:
        """Return the number of weights and biases in the parts that a gradient reaches."""
        return sum(
            math.prod(shape)
            for name, shape in self.parameters.items()
            if facts.trained.get(name_part(name), True)
        )

    @property
    def linear_maps(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear map of a built-in network, such as ``embedding``."""
        weights = {
            name.removesuffix(".weight"): shape
            for name, shape in self.parameters.items()
            if name.endswith(".weight") and len(shape) == 2
        }
        return {name: (inputs, outputs) for name, (outputs, inputs) in weights.items()}


def name_part(tensor: str) -> str:
    """Return the part of a network that a tensor belongs to: ``layers.0.candidate``."""
    names = tensor.split(".")
    places = {"layers": 3, "norms": 2}
    return ".".join(names[: places.get(names[0], 1)])


@cache
def network_shapes(config: NetworkConfig, spec: TaskSpec = BYTES) -> NetworkShapes:
    """Return the shapes of a network's tensors.

    Raises:
        CellError: if the network of a user's cell cannot be built.
    """
    try:
        with torch.device("meta"):
            module = Network(config, spec)
            states = module.initial_states(1)
    except Exception:  # a user's cell may compute with values
        if config.is_built_in:
            raise
        module = build_seeded(config, spec, 0)
        states = module.initial_states(1)
    parameters, _ = split_tensors(module)
    return NetworkShapes(
        {name: tuple(tensor.shape) for name, tensor in parameters.items()},
        sum(state.numel() for state in states),
    )


def count_parameters(config: NetworkConfig, spec: TaskSpec = BYTES) -> int:
    """Count all weights and biases, embedding and head included."""
    return network_shapes(config, spec).parameter_count


def estimate_memory(
    config: TrialConfig,
    streams: int,
    precision: Precision,
    spec: TaskSpec = BYTES,
    sequence_steps: int = WHOLE_SEQUENCE,
) -> int:
    """Return an upper estimate of the memory that a network takes in training, in bytes.

    Args:
        config: config of the network; memory grows with the steps of an update.
        streams: B.
        precision: precision of the arithmetic.
        spec: what the network reads and predicts.
        sequence_steps: steps of a training sequence, the most that a gradient passes through.
    """
    size = 8 if precision == "fp64" else 4
    window = min(max(config.bptt_steps, config.update_every), sequence_steps)
    # The outputs of all losses of an update, which autograd keeps, and the states of earlier steps.
    predicted = min(config.update_every, sequence_steps)
    shapes = network_shapes(config.architecture, spec)
    # Weights, their average, gradients and two moments; bfloat16 weights and gradients; autograd's
    # gradients.
    is_gated = config.architecture.is_gated
    is_plain_gated = is_gated and not config.architecture.is_residual
    uses_autograd = not is_plain_gated or window > 1 or not spec.is_token_stream
    copies = 5 + uses_autograd + OPTIMIZERS[config.optimizer.name].temporaries
    parameters = count_parameters(config.architecture, spec)
    weights = parameters * (copies * size + 2 * 2 * (precision == "bf16"))
    # Activations and temporaries: a few numbers for each input and output.
    per_input = 4
    per_output = 6
    others = 0
    if not config.architecture.is_built_in:
        # Its other temporaries are unknown: eight of the size of its inputs and states.
        n = config.architecture.state_size
        layers = config.architecture.layers
        per_input = 2
        per_output = 1
        others = 8 * (shapes.states + layers * n) * window + 8 * n
    numbers = others + sum(
        (per_input * inputs + per_output * outputs)
        * (window if name.startswith("layers.") else predicted)
        for name, (outputs, *inputs_of_map) in shapes.parameters.items()
        for inputs in inputs_of_map  # a bias has none
    )
    return weights + streams * numbers * size


# ------------------------------------------------------------------ initial weights


def initialization_seed(config: TrialConfig, seed: int) -> int:
    """Return the seed of a network's initial weights, which must never change."""
    name = f"{seed}/{config.architecture.init_key}/{config.replicate}"
    # 63 bits, which every torch generator accepts.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def draw_initial_weights(config: TrialConfig, seed: int, spec: TaskSpec = BYTES) -> NamedTensors:
    """Draw the weights and biases of a network of a built-in cell as ``torch.nn.Linear`` does.

    They are uniform in ±1/√inputs, but the scales of residual blocks, which are ones. They depend
    on the seed, the architecture and the replicate alone, not on what trains the network. They are
    drawn in float64 and are the same numbers, rounded, in every precision.
    """
    assert config.architecture.is_built_in, "its constructor draws them"
    generator = torch.Generator().manual_seed(initialization_seed(config, seed))
    shapes = network_shapes(config.architecture, spec)
    weights: NamedTensors = {
        name: torch.ones(shape, dtype=torch.float64)
        for name, shape in shapes.parameters.items()
        if name.startswith("norms.")
    }
    for param, (inputs, outputs) in shapes.linear_maps.items():
        bound = 1 / math.sqrt(inputs)
        drawn = torch.rand(inputs + 1, outputs, generator=generator, dtype=torch.float64)
        drawn = (2 * drawn - 1) * bound
        weights |= {f"{param}.weight": drawn[:-1].T, f"{param}.bias": drawn[-1]}
    return weights


def build_seeded(config: NetworkConfig, spec: TaskSpec, seed: int) -> Network:
    """Build a network on the CPU with the weights that its constructors draw with a seed.

    PyTorch's global generator is as it was before.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return Network(config, spec)
