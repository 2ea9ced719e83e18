"""SIGTERM and Ctrl-C while training: finish the step, save, then stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Whether somebody asked to stop.

    Attributes:
        requested: Somebody did; the loop looks after each step.
        deferred: There is something to save: a first signal is noted down. Otherwise, and for a
            second signal, it is a KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self.deferred = False

    def _on_signal(self, *_: object) -> None:
        if not self.deferred or self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def stopping() -> Iterator[Stop]:
    """Take SIGTERM and Ctrl-C while the block runs, in the main thread; others get no signals."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {
        number: signal.signal(number, stop._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
