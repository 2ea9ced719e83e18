"""Which values of two slots do not go together, as tables that answer for many rows at once.

Knows the numbers of values, and the vocabulary's pairs of phrases only while it is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Values = Mapping[str, npt.NDArray[np.int64]]
Bools = npt.NDArray[np.bool_]


class Clashes:
    """Pairs of values that cannot stand in one caption.

    Args:
        phrases: The phrases of each slot, in the order of their numbers.
        pairs: (slot, phrase, other slot, phrase there); pairs with a phrase or a slot that is not
            in `phrases` are left out.
    """

    def __init__(
        self,
        phrases: Mapping[str, Sequence[str]] | None = None,
        pairs: Iterable[tuple[str, str, str, str]] = (),
    ) -> None:
        known = phrases or {}
        numbers = {slot: {text: n for n, text in enumerate(texts)} for slot, texts in known.items()}
        # (slot, other) -> table[value, value there]; each pair of slots stands in it both ways.
        self._tables: dict[str, dict[str, Bools]] = {}
        for slot, phrase, other, there in pairs:
            here, beyond = numbers.get(slot, {}).get(phrase), numbers.get(other, {}).get(there)
            if here is None or beyond is None or slot == other:
                continue
            if other not in self._tables.setdefault(slot, {}):
                table = np.zeros((len(known[slot]), len(known[other])), dtype=bool)
                self._tables[slot][other] = table
                self._tables.setdefault(other, {})[slot] = table.T
            self._tables[slot][other][here, beyond] = True

    def of(self, slot: str, values: Values, rows: int) -> Bools:
        """For each row, whether its value of a slot clashes with another slot's; shape (rows,)."""
        clashing = np.zeros(rows, dtype=bool)
        for other, table in self._tables.get(slot, {}).items():
            clashing |= table[values[slot], values[other]]
        return clashing

    def any(self, values: Values, rows: int) -> Bools:
        """For each row, whether any two of its values clash; shape (rows,)."""
        clashing = np.zeros(rows, dtype=bool)
        for slot in self._tables:
            clashing |= self.of(slot, values, rows)
        return clashing

    def fitting(self, slot: str, size: int, values: Values, rows: npt.NDArray[np.int64]) -> Bools:
        """Which values of a slot go with all other slots of some rows; shape (len(rows), size)."""
        clashing = np.zeros((len(rows), size), dtype=bool)
        for other, table in self._tables.get(slot, {}).items():
            clashing |= table.T[values[other][rows]]
        return ~clashing
