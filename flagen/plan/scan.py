"""The kernels and tiles of an elementwise scan."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.plan.kernel_plan import ModulePlan

ROWS = 64
"""Tokens between two states saved for the backward, a tile of which starts from each. They are
2 / ROWS as many bytes as a tensor of two-byte elements."""

PARTS = 1
"""Programs that sum up a segment."""

LEAST_SEGMENT = 512
"""Tokens below which a segment is not worth its sum."""


@dataclass(frozen=True, slots=True)
class ScanTile:
    """A tile: `tokens` of `channels`, of which each of `groups` groups holds tokens / groups.

    A group's tokens are in registers, so that fewer groups need more registers and more groups more
    exchanges between threads. On `warps` warps, with loads `stages` iterations ahead. A saved state
    lies before a group: a group's tokens divide ROWS.
    """

    tokens: int
    groups: int
    channels: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class ScanModule(ModulePlan):
    """The file of a scan's chunk forms; per kernel, tiles for two-byte and four-byte elements.

    `crowded`: of two-byte elements, in a forward of more programs than there are multiprocessors.
    """

    scan_tiles: tuple[tuple[str, ScanTile, ScanTile], ...] = ()
    crowded: ScanTile | None = None


SCAN = ScanModule(
    file="chunk.py",
    template="module/scan.py.jinja",
    kernels=(
        "scan_compose",
        "scan_compose_before",
        "scan_enter",
        "scan_segment",
        "scan_sum",
        "scan_fwd",
        "scan_bwd",
    ),
    scan_tiles=(
        ("fwd", ScanTile(128, 16, 64, 4, 3), ScanTile(128, 8, 32, 4, 3)),
        ("bwd", ScanTile(ROWS, 4, 64, 4, 3), ScanTile(ROWS, 4, 32, 4, 3)),
        ("sum", ScanTile(128, 16, 64, 4, 3), ScanTile(128, 8, 32, 4, 3)),
    ),
    crowded=ScanTile(64, 8, 64, 4, 3),
)
