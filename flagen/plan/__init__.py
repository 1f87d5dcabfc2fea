"""plan: forms become kernels with tiles. Nothing here depends on a shape that only a call knows.

Tiles are in `tiles/`, read by `tables`. Those for 227 KiB of shared memory were measured on an
H200 (bench/results); each was checked there against float64, since wrong configurations exist:
some two-byte tiles of 64 rows without pipelining (`stages` 1), as those of 32 columns, leave the
bounds of shared memory there, by Triton 3.6.0's own allocation. Those that are used are clean under
compute-sanitizer. Those for less memory were not measured: they are the same, made smaller where a
kernel did not fit; a test compiles some of them.
"""

from __future__ import annotations

from dataclasses import replace

from flagen.analyze.recurrence import Level
from flagen.derive.derivation import Derivation
from flagen.plan.kernel_plan import KernelPlan, ModulePlan
from flagen.plan.scan import SCAN
from flagen.plan.tables import Table, load, tile_tables

__all__ = ["KernelPlan", "plan"]

LEAST_SEGMENT = 1024
"""Tokens below which a segment is not worth the state that it enters with."""

_CHUNK = ModulePlan(
    file="chunk.py",
    template="module/chunk.py.jinja",
    kernels=("decay", "walk", "chunk_fwd", "chunk_bwd", "segment_sum", "segment_scan"),
    walk="none",
)
_CONSTANT = replace(_CHUNK, walk="constant")
_GATED = replace(
    _CHUNK,
    kernels=(
        "walk",
        "chunk_fwd",
        "scalar_chunk_states",
        "scalar_chunk_grad",
        "segment_sum",
        "segment_scan",
    ),
    walk="scalar",
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
        "channel_exact",
        "channel_reach",
        "walk_by_channel",
        "channel_gradients",
        "channel_gate_gradients",
        "chunk_fwd",
        "channel_chunk_states",
        "channel_out",
        "channel_chunk_out",
        "channel_grad",
        "channel_chunk_grad",
        "channel_values",
        "channel_chunk_values",
        "segment_sum",
        "segment_scan",
    ),
    walk="channel",
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
    walk="kept",
)
_RECURRENT = ModulePlan(
    file="fused_recurrent.py",
    template="module/fused_recurrent.py.jinja",
    kernels=("decay", "step", "recurrent_fwd", "recurrent_bwd"),
)
_TOKEN = ModulePlan(
    file="fused_recurrent.py",
    template="module/token.py.jinja",
    kernels=("token_fwd", "token_bwd"),
)
_PARALLEL = ModulePlan(
    file="parallel.py",
    template="module/parallel.py.jinja",
    kernels=("decay", "parallel_walk", "parallel_fwd", "parallel_bwd"),
    walk="parallel",
)
_ATTENTION = ModulePlan(
    file="parallel.py",
    template="module/attention.py.jinja",
    kernels=("attention_products", "attention"),
    walk="attention",
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
    walk="parallel_scalar",
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
    walk="parallel_channel",
)
_NAIVE = ModulePlan(file="naive.py", template="module/naive.py.jinja", kernels=())
_INIT = ModulePlan(file="__init__.py", template="module/init.py.jinja", kernels=())


def plan(derivation: Derivation, tables: tuple[Table, ...] | None = None) -> KernelPlan:
    """The files of the operator, with the kernels of the forms that it has.

    `tables` are those that come with flagen, unless others are given.
    """
    modules = [_INIT, _NAIVE]
    if "chunk" in derivation.forms or "fused_chunk" in derivation.forms:
        modules.append(_chunk(derivation))
    if "fused_recurrent" in derivation.forms:
        modules.append(_RECURRENT if derivation.plain else _TOKEN)
    if "parallel" in derivation.forms:
        modules.append(_parallel(derivation))
    known = load() if tables is None else tables
    planned = (replace(each, tiles=tile_tables(known, each.walk)) for each in modules)
    level = derivation.operands.level if derivation.operands else None
    return KernelPlan(derivation, tuple(planned), LEAST_SEGMENT, alone=level is Level.NONE)


def _chunk(derivation: Derivation) -> ModulePlan:
    """The module of the chunk forms, by what the decay depends on."""
    operands = derivation.operands
    if derivation.scan is not None:
        return SCAN
    if operands is None or not operands.gated:
        return _CONSTANT if operands and operands.level is Level.CONSTANT else _CHUNK
    if operands.kept:
        return _KEPT
    if operands.level is not Level.KEY:
        return _GATED
    if derivation.walks is not None and derivation.walks.key is not None:
        return replace(_BY_CHANNEL, kernels=("channel_key_gradient", *_BY_CHANNEL.kernels))
    return _BY_CHANNEL


def _parallel(derivation: Derivation) -> ModulePlan:
    """The module of the T x T form, likewise; from its scores where there are any."""
    operands = derivation.operands
    if derivation.attention is not None:
        return _ATTENTION
    if operands is None or not operands.gated:
        return _PARALLEL
    return _PARALLEL_BY_CHANNEL if operands.by_channel else _PARALLEL_GATED
