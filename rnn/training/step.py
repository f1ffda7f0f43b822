"""One training step, and its recording on a GPU as a graph, whose replay is one launch."""

import contextlib
import gc
import warnings
from collections.abc import Callable, Hashable, Iterator
from functools import cache

import torch
from torch import Tensor

from rnn.engines import Engine
from rnn.training.devices import is_out_of_memory
from rnn.training.optimizer import Optimizer

WARMUP_STEPS = 3
"""Steps before a graph is recorded: libraries initialize themselves in the first."""


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
            (K, …); see :meth:`rnn.engines.Engine.init_training_state`.
        ema_losses: exponential moving average of each network's mean cross-entropy over the
            streams (K,), in nats per token.
        position: number of steps that the sequence has had.
        graph_runner: runs the step as a graph; None where it is not recorded.
    """

    def __init__(self, stack: Engine, streams: int, smoothing: float) -> None:
        self.stack = stack
        self.states = stack.init_training_state(streams)
        self.ema_losses = stack.parameters.values.new_zeros(len(stack.configs))
        self.optimizer = Optimizer(stack.parameters, [config.optimizer for config in stack.configs])
        self.position = 0
        self._smoothing = smoothing
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
            self.graph_runner.run(self._step, reach)
        self.position += 1

    def _step(self) -> None:
        losses, next_states = self.stack.loss_and_grad(
            self._tokens, self._targets, self.states, self.position
        )
        self.optimizer.step()
        self.ema_losses.lerp_(losses, 1 - self._smoothing)
        for state, next_state in zip(self.states, next_states, strict=True):
            state.copy_(next_state)


# ------------------------------------------------------------------ graphs


class CudaGraphRecorder:
    """Records work as CUDA graphs: the same operations on the same memory in every call.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run work on the stream that is recorded later, as ``torch.cuda.graph`` requires."""
        with torch.cuda.device(self._device):
            stream, current = _side_stream(self._device), torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                work()
            current.wait_stream(stream)

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Record work without running it; its temporary memory is freed with the graph."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            # If the recording fails, torch.cuda.graph may leave its stream selected.
            torch.cuda.stream(torch.cuda.current_stream()),
            _without_garbage_collection(),
            torch.cuda.graph(graph, stream=_side_stream(self._device)),
        ):
            work()
        return graph


class GraphRunner:
    """Runs the same work repeatedly: recorded after the warm-up, then replayed.

    Args:
        recorder: what records it.
    """

    def __init__(self, recorder: CudaGraphRecorder) -> None:
        self._recorder = recorder
        self._graph: torch.cuda.CUDAGraph | None = None
        self._recorded: Hashable = None
        self._last: Hashable = object()  # equal to no settings
        self._repetitions = 0
        self._has_failed = False

    @property
    def is_recorded(self) -> bool:
        """Whether the work has been recorded."""
        return self._graph is not None

    def run(self, work: Callable[[], None], settings: Hashable = None) -> None:
        """Run the work: the same operations on the same memory in every call of equal settings.

        It is recorded once it had the same settings in several calls in a row. A device that runs
        the work but cannot record it runs it every time, with a warning.

        Args:
            work: what to run.
            settings: what a recording would fix; with others than the recorded ones, the work is
                run.
        """
        if self._graph is not None and settings == self._recorded:
            self._graph.replay()
            return
        self._repetitions = self._repetitions + 1 if settings == self._last else 0
        self._last = settings
        if self._repetitions >= WARMUP_STEPS and not self._has_failed:
            try:
                self._graph, self._recorded = self._recorder.record(work), settings
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._has_failed = True
                message = str(error).partition("\n")[0]
                warnings.warn(
                    f"training step cannot be recorded as a graph ({message}): it runs without, "
                    "which is slower",
                    RuntimeWarning,
                    stacklevel=2,
                )
            else:
                self._graph.replay()
                return
        self._recorder.warm_up(work)


def find_recorder(device: torch.device) -> CudaGraphRecorder | None:
    """Return what records graphs on a device, or None if nothing does."""
    return CudaGraphRecorder(device) if device.type == "cuda" else None


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    # A collection could free memory or another graph, which a recording does not allow.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # One for the whole process: libraries keep memory for each stream that they have seen.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
