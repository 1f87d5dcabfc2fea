"""Results as short tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table

from bench.records import Record, Results


def label(row: dict[str, Any]) -> str:
    """How a row of a reference file is called."""
    short = row["library"].replace("flash-linear-attention", "FLA")
    return f"{short} {row['form']}"


def names(records: list[Record]) -> list[str]:
    """Contenders in their order."""
    return list(dict.fromkeys(r.name for r in records))


def summary(results: Results, columns: int = 7) -> Group:
    """Everything that was measured, time as GPU / eager; so many shapes side by side."""
    parts: list[Any] = []
    for op in results.ops:
        parts += _pivots(results, op, columns)
        parts += _decode(results, op)
    parts += [f"[dim]{line}[/]" for line in remarks(results)]
    return Group(*parts)


def remarks(results: Results) -> list[str]:
    """Where it ran and what is missing, each reason once."""
    e = results.environment
    rate = f", copies {e['copy_tb_s']:.2f} TB/s" if "copy_tb_s" in e else ""
    lines = [
        f"{e.get('gpu')}, driver {e.get('driver')}, torch {e.get('torch')}, Triton"
        f" {e.get('triton')}, commit {e.get('commit')}{rate}"
    ]
    lines += results.notes
    missing: dict[tuple[str, str, str], list[str]] = {}
    for r in results.records:
        if r.status != "ok":
            missing.setdefault((r.name, r.status, r.note), []).append(shape_text(r.dims))
    for (name, status, note), shapes in missing.items():
        reason = f"{status}: {note}" if note else status
        lines.append(f"{name} at {', '.join(shapes)}: {reason}")
    libraries = {(r["library"], r["gpu"], r["torch"], r["triton"]) for r in results.reference}
    for library, gpu, torch, triton in sorted(libraries):
        lines.append(
            f"{library}: from a file, on {gpu}, torch {torch}, Triton {triton}; its eager times"
            " are of single calls, not of a steady loop"
        )
    return lines


def shape_text(dims: tuple[int, ...]) -> str:
    """B×T×H×D."""
    B, T, H, K, V = dims
    return f"{B}×{T}×{H}×{K}" + ("" if V == K else f"/{V}")


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                  pad_edge=False, padding=(0, 1), show_edge=False)  # fmt: skip
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _pivots(results: Results, op: str, columns: int) -> Iterator[Table]:
    records = results.of("ops", op)
    shapes = sorted({r.dims for r in records}, key=lambda d: (d[1], d[0] * d[2] * d[3]))
    for start in range(0, len(shapes), columns):
        part = shapes[start : start + columns]
        for mode, title in (("fwd", "forward"), ("fwd_bwd", "forward + backward")):
            heads = [shape_text(d) for d in part]
            table = _table(f"{op}, {title}: GPU / eager µs", heads)
            for name in names(records):
                found = {r.dims: r for r in records if r.name == name}
                table.add_row(name, *(_times(found.get(d), mode) for d in part))
            for name, found in reference_rows(results, op, "ops").items():
                if any(d in found for d in part):
                    gpu, eager = f"{mode}_gpu_us", f"{mode}_eager_us"
                    rows = (found.get(d, {}) for d in part)
                    cells = (_pair(row.get(gpu), row.get(eager)) for row in rows)
                    table.add_row(name, *cells, style="dim")
            table.add_row("floor", *(_floor(records, d, mode) for d in part), style="dim")
            yield table
        table = _table(f"{op}, forward + backward: peak MiB beyond the inputs", heads)
        for name in names(records):
            found = {r.dims: r for r in records if r.name == name}
            table.add_row(name, *(_mib(found.get(d)) for d in part))
        yield table


def _decode(results: Results, op: str) -> Iterator[Table]:
    records = results.of("decode", op)
    if not records:
        return
    batches = sorted({r.B for r in records})
    _, _, H, K, V = records[0].dims
    title = f"{op}, one decoding step, H={H}, K={K}, V={V}: GPU / eager µs"
    table = _table(title, [f"B={B}" for B in batches])
    for name in names(records):
        found = {r.B: r for r in records if r.name == name}
        table.add_row(name, *(_times(found.get(B), "fwd") for B in batches))
    for name, rows in reference_rows(results, op, "decode").items():
        at = {d[0]: row for d, row in rows.items() if d[2:] == (H, K, V)}
        cells = (at.get(B, {}) for B in batches)
        if at:
            pairs = (_pair(row.get("gpu_us"), row.get("eager_us")) for row in cells)
            table.add_row(name, *pairs, style="dim")
    floors = {r.B: r.fwd_floor_us for r in records}
    table.add_row("floor", *(_number(floors[B]) for B in batches), style="dim")
    yield table


def reference_rows(
    results: Results, op: str, kind: str
) -> dict[str, dict[tuple[int, ...], dict[str, Any]]]:
    """label → dims → row, of the peers' rows that came from files."""
    found: dict[str, dict[tuple[int, ...], dict[str, Any]]] = {}
    for row in results.reference:
        if (row["op"], row["kind"]) == (op, kind):
            dims = (row["B"], row.get("T", 1), row["H"], row["D"], row["D"])
            found.setdefault(label(row), {})[dims] = row
    return found


def _times(record: Record | None, mode: str) -> str:
    if record is None:
        return ""
    mark = "*" if mode in record.host_bound else ""
    return mark + _pair(getattr(record, f"{mode}_gpu_us"), getattr(record, f"{mode}_eager_us"))


def _pair(gpu: float | None, eager: float | None) -> str:
    return "" if gpu is None else f"{_number(gpu)} / {_number(eager)}"


def _number(x: float | None) -> str:
    """Three digits, as a whole number from 100 on."""
    return "" if x is None else f"{x:.0f}" if x >= 99.5 else f"{x:.1f}"


def _mib(record: Record | None) -> str:
    return "" if record is None else _number(record.fwd_bwd_peak_mib)


def _floor(records: list[Record], dims: tuple[int, ...], mode: str) -> str:
    found = [getattr(r, f"{mode}_floor_us") for r in records if r.dims == dims]
    return _number(next((x for x in found if x), None))


def show(console: Console, results: Results) -> None:
    """Prints the summary, as wide as the terminal; wide enough for a quick run in a file."""
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, 140), highlight=False)
    console.print(summary(results, max(1, (console.width - 26) // 16)))
