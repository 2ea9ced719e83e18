"""Runs asynchronous work for callers that are not: one event loop, Ctrl-C, notebooks.

Knows nothing of what the work is.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoop:
    """One event loop for several pieces of work; started with the first."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Carry it out. Ctrl-C cancels it and is raised when it has ended."""
        runner = self._runner = self._runner or asyncio.Runner()
        return _aside(lambda: _complete(runner, work))

    def close(self) -> None:
        """End what is left over; work that comes later gets a new loop."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            _aside(lambda: _close(runner))


@contextmanager
def ctrl_c_strikes_here() -> Iterator[None]:
    """Let Ctrl-C end what computes in the main thread; asyncio would wait until it is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _aside(action: Callable[[], T]) -> T:
    """Do something with an event loop; in a thread of its own if one runs here already."""
    if not _in_a_loop():
        return action()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(action).result()


def _in_a_loop() -> bool:
    """Whether this thread runs an event loop, as those of notebooks do."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _complete(runner: asyncio.Runner, work: Coroutine[Any, Any, T]) -> T:
    try:
        return runner.run(work)
    except KeyboardInterrupt:
        # The work may still be there, half done.
        _end_tasks(runner.get_loop())
        raise


def _close(runner: asyncio.Runner) -> None:
    _end_tasks(runner.get_loop())
    runner.close()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """End everything that runs in an event loop, which itself stands still."""
    for _ in range(3):
        tasks = asyncio.all_tasks(loop)
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        # A task that was struck by Ctrl-C throws it at whoever runs the loop next.
        with suppress(KeyboardInterrupt):
            loop.run_until_complete(asyncio.wait(tasks))
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # or asyncio complains that nobody asked
