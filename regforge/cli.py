"""The `regforge` command.

Each command is a few lines: it reads its arguments, hands over to the module that does the work,
and prints. Those modules are imported inside the commands, so that `regforge --help` answers at
once. Exit codes: 0 done, 1 the run failed, 2 the command or a recipe was wrong.
"""

import sys
from typing import Annotated

import typer

from regforge.errors import EXIT_FAILED, RegforgeError
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


@app.command()
def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON, for scripts.")
    ] = False,
) -> None:
    """Look at this machine and say what is missing.

    Shows the installed libraries, what torch runs on, and whether the embedded models are in
    place. Reaches no network and shows no secret. Exits with 0 if all essentials are there,
    otherwise with 1.

    Example: regforge doctor --json
    """
    from regforge import doctor

    checks = doctor.examine()
    if as_json:
        import json

        typer.echo(json.dumps(doctor.as_dict(checks), indent=2))
    else:
        typer.echo(doctor.as_text(checks))
    if not doctor.is_healthy(checks):
        raise typer.Exit(EXIT_FAILED)


def main() -> None:
    """Runs the command line; what users can cause ends in one sentence, not in a traceback."""
    try:
        app(prog_name="regforge")
    except RegforgeError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
