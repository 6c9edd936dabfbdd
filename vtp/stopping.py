"""How a training ends before its time.

SIGTERM and SIGUSR1, as a scheduler sends them before it takes a machine away, and Ctrl-C: save, then exit with status 75.
A second Ctrl-C does not wait for that.

75 is EX_TEMPFAIL of sysexits.h, "try again later"; a scheduler that requeues on it gets the same training back, which goes on
from where it was. Where there is nothing to save a process leaves at once; the training loop asks between two steps.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_STATUS = 75
INTERRUPTED = 128 + signal.SIGINT
DIVERGED = 65
"""Exit status of a stage whose training diverged: EX_DATAERR, trying again will not help."""


class Stopped(SystemExit):
    """The process was asked to stop, and everything worth keeping is kept."""

    def __init__(self) -> None:
        super().__init__(EXIT_STATUS)


class NotFinite(ValueError):
    """A loss term became NaN or infinite."""


def leave_at_once() -> None:
    """From now on a signal ends the process with status 75, through `finally` blocks."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Stopped

    for number in SIGNALS:
        signal.signal(number, leave)


def ignore() -> None:
    """For loading processes: a signal to the whole group must not take them from under a training that wants to save."""
    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class Request:
    """Whether a signal has come since the block began."""

    def __init__(self) -> None:
        self.made = False

    def make(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.made and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.made = True


@contextmanager
def noted() -> Iterator[Request]:
    """During the block a signal is only noted; whoever asks `request.made` acts on it. Afterwards the old handlers are back."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():  # only the main thread can be interrupted
        yield request
        return
    # What is started in the background ignores Ctrl-C, and goes on doing so.
    heard = [number for number in (*SIGNALS, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, request.make) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
