"""The rows of a prompt set as phrases, one after the other, until there are no more.

First the design's rows, without end. Where these bring nothing new any more, every combination that
there is, once, so that "no more captions" is a fact and not a guess. Knows nothing about captions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from regforge.prompts.sampling import Bools, Design, Ints

Row = Mapping[str, str]
"""A phrase for each slot."""

_CHUNK = 4096
_PATIENCE = 1000
_PATIENCE_COMPOSED = 200
ENUMERABLE = 1_000_000
"""Combinations that are all tried before a set is said to have no more captions."""


@dataclass(frozen=True)
class Phase:
    """One way of finding rows.

    Attributes:
        rows: The rows; None stands for one whose phrases do not go together.
        patience: After so many useless rows in a row it is time for the next phase; None for a
            phase that ends by itself.
        complete: Whether it goes through every combination.
    """

    rows: Iterator[Row | None]
    patience: int | None
    complete: bool = False


@dataclass(frozen=True)
class Rows:
    """Where the rows of a set come from.

    Attributes:
        design: Draws numbers.
        phrases: What the numbers stand for, by slot.
        composed: Phrases for further slots, a mapping for each row, which win over drawn ones.
        enumerable: With more combinations than these, not all of them are tried.
    """

    design: Design
    phrases: Mapping[str, Sequence[str]]
    composed: Iterator[Row] | None = None
    enumerable: int = ENUMERABLE

    def phases(self) -> Iterator[Phase]:
        """The phases, one after the other."""
        designed = self._read(self.design.rows)
        if self.composed is not None:
            yield Phase(_joined(designed, self.composed), _PATIENCE_COMPOSED)
            return
        yield Phase(designed, _PATIENCE)
        total = self.design.combinations
        if total <= self.enumerable:
            yield Phase(self._read(self.design.every_combination, total), None, complete=True)

    def sizes(self) -> dict[str, int]:
        """How many phrases each drawn slot has."""
        return {plan.name: plan.size for plan in self.design.plans}

    def _read(
        self, draw: Callable[[int, int], tuple[dict[str, Ints], Bools]], end: int | None = None
    ) -> Iterator[Row | None]:
        """Rows [0, end) as phrases, drawn some thousands at a time."""
        for start in itertools.count(step=_CHUNK):
            if end is not None and start >= end:
                return
            stop = start + _CHUNK if end is None else min(start + _CHUNK, end)
            values, fits = draw(start, stop)
            names = list(values)
            columns = [[self.phrases[name][n] for n in values[name].tolist()] for name in names]
            texts = zip(*columns, strict=True) if columns else itertools.repeat(())
            for fit, row in zip(fits.tolist(), texts, strict=False):
                yield dict(zip(names, row, strict=True)) if fit else None


def _joined(designed: Iterator[Row | None], composed: Iterator[Row]) -> Iterator[Row | None]:
    for row in designed:
        if row is None:
            yield None
            continue
        written = next(composed, None)
        if written is None:
            return
        yield {**row, **written}
