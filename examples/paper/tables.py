"""What the runs say together: means, differences with intervals, and whether the goal is met.

A run's measures are means over its prompts. Intervals are over subjects, each with all its seeds
(`regforge.evaluation.metrics`); differences are taken within the same subject and seed. Works on
as many runs as are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import grid
from grid import Experiment, Pair
from measure import CLASS, PLAIN, SHOWN, Row
from regforge.evaluation.metrics import Interval, difference, interval, is_clear
from regforge.files import write_atomically


@dataclass(frozen=True)
class Measure:
    """What a number means."""

    name: str
    meaning: str


MEASURES = {
    "lift": Measure(
        "lift",
        "Identity with the identifier less identity without it, same prompt and noise, in other "
        "places and styles.",
    ),
    "shown": Measure(
        "identity shown",
        "Identity in other places and styles, and 0 where another prompt fits the image better.",
    ),
    "matched": Measure("R-precision", "Share of images whose own prompt fits best of all asked."),
    "clip_t": Measure("CLIP-T", "Cosine of image and prompt."),
    "pres": Measure("PRES", "Identity of the class's images, less the untouched model's."),
    "pres_words": Measure("PRES, other words", "The same, of the class prompts but the first."),
    "pres_places": Measure("PRES, places", "The same, of the class in the places that are asked."),
    "closeness": Measure(
        "class closeness",
        "Cosine of the class's images with the untouched model's, as a share of its own.",
    ),
    "diversity": Measure(
        "class diversity",
        "Distance between images of one class prompt, as a share of the untouched model's.",
    ),
}
"""All measures, in the order of tables."""

Run = tuple[str, int]
"""Subject and seed."""


def of_run(rows: Sequence[Row]) -> dict[str, float]:
    """A run's measures, from its images."""
    texts = list(dict.fromkeys(row["text"] for row in rows if row["part"] == CLASS))
    shown = [row for row in rows if row["part"] == SHOWN]
    free = [row for row in shown if "lift" in row]
    found = {
        "lift": [row["lift"] for row in free],
        "shown": [row["dino"] * row["matched"] for row in free],
        "matched": [row["matched"] for row in shown],
        "clip_t": [row["clip_t"] for row in shown],
        "pres": [row["pres"] for row in rows if row["text"] == texts[0]],
        "pres_words": [row["pres"] for row in rows if row["text"] in texts[1:]],
        "pres_places": [
            row["pres"] for row in rows if (row["part"], row["group"]) == (PLAIN, "place")
        ],
        "closeness": [row["closeness"] for row in rows if row["part"] == CLASS],
        "diversity": [row["diversity"] for row in rows if row["part"] == CLASS],
    }
    return {measure: fmean(values) for measure, values in found.items() if values}


class Found:
    """The measures of all runs that are there, of one experiment or of several."""

    def __init__(self, experiment: Experiment, *others: Experiment) -> None:
        self.experiment = experiment
        self.subjects = [name for each in (experiment, *others) for name in each.subjects]
        self._by: dict[tuple[Pair, int], dict[Run, dict[str, float]]] = {}
        asked = []
        for each in (experiment, *others):
            asked.append({(pack.arm, pack.identifier) for pack in grid.packs(each)})
            for pack in grid.packs(each):
                folder = grid.pack_folder(each, pack)
                for step in each.stops:
                    file = grid.scores_file(folder, step)
                    of_pair = self._by.setdefault(((pack.arm, pack.identifier), step), {})
                    for run in json.loads(file.read_text()) if file.exists() else ():
                        of_pair[run["subject"], run["seed"]] = of_run(run["rows"])
        self._asked = set.intersection(*asked)

    @property
    def pairs(self) -> list[Pair]:
        """Those that all experiments ask and there is something of, as the file has them."""
        there = {pair for (pair, _), runs in self._by.items() if runs} & self._asked
        experiment = self.experiment
        every = [(arm, name) for arm in experiment.arms for name in experiment.identifiers]
        return [pair for pair in every if pair in there]

    def runs(self, pair: Pair, step: int) -> Mapping[Run, Mapping[str, float]]:
        """Measures by run."""
        return self._by.get((pair, step), {})

    def mean(self, pair: Pair, step: int, measure: str) -> Interval | None:
        """Over subjects, each with all its seeds."""
        had = {
            run: values[measure]
            for run, values in self.runs(pair, step).items()
            if measure in values
        }
        return interval(list(had.values()), list(had)) if had else None

    def change(self, first: Pair, second: Pair, step: int, measure: str) -> Interval | None:
        """How much higher the second is, over the runs that both have."""
        before, after = self.runs(first, step), self.runs(second, step)
        both = [run for run in before if run in after and measure in before[run]]
        if not both:
            return None
        values = ([of[run][measure] for run in both] for of in (before, after))
        return difference(*values, both)


def write(experiment: Experiment, others: Sequence[Experiment] = ()) -> Path:
    """Write results.md, or together.md with others, and the same as JSON; returns the first."""
    found = Found(experiment, *others)
    path = experiment.out / ("together.md" if others else "results.md")
    write_atomically(path, ("\n\n".join(_markdown(found)) + "\n").encode())
    rows = [
        {
            "arm": pair[0],
            "identifier": pair[1],
            "step": step,
            "measure": measure,
            "mean": round(mean.mean, 5),
            "low": round(mean.low, 5),
            "high": round(mean.high, 5),
            "runs": {
                f"{subject} {seed}": round(values[measure], 5)
                for (subject, seed), values in found.runs(pair, step).items()
                if measure in values
            },
        }
        for pair in found.pairs
        for step in experiment.stops
        for measure in MEASURES
        if (mean := found.mean(pair, step, measure)) is not None
    ]
    write_atomically(path.with_suffix(".json"), (json.dumps(rows, indent=1) + "\n").encode())
    return path


# ------------------------------------------------------------------------------------------ tables


def _markdown(found: Found) -> Iterator[str]:
    experiment = found.experiment
    last = experiment.stops[-1]
    times = f"{last / experiment.steps:g}x"
    whole = len(found.subjects) * len(experiment.seeds)
    yield "# All numbers"
    yield (
        f"Weights {experiment.folder.name}; {whole} runs of each row ({len(found.subjects)} "
        f"subjects, {len(experiment.seeds)} seeds) unless said; 1x is {experiment.steps} steps. "
        "Means, with 95 % intervals over subjects, each with all its seeds; differences are taken "
        "within the same subject and seed, and are bold where their interval does not hold 0."
    )
    yield "\n".join(f"- **{each.name}**: {each.meaning}" for each in MEASURES.values())
    yield f"## The goal, at {times}"
    yield _goal(found, last)
    yield "## Means"
    yield _means(found)
    default, there = experiment.compared.default, {*found.pairs}
    for title, pairs in (
        (f"{label(default)} against each other row", [(p, default) for p in found.pairs]),
        (
            "The learned token against the word, with the same images",
            [p for p in (((a, "sks"), (a, "token")) for a in experiment.arms) if {*p} <= there],
        ),
        (
            "Each set against naive, with the same identifier",
            [(("naive", name), (arm, name)) for arm, name in found.pairs],
        ),
    ):
        table = _differences(found, [pair for pair in pairs if pair[0] != pair[1]], last)
        if table:
            yield f"## {title}, at {times}"
            yield table


def label(pair: Pair) -> str:
    """For tables and figures."""
    return f"{pair[0]}, {pair[1]}"


def _goal(found: Found, step: int) -> str:
    """What was decided beforehand, and whether it came out."""
    compared = found.experiment.compared
    lines = [
        f"Default, declared beforehand: {label(compared.default)}.",
        "",
        "| what | measure | found | met |",
        "| --- | --- | ---: | --- |",
    ]
    for other in compared.with_:
        for measure in compared.primary:
            change = found.change(other, compared.default, step, measure)
            if change is not None:
                met = "yes" if change.low > 0 else "worse" if change.high < 0 else "not clear"
                name = MEASURES[measure].name
                lines.append(f"| above {label(other)} | {name} | {_change(change)} | {met} |")
    for measure, least in compared.at_least.items():
        share = found.mean(compared.default, step, measure)
        if share is not None:
            met = "yes" if share.low >= least else "below" if share.high < least else "not clear"
            name = MEASURES[measure].name
            lines.append(f"| at least {least:g} of the base | {name} | {_plain(share)} | {met} |")
    return "\n".join(lines)


def _head(first: Sequence[str]) -> list[str]:
    names = [measure.name for measure in MEASURES.values()]
    rule = ["---"] * len(first) + ["---:"] * len(names)
    return [f"| {' | '.join([*first, *names])} |", f"| {' | '.join(rule)} |"]


def _means(found: Found) -> str:
    experiment = found.experiment
    whole = len(found.subjects) * len(experiment.seeds)
    lines = _head(["set", "identifier", "training"])
    for pair in found.pairs:
        for step in experiment.stops:
            runs = len(found.runs(pair, step))
            if not runs:
                continue
            times = f"{step / experiment.steps:g}x" + (f" ({runs} runs)" if runs < whole else "")
            row = [_plain(found.mean(pair, step, measure)) for measure in MEASURES]
            lines.append(f"| {' | '.join([*pair, times, *row])} |")
    return "\n".join(lines)


def _differences(found: Found, pairs: Sequence[tuple[Pair, Pair]], step: int) -> str:
    rows = []
    for first, second in pairs:
        changes = [found.change(first, second, step, measure) for measure in MEASURES]
        if any(changes):
            cells = [label(second), label(first), *map(_change, changes)]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*_head(["set", "against"]), *rows]) if rows else ""


def _plain(found: Interval | None) -> str:
    return "" if found is None else f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})"


def _change(change: Interval | None) -> str:
    if change is None:
        return ""
    text = f"{change.mean:+.2f} ({change.low:+.2f} to {change.high:+.2f})"
    return f"**{text}**" if is_clear(change) else text
