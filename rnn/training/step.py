"""One training step of a population as a program over memory of its own."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from rnn.models.factory import TrainableNetwork
from rnn.training.optimizer import Adam

WARM_UP = 3
"""Steps that are taken before a graph is recorded: libraries set themselves up in the first."""


class TrainStep:
    """A training step: forward, backward, optimizer, smoothed losses.

    On a GPU it is recorded as a graph and played again, so that a step costs one launch, where it
    is the same operations whatever is read.

    Args:
        stack: trained in place.
        streams: B.
        learning_rate: Adam's.
        smoothing: the weight of the past in the smoothed losses.

    Attributes:
        optimizer: of all weights at once.
        states: the population's learning states, as the last step left them: those of each layer,
            (K, B, n) as a rule, and what else it needs, each beginning with the axis K.
        smoothed: (K,) the smoothed losses, an exponential moving average of the mean cross-entropy
            over the lanes, nats a symbol.
    """

    def __init__(
        self, stack: TrainableNetwork, streams: int, learning_rate: float, smoothing: float
    ) -> None:
        self.stack = stack
        self.states = stack.init_training_state(streams)
        self.smoothed = self.states[0].new_zeros(len(stack.configs))
        self.optimizer = Adam(stack.parameters, learning_rate)
        self._smoothing = smoothing
        tokens = torch.zeros(streams, dtype=torch.long, device=stack.device)
        self._reads, self._foretells = tokens, tokens.clone()
        records = stack.device.type == "cuda" and stack.static_graph
        self._recorder = CudaGraphRunner(stack.device) if records else None

    def begin_sequence(self) -> None:
        """Set the states to zero."""
        for state in self.states:
            state.zero_()

    def step(self, reads: Tensor, targets: Tensor) -> None:
        """Train every member on one more symbol of each lane.

        Args:
            reads: (B,) the symbols, of any type of integers.
            targets: (B,) those that come next.
        """
        self._reads.copy_(reads)
        self._foretells.copy_(targets)
        if self._recorder is None:
            self._advance()
        else:
            self._recorder.play(self._advance)

    def _advance(self) -> None:
        reads = self.stack.prepare_inputs(self._reads)
        losses, states = self.stack.loss_and_grad(reads, self._foretells, self.states)
        self.optimizer.step()
        self.smoothed.lerp_(losses, 1 - self._smoothing)
        for state, after in zip(self.states, states, strict=True):
            state.copy_(after)


class CudaGraphRunner:
    """Does the same work on a GPU again and again: from the fourth time on as one launch.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._times = 0

    def play(self, work: Callable[[], None]) -> None:
        """Do the work: the same operations on the same memory as before, whatever that holds."""
        with torch.cuda.device(self._device):
            if self._graph is not None:
                self._graph.replay()
                return
            aside = _stream_aside(self._device)
            if self._times < WARM_UP:
                self._times += 1
                # On the stream that is recorded later, as recording wants it.
                aside.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(aside):
                    work()
                torch.cuda.current_stream().wait_stream(aside)
                return
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=aside):
                work()  # noted, not done
            self._graph.replay()


@cache
def _stream_aside(device: torch.device) -> torch.cuda.Stream:
    # One for good: libraries keep memory for each stream that they have met.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
