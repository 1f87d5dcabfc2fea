"""plan: forms become kernels with tiles. Nothing here depends on a shape that only a call knows.

Tiles were measured on an H200 (bench/results); each was checked there against float64, since wrong
configurations exist: two-byte tiles of 64 rows without pipelining (`stages` 1) leave the bounds of
shared memory there, by Triton 3.6.0's own allocation.
"""

from __future__ import annotations

from dataclasses import replace

from flagen.analyze.recurrence import Level
from flagen.derive.derivation import Derivation
from flagen.plan.kernel_plan import KernelPlan, ModulePlan, Tile, TileTable
from flagen.plan.scan import SCAN

__all__ = ["KernelPlan", "plan"]

FORWARD = TileTable(
    "fwd",
    half=(
        Tile(128, 64, 128, 64, 4, 3, crowded_stages=2),
        Tile(256, 64, 256, 32, 4, 2, crowded_stages=2),
    ),
    single=(
        Tile(64, 32, 64, 64, 8, 1, crowded_stages=1),
        Tile(256, 16, 128, 32, 8, 1, crowded_stages=1),
    ),
)
BACKWARD = TileTable(
    "bwd",
    half=(
        Tile(128, 64, 128, 64, 4, 3, crowded_stages=2),
        Tile(256, 64, 256, 32, 4, 2, crowded_stages=2),
    ),
    single=(
        Tile(64, 32, 64, 64, 8, 1, crowded_stages=1),
        Tile(256, 16, 128, 32, 8, 1, crowded_stages=1),
    ),
)
STATES = TileTable(
    "states",
    half=(Tile(256, 64, 64, 128, 4, 3, least=64),),
    single=(Tile(256, 16, 64, 64, 4, 2),),
)
OUT = TileTable(
    "out",
    half=(Tile(256, 64, 64, 64, 4, 1, least=64),),
    single=(Tile(256, 16, 64, 64, 4, 2),),
)
GRAD = TileTable(
    "grad",
    half=(Tile(256, 64, 64, 128, 4, 2, least=64),),
    single=(Tile(256, 16, 64, 64, 4, 2),),
)
CHANNEL_FORWARD = TileTable(
    "fwd",
    half=(
        Tile(128, 32, 128, 64, 8, 2, crowded_stages=2),
        Tile(256, 32, 256, 32, 8, 2, crowded_stages=2),
    ),
    single=(
        Tile(64, 16, 64, 64, 8, 1, crowded_stages=1),
        Tile(256, 16, 128, 32, 8, 1, crowded_stages=1),
    ),
)
SUM = TileTable(
    "sum",
    half=(Tile(256, 64, 128, 64, 4, 3),),
    single=(Tile(256, 32, 64, 32, 4, 1),),
)
PARALLEL = TileTable(
    "parallel",
    half=(Tile(128, 64, 128, 64, 4, 2), Tile(256, 64, 256, 32, 4, 2)),
    single=(Tile(64, 32, 64, 64, 8, 1), Tile(256, 16, 128, 32, 8, 1)),
)
PARALLEL_GATED = TileTable(
    "parallel",
    half=(Tile(128, 64, 128, 64, 4, 2, least=64), Tile(256, 64, 256, 64, 4, 2, least=64)),
    single=(Tile(64, 32, 64, 64, 8, 1), Tile(256, 16, 128, 32, 8, 1)),
)
PARALLEL_BY_CHANNEL = TileTable(
    "parallel",
    half=(Tile(256, 64, 64, 64, 4, 1, least=64),),
    single=(Tile(256, 16, 64, 64, 4, 1),),
)
KEPT = replace(PARALLEL_BY_CHANNEL, kernel="kept")

LEAST_SEGMENT = 1024
"""Tokens below which a segment is not worth the state that it enters with."""

_CHUNK = ModulePlan(
    file="chunk.py",
    template="module/chunk.py.jinja",
    kernels=("decay", "walk", "chunk_fwd", "chunk_bwd", "segment_sum", "segment_scan"),
    tiles=(FORWARD, BACKWARD, SUM),
)
_ON_STATES = ("chunk_fwd", "chunk_states", "chunk_grad", "segment_sum", "segment_scan")
_GATED = replace(
    _CHUNK,
    kernels=("walk", "scalar_read_gradients", "scalar_write_gradients", *_ON_STATES),
    tiles=(FORWARD, STATES, GRAD),
)
_BY_CHANNEL = replace(
    _CHUNK,
    kernels=(
        "channel_sums",
        "channel_from_middle",
        "channel_parted",
        "channel_scores",
        "channel_least",
        "channel_is_exact",
        "channel_reach",
        "walk_by_channel",
        "channel_gradients",
        "channel_gate_gradients",
        "chunk_out",
        *_ON_STATES,
    ),
    tiles=(CHANNEL_FORWARD, STATES, OUT, GRAD),
)
_KEPT = replace(
    _CHUNK,
    kernels=(
        "channel_sums",
        "channel_from_middle",
        "channel_parted",
        "channel_scores",
        "channel_reach",
        "channel_block",
        "channel_decayed",
        "channel_gradients",
        "channel_gate_gradients",
        "kept",
        "kept_states",
        "kept_out",
        "kept_grad",
        "kept_gate",
    ),
    tiles=(KEPT,),
)
_RECURRENT = ModulePlan(
    file="fused_recurrent.py",
    template="module/fused_recurrent.py.jinja",
    kernels=("decay", "step", "recurrent_fwd", "recurrent_bwd"),
    tiles=(),
)
_TOKEN = ModulePlan(
    file="fused_recurrent.py",
    template="module/token.py.jinja",
    kernels=("token_fwd", "token_bwd"),
    tiles=(),
)
_PARALLEL = ModulePlan(
    file="parallel.py",
    template="module/parallel.py.jinja",
    kernels=("decay", "parallel_walk", "parallel_fwd", "parallel_bwd"),
    tiles=(PARALLEL,),
)
_PARALLEL_GATED = replace(
    _PARALLEL,
    kernels=(
        "parallel_pair",
        "parallel_walk_gated",
        "parallel_fwd",
        "parallel_bwd_gated",
        "parallel_gate",
    ),
    tiles=(PARALLEL_GATED,),
)
_PARALLEL_BY_CHANNEL = replace(
    _PARALLEL,
    kernels=(
        "channel_sums",
        "channel_from_middle",
        "channel_parted",
        "channel_scores",
        "channel_reach",
        "channel_block",
        "channel_decayed",
        "channel_gradients",
        "channel_gate_gradients",
        "parallel_pair",
        "parallel_walk_by_channel",
        "parallel_fwd_by_channel",
        "parallel_bwd_by_channel",
        "parallel_gate",
    ),
    tiles=(PARALLEL_BY_CHANNEL,),
)
_NAIVE = ModulePlan(file="naive.py", template="module/naive.py.jinja", kernels=(), tiles=())
_INIT = ModulePlan(file="__init__.py", template="module/init.py.jinja", kernels=(), tiles=())


def plan(derivation: Derivation) -> KernelPlan:
    """The files of the operator, with the kernels of the forms that it has."""
    modules = [_INIT, _NAIVE]
    if "chunk" in derivation.forms or "fused_chunk" in derivation.forms:
        modules.append(_chunk(derivation))
    if "fused_recurrent" in derivation.forms:
        modules.append(_RECURRENT if derivation.plain else _TOKEN)
    if "parallel" in derivation.forms:
        modules.append(_parallel(derivation))
    return KernelPlan(derivation, tuple(modules), LEAST_SEGMENT)


def _chunk(derivation: Derivation) -> ModulePlan:
    """The module of the chunk forms, by what the decay depends on."""
    operands = derivation.operands
    if derivation.scan is not None:
        return SCAN
    if operands is None or not operands.gated:
        return _CHUNK
    if operands.kept:
        return _KEPT
    return _BY_CHANNEL if operands.level is Level.KEY else _GATED


def _parallel(derivation: Derivation) -> ModulePlan:
    """The module of the T x T form, likewise."""
    operands = derivation.operands
    if operands is None or not operands.gated:
        return _PARALLEL
    return _PARALLEL_BY_CHANNEL if operands.by_channel else _PARALLEL_GATED
