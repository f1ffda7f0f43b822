"""One update of all weights, and its recording on a GPU as a graph, whose replay is one launch."""

import contextlib
import gc
import math
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from rnn.engines import Engine
from rnn.errors import is_out_of_memory
from rnn.network import Window
from rnn.training.optimizer import Optimizer

WARMUP_STEPS = 3
"""Updates before a graph is recorded: libraries initialize themselves in the first."""

_MAX_SHAPES = 16
"""Shapes of windows that are kept in memory for a graph; others run without one."""

_MAX_GRAPHS = 4
"""Graphs that are recorded, each of which keeps the memory of an update."""


# Not by torch.compile: it takes half a minute, steps are a fifth slower, and stacks do not compile.
class TrainStep:
    """Forward pass, backward pass, optimizer update and smoothed losses.

    On a GPU they are recorded as a graph if the network's operations are the same at every update;
    an update then costs one launch.

    Args:
        stack: the K networks, trained in place.
        streams: B.
        smoothing: weight of the past in the smoothed losses, per time step.
        initial_loss: initial value of the smoothed losses; None for the first loss.

    Attributes:
        optimizer: the optimizer of all weights.
        states: what the networks carry from update to update, as the last one left it: tensors
            (K, …); see :meth:`rnn.engines.Engine.init_training_state`.
        ema_losses: exponential moving average of each network's mean loss (K,); NaN before the
            first one.
        updates: number of updates so far.
        graph_runner: runs the update as a graph; None where it is not recorded.
    """

    def __init__(
        self, stack: Engine, streams: int, smoothing: float, initial_loss: float | None
    ) -> None:
        self.stack = stack
        self.states = stack.init_training_state(streams)
        self.ema_losses = stack.parameters.values.new_full(
            (len(stack.configs),), math.nan if initial_loss is None else initial_loss
        )
        self.optimizer = Optimizer(stack.parameters, [config.optimizer for config in stack.configs])
        self.updates = 0
        self._starts_at_first = initial_loss is None
        self._smoothing = smoothing
        self._streams = streams
        self._windows: dict[Hashable, Window] = {}  # in the memory that a graph reads
        recorder = find_recorder(stack.device) if stack.static_graph else None
        self.graph_runner = None if recorder is None else GraphRunner(recorder)

    @property
    def has_loss(self) -> bool:
        """Whether the smoothed losses have a value."""
        return self.updates > 0 or not self._starts_at_first

    def begin_sequence(self) -> None:
        """Set the states to those at a sequence's start."""
        self._set_states(self.stack.init_training_state(self._streams))

    def continue_sequence(self) -> None:
        """Go on with the states of the batch before, into which no window reaches back."""
        if self.stack.configs[0].earlier_states:
            half = len(self.states) // 2
            for state, earlier in zip(self.states[:half], self.states[half:], strict=True):
                earlier.copy_(state[:, None])

    def step(self, window: Window, loss_steps: int = 1) -> None:
        """Train every network on a window; without targets only its states advance.

        Args:
            window: what to read.
            loss_steps: number of its steps that have targets, in which the smoothed losses decay.
        """
        if not loss_steps:
            self._set_states(self.stack.advance(window, self.states))
            return
        starts = self._starts_at_first and not self.updates
        static = None if self.graph_runner is None else self._to_static(window)
        if self.graph_runner is None or static is None:
            self._step(window, loss_steps, starts)
        else:
            settings = _shape(window), loss_steps, starts
            self.graph_runner.run(lambda: self._step(static, loss_steps, starts), settings)
        self.updates += 1

    def _step(self, window: Window, loss_steps: int, starts: bool) -> None:
        losses, next_states = self.stack.loss_and_grad(window, self.states)
        self.optimizer.step()
        if starts:
            self.ema_losses.copy_(losses)
        else:
            self.ema_losses.lerp_(losses, 1 - self._smoothing**loss_steps)
        self._set_states(next_states)

    def _set_states(self, states: Sequence[Tensor]) -> None:
        for state, new in zip(self.states, states, strict=True):
            state.copy_(new)

    def _to_static(self, window: Window) -> Window | None:
        """Copy a window into memory that is the same for every window of its shape.

        None if there are too many shapes.
        """
        shape = _shape(window)
        static = self._windows.get(shape)
        if static is None:
            if len(self._windows) == _MAX_SHAPES:
                return None
            static = self._windows[shape] = window._replace(
                inputs=window.inputs.clone(),
                targets=window.targets.clone(),
                mask=None if window.mask is None else window.mask.clone(),
                resets=tuple((step, streams.clone()) for step, streams in window.resets),
            )
            return static
        for source, target in zip(_tensors(window), _tensors(static), strict=True):
            target.copy_(source)
        return static


def _tensors(window: Window) -> list[Tensor]:
    mask = [] if window.mask is None else [window.mask]
    return [window.inputs, window.targets, *mask, *(streams for _, streams in window.resets)]


def _shape(window: Window) -> Hashable:
    # Without the flag begins: only networks that are not recorded learn their initial states.
    shapes = (tensor.shape for tensor in _tensors(window))
    return window.advance, *(step for step, _ in window.resets), *shapes


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
            stream = _side_stream(self._device)
            current = torch.cuda.current_stream()
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
    """Runs work repeatedly: recorded after a warm-up, then replayed.

    Args:
        recorder: what records it.
    """

    def __init__(self, recorder: CudaGraphRecorder) -> None:
        self._recorder = recorder
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._runs: Counter[Hashable] = Counter()
        self._has_failed = False

    @property
    def is_recorded(self) -> bool:
        """Whether any work has been recorded."""
        return bool(self._graphs)

    def run(self, work: Callable[[], None], settings: Hashable = None) -> None:
        """Run the work: the same operations on the same memory in every call of equal settings.

        It is recorded after a few calls of equal settings. A device that runs the work but cannot
        record it runs it every time, with a warning.

        Args:
            work: what to run.
            settings: what a recording would fix; there is a graph for each of the first few.
        """
        graph = self._graphs.get(settings)
        if graph is None and self._can_record(settings):
            try:
                graph = self._graphs[settings] = self._recorder.record(work)
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
        if graph is None:
            self._recorder.warm_up(work)
        else:
            graph.replay()

    def _can_record(self, settings: Hashable) -> bool:
        """Count a run of these settings; return whether there were enough before."""
        self._runs[settings] += 1
        has_room = len(self._graphs) < _MAX_GRAPHS
        return self._runs[settings] > WARMUP_STEPS and has_room and not self._has_failed


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
