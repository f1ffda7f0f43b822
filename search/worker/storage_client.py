"""Thread that makes all storage calls of a worker and retries them during outages.

Requests are futures in a queue of this module instead of a ``ThreadPoolExecutor``: an executor's
thread is joined at exit, so that a storage that does not answer would keep the process alive.
"""

import contextlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from functools import partial
from typing import Any, Self, TypeVar

import tenacity

from search.errors import ShutdownRequestedError
from search.worker.shutdown import ShutdownSignal
from studies.errors import StorageUnavailableError
from studies.storage.engine import error_message, is_transient

SHUTDOWN_GRACE = 2.5
"""Seconds to wait for the storage once a shutdown is requested."""

JOIN_TIMEOUT = 2.5
"""Seconds to wait for the thread's last operation on exit."""

NO_RESPONSE_TIMEOUT = 5.0
"""Seconds without an answer to a statement after which the storage counts as unavailable."""

_MAX_IDLE_SECONDS = 1.0
_MAX_RETRY_SECONDS = 5.0

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)


class StorageClient(ABC):
    """Runs storage operations in order in one thread, and the maintenance that a subclass defines.

    Callers block only until the answer arrives, and return early on shutdown. A context manager
    that starts and ends the thread.

    Args:
        stop: signal to return early on.
        outage_seconds: how long an unavailable storage is waited for.
        max_retry_seconds: longest time between two attempts.
    """

    def __init__(
        self,
        stop: ShutdownSignal,
        outage_seconds: float,
        max_retry_seconds: float,
    ) -> None:
        self._stop = stop
        self._outage_seconds = outage_seconds
        self._requests: deque[tuple[Callable[[bool], Any], Future[Any]]] = deque()
        self._undos: deque[Callable[[], None]] = deque()  # of results that their callers left
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._failure: Exception | None = None
        self._busy_since: float | None = None  # of the current statement, if a subclass notes it
        self._outage_message: str | None = None
        self._checked_at = time.monotonic()
        self._unavailable_seconds = 0.0
        self._has_reported_outage = False
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            stop=tenacity.stop_when_event_set(self._closed),
            # Random, so that clients that were refused together do not return together.
            wait=tenacity.wait_random_exponential(
                multiplier=0.1, min=0.02, max=min(max_retry_seconds, _MAX_RETRY_SECONDS)
            ),
            sleep=self._sleep,
            before_sleep=self._note_outage,
            reraise=True,
        )
        self._thread = threading.Thread(target=self._run, name="storage", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._wake.set()
        self._thread.join(JOIN_TIMEOUT)

    @abstractmethod
    def _next_maintenance(self) -> float:
        """Return the monotonic time at which maintenance is due."""

    @abstractmethod
    def _run_maintenance(self) -> None:
        """Do what is due; called again after an outage."""

    @abstractmethod
    def _on_outage(self) -> None:
        """Handle a failed attempt to reach the storage."""

    @abstractmethod
    def _find_cause(self, error: Exception) -> Exception:
        """Return the cause of an error that is not transient."""

    # ------------------------------------------------------------------ called by other threads

    @property
    def unavailable_reason(self) -> str | None:
        """Why the storage is unavailable now; None if it is available."""
        busy_since, message = self._busy_since, self._outage_message
        if message is None and busy_since is not None:
            is_silent = time.monotonic() - busy_since > NO_RESPONSE_TIMEOUT
            message = "it does not answer" if is_silent else None
        return message

    def read(self, query: Callable[[], _T], timeout: float | None = None) -> _T:
        """Run a query in the thread and return its result.

        Args:
            query: function that reads from the storage.
            timeout: seconds to wait; None until the end of an outage.

        Raises:
            ShutdownRequestedError: if a shutdown was requested, or the timeout has passed.
            StorageUnavailableError: if the storage was unavailable for too long.
        """
        return self._call(lambda is_retry: query(), timeout=timeout)

    def peek(self, query: Callable[[], object], timeout: float) -> None:
        """Run a query for a display, which may be in any thread; report no outage.

        A query that is not answered in time still runs as soon as it can.

        Args:
            query: function that reads from the storage and keeps the result.
            timeout: seconds to wait.
        """
        if not self._closed.is_set():
            future: Future[object] = Future()
            self._submit(lambda is_retry: query(), future)
            futures.wait([future], timeout)

    def check(self) -> None:
        """Log the start and the end of an outage.

        Raises:
            StorageUnavailableError: if the storage was unavailable for too long.
        """
        self._log_outage()
        self._require_available()

    def _call(
        self,
        operation: Callable[[bool], _T],
        undo: Callable[[_T], None] = lambda result: None,
        timeout: float | None = None,
    ) -> _T:
        """Run an operation in the thread and return its result.

        Args:
            operation: function to run; True is passed if an attempt failed before, which may have
                been committed.
            undo: function that is called in the thread with the result if the caller has left.
            timeout: seconds to wait; None until the end of an outage.
        """
        if self._closed.is_set():
            raise ShutdownRequestedError
        future: Future[_T] = Future()
        try:
            self._submit(operation, future)
            self._wait(future, timeout)
            self._log_outage()
        except BaseException:  # also an interrupt, or a closed output
            future.cancel()
            future.add_done_callback(partial(self._schedule_undo, undo))
            raise
        return future.result()

    def _submit(self, operation: Callable[[bool], _T], future: Future[_T]) -> None:
        self._requests.append((operation, future))
        self._wake.set()

    def _wait(self, future: Future[Any], timeout: float | None) -> None:
        """Return once a future is done, or raise."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not futures.wait([future], 0.1).done:
            try:
                self.check()
                if deadline is None and self._stop.requested:
                    deadline = time.monotonic() + SHUTDOWN_GRACE
                if deadline is not None and time.monotonic() > deadline:
                    raise ShutdownRequestedError
            except Exception:
                if not future.done():
                    raise

    def _schedule_undo(self, undo: Callable[[_T], None], future: Future[_T]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._undos.append(partial(undo, future.result()))
            self._wake.set()

    def _require_available(self) -> None:
        if self._failure is not None:
            raise self._failure
        now, reason = time.monotonic(), self.unavailable_reason
        # The time in which this process was itself suspended does not count as an outage.
        elapsed, self._checked_at = min(now - self._checked_at, NO_RESPONSE_TIMEOUT), now
        self._unavailable_seconds = self._unavailable_seconds + elapsed if reason else 0.0
        if self._unavailable_seconds > self._outage_seconds:
            raise StorageUnavailableError(
                f"storage unavailable for {self._unavailable_seconds:.0f} s ({reason}), longer "
                f"than {self._outage_seconds:g} s; recorded results are kept; restore it and run "
                "the same command to resume"
            )

    def _log_outage(self) -> None:
        reason = self.unavailable_reason
        if reason and not self._has_reported_outage:
            # A statement may also take long because the machine or the server is busy.
            state = "unavailable" if self._outage_message else "slow or unavailable"
            _logger.info(f"storage {state} ({reason}); new results are kept in memory")
        elif self._has_reported_outage and not reason:
            _logger.info("storage available again")
        self._has_reported_outage = reason is not None

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._busy_since = time.monotonic()
                self._retrying(self._process)
                self._busy_since = self._outage_message = None
                self._wait_for_work()
        except Exception as error:
            self._failure = self._find_cause(error)
        with contextlib.suppress(Exception):  # in an outage their leases expire
            self._run_undos()

    def _process(self) -> None:
        while self._requests:
            operation, future = self._requests[0]
            is_retry = future.running()
            if is_retry or future.set_running_or_notify_cancel():
                try:
                    result = operation(is_retry)
                except Exception as error:
                    if is_transient(error):
                        raise
                    future.set_exception(self._find_cause(error))
                else:
                    future.set_result(result)
            self._requests.popleft()
        self._run_undos()
        self._run_maintenance()

    def _run_undos(self) -> None:
        while self._undos:
            try:
                self._undos[0]()
            except Exception as error:
                if is_transient(error):
                    raise
                _logger.warning(
                    f"a claim could not be released ({error_message(error)})", exc_info=True
                )
            self._undos.popleft()

    def _wait_for_work(self) -> None:
        while not (self._closed.is_set() or self._requests or self._undos):
            # Maintenance may become due at an earlier time meanwhile.
            seconds = self._next_maintenance() - time.monotonic()
            if seconds <= 0:
                break
            self._sleep(min(seconds, _MAX_IDLE_SECONDS))

    def _sleep(self, seconds: float) -> None:
        """Sleep until there is another request."""
        self._wake.wait(seconds)
        self._wake.clear()

    def _note_outage(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        assert error is not None
        self._outage_message = error_message(error)
        self._on_outage()
