"""Adam over all weights of a population at once.

Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.
"""

import torch
from torch import Tensor

from rnn.stacked.flat_parameters import FlatParameters

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

_CHUNK = 1 << 16
"""Weights that on a processor are cast, updated and cast again while they are in its cache."""


class Adam:
    """The optimizer, by torch's fused kernel; ``torch.optim`` gives the same numbers.

    What ``torch.optim`` does around that kernel takes as long as a step of a small network, and its
    import takes a second.

    Args:
        parameters: to be updated, from their gradients.
        learning_rate: α.

    Attributes:
        moments: (P,) each, the first and the second, in the parameters' order.
        updates: () how many they stand for.
        learning_rate: α, of the next update.
    """

    def __init__(self, parameters: FlatParameters, learning_rate: float) -> None:
        values = parameters.values
        self.moments = (torch.zeros_like(values), torch.zeros_like(values))
        self.updates = torch.zeros((), device=values.device)
        self.learning_rate = learning_rate
        self._parameters = parameters
        cast = len(parameters.low_gradients) if parameters.is_mixed else 0
        size = _CHUNK if values.device.type == "cpu" else max(1, cast)
        scratch = values.new_empty(min(size, cast))
        self._chunks = []
        for first in range(0, cast, size):
            some = slice(first, min(first + size, cast))
            low = parameters.low_gradients[some]
            gradient = scratch[: len(low)]
            self._chunks.append((low, gradient, parameters.low[some], self._of(some, gradient)))
        self._rest = self._of(slice(cast, None), parameters.full_gradients)
        biases = slice(cast, len(parameters.low) if parameters.is_mixed else cast)
        self._biases = parameters.low[biases], values[biases]

    def step(self) -> None:
        """Update the weights, and what products read of them."""
        self.updates.add_(1)
        for low_gradient, gradient, low, some in self._chunks:
            gradient.copy_(low_gradient)
            self._update(some)
            low.copy_(some[0][0])
        self._update(self._rest)
        low, values = self._biases
        low.copy_(values)

    def _of(self, some: slice, gradient: Tensor) -> tuple[list[Tensor], ...]:
        """Return values, gradients and moments of some weights, as the kernel takes them."""
        tensors = (self._parameters.values[some], gradient, *(m[some] for m in self.moments))
        return tuple([tensor] for tensor in tensors)

    def _update(self, some: tuple[list[Tensor], ...]) -> None:
        values, gradients, first, second = some
        torch._fused_adam_(
            values,
            gradients,
            first,
            second,
            [],
            [self.updates],
            lr=self.learning_rate,
            beta1=BETA_1,
            beta2=BETA_2,
            weight_decay=0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )
