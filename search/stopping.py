"""An orderly stop: what a signal asks for is done between two log points."""

import signal
import time
from types import FrameType
from typing import Self

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class StopRequest:
    """Remembers SIGINT, SIGTERM and SIGHUP (a terminal that is closed) while the context lasts.

    The first signal asks for an orderly stop; a second SIGINT raises ``KeyboardInterrupt`` at once.

    Attributes:
        signal: the number of the signal that came first; None before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal is not None

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
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal = number
