"""The T x T kernels with gates compiled for sm_90 without a GPU; prints a JSON line per kernel.

Runs in a process without Triton's interpreter: `python tests/parallel_offline.py OP...`.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import offline  # noqa: E402
import torch  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from flagen.load import load  # noqa: E402
from flagen.parse import parse  # noqa: E402

SIZES = {"B": 4, "T": 2048, "H": 16, "K": 128, "V": 128}


def launches(op: str) -> list[tuple[JITFunction, dict[str, Any], Any]]:
    """What a forward and backward of `op` in bfloat16 launches."""
    spec = parse(load(ROOT / "specs" / f"{op}.yaml"))
    module = importlib.import_module(f"generated.{op}.parallel")
    offline._pretend(module, "sm_90")
    found: list[tuple[JITFunction, dict[str, Any], Any]] = []

    def note(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append((self, dict(zip(self.arg_names, args, strict=False)), options))

    shapes = [("B", *t.axes) if "T" in t.axes else t.axes for t in spec.inputs]
    inputs = [
        torch.empty([SIZES[axis] for axis in axes], dtype=torch.bfloat16, device="meta")
        for axes in shapes
    ]
    launch = JITFunction.run
    JITFunction.run = note
    try:
        o, _ = getattr(module, f"parallel_{op}")(*[x.requires_grad_() for x in inputs])
        torch.autograd.grad(o, inputs, torch.empty_like(o))
    finally:
        JITFunction.run = launch
    return found


def main() -> None:
    for op in sys.argv[1:]:
        for kernel, arguments, options in launches(op):
            report = offline.compiled(kernel, arguments, options, "sm_90")
            print(json.dumps(asdict(report)), flush=True)


if __name__ == "__main__":
    main()
