"""Recording of a training step as a graph: a replay launches all of its kernels at once."""

import contextlib
import gc
import warnings
from collections.abc import Callable, Hashable, Iterator
from functools import cache
from typing import Protocol

import torch

from rnn.training.devices import is_out_of_memory

WARMUP_STEPS = 3
"""Steps before a graph is recorded: libraries initialize themselves in the first."""


class Graph(Protocol):
    """A recorded step."""

    def replay(self) -> None:
        """Run the recorded operations on the memory that they were recorded with."""


class GraphRecorder(Protocol):
    """Records work as a graph."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run work as it will be recorded."""

    def record(self, work: Callable[[], None]) -> Graph:
        """Record work: the same operations on the same memory in every call; it is not run."""


class CudaGraphRecorder:
    """Records CUDA graphs.

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

    def record(self, work: Callable[[], None]) -> Graph:
        """Record work; its temporary memory belongs to the graph and is freed with it."""
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

    def __init__(self, recorder: GraphRecorder) -> None:
        self._recorder = recorder
        self._graph: Graph | None = None
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


def find_recorder(device: torch.device) -> GraphRecorder | None:
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
