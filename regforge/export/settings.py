"""What an export is made with: what was asked for, and what the dataset says where nothing was."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from regforge.embedded import TINYWORLD
from regforge.errors import RegforgeError
from regforge.export.base_models import NO_BASE_MODEL
from regforge.export.captions import tidy
from regforge.export.collecting import Collected
from regforge.export.interface import ExportError
from regforge.files import expanded

EMBEDDED = "embedded/tinyworld"
"""What datasets call the embedded pipeline; trainers know it by its folder."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class Settings:
    """What an export is made with.

    Attributes:
        class_noun: Such as `teapot`.
        identifier: Such as `sks`.
        resolution: Side of a square of pixels.
        base_model: Repository or folder, or `NO_BASE_MODEL`.
        prior_weight: 0 or more.
        root: Where the folder will lie on the machine that trains, absolute.
        limit: At most so many images; None for all.
        notes: What was decided, as far as a person should know.
    """

    class_noun: str
    identifier: str
    resolution: int
    base_model: str
    prior_weight: float
    root: PurePath
    limit: int | None
    notes: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """For comparing with another export."""
        names = ("class_noun", "identifier", "resolution", "base_model", "prior_weight", "limit")
        return {name: getattr(self, name) for name in names} | {"root": self.root.as_posix()}


def settle(
    collected: Collected,
    *,
    out: Path,
    identifier: str,
    class_noun: str | None,
    resolution: int | None,
    base_model: str | None,
    prior_weight: float,
    root: str | None,
    limit: int | None,
) -> Settings:
    """Fill in what was not said.

    Raises:
        ExportError: Something cannot be found out, or makes no sense.
    """
    notes: list[str] = []
    noun = _class_noun(collected, class_noun, notes)
    if not (name := tidy(identifier)):
        raise ExportError("The identifier is empty.", hint="Name one with --identifier sks.")
    if not 0 <= prior_weight < float("inf"):
        raise ExportError(f"--prior-weight {prior_weight} is no weight; 1 is the paper's.")
    if limit is not None and limit < 1:
        raise ExportError(f"--limit {limit} leaves no images.")
    seen = _root(root) if root else out
    if isinstance(seen, PureWindowsPath):
        notes.append(
            "Commands are written for a Unix shell such as Git Bash. For cmd or PowerShell, put "
            "them on one line, with double quotes in place of single ones."
        )
    return Settings(
        class_noun=noun,
        identifier=name,
        resolution=resolution or typical_resolution(collected),
        base_model=_base_model(collected, base_model, notes),
        prior_weight=prior_weight,
        root=seen,
        limit=limit,
        notes=notes,
    )


def typical_resolution(collected: Collected) -> int:
    """Side of the square with the images' median area, in steps of 64, or of 8 below 512."""
    sizes = zip(collected.widths, collected.heights, strict=True)
    side = math.sqrt(statistics.median(width * height for width, height in sizes))
    step = 64 if side >= 512 else 8
    return max(step, round(side / step) * step)


def _class_noun(collected: Collected, given: str | None, notes: list[str]) -> str:
    if given is not None:
        if noun := tidy(given):
            return noun
        raise ExportError("The class noun is empty.", hint="Name one with --class-noun teapot.")
    nouns = collected.class_nouns.most_common()
    found = [(tidy(noun), count) for noun, count in nouns if tidy(noun)]
    if not found:
        raise ExportError(
            "The dataset does not say what its images show.",
            hint="Say it with --class-noun, such as --class-noun teapot.",
        )
    if len(found) > 1:
        noun, count = found[0]
        notes.append(
            f"The images show {len(found)} kinds of things; '{noun}', shown by {count:,} of "
            "them, is taken for the class. --class-noun names another."
        )
    return found[0][0]


def _base_model(collected: Collected, given: str | None, notes: list[str]) -> str:
    if given is not None:
        if tidy(given) != given or not given:
            raise ExportError(f"--base-model {given!r} is no repository and no folder.")
        return given
    models = list(collected.models)
    if models == [EMBEDDED]:
        return str(TINYWORLD)
    if len(models) == 1 and (model := models[0]) and _is_model(model):
        return model
    notes.append(
        "The dataset does not name one model that made its images. Put the one you train where "
        f"the files say {NO_BASE_MODEL}, or name it with --base-model."
    )
    return NO_BASE_MODEL


def _is_model(name: str) -> bool:
    try:
        return bool(_REPOSITORY.fullmatch(name)) or (
            Path(name).is_absolute() and Path(name).is_dir()
        )
    except (OSError, ValueError):
        return False


def _root(text: str) -> PurePath:
    """The folder on the machine that trains, which may be another system's."""
    root: PurePath = PureWindowsPath(text) if _WINDOWS.match(text) else PurePosixPath(text)
    if not root.is_absolute() or ".." in root.parts or tidy(text) != text:
        raise ExportError(
            f"--root {text!r} is no absolute path.",
            hint="Name the folder as the machine that trains will see it: --root /data/teapot",
        )
    return root


def absolute(out: Path) -> Path:
    """The export's folder as an absolute path.

    Raises:
        ExportError: It is no name that a folder can have.
    """
    try:
        return expanded(out).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise ExportError(f"{out} is no name for a folder: {error}") from error


def no_such_trainer(name: str, names: Sequence[str]) -> RegforgeError:
    """There is no such trainer."""
    import difflib

    close = difflib.get_close_matches(name, names, n=1)
    return ExportError(
        f"There is no exporter {name!r}" + (f"; did you mean {close[0]!r}?" if close else "."),
        hint=f"Choose from {', '.join(names)}.",
    )
