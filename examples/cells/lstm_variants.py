"""An LSTM whose parts are switches: the variants of Greff et al. and their combinations.

Greff et al., *LSTM: A Search Space Odyssey*, 2017, https://arxiv.org/abs/1503.04069. B is the
number of sequences read in parallel.
"""

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]


class LSTMVariant(nn.Module):
    """One layer.

    With x the input, y the previous output, m the memory, ⊙ for the element-wise product and σ for
    the logistic function, the layer with all parts but the last two switches is::

        u = tanh(x·W_u + y·V_u + b_u)
        i = σ(x·W_i + y·V_i + p_i ⊙ m + b_i)
        f = σ(x·W_f + y·V_f + p_f ⊙ m + b_f)
        m ← f ⊙ m + i ⊙ u
        o = σ(x·W_o + y·V_o + p_o ⊙ m + b_o)
        y ← o ⊙ tanh(m)

    The letters in brackets name the variant in the paper.

    Args:
        input_size: size of the input.
        state_size: size n of the output and of the memory.
        input_gating: whether there is an input gate i; 1 without it (NIG).
        forget_gating: whether there is a forget gate f; 1 without it (NFG).
        output_gating: whether there is an output gate o; 1 without it (NOG).
        input_activation: whether a tanh bounds the candidate u (NIAF without it).
        output_activation: whether a tanh bounds the memory on its way to the output (NOAF).
        peepholes: whether the gates read the memory (NP without them).
        coupled_gates: whether f is 1 − i (CIFG).
        full_gate_recurrence: whether each gate reads all gates of the step before (FGR).
        forget_bias: b_f at the start of training, or −b_i with coupled gates (Jozefowicz et al.,
            *An Empirical Exploration of Recurrent Network Architectures*, 2015).

    Raises:
        ValueError: if coupled gates lack one of the two, or there is no gate to read peepholes or
            other gates.
    """

    def __init__(
        self,
        input_size: int,
        state_size: int,
        *,
        input_gating: bool = True,
        forget_gating: bool = True,
        output_gating: bool = True,
        input_activation: bool = True,
        output_activation: bool = True,
        peepholes: bool = False,
        coupled_gates: bool = False,
        full_gate_recurrence: bool = False,
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__()
        if coupled_gates and not (input_gating and forget_gating):
            raise ValueError("coupled_gates needs input_gating and forget_gating")
        switches = {"i": input_gating, "f": forget_gating and not coupled_gates, "o": output_gating}
        self.gates = [name for name, is_on in switches.items() if is_on]
        if not self.gates and (peepholes or full_gate_recurrence):
            raise ValueError("peepholes and full_gate_recurrence need a gate")
        self.input_activation = input_activation
        self.output_activation = output_activation
        self.coupled_gates = coupled_gates
        self.state_size = state_size
        size = (1 + len(self.gates)) * state_size
        self.input = nn.Linear(input_size, size)  # W and b of u and of the gates
        self.recurrent = nn.Linear(state_size, size, bias=False)  # V
        self.peepholes = nn.ParameterDict()  # p
        if peepholes:
            bound = state_size**-0.5
            for name in self.gates:
                self.peepholes[name] = nn.Parameter(torch.empty(state_size).uniform_(-bound, bound))
        self.gate_recurrence = None
        if full_gate_recurrence:
            of_gates = len(self.gates) * state_size
            self.gate_recurrence = nn.Linear(of_gates, of_gates, bias=False)
        bias = self.input.bias.detach().view(1 + len(self.gates), state_size)
        if "f" in self.gates:
            bias[1 + self.gates.index("f")] += forget_bias
        elif coupled_gates:
            bias[1] -= forget_bias  # of the input gate

    def initial_state(self, batch_size: int) -> State:
        """Return zeros: y and m (B, n) and, with full gate recurrence, the gates."""
        zeros = self.recurrent.weight.new_zeros
        state = [zeros(batch_size, self.state_size) for _ in range(2)]
        if self.gate_recurrence is not None:
            state.append(zeros(batch_size, len(self.gates) * self.state_size))
        return tuple(state)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by one step: x (B, input_size) and the state."""
        return self.step(self.input(x), state)

    def forward_sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by T steps; the products of the inputs x (T, B, input_size) are one product."""
        ys = []
        for wx in self.input(x):  # (B, size)
            y, state = self.step(wx, state)
            ys.append(y)
        return torch.stack(ys), state

    def step(self, wx: Tensor, state: State) -> tuple[Tensor, State]:
        """Return y (B, n) and the next state, given x·W + b (B, size)."""
        y, m, *last_gates = state
        total = torch.addmm(wx, y, self.recurrent.weight.T).to(y.dtype)
        u, *parts = total.chunk(1 + len(self.gates), 1)  # (B, n) each
        if self.gate_recurrence is not None:
            added = self.gate_recurrence(last_gates[0]).to(y.dtype).split(self.state_size, 1)
            parts = [part + other for part, other in zip(parts, added, strict=True)]
        given = dict(zip(self.gates, parts, strict=True))
        if self.input_activation:
            u = u.tanh()
        opened = {name: self.open_gate(name, given[name], m) for name in self.gates if name != "o"}
        if self.coupled_gates:
            m = torch.lerp(m, u, opened["i"])  # (1 − i) ⊙ m + i ⊙ u
        else:
            kept = opened["f"] * m if "f" in opened else m
            m = torch.addcmul(kept, opened["i"], u) if "i" in opened else kept + u
        y = m.tanh() if self.output_activation else m
        if "o" in given:
            opened["o"] = self.open_gate("o", given["o"], m)
            y = opened["o"] * y
        if self.gate_recurrence is None:
            return y, (y, m)
        return y, (y, m, torch.cat(list(opened.values()), 1))

    def open_gate(self, name: str, total: Tensor, m: Tensor) -> Tensor:
        """Return a gate (B, n), given all that it reads but the memory m (B, n)."""
        if name in self.peepholes:
            total = torch.addcmul(total, self.peepholes[name], m)
        return total.sigmoid()
