"""How evenly the phrases of each slot are used, and whether two slots always go together.

A slot whose phrases are all used, equally often and independently of the others, teaches the model
that none of them belongs to the class.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regforge.auditing.captions import entropy
from regforge.auditing.gathering import (
    MOST_EXAMPLES,
    Check,
    Gathered,
    Grade,
    of,
    percent,
    ratio,
    shortened,
    worse,
)
from regforge.prompts.against import ATTRIBUTES

UNEVEN = 0.7
VERY_UNEVEN = 0.4
"""Evenness below which a slot is worth a look, and below which it is bad."""

UNUSED = 0.1
"""Share of phrases on offer that no caption uses, where there were images enough for all."""

TOGETHER = 0.5
"""Dependence of two slots from which on they are worth a look."""

_SHUFFLES = 5
_LEAST_BITS = 0.1  # with less to tell by, dependence is noise


def coverage(found: Gathered, offered: Mapping[str, Sequence[str]]) -> Check:
    """How evenly every slot's phrases are used.

    Evenness is Pielou's J (J. Theor. Biol. 13, 1966): Shannon's entropy of the phrases' counts over
    the largest that could be, ln(min(phrases, images)). 1 is perfectly even, 0 is one phrase for
    all. Phrases that were on offer (by slot, where known) and not used count among the phrases.
    """
    slots = {name: _facts(v, offered.get(name, ())) for name, v in found.slots.items()}
    numbers = {"slots": slots}
    used = {name: facts for name, facts in slots.items() if facts["distinct"]}
    if not used:
        finding = "No caption has a phrase in any slot."
        return Check("slot coverage", "look", finding, numbers=numbers)
    shown = []
    for name, facts in used.items():
        evenness = "fixed" if facts["evenness"] is None else f"{facts['evenness']:.2f}"
        left_out = f", {percent(facts['without_share'], 1)} without" if facts["without"] else ""
        shown.append(f"{name} {facts['distinct']:,} ({evenness}{left_out})")
    finding = f"Different phrases, and evenness from 0 to 1: {', '.join(shown)}"
    if unused := sum(facts["unused"] for facts in slots.values()):
        finding += f"; {unused:,} phrases on offer are in no caption"
    grades = {name: _grade(facts, len(found.ids)) for name, facts in slots.items()}
    poor = [name for name, grade in grades.items() if grade != "good"]
    tops = [(name, Counter(v for v in found.slots[name] if v).most_common(1)) for name in poor]
    shown = [f"{name}: {top[0][0]} ({top[0][1]:,})" for name, top in tops[:MOST_EXAMPLES] if top]
    why = "phrases are few, unused, used unevenly, or left out of most captions"
    advice = f"Look at {', '.join(poor)}: {why}." * bool(poor)
    return Check("slot coverage", worse(*grades.values()), f"{finding}.", advice, numbers, shown)


def _facts(values: Sequence[str | None], offered: Sequence[str]) -> dict[str, Any]:
    counts = Counter(value for value in values if value is not None)
    total, kinds = counts.total(), len(set(offered))
    unused = len(set(offered) - counts.keys())
    most = min(len(counts) + unused, total)
    top, top_count = counts.most_common(1)[0] if counts else (None, 0)
    return {
        "distinct": len(counts),
        "offered": kinds or None,
        "unused": unused,
        "without": len(values) - total,
        "without_share": ratio(len(values) - total, len(values)),
        "evenness": round(entropy(counts.values()) / math.log(most), 3) if most > 1 else None,
        "top": top,
        "top_share": ratio(top_count, total),
    }


def _grade(facts: Mapping[str, Any], total: int) -> Grade:
    """A slot with a single phrase, and no other on offer, was meant to be so."""
    evenness, offered = facts["evenness"], facts["offered"] or 0
    if evenness is not None and evenness < VERY_UNEVEN:
        return "bad"
    unused = total - facts["without"] >= offered and facts["unused"] > UNUSED * offered
    left_out = facts["without_share"] > 0.5
    return "look" if unused or left_out or (evenness or 1.0) < UNEVEN else "good"


def followed(found: Gathered) -> Check | None:
    """Photos' captions in which attributes were not varied; None if no captions were followed.

    The captions state these attributes, or do not say for sure which words are about the subject.
    """
    photos: dict[str, list[int]] = {}
    for number, name in enumerate(found.sets):
        if name == "against":
            photos.setdefault(found.references[number] or "", []).append(number)
    if not photos:
        return None
    attributes = [name for name in ATTRIBUTES if name in found.slots]
    kept = {
        photo: names
        for photo, rows in photos.items()
        if (names := [name for name in attributes if not any(found.slots[name][n] for n in rows)])
    }
    numbers = {"photos": len(photos), "not_varied": kept}
    finding = f"Of {of(len(kept), len(photos), 'photos')} the captions state what the subject "
    finding += "looks like, and that was not varied."
    advice = "What always comes with the class is learned as part of it: shorten these captions to "
    advice += "what is around the subject."
    if not kept:
        finding, advice = "All attributes are varied.", ""
    shown = [
        f"{photo}: {', '.join(names)}: {shortened(found.texts[photos[photo][0]] or '', 80)}"
        for photo, names in list(kept.items())[:MOST_EXAMPLES]
    ]
    return Check("followed captions", "look" if kept else "good", finding, advice, numbers, shown)


def pairs(found: Gathered) -> Check:
    """Whether two slots depend on one another.

    Dependence is mutual information over the smaller of the two entropies, less what shuffled
    columns have by chance (as in the adjusted mutual information of Vinh, Epps and Bailey, JMLR 11,
    2010, with the chance estimated from shuffles): 0 is independent, 1 is always together.
    """
    columns = {name: _codes(values) for name, values in found.slots.items()}
    dependence = {
        f"{first}, {second}": round(value, 3)
        for (first, a), (second, b) in combinations(columns.items(), 2)
        if (value := _dependence(a, b)) is not None
    }
    numbers = {"dependence": dependence}
    if not dependence:
        return Check("slot pairs", "unknown", "Too few phrases or images to tell.", numbers=numbers)
    ranked = sorted(dependence.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{names.replace(', ', ' and ')} ({value:.2f} of 1)" for names, value in ranked]
    tied = sum(value >= TOGETHER for value in dependence.values())
    more = f"; {tied - 3:,} more pairs" if tied > 3 else ""
    finding = f"These go together: {', '.join(shown[: min(tied, 3)])}{more}."
    advice = "What always comes together is learned as one thing: combine the phrases freely."
    if not tied:
        finding = f"The slots vary freely of one another; the most dependent are {shown[0]}."
        advice = ""
    return Check("slot pairs", "look" if tied else "good", finding, advice, numbers)


def _codes(values: Sequence[str | None]) -> NDArray[np.int64]:
    """Phrases as numbers from 0; -1 is none."""
    numbers: dict[str | None, int] = {None: -1}
    codes = (numbers.setdefault(value, len(numbers) - 1) for value in values)
    return np.fromiter(codes, np.int64, len(values))


def _dependence(a: NDArray[np.int64], b: NDArray[np.int64]) -> float | None:
    """See `pairs`; None where it cannot be told."""
    both = (a >= 0) & (b >= 0)
    a, b = a[both], b[both]
    if len(a) < 2:
        return None
    generator = np.random.default_rng(0)  # the same audit twice says the same
    chance = float(np.mean([_shared(a, generator.permutation(b)) for _ in range(_SHUFFLES)]))
    least = min(entropy(np.bincount(a).tolist()), entropy(np.bincount(b).tolist()))
    if least - chance < _LEAST_BITS * math.log(2):
        return None
    return max(0.0, min(1.0, (_shared(a, b) - chance) / (least - chance)))


def _shared(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Mutual information of two columns of numbers, in nats."""
    joint = np.unique(a * (int(b.max()) + 1) + b, return_counts=True)[1]
    alone = entropy(np.bincount(a).tolist()) + entropy(np.bincount(b).tolist())
    return alone - entropy(joint.tolist())
