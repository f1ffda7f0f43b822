"""The baseline cells, Elman, GRU and LSTM, as plain modules with the equations of PyTorch.

T is the number of time steps, B the number of streams, n the state size. In each layer W maps the
input and V the previous output, with the weights of all gates side by side in PyTorch's order;
b and d are their biases, ⊙ is the element-wise product and σ the logistic function.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from rnn.config import BaselineCell, BaselineConfig
from rnn.models.gated import RecurrentLayer, tanh


class BaselineLayer(RecurrentLayer, ABC):
    """One layer: a product of all inputs at once, then one step after another.

    Args:
        config: cell and state size of the layer.

    Attributes:
        state_width: n, or 2n for an LSTM.
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        n, gates = config.param_shapes()["layers.0.input"]
        self.state_width = n
        self.input = nn.Linear(n, gates)  # W, b
        self.state = nn.Linear(n, gates)  # V, d

    def forward(self, xs: Tensor, state: Tensor, last_only: bool = False) -> tuple[Tensor, Tensor]:
        """Advance by T time steps; see :meth:`rnn.models.gated.GatedLayer.forward`.

        The outputs are parts of the states, so ``last_only`` saves nothing and has no effect.
        """
        n = self.state.in_features
        outputs = []
        for wx in self.input(xs):  # (B, n to 4n)
            vh = self.state(state[:, :n])  # (B, n to 4n)
            state = self.step(wx, vh, state)  # (B, state_width)
            outputs.append(state[:, :n])
        return torch.stack(outputs), state

    @abstractmethod
    def step(self, wx: Tensor, vh: Tensor, state: Tensor) -> Tensor:
        """Return the next state (B, ``state_width``); its first n numbers are the output.

        Args:
            wx: x·W + b (B, n to 4n).
            vh: h·V + d, of the same shape.
            state: the previous state (B, ``state_width``).
        """


class ElmanLayer(BaselineLayer):
    """h ← tanh(x·W + b + h·V + d) (Elman, *Finding Structure in Time*, 1990)."""

    def step(self, wx: Tensor, vh: Tensor, state: Tensor) -> Tensor:  # noqa: D102
        return tanh(wx + vh)  # (B, n)


class GRULayer(BaselineLayer):
    """Gated recurrent unit (Cho et al., *Learning Phrase Representations using RNN …*, 2014).

    ::

        r = σ(x·W_r + b_r + h·V_r + d_r)
        z = σ(x·W_z + b_z + h·V_z + d_z)
        u = tanh(x·W_u + b_u + r ⊙ (h·V_u + d_u))
        h ← (1 − z) ⊙ u + z ⊙ h
    """

    def step(self, wx: Tensor, vh: Tensor, state: Tensor) -> Tensor:  # noqa: D102
        n = state.shape[1]
        r, z = (wx[:, : 2 * n] + vh[:, : 2 * n]).sigmoid().chunk(2, 1)  # (B, n) each
        u = tanh(wx[:, 2 * n :] + r * vh[:, 2 * n :])  # (B, n)
        return torch.lerp(u, state, z)  # (B, n), (1 − z) ⊙ u + z ⊙ h


class LSTMLayer(BaselineLayer):
    """LSTM with a forget gate (Hochreiter & Schmidhuber, 1997; Gers et al., 2000).

    The state is [h ; m], with m the memory::

        i, f, o = σ(x·W_k + b_k + h·V_k + d_k)   for k = i, f, o
        u = tanh(x·W_u + b_u + h·V_u + d_u)
        m ← f ⊙ m + i ⊙ u
        h ← o ⊙ tanh(m)
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        self.state_width = 2 * config.state_size

    def step(self, wx: Tensor, vh: Tensor, state: Tensor) -> Tensor:  # noqa: D102
        i, f, u, o = (wx + vh).chunk(4, 1)  # (B, n) each
        m = state.chunk(2, 1)[1]  # (B, n)
        m = f.sigmoid() * m + i.sigmoid() * tanh(u)  # (B, n)
        return torch.cat((o.sigmoid() * tanh(m), m), 1)  # (B, 2n)


BASELINE_LAYERS: dict[BaselineCell, type[BaselineLayer]] = {
    "elman": ElmanLayer,
    "gru": GRULayer,
    "lstm": LSTMLayer,
}
"""The layer of each baseline cell."""
