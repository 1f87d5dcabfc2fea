"""The types that `plan` makes: the kernels of a form, and the tiles that they work in."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.derive.derivation import Derivation


@dataclass(frozen=True, slots=True)
class Tile:
    """How much of a walk one program does, for contracted dimensions up to `contracted`.

    Blocks of `rows` tokens, of at most `block` of the contracted dimension and at most `columns` of
    the other; on `warps` warps, with loads `stages` iterations ahead, or `crowded_stages` where
    there are several programs per multiprocessor: then two share one. Blocks are not smaller than
    `least`, however small the dimension is.
    """

    contracted: int
    rows: int
    block: int
    columns: int
    warps: int
    stages: int
    crowded_stages: int | None = None
    least: int = 16


@dataclass(frozen=True, slots=True)
class Rows:
    """The tiles for GPUs with `shared` KiB of shared memory and more, by rising `contracted`."""

    shared: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class TileTable:
    """The tiles of one kernel, for two-byte and for four-byte elements, by rising `shared`.

    `crowded`: whether they depend on how many programs there are.
    """

    kernel: str
    crowded: bool
    half: tuple[Rows, ...]
    single: tuple[Rows, ...]


@dataclass(frozen=True, slots=True)
class ModulePlan:
    """One generated file: the template of its module and those of its kernels, in order.

    `walk` is the name under which tables have its tiles, if they do: see `plan.tables`.
    """

    file: str
    template: str
    kernels: tuple[str, ...]
    tiles: tuple[TileTable, ...] = ()
    walk: str = ""


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """Everything that is decided about an operator before any text exists.

    Sequences are cut into segments of at least `least_segment` tokens, so that every multiprocessor
    has two programs, or one where a walk is best `alone`, as it is without a decay (linear_attn at
    B1 T16384 H16 D128 on an H200, bfloat16: 113 us forward, 130 with two).
    """

    derivation: Derivation
    modules: tuple[ModulePlan, ...]
    least_segment: int
    alone: bool
