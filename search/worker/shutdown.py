"""Orderly shutdown on a signal, between two training steps."""

import multiprocessing
import os
import re
import signal
import threading
import time
from types import FrameType
from typing import Self

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


class ShutdownSignal:
    """Records requests to shut down; a context manager that installs signal handlers.

    Only the main thread can install them; in other threads signals keep their usual effect.

    Requests are SIGINT, SIGTERM, SIGHUP (closed terminal), SIGUSR1 and SIGUSR2 (warnings of a batch
    system), a time limit, and the end of the parent process. A second SIGINT raises
    ``KeyboardInterrupt``.

    Args:
        seconds: time limit; None for none.
        with_parent: whether to shut down when the parent process ends.

    Attributes:
        signal: number of the first signal received; None before.
    """

    def __init__(self, seconds: float | None = None, with_parent: bool = False) -> None:
        self.signal: int | None = None
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._parent = multiprocessing.parent_process() if with_parent else None
        self._previous_handlers: dict[int, object] = {}
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        for number in SIGNALS if is_main else ():
            if number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                continue  # set by nohup
            self._previous_handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def request(self, number: int) -> None:
        """Request a shutdown as the signal of this number does."""
        if self.signal is None:
            self.signal = number

    @property
    def requested(self) -> bool:
        """Whether a shutdown was requested."""
        return (
            self.signal is not None
            or (self._deadline is not None and time.monotonic() >= self._deadline)
            or (self._parent is not None and not self._parent.is_alive())
        )

    def wait(self, seconds: float) -> None:
        """Sleep, at most until a shutdown is requested."""
        end = time.monotonic() + seconds
        # In slices: a signal handler neither ends a sleep nor may safely use a lock.
        while not self.requested and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            self._receive_in_child(number)
            return
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.request(number)

    def _receive_in_child(self, number: int) -> None:
        """Handle a signal in a process that was forked meanwhile, such as one that loads data.

        Ctrl-C in a terminal reaches it as well; its parent ends it.
        """
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


MAX_SECONDS = 10 * 365 * 86400
"""Longest duration; the clocks of an operating system have a limit."""


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as ``90s``, ``45m``, ``3h``, ``1d`` or ``1h30m``.

    Raises:
        ValueError: if the text is not a positive duration.
    """
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    pattern = "".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in units)
    if not (text and (match := re.fullmatch(pattern, text))):
        raise ValueError("expected a duration with units, such as 90s, 45m, 3h or 1h30m")
    numbers = map(float, match.groups("0"))
    seconds = sum(number * unit for number, unit in zip(numbers, units.values(), strict=True))
    if not seconds:
        raise ValueError("expected a duration of more than zero")
    if seconds > MAX_SECONDS:
        raise ValueError("expected at most ten years")
    return seconds
