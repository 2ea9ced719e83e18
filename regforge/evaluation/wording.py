"""How numbers and differences are worded, for terminals and pages alike."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regforge.evaluation.metrics import (
    BY_KEY,
    CONFIDENCE,
    Comparison,
    Interval,
    Metric,
    is_clear,
    metrics_of,
)
from regforge.words import listed

WIDTH = 99
"""Most columns of a line for terminals."""

_MOST_NAME = 28
_GAP = "  "
_WINS = {
    "dino": "looks more like the subject",
    "clip_i": "looks more like the subject",
    "clip_t": "follows prompts better",
    "matched": "draws images that fit their own prompt best more often",
    "lift": "owes more of its likeness to the identifier",
    "class_closeness": "keeps the class nearer to the base model's",
    "class_diversity": "varies the class more",
    "pres": "keeps the rest of the class apart from the subject better",
    "div": "varies more",
    "text": "keeps the writing on the subject better",
}


def number(value: float, *, signed: bool = False) -> str:
    """Three digits after the point; never a negative zero."""
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text.lstrip("+-") if float(text) == 0 else text


def plus_minus(found: Interval) -> str:
    """Half of the interval's width: `±.021`; nothing for a single value, which has no interval."""
    half = f"{(found.high - found.low) / 2:.3f}".removeprefix("0")
    return f"±{half}" if found.count > 1 else ""


def span(found: Interval, *, signed: bool = False) -> str:
    """Mean and interval: `+0.031 (0.012 to 0.050)`."""
    mean = number(found.mean, signed=signed)
    return f"{mean} ({number(found.low)} to {number(found.high)})"


def printable(text: str) -> str:
    """Without what could steer a terminal; what strangers named a model is shown and not obeyed."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def shortened(name: str, most: int = 32) -> str:
    """On one line; a long name keeps its end, where names of runs differ."""
    shown = printable(name)
    return shown if len(shown) <= most else f"…{shown[1 - most :]}"


def shown(value: Any) -> str:
    """A setting."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {shown(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not set" if value is None else str(value)


# -------------------------------------------------------------------------------------- verdicts


@dataclass(frozen=True)
class Verdict:
    """Which of two models is better by one metric.

    Attributes:
        winner: Name of the better model; None where no difference is clear.
        loser: Name of the other.
        difference: Of winner minus loser, or of second minus first where neither won.
    """

    metric: Metric
    winner: str | None
    loser: str | None
    difference: Interval

    @property
    def reason(self) -> str:
        """What a better model does: `follows prompts better`."""
        return _WINS.get(self.metric.key, f"has the better {self.metric.name}")


def verdict(comparison: Comparison) -> Verdict | None:
    """Which model is better; None for a metric that this version does not know."""
    metric, found = BY_KEY.get(comparison.metric), comparison.difference
    if metric is None:
        return None
    if not is_clear(found):
        return Verdict(metric, None, None, found)
    if (found.mean > 0) == metric.higher_is_better:
        return Verdict(metric, comparison.second, comparison.first, found)
    turned = Interval(-found.mean, -found.high, -found.low, found.count)
    return Verdict(metric, comparison.first, comparison.second, turned)


def verdicts_by_pair(comparisons: Sequence[Comparison]) -> dict[tuple[str, str], list[Verdict]]:
    """Verdicts by names of first and second model, in their order."""
    pairs: dict[tuple[str, str], list[Verdict]] = {}
    for comparison in comparisons:
        found = verdict(comparison)
        if found is not None:
            pairs.setdefault((comparison.first, comparison.second), []).append(found)
    return pairs


def summary(first: str, second: str, verdicts: Sequence[Verdict]) -> str:
    """A few plain words about two models: what the second does better, what worse, what alike."""
    better, worse = (_reasons(verdicts, winner) for winner in (second, first))
    text = f"Against “{first}”, "
    if better and worse:
        text += f"“{second}” {better}. But “{first}” {worse}."
    elif better:
        text += f"“{second}” {better}."
    elif worse:
        text += f"“{second}” does worse: “{first}” {worse}."
    alike = listed([e.metric.name for e in verdicts if e.winner is None], conjunction="or")
    if not better and not worse:
        return text + f"“{second}” shows no clear difference in {alike}."
    return text + (f" No clear difference in {alike}." if alike else "")


def _reasons(verdicts: Sequence[Verdict], winner: str) -> str:
    """`follows prompts better (CLIP-T +0.031) and varies more (DIV +0.020)`."""
    reasons: dict[str, list[str]] = {}
    for each in verdicts:
        if each.winner == winner:
            mean = number(each.difference.mean, signed=True)
            reasons.setdefault(each.reason, []).append(f"{each.metric.name} {mean}")
    return listed([f"{reason} ({', '.join(means)})" for reason, means in reasons.items()])


def by_chance(comparisons: int) -> str:
    """What many comparisons at once mean; empty where there are few."""
    expected = comparisons * (1 - CONFIDENCE)
    if expected < 1:
        return ""
    return (
        f"Of {comparisons} comparisons about {round(expected)} would look clear by chance alone; "
        "believe those that are far from zero, or that several metrics share."
    )


# -------------------------------------------------------------------------------------- terminals


def report(
    tables: Sequence[tuple[Mapping[str, Mapping[str, Interval]], Mapping[str, Interval], str]],
    comparisons: Sequence[Comparison],
    notes: Sequence[str],
) -> list[str]:
    """Lines for a terminal.

    A table of each subject has scores by model name, scores of the reference photos, and a title.
    """
    lines: list[str] = []
    for table in tables:
        lines += [*_table(*table), ""]
    lines.append(
        _wrapped(
            "↑ higher is better, ↓ lower is better, * best, ± half of a 95 % interval; a "
            "difference is judged by the pairs below, not by overlap."
        )
    )
    for (first, second), verdicts in verdicts_by_pair(comparisons).items():
        lines += ["", printable(f"{second} against {first}:")]
        for each in verdicts:
            if each.winner is not None:
                difference = f"{each.metric.name} {span(each.difference, signed=True)}"
                sentence = f"{each.winner} {each.reason} than {each.loser}: {difference}."
                lines.append(_wrapped(sentence, "  "))
        alike = ", ".join(each.metric.name for each in verdicts if each.winner is None)
        if alike:
            lines.append(_wrapped(f"No clear difference in {alike}.", "  "))
    if chance := by_chance(len(comparisons)):
        lines += ["", _wrapped(chance)]
    return [*lines, "", *(_wrapped(f"Note: {note}") for note in notes)]


def _table(
    rows: Mapping[str, Mapping[str, Interval]], ceiling: Mapping[str, Interval], title: str
) -> list[str]:
    """Models and their scores, in several tables where one would be too wide."""
    metrics = metrics_of([*rows.values(), ceiling])
    lines = [*rows.items(), *([("(the photos themselves)", ceiling)] if ceiling else [])]
    columns = [[shortened(title, _MOST_NAME), *(shortened(name, _MOST_NAME) for name, _ in lines)]]
    for metric in metrics:
        key = metric.key
        best = metric.best_of({name: had[key].mean for name, had in rows.items() if key in had})
        column = [f"{metric.name} {metric.arrow}"]
        for name, had in lines:
            text = f"{number(had[key].mean)} {plus_minus(had[key])}".rstrip() if key in had else "-"
            column.append(text + "*" * (name in best and had is not ceiling))
        columns.append(column)
    widths = [max(map(len, column)) for column in columns]
    shown: list[str] = []
    for part in _parts(widths):
        shown += [""] if shown else []
        shown += [
            _GAP.join(columns[i][row].ljust(widths[i]) for i in (0, *part)).rstrip()
            for row in range(len(columns[0]))
            if any(columns[i][row] != "-" for i in part)
        ]
    return shown


def _parts(widths: Sequence[int]) -> list[list[int]]:
    """Columns that fit beside the first one, in as few tables as possible."""
    parts: list[list[int]] = []
    used = WIDTH
    for place, width in enumerate(widths[1:], start=1):
        if used + len(_GAP) + width > WIDTH:
            parts.append([])
            used = widths[0]
        parts[-1].append(place)
        used += len(_GAP) + width
    return parts


def _wrapped(text: str, indent: str = "") -> str:
    """A paragraph in the width of a terminal."""
    below = f"{indent}  "
    return textwrap.fill(
        printable(text),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=below,
        break_on_hyphens=False,
    )
