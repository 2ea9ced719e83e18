"""The `regforge` command.

Each command is a few lines: it reads its arguments, hands over to the module that does the work,
and prints. Those modules are imported inside the commands, so that `regforge --help` answers at
once. Exit codes: 0 done, 1 the run failed, 2 the command or a recipe was wrong, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from regforge.cli.console import (
    AsJson,
    echo,
    json_of,
    lenient_streams,
)
from regforge.cli.datasets import check, init, prompts, render, report, review, run
from regforge.cli.sharing import audit, export, publish
from regforge.cli.training import evaluate, sample, train
from regforge.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, Interrupted, RegforgeError
from regforge.journal import printable
from regforge.version import __version__

app = typer.Typer(
    name="regforge",
    help="Structured-caption regularization datasets for personalizing text-to-image models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: quicker to print, easier to pipe and to read in a log
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(f"regforge {__version__}")
        raise typer.Exit


@app.callback()
def regforge(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Structured-caption regularization datasets for personalizing text-to-image models."""


def schema(
    training: Annotated[bool, typer.Option("--training", help="Of training recipes.")] = False,
) -> None:
    """Print the JSON schema of recipes, from which editors complete and check.

    Example: regforge schema > regforge.schema.json
    """
    from regforge.recipe import json_schema

    echo(json_of(json_schema(training=training)))


def doctor(as_json: AsJson = False) -> None:
    """Look at this machine and say what is missing.

    Shows the installed libraries, what torch runs on, and whether the embedded models are in
    place. Reaches no network and shows no secret. Exits with 0 if all essentials are there,
    otherwise with 1.

    Example: regforge doctor --json
    """
    from regforge import doctor

    checks = doctor.examine()
    if as_json:
        echo(json_of(doctor.as_dict(checks)))
    else:
        typer.echo(doctor.as_text(checks))  # takes colors off where no terminal shows them
    if not doctor.is_healthy(checks):
        raise typer.Exit(EXIT_FAILED)


for _command in (  # in the order of `regforge --help`
    *(init, check, prompts, render, run, review, report),
    *(publish, export, audit),
    *(train, sample, evaluate),
    *(schema, doctor),
):
    app.command()(_command)


def main() -> None:
    """Run the command line; what users can cause ends in one sentence, not in a traceback."""
    with lenient_streams() as stdout:
        code = _exit_code()
        sys.stdout.flush()
        if stdout.failure is not None:
            reason = stdout.failure.strerror or stdout.failure
            _complain(f"error: The result could not be printed: {reason}.")
            code = code or EXIT_FAILED
    sys.exit(code)


def _exit_code() -> int:
    """Run the command line; returns what the process exits with."""
    try:
        app(prog_name="regforge")
    except Interrupted as interrupted:
        _complain(f"\n{interrupted}")
        return interrupted.exit_code
    except RegforgeError as error:
        _complain(f"error: {error}", color=typer.colors.RED)
        return error.exit_code
    except KeyboardInterrupt:
        ended: object = EXIT_INTERRUPTED
    except SystemExit as leaving:
        ended = leaving.code
    if ended == EXIT_INTERRUPTED:
        _complain("\nInterrupted. The same command goes on, or starts over.")
    return ended if isinstance(ended, int) else EXIT_OK if ended is None else EXIT_FAILED


def _complain(message: str, color: str | None = None) -> None:
    typer.secho(printable(message), fg=color, file=sys.stderr)
