"""Finds the files that are not code, in a checkout (at its top) and in an installed package."""

from pathlib import Path

from regforge.errors import RegforgeError

_PACKAGE = Path(__file__).resolve().parent


def recipes() -> Path:
    """The folder of the recipes that come with regforge."""
    return _shared_folder("recipes")


def templates() -> Path:
    """The folder of the caption and card templates that come with regforge."""
    return _shared_folder("templates")


def embedded(name: str) -> Path:
    """The folder of one embedded model, such as `tinyworld`; it need not exist."""
    return _PACKAGE / "embedded" / name


def _shared_folder(name: str) -> Path:
    installed = _PACKAGE / f"_{name}"
    checkout = _PACKAGE.parent / name
    for folder in (installed, checkout):
        if folder.is_dir():
            return folder
    raise RegforgeError(
        f"The {name} folder that comes with regforge is missing (looked in {installed} and "
        f"{checkout}).",
        hint="Install regforge again: pip install --force-reinstall --no-deps regforge",
    )
