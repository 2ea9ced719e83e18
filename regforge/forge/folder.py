"""The folder of one run: where its files lie, whose it is, and that only one process works on it.

    recipe.yaml  vocabulary.json  captions.json  imported.jsonl  prompts.jsonl
    shards/  staging/  dataset/  report.html  grid.webp  log.jsonl  ledger.jsonl  state.json

Knows nothing about how any of them is made. What is true of every run's folder, a training's too,
is in `OwnedFolder`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import storage_error, write_atomically
from regforge.recipe import (
    Recipe,
    TrainingRecipe,
    changed_keys,
    recipe_digest,
    resolved_yaml,
    training_digest,
)

_LOCK = ".lock"


class RunFolderError(RegforgeError):
    """A run folder that cannot be worked on."""

    exit_code = EXIT_USAGE


class FolderInUse(RunFolderError):
    """A run folder that another process is working on."""


class OwnedFolder:
    """A folder that belongs to one recipe, for one process at a time.

    Args:
        path: The folder itself; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.recipe = self.path / "recipe.yaml"
        self._state = self.path / "state.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; released even by `kill -9`.

        Raises:
            FolderInUse: Another process is working on it.
            StorageError: The folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise storage_error(self.path, error) from error
        try:
            if not _lock(handle):
                raise FolderInUse(
                    f"Another regforge is working on {self.path}.",
                    hint="Wait for it, stop it, or choose another folder with --out.",
                )
            yield
        finally:
            os.close(handle)

    def own(self, recipe: Recipe | TrainingRecipe, *, fresh: bool) -> bool:
        """Make the folder a recipe's: write recipe.yaml, or check that it is the same recipe.

        Args:
            recipe: Whose run it is.
            fresh: Delete what an earlier run left.

        Returns:
            Whether an earlier run of this recipe is continued.

        Raises:
            RunFolderError: The folder belongs to another recipe, or to something else altogether.
            StorageError: The folder cannot be written.
        """
        if fresh:
            self._empty()
        if (refusal := self.refusal(recipe)) is not None:
            raise refusal
        digest = _digest_of(recipe)
        goes_on = self.state().get("recipe_digest") == digest
        self.remember(recipe_digest=digest)
        write_atomically(self.recipe, resolved_yaml(recipe))
        return goes_on

    def refusal(self, recipe: Recipe | TrainingRecipe) -> RunFolderError | None:
        """Why the folder cannot be this recipe's; None if it can.

        A folder in which nothing was made yet, because the first attempt failed early, can become
        another recipe's.
        """
        known = self.state().get("recipe_digest")
        if known is None and self._holds_other_than(_LOCK):
            return RunFolderError(
                f"{self.path} holds other files than a run's.",
                hint="Choose another folder with --out.",
            )
        if known in (None, _digest_of(recipe)):
            return None
        if not self._holds_other_than(_LOCK, self.recipe.name, self._state.name):
            return None
        return RunFolderError(
            f"{self.path} holds the run of another recipe.{self._differences(recipe)}",
            hint="Start it over with --fresh (what is there is deleted), or choose another "
            "folder with --out.",
        )

    def state(self) -> dict[str, Any]:
        """What earlier sessions settled, such as the batch size; empty for a new run."""
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def remember(self, **facts: Any) -> None:
        """Add facts to the state."""
        state = self.state()
        if {**state, **facts} != state:
            write_atomically(self._state, json.dumps({**state, **facts}, indent=1) + "\n")

    def _holds_other_than(self, *names: str) -> bool:
        return self.path.is_dir() and any(each.name not in names for each in self.path.iterdir())

    def _empty(self) -> None:
        if "recipe_digest" not in self.state() and self._holds_other_than(_LOCK):
            raise RunFolderError(
                f"{self.path} holds other files than a run's, so --fresh does not delete them.",
                hint="Choose another folder with --out.",
            )
        # The state goes last: until then the folder is known as ours.
        for each in sorted(self.path.iterdir(), key=lambda path: path == self._state):
            if each.name == _LOCK:
                continue
            try:
                if each.is_dir() and not each.is_symlink():
                    shutil.rmtree(each)
                else:
                    each.unlink()
            except OSError as error:
                raise storage_error(each, error) from error

    def _differences(self, recipe: Recipe | TrainingRecipe) -> str:
        """Which keys make it another recipe than this folder's, as ` Changed: ...`."""
        try:
            before = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return ""
        changed = changed_keys(before, recipe)
        shown = ", ".join(changed[:6]) + (", ..." if len(changed) > 6 else "")
        return f" Changed: {shown}." if shown else " A file that the recipe names has changed."


class RunFolder(OwnedFolder):
    """Paths of one run; see the module's docstring.

    Args:
        path: The folder itself; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.vocabulary = self.path / "vocabulary.json"
        self.captions = self.path / "captions.json"
        self.imported = self.path / "imported.jsonl"
        self.prompts = self.path / "prompts.jsonl"
        self.shards = self.path / "shards"
        self.staging = self.path / "staging"
        self.dataset = self.path / "dataset"
        self.report = self.path / "report.html"
        self.grid = self.path / "grid.webp"


def _digest_of(recipe: Recipe | TrainingRecipe) -> str:
    return training_digest(recipe) if isinstance(recipe, TrainingRecipe) else recipe_digest(recipe)


def _lock(handle: int) -> bool:
    """Whether the lock was free; on systems without `fcntl` every lock is."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
