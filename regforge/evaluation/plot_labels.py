"""Names where lines end and beside points, so that no plot needs a legend.

Knows where things are drawn; nothing of what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox


def label_ends(figure: Figure, axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names right of where lines end, pushed apart where they would touch.

    Args:
        figure: Of the axes, laid out.
        axes: Made narrower by the longest name.
        ends: x, y, name and color of each.
    """
    if not ends:
        return
    size = figure.bbox.size
    longest = max(_width(figure, name) for *_, name, _ in ends)
    box = axes.get_position()
    axes.set_position((box.x0, box.y0, box.width - (longest + 14) / size[0], box.height))
    line = 15.0
    heights = [float(axes.transData.transform((x, y))[1]) for x, y, *_ in ends]
    order = sorted(range(len(ends)), key=lambda i: heights[i])
    placed = [heights[i] for i in order]
    for _ in range(200):  # neighbours that are too close each give way by half
        for low in range(len(placed) - 1):
            short = line - (placed[low + 1] - placed[low])
            if short > 0:
                placed[low] -= short / 2
                placed[low + 1] += short / 2
    right = float(axes.transAxes.transform((1, 0))[0]) + 10
    for i, height in zip(order, placed, strict=True):
        x, y, name, color = ends[i]
        axes.annotate(
            name,
            (x, y),
            (right / size[0], height / size[1]),
            textcoords="figure fraction",
            va="center",
            color=color,
            weight="bold",
            size=9.5,
            parse_math=False,
            annotation_clip=False,
        )


def label_points(
    axes: Axes,
    points: Sequence[tuple[float, float, str, str]],
    arms: Sequence[tuple[tuple[float, float], tuple[float, float]]],
) -> None:
    """Names beside their points, each at the corner where it covers least.

    Args:
        axes: Laid out.
        points: x, y, name and color of each.
        arms: Both ends of lines that names should not cover.
    """
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    spots = [tuple(map(float, axes.transData.transform((x, y)))) for x, y, *_ in points]
    taken: list[Bbox] = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in spots]
    taken += [Bbox(axes.transData.transform(ends)).padded(2) for ends in arms]
    frame = axes.get_window_extent()
    for (x, y), (at_x, at_y, name, color) in zip(spots, points, strict=True):
        width = _width(figure, name)
        choices: list[tuple[float, int, int, int, Bbox]] = []
        for side, above in ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 2), (-1, 2), (1, -2), (-1, -2)):
            left = x + 9 if side > 0 else x - 9 - width
            box = Bbox.from_bounds(left, y + 13 * above - 8, width, 16)
            choices.append(
                (_covered(box, taken) + _outside(box, frame), len(choices), side, above, box)
            )
        _, _, side, above, box = min(choices, key=lambda choice: choice[:2])
        taken.append(box)
        axes.annotate(
            name,
            (at_x, at_y),
            (6.5 * side, 9.4 * above),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            color=color,
            weight="bold",
            size=9.5,
            parse_math=False,
        )


def _covered(box: Bbox, others: Sequence[Bbox]) -> float:
    from matplotlib.transforms import Bbox

    shared = (Bbox.intersection(box, other) for other in others)
    return sum(float(each.width * each.height) for each in shared if each is not None)


def _outside(box: Bbox, frame: Bbox) -> float:
    over = max(0.0, box.x1 - frame.x1, frame.x0 - box.x0)
    return 1000 * float(over + max(0.0, box.y1 - frame.y1, frame.y0 - box.y0))


def _width(figure: Figure, text: str) -> float:
    """Pixels that a label takes."""
    probe = figure.text(0, 0, text, size=9.5, weight="bold", parse_math=False)
    width = float(probe.get_window_extent().width)
    probe.remove()
    return width
