"""The `regforge` command.

Each command is a few lines: it reads its arguments, hands over to the module that does the work,
and prints. Those modules are imported inside the commands, so that `regforge --help` answers at
once. Exit codes: 0 done, 1 the run failed, 2 the command or a recipe was wrong.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from regforge.cli.datasets import check, init, prompts, render, report, run
from regforge.cli.sharing import audit, export, publish
from regforge.cli.tools import doctor, schema
from regforge.cli.training import evaluate, sample, train
from regforge.errors import EXIT_FAILED, EXIT_USAGE, RegforgeError
from regforge.version import __version__

_CTRL_C = 130
"""What typer exits with after Ctrl-C, where a command does not see to it itself."""

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
        typer.echo(f"regforge {__version__}")
        raise typer.Exit


@app.callback()
def regforge(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Structured-caption regularization datasets for personalizing text-to-image models."""


_COMMANDS = (  # in the order of `regforge --help`
    *(init, check, prompts, render, run, report),
    *(publish, export, audit),
    *(train, sample, evaluate),
    *(schema, doctor),
)
for _command in _COMMANDS:
    app.command()(_command)


def main() -> None:
    """Runs the command line; what users can cause ends in one sentence, not in a traceback."""
    try:
        app(prog_name="regforge")
    except RegforgeError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if ended.code == _CTRL_C:
            typer.secho("\nInterrupted. The same command goes on, or starts over.", err=True)
            sys.exit(EXIT_FAILED)
        raise
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        sys.stderr.close()
        sys.exit(EXIT_USAGE)
