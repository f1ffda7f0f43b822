"""The linear recurrence h_t = a_t ⊙ h_{t−1} + b_t over many time steps, for cells' sequence forms.

It is computed in C on a CPU, or step by step in PyTorch where there is no library, and by doubling
on other devices. :mod:`rnn.scan_reference` states what it computes. T is the number of time steps,
B the number of streams.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from rnn.native.library import load_library
from rnn.scan_reference import match_arguments


def linear_scan(a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    """Return all states of the recurrence h_t = a_t ⊙ h_{t−1} + b_t, for a cell's sequence form.

    It can be differentiated once, also under ``torch.func`` and ``torch.vmap``.

    Args:
        a: factors (T, B, …); T is the number of steps, B that of streams. An axis of size 1 is
            broadcast to that of b.
        b: terms (T, B, …).
        state: state (B, …) before the first step.

    Returns:
        The states (T, B, …) after each step; the last is ``[-1]``. They are float32, also of
        bfloat16 arguments, or float64 if an argument is.

    Raises:
        TypeError: if an argument is not of real floating-point numbers.
        ValueError: if the shapes do not match, or T is 0.
    """
    states: Tensor = _apply(_Scan, *match_arguments(a, b, state))
    return states


def _apply(function: type[Function], *tensors: Tensor) -> Any:
    return function.apply(*tensors)  # type: ignore[no-untyped-call]


class _Scan(Function):
    """States (T, B, …) from factors, terms (T, B, …) and the state (B, …) before the first step."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, state: Tensor) -> Tensor:
        states = _empty_like(b)
        if not _call_library("rnn_scan", a=a, b=b, state=state, states=states):
            _compute(a, b, state, states)
        return states

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        a, _, state = inputs
        ctx.save_for_backward(a, state, output)

    @staticmethod
    def backward(ctx: Any, d_states: Tensor) -> Any:
        return _apply(_ScanGradient, *ctx.saved_tensors, d_states)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        return _apply(_Scan, *_batch(info, in_dims, tensors, (1, 1, 0))), 1


class _ScanGradient(Function):
    """Gradients of the factors, the terms and the state from that of the states."""

    @staticmethod
    def forward(
        a: Tensor, state: Tensor, states: Tensor, d_states: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_a = _empty_like(states)
        d_b = _empty_like(states)
        d_state = torch.empty_like(state, memory_format=torch.contiguous_format)
        arrays = {"a": a, "state": state, "states": states, "d_states": d_states}
        results = {"d_a": d_a, "d_b": d_b, "d_state": d_state}
        if not _call_library("rnn_scan_gradient", **arrays, **results):
            _compute_backwards(a, d_states, d_b)
            torch.mul(d_b, torch.cat((state[None], states[:-1])), out=d_a)
            torch.mul(a[0], d_b[0], out=d_state)
        return d_a, d_b, d_state

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            "linear_scan has no gradient of its gradient: loop over the steps instead"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> Any:
        return _apply(_ScanGradient, *_batch(info, in_dims, tensors, (1, 0, 1, 1))), (1, 1, 0)


def _empty_like(tensor: Tensor) -> Tensor:
    """Return an empty tensor, in the same order of memory if the library can use it."""
    order = torch.preserve_format if _has_rows(tensor) else torch.contiguous_format
    return torch.empty_like(tensor, memory_format=order)


def _has_rows(tensor: Tensor) -> bool:
    """Return whether the numbers of a step and a stream are next to each other in memory."""
    return tensor[:1, :1].is_contiguous()


def _batch(
    info: Any,
    in_dims: tuple[int | None, ...],
    tensors: tuple[Tensor, ...],
    out_dims: tuple[int, ...],
) -> list[Tensor]:
    """Return tensors with the axis of ``torch.vmap`` before that of the streams."""
    return [
        tensor.unsqueeze(target).expand(
            *tensor.shape[:target], info.batch_size, *tensor.shape[target:]
        )
        if source is None
        else tensor.movedim(source, target)
        for tensor, source, target in zip(tensors, in_dims, out_dims, strict=True)
    ]


def _is_parallel(device: torch.device) -> bool:
    """Return whether a device computes all steps at once about as fast as one."""
    return device.type != "cpu"


def _compute(a: Tensor, b: Tensor, state: Tensor, states: Tensor) -> None:
    """Compute the states in PyTorch."""
    if _is_parallel(states.device):
        _compute_by_doubling(a, b, state, states)
    else:
        _compute_by_steps(a.unbind(), b.unbind(), state, states.unbind())


def _compute_backwards(a: Tensor, d_states: Tensor, d_b: Tensor) -> None:
    """Compute the gradient of the terms, the same recurrence from the last step to the first."""
    last = d_states[-1]
    d_b[-1] = last
    if _is_parallel(d_b.device) and len(a) > 1:
        states = torch.empty_like(d_b[1:])
        _compute_by_doubling(a[1:].flip(0), d_states[:-1].flip(0), last, states)
        d_b[:-1] = states.flip(0)
    else:
        reverse = slice(-2, None, -1)
        factors = a.unbind()[:0:-1]
        _compute_by_steps(factors, d_states.unbind()[reverse], last, d_b.unbind()[reverse])


def _compute_by_steps(
    a: Sequence[Tensor], b: Sequence[Tensor], state: Tensor, states: Sequence[Tensor]
) -> None:
    """Compute the states one after another, which takes T operations."""
    for factor, term, after in zip(a, b, states, strict=True):
        torch.addcmul(term, factor, state, out=after)
        state = after


def _compute_by_doubling(a: Tensor, b: Tensor, state: Tensor, states: Tensor) -> None:
    """Compute the states in 2·log₂(T) operations, each on all steps.

    After each of them, a state is that of the last 1, 2, 4, … steps (Hillis & Steele, *Data
    Parallel Algorithms*, 1986): products and sums alone, which cannot overflow where |a| ≤ 1.
    """
    states.copy_(b)
    states[0].addcmul_(a[0], state)
    span = 1
    while span < len(b):
        states[span:] += a[span:] * states[:-span]
        a = torch.cat((a[:span], a[span:] * a[:-span]))
        span *= 2


class _Array(ctypes.Structure):
    """Struct Array of scan.c."""

    _fields_ = [("first", ctypes.c_void_p), ("step", ctypes.c_int64), ("group", ctypes.c_int64)]


_ARRAYS = ("a", "b", "state", "states", "d_states", "d_a", "d_b", "d_state")


class _Scans(ctypes.Structure):
    """Struct Scan of scan.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("steps", "groups", "columns", "threads")),
        *((name, _Array) for name in _ARRAYS),
    ]


_NUMBERS_OF_A_THREAD = 1 << 15
"""Fewest numbers that a further thread computes sooner than it starts."""


def _call_library(name: str, **tensors: Tensor) -> bool:
    """Call a function of scan.c, if there is a library; return whether there is."""
    states = tensors["states"]
    library = None if _is_parallel(states.device) else load_library("fp32")
    if library is None or not states.numel():
        return False
    tensors = {
        # The state is a single step.
        key: tensor[None] if key.endswith("state") else tensor
        for key, tensor in tensors.items()
    }
    groups = 1
    if not all(tensor[0].is_contiguous() for tensor in tensors.values()):
        groups = states.shape[1]
        tensors = {
            key: tensor if _has_rows(tensor) else tensor.contiguous()
            for key, tensor in tensors.items()
        }
    threads = min(torch.get_num_threads(), max(1, states.numel() // _NUMBERS_OF_A_THREAD))
    arrays = {
        key: _Array(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))
        for key, tensor in tensors.items()
    }
    scan = _Scans(len(states), groups, states[0].numel() // groups, threads, **arrays)
    kind = "double" if states.dtype == torch.float64 else "float"
    getattr(library, f"{name}_{kind}")(ctypes.addressof(scan))
    return True
