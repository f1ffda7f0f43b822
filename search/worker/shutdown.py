"""An orderly stop: what a signal asks for is done between two steps."""

import multiprocessing
import re
import signal
import time
from types import FrameType
from typing import Self

SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]

_HANG_UP = getattr(signal, "SIGHUP", None)


class ShutdownSignal:
    """Remembers, while the context lasts, what asks for an orderly stop.

    That are SIGINT, SIGTERM, SIGHUP (a terminal that is closed), SIGUSR1 (a batch system's
    warning), the end of the time that was given, and the end of the process that started this one.
    A second SIGINT raises ``KeyboardInterrupt`` at once.

    Args:
        seconds: after which to stop; None for no limit.
        with_parent: whether to stop when the process that started this one ends.

    Attributes:
        signal: the number of the signal that came first; None before.
    """

    def __init__(self, seconds: float | None = None, with_parent: bool = False) -> None:
        self.signal: int | None = None
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._parent = multiprocessing.parent_process() if with_parent else None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if number == _HANG_UP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # as nohup wants it
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return (
            self.signal is not None
            or (self._deadline is not None and time.monotonic() >= self._deadline)
            or (self._parent is not None and not self._parent.is_alive())
        )

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells have it; 0 if there was none."""
        return 0 if self.signal is None else 128 + self.signal

    def wait(self, seconds: float) -> None:
        """Sleep, until a stop is asked for at the latest."""
        end = time.monotonic() + seconds
        # In slices: a handler may not wake a sleep up, nor safely touch a lock.
        while not self.requested and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal = number


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as ``90s``, ``45m``, ``3h``, ``1d`` or ``1h30m``.

    Raises:
        ValueError: if it is none, or no time at all.
    """
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    if not re.fullmatch(r"(\d+(\.\d+)?[dhms])+", text):
        raise ValueError(f"{text!r} is no duration")
    parts = re.findall(r"([\d.]+)([dhms])", text)
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    if not seconds:
        raise ValueError(f"{text!r} is no time at all")
    return seconds
