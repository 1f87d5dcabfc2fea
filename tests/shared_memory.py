"""The shared memory of every kernel of a call, for a GPU that is not there.

Compiled as far as shared memory is laid out, which is half the way. For a process without Triton's
interpreter.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from triton.compiler.compiler import ASTSource, ir, make_backend

from flagen import rehearsal
from flagen.gpus import GPUS
from flagen.load import load
from flagen.parse import parse

ROOT = Path(__file__).parent.parent


def half_compile(src: ASTSource, target: Any, options: dict[str, Any], **_: Any) -> Any:
    """What `triton.compile` does up to the LLVM IR, and what is known by then."""
    backend = make_backend(target)
    parsed = backend.parse_options(options)
    metadata: dict[str, Any] = {"target": target, **parsed.__dict__}
    stages: dict[str, Any] = {}
    backend.add_stages(stages, parsed, src.language)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    implementation = backend.get_codegen_implementation(parsed)
    module = src.make_ir(target, parsed, implementation, backend.get_module_map(), context)
    for stage in ("ttir", "ttgir", "llir"):
        module = stages[stage](module, metadata)
    return SimpleNamespace(metadata=SimpleNamespace(**metadata), hash="")


def shared(op: str, form: str, shape: str, dtype: str, what: str) -> dict[str, int]:
    """Bytes by kernel and constants, of a call in training or inference."""
    operator = rehearsal.Operator.of(parse(load(ROOT / f"specs/{op}.yaml")), ROOT / "generated")
    B, T, H, D = map(int, shape.split("x"))
    sizes = {"B": B, "T": T, "H": H, "K": D, "V": D, "D": H * D, "G": H, "HV": H}
    call = rehearsal.Call(form, tuple(sizes.items()), dtype, train=what == "train")
    found = {}
    for launch in rehearsal.record(operator, (call,)):
        kernel = getattr(import_module(launch.module), launch.kernel)
        kernel.device_caches[0]  # it has a compiler now
        kernel.compile = half_compile
        made = kernel.preload(launch.specialization)
        kernel.device_caches.clear()
        constants = json.loads(launch.specialization)["constant_vals"]
        found[f"{launch.kernel} {constants}"] = made.metadata.shared
    return found


def shared_for(arch: str, *call: str) -> dict[str, int]:
    """The same for a GPU, in a process of its own: operators remember which one they are on."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_shared_for, (arch, *call))


def _shared_for(arch: str, *call: str) -> dict[str, int]:
    rehearsal.become(GPUS[arch])
    return shared(*call)
