"""Measurement of what a user's cell can learn: which of its parts a gradient reaches.

One layer reads random inputs with several random weights. A gradient reaches what it is not exactly
zero for. T is the number of steps, B the number of streams, n the size of the inputs.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from rnn.config import BYTES, CellFacts, NetworkConfig, ParamValue
from rnn.errors import CellError
from rnn.network import build_seeded, is_trained
from rnn.own_code import describe_error
from search.form_check import add_noise, map_floats, read_initial_state
from studies.config import StudyConfig, select_params
from studies.records import CellFactsRecord
from studies.space import CELL, Params

MAX_DEPTH = 4
"""Steps, the current one included, from which a gradient that reaches nothing is taken for none."""

MAX_COMBINATIONS = 64
"""Combinations of a cell's options that are measured."""

MAX_STATE_SIZE = 64
"""State size of the networks that are measured and checked, if those of a study are larger."""

_STREAMS = 3
_DRAWS = 3
_INPUT = "the input"  # no name of a part, which is an identifier

_Options = tuple[tuple[str, ParamValue], ...]


def measure_cell(config: NetworkConfig) -> CellFacts:
    """Measure what a gradient reaches in one layer of a user's cell, and what its output reads.

    It is computed in float64, or in float32 where the cell computes in no other.

    Raises:
        CellError: if the cell cannot be built or run, or no gradient reaches anything.
    """
    for dtype in (torch.float64, torch.float32):
        try:
            return _measure(config, dtype)
        except CellError:
            raise
        except (Exception, SystemExit) as error:
            raised = f"raises {describe_error(error)} while its gradients are measured"
    raise CellError(f"cell {config.cell} {raised}")


def _part_of(parameter: str) -> str:
    """Return the part of a cell that a parameter of the cell belongs to."""
    return parameter.partition(".")[0]


def _measure(config: NetworkConfig, dtype: torch.dtype) -> CellFacts:
    generator = torch.Generator().manual_seed(0)
    layers = [build_seeded(config, BYTES, 0).layers[0].to(dtype) for _ in range(_DRAWS)]
    for layer in layers[1:]:
        # A weight that starts at zero hides what it is multiplied by; it stays so if frozen.
        add_noise(filter(is_trained, layer.parameters()), generator)
    weights = dict(layers[0].named_parameters())
    trained = {_part_of(name) for name in weights if is_trained(weights[name])}
    lags: dict[str, int | None] = dict.fromkeys([*map(_part_of, weights), _INPUT])
    missing = trained | {_INPUT}
    for depth, layer in itertools.product(range(1, MAX_DEPTH + 1), layers):
        if missing:
            shape = (2, 2 * depth, _STREAMS, config.state_size)
            xs, scales = torch.randn(shape, generator=generator).to(dtype)
            found = _find_reached(layer, xs, scales, depth) & missing
            lags |= dict.fromkeys(found, depth - 1)
            missing -= found
    if trained and missing == trained | {_INPUT}:
        raise CellError(
            f"cell {config.cell} is not differentiable: no gradient reaches any of its parameters: "
            "expected an output that depends on them by PyTorch's functions, without detach() or "
            "no_grad()"
        )
    steps = (MAX_DEPTH + 1, _STREAMS, config.state_size)
    xs = torch.randn(steps, generator=generator).to(dtype)
    sees_input = any(_sees_input(layer, xs) for layer in layers)
    input_lag = lags.pop(_INPUT)
    return CellFacts(lags, input_lag, sees_input)


def _find_reached(layer: nn.Module, xs: Tensor, scales: Tensor, depth: int) -> set[str]:
    """Return the parts, and the input, that a gradient through some steps reaches.

    Args:
        layer: the layer.
        xs: inputs (T, B, n).
        scales: of the outputs in the loss (T, B, n).
        depth: number of steps after which the state is detached.
    """
    xs = xs.clone().requires_grad_()
    state = read_initial_state(layer, _STREAMS, xs)
    loss = xs.new_zeros(())
    for step, x in enumerate(xs.clone()):  # which a cell may change in place
        if step and step % depth == 0:
            state = map_floats(state, Tensor.detach)
        y, state = _advance(layer, x, state)
        loss = loss + (y * scales[step]).sum()
    if not loss.requires_grad or not loss.isfinite():
        return set()
    weights = {name: weight for name, weight in layer.named_parameters() if is_trained(weight)}
    grads = torch.autograd.grad(loss, [*weights.values(), xs], materialize_grads=True)
    named = zip([*map(_part_of, weights), _INPUT], grads, strict=True)
    return {name for name, grad in named if grad.any() and grad.isfinite().all()}


@torch.no_grad()
def _sees_input(layer: nn.Module, xs: Tensor) -> bool:
    """Return whether the last but one of the inputs (T, B, n) and the last give other outputs."""
    state = read_initial_state(layer, _STREAMS, xs)
    for x in xs[:-2]:
        _, state = _advance(layer, x.clone(), state)
    y, _ = _advance(layer, xs[-2].clone(), state)
    other, _ = _advance(layer, xs[-1].clone(), state)
    return bool((y - other).isfinite().all()) and not torch.equal(y, other)


def _advance(layer: nn.Module, x: Tensor, state: object) -> tuple[Tensor, object]:
    """Return the output of a step, and the state after it, in the dtype of the input."""
    y, state = layer(x, state)
    return y.to(x.dtype), map_floats(state, lambda part: part.to(x.dtype))


# ------------------------------------------------------------------ the cells of a study


def with_cell_facts(config: StudyConfig, trials: Sequence[Params]) -> tuple[StudyConfig, list[str]]:
    """Measure the users' cells with the options of some trials; return the config, and notices.

    What was measured before is kept. Of very many combinations of options a sample of those with
    the first and last values is measured, which a notice says.
    """
    cells = dict(config.cells)
    notices = []
    for name, record in config.cells.items():
        of_cell = [params for params in trials if params.get(CELL) == name]
        known = [found.options for found in record.facts]
        missing: dict[_Options, _Options] = {}  # the given ones by what distinguishes them
        for options in dict.fromkeys(select_params(params, record.options) for params in of_cell):
            reduced = record.reduce_options(dict(options))
            if reduced not in known:
                missing.setdefault(tuple(reduced.items()), options)
        measured = _pick_combinations(list(missing))
        if len(measured) < len(missing):
            notices.append(
                f"cell {name}: what its networks can learn was measured for {len(measured)} of "
                f"{len(missing)} combinations of its options"
            )
        size = min([int(params["state_size"]) for params in of_cell] + [MAX_STATE_SIZE])
        facts = list(record.facts)
        for reduced_options in measured:
            network = NetworkConfig(name, 1, size, missing[reduced_options], record.sha256)
            found = asdict(measure_cell(network))
            facts.append(CellFactsRecord(options=dict(reduced_options), **found))
        cells[name] = record.model_copy(update={"facts": facts})
    return config.model_copy(update={"cells": cells}), notices


def _pick_combinations(combinations: Sequence[_Options]) -> list[_Options]:
    """Return the combinations to measure: all, or of very many a sample of the corners."""
    if len(combinations) <= MAX_COMBINATIONS:
        return list(combinations)
    columns = zip(*combinations, strict=True)
    ends = [{column[0], column[-1]} for column in map(sorted, columns)]
    corners = [
        options
        for options in combinations
        if all(option in found for option, found in zip(options, ends, strict=True))
    ]
    chosen = sorted(corners or combinations)
    return random.Random(0).sample(chosen, min(MAX_COMBINATIONS, len(chosen)))
