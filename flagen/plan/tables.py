"""Tables of tiles: what was measured, as files that `flagen tune` writes.

A file in `tiles/` holds rows for GPUs with at least so much shared memory, and is named after one
of them. A GPU has the rows of the largest file that it can hold, kernel by kernel and dtype by
dtype, or of the smallest that has any: so most rows are in the file of the largest GPUs. `walk` is
what the decay depends on: there is `none`, or it depends on the head (`constant`), the token too
(`scalar`), the channel too (`channel`); or it is the form `parallel`. Rows are no operator's: one
that nobody has tuned has those of its walk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flagen.plan.kernel_plan import Rows, Tile, TileTable

FOLDER = Path(__file__).parent / "tiles"
HALF, SINGLE = "half", "single"
"""Elements of two bytes, and of four."""

CROWDED = ("fwd", "bwd")
"""Kernels that one program per head may launch, or many."""


@dataclass(frozen=True, slots=True)
class Row:
    """A tile, and what it is for."""

    walk: str
    kernel: str
    dtype: str
    tile: Tile


@dataclass(frozen=True, slots=True)
class Table:
    """A file. `shared`: KiB of shared memory; `gpu`: where its rows were measured, or None."""

    name: str
    gpu: str | None
    shared: int
    rows: tuple[Row, ...]

    def text(self) -> str:
        """The file's text, one row per line."""
        lines = ",\n".join(f"    {json.dumps(_flat(row))}" for row in self.rows)
        head = f'  "gpu": {json.dumps(self.gpu)},\n  "shared": {self.shared},\n  "tiles": [\n'
        return f"{{\n{head}{lines}\n  ]\n}}\n"

    def with_row(self, row: Row) -> Table:
        """The table with `row`, in the place of one that is for the same."""

        def place(each: Row) -> tuple[str, str, str, int]:
            return each.walk, each.kernel, each.dtype, each.tile.contracted

        others = [each for each in self.rows if place(each) != place(row)]
        kinds = list(dict.fromkeys((each.walk, each.kernel, each.dtype) for each in self.rows))
        kind = (row.walk, row.kernel, row.dtype)
        order = {each: i for i, each in enumerate([*kinds, kind] if kind not in kinds else kinds)}
        rows = sorted([*others, row], key=lambda each: (order[place(each)[:3]], place(each)[3]))
        return replace(self, rows=tuple(rows))


def load(folder: Path = FOLDER) -> tuple[Table, ...]:
    """The tables of `folder`, by rising shared memory."""
    return tuple(sorted(map(_load, folder.glob("*.json")), key=lambda table: table.shared))


def save(table: Table, folder: Path = FOLDER) -> Path:
    """Write a table; the file."""
    path = folder / f"{table.name}.json"
    path.write_text(table.text(), encoding="utf-8")
    return path


def tile_tables(tables: Iterable[Table], walk: str) -> tuple[TileTable, ...]:
    """All rows for the kernels of a walk, kernel by kernel."""
    tables = tuple(tables)
    rows = [row for table in reversed(tables) for row in table.rows if row.walk == walk]
    return tuple(_tile_table(tables, walk, name) for name in dict.fromkeys(r.kernel for r in rows))


def _tile_table(tables: Iterable[Table], walk: str, kernel: str) -> TileTable:
    def rows(dtype: str) -> tuple[Rows, ...]:
        found: list[Rows] = []
        for table in tables:
            kind = (walk, kernel, dtype)
            tiles = [r.tile for r in table.rows if (r.walk, r.kernel, r.dtype) == kind]
            new = Rows(table.shared, tuple(sorted(tiles, key=_contracted)))
            if tiles and not (found and found[-1].tiles == new.tiles):
                found.append(new)
        return tuple(found)

    return TileTable(kernel, kernel in CROWDED, rows(HALF), rows(SINGLE))


def look_up(rows: tuple[Rows, ...], shared: int, contracted: int) -> Tile:
    """The tile for a GPU with `shared` KiB, as the generated functions choose it."""
    fitting = [each for each in rows if each.shared <= shared] or rows[:1]
    tiles = fitting[-1].tiles
    return next((tile for tile in tiles if contracted <= tile.contracted), tiles[-1])


def _contracted(tile: Tile) -> int:
    return tile.contracted


def _load(path: Path) -> Table:
    found = json.loads(path.read_text(encoding="utf-8"))
    names = ("walk", "kernel", "dtype")
    rows = tuple(
        Row(
            row["walk"],
            row["kernel"],
            row["dtype"],
            Tile(**{key: value for key, value in row.items() if key not in names}),
        )
        for row in found["tiles"]
    )
    return Table(path.stem, found["gpu"], found["shared"], rows)


def _flat(row: Row) -> dict[str, str | int]:
    """A row as it is written: what has its default is left out."""
    usual = Tile(0, 0, 0, 0, 0, 0)
    values = asdict(row.tile)
    shown = {
        key: value
        for key, value in values.items()
        if key not in ("crowded_stages", "least") or value != getattr(usual, key)
    }
    return {"walk": row.walk, "kernel": row.kernel, "dtype": row.dtype} | shown
