"""Forward and backward of an operator's form, on a GPU or on one that is not there.

Prints as JSON, kernel by kernel, whether Triton's cache had what is launched. It is a program of
its own, without Triton's interpreter, with the cache in TRITON_CACHE_DIR.

Without a GPU, tensors are on the CPU and a driver loads and launches nothing; all before that is as
on a GPU. `flagen warmup` is not used here: what it compiled is what this looks for.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import triton
from triton.backends.compiler import GPUTarget

FACTS = {
    "sm_90": (GPUTarget("cuda", 90, 32), 132, 227 << 10),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 304, 64 << 10),
}


class Driver:
    """Loads and launches nothing."""

    def __init__(self, arch: str) -> None:
        self.target, self.multiprocessors, self.shared = FACTS[arch]
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.shared, "multiprocessor_count": self.multiprocessors}

    def launcher_cls(self, src: Any, metadata: Any) -> Any:
        return lambda *_: None

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, ...]:
        return None, None, 0, 0, 1024


def pretend(op: str, arch: str) -> None:
    """Make the host code of an operator take CPU tensors for tensors on a GPU."""
    driver = Driver(arch)
    triton.runtime.driver.set_active(driver)
    torch.cuda.current_device = lambda: 0
    cuda = driver.target.backend == "cuda"
    early = cuda and driver.target.arch >= 90
    runtime = import_module("generated._runtime")
    runtime.EARLY = triton.language.constexpr(early)
    _ = runtime.begin.cache_key
    fakes = {
        "starts_early": lambda: early,
        "_stream": lambda device: 0,  # calls are recorded, and their kernels compiled together
        "runs_kernels": lambda x: True,
        "num_sms": lambda device: driver.multiprocessors,
        "shared_memory": lambda: driver.shared,
        "dot_precision": lambda device, dtype: "tf32x3" if cuda else "ieee",
    }
    for module in (f"{op}.chunk", f"{op}.fused_recurrent", "_runtime"):
        made = import_module(f"generated.{module}")
        for name, fake in fakes.items():
            if hasattr(made, name):
                setattr(made, name, fake)


def call(op: str, form: str, dtype: str, gate: str, shape: str, train: bool, device: str) -> None:
    B, T, H, D = map(int, shape.split("x"))
    inputs = []
    for name in "qkvg" if gate else "qkv":
        kind = getattr(torch, gate if name == "g" else dtype)
        x = torch.zeros(B, T, H, D, device=device, dtype=kind)
        inputs.append(x.requires_grad_(train))
    o, _ = getattr(import_module(f"generated.{op}"), f"{form}_{op}")(*inputs)
    if train:
        torch.autograd.grad(o, inputs, torch.zeros_like(o))


def main(op: str, form: str, arch: str, dtype: str, other: str, gate: str, shape: str) -> None:
    """For training, and then what inference adds; at last, for inference, in another dtype."""
    known: dict[str, dict[str, list[bool]]] = {"calls": {}, "other": {}}
    device = "cpu" if arch else "cuda"
    if arch:
        pretend(op, arch)
    found = known["calls"]

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        found.setdefault(src.fn.__name__, []).append(cache_hit)

    triton.knobs.compilation.listener = listen
    for train in (True, False):
        call(op, form, dtype, gate, shape, train, device)
    found = known["other"]
    if other:
        call(op, form, other, gate, shape, False, device)
    print(json.dumps(known))


if __name__ == "__main__":
    main(*sys.argv[1:])
