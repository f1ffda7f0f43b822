"""The linear recurrence, one step after another, of the networks of an export.

:mod:`rnn.scan` computes the same faster. An export whose ``cell.py`` imports the scan has this file
as its module ``rnn_search``, so it imports PyTorch alone. T is the number of time steps, B the
number of streams.
"""

import torch
from torch import Tensor


def linear_scan(a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    """Return all states (T, B, …) of the recurrence h_t = a_t ⊙ h_{t−1} + b_t.

    a and b are (T, B, …), and the state before the first step is (B, …). An axis of a of size 1 is
    broadcast to that of b. The states are float32, or float64 if an argument is.

    Raises:
        TypeError: if an argument is not of real floating-point numbers.
        ValueError: if the shapes do not match, or T is 0.
    """
    a, b, state = match_arguments(a, b, state)
    states = []
    for t in range(len(b)):
        state = a[t] * state + b[t]  # (B, …)
        states.append(state)
    return torch.stack(states)


def match_arguments(a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the arguments of the scan in one dtype, and the factors in the shape of the terms."""
    dtype = torch.float32
    for tensor in (a, b, state):
        if not tensor.is_floating_point():
            raise TypeError(
                f"linear_scan got numbers of {tensor.dtype}: expected real floating-point numbers "
                "(of a complex recurrence, see examples/cells/diagonal_lru.py)"
            )
        dtype = torch.promote_types(dtype, tensor.dtype)
    shapes = f"a {tuple(a.shape)}, b {tuple(b.shape)} and state {tuple(state.shape)}"
    if b.dim() < 2 or not len(b) or state.shape != b.shape[1:] or a.dim() != b.dim():
        raise ValueError(
            f"linear_scan got {shapes}: expected a and b (T, B, …) of at least one step, and the "
            "state (B, …) before it"
        )
    if any(size not in (1, wanted) for size, wanted in zip(a.shape, b.shape, strict=True)):
        raise ValueError(f"linear_scan got {shapes}: expected each size of a to be 1 or that of b")
    return a.to(dtype).expand(b.shape), b.to(dtype), state.to(dtype)
