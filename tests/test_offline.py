"""Every generated kernel compiled for GPUs that are not there, with its launcher's tiles.

It compiles, its tiles fit in shared memory, registers do not spill beyond a limit, the matrix units
and asynchronous copies are used, and no loop has the hazard of `hazards`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hazards import Hazard, hazards

from flagen.gpus import GPUS

if TYPE_CHECKING:
    from offline import Report

LONG, SHORT = (1, 16384), (2, 512)

# (form, target, dtype, D). A chunk form of one long sequence has every kernel of its module.
CASES = [
    *(("chunk", "sm_90", "bfloat16", D) for D in (64, 100, 128, 256)),
    *(("parallel", "sm_90", "bfloat16", D) for D in (64, 128, 256)),
    *(("fused_recurrent", "sm_90", "bfloat16", D) for D in (64, 128, 256)),
    *(("chunk", "sm_90", "float32", D) for D in (64, 128, 256)),
    *(("parallel", "sm_90", "float32", D) for D in (64, 256)),
    ("chunk", "sm_90", "float16", 128),
    ("fused_recurrent", "sm_90", "float32", 128),
    *(("chunk", "sm_80", "bfloat16", D) for D in (64, 128, 256)),
    ("parallel", "sm_80", "bfloat16", 256),
    ("fused_recurrent", "sm_80", "float16", 128),
    ("chunk", "sm_80", "float32", 128),
    *(("chunk", "gfx942", "bfloat16", D) for D in (64, 128, 256)),
    ("parallel", "gfx942", "float16", 128),
    ("fused_recurrent", "gfx942", "bfloat16", 64),
    ("chunk", "gfx942", "float32", 256),
]

# Bytes per thread that registers may spill to memory, in bfloat16 and float16. On Hopper products
# accumulate in registers alone, so a walk over chunks of 128 is at the limit of 255 registers. One
# with 256 channels spills, and is 20% faster on an H200 than one of half the columns that does not.
SPILL = {"sm_90": 512, "sm_80": 2304, "gfx942": 4096}
SPILL_256 = 1280


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    """A process without Triton's interpreter, where kernels can be compiled."""
    if sys.platform != "linux":
        pytest.skip("Triton compiles on Linux")
    before = os.environ.pop("TRITON_INTERPRET", None)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(int).result()  # it has its environment now
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before
        yield pool


def reports(worker: ProcessPoolExecutor, request: tuple) -> list[Report]:
    return worker.submit(_reports, request).result()


def _reports(request: tuple) -> list[Report]:
    import offline

    return offline.reports(offline.Request(*request))


def _planted(name: str) -> list[Hazard]:
    import offline

    return offline.planted(name)


def _shared_for(call: tuple[str, ...]) -> dict[str, int]:
    import shared_memory

    return shared_memory.shared_for(*call)


def made(worker: ProcessPoolExecutor, form: str, target: str, dtype: str, D: int) -> list[Report]:
    B, T = LONG if form == "chunk" else SHORT
    return reports(worker, ("retention", form, target, dtype, B, T, 4, D))


@pytest.mark.parametrize(
    "form, target, dtype, D", CASES, ids=["-".join(map(str, case)) for case in CASES]
)
def test_compiles(form: str, target: str, dtype: str, D: int, worker: ProcessPoolExecutor) -> None:
    shared = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}[target]
    found = made(worker, form, target, dtype, D)
    wanted = {
        "chunk": {"segment_sum", "segment_scan", "chunk_fwd", "chunk_bwd"},
        "parallel": {"parallel_fwd", "parallel_bwd"},
        "fused_recurrent": {"recurrent_fwd", "recurrent_bwd"},
    }[form]
    sums = {"total_kernel"}  # of blocks, where a head has several
    assert {f"retention_{name}_kernel" for name in wanted} == {r.kernel for r in found} - sums
    for r in found:
        assert r.shared <= shared, r
        assert not r.hazards, r
        if dtype != "float32":
            assert r.stack <= (SPILL_256 if (target, D) == ("sm_90", 256) else SPILL[target]), r
        if form == "fused_recurrent" or "scan" in r.kernel or r.kernel in sums:
            continue
        if dtype == "float32" and target != "gfx942":
            # every product of float32 is three of TF32, which is what tensor cores take
            assert (r.wgmma + r.mma) % 3 == 0 < r.wgmma + r.mma, f"quietly in TF32: {r}"
        elif target == "sm_90":
            assert r.wgmma > 0, f"a product does not use the matrix unit of Hopper: {r}"
            assert r.mma == 0, r
        else:
            assert r.mma > 0, r
        if form == "chunk" and dtype != "float32" and target != "gfx942" and r.stages > 1:
            assert r.async_copies > 0, f"loads are not pipelined: {r}"


def test_packed_compiles(worker: ProcessPoolExecutor) -> None:
    """With cu_seqlens, and so many sequences that no sequence has segments."""
    found = reports(worker, ("retention", "fused_chunk", "sm_90", "bfloat16", 1, 8192, 16, 128, 64))
    assert {r.kernel for r in found} == {
        "retention_chunk_fwd_kernel",
        "retention_chunk_bwd_kernel",
    }
    for r in found:
        assert not r.hazards, r
        assert r.stack <= SPILL["sm_90"], r


def test_lint_finds_a_compiled_hazard(worker: ProcessPoolExecutor) -> None:
    """acc += dot(A, B); s += sum(B): Triton gives the ring of B one slot too few."""
    (hazard,) = worker.submit(_planted, "product_and_sum").result()
    assert hazard.slots == hazard.ahead == 2
    assert hazard.age == 0
    assert worker.submit(_planted, "product_alone").result() == []


LOOP = """
  %a = ttg.local_alloc : () -> !ttg.memdesc<SLOTSx64x64xbf16, #shared, #smem, mutable>
  %a_0 = ttg.memdesc_index %a[%c0] : !ttg.memdesc -> !ttg.memdesc
  %t_0 = ttg.async_copy_global_to_local %p, %a_0 mask %m : tensor -> <64x64xbf16>
  %a_1 = ttg.memdesc_index %a[%c1] : !ttg.memdesc -> !ttg.memdesc
  %t_1 = ttg.async_copy_global_to_local %p, %a_1 mask %m : tensor -> <64x64xbf16>
  %r = scf.for %i = %c0 to %n step %c1 iter_args(%acc = %zero) -> (tensor)  : i32 {
    %a_i = ttg.memdesc_index %a[%i] : !ttg.memdesc -> !ttg.memdesc
    %a_t = ttg.memdesc_trans %a_i {order = array<i32: 1, 0>} : !ttg.memdesc -> !ttg.memdesc
    %d = ttng.warp_group_dot %x, %a_t, %acc {inputPrecision = 0 : i32, isAsync = true} : tensor
    %w = ttng.warp_group_dot_wait %d {pendings = PENDING : i32} : tensor
    %a_j = ttg.memdesc_index %a[%j] : !ttg.memdesc -> !ttg.memdesc
    %t_j = ttg.async_copy_global_to_local %p, %a_j mask %m : tensor -> <64x64xbf16>
    scf.yield %w : tensor
  }
"""


@pytest.mark.parametrize(
    "slots, pending, ages",
    [
        (3, 0, []),
        (3, 1, []),
        (3, 2, [1]),  # the product of the iteration before reads the slot that is filled
        (4, 2, []),
        (2, 0, []),
        (2, 1, [0]),
    ],
)
def test_lint(slots: int, pending: int, ages: list[int]) -> None:
    text = LOOP.replace("SLOTS", str(slots)).replace("PENDING", str(pending))
    assert [h.age for h in hazards(text)] == ages


# What needs most, on each of the GPUs; with one long sequence a chunk form has every kernel.
PLANNED = [
    ("sm_80", "linear_attn", "chunk", "1x4096x2x256", "float32", "train"),
    ("sm_89", "simple_gla", "chunk", "1x4096x2x128", "bfloat16", "train"),
    ("sm_90", "gla", "chunk", "1x4096x2x128", "bfloat16", "train"),
    ("sm_100", "simple_gla", "fused_chunk", "1x4096x2x256", "bfloat16", "infer"),
    ("gfx942", "simple_gla", "fused_chunk", "1x4096x2x256", "bfloat16", "train"),
    ("gfx942", "gla", "chunk", "1x512x2x128", "bfloat16", "infer"),
]


@pytest.mark.parametrize("call", PLANNED, ids="-".join)
def test_shared_memory(call: tuple[str, ...], worker: ProcessPoolExecutor) -> None:
    """Every kernel of forward and backward fits the GPU, with the tiles that it would have."""
    found = worker.submit(_shared_for, call).result()
    assert found
    for kernel, shared in found.items():
        assert shared <= GPUS[call[0]].shared, kernel
