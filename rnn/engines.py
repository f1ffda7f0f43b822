"""The interface of the engines that train networks, and the choice of an engine.

Three engines compute the same, and each says what it can train: two faster paths train gated
networks of text with an update at every step, :class:`rnn.native.engine.NativeStack` on CPUs and
:class:`rnn.stacked.engine.NetworkStack`; :class:`rnn.autograd.AutogradStack` every cell and task.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from rnn.autograd import AutogradStack
from rnn.config import BYTES, Precision, TaskSpec, TrialConfig
from rnn.native.engine import NativeStack
from rnn.network import NamedTensors, Window
from rnn.parameters import Parameters
from rnn.stacked.engine import NetworkStack, can_stack
from rnn.stacked.linear import FlatParameters


class Engine(Protocol):
    """A network stack: K networks that are trained and evaluated together.

    B is the number of streams, n the state size, V the number of outputs.

    Attributes:
        configs: configs of the K networks, in the order of the axis K of all tensors.
        spec: what the networks read and predict.
        device: device of all tensors.
        static_graph: whether all updates by windows of one shape run the same operations on the
            same memory, as a CUDA graph requires.
        reads_windows: whether :meth:`forward` takes several steps at once.
    """

    configs: tuple[TrialConfig, ...]
    spec: TaskSpec
    device: torch.device
    static_graph: bool
    reads_windows: bool

    @staticmethod
    def can_train(
        config: TrialConfig, spec: TaskSpec, precision: Precision, device: torch.device | None
    ) -> bool:
        """Return whether the engine trains a network, and trains it well.

        Args:
            config: config of the network.
            spec: what it reads and predicts.
            precision: precision of the arithmetic.
            device: device to compute on; None for the CPU.
        """

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

        They are those of :meth:`init_state` and, if windows overlap, as many again: the states from
        which the next windows start, (K, earlier, B, …) in the order of the windows; see
        :attr:`rnn.config.TrialConfig.earlier_states`. All are written to checkpoints.
        """

    def forward(
        self, inputs: Tensor, states: Sequence[Tensor], places: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Advance by T time steps, without gradients.

        Args:
            inputs: tokens that the streams read (T, B), or numbers (T, B, inputs); T is 1 where
                :attr:`reads_windows` is false.
            states: of :meth:`init_state` or the last call.
            places: places (N,) among T·B outputs, of which to compute them; None for all.

        Returns:
            The outputs (K, T, B, V) or (K, N, V): logits of classes, or numbers; and the next
            states. They share no memory with ``states``; the next call may reuse their memory.
        """

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (K, N).

        Args:
            outputs: (K, N, V)
            targets: classes (N,), or numbers (N, V).
        """

    def advance(self, window: Window, states: Sequence[Tensor]) -> list[Tensor]:
        """Read a window without targets; return the next states, as :meth:`loss_and_grad` does."""

    def loss_and_grad(
        self, window: Window, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Read a window and compute the gradients of its losses.

        The gradients are those of each network's mean loss of the window's targets, weighted by
        their mask, taken back to the window's first step; they are written to ``parameters``.

        Args:
            window: what to read; networks of several replicates read separate data.
            states: of :meth:`init_training_state` or the last update.

        Returns:
            The mean losses (K,), and the next states.
        """


ENGINES: tuple[type[NativeStack | NetworkStack | AutogradStack], ...] = (
    NativeStack,
    NetworkStack,
    AutogradStack,
)
"""The engines, the fastest first: the first one that can train some networks trains them."""


def stack_key(config: TrialConfig, spec: TaskSpec = BYTES) -> Hashable:
    """Return what configs must have in common to be trained in lockstep.

    Networks of several replicates each read their own data, which the autograd engine alone can. A
    user's cell may have a :func:`rnn.autograd.lockstep_obstacle` all the same.
    """
    architecture = config.architecture
    if can_stack(config, spec):
        shape = architecture.layers, architecture.state_size, architecture.gated.gate_inputs
        return *shape, config.replicate, config.task_options
    # Where targets are masked, an update of one replicate may have none and not take place.
    replicate = None if spec.is_dense else config.replicate
    window = config.bptt_steps, config.update_every
    return architecture, *window, config.task_options, replicate


def build_network(
    configs: Sequence[TrialConfig],
    seed: int,
    precision: Precision = "fp32",
    spec: TaskSpec = BYTES,
    device: torch.device | None = None,
    weights: Mapping[TrialConfig, NamedTensors] | None = None,
) -> Engine:
    """Build networks, to be trained in lockstep by the fastest engine.

    Args:
        configs: configs with one :func:`stack_key`; one if there is a ``lockstep_obstacle``.
        seed: seed of the initial weights.
        precision: precision of the arithmetic.
        spec: what the networks read and predict.
        device: device to compute on; the CPU by default.
        weights: weights by config; networks without an entry get initial weights.

    Raises:
        ValueError: if the configs have more than one :func:`stack_key`.
    """
    if len({stack_key(config, spec) for config in configs}) != 1:
        labels = ", ".join(config.label for config in configs)
        raise ValueError(f"{labels} cannot be trained together: expected one stack_key")
    engine = find_engine(configs, precision, spec, device)
    return engine(configs, seed, precision, spec, device, weights)


def find_engine(
    configs: Sequence[TrialConfig],
    precision: Precision,
    spec: TaskSpec,
    device: torch.device | None = None,
) -> type[NativeStack | NetworkStack | AutogradStack]:
    """Return the fastest engine that trains networks, given as to :func:`build_network`."""
    for engine in ENGINES:
        if all(engine.can_train(config, spec, precision, device) for config in configs):
            return engine
    raise AssertionError("the autograd engine trains every network")
