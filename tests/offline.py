"""Kernels compiled for a GPU that is not there; runs in a process without Triton's interpreter.

`launches` calls a public function on tensors without memory and notes what it launches, so that
what is compiled is what a launcher picks: tiles, warps, stages and specialisations. `compiled`
compiles one launch and reads off what it needs and how it was made.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton
from hazards import Hazard, hazards
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
"""The shared memory that a program may have, in bytes."""

MULTIPROCESSORS = 132
POINTER = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


@dataclass(frozen=True)
class Request:
    """A call of a public function whose kernels are wanted.

    B, T, H and D are the sizes of its inputs; `packed` is the number of sequences in cu_seqlens.
    """

    op: str
    form: str
    target: str
    dtype: str
    B: int
    T: int
    H: int
    D: int
    packed: int = 0

    def __str__(self) -> str:
        packed = f"-N{self.packed}" if self.packed else ""
        return f"{self.form}-{self.target}-{self.dtype}-B{self.B}-T{self.T}-D{self.D}{packed}"


@dataclass(frozen=True)
class Report:
    """What a compiled kernel needs: bytes of shared memory and stack, registers, instructions."""

    kernel: str
    tiles: str
    shared: int
    registers: int
    stack: int
    wgmma: int
    mma: int
    async_copies: int
    stages: int
    hazards: tuple[Hazard, ...]


def reports(request: Request) -> list[Report]:
    """A report on every kernel that a forward and backward launches; each one once."""
    seen: dict[str, Report] = {}
    for kernel, arguments, options in launches(request):
        key = f"{kernel.__name__} {_described(kernel, arguments)} {options}"
        if key not in seen:
            seen[key] = compiled(kernel, arguments, options, request.target)
    return list(seen.values())


def launches(request: Request) -> list[tuple[JITFunction, dict[str, Any], dict[str, Any]]]:
    """The kernels of a forward and backward of `request`, their arguments and options."""
    found: list[tuple[JITFunction, dict[str, Any], dict[str, Any]]] = []

    def note(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        named = {name: kwargs.pop(name) for name in self.arg_names if name in kwargs}
        found.append((self, dict(zip(self.arg_names, args, strict=False)) | named, kwargs))

    package = importlib.import_module(f"generated.{request.op}")
    for name in ("chunk", "fused_recurrent", "parallel"):
        _pretend(importlib.import_module(f"generated.{request.op}.{name}"), request.target)
    dtype = getattr(torch, request.dtype)
    size = (request.B, request.T, request.H, request.D)
    q, k, v = (torch.empty(size, dtype=dtype, device="meta", requires_grad=True) for _ in range(3))
    options: dict[str, Any] = {}
    if request.packed:
        options["cu_seqlens"] = torch.empty(request.packed + 1, dtype=torch.int64, device="meta")
    if not request.form.startswith("parallel"):
        N = request.packed or request.B
        state = (N, request.H, request.D, request.D)
        options["initial_state"] = torch.empty(state, device="meta", requires_grad=True)
        options["output_final_state"] = True
    launch = JITFunction.run
    JITFunction.run = note
    try:
        o, ht = getattr(package, f"{request.form}_{request.op}")(q, k, v, **options)
        outputs = [o] if ht is None else [o, ht]
        torch.autograd.grad(outputs, [q, k, v], [torch.empty_like(y) for y in outputs])
    finally:
        JITFunction.run = launch
    return found


def _pretend(module: Any, target: str) -> None:
    """Make a generated module work on tensors without memory as it does on those of the target."""
    tf32 = target.startswith("sm_")
    fakes = {
        "runs_kernels": lambda x: True,
        "autocast": lambda *tensors: tensors,
        "num_sms": lambda device: MULTIPROCESSORS,
        "shared_memory": lambda: SHARED[target],
        "dot_precision": lambda device, dtype: (
            "tf32x3" if tf32 and dtype == torch.float32 else "ieee"
        ),
    }
    for place in (module, importlib.import_module("generated._runtime")):
        for name, fake in fakes.items():
            if hasattr(place, name):
                setattr(place, name, fake)


def compiled(
    kernel: JITFunction, arguments: dict[str, Any], options: dict[str, Any], target: str
) -> Report:
    """The report on one launch."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        special = not parameter.do_not_specialize
        whole = isinstance(value, int) and not isinstance(value, bool)
        if parameter.is_constexpr or value is None or (special and whole and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTER[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
            continue
        signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        if special and whole and value % 16 == 0:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=TARGETS[target], options=options)
    text = made.asm["ttgir"]
    registers, stack = (
        _resources(made.asm["cubin"])
        if "cubin" in made.asm
        else (_amd(made.asm["amdgcn"], "vgpr_count"), _amd(made.asm["amdgcn"], "private_segment"))
    )
    return Report(
        kernel.__name__,
        _described(kernel, arguments),
        made.metadata.shared,
        registers,
        stack,
        len(re.findall(r"warp_group_dot\b(?!_)", text)),
        text.count("tt.dot "),
        text.count("async_copy_global_to_local"),
        options.get("num_stages", 3),
        tuple(hazards(text)),
    )


def planted(name: str) -> list[Hazard]:
    """The hazards of a kernel of `planted`, for sm_90 with four warps and three stages."""
    kernel = getattr(importlib.import_module("planted"), name)
    arguments = {n: torch.empty(0, dtype=torch.bfloat16) for n in kernel.arg_names}
    arguments |= {"c": torch.empty(0), "s": torch.empty(0), "n": 1000, "B": 64}
    return list(compiled(kernel, arguments, {"num_warps": 4, "num_stages": 3}, "sm_90").hazards)


def _described(kernel: JITFunction, arguments: dict[str, Any]) -> str:
    """The arguments that a kernel is specialised on, as text."""
    parts = []
    for parameter in kernel.params:
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            parts.append(f"{parameter.name}={value}")
        elif value is None:
            parts.append(f"no {parameter.name}")
    return " ".join(parts)


@lru_cache
def _cuobjdump() -> Path:
    return Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes of stack per thread: what registers spill to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_cuobjdump()), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", text)
    if found is None:
        raise ValueError(f"cuobjdump -res-usage printed {text!r}")
    registers, stack, local = map(int, found.groups())
    return registers, max(stack, local)


def _amd(assembly: str, what: str) -> int:
    """The number that the metadata of an AMD kernel has under a name that begins with `what`."""
    found = re.search(rf"\.{what}\w*: +(\d+)", assembly)
    if found is None:
        raise ValueError(f"no .{what} in the assembly")
    return int(found[1])
