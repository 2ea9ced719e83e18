"""What the cells of the experiment say together, as numbers: Markdown tables, and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grid import stem
from regforge.evaluation.interface import METRICS, Interval
from regforge.evaluation.statistics import is_clear
from scores import BASE, BOTH, Found, Score, mean_of, paired

SHOWN = ("dino", "clip_t", "matched", "both", "pres")
"""The metrics of tables."""

BY_KEY = {metric.key: metric for metric in (*METRICS, BOTH)}

AS_ASKED = ", as asked"
"""Ends the label of what a side study is compared with."""


def markdown(found: Found) -> list[str]:
    """All tables, with a heading before each but the first."""
    tables = [
        _main_table(found),
        *_difference_tables(found),
        *(table for group in _groups(found) for table in _group_tables(found, group)),
        *_side_tables(found),
    ]
    return [table for table in tables if table]


def state(found: Found) -> str:
    """What was compared, and how the numbers are to be read."""
    experiment = found.experiment
    whole = len(experiment.subjects) * len(experiment.seeds)
    return (
        f"{len(found.common)} of {whole} runs of each set ({', '.join(found.arms)}). Means ± half "
        "of their 95 % interval over subjects (over runs, where there are two subjects). "
        "Differences are taken prompt by prompt within the same subject and seed; where one is "
        "bold, its interval does not hold 0."
    )


def _main_table(found: Found) -> str:
    """Means of the main grid: one row a set and point."""
    unit = found.experiment.steps
    lines = [
        "| set | runs | training | " + " | ".join(BY_KEY[m].name for m in SHOWN) + " |",
        "| --- | ---: | ---: | " + " | ".join("---:" for _ in SHOWN) + " |",
    ]
    base = " | ".join(_shown(found.base(metric)) for metric in SHOWN)
    lines.append(f"| {BASE} | {len(found.experiment.subjects)} | | {base} |")
    for arm in found.arms:
        for step in found.steps:
            row = " | ".join(_shown(found.mean(arm, step, metric)) for metric in SHOWN)
            lines.append(f"| {arm} | {len(found.common)} | {step / unit:g}x | {row} |")
    return "\n".join(lines)


def _difference_tables(found: Found) -> Iterator[str]:
    """Sets against none and against naive, at the longest training; clear ones in bold."""
    unit, step = found.experiment.steps, found.steps[-1]
    rephrased = found.experiment.studies.get("rephrased")
    yield f"**Differences at {step / unit:g}x**"
    yield _differences(found, step, stem(found.experiment.prompts))
    if rephrased and rephrased.prompts:
        yield f"**The same in other words, at {step / unit:g}x**"
        yield _differences(found, step, stem(rephrased.prompts))


def _differences(found: Found, step: int, suite: str) -> str:
    lines = [
        "| | " + " | ".join(BY_KEY[m].name for m in SHOWN) + " |",
        "| --- | " + " | ".join("---:" for _ in SHOWN) + " |",
    ]
    for first in ("none", "naive"):
        for arm in found.arms:
            if arm == first or (first, arm) == ("naive", "none"):
                continue
            row = (
                _change(
                    paired(
                        found.main(first, step, metric, suite=suite),
                        found.main(arm, step, metric, suite=suite),
                    )
                )
                for metric in SHOWN
            )
            lines.append(f"| {arm} against {first} | {' | '.join(row)} |")
    return "\n".join(lines)


def _groups(found: Found) -> list[str]:
    """What the prompts of the main grid are about."""
    arm, step = found.arms[0], found.steps[-1]
    return list(dict.fromkeys(score.group for score in found.main(arm, step, "dino")))


def _group_tables(found: Found, group: str) -> Iterator[str]:
    """A heading, and identity and R-precision of one kind of prompts."""
    yield f"**Prompts about {group}**"
    columns = [
        (metric, step)
        for metric in ("dino", "matched", "both")
        for step in (found.experiment.steps, found.steps[-1])
    ]
    names = [f"{BY_KEY[m].name} {step / found.experiment.steps:g}x" for m, step in columns]
    lines = [
        "| | " + " | ".join(names) + " |",
        "| --- | " + " | ".join("---:" for _ in names) + " |",
    ]
    base = " | ".join(_shown(found.base(metric, (group,))) for metric, _ in columns)
    lines.append(f"| {BASE} | {base} |")
    for arm in found.arms:
        row = (_shown(found.mean(arm, step, metric, (group,))) for metric, step in columns)
        lines.append(f"| {arm} | {' | '.join(row)} |")
    for arm in found.arms:
        if arm in ("none", "naive"):
            continue
        row = (
            _change(
                paired(
                    found.main("naive", step, metric, (group,)),
                    found.main(arm, step, metric, (group,)),
                )
            )
            for metric, step in columns
        )
        lines.append(f"| {arm} against naive | {' | '.join(row)} |")
    yield "\n".join(lines)


def _side_tables(found: Found) -> Iterator[str]:
    """What the bars of the side studies show, as numbers; each beside what it is a change of."""
    for name, title, groups in side_groups(found):
        if not any(had for each in groups.values() for had in each.values()):
            continue
        lines = [
            f"**{title}**",
            "",
            "| | runs | " + " | ".join(BY_KEY[m].name for m in SHOWN) + " |",
            "| --- | ---: | " + " | ".join("---:" for _ in SHOWN) + " |",
        ]
        for label, by_metric in groups.items():
            runs = {(s.cell.subject, s.cell.seed) for had in by_metric.values() for s in had}
            row = " | ".join(_number(by_metric[metric]) for metric in SHOWN)
            lines.append(f"| {label} | {len(runs)} | {row} |")
        whole = f"{found.experiment.images} images" if name == "size" else next(iter(groups))
        for label, by_metric in groups.items():
            if name == "rephrased" or label == whole:  # other words cannot be paired by prompt
                continue
            changes = (_change(paired(groups[whole][m], by_metric[m])) for m in SHOWN)
            lines.append(f"| {label} against {whole} | | {' | '.join(changes)} |")
        yield "\n".join(lines)


def _number(had: Sequence[Score]) -> str:
    return _shown(mean_of(had) if had else None)


def _shown(found: Interval | None) -> str:
    if found is None:
        return ""
    return f"{found.mean:.3f} ± {(found.high - found.low) / 2:.3f}"


def _change(change: Interval | None) -> str:
    if change is None:
        return ""
    text = f"{change.mean:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
    return f"**{text}**" if is_clear(change) else text


def means(found: Found) -> list[dict[str, Any]]:
    """All means, for whoever wants to plot them otherwise."""
    rows = []
    for (name, suite, step, metric), had in found.all():
        mean = mean_of(had)
        rows.append(
            {
                "set": name,
                "prompts": suite,
                "step": step,
                "metric": metric,
                "mean": round(mean.mean, 5),
                "low": round(mean.low, 5),
                "high": round(mean.high, 5),
                "pictures": mean.count,
                "runs": len({(s.cell.subject, s.cell.seed) for s in had}),
            }
        )
    return rows


# ------------------------------------------------------------------------------------ side studies


def side_groups(
    found: Found,
) -> Iterator[tuple[str, str, dict[str, dict[str, list[Score]]]]]:
    """Name, title, and what is compared: label -> metric -> scores."""
    experiment = found.experiment
    main = stem(experiment.prompts)

    def at(arm: str, suite: str, step: int) -> dict[str, list[Score]]:
        return {metric: found.of(arm, suite, step, metric) for metric in SHOWN}

    for name, study in experiment.studies.items():
        suite = stem(study.prompts) if study.prompts else main
        arm = study.arm or list(experiment.arms)[-1]
        step = round(max(study.points) * experiment.steps)
        times = f"at {max(study.points):g}x"
        if name == "rephrased":
            groups = {}
            for each in found.arms:
                groups[f"{each}{AS_ASKED}"] = at(each, main, step)
                groups[each] = at(each, suite, step)
            yield name, f"Rephrased prompts, {times} (Fig. 3)", _of_same_runs(groups)
        elif name == "motion":
            slot = study.without
            groups = {
                "with motion": at(arm, suite, step),
                "without motion": at(f"{arm} {experiment.images} without {slot}", suite, step),
            }
            yield name, f"Prompts with motion, living subjects, {times} (Fig. 4)", groups
        elif name == "size":
            sizes = sorted({*study.images, experiment.images})
            groups = {f"{size} images": at(f"{arm} {size}", suite, step) for size in sizes}
            yield name, f"Size of the set, {times}", _of_same_runs(groups)
        else:
            slots = (study.without,) if isinstance(study.without, str) else study.without or ()
            groups = {"all slots": at(arm, suite, step)}
            for slot in slots:
                groups[f"without {slot}"] = at(
                    f"{arm} {experiment.images} without {slot}", suite, step
                )
            yield name, f"One slot less, of {arm}, {times}", _of_same_runs(groups)


def _of_same_runs(
    groups: dict[str, dict[str, list[Score]]],
) -> dict[str, dict[str, list[Score]]]:
    """Only the subjects and seeds that every group has: some studies have fewer seeds."""

    def runs(by_metric: Mapping[str, list[Score]]) -> set[tuple[str, int]]:
        return {(s.cell.subject, s.cell.seed) for had in by_metric.values() for s in had}

    had = [runs(each) for each in groups.values() if any(each.values())]
    common = set.intersection(*had) if had else set()
    return {
        label: {
            metric: [s for s in found if (s.cell.subject, s.cell.seed) in common]
            for metric, found in by_metric.items()
        }
        for label, by_metric in groups.items()
    }
