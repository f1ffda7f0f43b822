"""The linear scan in C, step by step and by doubling, against its definition."""

import pytest
import torch
from torch.autograd import gradcheck

import rnn_search
from rnn import scan, scan_reference
from rnn.native.library import load_library

linear_scan = rnn_search.linear_scan


@pytest.fixture(params=["library", "steps", "doubling"])
def method(request, monkeypatch):
    """How the scan is computed."""
    if request.param == "library":
        if load_library("fp32") is None:
            pytest.skip("no compiler")
    else:
        monkeypatch.setattr(scan, "load_library", lambda _: None)
        monkeypatch.setattr(scan, "_is_parallel", lambda _: request.param == "doubling")
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def draw(shape, factors=None, dtype=torch.float64):
    """Return factors in (−1, 1), terms and a state, which require gradients."""
    generator = torch.Generator().manual_seed(0)
    a = 2 * torch.rand(factors or shape, generator=generator, dtype=dtype) - 1
    b = torch.randn(shape, generator=generator, dtype=dtype)
    state = torch.randn(shape[1:], generator=generator, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (a, b, state)]


def gradients(function, tensors):
    states = function(*tensors)
    weights = torch.arange(states.numel(), dtype=states.dtype).cos().view_as(states)
    return [states, *torch.autograd.grad((states * weights).sum(), tensors)]


SHAPES = {
    "one step": ((1, 2, 3), None),
    "two steps": ((2, 2, 3), None),
    "a prime number of steps": ((13, 3, 5), None),
    "a power of two": ((64, 2, 7), None),
    "matrices": ((9, 2, 3, 4), None),
    "numbers": ((9, 2), None),
    "many columns": ((40, 3, 1999), None),
    "the same factors in all streams": ((13, 3, 5), (13, 1, 5)),
    "the same factors in all steps": ((13, 3, 5), (1, 1, 5)),
    "the same factors in a matrix": ((13, 3, 4, 5), (13, 3, 1, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_states_and_gradients_are_those_of_the_definition(method, threads, shapes, dtype):
    tensors = draw(*shapes, dtype=dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
    expected = gradients(scan_reference.linear_scan, tensors)
    for actual, wanted in zip(gradients(linear_scan, tensors), expected, strict=True):
        torch.testing.assert_close(actual, wanted, **tolerance)


def test_derivatives_are_right_and_second_ones_an_error(method):
    for shapes in ((1, 2, 1), None), ((5, 2, 3), None), ((5, 2, 3), (1, 1, 3)):
        tensors = draw(*shapes)
        assert gradcheck(linear_scan, tensors)
        grads = torch.autograd.grad(linear_scan(*tensors).sum(), tensors, create_graph=True)
        with pytest.raises(NotImplementedError, match="no gradient of its gradient"):
            grads[0].sum().backward()


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (3, 1, 0, 2), (2, 0, 1, 3)], ids=str)
def test_order_of_the_numbers_in_memory_does_not_matter(method, order):
    """As of torch.vmap, whose networks come before the steps."""
    shape = (9, 4, 3, 6)
    tensors = [tensor.detach() for tensor in draw(shape, dtype=torch.float32)]
    for changed in (0, 1), (0, 1, 2), (1,):
        ordered = list(tensors)
        for index in changed:
            axes = order if index < 2 else (1, 0, 2)
            stored = tensors[index].permute(axes).contiguous()
            ordered[index] = stored.permute([axes.index(axis) for axis in range(len(axes))])
        ordered = [tensor.requires_grad_() for tensor in ordered]
        expected = gradients(scan_reference.linear_scan, ordered)
        for actual, wanted in zip(gradients(linear_scan, ordered), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (1, 2, 0), (0, None, None), (None, 0, 0)], ids=str)
def test_networks_in_lockstep_compute_what_each_computes_alone(method, in_dims):
    networks = 3
    tensors = draw((7, 2, 5))
    stacked = []
    for tensor, axis in zip(tensors, in_dims, strict=True):
        factors = torch.linspace(0.5, 1, networks).double()
        alone = tensor.detach()
        wide = alone if axis is None else torch.stack([alone * f for f in factors], axis)
        stacked.append(wide.requires_grad_())
    states = torch.vmap(linear_scan, in_dims)(*stacked)
    each = [
        [
            tensor if axis is None else tensor.select(axis, k)
            for tensor, axis in zip(stacked, in_dims, strict=True)
        ]
        for k in range(networks)
    ]
    alone = torch.stack([scan_reference.linear_scan(*parts) for parts in each])
    torch.testing.assert_close(states, alone)
    weights = torch.arange(states.numel()).view_as(states).double().cos()
    expected = torch.autograd.grad((alone * weights).sum(), stacked)
    torch.testing.assert_close(torch.autograd.grad((states * weights).sum(), stacked), expected)

    def loss(*parts):
        return linear_scan(*parts).square().sum()

    grads = torch.vmap(torch.func.grad(loss, (0, 1, 2)), in_dims)(*stacked)
    for k, parts in enumerate(each):
        wanted = torch.autograd.grad(scan_reference.linear_scan(*parts).square().sum(), parts)
        for grad, expected in zip(grads, wanted, strict=True):
            torch.testing.assert_close(grad[k], expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_computed_in_float32(method, autocast):
    a, b, state = draw((50, 2, 5), dtype=torch.float32)
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in (a, b)] + [state]
    exact = [tensor.detach().float().requires_grad_() for tensor in rounded]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = gradients(linear_scan, rounded)
    expected = gradients(scan_reference.linear_scan, exact)
    assert actual[0].dtype == torch.float32
    assert [grad.dtype for grad in actual[1:]] == [torch.bfloat16] * 2 + [torch.float32]
    torch.testing.assert_close(actual[0], expected[0])
    for grad, wanted in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(grad.float(), wanted, rtol=0.01, atol=0.01)


def test_factors_that_vanish_or_stay_leave_long_sequences_finite(method):
    steps = 4096
    factors = torch.tensor([0.0, 1e-30, 0.5, -1.0, 1.0]).expand(steps, 1, 5)
    states = linear_scan(factors, torch.ones(steps, 1, 5), torch.zeros(1, 5))
    torch.testing.assert_close(states[-1, 0], torch.tensor([1.0, 1.0, 2.0, 0.0, steps]))


@pytest.mark.parametrize("function", [linear_scan, scan_reference.linear_scan])
@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"b": torch.zeros(0, 2, 3), "a": torch.zeros(0, 2, 3)}, ValueError, "at least one step"),
        ({"b": torch.zeros(4)}, ValueError, r"expected a and b \(T, B, …\)"),
        ({"state": torch.zeros(3)}, ValueError, r"state \(3,\): expected .* the state \(B, …\)"),
        ({"a": torch.zeros(4, 3)}, ValueError, r"got a \(4, 3\)"),
        ({"a": torch.zeros(4, 3, 3)}, ValueError, "each size of a to be 1 or that of b"),
        ({"a": torch.zeros(4, 2, 3).cfloat()}, TypeError, "numbers of torch.complex64: expected"),
        ({"b": torch.zeros(4, 2, 3).long()}, TypeError, "numbers of torch.int64: expected real"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(function, changes, error, reason):
    arguments = {"a": torch.zeros(4, 2, 3), "b": torch.zeros(4, 2, 3), "state": torch.zeros(2, 3)}
    with pytest.raises(error, match=reason) as raised:
        function(**arguments | changes)
    assert "\n" not in str(raised.value)


def test_no_streams_have_no_states(method):
    assert linear_scan(torch.zeros(4, 0, 3), torch.zeros(4, 0, 3), torch.zeros(0, 3)).numel() == 0


def test_states_have_the_widest_dtype_of_the_arguments():
    a, b, state = draw((3, 2, 5), dtype=torch.float32)
    for function in (linear_scan, scan_reference.linear_scan):
        assert function(a, b.double(), state.bfloat16()).dtype == torch.float64
        assert function(a.bfloat16(), b.half(), state.bfloat16()).dtype == torch.float32
