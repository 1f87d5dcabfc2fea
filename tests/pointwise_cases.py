"""Pointwise stages that recurrences have around them, each with its meaning in torch.

`module` writes a stage as a module of its own; run as a program, this compiles the stages for sm_90
where there is no GPU, without Triton's interpreter, and prints a JSON line per kernel.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests")) if path not in sys.path]

import sympy  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from flagen.analyze.functions import relu, sigmoid, silu, softplus  # noqa: E402
from flagen.analyze.recurrence import Contract, symbol  # noqa: E402
from flagen.derive.pointwise import Axes, Result, pointwise_program  # noqa: E402
from flagen.render.pointwise import pointwise_text  # noqa: E402

THK, THV, TH = ("T", "H", "K"), ("T", "H", "V"), ("T", "H")
EPS = sympy.Rational(1, 10**6)
q, k, v, g, f, d, w = (symbol(name) for name in "qkvgfdw")
beta, num, den, scale, K = map(symbol, ("beta", "num", "den", "scale", "K"))
A_log, dt_bias = symbol("A_log"), symbol("dt_bias")


@dataclass(frozen=True)
class Stage:
    """What `pointwise_program` takes, and its meaning: the results in order, from the inputs.

    `low` and `high` bound what inputs are drawn from, where that is no normal distribution.
    """

    name: str
    results: tuple[Result, ...]
    tensors: dict[str, Axes]
    meaning: Callable[..., Any]
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def symbols(self) -> set[str]:
        return {str(x) for result in self.results for x in result.expression.free_symbols}

    def __str__(self) -> str:
        return self.name


def norm(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def fine(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Every head as often as heads of `like` share it."""
    return x.repeat_interleave(like.shape[2] // x.shape[2], 2)


STAGES = (
    Stage(
        "hgrn2",
        (Result("k", 1 - sympy.exp(g), THK, "v"),),
        {"q": THK, "v": THV, "g": THK},
        lambda v, g: -torch.expm1(g),
        {"g": (-3.0, 0.0)},
    ),
    Stage(
        "sigmoid_decay",
        (Result("g", -softplus(-f), THK, "float32"), Result("k", 1 - sigmoid(f), THK, "f")),
        {"f": THK},
        lambda f: (F.logsigmoid(f), torch.sigmoid(-f)),
    ),
    Stage(
        "log_decay",
        (Result("g", sympy.log(f), TH, "float32"),),
        {"f": TH},
        lambda f: f.log(),
        {"f": (0.01, 1.0)},
    ),
    Stage(
        "l2norm",
        (
            Result("q", scale * q / sympy.sqrt(Contract(q**2, "K") + EPS), THK, "q"),
            Result("k", k / sympy.sqrt(Contract(k**2, "K") + EPS), THK, "k"),
        ),
        {"q": THK, "k": THK},
        lambda q, k, scale: (scale * norm(q), norm(k)),
    ),
    Stage(
        "layer_norm",
        (
            Result(
                "q",
                w
                * (q - Contract(q, "K") / K)
                / sympy.sqrt(Contract((q - Contract(q, "K") / K) ** 2, "K") / K + EPS),
                THK,
                "q",
            ),
        ),
        {"q": THK, "w": ("K",)},
        lambda q, w: w * F.layer_norm(q, q.shape[-1:], eps=1e-6),
    ),
    Stage(
        "mamba2",
        (
            Result("g", -sympy.exp(A_log) * softplus(g + dt_bias), TH, "float32"),
            Result("v", v * softplus(g + dt_bias), THV, "v"),
        ),
        {"v": THV, "g": TH, "A_log": ("H",), "dt_bias": ("H",)},
        lambda v, g, A_log, dt_bias: (
            -A_log.exp() * F.softplus(g + dt_bias),
            v * F.softplus(g + dt_bias)[..., None],
        ),
    ),
    Stage(
        "grouped",
        (
            Result("q", q / sympy.sqrt(Contract(q**2, "K") + EPS), THK, "q"),
            Result("k", beta * k, ("T", "HV", "K"), "v"),
            Result("v", beta * v, ("T", "HV", "V"), "v"),
        ),
        {"q": THK, "k": THK, "v": ("T", "HV", "V"), "beta": ("T", "HV")},
        lambda q, k, v, beta: (norm(q), beta[..., None] * fine(k, v), beta[..., None] * v),
    ),
    Stage(
        "shared_key",
        (
            Result("k", 2 * k, ("T", "K"), "k"),
            Result("v", k * sigmoid(v + d), THK, "v"),
        ),
        {"k": ("T", "K"), "v": THK, "d": ("H",)},
        lambda k, v, d: (2 * k, k[:, :, None] * torch.sigmoid(v + d[:, None])),
    ),
    Stage(
        "weights",
        (Result("q", q * w * sympy.exp(d), THK, "q"),),
        {"q": THK, "w": ("K",), "d": ("H",)},
        lambda q, w, d: q * w * d.exp()[:, None],
    ),
    Stage(
        "three_kinds",
        (Result("v", g * beta * v * w, ("T", "HV", "V"), "v"),),
        {"v": ("T", "HV", "V"), "beta": TH, "g": ("T", "G"), "w": ("HV", "V")},
        lambda v, beta, g, w: (fine(g, v) * fine(beta, v))[..., None] * v * w,
    ),
    Stage(
        "fixed_decay",
        (Result("g", -sympy.exp(w), THK, "float32"),),
        {"q": THK, "w": ("H", "K")},
        lambda w, q: (-w.exp()).expand(q.shape),
    ),
    Stage(
        "normaliser",
        (Result("o", num / (den + EPS), THV, "num"),),
        {"num": THV, "den": TH},
        lambda num, den: num / (den + 1e-6)[..., None],
        {"den": (0.1, 3.0)},
    ),
    Stage(
        "skip",
        (Result("o", symbol("read_0") + d * v, THV, "v"),),
        {"v": THV, "d": ("H", "V"), "read_0": THV},
        lambda v, d, read_0: read_0 + d * v,
    ),
    Stage(
        "no_heads",
        (Result("x", sympy.tanh(f) * sympy.Max(g, f) * silu(g) + relu(g), ("T", "D"), "f"),),
        {"f": ("T", "D"), "g": ("T", "D")},
        lambda f, g: f.tanh() * torch.maximum(f, g) * F.silu(g) + g.relu(),
    ),
    Stage(
        "gated_read",
        (Result("o", sigmoid(g) * num, THV, "g"),),
        {"g": THV, "num": THV},
        lambda g, num: g.sigmoid() * num,
    ),
)


def module(stage: Stage, folder: Path, name: str = "prologue") -> ModuleType:
    """The stage as a module; its function is `_<name>`, its arguments those of `call`."""
    text = pointwise_text(pointwise_program(stage.name, name, stage.results, stage.tensors))
    imports = (
        f"from generated._runtime import {', '.join((*text.imports, 'begin', 'runs_kernels'))}"
    )
    header = ["import torch", "import triton", "import triton.language as tl", imports, "\n"]
    lines = [*header, *text.kernels.lines, "\n", *text.host.lines]
    path = folder / f"{stage.name}_{name}.py"
    path.write_text("\n".join([*lines, f"\n\nCALL = {text.call!r}"]) + "\n")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def arguments(made: ModuleType) -> list[str]:
    """The arguments of a stage's function, from the text of its call."""
    names: list[str] = made.CALL.split("(")[1].rstrip(")").split(", ")
    return names


LARGE = {"T": 2048, "G": 8, "H": 16, "HV": 32, "K": 128, "V": 256, "D": 2048}


def main() -> None:
    import offline
    from triton.runtime.jit import JITFunction

    found: list[tuple[JITFunction, dict[str, Any], dict[str, Any]]] = []

    def note(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append((self, dict(zip(self.arg_names, args, strict=False)), options))

    JITFunction.run = note
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            made = module(stage, Path(folder))
            tensors = []
            for name in arguments(made):
                axes = stage.tensors.get(name, ())
                shape = [LARGE[axis] for axis in axes]
                shape = [4, *shape] if "T" in axes else shape
                empty = torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
                tensors.append(0.5 if name == "scale" else empty)
            results = made._prologue(*tensors)
            results = results if isinstance(results, tuple) else (results,)
            inputs = [x for x in tensors if isinstance(x, torch.Tensor)]
            weights = [torch.empty_like(x) for x in results]
            torch.autograd.grad(results, inputs, weights, allow_unused=True)
            for kernel, given, options in found:
                report = offline.compiled(kernel, given, options, "sm_90")
                row = {
                    "stage": stage.name,
                    "kernel": report.kernel.removeprefix(f"{stage.name}_prologue_"),
                    "tiles": report.tiles,
                    "warps": options["num_warps"],
                    "registers": report.registers,
                    "stack": report.stack,
                    "shared": report.shared,
                }
                print(json.dumps(row), flush=True)
            found.clear()


if __name__ == "__main__":
    main()
