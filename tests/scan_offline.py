"""The scan kernels compiled for sm_90 where there is no GPU; prints a JSON line per kernel.

Runs in a process without Triton's interpreter.
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


def launches(
    dtype: torch.dtype, B: int, T: int, packed: int
) -> list[tuple[JITFunction, dict[str, Any], dict[str, Any]]]:
    """What a forward and backward of 2048 channels launches; `packed` sequences, or 0."""
    module = importlib.import_module("generated.hgrn.chunk")
    offline._pretend(module, "sm_90")
    found: list[tuple[JITFunction, dict[str, Any], dict[str, Any]]] = []

    def note(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append((self, dict(zip(self.arg_names, args, strict=False)), options))

    x, g = (torch.empty(B, T, 2048, dtype=dtype, device="meta").requires_grad_() for _ in range(2))
    state = torch.empty(packed or B, 2048, device="meta").requires_grad_()
    bounds = torch.empty(packed + 1, dtype=torch.int64, device="meta") if packed else None
    launch = JITFunction.run
    JITFunction.run = note
    try:
        results = module.chunk_hgrn(x, g, state, True, bounds)
        torch.autograd.grad(results, (x, g, state), [torch.empty_like(each) for each in results])
    finally:
        JITFunction.run = launch
    return found


def main() -> None:
    cases = [(1, 16384, 0), (1, 16384, 8), (4, 2048, 0)]
    for dtype in (torch.bfloat16, torch.float32):
        for case in cases:
            for kernel, arguments, options in launches(dtype, *case):
                report = offline.compiled(kernel, arguments, options, "sm_90")
                print(json.dumps(asdict(report)), flush=True)


if __name__ == "__main__":
    main()
