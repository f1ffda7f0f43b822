"""Optimizers over all weights of a network stack at once, each network with its own settings.

With g the gradient of a weight w, α the learning rate, λ the weight decay, t the number of updates
and ε = 1e-8, an update is::

    clipping   g ← g · min(1, c / (‖g‖ + 1e-6)),  ‖g‖ over all weights and biases of the network
    adam       g ← g + λw
               m ← β₁m + (1 − β₁)g    v ← β₂v + (1 − β₂)g²
               w ← w − α · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)
    adamw      w ← w − αλw, then as adam with λ = 0
    rmsprop    g ← g + λw    v ← β₂v + (1 − β₂)g²    w ← w − αg / (√v + ε)
    sgd        g ← g + λw    m ← μm + g              w ← w − αm

They compute the same as ``torch.optim.Adam``, ``AdamW``, ``RMSprop(alpha=β₂)`` and
``SGD(momentum=μ)``, and as ``torch.nn.utils.clip_grad_norm_``. ``torch.optim`` adds overhead as
large as a step of a small network, and a second of import.

Adam: Kingma & Ba, *Adam: A Method for Stochastic Optimization*, 2015, algorithm 1. AdamW:
Loshchilov & Hutter, *Decoupled Weight Decay Regularization*, 2019. RMSprop: Tieleman & Hinton,
*Lecture 6.5: RMSprop*, 2012. Clipping: Pascanu, Mikolov & Bengio, *On the Difficulty of Training
Recurrent Neural Networks*, 2013.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnn.config import OptimizerConfig
from rnn.models.cell_parameters import CellParameters
from rnn.stacked.flat_parameters import Block, FlatParameters

EPSILON = 1e-8

_CLIPPING_EPSILON = 1e-6
"""Added to a norm before the division by it, as ``clip_grad_norm_`` does."""

_CHUNK_SIZE = 1 << 16
"""Number of weights that a CPU casts and updates while they are in its cache."""


@dataclass(frozen=True)
class _Group:
    """Parts of the flat tensors that are updated by the same settings.

    Attributes:
        config: settings of the update.
        values: weights, views of the flat tensor.
        grads: their gradients.
        first: their first moments.
        second: their second moments.
    """

    config: OptimizerConfig
    values: list[Tensor]
    grads: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]


@dataclass(frozen=True)
class _Chunk:
    """Consecutive weights whose gradients are bfloat16.

    Attributes:
        matmul_grad: gradient in bfloat16.
        grad: memory for the gradient in full precision.
        matmul_values: bfloat16 copy of the weights.
        values: the weights.
        groups: what to update.
    """

    matmul_grad: Tensor
    grad: Tensor
    matmul_values: Tensor
    values: Tensor
    groups: list[_Group]


class Optimizer:
    """Optimizer of K networks; no network affects another.

    Every step runs the same operations on the same memory, as a CUDA graph requires.

    Args:
        parameters: weights and gradients.
        configs: settings of each network.

    Attributes:
        moments: m and v, (P,) each, in the layout of the weights; zero where the optimizer has
            none.
        updates: number of updates so far ().
        learning_rate_factor: factor of all learning rates at the next update.
    """

    def __init__(
        self, parameters: FlatParameters | CellParameters, configs: Sequence[OptimizerConfig]
    ) -> None:
        values = parameters.values
        self.moments = (torch.zeros_like(values), torch.zeros_like(values))
        self.updates = torch.zeros((), device=values.device)
        self.learning_rate_factor = 1.0
        self._parameters = parameters
        self._configs = [replace(config, gradient_clipping=0.0) for config in configs]
        self._is_uniform = len(set(self._configs)) == 1
        clips = any(config.gradient_clipping for config in configs)
        is_mixed = parameters.mixed_precision
        # Weights of which matrix products have bfloat16 copies and gradients.
        end = len(parameters.matmul_grads) if is_mixed else 0
        in_chunks = values.device.type == "cpu" and self._is_uniform and not clips
        size = _CHUNK_SIZE if in_chunks else max(1, end)
        scratch = values.new_empty(min(size, end))
        self._chunks = []
        for first in range(0, end, size):
            part = slice(first, min(first + size, end))
            grad = scratch[: part.stop - first]
            self._chunks.append(
                _Chunk(
                    parameters.matmul_grads[part],
                    grad,
                    parameters.matmul_values[part],
                    values[part],
                    self._make_groups(part, grad),
                )
            )
        rest = slice(end, len(values))
        self._rest = self._make_groups(rest, parameters.full_grads)
        biases = slice(end, len(parameters.matmul_values) if is_mixed else end)
        self._biases = parameters.matmul_values[biases], values[biases]
        self._clipping = None
        if clips:
            parts = [(slice(0, end), scratch), (rest, parameters.full_grads)]
            self._clipping = _Clipping(
                [
                    (block.networks, grad[_shift(block.place, -part.start)])
                    for part, grad in parts
                    for block in _blocks_within(parameters.blocks, part)
                ],
                values.new_tensor([config.gradient_clipping or math.inf for config in configs]),
            )

    def step(self) -> None:
        """Update the weights, and the copies of them that matrix products read."""
        self.updates.add_(1)
        if self._clipping is not None:
            for chunk in self._chunks:
                chunk.grad.copy_(chunk.matmul_grad)
            self._clipping.apply()
        for chunk in self._chunks:
            if self._clipping is None:
                chunk.grad.copy_(chunk.matmul_grad)
            for group in chunk.groups:
                self._update(group)
            chunk.matmul_values.copy_(chunk.values)
        for group in self._rest:
            self._update(group)
        matmul_biases, biases = self._biases
        matmul_biases.copy_(biases)

    def _make_groups(self, part: slice, grad: Tensor) -> list[_Group]:
        """Return what to update in a part of the flat tensors, given the gradient of the part."""
        if self._is_uniform:
            places = {self._configs[0]: [part]}
        else:
            places = {config: [] for config in self._configs}
            for block in _blocks_within(self._parameters.blocks, part):
                for config, place in self._runs(block):
                    places[config].append(place)
        first, second = self.moments
        return [
            _Group(
                config,
                [self._parameters.values[place] for place in each],
                [grad[_shift(place, -part.start)] for place in each],
                [first[place] for place in each],
                [second[place] for place in each],
            )
            for config, each in places.items()
            if each
        ]

    def _runs(self, block: Block) -> Iterator[tuple[OptimizerConfig, slice]]:
        """Yield each range of a block whose networks have the same settings."""
        size = (block.place.stop - block.place.start) // len(block.networks)
        configs = [self._configs[k] for k in block.networks]
        begin = 0
        for end in range(1, len(configs) + 1):
            if end == len(configs) or configs[end] != configs[begin]:
                yield configs[begin], _shift(slice(begin * size, end * size), block.place.start)
                begin = end

    def _update(self, group: _Group) -> None:
        config, values, grads = group.config, group.values, group.grads
        learning_rate = config.learning_rate * self.learning_rate_factor
        if config.name in ("adam", "adamw"):
            fused = torch._fused_adam_ if config.name == "adam" else torch._fused_adamw_
            fused(
                values,
                grads,
                group.first,
                group.second,
                [],
                [self.updates] * len(values),
                lr=learning_rate,
                beta1=config.beta1,
                beta2=config.beta2,
                weight_decay=config.weight_decay,
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )
        elif config.name == "sgd":
            torch._fused_sgd_(
                values,
                grads,
                group.first if config.momentum else [],
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                lr=learning_rate,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,  # m starts at 0
            )
        else:
            if config.weight_decay:
                # Not in place: a gradient that is always zero is written only once.
                grads = list(torch._foreach_add(grads, values, alpha=config.weight_decay))
            torch._foreach_mul_(group.second, config.beta2)
            torch._foreach_addcmul_(group.second, grads, grads, value=1 - config.beta2)
            roots = torch._foreach_sqrt(group.second)
            torch._foreach_add_(roots, EPSILON)
            torch._foreach_addcdiv_(values, grads, roots, value=-learning_rate)


class _Clipping:
    """Scales the gradient of each network whose norm is above its limit down to the limit.

    Args:
        blocks: all gradients: networks (R), and what belongs to them in turn (R · size,).
        limits: maximum norm of each network's gradient (K,); infinite for none.
    """

    def __init__(self, blocks: Sequence[tuple[Sequence[int], Tensor]], limits: Tensor) -> None:
        device = limits.device
        self._grads = [grad.view(len(networks), -1) for networks, grad in blocks]
        self._owners = [torch.tensor(networks, device=device) for networks, _ in blocks]
        self._limits, self._unlimited = limits, limits.isinf()
        # Positions of each network's norms among those of all blocks; the last is a zero.
        owners = [k for networks, _ in blocks for k in networks]
        positions = [
            [position for position, owner in enumerate(owners) if owner == k]
            for k in range(len(limits))
        ]
        longest = max(map(len, positions))
        padded = [each + [len(owners)] * (longest - len(each)) for each in positions]
        self._positions = torch.tensor(padded, device=device)  # (K, longest)
        self._zero = limits.new_zeros(1)

    def apply(self) -> None:
        """Scale the gradients in place."""
        norms = [torch.linalg.vector_norm(grad, dim=1) for grad in self._grads]  # (R,) each
        # Gathered, not added by a product with zeros: a norm that is not finite stays where it is.
        by_network = torch.cat((*norms, self._zero))[self._positions]  # (K, longest)
        norm = torch.linalg.vector_norm(by_network, dim=1)  # (K,)
        factors = (self._limits / (norm + _CLIPPING_EPSILON)).clamp(max=1)  # (K,)
        factors.masked_fill_(self._unlimited, 1.0)
        for grad, owners in zip(self._grads, self._owners, strict=True):
            grad.mul_(factors[owners, None])


def _blocks_within(blocks: Sequence[Block], part: slice) -> list[Block]:
    return [b for b in blocks if part.start <= b.place.start and b.place.stop <= part.stop]


def _shift(place: slice, distance: int) -> slice:
    return slice(place.start + distance, place.stop + distance)
