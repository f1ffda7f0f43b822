"""A thread that alone talks to the storage, and tries again while the storage is away."""

import contextlib
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

from search.errors import ShutdownRequestedError
from search.worker.shutdown import ShutdownSignal
from studies.errors import StorageUnavailableError
from studies.storage.retry import error_message, is_transient

GRACE_SECONDS = 2.5
"""How long an answer of the storage is still waited for once a stop is asked for."""

JOIN_SECONDS = 2.5
"""How long the thread's last operation is waited for when its context ends."""

SILENCE_SECONDS = 5.0
"""After which a storage that neither answers nor refuses is said to be away."""

_LONGEST_REST_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 5.0

_T = TypeVar("_T")


class _Task(Generic[_T]):
    """An operation for the thread, and its outcome: either taken by the caller or undone.

    Attributes:
        abandoned: whether the caller left before the operation was done.
        done: set once there is an outcome.
    """

    def __init__(self, operation: Callable[[bool], _T]) -> None:
        self._operation = operation
        self._tried = False
        self._lock = threading.Lock()
        self.abandoned = False
        self.done = threading.Event()
        self.result: _T | None = None
        self.error: BaseException | None = None

    def attempt(self) -> None:
        """Run the operation; an outage is raised, any other error is the outcome."""
        tried, self._tried = self._tried, True
        try:
            self._end(self._operation(tried), None)
        except Exception as error:
            if is_transient(error):
                raise
            self._end(None, error)

    def fail(self, error: BaseException) -> None:
        """Give it up."""
        self._end(None, error)

    def abandon(self) -> bool:
        """Stop waiting; return False if the operation is done, and its outcome the caller's."""
        with self._lock:
            if not self.done.is_set():
                self.abandoned = True
            return self.abandoned

    def _end(self, result: _T | None, error: BaseException | None) -> None:
        with self._lock:
            self.result, self.error = result, error
            self.done.set()


class StorageClient(ABC):
    """Does what others ask of the storage, and upkeep of its own, which subclasses say.

    Who asks never waits for longer than it must: it hears signals meanwhile, and leaves when a stop
    is asked for. A context that begins and ends the thread.

    Args:
        stop: what signals ask for.
        says: told of what a person should know, by the thread that asks.
        outage_seconds: how long a storage that is away is waited for.
        longest_pause: between two attempts while it is away, seconds.
    """

    def __init__(
        self,
        stop: ShutdownSignal,
        says: Callable[[str], None],
        outage_seconds: float,
        longest_pause: float,
    ) -> None:
        self._stop = stop
        self._says = says
        self._outage_seconds = outage_seconds
        self._longest_pause = min(longest_pause, _LONGEST_PAUSE_SECONDS)
        self._changed = threading.Condition()
        self._tasks: deque[_Task[Any]] = deque()
        self._to_undo: deque[object] = deque()  # results that no caller has taken
        self._news: deque[str] = deque()
        self._since: float | None = None  # when the thread began with what is not done yet
        self._refusal: str | None = None
        self._looked = time.monotonic()
        self._away = 0.0
        self._told = False
        self._broken: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="storage", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(JOIN_SECONDS)

    # ------------------------------------------------------------------ for subclasses to say

    @abstractmethod
    def _next_time(self) -> float:
        """Return when upkeep is due, on the monotonic clock."""

    @abstractmethod
    def _do_upkeep(self) -> None:
        """Do what is due; what an outage keeps from being done is done again."""

    @abstractmethod
    def _is_away(self) -> None:
        """Take note that the storage could not be reached."""

    @abstractmethod
    def _undo(self, result: object) -> None:
        """Take back what was done for somebody who has not waited for it."""

    # ------------------------------------------------------------------ for the one who asks

    @property
    def trouble(self) -> str | None:
        """What is wrong with the storage now; None if nothing is."""
        since, refusal = self._since, self._refusal
        if refusal is None and since is not None and time.monotonic() - since > SILENCE_SECONDS:
            return "it does not answer"
        return refusal

    def read(self, query: Callable[[], _T], within: float | None = None) -> _T:
        """Have the thread read something from the storage.

        Args:
            query: reads it.
            within: seconds after which the storage is not waited for.

        Raises:
            Stopped, StorageOutage: before it is read.
        """
        return self._do(lambda tried: query(), within)

    def peek(self, query: Callable[[], object], within: float) -> None:
        """Have the thread read something for a display, which may run in any thread.

        Neither outages nor news are reported to the caller. A query that is not answered in time
        still runs as soon as it can.

        Args:
            query: reads it, and keeps what it has read.
            within: seconds to wait for it.
        """
        if not self._closed:
            task = _Task(lambda tried: query())
            self._put(self._tasks, task)
            task.done.wait(within)

    def _do(self, operation: Callable[[bool], _T], within: float | None = None) -> _T:
        if self._closed:
            raise ShutdownRequestedError
        task = _Task(operation)
        try:
            self._put(self._tasks, task)
            self._wait_for(task, within)
            self._tell()
        except BaseException:  # also an interrupt or a closed output: the result has no owner
            if not task.abandon():
                self._put(self._to_undo, task.result)
            raise
        if task.error is not None:
            raise task.error
        return task.result  # type: ignore[return-value]  # set where there is no error

    def _wait_for(self, task: _Task[Any], within: float | None) -> None:
        """Return once a task is done, or raise once it is abandoned."""
        began = time.monotonic()
        stopped_at = None if within is None else began + within
        while not task.done.wait(0.1):
            self._tell()
            try:
                self._require_patience()
                if stopped_at is None and self._stop.requested:
                    stopped_at = time.monotonic() + GRACE_SECONDS
                if stopped_at is not None and time.monotonic() > stopped_at:
                    raise ShutdownRequestedError
            except Exception:
                if task.abandon():
                    raise

    def _put(self, queue: deque[_T], item: _T) -> None:
        with self._changed:
            queue.append(item)
            self._changed.notify_all()

    def _require_patience(self) -> None:
        if self._broken is not None:
            raise self._broken
        now, trouble = time.monotonic(), self.trouble
        # A worker that was itself frozen has not seen the storage be away meanwhile.
        elapsed, self._looked = min(now - self._looked, SILENCE_SECONDS), now
        if trouble is None:
            self._away = 0.0
            return
        self._away += elapsed
        if self._away > self._outage_seconds:
            raise StorageUnavailableError(
                f"the storage has been away for {self._away:.0f} s ({trouble}), waited for are "
                f"{self._outage_seconds:g} s; what is recorded is kept; mend it and run again"
            )

    def _tell(self) -> None:
        while self._news:
            self._says(self._news.popleft())
        trouble = self.trouble
        if trouble and not self._told:
            self._says(f"the storage is away ({trouble}); what is found meanwhile is kept")
        elif self._told and not trouble:
            self._says("the storage is back")
        self._told = trouble is not None

    # ------------------------------------------------------------------ the thread

    def _serve(self) -> None:
        self._serve_until_closed()
        with contextlib.suppress(Exception):  # an outage: the leases expire
            self._undo_abandoned()

    def _serve_until_closed(self) -> None:
        failures = 0
        while not self._closed:
            if not self._is_due():
                self._rest()
                continue
            if self._since is None:
                self._since = time.monotonic()
            try:
                self._do_what_is_due()
            except Exception as error:
                if not is_transient(error):
                    self._give_up(error)
                    return
                failures += 1
                self._refusal = error_message(error)
                self._is_away()
                self._pause(failures)
            else:
                failures = 0
                self._since = self._refusal = None

    def _is_due(self) -> bool:
        return bool(self._tasks or self._to_undo) or self._next_time() <= time.monotonic()

    def _rest(self) -> None:
        with self._changed:
            if not self._tasks and not self._to_undo and not self._closed:
                # Meanwhile something may fall due that nobody announces.
                left = self._next_time() - time.monotonic()
                self._changed.wait(min(max(left, 0.0), _LONGEST_REST_SECONDS))

    def _pause(self, failures: int) -> None:
        # At random: those who were turned away together must not come back together.
        seconds = random.uniform(0.02, min(0.05 * 2 ** min(failures, 9), self._longest_pause))
        with self._changed:
            waiting = len(self._tasks)  # who comes now is in a hurry
            self._changed.wait_for(lambda: self._closed or len(self._tasks) > waiting, seconds)

    def _do_what_is_due(self) -> None:
        while self._tasks:
            task = self._tasks[0]
            task.attempt()
            self._tasks.popleft()
            if task.abandoned:
                self._to_undo.append(task.result)
        self._undo_abandoned()
        self._do_upkeep()

    def _undo_abandoned(self) -> None:
        while self._to_undo:
            try:
                self._undo(self._to_undo[0])
            except Exception as error:
                if is_transient(error):
                    raise
                self._news.append(
                    f"warning: a claim could not be released ({error_message(error)})"
                )
            self._to_undo.popleft()

    def _give_up(self, error: BaseException) -> None:
        self._broken = error
        for task in list(self._tasks):
            task.fail(error)
