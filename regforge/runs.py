"""Run folders: whose they are, one process at a time, and which files in them are regforge's.

    recipe.yaml    the recipe in full, headed by its digest
    state.json     the recipe's digest, and what earlier sessions settled
    .lock          there while a process works on the folder
    .unfinished-*  left by killed writers; deleted with the next lock

A file of another name is somebody else's and never deleted.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import yaml

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import (
    UNFINISHED,
    delete,
    read_object,
    remove_unfinished,
    storage_errors,
    write_atomically,
)
from regforge.recipe import (
    Recipe,
    TrainingRecipe,
    changed_keys,
    recipe_digest,
    resolved_yaml,
)
from regforge.words import from_here

_LOCK = ".lock"
_STATE = "state.json"


class RunFolderError(RegforgeError):
    """A run folder that cannot be worked on."""

    exit_code = EXIT_USAGE


class FolderInUse(RunFolderError):
    """A run folder that another process is working on."""


class OwnedFolder:
    """A folder that regforge writes, one process at a time; it need not exist."""

    made: ClassVar[tuple[str, ...]] = ()
    """Glob patterns of the files that are made in it, relative to it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._state = self.path / _STATE

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; released even by `kill -9`.

        Raises:
            FolderInUse: Another process is working on it.
            RunFolderError: There is a file in its place.
            StorageError: The folder cannot be written.
        """
        lock = self.path / _LOCK
        if (refusal := self._is_a_file()) is not None:
            raise refusal
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            handle = _held(lock)
        if handle is None:
            raise FolderInUse(
                f"Another regforge is working on {self.path}.",
                hint="Wait for it, stop it, or choose another folder with --out.",
            )
        try:
            remove_unfinished(self.path, below=False)
            for name in sorted({pattern.partition("/")[0] for pattern in self.made}):
                remove_unfinished(self.path / name)
            yield
        finally:
            with suppress(OSError):  # Windows does not delete what is open
                lock.unlink()
            os.close(handle)

    def _is_a_file(self) -> RunFolderError | None:
        if not self.path.exists() or self.path.is_dir():
            return None
        hint = "Choose a folder with --out."
        return RunFolderError(f"{self.path} is a file, and a folder is needed.", hint=hint)

    def state(self) -> dict[str, Any]:
        """Facts that earlier sessions settled, such as the batch size; empty for a new run."""
        return read_object(self._state)

    def remember(self, **facts: Any) -> None:
        """Add facts to the state."""
        state = self.state()
        if {**state, **facts} != state:
            self._write_state({**state, **facts})

    def holds_others_files(self, *, ours: bool = False) -> bool:
        """Whether there are files that no killed first write leaves (`ours`: nor are in `made`)."""
        if not self.path.is_dir():
            return False
        there = {each for each in self.path.iterdir() if not each.name.startswith(UNFINISHED)}
        there -= {self.path / _LOCK}
        with suppress(OSError):
            if not self.state() and self._state.read_bytes()[:1] in (b"", b"\0", b"{"):  # damaged
                there -= {self._state}
        if ours:
            names = {pattern.partition("/")[0] for pattern in self.made}
            there = {each for each in there if not any(each.match(name) for name in names)}
        return bool(there)

    def has_made(self) -> bool:
        """Whether any of the files is there that are made in it."""
        return any(True for _ in self._files(self.made))

    def delete_made(self, *patterns: str) -> None:
        """Delete the files in `made` and of more patterns, and the folders that are empty then."""
        names = {pattern.partition("/")[0] for pattern in (*self.made, *patterns)}
        for path in list(self._files((*self.made, *patterns))):
            delete(path)
        for name in sorted(names):
            for place, _, _ in os.walk(self.path / name, topdown=False):
                with suppress(OSError):  # something of the user's is in it
                    Path(place).rmdir()

    def _files(self, patterns: tuple[str, ...]) -> Iterator[Path]:
        for pattern in patterns:
            for path in self.path.glob(pattern):
                if path.is_symlink() or not path.is_dir():
                    yield path

    def _write_state(self, state: dict[str, Any]) -> None:
        write_atomically(self._state, json.dumps(state, indent=1) + "\n")


class RecipeFolder(OwnedFolder):
    """A folder that belongs to one recipe."""

    notes: ClassVar[tuple[str, ...]] = ("recipe.yaml", "log.jsonl", "ledger.jsonl")
    """Like `made`, for files that are written before anything is made."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.recipe = self.path / "recipe.yaml"

    @property
    def digest(self) -> str | None:
        """The digest of the recipe that the folder belongs to; None if it belongs to none.

        recipe.yaml says it where state.json was damaged or lost.
        """
        known = self.state().get("recipe_digest")
        if isinstance(known, str):
            return known
        if not (self._state.exists() or self.has_made()):
            return None
        with suppress(OSError, ValueError):
            head = re.search(
                r"^# digest: ([0-9a-f]{64})$", self.recipe.read_text(encoding="utf-8"), re.MULTILINE
            )
            return head and head[1]
        return None

    def own(self, recipe: Recipe | TrainingRecipe, *, fresh: bool) -> bool:
        """Make the folder a recipe's; returns whether an earlier run of it is continued.

        With `fresh`, the files of an earlier run are deleted first.

        Raises:
            RunFolderError: The folder belongs to another recipe, or to something else altogether.
            StorageError: The folder cannot be written.
        """
        if fresh:
            self._start_over(recipe)
        if (refusal := self.refusal(recipe)) is not None:
            raise refusal
        digest = recipe_digest(recipe)
        goes_on = self.digest == digest and not fresh
        if goes_on:
            self.remember(recipe_digest=digest)
        else:
            self._write_state({"recipe_digest": digest})
        write_atomically(self.recipe, resolved_yaml(recipe))
        return goes_on

    def refusal(self, recipe: Recipe | TrainingRecipe) -> RunFolderError | None:
        """Why the folder cannot be this recipe's; None if it can.

        A folder in which nothing was made yet, because the first attempt failed early, can become
        another recipe's.
        """
        if (refusal := self._is_a_file()) is not None:
            return refusal
        known = self.digest
        if known is None and self.holds_others_files():
            return RunFolderError(
                f"{self.path} holds other files than a run's.",
                hint="Choose another folder with --out.",
            )
        if known in (None, recipe_digest(recipe)) or not self.has_made():
            return None
        return RunFolderError(
            f"{self.path} holds the run of another recipe.{self._differences(recipe)}",
            hint="Start it over with --fresh (what was made there is deleted), or choose another "
            "folder with --out.",
        )

    def _start_over(self, recipe: Recipe | TrainingRecipe) -> None:
        """Delete an earlier run's files; killed on the way, the folder still has an owner."""
        digest, there = self.digest, recipe_in(self.path)
        if digest is None and self.holds_others_files():
            raise RunFolderError(
                f"{self.path} holds other files than a run's, so --fresh does not delete them.",
                hint="Choose another folder with --out.",
            )
        if there and ("prompts" in there) != isinstance(recipe, Recipe):
            kind = "dataset" if "prompts" in there else "training"
            raise RunFolderError(
                f"{self.path} holds the run of a {kind} recipe, so --fresh does not delete it.",
                hint="Choose another folder with --out.",
            )
        if digest is not None:
            self._write_state({"recipe_digest": digest})
        self.delete_made(*self.notes)

    def _differences(self, recipe: Recipe | TrainingRecipe) -> str:
        """Which keys make it another recipe than this folder's, as ` Changed: ...`."""
        if not (before := recipe_in(self.path)):
            return ""
        changed = changed_keys(before, recipe)
        shown = ", ".join(changed[:6]) + (", ..." if len(changed) > 6 else "")
        return f" Changed: {shown}." if shown else " A file that the recipe names has changed."


def recipe_in(folder: Path) -> dict[str, Any]:
    """What recipe.yaml in a folder of a run or a training says; empty if there is none."""
    with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
        said = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        return said if isinstance(said, dict) else {}
    return {}


def is_training_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is that of a training run, finished or not."""
    return "base_model" in recipe_in(Path(folder))


def identifier_in(folder: Path | None) -> str | None:
    """The subject's identifier by the recipe in a run's folder; None if nobody says."""
    subject = recipe_in(folder).get("subject") if folder is not None else None
    found = subject.get("identifier") if isinstance(subject, dict) else None
    found = found.get("new") if isinstance(found, dict) else found
    return found if isinstance(found, str) and found.strip() else None


class RunFolder(RecipeFolder):
    """The folder of a dataset recipe's run."""

    made = (
        *("vocabulary.json", "captions.json", "imported.jsonl", "prompts.jsonl"),
        *("staging/*-*.*.*", "shards/*.parquet", "shards/set-aside/*.parquet", "reviewed/*-*.*.*"),
        # Of the cards nothing: somebody may have written into them. The next one takes its place.
        *(
            f"{dataset}/{file}"
            for dataset in ("dataset", "dataset.old")
            for file in (
                *("data/*.parquet", "recipe.yaml", "caption.j2", "vocabulary.json", "samples.webp"),
            )
        ),
        *("to_draw/prompts.csv", "to_draw/prompts.txt", "report.html"),
    )

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
        self.reviewed = self.path / "reviewed"

    @property
    def command(self) -> str:
        """The command that goes on with the run."""
        recipe, folder = from_here(self.recipe), from_here(self.path)
        return shlex.join(["regforge", "run", str(recipe), "--out", str(folder)])


class TrainingFolder(RecipeFolder):
    """The folder of a training recipe's run."""

    notes = ("recipe.yaml", "log.jsonl", "tracking/**/*")
    made = (
        *("checkpoints/step-*/*.safetensors", "checkpoints/step-*/state.json"),
        *("validation/step-*.webp", "images/[0-9]*.webp", "samples.webp", "loss.svg"),
        *(
            f"{place}{file}"
            for place in ("", "snapshots/step-*/")
            for file in (
                *("lora/pytorch_lora_weights.safetensors", "lora/*-kohya.safetensors"),
                *("model/model_index.json", "model/*/*", "embedding/*.safetensors"),
            )
        ),
    )


def _held(lock: Path) -> int | None:
    """An open file that holds the lock, which is always free on systems without `fcntl`.

    None if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return None
        # Whoever held it before deletes it: it may be another file by now, or none.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), lock.stat()):
                return handle
        os.close(handle)
