"""What an operator launches on a GPU that need not be there, and the compilation of that.

A rehearsal is a call of the operator's own functions on tensors without memory. Triton goes the
whole way from a launch to what it would compile, with a driver that stands in for the GPU; there
its own hook notes the kernel and what it is specialised on, in the form in which another process
can compile it. So what is compiled here has the keys that a launch looks up in Triton's cache,
since both are made by the same lines of Triton.

All of this runs in processes of their own, see `Workers`: a process has one driver.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]

from flagen.analyze.recurrence import state_heads
from flagen.gpus import GPU
from flagen.notebook import load_folder
from flagen.parse.spec import Spec
from flagen.plan.kernel_plan import Tile


@dataclass(frozen=True, slots=True)
class Operator:
    """Where an operator's files lie, and what its functions take: names with axes, and states."""

    folder: Path
    name: str
    inputs: tuple[tuple[str, tuple[str, ...]], ...]
    states: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, spec: Spec, folder: Path) -> Operator:
        """The operator of `spec`, whose files `notebook.store_files` put into `folder`."""
        inputs = tuple((each.name, each.axes) for each in spec.inputs if each.value is None)
        states = tuple((*state_heads(spec), *state.axes) for state in spec.state)
        return cls(folder, spec.name, inputs, states)

    @property
    def axes(self) -> tuple[str, ...]:
        """Every axis that has a size of its own, B and T first."""
        names = [axis for _, axes in self.inputs for axis in axes]
        return tuple(dict.fromkeys(["B", "T", *names, *(a for axes in self.states for a in axes)]))


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one form. `sizes` of all axes; `dtypes` of inputs that have not `dtype`.

    `train`: the backward too; `states`: with an initial and a final one; `packed`: the number of
    sequences in cu_seqlens, or 0.
    """

    form: str
    sizes: tuple[tuple[str, int], ...]
    dtype: str
    dtypes: tuple[tuple[str, str], ...] = ()
    train: bool = True
    states: bool = False
    packed: int = 0


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel of a module and what it is specialised on, as Triton writes that down."""

    module: str
    kernel: str
    specialization: str


@dataclass(frozen=True, slots=True)
class Made:
    """A compiled launch: the bytes of shared memory, and those of a thread that registers spill.

    `cached`: it was in Triton's cache before; `error` says why there is none.
    """

    launch: Launch
    seconds: float
    shared: int = 0
    spilled: int = 0
    cached: bool = False
    error: str = ""


class Driver:
    """What Triton asks a driver before it loads a kernel, answered for a GPU that is not there."""

    def __init__(self, gpu: GPU) -> None:
        self.gpu = gpu
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget(self.gpu.backend, self.gpu.arch, self.gpu.warp_size)

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """None that anything runs on."""
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Those that the operators' host code reads."""
        return {
            "max_shared_mem": self.gpu.shared,
            "multiprocessor_count": self.gpu.multiprocessors,
        }


def become(gpu: GPU) -> None:
    """Make this process one that rehearses for `gpu`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked decides
    triton.runtime.driver.set_active(Driver(gpu))


def record(
    operator: Operator, calls: tuple[Call, ...], tiles: Mapping[str, Tile] | None = None
) -> tuple[Launch, ...]:
    """What `calls` launch, each once; with `tiles` in place of those of the chunk forms."""
    package = _load(operator)
    found: dict[Launch, None] = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        kernel = fn.jit_function
        launch = Launch(kernel.module, kernel.__name__, compile["specialization_data"])
        found[launch] = None
        return True  # nothing is compiled, and nothing launched

    triton.knobs.runtime.jit_cache_hook = note
    try:
        with replaced(chunk_module(package), tiles or {}):
            for call in calls:
                _rehearse(operator, package, call)
    finally:
        triton.knobs.runtime.jit_cache_hook = None
    return tuple(found)


def compile_launch(operator: Operator, launch: Launch) -> Made:
    """Compile into Triton's cache, unless it is there."""
    _load(operator)
    known: list[bool] = []
    triton.knobs.compilation.listener = lambda cache_hit, **_: known.append(cache_hit)
    kernel = getattr(import_module(launch.module), launch.kernel)
    start = time.perf_counter()
    try:
        made = kernel.preload(launch.specialization)
        kernel.device_caches.clear()  # a kernel that is there is launched, and not noted
    except Exception as error:  # the compiler's errors are of many kinds; the caller reports them
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return Made(launch, time.perf_counter() - start, error=text)
    seconds = time.perf_counter() - start
    return Made(launch, seconds, made.metadata.shared, spilled(made.asm), all(known))


def spilled(asm: Mapping[str, Any]) -> int:
    """The bytes of a thread's stack; of NVIDIA's kernels where the tool that tells is there."""
    if "amdgcn" in asm:
        found = re.search(r"\.private_segment_fixed_size: +(\d+)", asm["amdgcn"])
        return int(found[1]) if found else 0
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        return 0
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return max(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", text)), default=0)


@contextmanager
def replaced(module: Any, tiles: Mapping[str, Tile]) -> Iterator[None]:
    """For each kernel the tile of `tiles` is what the module's `_<kernel>_tiles` knows."""
    before = {f"_{kernel}_tiles": getattr(module, f"_{kernel}_tiles") for kernel in tiles}
    try:
        for kernel, tile in tiles.items():
            setattr(module, f"_{kernel}_tiles", partial(_looked_up, module.block, tile))
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


def _looked_up(
    block: Callable[..., int],
    tile: Tile,
    contracted: int,
    columns: int,
    dtype: torch.dtype,
    crowded: bool = False,
) -> tuple[int, ...]:
    """What a generated function returns whose only row is `tile`."""
    stages = tile.crowded_stages if crowded and tile.crowded_stages else tile.stages
    sides = block(contracted, tile.block, tile.least), block(columns, tile.columns, tile.least)
    return tile.rows, *sides, tile.warps, stages


def chunk_module(package: ModuleType) -> ModuleType | None:
    """The module of the chunk forms, where there is one."""
    try:
        return import_module(f"{package.__name__}.chunk")
    except ModuleNotFoundError:
        return None


def runtime_module(package: ModuleType) -> ModuleType:
    """What the operator shares with those beside it."""
    return import_module(f"{package.__name__.rpartition('.')[0]}._runtime")


def _load(operator: Operator) -> ModuleType:
    package = load_folder(operator.folder, operator.name)
    runtime = runtime_module(package)
    if not runtime._rehearsing:
        runtime.rehearse(triton.runtime.driver.active)
    return package


def _rehearse(operator: Operator, package: ModuleType, call: Call) -> None:
    """One call, and its backward, on tensors without memory."""
    sizes, dtypes = dict(call.sizes), dict(call.dtypes)
    decode = call.form == "decode"
    sizes["T"] = 1 if decode else sizes["T"]
    N = call.packed or sizes["B"]
    if call.packed:
        sizes |= {"B": 1, "T": sizes["B"] * sizes["T"]}

    def empty(axes: tuple[str, ...], dtype: str, train: bool) -> torch.Tensor:
        size = [sizes[axis] if axis != "N" else N for axis in axes]
        kind = getattr(torch, dtype)
        return torch.empty(size, dtype=kind, device="meta", requires_grad=train)

    train = call.train and not decode
    options: dict[str, Any] = {}
    for name, axes in operator.inputs:
        batched = ("B", *axes) if "T" in axes else axes
        options[name] = empty(batched, dtypes.get(name, call.dtype), train)
    if call.packed:
        sizes["N+1"] = N + 1
        options["cu_seqlens"] = empty(("N+1",), dtypes.get("cu_seqlens", "int64"), False)
    states = [
        empty(("N", *axes), dtypes.get("initial_state", "float32"), train)
        for axes in operator.states
    ]
    given: Any = tuple(states) if len(states) > 1 else states[0]
    if decode:
        options |= {"state_pool": given, "slots": empty(("N",), "int64", False)}
    elif call.states:
        options |= {"initial_state": given, "output_final_state": True}
    with torch.set_grad_enabled(train):
        results = getattr(package, f"{call.form}_{operator.name}")(**options)
    if train:
        o, final = results
        outputs = [o, *(final if isinstance(final, tuple) else [final] * (final is not None))]
        leaves = [x for x in (*options.values(), *states * call.states) if _differentiable(x)]
        gradients = [torch.empty_like(x) for x in outputs]
        torch.autograd.grad(outputs, leaves, gradients, allow_unused=True)


def _differentiable(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.requires_grad


class Workers:
    """Processes that rehearse and compile for one GPU. Use it in a `with` statement."""

    def __init__(self, gpu: GPU, count: int) -> None:
        self.gpu = gpu
        context = multiprocessing.get_context("spawn")
        # Under Triton's interpreter nothing is compiled. Workers read the variable at their start.
        self.interpret = os.environ.pop("TRITON_INTERPRET", None)
        self.pool = ProcessPoolExecutor(
            count, mp_context=context, initializer=become, initargs=(gpu,)
        )

    def record(
        self,
        operator: Operator,
        calls: tuple[Call, ...],
        tiles: Mapping[str, Tile] | None = None,
    ) -> Future[tuple[Launch, ...]]:
        """See `record`."""
        return self.pool.submit(record, operator, calls, tiles)

    def compile(self, operator: Operator, launch: Launch) -> Future[Made]:
        """See `compile_launch`."""
        return self.pool.submit(compile_launch, operator, launch)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)
        if self.interpret is not None:
            os.environ["TRITON_INTERPRET"] = self.interpret


def default_workers() -> int:
    """As many as this process may use processors."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
