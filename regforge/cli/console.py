"""What commands share: options, and streams that lose a text sooner than they fail the work.

A console that knows no Chinese, a reader that has gone, no console at all (`pythonw`, `2>&-`): none
of them is a reason to end hours of work with an exception.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, TextIO, TypeVar, cast

import typer

from regforge.errors import Interrupted, RegforgeError
from regforge.journal import Reporter, printable
from regforge.words import from_here, listed

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from regforge.recipe import AnyRecipe

Result = TypeVar("Result")

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set prompts.count=50"),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="The run's folder; runs/<name> if left out.")
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="NAME", help="One of the recipe's `subjects`; repeatable."),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Make only the first N prompts.")]
EngineName = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="Draw in this process, or with the workers of a Ray cluster."),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Workers of Ray; one for each GPU if left out."),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh/--resume",
        help="Delete what an earlier run made in the folder, or go on from it (the default).",
    ),
]
DatasetName = Annotated[
    str, typer.Argument(metavar="DATASET", help="A run, a folder, an archive, or user/name[@tag].")
]
CaptionColumn = Annotated[
    str | None,
    typer.Option("--caption-column", help="Where captions stand, in somebody else's dataset."),
]
Streaming = Annotated[
    bool,
    typer.Option(
        "--streaming", help="Read from the Hub piece by piece, and download nothing first."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and results only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]
ClassNoun = Annotated[
    str | None, typer.Option("--class-noun", help="Where the dataset does not say it.")
]
Resolution = Annotated[
    int | None, typer.Option("--resolution", min=8, help="Side of a square to train at.")
]
BaseModel = Annotated[
    str | None,
    typer.Option("--base-model", help="What a LoRA is laid on, where it does not say so."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Random seed.")]


def echo(text: str) -> None:
    """Print a result on stdout, without what a terminal would take for a command."""
    print(printable(text), flush=True)


def show(result: Any, as_json: bool) -> None:
    """Print the result of a command on stdout: `as_text()` for people, `as_dict()` as JSON."""
    echo(json_of(result.as_dict()) if as_json else result.as_text())


def show_each(results: Mapping[str, Any], as_json: bool) -> None:
    """Print results by the names of subjects; the result of a recipe with one subject alone."""
    if "" in results:
        show(results[""], as_json)
    elif as_json:
        echo(json_of({name: each.as_dict() for name, each in results.items()}))
    else:
        for name, each in results.items():
            echo(f"{name}\n\n{each.as_text()}\n")


@contextmanager
def kept_if_interrupted(folder: Path) -> Iterator[None]:
    """Say after Ctrl-C that nothing is lost, and how to go on.

    Raises:
        Interrupted: In place of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        words = [shlex.quote(word) for word in sys.argv[1:] if word != "--fresh"]
        raise Interrupted(
            f"Interrupted. What was made is kept in {from_here(folder)}; go on with",
            hint=f"  {' '.join(['regforge', *words])}",
        ) from None


def for_each_subject(
    recipes: Mapping[str, AnyRecipe],
    out: Path | None,
    reporter: Reporter,
    work: Callable[[Any, Path], Result],
) -> dict[str, Result]:
    """Carry out a recipe for each of its subjects, in folders of their own.

    One that fails does not keep the others from it.

    Raises:
        RegforgeError: It failed; of several, afterwards and with their names.
        Interrupted: Somebody pressed Ctrl-C.
    """
    done, failed = dict[str, Result](), list[str]()
    for number, (name, recipe) in enumerate(recipes.items(), start=1):
        folder = out / name if out else recipe.folder
        if name:
            reporter.say(f"\n{name}, {number} of {len(recipes)}, in {from_here(folder)}")
        try:
            with kept_if_interrupted(folder):
                done[name] = work(recipe, folder)
        except Interrupted:
            raise
        except RegforgeError as error:
            if len(recipes) == 1:
                raise
            failed.append(name)
            reporter.say(f"{name}: {error}")
    if failed:
        raise RegforgeError(
            f"{len(failed)} of {len(recipes)} subjects failed: {listed(failed)}.",
            hint="Their reasons are above. The same command goes on with them"
            + ("; others are done." if done else "."),
        )
    return done


def json_of(value: Any) -> str:
    """The value as JSON to print; in ASCII where stdout cannot take more."""
    return json.dumps(
        value,
        indent=2,
        ensure_ascii=(sys.stdout.encoding or "").lower().replace("-", "")
        not in ("utf8", "utf8sig"),
    )


# ---------------------------------------------------------------------------------------- streams


@contextmanager
def lenient_streams() -> Iterator[_LenientStream]:
    """Mend `sys.stdout` and `sys.stderr` while the block runs; yields what stdout writes to."""
    before = sys.stdout, sys.stderr
    _open_closed_descriptors()
    results, progress = _LenientStream(_bytes_of(sys.stdout)), _LenientStream(_bytes_of(sys.stderr))
    sys.stdout, sys.stderr = _text_on(results, sys.stdout), _text_on(progress, sys.stderr)
    try:
        yield results
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


class _LenientStream(io.BufferedIOBase):
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
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, content: ReadableBuffer, /) -> int:
        try:
            self._stream.write(content)
        except OSError as error:
            self._lose(error)
        return memoryview(content).nbytes

    def flush(self) -> None:
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


def _text_on(sink: _LenientStream, stream: TextIO | None) -> TextIO:
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
