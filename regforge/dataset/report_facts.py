"""Counts what the report shows: coverage, close pairs, groups of reasons, cost and time.

Functions from rows and journal entries to plain values. Journal entries may lack any field: what is
not known is reported as unknown, never counted as 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regforge.journal import calls
from regforge.records import ImageRow
from regforge.words import dollars

SET_AXIS = "set"
"""Key of the prompt set among the axes; slots are `slot.NAME`, so that no slot can clash."""

MOST_PAIRS = 24
"""Closest pairs that the report shows."""

_ID = re.compile(r"\b[0-9a-f]{12}-\d{6,}\b")
_BRACKETS = re.compile(r"\s*\([^()]*\)")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often each value of one axis occurs."""

    key: str  # `set`, or `slot.NAME`
    label: str
    counts: tuple[tuple[str, int], ...]  # from most to least; 0 for values on offer and not used
    without: int  # images that have no value here


@dataclass(frozen=True, slots=True)
class Spending:
    """What the calls to one model came to; None where no call tells."""

    model: str
    calls: int
    failed: int  # calls among them that were answered with an error or not at all
    cached: int  # replies that were on disk already
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float | None  # waiting time of all calls together
    cost: float | None  # US dollars of the calls whose price is known
    unpriced: int  # answered calls whose price is not known
    unanswered: int  # failed calls that may be billed all the same

    @property
    def cost_text(self) -> str:
        """Such as `$0.42`, `unknown`, or both."""
        text = dollars(self.cost)
        for count, what in (
            (self.unpriced if self.cost is not None else 0, "of unknown price"),
            (self.unanswered, "without an answer that may be billed"),
        ):
            if count:
                text += f" + {'1 call' if count == 1 else f'{count} calls'} {what}"
        return text


def known_cost(calls: Sequence[Spending]) -> float | None:
    """US dollars of all calls together; None if the price of an answered one is not known."""
    if any(each.cost is None or each.unpriced for each in calls):
        return None
    return sum(each.cost or 0.0 for each in calls)


def cost_in_all(calls: Sequence[Spending]) -> str:
    """Such as `$0.42`, `over $0.42` where some prices are not known, or `unknown`."""
    known = sum(each.cost or 0.0 for each in calls)
    if not any(each.cost is None or each.unpriced or each.unanswered for each in calls):
        return dollars(known)
    return f"over {dollars(known)}" if known else dollars(None)


def axis_values(row: ImageRow, slots: Sequence[str]) -> dict[str, str | None]:
    """The row's value on every axis: the prompt set first, then the slots."""
    in_slots = {f"slot.{name}": row.slots.get(name) or None for name in slots}
    return {SET_AXIS: row.prompt_set, **in_slots}


def coverage(
    rows: Sequence[ImageRow], slots: Sequence[str], offered: Mapping[str, Sequence[str]]
) -> list[Coverage]:
    """Count every value of the prompt set, and of every slot with one in some row or on offer.

    `offered` has the phrases by slot that captions could have used.
    """
    counters: dict[str, Counter[str | None]] = {SET_AXIS: Counter()}
    for name in slots:
        counters[f"slot.{name}"] = Counter(dict.fromkeys(offered.get(name, ()), 0))
    for row in rows:
        for key, value in axis_values(row, slots).items():
            counters[key][value] += 1
    found = []
    for key, counter in counters.items():
        without = counter.pop(None, 0)
        # Counter.most_common keeps the order of first sight among equals, which looks random.
        counts = sorted(((str(v), n) for v, n in counter.items()), key=lambda x: (-x[1], x[0]))
        if counts:
            label = "prompt set" if key == SET_AXIS else key.removeprefix("slot.")
            found.append(Coverage(key, label.replace("_", " "), tuple(counts), without))
    return found


def pair_counts(
    rows: Sequence[ImageRow], slots: Sequence[str], axes: Sequence[Coverage], most: int
) -> dict[str, list[list[int]]]:
    """Count how often two values occur together, of the `most` frequent ones of each axis.

    Returns:
        `first axis|second axis` -> counts, a row per value of the first and a column per value of
        the second axis, in the order of `axes` and their counts.
    """
    numbers = {
        axis.key: {value: i for i, (value, _) in enumerate(axis.counts[:most])} for axis in axes
    }
    codes = np.full((len(axes), len(rows)), -1, np.int64)
    for column, row in enumerate(rows):
        values = axis_values(row, slots)
        for line, axis in enumerate(axes):
            codes[line, column] = numbers[axis.key].get(values[axis.key] or "", -1)
    pairs = {}
    for a, first in enumerate(axes):
        for b in range(a + 1, len(axes)):
            shape = (len(numbers[first.key]), len(numbers[axes[b].key]))
            both = (codes[a] >= 0) & (codes[b] >= 0)
            flat = np.bincount(
                codes[a][both] * shape[1] + codes[b][both], minlength=int(np.prod(shape))
            )
            pairs[f"{first.key}|{axes[b].key}"] = flat.reshape(shape).tolist()
    return pairs


def closest_pairs(rows: Sequence[ImageRow], most: int = MOST_PAIRS) -> list[tuple[int, int, int]]:
    """The kept images that look most alike, of those with a `duplicate_distance`.

    Returns:
        (position in `rows`, position in `rows`, bits in which the perceptual hashes differ),
        closest first; no pair twice.
    """
    measured = sorted(
        (distance, position)
        for position, row in enumerate(rows)
        if (distance := row.scores.get("duplicate_distance")) is not None
    )
    if len(rows) < 2:
        return []
    hashes = np.array([int(row.perceptual_hash or "0", 16) for row in rows], np.uint64)
    pairs: dict[tuple[int, int], int] = {}
    for _, position in measured[: 2 * most]:
        bits = np.bitwise_count(hashes ^ hashes[position])
        bits[position] = 255  # not its own neighbour
        other = int(bits.argmin())
        pairs[min(position, other), max(position, other)] = int(bits[other])
    ordered = sorted((bits, first, second) for (first, second), bits in pairs.items())
    return [(first, second, bits) for bits, first, second in ordered[:most]]


def choose_shown(rows: Sequence[ImageRow], most: int) -> list[int]:
    """Positions of the images for the gallery, ascending.

    Where there are more than `most`: the closest pairs, one image of every value of every slot,
    and for the rest an even sample of the rows ordered by prompt set and slots, so that every
    prompt set and phrase keeps its share.
    """
    if len(rows) <= most:
        return list(range(len(rows)))
    slots = list(dict.fromkeys(name for row in rows for name in row.slots))
    values = [axis_values(row, slots) for row in rows]
    firsts: dict[tuple[str, str | None], int] = {}
    for position, each in enumerate(values):
        for item in each.items():
            firsts.setdefault(item, position)
    wanted = [each for pair in closest_pairs(rows) for each in pair[:2]] + list(firsts.values())
    chosen = set(list(dict.fromkeys(wanted))[:most])
    ordered = sorted(
        (position for position in range(len(rows)) if position not in chosen),
        key=lambda position: [value or "" for value in values[position].values()],
    )
    room = most - len(chosen)
    return sorted({*chosen, *(ordered[n * len(ordered) // room] for n in range(room))})


def reason_kind(reason: str) -> str:
    """A reason without ids, numbers and what stands in brackets: like reasons fall together."""
    return _NUMBER.sub("…", _ID.sub("…", _BRACKETS.sub("", reason))).strip()


def image_id_in(reasons: Iterable[str]) -> str | None:
    """The first image id that the reasons name, such as that of a duplicate's original."""
    found = _ID.search(" ".join(reasons))
    return found.group() if found else None


def spending(log: Iterable[Mapping[str, Any]], event: str) -> list[Spending]:
    """What `llm_call` or `image_call` events came to, by model, dearest first."""
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for entry in calls(log, event):
        by_model.setdefault(str(entry.get("model") or "unknown model"), []).append(entry)
    found = [_spent(model, entries) for model, entries in by_model.items()]
    return sorted(found, key=lambda each: (-(each.cost or 0), each.model))


def _spent(model: str, entries: Sequence[Mapping[str, Any]]) -> Spending:
    made = [entry for entry in entries if not entry.get("cached")]
    answered = [entry for entry in made if entry.get("error") is None]
    cost = _total(answered or made, "cost")  # refused calls say that they cost nothing
    sent, received = _total(made, "prompt_tokens"), _total(made, "completion_tokens")
    return Spending(
        model=model,
        calls=len(made),
        failed=len(made) - len(answered),
        cached=len(entries) - len(made),
        prompt_tokens=None if sent is None else int(sent),
        completion_tokens=None if received is None else int(received),
        seconds=_total(made, "seconds"),
        cost=cost if made else 0.0,
        unpriced=sum(number(entry.get("cost")) is None for entry in answered),
        unanswered=sum("may_cost" in entry for entry in made),
    )


def stage_seconds(log: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by stage over all sessions of the run, in the order of their first entry."""
    seconds: dict[str, float] = {}
    for entry in log:
        value = number(entry.get("seconds"))
        if entry.get("event") == "stage" and value is not None:
            stage = str(entry.get("stage") or "other")
            seconds[stage] = seconds.get(stage, 0.0) + value
    return seconds


def rendered(log: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, float]]:
    """Batch size -> (images, seconds) of what was drawn, refused images included."""
    speed: dict[str, tuple[int, float]] = {}
    for entry in log:
        images, seconds = number(entry.get("images")), number(entry.get("seconds"))
        if entry.get("event") == "rendered" and images is not None and seconds is not None:
            size = str(entry.get("batch_size") or "unknown")
            before = speed.get(size, (0, 0.0))
            speed[size] = (before[0] + int(images), before[1] + seconds)
    return speed


def _total(entries: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """Sum of a field over the entries that have it; None if none has."""
    values = list(numbers(entry.get(key) for entry in entries))
    return sum(values) if values else None


def numbers(values: Iterable[Any]) -> Iterator[float]:
    """Those of the values that are finite numbers."""
    return (known for value in values if (known := number(value)) is not None)


def number(value: Any) -> float | None:
    """The value if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if np.isfinite(value) else None


def distinct(values: Iterable[str | None]) -> str:
    """The different values, most frequent first and not more than three."""
    found = [value for value, _ in Counter(value for value in values if value).most_common()]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
