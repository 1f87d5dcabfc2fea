"""The tiles that `flagen tune` tries, and which of them go together.

The steps are a descent along coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from flagen.plan.kernel_plan import Tile

Tiles = Mapping[str, Tile]
"""A tile for every kernel of a module."""

ON_STATES = ("states", "out", "grad", "values")
"""Kernels that pass states of chunks on: they agree about a chunk and about the blocks of K."""


@dataclass(frozen=True, slots=True)
class Step:
    """Kernels whose tiles are tried together, and what of them varies.

    `chunk`: the length of a chunk and the block of K, which they share. `blocks`: these unless
    shared, the columns and the warps. `stages`: how far ahead loads are.
    """

    kernels: tuple[str, ...]
    varies: str

    def __str__(self) -> str:
        return f"{', '.join(self.kernels)}: {self.varies}"


def steps(tiles: Tiles) -> Iterator[Step]:
    """What kernels share first, then kernel by kernel."""
    shared = tuple(kernel for kernel in tiles if kernel in ON_STATES)
    if shared:
        yield Step(shared, "chunk")
    for kernel in tiles:
        yield Step((kernel,), "blocks")
        yield Step((kernel,), "stages")


def candidates(base: Tiles, step: Step, half: bool, contracted: int) -> tuple[Tiles, ...]:
    """What to try in a step: tiles unlike `base`; `contracted` is what the walks contract."""
    found: list[Tiles] = []
    if step.varies == "chunk":
        # longer ones have twice the tiles of gradients, whose registers are at their limit
        for rows, block in (each for each in _chunks(half, contracted) if each[0] <= 64):
            new = {k: replace(base[k], rows=rows, block=block) for k in step.kernels}
            found.append({**base, **new})
    else:
        (kernel,) = step.kernels
        tile = base[kernel]
        vary = _stages(tile, half)
        if step.varies == "blocks":
            chunks = [(tile.rows, tile.block)]
            if kernel not in ON_STATES:
                chunks = [each for each in _chunks(half, contracted) if 2 * each[1] >= contracted]
            vary = _blocks(tile, chunks)
        found += [{**base, kernel: new} for new in vary]
    return tuple(tiles for tiles in found if allowed(tiles, half) and tiles != base)


def allowed(tiles: Tiles, half: bool) -> bool:
    """Whether tiles go together, and are none of those that are known to be wrong on Hopper."""
    shared = {(tile.rows, tile.block) for kernel, tile in tiles.items() if kernel in ON_STATES}
    return len(shared) < 2 and all(
        _sound(tile, kernel in ("out", "grad", "values"), half) for kernel, tile in tiles.items()
    )


def _sound(tile: Tile, no_loop: bool, half: bool) -> bool:
    """See flagen/README.md, decisions, and `plan/__init__.py`."""
    if not half or tile.rows < 64:
        return True
    if no_loop:
        return min(tile.block, tile.columns) >= 64 and tile.least >= 64
    return tile.columns >= 64 or min(tile.stages, tile.crowded_stages or tile.stages) > 1


def _chunks(half: bool, contracted: int) -> Iterator[tuple[int, int]]:
    """Lengths of chunks, and blocks of the contracted dimension."""
    for rows in (32, 64, 128) if half else (16, 32, 64):
        for block in (64, 128, 256) if half else (32, 64, 128):
            if block <= max(contracted, 64):
                yield rows, block


def _blocks(tile: Tile, chunks: Iterable[tuple[int, int]]) -> Iterator[Tile]:
    for rows, block in chunks:
        for columns in (32, 64, 128):
            for warps in (4, 8):
                yield replace(tile, rows=rows, block=block, columns=columns, warps=warps)


def _stages(tile: Tile, half: bool) -> Iterator[Tile]:
    for stages in (1, 2, 3, 4) if half else (1, 2):
        yield replace(tile, stages=stages, crowded_stages=None)
        if tile.crowded_stages is not None and stages > 2:
            yield replace(tile, stages=stages, crowded_stages=2)
