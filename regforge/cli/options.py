"""What several commands share: the options they have in common, and small helpers."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regforge.cli.console import echo, is_utf8
from regforge.errors import Interrupted

if TYPE_CHECKING:
    from regforge.progress import Reporter

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set prompts.count=50"),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="The run's folder; runs/<name> if left out.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Make only the first N prompts.")]
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


def show(result: Any, as_json: bool) -> None:
    """Print the result of a command on stdout: `as_text()` for people, `as_dict()` as JSON."""
    echo(json_of(result.as_dict()) if as_json else result.as_text())


def reporter_for(quiet: bool) -> Reporter:
    """Progress on stderr, unless `quiet`."""
    from regforge.progress import Reporter

    return Reporter(quiet=quiet)


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
            f"Interrupted. What was made is kept in {shortened(folder)}; go on with",
            hint=f"  {' '.join(['regforge', *words])}",
        ) from None


def shortened(path: Path) -> Path:
    """The path as a person in this folder would write it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def json_of(value: Any) -> str:
    """The value as JSON to print; in ASCII where stdout cannot take more."""
    return json.dumps(value, indent=2, ensure_ascii=not is_utf8())
