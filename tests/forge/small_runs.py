"""Running recipes in this process, and reading what came out."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regforge import cli
from regforge.dataset.reading import read_rows
from regforge.forge import Run, run
from regforge.progress import Reporter
from regforge.recipe import Recipe
from regforge.records import ImageRow

WriteRecipe = Callable[..., Path]


def quietly(recipe: Recipe, out: Path, **options: Any) -> Run:
    return run(recipe, out=out, reporter=Reporter(quiet=True), **options)


def rows_of(done: Run) -> list[ImageRow]:
    return list(read_rows(done.dataset))


def fingerprint(folder: Path) -> dict[str, str]:
    """Digests of every file of a run that must come out the same each time."""
    files = [folder / "prompts.jsonl", folder / "vocabulary.json"]
    files += sorted((folder / "dataset").rglob("*")) + sorted((folder / "shards").rglob("*"))
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file()
    }


class Shell:
    """Runs commands in this process; keeps what they printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd
        self.out = self.err = ""

    def __call__(self, *words: object) -> int:
        self._monkeypatch.setattr(sys, "argv", ["regforge", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        self.out, self.err = self._capfd.readouterr()
        return code
