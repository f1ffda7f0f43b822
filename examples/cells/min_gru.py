"""MinGRU: a gated cell whose gate and candidate read only the input.

Feng et al., *Were RNNs All We Needed?*, 2024, https://arxiv.org/abs/2410.01201. B is the number of
texts read in parallel.
"""

from torch import Tensor, nn


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
        z = self.gate(x).sigmoid()  # (B, state_size)
        u = self.candidate(x)  # (B, state_size)
        if self.candidate_tanh:
            u = u.tanh()  # (B, state_size)
        state = (1 - z) * state + z * u  # (B, state_size)
        return self.read_out(state), state  # (B, input_size), (B, state_size)
