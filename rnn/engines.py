"""The interface of the engines, which train networks, and the choice of one.

Three engines compute the same: :class:`rnn.autograd.AutogradStack` for every cell, and two faster
paths for gated networks with ``bptt_steps = 1``, :class:`rnn.native.network.NativeStack` on CPUs
and :class:`rnn.stacked.network.NetworkStack`.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from rnn.autograd import AutogradStack
from rnn.config import BYTE_VOCAB_SIZE, GatedConfig, Precision, TrialConfig
from rnn.native.network import NativeStack, pays_off
from rnn.network import NamedTensors
from rnn.parameters import Parameters
from rnn.stacked.linear import FlatParameters
from rnn.stacked.network import NetworkStack


class Engine(Protocol):
    """A network stack: K networks that are trained and evaluated together.

    B is the number of streams, n the state size, V the vocabulary size.

    Attributes:
        configs: configs of the K networks, in the order of the axis K of all tensors.
        device: device of all tensors.
        static_graph: whether all steps whose gradients go equally far back run the same operations
            on the same memory, as a CUDA graph requires.
        separate_texts: whether networks of several replicates can be trained together: each then
            reads its own text.
    """

    configs: tuple[TrialConfig, ...]
    device: torch.device
    static_graph: bool
    separate_texts: bool

    @property
    def parameters(self) -> Parameters | FlatParameters:
        """Weights and gradients of all networks."""

    def with_configs(self, weights: Mapping[TrialConfig, NamedTensors]) -> "Engine":
        """Return networks of these configs and weights, otherwise like these."""

    def init_state(self, streams: int) -> list[Tensor]:
        """Return the states at a sequence's start: (K, B, …) for each tensor of each layer.

        They are zeros (K, B, n) unless a user's cell has others.
        """

    def init_training_state(self, streams: int) -> list[Tensor]:
        """Return what training carries from step to step, at a sequence's start.

        The first tensors are :meth:`init_state`, others may follow; all have K as their first axis.
        Those of a network are written to its checkpoint.
        """

    def forward(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step.

        Args:
            tokens: tokens that the streams read (B,).
            states: of :meth:`init_state` or the last step.

        Returns:
            The logits of each stream's next token (K, B, V), and the next states. They share no
            memory with ``states``; the next step may reuse their memory.
        """

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each stream (K, B), in nats.

        Args:
            logits: (K, B, V)
            targets: next tokens (B,).
        """

    def loss_and_grad(
        self, tokens: Tensor, targets: Tensor, states: Sequence[Tensor], position: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step and compute the gradients of its losses.

        The gradients are those of each network's mean loss at this step, taken back through the
        last ``bptt_steps`` steps; they are written to ``parameters``.

        Args:
            tokens: tokens that the streams read (B,); (K, B), a text for each network, if
                ``separate_texts`` and the networks are of several replicates.
            targets: next tokens, of the same shape.
            states: of :meth:`init_training_state` or the last step.
            position: number of steps that the sequence has had.

        Returns:
            The mean losses over the streams (K,), in nats, and the next states.
        """


def stack_key(config: TrialConfig) -> Hashable:
    """Return what configs must have in common to be trained in lockstep.

    A user's cell may have a :func:`rnn.autograd.lockstep_obstacle` all the same.
    """
    architecture = config.architecture
    if has_fast_path(config):
        assert isinstance(architecture, GatedConfig)
        shape = architecture.layers, architecture.state_size, architecture.gate_inputs
        return *shape, config.replicate
    return architecture, config.bptt_steps


def has_fast_path(config: TrialConfig) -> bool:
    """Return whether a network can be trained without autograd."""
    return isinstance(config.architecture, GatedConfig) and config.bptt_steps == 1


def build_network(
    configs: Sequence[TrialConfig],
    seed: int,
    precision: Precision = "fp32",
    vocab_size: int = BYTE_VOCAB_SIZE,
    device: torch.device | None = None,
    weights: Mapping[TrialConfig, NamedTensors] | None = None,
) -> Engine:
    """Build networks, to be trained in lockstep by the fastest engine.

    Args:
        configs: configs with one :func:`stack_key`; one if there is a ``lockstep_obstacle``.
        seed: seed of the initial weights.
        precision: precision of the arithmetic.
        vocab_size: V.
        device: device to compute on; the CPU by default.
        weights: weights by config; networks without an entry get initial weights.

    Raises:
        ValueError: if the configs cannot be trained together.
    """
    if not all(map(has_fast_path, configs)):
        return AutogradStack(configs, seed, precision, vocab_size, device, weights)
    if pays_off(configs[0].architecture.state_size, precision, device):
        return NativeStack(configs, seed, precision, vocab_size, weights)
    return NetworkStack(configs, seed, precision, vocab_size, device, weights)
