"""Which phrase stands in which slot of which row: seeded designs that cover the phrases evenly.

Rows are numbered 0, 1, 2, ... without end, and every draw is a function of (seed, prompt set, slot,
row) alone. So row 7 is the same whether 10 or a million rows are made, and adding or reordering
slots leaves the draws of the others alone.

    random bits  a hash of (key, counter): any row's bits without those before it
    sample       rows in blocks as long as the slot has values; each block holds every value once,
                 in an order of its own; with weights, strata of the unit interval
    cycle, grid  one value after the other; every combination of the grid slots in turn
    redraw       values that do not go together are replaced by others that do
    left out     a slot that is in a share of the captions alone: spread numbers of its own

Two sampled slots are ordered independently and never meet the same pair twice within a block, so
that pairs are met at least as evenly as in independent random draws. Draws are the same on every
platform and with every numpy: wrapping 64-bit integers, stable sorts, single float operations.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

Values = Mapping[str, Ints]
Row = Mapping[str, str]
"""A phrase for each slot."""

Mode = Literal["sample", "grid", "cycle"]

ENUMERABLE = 1_000_000
"""Combinations that are all tried before a set is said to have no more captions."""

_REDRAWS = 8
"""How often a row's clashing slots are drawn again before the row is given up."""
_CHUNK = 4096
_PATIENCE = 1000
_PATIENCE_COMPOSED = 200


def random_bits(key: str, start: int, stop: int) -> npt.NDArray[np.uint64]:
    """Draw 64 bits for each counter in [start, stop): the SplitMix64 generator, entered anywhere.

    Streams of different keys are independent.
    """
    origin = np.frombuffer(hashlib.sha256(key.encode()).digest()[:8], dtype="<u8").astype(np.uint64)
    counters = np.arange(start, stop, dtype=np.uint64)
    bits = origin + counters * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = bits ^ (bits >> np.uint64(31))
    return mixed


def uniform(key: str, start: int, stop: int) -> Floats:
    """Draw a number in [0, 1) for each counter in [start, stop)."""
    return (random_bits(key, start, stop) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutations(key: str, size: int, start: int, stop: int) -> Ints:
    """Shuffle 0 ... size-1 for each block number in [start, stop); shape (stop - start, size)."""
    bits = random_bits(key, start * size, stop * size).reshape(-1, size)
    return np.argsort(bits, axis=1, kind="stable")


def even_draws(key: str, size: int, start: int, stop: int) -> Ints:
    """Draw the values of rows [start, stop): each block of `size` rows holds each value once."""
    first, last = start // size, -(-stop // size)
    blocks = permutations(key, size, first, last).ravel()
    return blocks[start - first * size : stop - first * size]


def spread(key: str, strata: int, start: int, stop: int, level: int = 0) -> Floats:
    """Draw numbers in [0, 1) that fill the interval evenly at every scale.

    Each block of `strata` rows has one number in each of as many equal strata, in an order of its
    own. All numbers of a block lie at the same place within their stratum, and the places of the
    blocks are themselves spread in this way. (A van der Corput sequence with shuffled digits.)
    """
    if strata**level >= 2**50:
        return uniform(f"{key}/{level}", start, stop)
    first, last = start // strata, -(-stop // strata)
    order = permutations(f"{key}/{level}", strata, first, last)
    place = spread(key, strata, first, last, level + 1)
    numbers = ((order + place[:, None]) / strata).ravel()
    return numbers[start - first * strata : stop - first * strata]


def weighted_draws(key: str, weights: Sequence[float], start: int, stop: int) -> Ints:
    """Draw the values of rows [start, stop), each as often as its weight says, from the start.

    Evenly spread numbers fall into an interval as often as it is long.
    """
    if len(weights) == 1:
        return np.zeros(stop - start, dtype=np.int64)
    ends = np.cumsum(weights) / math.fsum(weights)
    numbers = spread(key, len(weights), start, stop)
    return np.minimum(np.searchsorted(ends, numbers, side="right"), len(weights) - 1)


class Clashes:
    """Pairs of values that cannot stand in one caption, as tables for many rows at once.

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
        """Tell for each row whether its value of a slot clashes with another; shape (rows,)."""
        clashing = np.zeros(rows, dtype=bool)
        for other, table in self._tables.get(slot, {}).items():
            clashing |= table[values[slot], values[other]]
        return clashing

    def any(self, values: Values, rows: int) -> Bools:
        """Tell for each row whether any two of its values clash; shape (rows,)."""
        clashing = np.zeros(rows, dtype=bool)
        for slot in self._tables:
            clashing |= self.of(slot, values, rows)
        return clashing

    def fitting(self, slot: str, size: int, values: Values, rows: Ints) -> Bools:
        """Tell which values of a slot go with all others of some rows; shape (len(rows), size)."""
        clashing = np.zeros((len(rows), size), dtype=bool)
        for other, table in self._tables.get(slot, {}).items():
            clashing |= table.T[values[other][rows]]
        return ~clashing


@dataclass(frozen=True)
class SlotPlan:
    """How one slot of `size` values is drawn; weights are relative, None for equal ones."""

    name: str
    size: int
    mode: Mode = "sample"
    weights: tuple[float, ...] | None = None


class Design:
    """The rows of one prompt set; those of two sets are independent.

    The order of the plans matters to the grid slots only: the last varies fastest.
    """

    def __init__(
        self, seed: int, prompt_set: str, plans: Sequence[SlotPlan], clashes: Clashes | None = None
    ) -> None:
        self.plans = tuple(plans)
        self.combinations = math.prod(plan.size for plan in self.plans)
        self._key = json.dumps([seed, prompt_set])
        self._clashes = clashes or Clashes()
        # The background is what a caption is about next to the subject; the others give way to it.
        # By name, so that reordering the recipe's slots changes no row.
        drawn = [plan for plan in self.plans if plan.mode == "sample"]
        self._movable = sorted(drawn, key=lambda plan: (plan.name == "background", plan.name))

    def draws(self, start: int, stop: int) -> dict[str, Ints]:
        """Draw the values of rows [start, stop) by slot, whether they go together or not."""
        rows = np.arange(start, stop, dtype=np.int64)
        values: dict[str, Ints] = {}
        stride = 1
        for plan in reversed(self.plans):
            if plan.mode == "cycle":
                values[plan.name] = rows % plan.size
            elif plan.mode == "grid":
                values[plan.name] = _digit(rows, stride, plan.size)
                stride *= plan.size
            elif plan.weights:
                values[plan.name] = weighted_draws(self._slot_key(plan), plan.weights, start, stop)
            else:
                values[plan.name] = even_draws(self._slot_key(plan), plan.size, start, stop)
        return {plan.name: values[plan.name] for plan in self.plans}

    def rows(self, start: int, stop: int) -> tuple[dict[str, Ints], Bools]:
        """Draw the values of rows [start, stop) by slot, clashing ones of sampled slots again.

        Returns:
            The values, and for each row whether they go together now.
        """
        values = self.draws(start, stop)
        for attempt in range(_REDRAWS):
            for plan in self._movable:
                self._redraw(values, plan, start, stop, attempt)
            clashing = self._clashes.any(values, stop - start)
            if not clashing.any():
                break
        return values, ~clashing

    def every_combination(self, start: int, stop: int) -> tuple[dict[str, Ints], Bools]:
        """List combinations [start, stop) of all, each exactly once, shuffled; else as `rows`."""
        total = self.combinations
        step = max(1, int(total * 0.6180339887498949))
        while math.gcd(step, total) > 1:  # a step that shares no divisor visits every number
            step += 1
        numbers = np.arange(start, stop, dtype=np.int64) * step % total
        values: dict[str, Ints] = {}
        stride = 1
        for plan in reversed(self.plans):
            shuffled = permutations(f"{self._slot_key(plan)}/all", plan.size, 0, 1)[0]
            values[plan.name] = shuffled[_digit(numbers, stride, plan.size)]
            stride *= plan.size
        ordered = {plan.name: values[plan.name] for plan in self.plans}
        return ordered, ~self._clashes.any(ordered, stop - start)

    def left_out(self, presence: Mapping[str, float]) -> Iterator[frozenset[str]]:
        """Yield the slots that captions 0, 1, 2, ... do without, each being in a share of them.

        Of captions and not of rows: a row that cannot be used is replaced by one with the same
        slots, so that passing over what was said before takes no slot's share.
        """
        if not presence:
            yield from itertools.repeat(frozenset())
        for start in itertools.count(step=_CHUNK):
            heights = np.stack(
                [spread(f"{self._key}/{s}/presence", 2, start, start + _CHUNK) for s in presence]
            )
            for missing in (heights >= np.array([*presence.values()])[:, None]).T.tolist():
                yield frozenset(itertools.compress(presence, missing))

    def _redraw(
        self, values: dict[str, Ints], plan: SlotPlan, start: int, stop: int, attempt: int
    ) -> None:
        """Give each row where this slot clashes a value that goes with all others of the row."""
        rows = np.flatnonzero(self._clashes.of(plan.name, values, stop - start))
        if not rows.size:
            return
        fitting = self._clashes.fitting(plan.name, plan.size, values, rows)
        if attempt:  # where nothing fits, anything: another slot may fit that
            fitting[~fitting.any(axis=1)] = True
        chances = fitting * np.asarray(plan.weights or [1.0] * plan.size)
        heights = np.cumsum(chances, axis=1)
        lots = uniform(f"{self._slot_key(plan)}/redraw {attempt}", start, stop)[rows]
        chosen = np.argmax(heights > (lots * heights[:, -1])[:, None], axis=1)
        drawn = heights[:, -1] > 0
        values[plan.name][rows[drawn]] = chosen[drawn]

    def _slot_key(self, plan: SlotPlan) -> str:
        return f"{self._key}/{plan.name}"


def _digit(numbers: Ints, stride: int, size: int) -> Ints:
    """The digit of each number in a mixed radix system."""
    if stride > 2**62:
        return np.zeros_like(numbers)
    return numbers // stride % size


@dataclass(frozen=True)
class Rows:
    """The rows of a prompt set as phrases.

    Attributes:
        design: Draws numbers.
        phrases: What the numbers stand for, by slot.
        composed: Phrases for further slots of each row, which win over drawn ones.
        presence: The share of the captions that a slot is in, where that is not all.
        enumerable: With more combinations than these, not all of them are tried.
    """

    design: Design
    phrases: Mapping[str, Sequence[str]]
    composed: Iterator[Row] | None = None
    presence: Mapping[str, float] = field(default_factory=dict)
    enumerable: int = ENUMERABLE

    def phases(self) -> Iterator[tuple[Iterator[Row | None], int | None]]:
        """Yield the design's rows, then every combination once, so that "no more" is a fact.

        Yields:
            Rows (None for one whose phrases do not go together), and after how many useless ones
            in a row it is time for the next phase; None where these are all combinations.
        """
        designed = self._read(self.design.rows)
        if self.composed is not None:
            yield _joined(designed, self.composed), _PATIENCE_COMPOSED
            return
        yield designed, _PATIENCE
        total = self.design.combinations
        if total <= self.enumerable and not self.presence:  # whose captions have fewer slots
            yield self._read(self.design.every_combination, total), None

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
        elif (written := next(composed, None)) is not None:
            yield {**row, **written}
        else:
            return


def apportion(shares: Mapping[str, float]) -> Iterator[str]:
    """Assign each row to a prompt set, without end.

    Any number of rows has every share within one row: Tijdeman's solution of the chairman
    assignment problem (Discrete Mathematics 32, 1980). Of the sets that are behind their share,
    the next row goes to the one that would first be too far behind.

    Args:
        shares: Shares above 0, which need not sum to 1.
    """
    total = math.fsum(shares.values())
    parts = {name: share / total for name, share in shares.items() if share > 0}
    if len(parts) == 1:
        yield from itertools.repeat(next(iter(parts)))
    slack = 1 / (2 * len(parts) - 2)
    given = dict.fromkeys(parts, 0)
    row = 0
    while True:
        row += 1
        behind = [name for name, part in parts.items() if part * row - given[name] >= slack]
        # Rounding may hide that somebody is behind; somebody always is.
        behind = behind or [max(parts, key=lambda name: parts[name] * row - given[name])]
        name = min(behind, key=lambda name: (1 - slack + given[name]) / parts[name])
        given[name] += 1
        yield name
