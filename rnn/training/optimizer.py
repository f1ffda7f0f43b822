"""Adam over all weights of a network stack at once.

Kingma & Ba, *Adam: A Method for Stochastic Optimization*, 2015, algorithm 1.
"""

import torch
from torch import Tensor

from rnn.models.cell_parameters import CellParameters
from rnn.stacked.flat_parameters import FlatParameters

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

_CHUNK_SIZE = 1 << 16
"""Number of weights that a CPU casts and updates while they are in its cache."""


class Adam:
    """Adam by torch's fused kernel; computes the same as ``torch.optim.Adam``.

    ``torch.optim`` adds overhead as large as a step of a small network, and a second of import.

    Args:
        parameters: weights and gradients.
        learning_rate: α.

    Attributes:
        moments: first and second moments, (P,) each, in the layout of the weights.
        updates: number of updates so far ().
        learning_rate: α of the next update.
    """

    def __init__(self, parameters: FlatParameters | CellParameters, learning_rate: float) -> None:
        values = parameters.values
        self.moments = (torch.zeros_like(values), torch.zeros_like(values))
        self.updates = torch.zeros((), device=values.device)
        self.learning_rate = learning_rate
        self._parameters = parameters
        is_mixed = parameters.mixed_precision
        # Weights of which matrix products have bfloat16 copies and gradients.
        end = len(parameters.matmul_grads) if is_mixed else 0
        size = _CHUNK_SIZE if values.device.type == "cpu" else max(1, end)
        scratch = values.new_empty(min(size, end))
        self._chunks = []
        for first in range(0, end, size):
            chunk = slice(first, min(first + size, end))
            matmul_grad = parameters.matmul_grads[chunk]
            grad = scratch[: len(matmul_grad)]
            matmul_values = parameters.matmul_values[chunk]
            self._chunks.append(
                (matmul_grad, grad, matmul_values, self._kernel_arguments(chunk, grad))
            )
        self._rest = self._kernel_arguments(slice(end, None), parameters.full_grads)
        biases = slice(end, len(parameters.matmul_values) if is_mixed else end)
        self._biases = parameters.matmul_values[biases], values[biases]

    def step(self) -> None:
        """Update the weights, and the copies of them that matrix products read."""
        self.updates.add_(1)
        for matmul_grad, grad, matmul_values, arguments in self._chunks:
            grad.copy_(matmul_grad)
            self._update(arguments)
            matmul_values.copy_(arguments[0][0])
        self._update(self._rest)
        matmul_biases, biases = self._biases
        matmul_biases.copy_(biases)

    def _kernel_arguments(self, part: slice, grad: Tensor) -> tuple[list[Tensor], ...]:
        """Return values, gradient and moments of a part of the weights."""
        tensors = (self._parameters.values[part], grad, *(m[part] for m in self.moments))
        return tuple([tensor] for tensor in tensors)

    def _update(self, arguments: tuple[list[Tensor], ...]) -> None:
        values, grads, first, second = arguments
        torch._fused_adam_(
            values,
            grads,
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
