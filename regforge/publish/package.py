"""Chooses what of a dataset's folder goes to the Hub, and checks that a reader will get it whole.

Goes: regforge's own files, and what the user put beside them. Stays: hidden files, links that lead
out of the folder. Refused, before anything is uploaded: a folder whose reader would get something
else than the dataset, and text that looks like a token. What a repository holds already that is
not regforge's stays as it is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from regforge.dataset.build import OUR_FILES
from regforge.dataset.card import DATA_FILES
from regforge.dataset.card_parts import Card, merged
from regforge.dataset.parquet import NoDataset, data_files
from regforge.hub import Contents, Remote
from regforge.journal import Reporter
from regforge.publish.reader_check import (
    Expected,
    NotPublishable,
    check_card,
    check_files,
    check_rows,
)
from regforge.publish.requirements import CARD, card_of, check_other, refuse_secrets

_TEXT_SAMPLE = 8192
_ALSO_READ = frozenset({"dataset_infos.json", ".huggingface.yaml"})
"""What `datasets` reads besides README.md and the data, if a repository has it."""


@dataclass
class Package:
    """A dataset that is ready for the Hub."""

    name: str  # the repository's, without its owner
    files: Mapping[str, Path]  # by path in the repository
    expected: Expected
    notes: list[str]  # what people should know, a sentence each
    hub_notes: list[str] = field(default_factory=list)  # about what was in the repository before

    @property
    def own_files(self) -> list[str]:
        """Files that are not regforge's: the user put them there."""
        return [path for path in self.files if not _is_ours(path)]

    def check(self, reporter: Reporter) -> None:
        """Load the dataset as its readers will, all of it.

        Raises:
            NotPublishable: A reader would get something else.
            ParquetError: A file is damaged.
        """
        with _staged(self.files, {}, self.name) as folder:
            check_files(folder, self.expected)
            with reporter.task("checking", self.expected.rows, "images") as task:
                self.notes += check_rows(folder, self.expected, task.advance)

    def contents(self, remote: Remote) -> Contents:
        """What the repository shall hold, given what it holds; see `hub.publish_files`.

        Raises:
            RepositoryTaken: It holds something that regforge did not make; with our card beside
                it, `load_dataset` would give its readers our dataset.
            NotPublishable: A file there would change what a reader gets.
        """
        theirs = card_of(remote, self.files, "dataset")
        card, self.hub_notes = merged(_text_of(self.files[CARD]), theirs)
        stale = [path for path in remote.files if _is_ours(path) and path not in self.files]
        others = {
            path: (remote.read(path) or b"") if path in _ALSO_READ else b""
            for path in remote.files
            if path not in self.files and path not in stale
        }
        files: dict[str, Path | bytes] = {**self.files, CARD: card.encode()}
        if others:
            with _staged(files, others, self.name) as folder:
                check_files(folder, self.expected)
        return Contents(files, tuple(sorted(stale)))


def _is_ours(path: str) -> bool:
    return path in OUR_FILES or fnmatchcase(path, DATA_FILES)


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def pack(
    folder: Path, name: str, *, rows: int, recipe_digest: str, slots: tuple[str, ...]
) -> Package:
    """Choose the files of a dataset, and check those that are read in an instant.

    Raises:
        NoDataset: The data is not complete.
        NotPublishable: Something in it would make a reader's dataset wrong, or is a secret.
        StorageError, ParquetError: A file cannot be read.
    """
    notes: list[str] = []
    data = tuple(path.relative_to(folder).as_posix() for path in data_files(folder))
    files = dict(_publishable(folder, notes))
    if CARD not in files:
        raise NoDataset(f"{folder} has no card.", hint="Run the recipe again: it is written anew.")
    for path, file in files.items():
        _refuse_secrets(path, file)
    card = _text_of(files[CARD])
    content = check_card(card, slots)
    front = Card.parse(card).front
    _check_license(front.get("license"), front, files)
    return Package(name, files, Expected(rows, recipe_digest, slots, data, content), notes)


def check_license(folder: Path, license_id: str) -> None:
    """Check that a dataset's card says all that a licence needs, before that becomes its own.

    Raises:
        NotPublishable: It does not say which one `other` is.
    """
    files = dict(_publishable(folder, []))
    if CARD in files:
        _check_license(license_id, Card.parse(_text_of(files[CARD])).front, files)


def _check_license(license_id: Any, front: Mapping[str, Any], files: Iterable[str]) -> None:
    where = f"dataset/{CARD}; the link is a URL, or LICENSE with that file beside the card"
    check_other(license_id, front, where, NotPublishable)
    link = front.get("license_link", "")
    if license_id == "other" and "://" not in link and link not in files:
        raise NotPublishable(
            f"{CARD}: `license_link` names {link}, and there is no such file beside it.",
            hint="Put it into the dataset's folder, or give a URL.",
        )


def _publishable(folder: Path, notes: list[str]) -> Iterator[tuple[str, Path]]:
    """The files that go, by name; what stays is noted."""
    inside = folder.resolve()
    for top, folders, files in os.walk(folder):
        here = Path(top)
        linked = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in linked)
        for name in sorted([*linked, *files]):
            path = here / name
            if name.startswith("."):
                continue
            if path.is_file() and path.resolve().is_relative_to(inside):
                yield path.relative_to(folder).as_posix(), path
            else:
                what = "a link" if path.is_symlink() else "no file"
                notes.append(f"{path.relative_to(folder)} is not published: it is {what}.")


def _refuse_secrets(name: str, path: Path) -> None:
    try:
        with path.open("rb") as stream:
            if b"\0" in stream.read(_TEXT_SAMPLE):
                return  # an image, Parquet: not written by hand
            stream.seek(0)
            lines = (raw.decode(errors="replace") for raw in stream)
            refuse_secrets(name, lines, NotPublishable)
    except OSError as error:
        raise NotPublishable(f"{path} cannot be read: {error.strerror or error}.") from error


@contextmanager
def _staged(
    files: Mapping[str, Path | bytes], others: Mapping[str, bytes], name: str
) -> Iterator[Path]:
    """Lay out a temporary folder of links that looks as the repository will.

    Its name is the repository's: `datasets` looks for a script of that name.
    """
    with tempfile.TemporaryDirectory(prefix="regforge-staged-") as top:
        folder = Path(top).resolve() / name
        for path, content in {**others, **files}.items():
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                continue  # no file of anybody's dataset
            try:
                _put(content, folder / path)
            except OSError as error:
                raise NotPublishable(
                    f"{path} cannot stand beside what else the repository would hold."
                ) from error
        yield folder


def _put(content: Path | bytes, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        target.write_bytes(content)
        return
    try:
        target.symlink_to(content.resolve())
    except OSError:  # Windows lets only some people make links
        shutil.copyfile(content, target)
