"""What numbers are called and what differences are said to be, for terminals and pages alike.

Knows metrics and intervals; nothing about where they come from.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from regforge.evaluation.interface import METRICS, Comparison, Interval, Metric
from regforge.evaluation.statistics import CONFIDENCE, is_clear
from regforge.words import listed

WIDTH = 99
"""Most columns of a line for terminals."""

BY_KEY: Mapping[str, Metric] = {metric.key: metric for metric in METRICS}

_MOST_NAME = 28
_GAP = "  "
_WINS = {
    "dino": "looks more like the subject",
    "clip_i": "looks more like the subject",
    "clip_t": "follows prompts better",
    "matched": "draws images that fit their own prompt best more often",
    "pres": "keeps the rest of the class apart from the subject better",
    "div": "varies more",
    "text": "keeps the writing on the subject better",
}


@dataclass(frozen=True)
class Verdict:
    """What a comparison of two models by one metric says.

    Attributes:
        metric: By which.
        winner: Name of the better model; None where no difference is clear.
        loser: Name of the other.
        difference: Of winner minus loser, or of second minus first where neither won.
    """

    metric: Metric
    winner: str | None
    loser: str | None
    difference: Interval


def metrics_of(scores: Iterable[Mapping[str, Interval]]) -> list[Metric]:
    """The metrics that at least one of these has, in the order of tables."""
    keys = {key for each in scores for key in each}
    return [metric for metric in METRICS if metric.key in keys]


def number(value: float, *, signed: bool = False) -> str:
    """Three digits after the point; never a negative zero."""
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text.lstrip("+-") if float(text) == 0 else text


def plus_minus(found: Interval) -> str:
    """Half of the interval's width: `±.021`; nothing for a single value, which has no interval."""
    if found.count < 2:
        return ""
    half = f"{(found.high - found.low) / 2:.3f}"
    return f"±{half.removeprefix('0')}"


def span(found: Interval, *, signed: bool = False) -> str:
    """Mean and interval: `+0.031 (0.012 to 0.050)`."""
    mean = number(found.mean, signed=signed)
    return f"{mean} ({number(found.low)} to {number(found.high)})"


def arrow(metric: Metric) -> str:
    """Where better is."""
    return "↑" if metric.higher_is_better else "↓"


def best_of(metric: Metric, means: Mapping[str, float]) -> list[str]:
    """Names with the best mean, all that share it; none where all do."""
    best = (max if metric.higher_is_better else min)(means.values(), default=0.0)
    found = [name for name, mean in means.items() if mean == best]
    return found if len(found) < len(means) else []


def verdict(comparison: Comparison) -> Verdict | None:
    """Who is better; None for a metric that this version does not know."""
    metric = BY_KEY.get(comparison.metric)
    if metric is None:
        return None
    found = comparison.difference
    if not is_clear(found):
        return Verdict(metric, None, None, found)
    if (found.mean > 0) == metric.higher_is_better:
        winner, loser = comparison.second, comparison.first
    else:
        winner, loser = comparison.first, comparison.second
    if winner == comparison.first:
        found = Interval(-found.mean, -found.high, -found.low, found.count)
    return Verdict(metric, winner, loser, found)


def wins_by(metric: Metric) -> str:
    """What a better model does: `follows prompts better`."""
    return _WINS.get(metric.key, f"has the better {metric.name}")


def sentence(said: Verdict) -> str:
    """One sentence of a clear difference."""
    return (
        f"{said.winner} {wins_by(said.metric)} than {said.loser}: "
        f"{said.metric.name} {span(said.difference, signed=True)}."
    )


def summary(first: str, second: str, verdicts: Sequence[Verdict]) -> str:
    """A few plain words about two models: what the second does better, what worse, what alike.

    Args:
        first: What is compared with.
        second: What is talked about.
        verdicts: Of these two, one a metric.
    """
    better, worse = (
        listed(
            [
                f"{words} ({', '.join(_short(each) for each in those)})"
                for words, those in _by_words(
                    [each for each in verdicts if each.winner == winner]
                ).items()
            ]
        )
        for winner in (second, first)
    )
    alike = [each.metric.name for each in verdicts if each.winner is None]
    text = f"Against “{first}”, "
    if better and worse:
        text += f"“{second}” {better}. But “{first}” {worse}."
    elif better:
        text += f"“{second}” {better}."
    elif worse:
        text += f"“{second}” does worse: “{first}” {worse}."
    else:
        return text + f"“{second}” shows no clear difference in {listed(alike, conjunction='or')}."
    return text + (f" No clear difference in {listed(alike, conjunction='or')}." if alike else "")


def by_chance(comparisons: int) -> str:
    """What many comparisons at once mean; empty where there are few."""
    expected = comparisons * (1 - CONFIDENCE)
    if expected < 1:
        return ""
    return (
        f"Of {comparisons} comparisons about {round(expected)} would look clear by chance alone; "
        "believe those that are far from zero, or that several metrics share."
    )


def table(
    rows: Mapping[str, Mapping[str, Interval]], ceiling: Mapping[str, Interval], title: str
) -> list[str]:
    """Models and their scores for a terminal, in several tables where one would be too wide.

    Args:
        rows: Scores by model name.
        ceiling: Those of the reference photos.
        title: Stands above the names.
    """
    metrics = metrics_of([*rows.values(), ceiling])
    best = {
        metric.key: best_of(
            metric, {name: had[metric.key].mean for name, had in rows.items() if metric.key in had}
        )
        for metric in metrics
    }
    lines = [
        [name, *(_cell(had, m, name in best[m.key]) for m in metrics)] for name, had in rows.items()
    ]
    if ceiling:
        lines.append(["(the photos themselves)", *(_cell(ceiling, m, False) for m in metrics)])
    head = [title, *(f"{metric.name} {arrow(metric)}" for metric in metrics)]
    columns = [
        [_cut(cell) if not place else cell for cell in column]
        for place, column in enumerate(zip(head, *lines, strict=True))
    ]
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


def wrapped(text: str, indent: str = "") -> str:
    """A paragraph in the width of a terminal."""
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )


def printable(text: str) -> str:
    """Without what could steer a terminal; what strangers named a model is shown and not obeyed."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _cell(had: Mapping[str, Interval], metric: Metric, best: bool) -> str:
    found = had.get(metric.key)
    if found is None:
        return "-"
    return f"{number(found.mean)} {plus_minus(found)}".rstrip() + ("*" if best else "")


def _cut(name: str) -> str:
    """A long name keeps its end, where names of runs differ."""
    return name if len(name) <= _MOST_NAME else f"...{name[3 - _MOST_NAME :]}"


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


def _by_words(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    groups: dict[str, list[Verdict]] = {}
    for each in verdicts:
        groups.setdefault(wins_by(each.metric), []).append(each)
    return groups


def _short(said: Verdict) -> str:
    return f"{said.metric.name} {number(said.difference.mean, signed=True)}"
