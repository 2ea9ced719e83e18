"""Commands about regforge itself."""

from __future__ import annotations

from typing import Annotated

import typer

from regforge.cli.console import echo
from regforge.cli.options import AsJson, json_of
from regforge.errors import EXIT_FAILED


def schema(
    training: Annotated[bool, typer.Option("--training", help="Of training recipes.")] = False,
) -> None:
    """Print the JSON schema of recipes, from which editors complete and check.

    Example: regforge schema > regforge.schema.json
    """
    from regforge.recipe import json_schema, training_schema

    echo(json_of(training_schema() if training else json_schema()))


def doctor(as_json: AsJson = False) -> None:
    """Look at this machine and say what is missing.

    Shows the installed libraries, what torch runs on, and whether the embedded models are in
    place. Reaches no network and shows no secret. Exits with 0 if all essentials are there,
    otherwise with 1.

    Example: regforge doctor --json
    """
    from regforge import doctor

    checks = doctor.examine()
    echo(json_of(doctor.as_dict(checks)) if as_json else doctor.as_text(checks))
    if not doctor.is_healthy(checks):
        raise typer.Exit(EXIT_FAILED)
