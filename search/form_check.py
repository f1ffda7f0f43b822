"""Comparison of a cell's sequence form with its step, which defines the cell.

One layer is run by both, with weights and inputs that are drawn at random. T is the number of
steps, B the number of streams.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rnn.config import BYTES, NetworkConfig, Precision
from rnn.errors import CellError
from rnn.network import (
    SEQUENCE_FORM,
    build_seeded,
    has_sequence_form,
    list_parts,
    reset_states,
)

_STREAMS = 3

_BATCH_SIZES = (1, _STREAMS, 70)

_LENGTHS = (1, 2, 3, 7, 13, 16, 31, 64, 128, 500)

_GRADIENT_LENGTHS = (37, 100)

_CUTS = {"cut in two": (32,), "cut unevenly": (1, 2, 5, 6, 23, 40, 60)}
"""First steps of the parts of a sequence of 61 steps."""

_RESETS = {5: [0], 6: [1, 2], 17: [0, 2]}
"""Streams that start anew before steps of a sequence of 24."""

_LONG = 4096

_ALLOWED: dict[Precision, float] = {"fp64": 1e-9, "fp32": 1e-4, "bf16": 0.005}
"""Greatest relative RMS; that of bfloat16 is what flash-linear-attention allows."""

_FACTOR = 2
"""The sequence form may differ by so many times as much as steps of the same precision do."""

Tensors = dict[str, Tensor]
"""Results by their names."""

Computation = Callable[[Precision, bool], Tensors]
"""What computes results in a precision, by the sequence form or by steps."""

_OF_STEPS = ("output", "gradient of the input")
"""Results with an axis of steps."""


class Difference(NamedTuple):
    """How much the results of a cell differ.

    Attributes:
        size: root mean square of the difference, divided by that of the result by steps: the
            greatest of all results.
        begins: where the difference begins to be more than is allowed: a result and, if it has
            several, its step. "" if it is not.
    """

    size: float
    begins: str


@dataclass(frozen=True)
class Comparison:
    """One comparison of the two forms.

    Attributes:
        compared: what was compared.
        precision: precision of the sequence form. Steps in float64 are the reference.
        difference: the greatest difference.
        allowed: greatest size of it.
    """

    compared: str
    precision: Precision
    difference: Difference
    allowed: float

    @property
    def excess(self) -> float:
        """The difference as a multiple of what is allowed."""
        return self.difference.size / self.allowed

    @property
    def agrees(self) -> bool:
        """Whether the forms compute the same."""
        return self.excess <= 1


def compare_forms(config: NetworkConfig, is_thorough: bool = False) -> list[Comparison]:
    """Compare the forms of a cell; return the comparisons, none if it has no sequence form.

    Args:
        config: config of a network of the cell.
        is_thorough: whether to compare a sequence of 4,096 steps as well, which takes seconds.
    """
    layer = build_seeded(config, BYTES, 0).layers[0]
    if not has_sequence_form(layer):
        return []
    return _Pair(layer, config.state_size).compare_all(is_thorough)


def find_worst(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Return the worst of the comparisons of each kind, such as those of several networks."""
    worst: dict[tuple[str, Precision], Comparison] = {}
    for comparison in comparisons:
        key = comparison.compared, comparison.precision
        worst[key] = max(worst.get(key, comparison), comparison, key=lambda found: found.excess)
    return list(worst.values())


def require_agreement(network: NetworkConfig, comparisons: Iterable[Comparison]) -> None:
    """Require the forms of a network's cell to compute the same.

    Raises:
        CellError: if they do not, with the first comparison that shows it.
    """
    for comparison in comparisons:
        if not comparison.agrees:
            difference = comparison.difference
            raise CellError(
                f"cell {network.cell}: {SEQUENCE_FORM} differs from forward "
                f"({comparison.compared}): {difference.begins} by {difference.size:.2g} of its "
                f"size in {comparison.precision}: expected at most {comparison.allowed:.1g}"
            )


def tabulate(comparisons: Sequence[Comparison]) -> list[str]:
    """Return the lines of a table: a row for each comparison, a column for each precision."""
    rows: dict[str, dict[Precision, Comparison]] = {}
    for comparison in comparisons:
        rows.setdefault(comparison.compared, {})[comparison.precision] = comparison
    width = max(map(len, rows))
    header = "".join(f"  {precision:17}" for precision in _ALLOWED)
    lines = [f"{'difference / allowed':{width}}{header}".rstrip()]
    for compared, row in rows.items():
        line = f"{compared:{width}}"
        wrong = [comparison for comparison in row.values() if not comparison.agrees]
        for precision in _ALLOWED:
            found = row.get(precision)
            shown = f"{found.difference.size:.1e} / {found.allowed:.0e}" if found else ""
            line += f"  {shown:17}"
        if wrong:
            line += f"  differs: {wrong[0].difference.begins}"
        lines.append(line.rstrip())
    return lines


class _Pair:
    """The two forms of a layer, in every precision.

    Args:
        layer: the layer, in float32.
        size: n.
    """

    def __init__(self, layer: nn.Module, size: int) -> None:
        self._generator = torch.Generator().manual_seed(0)
        # A weight that starts at zero would hide what it is multiplied by.
        add_noise(layer.parameters(), self._generator)
        self._layer = layer
        self._exact = copy.deepcopy(layer).double()
        self._size = size
        # A state that is not the initial one, and streams that differ.
        with torch.no_grad():
            _, self._state = self._run("fp64", False, self._draw(5), self._initial_state())

    def _draw(self, steps: int, streams: int = _STREAMS) -> Tensor:
        shape = (steps, streams, self._size)
        return torch.randn(shape, generator=self._generator).double()

    def _initial_state(self, streams: int = _STREAMS) -> Any:
        like = torch.zeros(self._size, dtype=torch.double)
        return read_initial_state(self._exact, streams, like)

    def compare_all(self, is_thorough: bool) -> list[Comparison]:
        """Return all comparisons."""
        lengths = [self._reading(steps, self._state, {}) for steps in _LENGTHS]
        comparisons = self._compare("1 to 500 steps", lengths)
        initial = [self._initial_state(streams) for streams in _BATCH_SIZES]
        batches = [self._reading(16, state, {}) for state in initial]
        comparisons += self._compare("1 to 70 streams, from the initial state", batches)
        # Gates close, as they may after training.
        closing = partial(self._read, 10 * self._draw(100), self._state, {})
        comparisons += self._compare("inputs ten times as large", [closing])
        for name, cuts in _CUTS.items():
            reading = self._reading(61, self._state, dict.fromkeys(cuts, ()))
            comparisons += self._compare(f"{name}, with the state carried", [reading])
        reading = self._reading(24, self._state, _RESETS)
        comparisons += self._compare("streams that start anew", [reading])
        differentiations = [
            partial(self._differentiate, self._draw(steps), self._draw(steps))
            for steps in _GRADIENT_LENGTHS
        ]
        comparisons += self._compare("gradients", differentiations)
        comparisons.append(self._compare_past())
        for layer in (self._layer, self._exact):
            layer.eval()  # as sample reads a prompt
        reading = self._reading(61, self._state, {})
        comparisons += self._compare("in evaluation mode", [reading])
        if is_thorough:
            reading = self._reading(_LONG, self._state, {})
            comparisons += self._compare(f"{_LONG:,} steps", [reading], ("fp64", "fp32"))
        return comparisons

    def _compare(
        self,
        compared: str,
        computations: Sequence[Computation],
        precisions: Iterable[Precision] = tuple(_ALLOWED),
    ) -> list[Comparison]:
        """Return the worst comparison of some computations in each precision."""
        comparisons = []
        for compute in computations:
            expected = compute("fp64", False)
            for precision in precisions:
                allowed = _ALLOWED[precision]
                if precision != "fp64":
                    rounding = _find_difference(expected, compute(precision, False), allowed)
                    if rounding.size == math.inf:
                        continue  # steps overflow in this precision
                    allowed = max(allowed, _FACTOR * rounding.size)
                difference = _find_difference(expected, compute(precision, True), allowed)
                comparisons.append(Comparison(compared, precision, difference, allowed))
        return find_worst(comparisons)

    def _reading(self, steps: int, state: Any, cuts: Mapping[int, Sequence[int]]) -> Computation:
        """Return what reads random inputs from a state, cut before the keys of ``cuts``.

        Its values are the streams that start anew there.
        """
        return partial(self._read, self._draw(steps, len(list_parts(state)[0])), state, cuts)

    @torch.no_grad()
    def _read(
        self,
        x: Tensor,
        state: Any,
        cuts: Mapping[int, Sequence[int]],
        precision: Precision,
        by_sequence: bool,
    ) -> Tensors:
        """Return the outputs and the state after them."""
        outputs = []
        for first, stop in itertools.pairwise(sorted({0, *cuts, len(x)})):
            if streams := cuts.get(first):
                state = self._reset(state, streams)
            y, state = self._run(precision, by_sequence, x[first:stop], state)
            outputs.append(y)
        return {"output": torch.cat(outputs), **_name_states(state)}

    def _reset(self, state: Any, streams: Sequence[int]) -> Any:
        """Return a state in which some streams have the initial one."""
        chosen = torch.zeros(_STREAMS, dtype=torch.bool)
        chosen[list(streams)] = True
        parts = reset_states(list_parts(state), list_parts(self._initial_state()), chosen)
        return tuple(parts) if isinstance(state, tuple) else parts[0]

    def _differentiate(
        self, x: Tensor, weights: Tensor, precision: Precision, by_sequence: bool
    ) -> Tensors:
        """Return outputs, and the gradients of their weighted sum plus that of the last state."""
        inputs = x.clone().requires_grad_()
        state = map_floats(self._state, lambda part: part.detach().clone().requires_grad_())
        y, after = self._run(precision, by_sequence, inputs, state)
        loss = (y * weights).sum()
        for part in list_parts(after):
            if part.requires_grad:
                loss = loss + (part * torch.linspace(-1, 1, part.numel()).view_as(part)).sum()
        layer = self._exact if precision == "fp64" else self._layer
        leaves = {"the input": inputs, **_name_states(state), **dict(layer.named_parameters())}
        trained = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        grads = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
        named = zip(trained, grads, strict=True)
        gradients = {f"gradient of {name}": grad.double() for name, grad in named}
        return {"output": y.detach(), **gradients}

    @torch.no_grad()
    def _compare_past(self) -> Comparison:
        """Compare the outputs of a sequence with those where later inputs differ."""
        x = self._draw(31)
        changed = x.clone()
        changed[17:] = self._draw(14)
        expected, _ = self._run("fp64", True, x, self._state)
        actual, _ = self._run("fp64", True, changed, self._state)
        allowed = _ALLOWED["fp64"]
        outputs = {"output": expected[:17]}, {"output": actual[:17]}
        difference = _find_difference(*outputs, allowed=allowed)
        return Comparison("outputs before an input changes", "fp64", difference, allowed)

    def _run(
        self, precision: Precision, by_sequence: bool, x: Tensor, state: Any
    ) -> tuple[Tensor, Any]:
        """Read inputs (T, B, n) from a state; return outputs and the next state, in float64."""
        dtype = torch.double if precision == "fp64" else torch.float
        layer = self._exact if precision == "fp64" else self._layer
        x = x.to(dtype)
        state = map_floats(state, lambda part: part.to(dtype))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            if by_sequence:
                y, state = getattr(layer, SEQUENCE_FORM)(x, state)
            else:
                outputs = []
                for step in x:
                    output, state = layer(step, state)
                    state = map_floats(state, lambda part: part.to(dtype))
                    outputs.append(output.to(dtype))
                y = torch.stack(outputs)
        return y.double(), map_floats(state, Tensor.double)


@torch.no_grad()
def add_noise(parameters: Iterable[Tensor], generator: torch.Generator) -> None:
    """Change parameters by random numbers, of a tenth of their size and not zero."""
    for parameter in parameters:
        scale = 0.1 * (parameter.abs().mean() + 0.1)
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def read_initial_state(layer: nn.Module, streams: int, like: Tensor) -> Any:
    """Return the state of a layer at a sequence's start, of the dtype and last axis of a tensor."""
    initial_state = getattr(layer, "initial_state", None)
    if initial_state is None:
        return like.new_zeros(streams, like.shape[-1])
    return map_floats(initial_state(streams), lambda part: part.to(like.dtype))


def map_floats(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a state whose tensors, but for those of integers, are changed."""
    parts = [change(part) if part.is_floating_point() else part for part in list_parts(state)]
    return tuple(parts) if isinstance(state, tuple) else parts[0]


def _name_states(state: Any) -> Tensors:
    parts = list_parts(state)
    if len(parts) == 1:
        return {"state": parts[0]}
    return {f"state {number}": part for number, part in enumerate(parts, 1)}


def _find_difference(expected: Tensors, actual: Tensors, allowed: float) -> Difference:
    """Return the greatest difference of results by two forms, and the first that is not allowed."""
    greatest = 0.0
    begins = ""
    for name, wanted in expected.items():
        wanted = wanted.double()
        difference = actual[name].double() - wanted
        scale = float(wanted.square().mean().sqrt()) or 1.0
        size = float(difference.square().mean().sqrt()) / scale
        size = size if size < math.inf else math.inf  # of NaN as well
        greatest = max(greatest, size)
        if size > allowed and not begins:
            begins = f"the {name}"
            if name in _OF_STEPS:
                of_steps = difference.flatten(1).square().mean(1).sqrt() / scale  # (T,)
                wrong = (~(of_steps <= allowed)).nonzero()[:, 0]
                begins += f" from step {int(wrong[0]) + 1} on"
    return Difference(greatest, begins)
