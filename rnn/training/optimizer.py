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

The learning rate of update t of T, counted from 1, is the setting times a factor: with a warm-up
over W updates t / W up to update W, and then, where p = (t − 1 − W) / (T − W) is the part of the
rest that is over::

    constant   1
    cosine     (1 + cos πp) / 2
    linear     1 − p

They compute the same as ``torch.optim.Adam``, ``AdamW``, ``RMSprop(alpha=β₂)`` and
``SGD(momentum=μ)``, as ``torch.nn.utils.clip_grad_norm_``, and as ``LinearLR`` before
``CosineAnnealingLR`` or another ``LinearLR``. ``torch.optim`` adds overhead as large as a step of a
small network, and a second of import.

Adam: Kingma & Ba, *Adam: A Method for Stochastic Optimization*, 2015, algorithm 1. AdamW:
Loshchilov & Hutter, *Decoupled Weight Decay Regularization*, 2019. RMSprop: Tieleman & Hinton,
*Lecture 6.5: RMSprop*, 2012. Cosine: Loshchilov & Hutter, *SGDR: Stochastic Gradient Descent with
Warm Restarts*, 2017, equation 5, without restarts. Warm-up: Goyal et al., *Accurate, Large
Minibatch SGD*, 2017. Clipping: Pascanu, Mikolov & Bengio, *On the Difficulty of Training
Recurrent Neural Networks*, 2013.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rnn.config import OPTIMIZERS, OptimizerConfig, Schedule
from rnn.parameters import Parameters
from rnn.stacked.linear import FlatParameters

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
        learning_rate: a number, or a tensor () where it changes during training.
        values: weights, views of the flat tensor.
        grads: their gradients.
        first: their first moments.
        second: their second moments.
        updates: number of updates so far ().
    """

    config: OptimizerConfig
    learning_rate: float | Tensor
    values: list[Tensor]
    grads: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    updates: Tensor


class _Chunk(NamedTuple):
    """Consecutive weights, which are updated while a CPU has them in its cache.

    Attributes:
        groups: what to update.
        grad: gradient in full precision, to be copied from ``matmul_grad``.
        matmul_grad: gradient in bfloat16; empty if there is none.
        values: weights of which matrix products read a copy.
        matmul_values: the copy in bfloat16; empty if there is none.
    """

    groups: list[_Group]
    grad: Tensor
    matmul_grad: Tensor
    values: Tensor
    matmul_values: Tensor


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
    """

    def __init__(
        self, parameters: FlatParameters | Parameters, configs: Sequence[OptimizerConfig]
    ) -> None:
        values = parameters.values
        self.moments = (torch.zeros_like(values), torch.zeros_like(values))
        self.updates = torch.zeros((), device=values.device)
        self._values = values
        self._places = _places_by_settings(parameters, configs)
        # A tensor, since a graph keeps numbers as they were when it was recorded. On a GPU,
        # torch's updates read single precision.
        precision = torch.float32 if values.is_cuda else torch.float64
        self._changing_rates = {
            config: values.new_tensor(config.learning_rate, dtype=precision)
            for config in self._places
            if config.schedule != "constant" or config.warmup_steps
        }
        matmul_grads = parameters.matmul_grads
        matmul_values = parameters.matmul_values
        end = len(matmul_grads)
        clipped = [
            (config.gradient_clipping, places)
            for config, places in zip(configs, parameters.places, strict=True)
            if config.gradient_clipping
        ]
        in_chunks = values.device.type == "cpu" and len(self._places) == 1 and not clipped
        size = min(end, _CHUNK_SIZE) if in_chunks else end
        scratch = values.new_empty(size)
        starts = range(0, end, max(1, size))
        parts = [slice(first, min(first + size, end)) for first in starts]
        grads = [(scratch[: part.stop - part.start], part) for part in parts]
        grads.append((parameters.full_grads, slice(end, len(values))))
        self._chunks = [
            _Chunk(
                self._make_groups(part, grad),
                grad[: len(matmul_grads[part])],
                matmul_grads[part],
                values[part][: len(matmul_values[part])],
                matmul_values[part],
            )
            for grad, part in grads
        ]
        self._clipped = [
            [view for gradient in grads for view in _views(*gradient, places)]
            for _, places in clipped
        ]
        self._limits = values.new_tensor([limit for limit, _ in clipped])

    def set_learning_rates(self, update: int, updates: int) -> None:
        """Set the learning rates that change during training to those of the next update.

        Args:
            update: number of updates so far, those without a target included.
            updates: number of updates of the training.
        """
        for config, rate in self._changing_rates.items():
            rate.fill_(config.learning_rate * _scale_learning_rate(config, update, updates))

    def step(self) -> None:
        """Update the weights, and the copies of them that matrix products read."""
        self.updates.add_(1)
        if self._clipped:
            for chunk in self._chunks:
                chunk.grad.copy_(chunk.matmul_grad)
            _clip(self._clipped, self._limits)
        for chunk in self._chunks:
            if not self._clipped:
                chunk.grad.copy_(chunk.matmul_grad)
            for group in chunk.groups:
                moments = OPTIMIZERS[group.config.name].moments
                UPDATES[group.config.name](group, *(getattr(group, name) for name in moments))
            chunk.matmul_values.copy_(chunk.values)

    def _make_groups(self, part: slice, grad: Tensor) -> list[_Group]:
        """Return what to update in a part of the flat tensors, given the gradient of the part."""
        first, second = (moment[part] for moment in self.moments)
        groups = [
            _Group(
                config,
                self._changing_rates.get(config, config.learning_rate),
                _views(self._values[part], part, places),
                _views(grad, part, places),
                _views(first, part, places),
                _views(second, part, places),
                self.updates,
            )
            for config, places in self._places.items()
        ]
        return [group for group in groups if group.values]


def _clip(gradients: Sequence[list[Tensor]], limits: Tensor) -> None:
    """Scale the gradient of each network whose norm is above its limit down to the limit.

    Args:
        gradients: of each network (K), in several tensors.
        limits: maximum norm of each network's gradient (K,).
    """
    norms = torch.stack(torch._foreach_norm([grad for grads in gradients for grad in grads]))
    by_network = norms.split_with_sizes([len(grads) for grads in gradients])
    norm = torch.stack(torch._foreach_norm(by_network))  # (K,)
    factors = (limits / (norm + _CLIPPING_EPSILON)).clamp(max=1)  # (K,)
    for grads, factor in zip(gradients, factors.unbind(), strict=True):
        torch._foreach_mul_(grads, factor)


def _places_by_settings(
    parameters: FlatParameters | Parameters, configs: Sequence[OptimizerConfig]
) -> dict[OptimizerConfig, list[slice]]:
    """Return the ranges of the flat tensors that are updated by the same settings."""
    settings = [replace(config, gradient_clipping=0.0) for config in configs]
    if len(set(settings)) == 1:
        return {settings[0]: [slice(0, len(parameters.values))]}
    joined: dict[OptimizerConfig, list[slice]] = {config: [] for config in settings}
    owned = zip(settings, parameters.places, strict=True)
    pairs = [(config, place) for config, places in owned for place in places]
    for config, place in sorted(pairs, key=lambda pair: pair[1].start):
        places = joined[config]
        if places and places[-1].stop == place.start:
            place = slice(places.pop().start, place.stop)
        places.append(place)
    return joined


def _views(memory: Tensor, part: slice, places: Sequence[slice]) -> list[Tensor]:
    """Return views of the places, as far as they are in the part of the flat tensors in memory."""
    common = ((max(place.start, part.start), min(place.stop, part.stop)) for place in places)
    return [
        memory[first - part.start : stop - part.start] for first, stop in common if first < stop
    ]


def _scale_learning_rate(config: OptimizerConfig, update: int, updates: int) -> float:
    """Return the factor of the learning rate at the update after ``update`` of ``updates``."""
    warmup = config.warmup_steps
    if update < warmup:
        return (update + 1) / warmup
    return _SCHEDULES[config.schedule]((update - warmup) / (updates - warmup))


_SCHEDULES: dict[Schedule, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress: 1 - progress,
}


def _update_adam(
    fused: Callable[..., None], group: _Group, first: list[Tensor], second: list[Tensor]
) -> None:
    fused(
        group.values,
        group.grads,
        first,
        second,
        [],
        [group.updates] * len(group.values),
        lr=group.learning_rate,
        beta1=group.config.beta1,
        beta2=group.config.beta2,
        weight_decay=group.config.weight_decay,
        eps=EPSILON,
        amsgrad=False,
        maximize=False,
    )


def _update_rmsprop(group: _Group, second: list[Tensor]) -> None:
    config = group.config
    grads = group.grads
    if config.weight_decay:
        # Not in place: a gradient that is always zero is written only once.
        grads = list(torch._foreach_add(grads, group.values, alpha=config.weight_decay))
    torch._foreach_mul_(second, config.beta2)
    torch._foreach_addcmul_(second, grads, grads, value=1 - config.beta2)
    roots = torch._foreach_sqrt(second)
    torch._foreach_add_(roots, EPSILON)
    factor = group.learning_rate
    if isinstance(factor, Tensor):  # addcdiv takes a number
        torch._foreach_div_(roots, factor)
        factor = 1.0
    torch._foreach_addcdiv_(group.values, grads, roots, value=-factor)


def _update_sgd(group: _Group, first: list[Tensor]) -> None:
    config = group.config
    torch._fused_sgd_(
        group.values,
        group.grads,
        first if config.momentum else [],
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        lr=group.learning_rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,  # m starts at 0
    )


UPDATES: dict[str, Callable[..., None]] = {
    "adam": partial(_update_adam, torch._fused_adam_),
    "adamw": partial(_update_adam, torch._fused_adamw_),
    "rmsprop": _update_rmsprop,
    "sgd": _update_sgd,
}
"""How each optimizer updates a group, which is followed by the moments that it keeps."""
