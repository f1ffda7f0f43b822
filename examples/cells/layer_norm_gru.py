"""A GRU with layer normalisation.

Cho et al., *Learning Phrase Representations using RNN Encoder–Decoder*, 2014; Ba et al., *Layer
Normalization*, 2016, https://arxiv.org/abs/1607.06450. B is the number of texts read in parallel.
"""

from typing import Literal

import torch
from torch import Tensor, nn


class LayerNormGRU(nn.Module):
    """One layer.

    With x the input, h the previous state, [a ; b] for concatenation, ⊙ for the element-wise
    product, σ for the logistic function and N for layer normalisation, if it is on::

        r = σ(N([x ; h]·W_r + b_r))
        z = σ(N([x ; h]·W_z + b_z))
        u = tanh(N([x ; r ⊙ h]·W_u + b_u))
        h ← (1 − z) ⊙ u + z ⊙ h
        y = h·W_y + b_y

    Args:
        input_size: size of the input and the output.
        state_size: size of the state.
        norm: what is normalised: nothing, the gates r and z, or the candidate u as well.
    """

    def __init__(
        self,
        input_size: int,
        state_size: int,
        *,
        norm: Literal["none", "gates", "all"] = "all",
    ) -> None:
        super().__init__()
        both = input_size + state_size
        self.reset = _gate(both, state_size, norm != "none")
        self.update = _gate(both, state_size, norm != "none")
        self.candidate = _gate(both, state_size, norm == "all")
        self.read_out = nn.Linear(state_size, input_size)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one step: x (B, input_size) and the state (B, state_size)."""
        c = torch.cat((x, state), 1)  # (B, input_size + state_size)
        r, z = self.reset(c).sigmoid(), self.update(c).sigmoid()  # (B, state_size) each
        u = self.candidate(torch.cat((x, r * state), 1)).tanh()  # (B, state_size)
        state = (1 - z) * u + z * state  # (B, state_size)
        return self.read_out(state), state  # (B, input_size), (B, state_size)


def _gate(inputs: int, outputs: int, normalised: bool) -> nn.Module:
    linear = nn.Linear(inputs, outputs)
    return nn.Sequential(linear, nn.LayerNorm(outputs)) if normalised else linear
