"""Sequence forms of the built-in cells: in C and as loops of PyTorch, against their steps."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from networks import baseline_configs, gated_configs
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from rnn import recurrences
from rnn.cells import CELLS, LSTMCell
from rnn.config import NetworkConfig
from rnn.native.library import load_library

SHAPES = [(1, 1, 5), (7, 1, 16), (2, 37, 7), (5, 3, 33)]
"""Steps T, streams B and state sizes n."""

TOLERANCE = {"fp64": 1e-12, "fp32": 1e-5, "bf16": 3e-2}


def build(config: NetworkConfig, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    n = config.state_size
    return CELLS[config.cell](n, n, **dict(config.options))


def draw(cell: nn.Module, steps: int, streams: int, n: int) -> tuple[Tensor, Any]:
    """Draw inputs and a first state."""
    generator = torch.Generator().manual_seed(0)
    x, h, m = (
        torch.randn(shape, generator=generator, dtype=torch.double)
        for shape in [(steps, streams, n), (streams, n), (streams, n)]
    )
    return x, (h, m) if isinstance(cell, LSTMCell) else h


def read_steps(cell: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    ys = []
    for step in x:
        y, state = cell(step, state)
        ys.append(y)
    return torch.stack(ys), state


def list_parts(state: Any) -> list[Tensor]:
    return list(state) if isinstance(state, tuple) else [state]


def total_of(results: list[Tensor]) -> Tensor:
    """Return a number that depends on every result in its own way."""
    return sum(((1 + i) * tensor.double().sin()).sum() for i, tensor in enumerate(results))


def results_and_grads(
    read: Callable[..., Any], cell: nn.Module, x: Tensor, state: Any, precision: str
) -> list[Tensor]:
    """Return outputs, last state, and gradients of all that they depend on."""
    dtype = torch.double if precision == "fp64" else torch.float
    cell.to(dtype)
    x = x.to(dtype).requires_grad_()
    first = [part.to(dtype).requires_grad_() for part in list_parts(state)]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        y, last = read(cell, x, tuple(first) if isinstance(state, tuple) else first[0])
    results = [y, *list_parts(last)]
    leaves = [x, *first, *cell.parameters()]
    grads = torch.autograd.grad(total_of(results), leaves, materialize_grads=True)
    return [tensor.detach() for tensor in (*results, *grads)]


def assert_near(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    scale = max(float(tensor.norm()) for tensor in expected)
    for tensor, other in zip(actual, expected, strict=True):
        assert (tensor.double() - other).norm() <= tolerance * (other.norm() + scale / 10)


def read_sequence(cell: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return cell.forward_sequence(x, state)


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
def test_sequence_forms_compute_what_the_steps_do(precision):
    if precision != "fp64":
        if load_library(precision) is None:
            pytest.skip("no library in C")
        assert recurrences._has_library(precision)
    for number, (steps, streams, n) in enumerate(SHAPES):
        for config in [*gated_configs(1, n)[number :: len(SHAPES)], *baseline_configs(1, n)]:
            cell = build(config)
            x, state = draw(cell, steps, streams, n)
            expected = results_and_grads(read_steps, cell, x, state, "fp64")
            actual = results_and_grads(read_sequence, cell, x, state, precision)
            assert_near(actual, expected, TOLERANCE[precision])


def test_without_a_library_pytorch_computes_float32(monkeypatch):
    monkeypatch.setattr("rnn.recurrences._has_passed", {"fp32": False})
    monkeypatch.setattr("rnn.recurrences._Kernel.call", None)
    for config in baseline_configs(1, 8):
        cell = build(config)
        x, state = draw(cell, 4, 3, 8)
        expected = results_and_grads(read_steps, cell, x, state, "fp64")
        assert_near(results_and_grads(read_sequence, cell, x, state, "fp32"), expected, 1e-5)


def test_library_that_computes_other_numbers_is_not_used(monkeypatch):
    monkeypatch.setattr("rnn.recurrences._has_passed", {})
    call = recurrences._Kernel.call

    def call_wrongly(kernel: Any, arrays: dict[str, Tensor], is_backward: bool) -> None:
        call(kernel, arrays, is_backward)
        arrays["states"].mul_(1.001)

    monkeypatch.setattr("rnn.recurrences._Kernel.call", call_wrongly)
    assert not recurrences._has_library("fp32")


needs_library = pytest.mark.skipif(load_library("fp32") is None, reason="no library in C")


@pytest.fixture
def threads():
    """Return a function that sets the number of threads."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@needs_library
@pytest.mark.parametrize("cell", [recurrences._GRU, recurrences._LSTM, recurrences._GATED])
def test_results_do_not_depend_on_the_number_of_threads(cell, threads):
    steps, streams, n = 6, 45, 24
    gates = 4 if cell == recurrences._LSTM else 3
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "wx": (steps, streams, gates * n),
        "state": (streams, n),
        "recurrent": (n, gates * n),
        "bias": (gates * n if cell == recurrences._GATED else 4 * n,),
        **({"memory": (streams, n)} if cell == recurrences._LSTM else {}),
    }
    given = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for tensor in given.values():
        tensor.requires_grad_()
    kernel = recurrences._Kernel(cell, "fp32", gates, True, True)
    computed = []
    for count in (1, 2, 3):
        threads(count)
        states = kernel.run(**given)["states"]
        grads = torch.autograd.grad(states.square().sum(), [given["wx"], given["state"]])
        computed.append([states, *grads])
    for results in computed[1:]:
        assert all(map(torch.equal, results, computed[0]))


class SequenceForm(nn.Module):
    """A cell of which ``torch.func.functional_call`` calls the sequence form."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.cell.forward_sequence(x, state)


@needs_library
def test_networks_in_lockstep_compute_what_each_alone_does():
    for config in random.Random(1).sample(gated_configs(1, 9), 4) + baseline_configs(1, 9):
        modules = [SequenceForm(build(config, seed)) for seed in range(3)]
        weights, _ = torch.func.stack_module_state(modules)
        x, state = draw(modules[0].cell, 4, 5, 9)
        alone = [results_and_grads(read_sequence, m.cell, x, state, "fp32") for m in modules]
        read = partial(functional_call, modules[0])
        given = tree_map(lambda tensor: tensor.float(), (x, state))
        ys, last = torch.vmap(read, in_dims=(0, None))(weights, given)
        results = [ys, *list_parts(last)]
        grads = torch.autograd.grad(total_of(results), list(weights.values()))
        for k, expected in enumerate(alone):
            kept = [*expected[: len(results)], *expected[-len(grads) :]]
            assert_near([tensor[k] for tensor in [*results, *grads]], kept, 1e-5)


@needs_library
def test_gradients_under_torch_func_and_no_second_ones():
    cell = SequenceForm(build(NetworkConfig("gru", 1, 4)))
    x, h = (tensor.float() for tensor in draw(cell.cell, 5, 3, 4))

    def loss(x: Tensor) -> Tensor:
        return total_of([cell(x, h)[0]])

    x.requires_grad_()
    (expected,) = torch.autograd.grad(loss(x), x, create_graph=True)
    assert torch.allclose(torch.func.grad(loss)(x), expected)
    with pytest.raises(NotImplementedError, match="set RNN_SEARCH_NATIVE=0"):
        torch.autograd.grad(expected.sum(), x)
