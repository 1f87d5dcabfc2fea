"""The kernels and tiles of an elementwise scan."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.plan.kernel_plan import ModulePlan

ROWS = 128
"""Tokens in a tile. The states between tiles, saved for the backward, are 2 / ROWS as many bytes as
a tensor of two-byte elements."""

PARTS = 1
"""Programs that sum up a segment."""

LEAST_SEGMENT = 512
"""Tokens below which a segment is not worth its sum."""


@dataclass(frozen=True, slots=True)
class ScanTile:
    """A tile: ROWS tokens of `channels`, of which each of `groups` groups holds ROWS / groups.

    A group's tokens are in registers, so that fewer groups need more registers and more groups more
    exchanges between threads. On `warps` warps, with loads `stages` iterations ahead.
    """

    groups: int
    channels: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class ScanModule(ModulePlan):
    """The file of a scan's chunk forms; per kernel, tiles for two-byte and four-byte elements."""

    scan_tiles: tuple[tuple[str, ScanTile, ScanTile], ...] = ()


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
        ("fwd", ScanTile(16, 64, 4, 3), ScanTile(8, 32, 4, 3)),
        ("bwd", ScanTile(8, 64, 8, 3), ScanTile(8, 32, 4, 3)),
        ("sum", ScanTile(16, 64, 4, 4), ScanTile(8, 32, 4, 3)),
    ),
)
