"""MinLSTM: a cell whose two gates and candidate read only the input.

Feng et al., *Were RNNs All We Needed?*, 2024, https://arxiv.org/abs/2410.01201. B is the number of
texts read in parallel.
"""

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from rnn_search import linear_scan


class MinLSTM(nn.Module):
    """One layer.

    With x the input, h the previous state, ⊙ for the element-wise product and σ for the logistic
    function::

        f = σ(x·W_f + b_f)
        i = σ(x·W_i + b_i)
        f, i ← f / (f + i), i / (f + i)      or unchanged, if not normalized
        u = x·W_u + b_u = v                  or v + 0.5 where v > 0, else σ(v)
        h ← f ⊙ h + i ⊙ u
        y = h·W_y + b_y

    The quotient is computed from logarithms of f and i: 0 / 0 cannot occur.

    Args:
        input_size: size of the input and the output.
        state_size: size of the state.
        normalized: whether the gates sum to 1, so that the state keeps its scale.
        positive: whether the candidate u is positive, as the paper's form in log-space needs it.
        forget_bias: b_f at the start of training, minus that of the input gate.
    """

    def __init__(
        self,
        input_size: int,
        state_size: int,
        *,
        normalized: bool = True,
        positive: bool = False,
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.normalized = normalized
        self.positive = positive
        self.forget_gate = nn.Linear(input_size, state_size)
        nn.init.constant_(self.forget_gate.bias, forget_bias)
        self.input_gate = nn.Linear(input_size, state_size)
        self.candidate = nn.Linear(input_size, state_size)
        self.read_out = nn.Linear(state_size, input_size)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one step: x (B, input_size) and the state (B, state_size)."""
        f, new = self.read(x)  # (B, state_size) each
        state = f * state + new  # (B, state_size)
        return self.read_out(state), state  # (B, input_size), (B, state_size)

    def forward_sequence(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by T steps: x (T, B, input_size) and the state (B, state_size)."""
        states = linear_scan(*self.read(x), state)  # (T, B, state_size)
        return self.read_out(states), states[-1]  # (T, B, input_size), (B, state_size)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the forget gate f and what is added to the state, i ⊙ u."""
        u = self.candidate(x)  # (…, state_size)
        if self.positive:
            u = (u + 0.5).where(u > 0, u.sigmoid())  # (…, state_size)
        f, i = self.forget_gate(x), self.input_gate(x)  # (…, state_size) each
        if not self.normalized:
            return f.sigmoid(), i.sigmoid() * u
        ratio = logsigmoid(f) - logsigmoid(i)  # (…, state_size), log(f / i)
        return ratio.sigmoid(), (-ratio).sigmoid() * u
