"""Adam over all weights of a population at once.

Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.
"""

import torch

from rnn.parameters import Parameters

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
    """

    def __init__(self, parameters: Parameters, learning_rate: float) -> None:
        values = parameters.values
        self.moments = (torch.zeros_like(values), torch.zeros_like(values))
        self.updates = torch.zeros((), device=values.device)
        self._learning_rate = learning_rate
        self._parameters = parameters
        size = _CHUNK if values.device.type == "cpu" else max(1, len(parameters.low_gradients))
        self._gradient = values.new_empty(size)
        cast = len(parameters.low_gradients) if parameters.is_mixed else 0
        self._chunks = [slice(i, min(i + size, cast)) for i in range(0, cast, size)]
        self._rest = slice(cast, None)

    def step(self) -> None:
        """Update the weights, and what products read of them."""
        parameters = self._parameters
        self.updates.add_(1)
        for chunk in self._chunks:
            low = parameters.low_gradients[chunk]
            self._update(chunk, self._gradient[: len(low)].copy_(low))
            parameters.low[chunk].copy_(parameters.values[chunk])
        self._update(self._rest, parameters.full_gradients)
        if parameters.is_mixed:
            biases = slice(len(parameters.low_gradients), len(parameters.low))
            parameters.low[biases].copy_(parameters.values[biases])

    def _update(self, some: slice, gradient: torch.Tensor) -> None:
        first, second = self.moments
        torch._fused_adam_(
            [self._parameters.values[some]],
            [gradient],
            [first[some]],
            [second[some]],
            [],
            [self.updates],
            lr=self._learning_rate,
            beta1=BETA_1,
            beta2=BETA_2,
            weight_decay=0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )
