"""One training step, replayed as a graph on a GPU."""

import torch
from torch import Tensor

from rnn.models.factory import TrainableNetwork, WindowedNetwork
from rnn.training.graph import GraphRunner, find_recorder
from rnn.training.optimizer import Optimizer


class TrainStep:
    """Forward pass, backward pass, optimizer update and smoothed losses.

    On a GPU the step is recorded as a graph if the network's operations are the same at every step;
    a step then costs one launch.

    Args:
        stack: the K networks, trained in place.
        streams: B.
        smoothing: weight of the past in the smoothed losses.

    Attributes:
        optimizer: the optimizer of all weights.
        states: what the networks carry from step to step, as the last step left it: tensors
            (K, …); see :meth:`rnn.models.factory.TrainableNetwork.init_training_state`.
        ema_losses: exponential moving average of each network's mean cross-entropy over the
            streams (K,), in nats per token.
        position: number of steps that the sequence has had.
        graph_runner: runs the step as a graph; None where it is not recorded.
    """

    def __init__(self, stack: TrainableNetwork, streams: int, smoothing: float) -> None:
        self.stack = stack
        self.states = stack.init_training_state(streams)
        self.ema_losses = stack.parameters.values.new_zeros(len(stack.configs))
        self.optimizer = Optimizer(stack.parameters, [config.optimizer for config in stack.configs])
        self.position = 0
        self._smoothing = smoothing
        self._windowed = stack if isinstance(stack, WindowedNetwork) else None
        self._max_position = stack.configs[0].bptt_steps - 1
        self._streams = streams
        is_separate = len({config.replicate for config in stack.configs}) > 1
        shape = (len(stack.configs), streams) if is_separate else (streams,)
        tokens = torch.zeros(shape, dtype=torch.long, device=stack.device)
        self._tokens, self._targets = tokens, tokens.clone()
        recorder = find_recorder(stack.device) if stack.static_graph else None
        self.graph_runner = None if recorder is None else GraphRunner(recorder)

    def begin_sequence(self) -> None:
        """Set the states to those at a sequence's start."""
        self.position = 0
        initial_states = self.stack.init_training_state(self._streams)
        for state, initial in zip(self.states, initial_states, strict=True):
            state.copy_(initial)

    def step(self, tokens: Tensor, targets: Tensor) -> None:
        """Train every network on one more token of each stream.

        Args:
            tokens: tokens that are read (B,), of any integer dtype; (K, B) if the networks are of
                several replicates, which read separate texts.
            targets: tokens that follow, of the same shape.
        """
        self._tokens.copy_(tokens)
        self._targets.copy_(targets)
        if self.graph_runner is None:
            self._step()
        else:
            reach = min(self.position, self._max_position)
            self.graph_runner.run(self._step, (reach, self.optimizer.learning_rate_factor))
        self.position += 1

    def _step(self) -> None:
        if self._windowed is not None:
            self._windowed.position = self.position
        losses, next_states = self.stack.loss_and_grad(self._tokens, self._targets, self.states)
        self.optimizer.step()
        self.ema_losses.lerp_(losses, 1 - self._smoothing)
        for state, next_state in zip(self.states, next_states, strict=True):
            state.copy_(next_state)
