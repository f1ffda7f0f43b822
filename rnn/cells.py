"""The contract of a cell, and the built-in cells: gated, Elman, GRU and LSTM.

A cell is a module of which one instance is one recurrent layer. Users write their own in the same
way (:mod:`rnn.own_code` loads them)::

    class Cell(nn.Module):
        def __init__(self, input_size: int, state_size: int, *, option: bool = False) -> None: ...

        def initial_state(self, batch_size: int) -> State:  # if it is not zeros (B, n)
            ...

        def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]: ...

        def forward_sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:  # optional
            ...

``forward`` advances B streams by one time step: from the layer's input x (B, n) and its state to
its output (B, n) and the next state. A state is a tensor or a tuple of tensors, with B as their
first axis. The output depends on input, state, parameters and buffers alone, and on each stream
separately. What calls the cell decides how far a gradient goes back.

``forward_sequence``, the sequence form, advances by T ≥ 1 steps at once: from inputs (T, B, n) and
the state before the first step to the outputs (T, B, n) and the state after the last. It computes
what T calls of ``forward`` compute, which define the cell.

These modules define the equations. The engines compute the same (:mod:`rnn.autograd`,
:mod:`rnn.stacked`, :mod:`rnn.native`). Exports and reports show this source without the options
that are off (:mod:`rnn.codegen`). B is the number of streams, n the state size, [a ; b]
concatenation along the last axis, ⊙ the element-wise product and σ the logistic function.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from rnn.recurrences import read_elman, read_gated, read_gru, read_lstm


class GatedCell(nn.Module):
    """The gated cell.

    With x the layer's input and h its previous state::

        c = [x ; h]
        input gate     i = σ(c·W_i + b_i)     c' = i ⊙ c         else c' = c
                       [x' ; h'] = c'
        candidate      u = tanh(c'·W_u + b_u)
        state gate     z = σ(g·W_z + b_z)     u ← z ⊙ u + (1 − z) ⊙ h
        forget gate    f = σ(g·W_f + b_f)     u ← f ⊙ u
        read-out       r joins u (source new or both), h' (old or both), x (residual)
                       o = r·W_o + b_o
        output gate    y = σ([o ; r]·W_y + b_y) ⊙ o              else y = o ⊙ σ(o)

    g is c' if ``gate_inputs`` is ``"state"``. If it is ``"candidate"``, g is [c' ; u] with the u
    computed so far. The output is y, the next state u. An option that is off costs no product.

    Args:
        input_size, state_size: n.
        input_gate, forget_gate, output_gate, state_gate, residual, state_source, gate_inputs: see
            :class:`rnn.config.GatedOptions`.
    """

    def __init__(
        self,
        input_size: int,
        state_size: int,
        *,
        input_gate: bool = False,
        forget_gate: bool = False,
        output_gate: bool = False,
        state_gate: bool = False,
        residual: bool = False,
        state_source: Literal["new", "old", "both"] = "new",
        gate_inputs: Literal["state", "candidate"] = "state",
    ) -> None:
        super().__init__()
        n = state_size
        g = 3 * n if gate_inputs == "candidate" else 2 * n
        r = (1 + (state_source == "both") + residual) * n
        self.state_source = state_source
        self.gate_inputs = gate_inputs
        self.residual = residual
        self.input_gate = nn.Linear(2 * n, 2 * n) if input_gate else None
        self.candidate = nn.Linear(2 * n, n)
        self.state_gate = nn.Linear(g, n) if state_gate else None
        self.forget_gate = nn.Linear(g, n) if forget_gate else None
        self.read_out = nn.Linear(r, n)
        self.output_gate = nn.Linear(n + r, n) if output_gate else None

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one step; return the output (B, n) and the next state (B, n)."""
        c = torch.cat((x, h), 1)  # (B, 2n)
        gated_h = h  # (B, n)
        if self.input_gate is not None:
            i = torch.sigmoid(self.input_gate(c))  # (B, 2n)
            c = i * c  # (B, 2n)
            _, gated_h = c.chunk(2, 1)  # (B, n) each
        u = torch.tanh(self.candidate(c))  # (B, n)
        g = c  # (B, 2n)
        if self.state_gate is not None:
            if self.gate_inputs == "candidate":
                g = torch.cat((c, u), 1)  # (B, 3n)
            z = torch.sigmoid(self.state_gate(g))  # (B, n)
            u = z * u + (1 - z) * h  # (B, n)
        if self.forget_gate is not None:
            if self.gate_inputs == "candidate":
                g = torch.cat((c, u), 1)  # (B, 3n)
            f = torch.sigmoid(self.forget_gate(g))  # (B, n)
            u = f * u  # (B, n)
        if self.state_source == "both":
            r = torch.cat((u, gated_h), 1)  # (B, 2n)
            if self.residual:
                r = torch.cat((r, x), 1)  # (B, 3n)
        else:
            r = u if self.state_source == "new" else gated_h  # (B, n)
            if self.residual:
                r = torch.cat((r, x), 1)  # (B, 2n)
        o = self.read_out(r)  # (B, n)
        if self.output_gate is not None:
            y = torch.sigmoid(self.output_gate(torch.cat((o, r), 1))) * o  # (B, n)
        else:
            y = o * torch.sigmoid(o)  # (B, n)
        return y, u

    def forward_sequence(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by T steps; return the outputs (T, B, n) and the last state."""
        return read_gated(self, x, h)


class ElmanCell(nn.Module):
    """h ← tanh(x·W + b + h·V + d) (Elman, *Finding Structure in Time*, 1990)."""

    def __init__(self, input_size: int, state_size: int) -> None:
        super().__init__()
        self.input = nn.Linear(input_size, state_size)  # W, b
        self.state = nn.Linear(state_size, state_size)  # V, d

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one step; the next state h (B, n) is the output as well."""
        return self.step(self.input(x), h)

    def step(self, wx: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one step, given x·W + b (B, n)."""
        h = torch.tanh(wx + self.state(h))  # (B, n)
        return h, h

    def forward_sequence(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by T steps; return the outputs (T, B, n) and the last state."""
        return read_elman(self, x, h)


class GRUCell(nn.Module):
    """Gated recurrent unit (Cho et al., *Learning Phrase Representations using RNN …*, 2014).

    With the weights of r, z and u side by side, as in PyTorch::

        r = σ(x·W_r + b_r + h·V_r + d_r)
        z = σ(x·W_z + b_z + h·V_z + d_z)
        u = tanh(x·W_u + b_u + r ⊙ (h·V_u + d_u))
        h ← (1 − z) ⊙ u + z ⊙ h
    """

    def __init__(self, input_size: int, state_size: int) -> None:
        super().__init__()
        self.input = nn.Linear(input_size, 3 * state_size)  # W, b
        self.state = nn.Linear(state_size, 3 * state_size)  # V, d

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one step; the next state h (B, n) is the output as well."""
        return self.step(self.input(x), h)

    def step(self, wx: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one step, given x·W + b (B, 3n)."""
        vh = self.state(h)  # (B, 3n)
        n = h.shape[1]
        r, z = torch.sigmoid(wx[:, : 2 * n] + vh[:, : 2 * n]).chunk(2, 1)  # (B, n) each
        u = torch.tanh(wx[:, 2 * n :] + r * vh[:, 2 * n :])  # (B, n)
        h = torch.lerp(u.to(h.dtype), h, z.to(h.dtype))  # (B, n), (1 − z) ⊙ u + z ⊙ h
        return h, h

    def forward_sequence(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by T steps; return the outputs (T, B, n) and the last state."""
        return read_gru(self, x, h)


class LSTMCell(nn.Module):
    """LSTM with a forget gate (Hochreiter & Schmidhuber, 1997; Gers et al., 2000).

    The state is the pair of h and the memory m. With the weights of i, f, u and o side by side, as
    in PyTorch::

        i, f, o = σ(x·W_k + b_k + h·V_k + d_k)   for k = i, f, o
        u = tanh(x·W_u + b_u + h·V_u + d_u)
        m ← f ⊙ m + i ⊙ u
        h ← o ⊙ tanh(m)
    """

    def __init__(self, input_size: int, state_size: int) -> None:
        super().__init__()
        self.input = nn.Linear(input_size, 4 * state_size)  # W, b
        self.state = nn.Linear(state_size, 4 * state_size)  # V, d

    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return zeros (B, n) for h and m."""
        zeros = self.state.weight.new_zeros(batch_size, self.state.in_features)
        return zeros, zeros.clone()

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Advance by one step; h (B, n) is the output as well."""
        return self.step(self.input(x), state)

    def step(
        self, wx: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Advance by one step, given x·W + b (B, 4n)."""
        h, m = state  # (B, n) each
        i, f, u, o = (wx + self.state(h)).chunk(4, 1)  # (B, n) each
        m = torch.sigmoid(f) * m + torch.sigmoid(i) * torch.tanh(u)  # (B, n)
        h = torch.sigmoid(o) * torch.tanh(m)  # (B, n)
        return h, (h, m)

    def forward_sequence(
        self, x: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Advance by T steps; return the outputs (T, B, n) and the last state."""
        return read_lstm(self, x, state)


CELLS: dict[str, type[nn.Module]] = {
    "gated": GatedCell,
    "elman": ElmanCell,
    "gru": GRUCell,
    "lstm": LSTMCell,
}
"""The class of each built-in cell."""
