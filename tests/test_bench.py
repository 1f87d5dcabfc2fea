"""The benchmark without a GPU: a clock that counts calls, small shapes, and made-up results."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")

import typer
from rich.console import Console
from typer.testing import CliRunner

from bench import cases, floor, gate, labels, meter, plots, report, session, tables
from bench.__main__ import app
from bench.cases import Shape
from bench.contenders import Contender, contenders
from bench.records import Journal, Record, Results, load_reference, stem
from bench.runner import Runner, Task, plan
from flagen import bench as bridge
from generated.retention import naive_chunk_retention, naive_retention

ROOT = Path(__file__).parents[1]
WHERE = {
    "gpu": "NVIDIA H200",
    "driver": "1.2",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "date": "2026-01-02",
    "commit": "abcdef12",
    "code": {"retention": "12345678"},
    "copy_tb_s": 4.0,
}
SHAPE = Shape(2, 70, 2, 16, 24)


class Clock:
    """Every call takes 100 µs."""

    device = "cpu"

    def __init__(self) -> None:
        self.timed = 0

    def gpu_us(self, call: meter.Call) -> tuple[float, bool]:
        call()
        self.timed += 1
        return 100.0, True

    def eager_us(self, call: meter.Call) -> float:
        call()
        return 120.0

    def peak_mib(self, call: meter.Call) -> float:
        return 3.0

    def copy_rate(self) -> float:
        return 4e12

    def free_bytes(self) -> int:
        return 1 << 40


def contender(call: Any = naive_chunk_retention, **changes: Any) -> Contender:
    made = Contender(
        "chunk", "retention", "chunk_retention", "flagen", call, naive_chunk_retention,
        ("q", "k", "v"),
    )  # fmt: skip
    return replace(made, **changes)


def measure(tmp_path: Path, *tasks: Task, **options: Any) -> list[Record]:
    journal = Journal(tmp_path / "run.jsonl", WHERE, options.pop("resume", False))
    runner = Runner(options.pop("meter", Clock()), journal, 4e12, **options)
    return list(runner.run(list(tasks), lambda task: None))


def made_up() -> Results:
    records = []
    for shape in (*cases.QUICK_SWEEP, *cases.QUICK_BATCHES):
        for i, name in enumerate(("chunk", "fused_chunk", "sdpa")):
            r = Record("ops", "retention", name, name, "flagen", *_dims(shape), "bfloat16")
            for j, field in enumerate(("fwd", "fwd_bwd")):
                setattr(r, f"{field}_gpu_us", (i + 1) * (3 * j + 1) * shape.B * shape.T / 100)
                setattr(r, f"{field}_eager_us", 500.0)
                setattr(r, f"{field}_floor_us", (j + 1) * shape.B * shape.T / 300)
            r.fwd_bwd_peak_mib = shape.B * shape.T / 64
            records.append(r)
    records.append(replace(records[0], name="naive", status="failed", note="<b>&</b>"))
    for shape in cases.DECODE:
        r = Record(
            "decode", "retention", "fused_recurrent", "f", "flagen", *_dims(shape), "bfloat16"
        )
        r.fwd_gpu_us, r.fwd_eager_us, r.fwd_floor_us = 3.0 + shape.B, 40.0, shape.B / 2
        records.append(r)
    return Results(dict(WHERE), records, complete=True)


def _dims(shape: Shape) -> tuple[int, ...]:
    return shape.B, shape.T, shape.H, shape.K, shape.V


@pytest.fixture
def peer_file(tmp_path: Path) -> Path:
    row = {"B": 4, "T": 2048, "H": 16, "D": 128, "dtype": "bfloat16", "fwd_bwd_peak_mib": 384}
    times = {"gpu_us": (114.0, 459.0), "eager_us": (203.0, 1262.0), "floor_us": (31.5, 86.6)}
    for name, (forward, both) in times.items():
        row |= {f"fwd_{name}": forward, f"fwd_bwd_{name}": both}
    step = {"op": "retention", "B": 8, "H": 16, "D": 128, "gpu_us": 22.9}
    step |= {"eager_us": 133.9, "floor_us": 3.9}
    ops = ("chunk_retention", "parallel_retention", "chunk_simple_gla", "sdpa")
    about = {"library": "flash-linear-attention 0.6.0", "gpu": "NVIDIA H200", "torch": "2.11.0"}
    data = about | {"triton": "3.6.0", "rows": [*({"op": op, **row} for op in ops), step]}
    path = tmp_path / "peer.json"
    path.write_text(json.dumps(data))
    return path


# What is measured


def test_operators_are_found_and_their_inputs_are_known() -> None:
    import flagen.ops

    assert cases.forms("retention")["chunk"] == "chunk_retention"
    for op in cases.operators():
        found, _ = contenders(op, peers=False)
        assert found
        for c in found:
            inputs = cases.draw(op, c.inputs, SHAPE, torch.float32, "cpu")
            # a parameter has no batch, and a scan no heads
            assert all(x.shape[0] in (2, SHAPE.D) for x in inputs.values())
            assert all({*x.shape[1:2]} <= {70, 16} for x in inputs.values())
        assert all(hasattr(flagen.ops, c.function) for c in found if c.source == "flagen")


def test_an_unknown_input_is_named() -> None:
    with pytest.raises(KeyError, match="`omega` of rwkv7 is not in INPUTS"):
        cases.draw("rwkv7", ("omega",), SHAPE, torch.float32, "cpu")


def test_shapes() -> None:
    assert Shape.parse("4x2048x16x128") == Shape(4, 2048, 16, 128, 128)
    assert Shape.parse("4x2048x16x128x64") == Shape(4, 2048, 16, 128, 64)
    assert str(Shape(4, 2048, 16, 128, 64)) == "4×2048×16×128/64"
    with pytest.raises(ValueError, match="BxTxHxD"):
        Shape.parse("4x2048")
    assert [s.T for s in cases.SWEEP] == [2**n for n in range(7, 17)]
    assert all(s.B * s.T <= 16384 or s.B == 1 for s in cases.SWEEP)


def test_slow_starters_come_last_and_limits_hold() -> None:
    slow = contender(name="compiled", slow_start=True, most_T=512)
    tasks = plan([slow, contender()], cases.QUICK_SWEEP)
    assert [t.contender.name for t in tasks] == ["chunk"] * 6 + ["compiled"] * 2


def test_floor() -> None:
    """4 × 2048 × 16 × 128 in bfloat16 at 4.26 TB/s: four tensors, and eleven."""
    x = SimpleNamespace(nbytes=4 * 2048 * 16 * 128 * 2)
    forward = floor.forward_bytes([x] * 3, [x])
    both = forward + floor.backward_bytes([x] * 3, [x])
    assert floor.microseconds(forward, 4.26e12) == pytest.approx(31.5, abs=0.05)
    assert floor.microseconds(both, 4.26e12) == pytest.approx(86.6, abs=0.05)


# The gate


def scaled(factor: float) -> Any:
    return lambda **x: (naive_chunk_retention(**x)[0] * factor, None)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dx: torch.Tensor) -> torch.Tensor:
        return dx * 1.1


def wrong_gradient(q: torch.Tensor, **x: torch.Tensor) -> Any:
    return naive_chunk_retention(WrongGradient.apply(q), **x)


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (scaled(1.02), ["o", "dq", "dk", "dv"]),
        (scaled(float("nan")), ["o", "dq", "dk", "dv"]),
        (wrong_gradient, ["dq"]),
    ],
    ids=["output", "nan", "gradient"],
)
def test_what_is_wrong_is_not_timed(tmp_path: Path, call: Any, wrong: list[str]) -> None:
    clock = Clock()
    (record,) = measure(tmp_path, Task("ops", contender(call), SHAPE), meter=clock)
    assert record.status == "wrong"
    assert all(f"{name} " in record.note for name in wrong)
    assert record.fwd_gpu_us is None
    assert clock.timed == 0


def test_the_timed_call_itself_is_checked(tmp_path: Path) -> None:
    """Right at the small T of the gate, wrong at the shape that is timed."""

    def call(q: torch.Tensor, **x: torch.Tensor) -> Any:
        o, state = naive_chunk_retention(q, **x)
        return (o if q.shape[1] == gate.SMALL_T else o * 1.1), state

    (record,) = measure(tmp_path, Task("ops", contender(call), SHAPE))
    assert record.status == "wrong"
    assert "o at this shape" in record.note


def test_a_right_function_is_timed(tmp_path: Path) -> None:
    compiled_late = contender(name="late", per_shape=True)
    ran = measure(
        tmp_path,
        Task("ops", contender(naive_retention), SHAPE),
        Task("ops", compiled_late, SHAPE),
        Task("decode", contender(naive_retention), Shape(3, 1, 2, 16, 24)),
    )
    assert [r.status for r in ran] == ["ok"] * 3
    assert ran[0].fwd_gpu_us == ran[0].fwd_bwd_gpu_us == 100
    assert set(ran[0].errors) == {"o", "dq", "dk", "dv", "o at this shape"}
    assert set(ran[2].errors) == {"o", "final_state"}
    q, v, state = 3 * 2 * 16 * 2, 3 * 2 * 24 * 2, 3 * 2 * 16 * 24 * 4
    assert ran[2].fwd_floor_us == pytest.approx((2 * q + 2 * v + 2 * state) / 4e12 * 1e6)


def test_decoding_in_place_is_checked_and_timed(tmp_path: Path) -> None:
    """Beside the step with a state in and out; a step that forgets its pool is refused."""
    found, _ = contenders("retention", peers=False, decode=True)
    assert [c.name for c in found] == ["decode", "fused_recurrent"]
    assert found[0].function == "decode_retention"
    shape = Shape(3, 1, 2, 16, 24)
    lazy = replace(found[0], name="lazy", call=lambda **x: found[0].call(**{**x, **own(x)}))
    ran = measure(tmp_path, *(Task("decode", c, shape) for c in (*found, lazy)))
    assert [r.status for r in ran] == ["ok", "ok", "wrong"]
    assert set(ran[0].errors) == {"o", "final_state"}
    assert ran[0].fwd_floor_us == ran[1].fwd_floor_us


def own(x: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A state that nobody else sees."""
    return {"initial_state": torch.zeros_like(x["initial_state"])}


def test_too_large_to_compare_is_said(tmp_path: Path) -> None:
    clock = Clock()
    clock.free_bytes = lambda: 0  # type: ignore[method-assign]
    (record,) = measure(tmp_path, Task("ops", contender(), SHAPE), meter=clock)
    assert record.status == "ok"
    assert "too large to compare" in record.note


# Going on after failures and interrupts


def test_failures_are_results(tmp_path: Path) -> None:
    def failing(**_: Any) -> Any:
        raise RuntimeError("no kernel image\nand more")

    def full(**_: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    tasks = [Task("ops", contender(f, name=f.__name__), SHAPE) for f in (failing, full)]
    ran = measure(tmp_path, *tasks, Task("ops", contender(), SHAPE))
    assert [r.status for r in ran] == ["failed", "out of memory", "ok"]
    assert ran[0].note == "RuntimeError: no kernel image"


def test_a_slow_first_call_is_given_up(tmp_path: Path) -> None:
    def forever(**_: Any) -> Any:
        while True:
            with suppress(Exception):  # as compilers do
                sum(range(1000))

    slow = contender(forever, slow_start=True)
    larger = replace(SHAPE, T=140)
    ran = measure(
        tmp_path, Task("ops", slow, SHAPE), Task("ops", slow, larger), first_call_limit=0.2
    )
    assert [r.status for r in ran] == ["skipped", "skipped"]
    assert "first call over" in ran[0].note
    assert str(SHAPE) in ran[1].note


def test_nothing_begins_after_the_budget(tmp_path: Path) -> None:
    (record,) = measure(tmp_path, Task("ops", contender(), SHAPE), budget=1e-9)
    assert (record.status, record.note) == ("skipped", "no time left")


def test_resume(tmp_path: Path) -> None:
    tasks = [Task("ops", contender(), replace(SHAPE, T=T)) for T in (70, 80)]
    measure(tmp_path, tasks[0])
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write('{"kind": "ops", "op": "reten')  # interrupted
    clock = Clock()
    ran = measure(tmp_path, *tasks, resume=True, meter=clock)
    assert [r.T for r in ran] == [70, 80]
    assert clock.timed == 2  # forward, and with backward, of the second
    assert Results.load(tmp_path / "run.jsonl").records == [Record.of(r.json()) for r in ran]
    with pytest.raises(ValueError, match="another torch"):
        Journal(tmp_path / "run.jsonl", WHERE | {"torch": "3"}, resume=True)


def test_a_session_writes_its_files_even_when_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer_file: Path
) -> None:
    monkeypatch.setattr(session, "environment", lambda ops, commit: dict(WHERE))
    calls = []

    def interrupted(**x: Any) -> Any:
        calls.append(x)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return naive_chunk_retention(**x)

    tasks = [Task("ops", contender(interrupted), replace(SHAPE, T=T)) for T in (70, 80, 90, 100)]
    out = tmp_path / "out"
    how = session.Session("retention", out, [peer_file], False, "bfloat16", "", 60, None)
    console = Console(record=True, width=120)
    results = how.run(tasks, [], console, Clock())
    assert not results.complete
    assert 0 < len(results.records) < 4
    assert "--resume goes on" in console.export_text()
    name = "h200-retention-2026-01-02-abcdef12"
    suffixes = (".jsonl", ".json", ".html", "-time.svg", "-time.png", "-memory.svg", "-memory.png")
    assert {p.name for p in out.iterdir()} == {name + suffix for suffix in suffixes}
    assert stem(out, WHERE, "retention").name == f"{name}-2"
    assert stem(out, WHERE, "retention", resume=True).name == name


# The clock, on a GPU that is made up


def test_a_late_host_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time counts only if the spin went on until all calls were queued."""
    now = {"host": 0.0, "gpu": 0.0}

    class Event:
        def __init__(self, **_: Any) -> None: ...

        def record(self) -> None:
            self.at = max(now["gpu"], now["host"])
            now["gpu"] = self.at

        def query(self) -> bool:
            return now["host"] >= self.at

        def elapsed_time(self, end: Event) -> float:
            return (end.at - self.at) / 1e3

    def launch(us: float) -> None:
        now["gpu"] = max(now["gpu"], now["host"]) + us

    def call() -> None:
        now["host"] += 30
        launch(10)

    def synchronize() -> None:
        now["host"] = max(now["host"], now["gpu"])

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "_sleep", launch)
    clock = object.__new__(meter.CudaMeter)
    clock.cycles_per_us = 1
    assert clock._queued(call, 12, spin_us=100) is None
    assert clock._queued(call, 12, spin_us=1000) == pytest.approx(10)
    monkeypatch.setattr(clock, "_rehearse", lambda call: (30.0, 40.0))
    assert clock.gpu_us(call) == (pytest.approx(10), True)
    monkeypatch.setattr(clock, "_rehearse", lambda call: (1e-3, 40.0))  # so the spin is too short
    assert clock.gpu_us(call)[0] == pytest.approx(10)


# What is shown


def test_records_round_trip(tmp_path: Path, peer_file: Path) -> None:
    results = made_up()
    results.reference = load_reference(peer_file, ["retention", "gla", "simple_gla"])
    results.save(tmp_path / "r.json")
    loaded = Results.load(tmp_path / "r.json")
    assert loaded.environment == results.environment
    assert [r.key for r in loaded.records] == [r.key for r in results.records]
    assert loaded.reference == results.reference
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="no result"):
        Results.load(tmp_path / "other.json")


def test_reference_rows_find_their_operator(peer_file: Path) -> None:
    rows = load_reference(peer_file, ["gla", "retention", "simple_gla"])
    found = [(row["op"], row["form"], row["kind"]) for row in rows]
    assert found == [
        ("retention", "chunk", "ops"),
        ("retention", "parallel", "ops"),
        ("simple_gla", "chunk", "ops"),
        ("retention", "fused_recurrent", "decode"),
    ]
    assert load_reference(peer_file, ["gla"]) == []


def test_the_quick_summary_is_short(peer_file: Path) -> None:
    results = made_up()
    results.reference = load_reference(peer_file, ["retention"])
    console = Console(width=140, record=True)
    console.print(tables.summary(results))
    text = console.export_text()
    assert len(text.splitlines()) <= 60
    assert "114 / 203" in text
    assert "failed: <b>&</b>" in text


def test_plots_and_page_from_a_file(tmp_path: Path, peer_file: Path) -> None:
    results = made_up()
    results.reference = load_reference(peer_file, ["retention"])
    results.save(tmp_path / "r.json")
    for command in (["plot"], ["report"]):
        done = CliRunner().invoke(app, [*command, str(tmp_path / "r.json")])
        assert done.exit_code == 0, done.output
    for what in ("time", "memory"):
        assert (tmp_path / f"r-{what}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"r-{what}.svg").read_text().startswith("<svg")
    html = (tmp_path / "r.html").read_text()
    assert html.count("<svg") == 3
    assert "&lt;b&gt;" in html
    # Whatever has http in it names a format and is not loaded.
    bare = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert not re.search(r"https?://|<script|<link|<img|@import|url\((?!#)", bare)


def test_the_same_result_gives_the_same_bytes() -> None:
    first, second = (plots.svg(plots.time_figure(made_up(), "retention")) for _ in range(2))
    assert first == second


def test_a_page_of_little() -> None:
    """One shape, one form, no decoding: no plot must fail."""
    results = made_up()
    results.records = results.records[:1]
    assert "chunk" in report.page(results)
    results.records = [replace(results.records[0], status="wrong", note="x", fwd_gpu_us=None)]
    assert "wrong: x" in report.page(results)


def test_names_keep_apart() -> None:
    assert labels.apart([0.0, 1.0, 50.0], 10) == pytest.approx([-4.5, 5.5, 50.0])
    places = labels.apart([5.0, 5.0, 5.0, 16.0], 10)
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(places))


# The command line


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("command", ["ops", "decode", "check"])
def test_without_a_gpu_it_says_so(command: str) -> None:
    done = CliRunner().invoke(app, [command])
    assert done.exit_code == 2
    assert "no NVIDIA GPU" in done.output
    assert "plot and report" in done.output


def test_flagen_bench_passes_everything_on() -> None:
    outer = typer.Typer()
    outer.command("bench", **bridge.SETTINGS)(bridge.bench_command)
    outer.command("other")(lambda: None)
    assert "decode" in CliRunner().invoke(outer, ["bench", "--help"]).output
    help_of_ops = CliRunner().invoke(outer, ["bench", "ops", "--help"])
    assert "flagen bench ops" in help_of_ops.output
    assert CliRunner().invoke(outer, ["bench", "plot", "no-such-file"]).exit_code == 2
