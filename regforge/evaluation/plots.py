"""Plots: models in the plane of identity and alignment, bars, and curves.

White background, own ink, readable at 800 pixels and in print; colours are those of M. Okabe and
K. Ito, which people of any colour vision tell apart. Draws on figures of its own, without pyplot,
so nothing of a caller's matplotlib changes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from regforge.evaluation.metrics import BY_KEY, Interval, Metric, metrics_of
from regforge.evaluation.results import ModelResult, over_steps
from regforge.evaluation.suites import EvaluationError
from regforge.evaluation.wording import number, shortened
from regforge.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#a5498c", "#b07c00", "#3d9bd1", "#5c5c5c")
"""Of series, in this order; with the eighth they begin again, with another marker."""

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_PHOTOS = "the photos themselves"
_MARKERS = "osD^vPX"
_INK, _SOFT, _LINE = "#1d1a17", "#6c655d", "#e6e1da"
_WIDTH = 8.0  # inches; 800 pixels at 100 a inch
_RESOLUTION = 200  # of PNGs: sharp on screens with two pixels for one
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10.5,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.titlecolor": _INK,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "text.color": _INK,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "regforge",  # or ids, and so bytes, would be random
}


def identity_against_alignment(
    scores: Mapping[str, Mapping[str, Interval]],
    *,
    ceiling: Mapping[str, Interval] | None = None,
    title: str = "",
) -> Figure:
    """Models as points: how much they draw the subject, and how well they follow prompts.

    A model without both metrics is left out. What the reference photos score is a dashed line.

    Raises:
        EvaluationError: matplotlib is not installed.
    """
    identity, alignment = "dino", "clip_t"
    up, right = BY_KEY[identity], BY_KEY[alignment]
    with _styled():
        figure, (axes,) = _figure(4.8)
        for place, (name, had) in enumerate(scores.items()):
            if identity not in had or alignment not in had:
                continue
            x, y = had[alignment], had[identity]
            axes.errorbar(
                x.mean,
                y.mean,
                xerr=[[x.mean - x.low], [x.high - x.mean]],
                yerr=[[y.mean - y.low], [y.high - y.mean]],
                fmt=_marker(place),
                color=_color(place),
                markersize=8,
                elinewidth=1.6,
                capsize=0,
                label=shortened(name),
            )
        if ceiling and identity in ceiling:
            _reference_line(axes, _PHOTOS, ceiling[identity].mean)
        axes.margins(0.14)
        axes.set_xlabel(f"{right.name}: does it show what the prompt says?  (right is better)")
        axes.set_ylabel(f"{up.name}: is it this subject?  (up is better)")
        _finish(figure, axes, title)
    return figure


def bars(scores: Mapping[str, Mapping[str, Interval]], *, title: str = "") -> Figure:
    """One panel a metric, one bar a model, with the interval on it and the mean beside it.

    Raises:
        EvaluationError: matplotlib is not installed.
    """
    metrics = metrics_of(scores.values())
    names = list(scores)
    with _styled():
        across = min(3, len(metrics)) or 1
        down = -(-len(metrics) // across) or 1
        height = down * (0.75 + 0.34 * len(names)) + (0.5 if title else 0.15)
        figure, panels = _figure(height, down, across)
        for place, axes in enumerate(panels):
            if place < len(metrics):
                _panel(axes, metrics[place], scores, names if place % across == 0 else None)
            else:
                axes.set_axis_off()
        if title:
            figure.suptitle(
                shortened(title, 90), x=0.01, ha="left", weight="bold", size=12, parse_math=False
            )
        figure.tight_layout(w_pad=1.4, h_pad=1.2)
    return figure


def curves(
    series: Mapping[str, Sequence[tuple[float, Interval]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    reference_lines: Mapping[str, float] | None = None,
) -> Figure:
    """Lines with a band for their intervals.

    Args:
        series: By name: x and what was found there, such as training steps and a score.
        title: Empty for none.
        x_label: What x is.
        y_label: What the intervals are of.
        log_x: Whether equal factors of x are equally far apart; the x that occur are its ticks.
        reference_lines: Levels to compare with, by name: `{"the photos themselves": 0.77}`.

    Raises:
        EvaluationError: matplotlib is not installed.
    """
    with _styled():
        figure, (axes,) = _figure(4.4)
        for place, (name, unsorted) in enumerate(series.items()):
            points = sorted(unsorted, key=lambda point: point[0])
            if not points:
                continue
            x = [at for at, _ in points]
            color = _color(place)
            axes.fill_between(
                x, [f.low for _, f in points], [f.high for _, f in points],
                color=color, alpha=0.16, linewidth=0,
            )  # fmt: skip
            axes.plot(
                x, [f.mean for _, f in points], label=shortened(name),
                color=color, linewidth=2, marker=_marker(place), markersize=5,
            )  # fmt: skip
        if log_x:
            _log_ticks(axes, sorted({at for points in series.values() for at, _ in points}))
        for name, level in (reference_lines or {}).items():
            _reference_line(axes, name, level)
        axes.set_xlabel(x_label, parse_math=False)
        axes.set_ylabel(y_label, parse_math=False)
        axes.grid(visible=False, axis="x")
        _finish(figure, axes, title)
    return figure


def over_training(
    results: Sequence[ModelResult], ceiling: Mapping[str, Interval]
) -> dict[str, Figure]:
    """Curves of the scores that training moves most, of one subject by title.

    There are none without snapshots.
    """
    figures = {}
    for key in ("dino", "lift", "clip_t", "pres", "class_closeness"):
        metric = BY_KEY[key]
        series = {
            run: [(each.model.steps or 0, each.scores[key]) for each in those if key in each.scores]
            for run, those in over_steps(results).items()
        }
        if any(series.values()):
            title = f"{metric.name} over training steps"
            figures[title] = curves(
                series,
                title=title,
                x_label="optimizer steps",
                y_label=f"{metric.name} ({'up' if metric.higher_is_better else 'down'} is better)",
                reference_lines={_PHOTOS: ceiling[key].mean} if key in ceiling else None,
            )
    return figures


def save(figure: Figure, path: Path) -> None:
    """Write a plot as `.svg` or `.png`, whole or not at all; the same plot is the same bytes.

    Raises:
        EvaluationError: The name has another ending.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise EvaluationError(f"{path.name} is no name for a plot.", hint="Use .svg or .png.")
    write_atomically(path, drawn(figure, kind))


def drawn(figure: Figure, kind: str) -> bytes:
    """A plot as a file; `kind` is `svg` or `png`."""
    metadata: Any = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    stream = io.BytesIO()
    with _styled():
        figure.savefig(stream, format=kind, metadata=metadata, dpi=_RESOLUTION)
    return stream.getvalue()


def as_element(figure: Figure, name: str, prefix: str) -> Markup:
    """A plot as an element of the page.

    The page's Content-Security-Policy allows no styles but its own, so those of the plot become
    attributes; its ids get a prefix, so that they are unique in the page.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(drawn(figure, "svg"))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for part in element.attrib.pop("style", "").split(";"):
            key, _, value = part.partition(":")
            if value:
                element.set(key.strip(), value.strip())
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, prefix + value)
            elif value.startswith("#") and key == f"{{{_XLINK}}}href":
                element.set(key, f"#{prefix}{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{prefix}"))
    for key in ("width", "height"):
        del root.attrib[key]  # the page decides
    root.set("stroke-linejoin", "round")
    text = ElementTree.tostring(root, encoding="unicode")
    label = Markup(' role="img" aria-label="{}"').format(name)
    return Markup(re.sub(r"^<svg", lambda _: f"<svg{label}", text, count=1))


# ------------------------------------------------------------------------------------------ pieces


@contextmanager
def _styled() -> Iterator[None]:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise EvaluationError(
            "Plots need matplotlib, which is not installed.",
            hint="pip install 'regforge[evaluation]'",
        ) from error
    # What a caller set must not show; the backend is the one thing that is never touched.
    settings: Any = {k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith("backend")}
    settings |= _STYLE
    with mpl.rc_context(settings), warnings.catch_warnings():
        # A name in letters that the font lacks has boxes; that is no news to anybody.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph")
        yield


def _figure(height: float, down: int = 1, across: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(down, across, squeeze=False).flat)


def _panel(
    axes: Axes,
    metric: Metric,
    scores: Mapping[str, Mapping[str, Interval]],
    names: Sequence[str] | None,
) -> None:
    highest = 0.0
    for place, had in enumerate(scores.values()):
        found = had.get(metric.key)
        if found is None:
            continue
        axes.barh(place, found.mean, height=0.62, color=_color(place))
        axes.plot([found.low, found.high], [place, place], color=_INK, linewidth=1.4)
        highest = max(highest, found.high)
        axes.annotate(
            number(found.mean),
            (max(found.high, found.mean), place),
            (5, 0),
            textcoords="offset points",
            va="center",
            size=9,
        )
    axes.set_title(f"{metric.name} {metric.arrow}", size=11)
    axes.set_xlim(right=highest * 1.32 or 1)
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_yticks(
        range(len(scores)),
        labels=[shortened(name, 22) for name in names] if names else [""] * len(scores),
        parse_math=False,
        color=_INK,
    )
    axes.set_xticks([0])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", labelbottom=False)


def _finish(figure: Figure, axes: Axes, title: str) -> None:
    """Set the title, and names right of the plot in the order of the series."""
    if title:
        axes.set_title(shortened(title, 80), pad=12, parse_math=False)
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(
            loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9.5
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    figure.tight_layout()


def _reference_line(axes: Axes, name: str, level: float) -> None:
    axes.axhline(level, color=_SOFT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        shortened(name),
        (0.995, level),
        (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=_SOFT,
        size=9,
        parse_math=False,
    )


def _log_ticks(axes: Axes, places: Sequence[float]) -> None:
    """A tick where something was measured, but none that would touch its neighbour."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xscale("log")
    if not places:
        return
    factor = (places[-1] / places[0]) ** (1 / 9)  # room for about ten
    kept: list[float] = []
    for place in reversed(places):
        if not kept or kept[-1] / place >= factor:
            kept.append(place)
    axes.set_xticks(kept, labels=[f"{place:g}" for place in kept])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def _marker(place: int) -> str:
    return _MARKERS[(place + place // len(COLORS)) % len(_MARKERS)]
