"""One training step, replayed as a CUDA graph on a GPU."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from rnn.models.factory import TrainableNetwork
from rnn.training.optimizer import Optimizer

WARMUP_STEPS = 3
"""Steps before a graph is captured: libraries initialize themselves in the first."""


class TrainStep:
    """Forward pass, backward pass, optimizer update and smoothed losses.

    On a GPU the step is captured as a CUDA graph if the network's operations are the same at every
    step; a step then costs one launch.

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
    """

    def __init__(self, stack: TrainableNetwork, streams: int, smoothing: float) -> None:
        self.stack = stack
        self.states = stack.init_training_state(streams)
        self.ema_losses = stack.parameters.values.new_zeros(len(stack.configs))
        self.optimizer = Optimizer(stack.parameters, [config.optimizer for config in stack.configs])
        self._smoothing = smoothing
        self._streams = streams
        is_separate = len({config.replicate for config in stack.configs}) > 1
        shape = (len(stack.configs), streams) if is_separate else (streams,)
        tokens = torch.zeros(shape, dtype=torch.long, device=stack.device)
        self._tokens, self._targets = tokens, tokens.clone()
        uses_graph = stack.device.type == "cuda" and stack.static_graph
        self._graph_runner = CudaGraphRunner(stack.device) if uses_graph else None

    def begin_sequence(self) -> None:
        """Set the states to those at a sequence's start."""
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
        if self._graph_runner is None:
            self._step()
        else:
            self._graph_runner.run(self._step)

    def _step(self) -> None:
        losses, next_states = self.stack.loss_and_grad(self._tokens, self._targets, self.states)
        self.optimizer.step()
        self.ema_losses.lerp_(losses, 1 - self._smoothing)
        for state, next_state in zip(self.states, next_states, strict=True):
            state.copy_(next_state)


class CudaGraphRunner:
    """Runs the same work repeatedly on a GPU: captured after the warm-up, then replayed.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warmup_steps = 0

    def run(self, work: Callable[[], None]) -> None:
        """Run the work: the same operations on the same memory in every call."""
        with torch.cuda.device(self._device):
            if self._graph is not None:
                self._graph.replay()
                return
            stream = _side_stream(self._device)
            if self._warmup_steps < WARMUP_STEPS:
                self._warmup_steps += 1
                # Warm up on the stream that is captured later, as torch.cuda.graph requires.
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    work()
                torch.cuda.current_stream().wait_stream(stream)
                return
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                work()  # captured, not executed
            self._graph.replay()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # One for the whole process: libraries keep memory for each stream that they have seen.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
