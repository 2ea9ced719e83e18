"""A dataset whose files have been found: reads them, and keeps the notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from regforge.dataset.sources.cards import Card
from regforge.dataset.sources.choosing import Choice, choose
from regforge.dataset.sources.findings import Findings
from regforge.dataset.sources.folders import FolderReader
from regforge.dataset.sources.interface import CannotOpen
from regforge.dataset.sources.tables import TableReader
from regforge.dataset.sources.tars import TarReader
from regforge.dataset.sources.trees import Tree, ZipTree
from regforge.records import Example


class Reader(Protocol):
    """Reads one layout.

    Attributes:
        layout: See `CaptionedDataset`.
        slots: See `CaptionedDataset`.
        notes: What is known before anything is read, a sentence each.
    """

    layout: str
    slots: tuple[str, ...]
    notes: list[str]

    def read(self, *, images: bool, findings: Findings) -> Iterator[Example]:
        """The images; what is found on the way goes into `findings`."""
        ...


@dataclass
class Opened:
    """A `CaptionedDataset`; see there."""

    name: str
    layout: str
    revision: str | None
    license: str | None
    slots: tuple[str, ...]
    run: Path | None
    notes: list[str]
    _reader: Reader = field(repr=False)

    def examples(self, *, images: bool = True) -> Iterator[Example]:
        """See `CaptionedDataset.examples`."""
        findings = Findings()
        ids: dict[str, int] = {}
        for example in self._reader.read(images=images, findings=findings):
            count = ids[example.id] = ids.get(example.id, 0) + 1
            if count > 1:  # one image with two captions, or two archives with the same names
                example = _renamed(example, ids, count)
            findings.saw(example)
            yield example
        self.notes[:] = [*self._reader.notes, *findings.sentences()]
        if not findings.images:
            raise CannotOpen(f"{self.name} holds no image that can be read.", hint=_why(findings))


def _renamed(example: Example, ids: dict[str, int], count: int) -> Example:
    name = f"{example.id}#{count}"
    while name in ids:
        name += "'"
    ids[name] = 1
    return replace(example, id=name)


def _why(findings: Findings) -> str | None:
    return " ".join(findings.sentences()[:1]) or None


def open_tree(
    tree: Tree,
    choice: Choice,
    card: Card,
    *,
    name: str,
    caption_column: str | None,
    revision: str | None = None,
    run: Path | None = None,
    notes: Sequence[str] = (),
) -> Opened:
    """Open the files of a dataset, and read its first image.

    Raises:
        CannotOpen: A file is damaged, or there is no image that can be read.
        HubError: The Hub does not give one.
    """
    reader = _reader(tree, choice, name, caption_column)
    reader.notes[:0] = notes
    opened = Opened(
        name=name,
        layout=reader.layout,
        revision=revision,
        license=card.license,
        slots=reader.slots,
        run=run,
        notes=list(reader.notes),
        _reader=reader,
    )
    next(opened.examples(images=False), None)  # so that what cannot be read is told at once
    return opened


def _reader(tree: Tree, choice: Choice, name: str, asked: str | None) -> Reader:
    if choice.kind == "parquet":
        return TableReader(tree, choice, asked)
    if choice.kind == "tar":
        return TarReader(tree, choice, asked)
    if choice.kind == "images":
        return FolderReader(tree, choice, asked)
    inside = ZipTree(tree, choice.data)
    chosen = choose(inside.files, Card(), name)
    if chosen.kind != "images":
        raise CannotOpen(
            f"{name} holds {chosen.kind} files in .zip archives.", hint="Unpack them first."
        )
    reader = FolderReader(inside, chosen, asked)
    reader.layout = "zip"
    reader.notes[:0] = choice.notes
    return reader
