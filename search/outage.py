"""Wait for a storage that is unavailable at the start of a run."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from search.errors import ShutdownRequestedError
from search.worker.shutdown import ShutdownSignal
from studies.errors import StorageUnavailableError
from studies.storage.retry import database_error, error_message, is_outage

RETRY_SECONDS = 5.0
"""Longest time between two attempts."""

_T = TypeVar("_T")


def wait_for_storage(
    operation: Callable[[], _T],
    outage_seconds: Callable[[], float],
    stop: ShutdownSignal,
    print_line: Callable[[str], None],
) -> _T:
    """Call a function again while the storage is unavailable, and return its result.

    Args:
        operation: function that may be called again after it raised an error.
        outage_seconds: returns how long to wait; called after each attempt.
        stop: signal on which to end the wait; its handlers are installed between the attempts.
        print_line: prints a line for the user.

    Raises:
        ShutdownRequestedError: if a shutdown was requested during the wait.
        StorageUnavailableError: if the storage was unavailable for too long.
    """
    unavailable_since: float | None = None
    seconds_to_next = 0.1
    while True:
        try:
            result = operation()
        except Exception as error:
            if not is_outage(error):
                raise
            reason, limit = error_message(database_error(error)), outage_seconds()
            now = time.monotonic()
            if unavailable_since is None:
                unavailable_since = now
                print_line(f"storage unavailable ({reason}); waiting for it for up to {limit:g} s")
            elapsed = now - unavailable_since
            if elapsed >= limit:
                raise StorageUnavailableError(
                    f"storage unavailable for {elapsed:.0f} s ({reason}), longer than {limit:g} s; "
                    "restore it and run the same command again"
                ) from error
        else:
            if unavailable_since is not None:
                print_line("storage available again")
            return result
        # Random, so that processes that were refused together do not retry together.
        with stop:
            stop.wait(min(seconds_to_next * random.uniform(0.5, 1), limit - elapsed))
        if stop.requested:
            raise ShutdownRequestedError("stopped while waiting for the storage")
        seconds_to_next = min(2 * seconds_to_next, RETRY_SECONDS)
