"""A diagonal linear recurrence, after the linear recurrent unit.

Orvieto et al., *Resurrecting Recurrent Neural Networks for Long Sequences*, 2023,
https://arxiv.org/abs/2303.06349. B is the number of texts read in parallel.
"""

import math

import torch
from torch import Tensor, nn

from rnn_search import linear_scan

State = tuple[Tensor, Tensor]


class DiagonalLRU(nn.Module):
    """One layer; its complex state h is a pair of real tensors.

    With x the input, ⊙ for the element-wise product and σ for the logistic function::

        λ = exp(−exp(ν) + iθ)
        h ← λ ⊙ h + √(1 − |λ|²) ⊙ (x·W_h + b_h)
        o = [Re h ; Im h]·W_o + b_o
        y = σ(x·W_y + b_y) ⊙ o                   or o ⊙ σ(o), if not gated

    Args:
        input_size: size of the input and the output.
        state_size: number of complex numbers of the state.
        min_radius: lower bound of |λ| at the start of training; the upper one is 0.999.
        gated: whether a gate that reads the input scales the output.
    """

    def __init__(
        self, input_size: int, state_size: int, *, min_radius: float = 0.9, gated: bool = True
    ) -> None:
        super().__init__()
        radius = torch.empty(state_size).uniform_(min_radius, 0.999)
        self.log_decay = nn.Parameter((-radius.log()).log())  # ν
        self.angle = nn.Parameter(torch.empty(state_size).uniform_(0, math.pi / 10))  # θ
        self.input = nn.Linear(input_size, 2 * state_size)
        self.read_out = nn.Linear(2 * state_size, input_size)
        self.gate = nn.Linear(input_size, input_size) if gated else None

    def initial_state(self, batch_size: int) -> State:
        """Return the real and the imaginary part of h: zeros (B, state_size) each."""
        zeros = self.angle.new_zeros(batch_size, len(self.angle))
        return zeros, zeros

    def forward(self, x: Tensor, h: State) -> tuple[Tensor, State]:
        """Advance by one step: x (B, input_size) and the state, two of (B, state_size)."""
        radius, real_input, imag_input = self.read(x)  # (state_size,), (B, state_size) each
        cos, sin = radius * self.angle.cos(), radius * self.angle.sin()  # (state_size,) each
        real = cos * h[0] - sin * h[1] + real_input  # (B, state_size)
        imag = cos * h[1] + sin * h[0] + imag_input  # (B, state_size)
        return self.write(x, real, imag), (real, imag)

    def forward_sequence(self, x: Tensor, h: State) -> tuple[Tensor, State]:
        """Advance by T steps: of g_t = exp(−iθt) ⊙ h_t the factors |λ| are real."""
        radius, real_input, imag_input = self.read(x)  # (state_size,), (T, B, state_size) each
        steps = torch.arange(1, len(x) + 1, dtype=torch.float64, device=x.device)
        angles = steps[:, None, None] * self.angle.double()  # (T, 1, state_size); may be large
        cos, sin = angles.cos().to(radius.dtype), angles.sin().to(radius.dtype)
        real = linear_scan(radius[None, None], cos * real_input + sin * imag_input, h[0])
        imag = linear_scan(radius[None, None], cos * imag_input - sin * real_input, h[1])
        real, imag = cos * real - sin * imag, cos * imag + sin * real  # (T, B, state_size) each
        return self.write(x, real, imag), (real[-1], imag[-1])

    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return |λ|, and the real and the imaginary part of what is added to the state."""
        radius = (-self.log_decay.exp()).exp()  # (state_size,)
        scale = (1 - radius**2).sqrt()  # (state_size,)
        real, imag = self.input(x).chunk(2, -1)  # (…, state_size) each
        return radius, scale * real, scale * imag

    def write(self, x: Tensor, real: Tensor, imag: Tensor) -> Tensor:
        """Return the output of inputs and states."""
        o: Tensor = self.read_out(torch.cat((real, imag), -1))  # (…, input_size)
        return o * (o if self.gate is None else self.gate(x)).sigmoid()  # (…, input_size)
