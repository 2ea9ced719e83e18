"""What the cells of the experiment say together, as numbers: Markdown tables, and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grid import stem
from regforge.evaluation.metrics import METRICS, Interval, is_clear
from scores import BASE, BOTH, PLAIN, Found, Groups, Score, mean_of, paired

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
        *(table for groups in [*_groups(found), PLAIN] for table in _group_tables(found, groups)),
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
    columns = [(metric, step) for metric in SHOWN]
    return "\n".join(
        [
            "| | " + " | ".join(BY_KEY[m].name for m in SHOWN) + " |",
            "| --- | " + " | ".join("---:" for _ in SHOWN) + " |",
            *_against(found, columns, suite=suite),
        ]
    )


def _against(
    found: Found,
    columns: Sequence[tuple[str, int]],
    groups: Groups = (),
    suite: str | None = None,
) -> Iterator[str]:
    """Rows of differences: every set against none, and every other against naive."""
    for first in ("none", "naive"):
        for arm in found.arms:
            if arm == first or (first, arm) == ("naive", "none"):
                continue
            row = (
                _change(
                    paired(
                        found.main(first, step, metric, groups, suite),
                        found.main(arm, step, metric, groups, suite),
                    )
                )
                for metric, step in columns
            )
            yield f"| {arm} against {first} | {' | '.join(row)} |"


def _groups(found: Found) -> list[Groups]:
    """What the prompts of the main grid are about, each kind for itself."""
    arm, step = found.arms[0], found.steps[-1]
    return [(group,) for group in dict.fromkeys(s.group for s in found.main(arm, step, "dino"))]


def _group_tables(found: Found, groups: Groups) -> Iterator[str]:
    """A heading, and identity and R-precision of some kinds of prompts."""
    yield f"**Prompts about {' and '.join(groups)}**"
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
    base = " | ".join(_shown(found.base(metric, groups)) for metric, _ in columns)
    lines.append(f"| {BASE} | {base} |")
    for arm in found.arms:
        row = (_shown(found.mean(arm, step, metric, groups)) for metric, step in columns)
        lines.append(f"| {arm} | {' | '.join(row)} |")
    yield "\n".join([*lines, *_against(found, columns, groups)])


def _side_tables(found: Found) -> Iterator[str]:
    """What the bars of the side studies show, as numbers; each beside what it is a change of."""
    columns = [(metric, "") for metric in SHOWN] + [("dino", "style")]
    names = [BY_KEY[metric].name + (f", {group}" if group else "") for metric, group in columns]
    for _, title, whole, groups in side_groups(found):
        if not any(had for each in groups.values() for had in each.values()):
            continue
        yield f"**{title}**"
        lines = [
            "| | runs | " + " | ".join(names) + " |",
            "| --- | ---: | " + " | ".join("---:" for _ in names) + " |",
        ]
        for label, by_metric in groups.items():
            runs = {(s.cell.subject, s.cell.seed) for had in by_metric.values() for s in had}
            row = " | ".join(_number(_about(by_metric[m], group)) for m, group in columns)
            lines.append(f"| {label} | {len(runs)} | {row} |")
        for label, by_metric in groups.items():
            if whole in ("", label):
                continue
            changes = (
                _change(paired(_about(groups[whole][m], group), _about(by_metric[m], group)))
                for m, group in columns
            )
            lines.append(f"| {label} against {whole} | | {' | '.join(changes)} |")
        yield "\n".join(lines)


def _about(had: Sequence[Score], group: str) -> list[Score]:
    return [score for score in had if group in ("", score.group)]


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
                "images": mean.count,
                "runs": len({(s.cell.subject, s.cell.seed) for s in had}),
            }
        )
    return rows


# ------------------------------------------------------------------------------------ side studies


def side_groups(
    found: Found,
) -> Iterator[tuple[str, str, str, dict[str, dict[str, list[Score]]]]]:
    """What the side studies compare, at each of their points, the longest training last.

    Yields:
        Name, title, the label that the others are changes of (empty where prompts differ, which
        cannot be paired), and label -> metric -> scores.
    """
    experiment = found.experiment
    main = stem(experiment.prompts)

    for name, study in experiment.studies.items():
        suite = stem(study.prompts) if study.prompts else main
        arm = study.arm or list(experiment.arms)[-1]
        for point in sorted(study.points):
            step = round(point * experiment.steps)

            def at(of: str, suite: str = suite, step: int = step) -> dict[str, list[Score]]:
                return {metric: found.of(of, suite, step, metric) for metric in SHOWN}

            times = f"at {point:g}x"
            whole = "all slots"
            if name == "rephrased":
                groups, whole = {}, ""
                for each in found.arms:
                    groups[f"{each}{AS_ASKED}"] = at(each, main)
                    groups[each] = at(each)
                title = f"Rephrased prompts, {times} (Fig. 3)"
            elif name == "size":
                sizes = sorted({*study.images, experiment.images})
                groups = {f"{size} images": at(f"{arm} {size}") for size in sizes}
                title, whole = f"Size of the set, {times}", f"{experiment.images} images"
            else:
                slots = (study.without,) if isinstance(study.without, str) else study.without or ()
                groups = {whole: at(arm)}
                for slot in slots:
                    groups[f"without {slot}"] = at(f"{arm} {experiment.images} without {slot}")
                title = f"One slot less, of {arm}, {times}"
                if name == "motion":
                    title = f"Prompts with motion, living subjects, {times} (Fig. 4)"
            yield name, title, whole, _of_same_runs(groups)


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
