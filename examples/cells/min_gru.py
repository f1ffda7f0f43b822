"""MinGRU: a gated cell whose gate and candidate read only the input.

Feng et al., *Were RNNs All We Needed?*, 2024, https://arxiv.org/abs/2410.01201. B is the number of
texts read in parallel.
"""

from torch import Tensor, nn

from rnn_search import linear_scan


class MinGRU(nn.Module):
    """One layer.

    With x the input, h the previous state, ⊙ for the element-wise product and σ for the logistic
    function::

        z = σ(x·W_z + b_z)
        u = x·W_u + b_u                      or its tanh
        h ← (1 − z) ⊙ h + z ⊙ u
        y = h·W_y + b_y

    Args:
        input_size: size of the input and the output.
        state_size: size of the state.
        candidate_tanh: whether the candidate u is bounded by tanh.
    """

    def __init__(self, input_size: int, state_size: int, *, candidate_tanh: bool = False) -> None:
        super().__init__()
        self.candidate_tanh = candidate_tanh
        self.gate = nn.Linear(input_size, state_size)
        self.candidate = nn.Linear(input_size, state_size)
        self.read_out = nn.Linear(state_size, input_size)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one step: x (B, input_size) and the state (B, state_size)."""
        z, u = self.read(x)  # (B, state_size) each
        state = (1 - z) * state + z * u  # (B, state_size)
        return self.read_out(state), state  # (B, input_size), (B, state_size)

    def forward_sequence(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by T steps: x (T, B, input_size) and the state (B, state_size)."""
        z, u = self.read(x)  # (T, B, state_size) each
        states = linear_scan(1 - z, z * u, state)  # (T, B, state_size)
        return self.read_out(states), states[-1]  # (T, B, input_size), (B, state_size)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gate and the candidate of inputs."""
        u = self.candidate(x)  # (…, state_size)
        return self.gate(x).sigmoid(), u.tanh() if self.candidate_tanh else u
