"""The token-level kernels compiled for sm_90 where there is no GPU; prints a JSON line per kernel.

Runs in a process without Triton's interpreter: `python tests/token_offline.py OP...`.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import offline  # noqa: E402
import torch  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from flagen.analyze.recurrence import state_heads  # noqa: E402
from flagen.load import load  # noqa: E402
from flagen.parse import parse  # noqa: E402

SIZES = {"B": 4, "T": 2048, "H": 16, "HV": 32, "HQ": 32, "G": 16, "K": 128, "V": 128, "D": 2048}


def launches(op: str, dtype: torch.dtype) -> list[tuple[JITFunction, dict[str, Any], Any]]:
    """What a forward and backward of `op` launches."""
    spec = parse(load(ROOT / "specs" / f"{op}.yaml"))
    module = importlib.import_module(f"generated.{op}.fused_recurrent")
    offline._pretend(module, "sm_90")
    found: list[tuple[JITFunction, dict[str, Any], Any]] = []

    def note(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append((self, dict(zip(self.arg_names, args, strict=False)), options))

    # pairs of features are of few
    sizes = spec.sized(SIZES | {"K": 16} if spec.products else SIZES)

    def empty(axes: tuple[str, ...], dtype: torch.dtype) -> torch.Tensor:
        size = [sizes[axis] for axis in axes]
        return torch.empty(size, dtype=dtype, device="meta", requires_grad=True)

    inputs = {
        t.name: empty(("B", *t.axes) if "T" in t.axes else t.axes, dtype)
        for t in spec.inputs
        if t.value is None
    }
    states = [empty(("B", *state_heads(spec), *s.axes), torch.float32) for s in spec.state]
    launch = JITFunction.run
    JITFunction.run = note
    try:
        initial = states[0] if len(states) == 1 else tuple(states)
        form = getattr(module, f"fused_recurrent_{op}")
        o, last = form(**inputs, initial_state=initial, output_final_state=True)
        outputs = [o, *(last if isinstance(last, tuple) else [last])]
        weights = [torch.empty_like(output) for output in outputs]
        torch.autograd.grad(outputs, [*inputs.values(), *states], weights)
    finally:
        JITFunction.run = launch
    return found


def main() -> None:
    for op in sys.argv[1:]:
        for kernel, arguments, options in launches(op, torch.bfloat16):
            report = offline.compiled(kernel, arguments, options, "sm_90")
            row = {
                "op": op,
                "kernel": report.kernel.removeprefix(f"{op}_token_").removesuffix("_kernel"),
                "saving": "o" in arguments and arguments["o"] is None,
                "warps": options["num_warps"],
                "registers": report.registers,
                "stack": report.stack,
                "shared": report.shared,
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
