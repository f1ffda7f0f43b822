"""A network of a user's own cell as a plain module: embedding, layers of the cell, head.

T is the number of time steps, B the number of streams, n the state size, V the vocabulary size.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from rnn.cells.loading import cell_class, describe_error
from rnn.cells.options import cell_options, check_option_values
from rnn.config import BYTE_VOCAB_SIZE, CellConfig
from rnn.errors import CellError
from rnn.training.devices import is_out_of_memory


class CellModule(nn.Module):
    """A language model of a user's own cell; one instance of the class is one layer.

    The states of all layers, each a tensor or a tuple of tensors, are handled as one list.

    Args:
        config: config of the network.
        vocab_size: V.

    Raises:
        CellError: if the cell is not loaded, its constructor raises an exception, or its parameters
            cannot be trained.
    """

    def __init__(self, config: CellConfig, vocab_size: int = BYTE_VOCAB_SIZE) -> None:
        super().__init__()
        self.cell = config.cell
        self.embedding = nn.Linear(vocab_size, config.state_size)
        self.layers = nn.ModuleList(_build_layer(config) for _ in range(config.layers))
        self.head = nn.Linear(config.state_size, vocab_size)
        # The number of tensors in the tuple of each layer; None for a single tensor.
        self._tuple_sizes: list[int | None] = []
        self._check_parameters()

    def _check_parameters(self) -> None:
        names: dict[int, str] = {}
        for name, tensor in named_tensors(self).items():
            kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            if is_lazy(tensor):
                raise CellError(
                    f"{kind} {name} of cell {self.cell} has no shape yet: expected the "
                    "constructor to define it"
                )
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
        weight, states = self.head.weight, []
        self._tuple_sizes = []
        for layer in self.layers:
            initial_state = getattr(layer, "initial_state", None)
            if initial_state is not None:
                state = self._call("initial_state", initial_state, streams)
            else:
                state = weight.new_zeros(streams, self.head.in_features)
            tensors = self._to_tensors(state, f"initial_state returned {_describe(state)}")
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
        self, tokens: Tensor, states: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Read T tokens of each stream and predict the next one.

        Args:
            tokens: (T, B).
            states: states of all layers before the first token; None for the initial ones, with
                their gradients.

        Returns:
            The logits (B, V) after the last token, and the states of all layers then.
        """
        states = self.initial_states(tokens.shape[1]) if states is None else list(states)
        # A linear map of a one-hot token is a row of its weights.
        xs = functional.embedding(tokens, self.embedding.weight.T)  # (T, B, n)
        xs = xs + self.embedding.bias  # (T, B, n)
        y = xs[0]
        for x in xs:
            y, remaining, next_states = x, iter(states), []
            for layer, size in zip(self.layers, self._tuple_sizes, strict=True):
                y, new_state = self._advance(layer, y, remaining, size)  # (B, n)
                next_states += new_state
            states = next_states
        logits = self.head(y).to(xs.dtype)  # (B, V)
        return logits, states

    def _advance(
        self, layer: nn.Module, x: Tensor, states: Iterator[Tensor], size: int | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Advance a layer by one step; return its output (B, n) and the tensors of its state.

        Both keep their shapes and dtypes: what a cell returns in bfloat16 under ``torch.autocast``
        is converted.
        """
        old = [next(states) for _ in range(size or 1)]
        result = self._call("forward", layer, x, old[0] if size is None else tuple(old))
        if not isinstance(result, tuple) or len(result) != 2:
            raise CellError(
                f"cell {self.cell}: forward returned {_describe(result)}: expected the output and "
                "the new state"
            )
        output, state = result
        if not isinstance(output, Tensor) or output.shape != x.shape:
            raise CellError(
                f"cell {self.cell}: forward returned {_describe(output)} as the output: expected a "
                f"tensor of the input's shape {tuple(x.shape)}"
            )
        new = self._to_tensors(state, f"forward returned {_describe(state)} as the state")
        shapes = [tuple(tensor.shape) for tensor in new]
        expected = [tuple(tensor.shape) for tensor in old]
        if shapes != expected or isinstance(state, tuple) != (size is not None):
            raise CellError(
                f"cell {self.cell}: forward returned {_describe(state)} as the state: expected "
                f"{_describe(old[0] if size is None else tuple(old))}, like the initial state"
            )
        self._require_dtype("forward returned an output", output, x.dtype)
        for tensor, before in zip(new, old, strict=True):
            self._require_dtype("forward returned a state", tensor, before.dtype)
        return output.to(x.dtype), [
            tensor.to(before.dtype) for tensor, before in zip(new, old, strict=True)
        ]

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of the cell, which must not end the process."""
        try:
            return function(*arguments)
        except SystemExit as error:
            raise CellError(f"cell {self.cell}: {name} raises {describe_error(error)}") from error

    def _require_dtype(self, returned: str, tensor: Tensor, expected: torch.dtype) -> None:
        """Refuse a tensor of another dtype, but for a float under ``torch.autocast``."""
        if tensor.dtype == expected:
            return
        are_floats = tensor.is_floating_point() and expected.is_floating_point
        if not are_floats or not torch.is_autocast_enabled(tensor.device.type):
            raise CellError(f"cell {self.cell}: {returned} of {tensor.dtype}: expected {expected}")

    def _to_tensors(self, state: Any, returned: str) -> list[Tensor]:
        tensors = list(state) if isinstance(state, tuple) else [state]
        if not tensors or not all(
            isinstance(tensor, Tensor) and not tensor.is_complex() for tensor in tensors
        ):
            raise CellError(
                f"cell {self.cell}: {returned}: expected a real tensor or a tuple of real tensors"
            )
        return tensors


class InitialStates(nn.Module):
    """The initial states of a module as a module, for ``torch.func.functional_call``.

    Args:
        module: the network.
    """

    def __init__(self, module: CellModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, streams: int) -> list[Tensor]:
        """Return the states of all layers at a sequence's start, (B, …) each."""
        return self.module.initial_states(streams)


class ModuleShapes(NamedTuple):
    """Shapes of the tensors of a network of a user's own cell, by their names in its state dict.

    Attributes:
        parameters: trained ones.
        constants: buffers, and parameters that require no gradient.
        states: number of numbers in the states of all layers, of one stream.
    """

    parameters: dict[str, tuple[int, ...]]
    constants: dict[str, tuple[int, ...]]
    states: int


@cache
def module_shapes(config: CellConfig, vocab_size: int = BYTE_VOCAB_SIZE) -> ModuleShapes:
    """Return the shapes of a network's tensors.

    Raises:
        CellError: if the network cannot be built.
    """
    try:
        with torch.device("meta"):
            module = CellModule(config, vocab_size)
            states = module.initial_states(1)
    except Exception:  # it computes with values
        module = build_seeded(config, vocab_size, 0)
        states = module.initial_states(1)
    parameters, constants = split_tensors(module)
    return ModuleShapes(
        {name: tuple(tensor.shape) for name, tensor in parameters.items()},
        {name: tuple(tensor.shape) for name, tensor in constants.items()},
        sum(state.numel() for state in states),
    )


def split_tensors(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the trained tensors of a module's state dict, and the constant ones."""
    tensors = named_tensors(module)
    # The others are what get_extra_state returns.
    names = [name for name in module.state_dict() if name in tensors]
    return (
        {name: tensors[name].detach() for name in names if is_trained(tensors[name])},
        {name: tensors[name].detach() for name in names if not is_trained(tensors[name])},
    )


def is_trained(tensor: Tensor) -> bool:
    """Return whether a tensor of a module is trained: a parameter that requires a gradient."""
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers under all of their names, saved or not."""
    parameters = module.named_parameters(remove_duplicate=False)
    return dict(parameters) | dict(module.named_buffers(remove_duplicate=False))


def build_seeded(config: CellConfig, vocab_size: int, seed: int) -> CellModule:
    """Build a network on the CPU with the initial weights that follow from a seed.

    PyTorch's global generator is as it was before.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return CellModule(config, vocab_size)


def _build_layer(config: CellConfig) -> nn.Module:
    cls, n = cell_class(config), config.state_size
    options = check_option_values(config.cell, cell_options(cls), dict(config.options))
    try:
        return cls(input_size=n, state_size=n, **options)
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        given = "".join(f", {name}={value!r}" for name, value in options.items())
        raise CellError(
            f"cell {config.cell}(input_size={n}, state_size={n}{given}) raises "
            f"{describe_error(error)}"
        ) from error


def _describe(value: object) -> str:
    """Return a value's type with an article, and the shapes of its tensors."""
    if isinstance(value, Tensor):
        kind = "complex tensor" if value.is_complex() else "tensor"
        return f"a {kind} of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_describe, value))})"
    return "None" if value is None else f"a value of type {type(value).__name__}"
