"""One HTML page with plots and tables in it: no script, and nothing to load from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from bench import plots, tables
from bench.records import Record, Results

STYLE = Path(__file__).with_name("report.css")
MEANING = """GPU time: calls queued behind a spin, so that the host is never waited for; the median
of rounds. Eager: wall time of a call in a loop, Python and launches included. Floor: the bytes that
must move over the rate at which this GPU copies. Peak: memory that a call holds beyond its inputs.
Every time stands behind a comparison of the same function's results and gradients with a reference
in float64; the largest relative RMS error is in the last column."""

HEADS = ("shape B×T×H×D", "contender", "fwd GPU µs", "× floor", "fwd eager", "fwd+bwd GPU µs",
         "× floor", "fwd+bwd eager", "peak MiB", "first call s", "error")  # fmt: skip
STEP_HEADS = ("batch", "contender", "GPU µs", "× floor", "eager µs", "floor µs", "error")


def page(results: Results) -> str:
    """The whole page."""
    e = results.environment
    title = f"{', '.join(results.ops)} on {e.get('gpu', '?')}"
    body = [f"<h1>{escape(title)}</h1>", "" if results.complete else "<p>An interrupted run.</p>"]
    body.append(_environment(e))
    body.append(f'<p class="soft">{escape(MEANING)}</p>')
    for op in results.ops:
        for figure in (plots.time_figure, plots.memory_figure, plots.decode_figure):
            body.append(_figure(figure(results, op)))
        body += [f"<h2>{escape(op)}: every measurement</h2>", _measurements(results, op)]
        if results.of("decode", op, ok=False):
            body += [f"<h2>{escape(op)}: one decoding step</h2>", _steps(results, op)]
    body.append("<h2>Remarks</h2><ul>")
    body += [f"<li>{escape(line)}</li>" for line in tables.remarks(results)]
    body.append("</ul>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _environment(environment: dict[str, Any]) -> str:
    pairs = []
    for name, value in environment.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        shown = name.replace("copy_tb_s", "copy rate, TB/s").replace("_gib", ", GiB")
        pairs.append(f"<dt>{escape(shown.replace('_', ' '))}</dt><dd>{escape(str(text))}</dd>")
    return f"<dl>{''.join(pairs)}</dl>"


def _figure(figure: Any) -> str:
    if figure is None:
        return ""
    text = plots.svg(figure)
    plots.close(figure)
    return f"<figure>{text}</figure>"


def _measurements(results: Results, op: str) -> str:
    records = sorted(results.of("ops", op, ok=False), key=lambda r: (r.T, r.B * r.H * r.K))
    rows = []
    for dims in dict.fromkeys(r.dims for r in records):
        here = [r for r in records if r.dims == dims]
        most = max((r.fwd_bwd_gpu_us or 0 for r in here if r.source == "flagen"), default=0)
        shape = tables.shape_text(dims)
        floors = next(((r.fwd_floor_us, r.fwd_bwd_floor_us) for r in here if r.fwd_floor_us), ())
        for i, r in enumerate(here):
            rows.append(_row(shape if i == 0 else "", r, most))
        for label, found in tables.reference_rows(results, op, "ops").items():
            if row := found.get(dims):
                rows.append(_peer_row(label, row))
        if floors:
            cells = ["", "floor", _cell(floors[0]), "", "", _cell(floors[1]), "", "", "", "", ""]
            rows.append(_tr(cells, "dim"))
    return _table(HEADS, rows)


def _row(shape: str, r: Record, most: float) -> str:
    start = f"<td>{escape(shape)}</td><td class=text>{escape(r.name)}</td>"
    mark = ' class="group"' if shape else ""
    if r.status != "ok":
        reason = escape(f"{r.status}: {r.note}" if r.note else r.status)
        return f'<tr{mark}>{start}<td class="text bad" colspan=9>{reason}</td></tr>'
    width = f"{min(100, 100 * r.fwd_bwd_gpu_us / most):.0f}%" if r.fwd_bwd_gpu_us and most else "0"
    cells = [
        _cell(r.fwd_gpu_us),
        _ratio(r.fwd_gpu_us, r.fwd_floor_us),
        _cell(r.fwd_eager_us),
        _cell(r.fwd_bwd_gpu_us),
        _ratio(r.fwd_bwd_gpu_us, r.fwd_bwd_floor_us),
        _cell(r.fwd_bwd_eager_us),
        _cell(r.fwd_bwd_peak_mib),
        _cell(r.first_call_s),
        _error(r),
    ]
    tds = [f"<td>{x}</td>" for x in cells]
    tds[3] = f'<td class="bar" style="--w:{width}">{cells[3]}</td>'
    return f"<tr{mark}>{start}{''.join(tds)}</tr>"


def _peer_row(label: str, row: dict[str, Any]) -> str:
    cells = [
        "",
        escape(label),
        _cell(row.get("fwd_gpu_us")),
        _ratio(row.get("fwd_gpu_us"), row.get("fwd_floor_us")),
        _cell(row.get("fwd_eager_us")),
        _cell(row.get("fwd_bwd_gpu_us")),
        _ratio(row.get("fwd_bwd_gpu_us"), row.get("fwd_bwd_floor_us")),
        _cell(row.get("fwd_bwd_eager_us")),
        _cell(row.get("fwd_bwd_peak_mib")),
        "",
        "",
    ]
    return _tr(cells, "dim")


def _steps(results: Results, op: str) -> str:
    rows = []
    for r in sorted(results.of("decode", op, ok=False), key=lambda r: r.B):
        numbers = [
            _cell(r.fwd_gpu_us),
            _ratio(r.fwd_gpu_us, r.fwd_floor_us),
            _cell(r.fwd_eager_us),
            _cell(r.fwd_floor_us),
            _error(r),
        ]
        shown = numbers if r.status == "ok" else [escape(f"{r.status}: {r.note}"), *[""] * 4]
        rows.append(_tr([str(r.B), escape(r.name), *shown]))
        for label, found in tables.reference_rows(results, op, "decode").items():
            if row := found.get(r.dims):
                gpu, floor = row["gpu_us"], row["floor_us"]
                numbers = [_cell(gpu), _ratio(gpu, floor), _cell(row["eager_us"]), _cell(floor), ""]
                rows.append(_tr(["", escape(label), *numbers], "dim"))
    return _table(STEP_HEADS, rows)


def _tr(cells: Iterable[str], kind: str = "") -> str:
    first, second, *rest = cells
    tds = "".join(f"<td>{x}</td>" for x in rest)
    return f'<tr class="{kind}"><td>{first}</td><td class=text>{second}</td>{tds}</tr>'


def _table(heads: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>'
        + "\n".join(rows)
        + "</tbody></table></div>"
    )


def _cell(x: float | None) -> str:
    return "" if x is None else f"{x:,.0f}" if x >= 99.5 else f"{x:.3g}"


def _ratio(x: float | None, floor: float | None) -> str:
    return f"{x / floor:.1f}" if x and floor else ""


def _error(record: Record) -> str:
    return f"{max(record.errors.values()):.1e}" if record.errors else ""
