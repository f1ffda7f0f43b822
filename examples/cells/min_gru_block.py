"""MinGRU with three parts of the blocks around linear recurrences, each a switch.

Feng et al., *Were RNNs All We Needed?*, 2024, https://arxiv.org/abs/2410.01201. B is the number of
texts read in parallel.
"""

import torch
from torch import Tensor, nn

from rnn_search import linear_scan

State = tuple[Tensor, Tensor]


class MinGRUBlock(nn.Module):
    """One layer.

    With x the input, x₋ that of the step before, h the previous state, ⊙ for the element-wise
    product and σ for the logistic function::

        v = x + a ⊙ x₋                       or x without the shift
        z = σ(v·W_z + b_z)
        u = v·W_u + b_u
        h ← (1 − z) ⊙ h + z ⊙ u              or (1 − 2z) ⊙ h + z ⊙ u
        y = σ(v·W_g + b_g) ⊙ (h·W_y + b_y)   or without the gate

    Args:
        input_size: size of the input and the output.
        state_size: size of the state.
        shift: whether the layer reads the input of the step before as well, a convolution of width
            two (Fu et al., *Hungry Hungry Hippos*, 2023).
        negative: whether the state can change its sign: its factors lie between −1 and 1 (Grazzi et
            al., *Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues*, 2024).
        read_gate: whether a gate of the input scales the output.
    """

    def __init__(
        self,
        input_size: int,
        state_size: int,
        *,
        shift: bool = False,
        negative: bool = False,
        read_gate: bool = False,
    ) -> None:
        super().__init__()
        self.sizes = input_size, state_size
        self.previous = nn.Parameter(torch.ones(input_size)) if shift else None
        self.reach = 2 if negative else 1
        self.gate = nn.Linear(input_size, state_size)
        nn.init.constant_(self.gate.bias, -2.0)  # so that states last for several steps at first
        self.candidate = nn.Linear(input_size, state_size)
        self.read_out = nn.Linear(state_size, input_size)
        self.read_gate = nn.Linear(input_size, input_size) if read_gate else None

    def initial_state(self, batch_size: int) -> State:
        """Return zeros: the last input (B, input_size) and the state (B, state_size)."""
        zeros = self.gate.weight.new_zeros
        return zeros(batch_size, self.sizes[0]), zeros(batch_size, self.sizes[1])

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by one step: x (B, input_size) and the state."""
        last, h = state  # (B, input_size), (B, state_size)
        kept, new, gate = self.read(x, last)  # (B, state_size) each, (B, input_size)
        h = kept * h + new  # (B, state_size)
        return self.read_out(h) * gate, (x, h)

    def forward_sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by T steps: x (T, B, input_size) and the state."""
        last, h = state  # (B, input_size), (B, state_size)
        kept, new, gate = self.read(x, torch.cat((last[None], x[:-1])))
        states = linear_scan(kept, new, h)  # (T, B, state_size)
        return self.read_out(states) * gate, (x[-1], states[-1])

    def read(self, x: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """Return the factor of the state, what is added to it, and the gate of the output."""
        v = x if self.previous is None else x + self.previous * last  # (…, input_size)
        z = self.gate(v).sigmoid()  # (…, state_size)
        gate = 1.0 if self.read_gate is None else self.read_gate(v).sigmoid()  # (…, input_size)
        return 1 - self.reach * z, z * self.candidate(v), gate
