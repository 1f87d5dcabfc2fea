"""Names beside the ends of lines instead of a legend."""

from __future__ import annotations

from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

GAP = 7.0
"""Points between a line's end and its name."""
PLACES = (
    *((1, 0, "left"), (0, 1.5, "center"), (0, -1.5, "center"), (1, 1, "left"), (1, -1, "left")),
    *((-0.3, 1.5, "right"), (-1, 0, "right"), (0, 2.6, "center"), (0, -2.6, "center")),
)
"""Where a name may stand: gaps to the right, gaps up, alignment. The first is the best."""


def label_ends(axis: Axes, names: dict[str, str] | None = None) -> None:
    """Names every line; those that reach the right edge stand in a column beside the axes.

    A name within the axes takes the place where it covers least of lines and other names.
    """
    axis.figure.canvas.draw()
    right = max(line.get_xdata()[-1] for line in axis.lines)
    edge = [line for line in axis.lines if line.get_xdata()[-1] == right]
    taken = _column(axis, sorted(edge, key=lambda line: line.get_ydata()[-1]), names or {})
    inside = [line for line in axis.lines if line not in edge]
    tracks = {line: _track(axis, line) for line in axis.lines}
    for line in sorted(inside, key=lambda line: -line.get_ydata()[-1]):
        taken.append(_beside(axis, line, tracks, taken, names or {}))


def _column(axis: Axes, lines: list[Line2D], names: dict[str, str]) -> list[Bbox]:
    points = axis.figure.dpi / 72
    ends = [axis.transData.transform((x.get_xdata()[-1], x.get_ydata()[-1])) for x in lines]
    places = apart([y for _, y in ends], 12.5 * points)
    return [
        _write(axis, line, (GAP, (place - y) / points), "left", names)
        for line, place, (_, y) in zip(lines, places, ends, strict=True)
    ]


def _beside(
    axis: Axes,
    line: Line2D,
    tracks: dict[Line2D, list[tuple[float, float]]],
    taken: list[Bbox],
    names: dict[str, str],
) -> Bbox:
    best, least = PLACES[0], float("inf")
    for rank, (right, up, align) in enumerate(PLACES):
        box = _write(axis, line, (right * GAP, up * GAP), align, names, keep=False)
        covered = sum(box.contains(*point) for track in tracks.values() for point in track)
        covered += 40 * sum(box.overlaps(other) for other in taken)
        covered += 40 * (not axis.bbox.contains(box.x0, box.y0 + 1))
        covered += 4 * (box.x1 > axis.bbox.x1)
        if covered + rank < least:
            best, least = (right, up, align), covered + rank
    right, up, align = best
    return _write(axis, line, (right * GAP, up * GAP), align, names, halo=True)


def _write(
    axis: Axes,
    line: Line2D,
    offset: tuple[float, float],
    align: str,
    names: dict[str, str],
    keep: bool = True,
    halo: bool = False,
) -> Bbox:
    """Writes a line's name; without `keep`, only measures it."""
    name = str(line.get_label())
    text = axis.annotate(
        names.get(name, name),
        (line.get_xdata()[-1], line.get_ydata()[-1]),
        xytext=offset,
        textcoords="offset points",
        color=line.get_color(),
        size=9.5,
        weight="bold" if line.get_gid() == "bold" else "normal",
        ha=align,
        va="center",
        annotation_clip=False,
        zorder=6,
        path_effects=[withStroke(linewidth=3, foreground=axis.get_facecolor())] if halo else [],
    )
    box = text.get_window_extent()
    if not keep:
        text.remove()
    return box


def _track(axis: Axes, line: Line2D) -> list[tuple[float, float]]:
    """Pixels along a line, some four apart; of points without a line, their surroundings."""
    ends = [tuple(p) for p in axis.transData.transform(line.get_xydata())]
    if line.get_linestyle() == "None":
        return [(x + dx, y + dy) for x, y in ends for dx in (-6, 0, 6) for dy in (-6, 0, 6)]
    track = [ends[-1]]
    for (x0, y0), (x1, y1) in pairwise(ends):
        steps = max(1, int(max(abs(x1 - x0), abs(y1 - y0)) / 4))
        track += [(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(steps)]
    return track


def apart(wanted: list[float], least: float) -> list[float]:
    """Positions as near as they can be to sorted wanted ones, `least` apart."""
    blocks: list[tuple[float, int]] = []  # of each: the sum of first positions, and how many
    for i, y in enumerate(wanted):
        blocks.append((y - i * least, 1))
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [(a + b, n + m)]
    starts = [total / count for total, count in blocks for _ in range(count)]
    return [start + i * least for i, start in enumerate(starts)]
