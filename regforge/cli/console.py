"""What a command prints on: streams that lose a text sooner than they fail the work behind it.

A console that knows no Chinese, a reader that has gone, no console at all (`pythonw`, `2>&-`): none
of them is a reason to end hours of work with an exception.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from regforge.progress import printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def echo(text: str) -> None:
    """Print a result on stdout, without what a terminal would take for a command."""
    print(printable(text), flush=True)


def is_utf8() -> bool:
    """Whether stdout takes every character."""
    return (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf8sig")


@contextmanager
def lenient_streams() -> Iterator[LenientStream]:
    """Mend `sys.stdout` and `sys.stderr` while the block runs; yields what stdout writes to."""
    before = sys.stdout, sys.stderr
    _open_closed_descriptors()
    results, progress = LenientStream(_bytes_of(sys.stdout)), LenientStream(_bytes_of(sys.stderr))
    sys.stdout, sys.stderr = _text_on(results, sys.stdout), _text_on(progress, sys.stderr)
    try:
        yield results
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


class LenientStream(io.BufferedIOBase):
    """Bytes on their way to a console, a file or a pipe, which may fail.

    Attributes:
        failure: Why bytes were lost, after the first that were. A reader that left, as in `| head`,
            has all that it wanted: that is no failure.
    """

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self.failure: OSError | None = None
        self._stream = stream

    def writable(self) -> bool:
        """Yes."""
        return True

    def isatty(self) -> bool:
        """Whether a person is looking."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """That of the stream below."""
        return self._stream.fileno()

    def write(self, content: ReadableBuffer, /) -> int:
        """Write, or lose, all of it."""
        try:
            self._stream.write(content)
        except OSError as error:
            self._lose(error)
        return memoryview(content).nbytes

    def flush(self) -> None:
        """Flush, or lose what was not flushed yet."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Send what was buffered, and all that follows, where it cannot fail.

        The interpreter flushes once more when it ends, and would say and return that it failed.
        """
        if error.errno not in (errno.EPIPE, errno.EINVAL):  # EINVAL: the same on Windows
            self.failure = self.failure or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError):  # no stream of the operating system's
            os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def _text_on(sink: LenientStream, stream: TextIO | None) -> TextIO:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return io.TextIOWrapper(cast(BinaryIO, sink), encoding, errors="replace", line_buffering=True)


def _bytes_of(stream: TextIO | None) -> BinaryIO:
    if stream is None:  # as under pythonw
        return open(os.devnull, "wb")  # noqa: PTH123 (the process's own, to its end)
    stream.flush()
    return stream.buffer


def _open_closed_descriptors() -> None:
    """See that descriptors 0, 1 and 2 are somebody's.

    The next file that is opened would get a free one, and whatever a library in C writes to its
    stderr would land in a shard of the dataset.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
