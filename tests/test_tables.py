"""Tables of tiles: their files, and that generated functions choose what the tables say."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flagen.pipeline import Pipeline
from flagen.plan import plan
from flagen.plan.kernel_plan import ModulePlan, Tile
from flagen.plan.tables import HALF, SINGLE, Row, Table, load, look_up, save, tile_tables
from flagen.render import render

ROOT = Path(__file__).parent.parent
DERIVATION = Pipeline()(ROOT / "specs/simple_gla.yaml").derivation

SMALL = Table(
    "small",
    None,
    99,
    (
        Row("scalar", "fwd", HALF, Tile(128, 32, 64, 32, 4, 2, crowded_stages=1)),
        Row("scalar", "fwd", HALF, Tile(256, 16, 64, 32, 4, 1)),
        Row("scalar", "grad", SINGLE, Tile(256, 16, 32, 32, 4, 1)),
    ),
)
BIG = load()[-1:]
SMALLER = Table("smaller", None, 64, (Row("scalar", "fwd", HALF, Tile(256, 16, 32, 16, 2, 1)),))


def functions(tables: tuple[Table, ...], shared: int) -> tuple[ModulePlan, dict[str, Any]]:
    """The functions that look tiles up, as they are generated, on a GPU with `shared` KiB."""
    planned = plan(DERIVATION, tables)
    (module,) = (each for each in planned.modules if each.file == "chunk.py")
    (file,) = (each for each in render(planned) if each.path.endswith("chunk.py"))
    statements = ast.parse(file.text).body
    tiles = [x for x in statements if isinstance(x, ast.FunctionDef) and x.name.endswith("_tiles")]
    source = "\n\n".join(map(ast.unparse, tiles))

    def block(size: int, most: int, least: int = 16) -> int:
        return min(max(least, 1 << (size - 1).bit_length()), most)

    names: dict[str, Any] = {"block": block, "torch": torch}
    names["shared_memory"] = lambda: shared << 10
    exec(compile(source, "tiles", "exec"), names)
    return module, names


@pytest.mark.parametrize("tables", [load(), (SMALL, *BIG), (SMALLER, SMALL, *BIG)])
@pytest.mark.parametrize("shared", [48, 64, 99, 163, 227])
def test_generated_functions_choose_the_rows(tables: tuple[Table, ...], shared: int) -> None:
    module, names = functions(tables, shared)
    assert {table.kernel for table in module.tiles} >= {"fwd", "states", "grad"}
    for table in module.tiles:
        for dtype, rows in ((torch.bfloat16, table.half), (torch.float32, table.single)):
            for contracted in (16, 64, 100, 128, 129, 256, 512):
                tile = look_up(rows, shared, contracted)
                for crowded in (False, True) if table.crowded else (False,):
                    arguments = [contracted, 512, dtype, *[crowded] * table.crowded]
                    found = names[f"_{table.kernel}_tiles"](*arguments)
                    stages = tile.crowded_stages if crowded and tile.crowded_stages else tile.stages
                    expected = (tile.rows, tile.block, tile.columns, tile.warps, stages)
                    size = max(tile.least, 1 << (contracted - 1).bit_length())
                    assert found == (tile.rows, min(size, tile.block), *expected[2:])


def test_rows_by_shared_memory() -> None:
    found = {each.kernel: each for each in tile_tables((SMALLER, SMALL, *BIG), "scalar")}
    fwd, states, grad = (found[kernel] for kernel in ("fwd", "states", "grad"))
    assert [rows.shared for rows in fwd.half] == [64, 99, 227]
    assert [rows.shared for rows in fwd.single] == [227]
    assert look_up(fwd.half, 227, 128) == look_up(tile_tables(BIG, "scalar")[0].half, 227, 128)
    assert look_up(fwd.half, 163, 128).rows == 32
    assert look_up(fwd.half, 65, 128).rows == 16
    assert look_up(fwd.half, 10, 1024).columns == 16
    assert look_up(states.half, 10, 64) == look_up(states.half, 227, 64)
    assert look_up(grad.single, 100, 64).block == 32


def test_shipped_files_are_as_they_are_written() -> None:
    found = load()
    assert [table.shared for table in found] == sorted({table.shared for table in found})
    for table in found:
        path = ROOT / f"flagen/plan/tiles/{table.name}.json"
        assert path.read_text(encoding="utf-8") == table.text()


def test_save_and_load(tmp_path: Path) -> None:
    for table in (SMALL, SMALLER, *BIG):
        save(table, tmp_path)
    assert load(tmp_path) == (SMALLER, SMALL, *BIG)


def test_a_row_has_its_place() -> None:
    old = SMALL.rows[0]
    new = replace(old, tile=replace(old.tile, rows=64))
    assert SMALL.with_row(new).rows == (new, *SMALL.rows[1:])
    narrow = replace(old, tile=replace(old.tile, contracted=64))
    assert SMALL.with_row(narrow).rows == (narrow, *SMALL.rows)
    other = Row("channel", "out", HALF, old.tile)
    assert SMALL.with_row(other).rows == (*SMALL.rows, other)


def test_a_class_of_its_own_is_left_alone() -> None:
    """With the shipped tables alone, nothing depends on the GPU where one file has all rows."""
    text = render(plan(DERIVATION, BIG))
    assert not any("shared_memory()" in file.text for file in text)
    text = render(plan(DERIVATION, (SMALL, *BIG)))
    assert any("if shared_memory() < 227 << 10:" in file.text for file in text)


def test_tiles_of_a_rehearsal_are_those_of_a_table() -> None:
    from flagen.rehearsal import replaced

    _, names = functions(BIG, 227)
    module = SimpleNamespace(**{k: v for k, v in names.items() if not k.startswith("__")})
    original = module._fwd_tiles
    tile = SMALL.rows[0].tile
    with replaced(module, {"fwd": tile}):
        assert module._fwd_tiles(100, 20, torch.bfloat16, False) == (32, 64, 32, 4, 2)
        assert module._fwd_tiles(100, 20, torch.bfloat16, True) == (32, 64, 32, 4, 1)
    assert module._fwd_tiles is original
