"""The rows of a run as a dataset that can be audited, before or without the finished dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from regforge.audit.run_facts import run_facts
from regforge.records import Example, ImageRow

_OWN = frozenset("image text width height class_noun kind prompt_set slots id".split())
_METADATA = tuple(each.name for each in fields(ImageRow) if each.name not in _OWN)


class StoredRows:
    """A `CaptionedDataset` of rows that are in memory already, without their images.

    Args:
        name: The dataset's.
        rows: All of it.
        run: The run's folder.
    """

    def __init__(self, name: str, rows: Sequence[ImageRow], run: Path) -> None:
        self.name = name
        self.layout = "regforge"
        self.revision: str | None = None
        self.license: str | None = run_facts(run).license
        self.slots: tuple[str, ...] = tuple(dict.fromkeys(n for row in rows for n in row.slots))
        self.run: Path | None = run
        self.notes: list[str] = []
        self._rows = rows

    def examples(self, *, images: bool = True) -> Iterator[Example]:
        """The rows; their images only if they have them, whatever is asked for."""
        for row in self._rows:
            yield Example(
                id=row.id,
                image=row.image if images else b"",
                text=row.text,
                width=row.width,
                height=row.height,
                class_noun=row.class_noun,
                kind=row.kind,
                prompt_set=row.prompt_set,
                slots=row.slots,
                metadata={name: getattr(row, name) for name in _METADATA},
            )
