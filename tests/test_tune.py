"""The search for tiles: on planted costs, without a GPU."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from crashing import serve
from test_cli import ROOT, flagen_

from flagen import trial
from flagen.cli.tune import _compiler, _write
from flagen.gpus import GPUS
from flagen.load import load
from flagen.parse import parse
from flagen.plan import tables
from flagen.plan.kernel_plan import Tile
from flagen.plan.space import ON_STATES, Step, Tiles, allowed, candidates, steps
from flagen.rehearsal import Call, Operator, Workers
from flagen.trial import Judge, Process, Setup
from flagen.tune import Cost, Found, Journal, Progress, search
from flagen.verify import Case

BASE = {
    each.kernel: tables.look_up(each.half, 227, 128)
    for each in tables.tile_tables(tables.load(), "channel")
}


def planted(tiles: Tiles) -> Cost:
    """Fastest with short chunks, 8 warps in `grad`, 64 columns in `states`, 4 stages in `fwd`."""
    us = 1000.0
    us += tiles["grad"].rows
    us += abs(tiles["grad"].warps - 8) * 10
    us += abs(tiles["states"].columns - 64)
    us += abs(tiles["fwd"].stages - 4) * 10
    return Cost({"chunk": us, "fused_chunk": us / 2})


def journal(tmp_path: Path, **about: str) -> Journal:
    return Journal(tmp_path / "journal.jsonl", about)


def test_finds_what_is_fastest(tmp_path: Path) -> None:
    found = search(BASE, True, 128, journal(tmp_path), planted)
    assert found.tiles["grad"].rows == 32
    assert found.tiles["grad"].warps == 8
    assert found.tiles["states"].columns == 64
    assert found.tiles["fwd"].stages == 4
    assert found.complete
    assert found.cost.times["chunk"] < found.before.times["chunk"]
    assert found.cost == planted(found.tiles)


def test_wrong_tiles_are_never_the_result(tmp_path: Path) -> None:
    """The fastest of all are wrong, and so is all that is built on them."""

    def measure(tiles: Tiles) -> Cost:
        if tiles["grad"].rows == 32 or tiles["fwd"].stages == 4:
            return Cost(refused="dq: error 3e-1 above 5e-3")
        return planted(tiles)

    found = search(BASE, True, 128, journal(tmp_path), measure)
    assert found.tiles["grad"].rows == 64
    assert found.tiles["fwd"].stages == 3
    assert found.tiles["grad"].warps == 8
    assert found.refused > 0
    with pytest.raises(ValueError, match="error 3e-1"):
        search(found.tiles, True, 128, journal(tmp_path, x="y"), lambda _: measure_wrong())


def measure_wrong() -> Cost:
    return Cost(refused="dq: error 3e-1 above 5e-3")


def test_what_cannot_be_launched_is_not_tried(tmp_path: Path) -> None:
    tried: list[Tiles] = []

    def measure(tiles: Tiles) -> Cost:
        tried.append(tiles)
        return planted(tiles)

    def prepare(options: tuple[Tiles, ...]) -> dict[int, str]:
        return {i: "too large" for i, tiles in enumerate(options) if tiles["grad"].rows == 32}

    found = search(BASE, True, 128, journal(tmp_path), measure, prepare)
    assert found.tiles["grad"].rows == 64
    assert not any(tiles["grad"].rows == 32 for tiles in tried)
    assert len(tried) + found.refused == found.tried


def test_resumes_after_an_interrupt(tmp_path: Path) -> None:
    whole = search(BASE, True, 128, Journal(tmp_path / "whole.jsonl", {}), planted)
    tried: list[Tiles] = []
    for _ in range(10):
        left = count()

        def measure(tiles: Tiles, left: Any = left) -> Cost:
            if next(left) == 17:
                raise KeyboardInterrupt
            tried.append(tiles)
            return planted(tiles)

        try:
            found = search(BASE, True, 128, journal(tmp_path), measure)
            break
        except KeyboardInterrupt:
            pass
    assert found.tiles == whole.tiles
    assert len(tried) == len({str(tiles) for tiles in tried}), "tried twice"
    assert len(tried) > 40


def test_journal(tmp_path: Path) -> None:
    asked: list[Tiles] = []

    def measure(tiles: Tiles) -> Cost:
        asked.append(tiles)
        return planted(tiles)

    first = journal(tmp_path, code="1")
    cost = first(BASE, measure)
    assert journal(tmp_path, code="1")(BASE, measure) == cost
    assert len(asked) == 1
    # an attempt without an answer: the process, this one too, ended in it
    with first.path.open("a") as file:
        file.write('{"tiles": "grad:1,2,3"}\n{"tiles": "cut o')
    again = journal(tmp_path, code="1")
    assert again.known["grad:1,2,3"].refused
    assert again(BASE, measure) == cost
    assert "cut o" not in first.path.read_text()
    assert journal(tmp_path, code="2").known == {}
    assert journal(tmp_path, code="1").known == {}


def test_stops_when_the_time_is_over(tmp_path: Path) -> None:
    clock = count()
    told: list[Progress] = []
    found = search(
        BASE, True, 128, journal(tmp_path), planted, budget=20, tell=told.append,
        clock=lambda: float(next(clock)),
    )  # fmt: skip
    assert not found.complete
    assert 1 < found.tried < 25
    assert found.cost == planted(found.tiles)
    assert told[0].done == 0
    assert told[0].count > 1


@pytest.mark.parametrize("walk", ["none", "constant", "scalar", "channel"])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("D", [64, 128, 256])
def test_only_tiles_that_go_together(walk: str, half: bool, D: int) -> None:
    base = {
        each.kernel: tables.look_up(each.half if half else each.single, 227, D)
        for each in tables.tile_tables(tables.load(), walk)
    }
    assert allowed(base, half), "the shipped tiles"
    number = 0
    for step in steps(base):
        for tiles in candidates(base, step, half, D):
            number += 1
            shared = {(t.rows, t.block) for k, t in tiles.items() if k in ON_STATES}
            assert len(shared) <= 1
            changed = {k for k in tiles if tiles[k] != base[k]}
            assert changed <= set(step.kernels)
            for kernel, tile in tiles.items():
                if half and tile.rows >= 64 and kernel in ("out", "grad"):
                    assert min(tile.columns, tile.block, tile.least) >= 64
                elif half and tile.rows >= 64:
                    assert tile.stages > 1 or tile.columns >= 64
    assert 20 < number < 200


def test_known_wrong_tiles_are_not_allowed() -> None:
    def with_tile(kernel: str, **changes: int) -> dict[str, Tile]:
        return {**BASE, kernel: replace(BASE[kernel], **changes)}

    assert not allowed(with_tile("grad", columns=32), True)
    assert not allowed(with_tile("grad", rows=32), True)
    assert not allowed(with_tile("states", columns=32, stages=1), True)
    assert not allowed(with_tile("fwd", rows=64, columns=32, stages=1), True)
    assert allowed(with_tile("fwd", rows=64), True)


class Stub(Setup):
    """Compiles one forward call."""

    def timed(self) -> tuple[tuple[str, Call], ...]:
        return (("fwd", Call("fused_chunk", self.sizes[0], self.dtype, train=False)),)

    def checked(self) -> tuple[Call, ...]:
        return ()


def setup(op: str, dtype: str, D: int, kind: type[Setup] = Setup) -> Setup:
    spec = parse(load(ROOT / f"specs/{op}.yaml"))
    sizes = tuple({"B": 1, "T": 128, "H": 1, "K": D, "V": D}.items())
    operator = Operator.of(spec, ROOT / "generated")
    return kind(operator, spec, ("chunk", "fused_chunk"), (sizes,), dtype)


def test_what_is_compiled_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    base = {"fwd": Tile(128, 32, 64, 32, 4, 1)}
    large = {"fwd": Tile(128, 64, 64, 64, 4, 4)}
    # the first needs about 16 KiB, the second twice as much and more
    gpu = replace(GPUS["sm_80"], shared=32 << 10)
    with Workers(gpu, 1) as workers:
        one = setup("linear_attn", "bfloat16", 64, Stub)
        prepare = _compiler(workers, one, gpu, lambda _: None)
        found = prepare((base, large))
    assert list(found) == [1]
    assert "shared memory" in found[1]
    assert found[1].startswith("linear_attn_chunk_fwd_kernel needs ")


CASES = (Case(1, 40, 1, 16, 16), Case(1, 20, 1, 16, 16, (0, 0, 1, 20)))


@pytest.mark.parametrize("op", ["simple_gla", "linear_attn"])
def test_the_judge(op: str, device: torch.device) -> None:
    one = setup(op, "float32", 16)
    package = trial.load_folder(one.operator.folder, op)
    judge = Judge(one, package, device, CASES)
    assert judge.refused() == ""

    def slightly_wrong(**inputs: Any) -> Any:
        o, state = getattr(package, f"chunk_{op}")(**inputs)
        return o * 1.0001, state

    names = {f"fused_chunk_{op}": getattr(package, f"fused_chunk_{op}")}
    judge.package = SimpleNamespace(**names, **{f"chunk_{op}": slightly_wrong})
    assert "chunk B1 T40" in judge.refused()


def test_a_trial_times_what_is_right() -> None:
    package = trial.load_folder(ROOT / "generated", "simple_gla")
    right: Any = SimpleNamespace(refused=lambda: "")
    wrong: Any = SimpleNamespace(refused=lambda: "dq is wrong")
    timed: list[Any] = []

    def gpu_us(call: Any) -> tuple[float, bool]:
        timed.append(call())
        return 7.0, True

    tiles = {"fwd": Tile(128, 16, 32, 16, 2, 1)}
    chunk = trial.chunk_module(package)

    def call() -> Any:
        return chunk._fwd_tiles(64, 64, torch.bfloat16, False)

    assert trial.trial(package, wrong, {"f": call}, gpu_us, tiles) == Cost(refused="dq is wrong")
    assert timed == []
    assert trial.trial(package, right, {"f": call}, gpu_us, tiles) == Cost({"f": 7.0})
    assert timed == [(16, 32, 16, 2, 1)]


def test_a_process_may_crash_or_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "PATIENCE", 4.0)
    anything: Any = None
    process = Process(anything, serve)

    def cost(warps: Any) -> Cost:
        return process({"warps": warps})

    try:
        assert [cost(4).times["served"] for _ in range(2)] == [0, 1]
        assert "ended" in cost(8).refused
        assert cost(4).times["served"] == 0
        assert "no end" in cost(16).refused
        assert cost(4).times["served"] == 0
        assert cost(2).refused == "CUDA error"
        assert cost(4).times["served"] == 0
    finally:
        process.close()


def test_the_table_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Some")
    for table in tables.load():
        tables.save(table, tmp_path)
    best = {**BASE, "out": replace(BASE["out"], warps=8)}
    found = Found(best, Cost({"c": 1.0}), BASE, Cost({"c": 2.0}), 2, 0, True)
    _write("channel", GPUS["sm_90"], True, 128, found, tmp_path)
    (out,) = (t for t in tables.tile_tables(tables.load(tmp_path), "channel") if t.kernel == "out")
    assert tables.look_up(out.half, 227, 128) == replace(best["out"], contracted=128)
    assert tables.look_up(out.half, 227, 256) == BASE["out"]
    # a GPU with less shared memory has a table of its own
    _write("channel", GPUS["sm_80"], True, 100, found, tmp_path)
    (out,) = (t for t in tables.tile_tables(tables.load(tmp_path), "channel") if t.kernel == "out")
    assert [rows.shared for rows in out.half] == [163, 227]
    assert (tmp_path / "sm_80.json").exists()
    before = sorted(tmp_path.iterdir())
    _write("channel", GPUS["sm_89"], True, 128, replace(found, tiles=BASE), tmp_path)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("hgrn",), "no chunk form with tiles"),
        (("delta_rule",), "no chunk form with tiles"),
        (("gla", "--shapes", "1x1x1x64,1x1x1x128"), "the same head dimensions"),
        (("gla", "--dtypes", "int8"), "int8"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    done = flagen_("tune", *arguments)
    assert done.code == 2
    assert message in done.err


def test_a_step_has_words() -> None:
    assert str(Step(("states", "out"), "chunk")) == "states, out: chunk"
