"""Ctrl-C at the start and the end of a command: one line at most, and exit code 130.

Imports nothing slow: a command calls it before PyTorch and pandas, which take seconds.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

EXIT_INTERRUPTED = 130


def exit_on_interrupt() -> None:
    """Exit at once on Ctrl-C, until :func:`raise_on_interrupt`: nothing has begun yet."""
    _set_handler(_exit_with_message)


def raise_on_interrupt() -> None:
    """Raise ``KeyboardInterrupt`` on Ctrl-C, also if it arrives where Python would ignore it."""
    if signal.getsignal(signal.SIGINT) is _exit_with_message:
        _set_handler(signal.default_int_handler)
    sys.unraisablehook = _repeat_interrupt


def exit_silently_on_interrupt() -> None:
    """Exit at once on Ctrl-C, without a message: the command has ended and printed its outcome."""
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _exit_with_message):
        _set_handler(_exit)


@contextlib.contextmanager
def blocked_interrupts() -> Iterator[None]:
    """Block Ctrl-C in processes that are spawned meanwhile, which import PyTorch first."""
    resource_tracker.ensure_running()  # its start would unblock Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_interrupts() -> None:
    """Ignore Ctrl-C in a process that was spawned with it blocked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _set_handler(handler: "signal._HANDLER") -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


def _exit_with_message(number: int, frame: FrameType | None) -> None:
    os.write(2, b"error: interrupted\n")
    os._exit(EXIT_INTERRUPTED)


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(EXIT_INTERRUPTED)


def _repeat_interrupt(ignored: "UnraisableHookArgs") -> None:
    """Send an interrupt again that a destructor or a callback could not raise."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        # Later: the handler must not raise in here.
        again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(ignored)
