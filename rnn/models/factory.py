"""The interface of trainable networks, and the choice of the implementation."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rnn.config import BYTE_VOCAB_SIZE, CellConfig, GatedConfig, Precision, TrialConfig
from rnn.models.bptt_network import BPTTNetwork
from rnn.models.cell_network import CellNetwork, supports_lockstep
from rnn.models.cell_parameters import CellParameters
from rnn.native.network import NativeStack, pays_off
from rnn.stacked.flat_parameters import FlatParameters, NamedTensors
from rnn.stacked.network import NetworkStack


class TrainableNetwork(Protocol):
    """K networks that are trained and evaluated together.

    Implemented by :class:`rnn.stacked.network.NetworkStack` and, on CPUs,
    :class:`rnn.native.network.NativeStack` (K gated networks in lockstep, ``bptt_steps = 1``),
    :class:`rnn.models.bptt_network.BPTTNetwork` (one network of any built-in cell) and
    :class:`rnn.models.cell_network.CellNetwork` (K networks of one user's own cell).
    B is the number of streams, n the size of a layer's state, V the vocabulary size.

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
    def parameters(self) -> FlatParameters | CellParameters:
        """Weights and gradients of all networks."""

    def with_configs(self, weights: Mapping[TrialConfig, NamedTensors]) -> "TrainableNetwork":
        """Return networks of these configs and weights, otherwise like these."""

    def init_state(self, streams: int) -> list[Tensor]:
        """Return the states at a sequence's start: (K, B, …) for each tensor of each layer.

        They are zeros (K, B, n) unless a user's own cell has others.
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
        self, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step and compute the gradients of its losses.

        The gradients are those of each network's mean loss at this step, taken back through the
        last ``bptt_steps`` steps; they are written to ``parameters``.

        Args:
            tokens: tokens that the streams read (B,); (K, B), a text for each network, if
                ``separate_texts`` and the networks are of several replicates.
            targets: next tokens, of the same shape.
            states: of :meth:`init_training_state` or the last step.

        Returns:
            The mean losses over the streams (K,), in nats, and the next states.
        """


@runtime_checkable
class WindowedNetwork(Protocol):
    """A network whose gradients may go back through several steps.

    Attributes:
        position: number of steps that the sequence has had before the next call of
            ``loss_and_grad``, if the caller knows it. Otherwise it is read from the states, for
            which a GPU has to finish its work first.
    """

    position: int | None


def is_stackable(
    config: TrialConfig, precision: Precision = "fp32", device: torch.device | None = None
) -> bool:
    """Return whether networks with the :func:`stack_key` of a config can be trained in lockstep.

    These are gated networks with ``bptt_steps = 1``, and networks of a user's own cell, if
    :func:`rnn.models.cell_network.supports_lockstep`.

    Args:
        config: the config.
        precision: precision of the arithmetic.
        device: device to compute on; the CPU by default.
    """
    if isinstance(config.architecture, CellConfig):
        return supports_lockstep(config.architecture, precision, device)
    return _is_gated(config)


def stack_key(config: TrialConfig) -> Hashable:
    """Return what stackable configs must have in common to be trained in lockstep."""
    architecture = config.architecture
    if isinstance(architecture, GatedConfig):
        shape = architecture.layers, architecture.state_size, architecture.gate_inputs
        return *shape, config.bptt_steps, config.replicate
    return architecture, config.bptt_steps


def _is_gated(config: TrialConfig) -> bool:
    return isinstance(config.architecture, GatedConfig) and config.bptt_steps == 1


def build_network(
    configs: Sequence[TrialConfig],
    seed: int,
    precision: Precision = "fp32",
    vocab_size: int = BYTE_VOCAB_SIZE,
    device: torch.device | None = None,
    weights: Mapping[TrialConfig, NamedTensors] | None = None,
) -> TrainableNetwork:
    """Build the networks of some configs, in lockstep where possible.

    Args:
        configs: stackable configs with one :func:`stack_key`, or one other config.
        seed: seed of the initial weights.
        precision: precision of the arithmetic.
        vocab_size: V.
        device: device to compute on; the CPU by default.
        weights: weights by config; networks without an entry get initial weights.

    Raises:
        ValueError: if the configs cannot be trained together.
    """
    if any(isinstance(config.architecture, CellConfig) for config in configs):
        return CellNetwork(configs, seed, precision, vocab_size, device, weights)
    if all(map(_is_gated, configs)):
        if pays_off(configs[0].architecture.state_size, precision, device):
            return NativeStack(configs, seed, precision, vocab_size, weights)
        return NetworkStack(configs, seed, precision, vocab_size, device, weights)
    return BPTTNetwork(configs, seed, precision, vocab_size, device, weights)
