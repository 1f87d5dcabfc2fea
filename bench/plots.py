"""Plots of a result, in one style, with labels at the ends of lines."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench import tables
from bench.cases import batch
from bench.labels import label_ends
from bench.records import Record, Results

STYLE = Path(__file__).with_name("flagen.mplstyle")
# Okabe and Ito's colours, which colour-blind readers can tell apart; peers that are no linear
# attention are grey.
COLORS = {
    "chunk": "#0072b2",
    "fused_chunk": "#009e73",
    "fused_recurrent": "#b8860b",
    "parallel": "#c0609b",
    "sdpa": "#24292f",
    "compiled": "#7d858c",
    "naive": "#a8aeb4",
}
NAMES = {"sdpa": "softmax (sdpa)", "compiled": "torch.compile(reference)"}
PEER, FLOOR = "#d55e00", "#57606a"
MARKERS = {"sdpa": "s", "compiled": "v", "naive": "^", "fused_chunk": "D", "parallel": "P"}


@dataclass
class Line:
    """A series with its label; points without a line where `alone`."""

    label: str
    color: str
    x: list[float]
    y: list[float]
    marker: str = "o"
    alone: bool = False
    bold: bool = False


def series(results: Results, op: str, field: str, unit: float) -> tuple[list[Line], list[Record]]:
    """`field` per token, a line per contender over T, and the records behind the lines.

    Heads are those with the most lengths; batches those of the sweep, else the largest. The
    token-by-token reference is left out: it would press all others into one line.
    """
    records = results.of("ops", op)
    heads: dict[tuple[int, int, int], set[int]] = {}
    for r in records:
        heads.setdefault(r.dims[2:], set()).add(r.T)
    if not heads:
        return [], []
    most = max(heads, key=lambda h: len(heads[h]))
    swept = sorted((r for r in records if r.dims[2:] == most), key=lambda r: r.T)
    batches: dict[int, set[int]] = {}
    for r in swept:
        batches.setdefault(r.T, set()).add(r.B)
    chosen = {T: batch(T) if batch(T) in found else max(found) for T, found in batches.items()}
    swept = [r for r in swept if chosen[r.T] == r.B]
    lines = []
    for name in tables.names(swept):
        points = [(r.T, y) for r in swept if r.name == name and (y := _per_token(r, field, unit))]
        if points and name != "naive":
            peerly = name not in COLORS
            lines.append(
                Line(
                    NAMES.get(name, name.replace("_", " ")),
                    COLORS.get(name, PEER),
                    *_columns(points),
                    marker=MARKERS.get(name.split()[-1], "o"),
                    bold=not peerly and swept and name == "chunk",
                )
            )
    if not any(line.label == "fla chunk" for line in lines):
        for name, rows in tables.reference_rows(results, op, "ops").items():
            points = [
                (d[1], row[field] * unit / (d[0] * d[1]))
                for d, row in sorted(rows.items(), key=lambda item: item[0][1])
                if d[2:] == most and row.get(field) and row["form"] == "chunk"
            ]
            if points:
                lines.append(Line(name, PEER, *_columns(points), marker="o", alone=True))
    return lines, swept


def _columns(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    xs, ys = zip(*points, strict=True)
    return list(xs), list(ys)


def _per_token(record: Record, field: str, unit: float) -> float | None:
    x = getattr(record, field)
    return x and x * unit / (record.B * record.T)


def time_figure(results: Results, op: str) -> Figure | None:
    """GPU time per token over T: forward, and forward with backward."""
    modes = {"fwd": "forward", "fwd_bwd": "forward + backward"}
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.9), sharey=True)
        swept: list[Record] = []
        for axis, (mode, title) in zip(axes, modes.items(), strict=True):
            lines, swept = series(results, op, f"{mode}_gpu_us", 1e3)
            if not lines:
                plt.close(figure)
                return None
            floor = {r.T: _per_token(r, f"{mode}_floor_us", 1e3) for r in swept}
            floors = [(T, y) for T, y in floor.items() if y]
            _draw(axis, lines, floors)
            axis.set_title(title)
        axes[0].set_ylabel("GPU time per token, ns")
        _caption(figure, results, op, swept, "GPU time")
        figure.subplots_adjust(0.07, 0.125, 0.905, 0.8, wspace=0.33)
        for axis in axes:
            label_ends(axis)
        return figure


def memory_figure(results: Results, op: str) -> Figure | None:
    """Peak memory per token over T, beyond the inputs."""
    with plt.style.context(STYLE):
        figure, axis = plt.subplots(figsize=(10, 4.4))
        lines, swept = series(results, op, "fwd_bwd_peak_mib", 1024)
        if not lines:
            plt.close(figure)
            return None
        # A forward reads and writes as many bytes as output and gradients hold.
        rate = results.environment.get("copy_tb_s", 0) * 1e6 / 1024
        least = {r.T: _per_token(r, "fwd_floor_us", rate) for r in swept}
        _draw(axis, lines, [(T, y) for T, y in least.items() if y])
        axis.set_title("forward + backward, beyond the inputs")
        axis.set_ylabel("peak memory per token, KiB")
        _caption(figure, results, op, swept, "Memory")
        figure.subplots_adjust(0.07, 0.135, 0.845, 0.78)
        label_ends(axis, {"floor": "output + gradients"})
        return figure


def decode_figure(results: Results, op: str) -> Figure | None:
    """A decoding step's GPU time over the batch."""
    records = sorted(results.of("decode", op), key=lambda r: r.B)
    if not records:
        return None
    lines = []
    for name in tables.names(records):
        points = [(r.B, r.fwd_gpu_us) for r in records if r.name == name and r.fwd_gpu_us]
        color = COLORS.get(name, PEER)
        lines.append(Line(name.replace("_", " "), color, *_columns(points), bold=name in COLORS))
    for name, rows in tables.reference_rows(results, op, "decode").items():
        points = [(d[0], row["gpu_us"]) for d, row in rows.items() if d[2:] == records[0].dims[2:]]
        if points:
            lines.append(Line(name, PEER, *_columns(points), alone=True))
    floors = {r.B: r.fwd_floor_us for r in records if r.fwd_floor_us}
    with plt.style.context(STYLE):
        figure, axis = plt.subplots(figsize=(10, 4.4))
        _draw(axis, lines, sorted(floors.items()))
        axis.set_xlabel("sequences in the batch")
        axis.set_ylabel("GPU time per step, µs")
        axis.set_title("one token, state in and out")
        _caption(figure, results, op, records, "Decoding")
        figure.subplots_adjust(0.07, 0.135, 0.8, 0.78)
        label_ends(axis)
        return figure


def _draw(axis: Axes, lines: list[Line], floor: list[tuple[float, float]]) -> None:
    for line in lines:
        axis.plot(
            line.x,
            line.y,
            color=line.color,
            marker=line.marker,
            linestyle="none" if line.alone else "-",
            markerfacecolor=axis.get_facecolor() if line.alone else line.color,
            markeredgewidth=1.8 if line.alone else 0,
            markersize=6.5 if line.alone else 4.5,
            linewidth=2.8 if line.bold else 1.7,
            label=line.label,
            zorder=4 if line.alone else 3 if line.bold else 2,
            gid="bold" if line.bold else None,
        )
    if floor:
        xs, ys = _columns(floor)
        axis.plot(
            xs, ys, color=FLOOR, linewidth=1.2, linestyle=(0, (4, 3)), label="floor", zorder=1
        )
    axis.set(xscale="log", yscale="log")
    ticks = sorted({x for line in lines for x in line.x})
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _length(x)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(10, subs=(1.0,)))
    axis.yaxis.set_minor_locator(LogLocator(10, subs=(2.0, 5.0)))
    plain = FuncFormatter(lambda y, _: f"{y:,.10g}")
    axis.yaxis.set_major_formatter(plain)
    axis.yaxis.set_minor_formatter(plain)
    axis.tick_params(axis="both", which="both", labelsize=9, length=0)
    axis.set_xlabel("T, tokens per sequence")


def _length(x: float) -> str:
    """65536 is 64k."""
    return f"{x / 1024:.0f}k" if x >= 1024 and x % 1024 == 0 else f"{x:.0f}"


def _caption(figure: Figure, results: Results, op: str, swept: list[Record], what: str) -> None:
    """What is compared, and where it ran."""
    e, r = results.environment, swept[0]
    figure.text(0.012, 0.95, f"{what} of {op}", size=14, weight="bold", va="center")
    size = f"H={r.H}, D={r.K}" if r.K == r.V else f"H={r.H}, K={r.K}, V={r.V}"
    batches = sorted({x.B for x in swept})
    several = f"B from {batches[-1]} to {batches[0]}" if swept[0].kind == "ops" else "T=1"
    parts = [e.get("gpu", "?"), r.dtype, size, several, f"torch {e.get('torch')}",
             f"Triton {e.get('triton')}", str(e.get("commit"))]  # fmt: skip
    figure.text(0.012, 0.89, " · ".join(p for p in parts if p), size=8.8, color=FLOOR, va="center")


def svg(figure: Figure) -> str:
    """Without a prolog and without metadata: the same bytes for the same result, and inlinable."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with plt.style.context(STYLE):
        figure.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def close(figure: Figure) -> None:
    """Frees a figure."""
    plt.close(figure)


def write(results: Results, path: Path) -> list[Path]:
    """<path>-time and <path>-memory, each as .svg and .png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for op in results.ops:
        name = path.name if len(results.ops) == 1 else f"{path.name}-{op}"
        figures = {"time": time_figure(results, op), "memory": memory_figure(results, op)}
        for what, figure in figures.items():
            if figure:
                written += _save(figure, path.with_name(f"{name}-{what}"))
    return written


def _save(figure: Figure, path: Path) -> list[Path]:
    vector, pixels = path.with_name(path.name + ".svg"), path.with_name(path.name + ".png")
    vector.write_text(svg(figure), encoding="utf-8")
    figure.savefig(pixels)
    plt.close(figure)
    return [vector, pixels]
