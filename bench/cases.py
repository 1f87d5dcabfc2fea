"""What is measured: operators, shapes, and how inputs are drawn. A new operator adds data here.

Nothing imports torch before inputs are drawn, so that old results can be read anywhere.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Shape:
    """Batch, tokens, heads, and the head dimensions of keys and values."""

    B: int
    T: int
    H: int
    K: int
    V: int

    def __str__(self) -> str:
        return f"{self.B}×{self.T}×{self.H}×{self.K}" + (f"/{self.V}" if self.V != self.K else "")

    @property
    def E(self) -> int:
        """The features of an operator that takes all pairs of them."""
        return min(self.K, 16)

    @property
    def D(self) -> int:
        """The width of an operator without heads."""
        return self.H * self.V

    @classmethod
    def parse(cls, text: str) -> Shape:
        """`4x2048x16x128` is B×T×H×D; a fifth number is V."""
        numbers = [int(part) for part in text.lower().replace("×", "x").split("x")]
        if len(numbers) not in (4, 5) or min(numbers) < 1:
            raise ValueError(f"a shape is BxTxHxD or BxTxHxKxV, as in 4x2048x16x128, not {text!r}")
        return cls(*numbers, *numbers[3:4][: 5 - len(numbers)])


def batch(T: int) -> int:
    """The batch of the sweep: 8, and less where that would be more than 16,384 tokens."""
    return max(1, min(8, 16384 // T))


def sweep(lengths: tuple[int, ...], H: int = 16, D: int = 128) -> tuple[Shape, ...]:
    """Shapes over T."""
    return tuple(Shape(batch(T), T, H, D, D) for T in lengths)


SWEEP = sweep(tuple(2**n for n in range(7, 17)))
QUICK_SWEEP = sweep((128, 512, 2048, 8192, 16384, 65536))
# The shapes of flash-linear-attention's own benchmark, and the two that peers were measured at.
BATCHES = tuple(
    Shape.parse(text)
    for text in (
        "1x8192x96x128",
        "2x16384x16x128",
        "4x2048x16x128",
        "4x4096x64x128",
        "8x2048x32x256",
        "8x1024x8x64",
        "1x16384x16x128",
    )
)
QUICK_BATCHES = (Shape.parse("4x2048x16x128"),)
DECODE = tuple(Shape(B, 1, 16, 128, 128) for B in (1, 8, 32, 128, 256))

# The longest T that a form is worth measuring at: (whole run, quick run). Others have no limit.
MOST_T = {
    "parallel": (8192, 4096),
    "fused_recurrent": (8192, 2048),
    "naive": (1024, 128),
    "compiled": (8192, 8192),
    "sdpa": (65536, 16384),
}


class Input(NamedTuple):
    """The axes of an input, and the distribution that its values come from."""

    axes: str
    draw: str = "normal"


INPUTS = {
    "q": Input("BTHK"),
    "r": Input("BTHK"),
    "w": Input("BTHK", "log_decay"),
    "u": Input("HK"),
    "p": Input("BTHK", "unit"),
    "a": Input("BTHK", "unit"),
    "b": Input("BTHK", "unit"),
    "x": Input("BTD"),
    "k": Input("BTHK"),
    "v": Input("BTHV"),
    "g": Input("BTH", "log_decay"),
    "gk": Input("BTHK", "log_decay"),
    "gv": Input("BTHV", "log_decay"),
    "beta": Input("BTH", "sigmoid"),
    "initial_state": Input("BHKV", "state"),
}
# Where an operator differs from the table above.
INPUTS_OF = {
    ("gla", "g"): Input("BTHK", "log_decay"),
    ("gla_v", "g"): Input("BTHV", "log_decay"),
    ("hgrn2", "g"): Input("BTHK", "log_decay"),
    ("dplr", "g"): Input("BTHK", "log_decay"),
    ("hgrn", "g"): Input("BTD", "log_decay"),
    ("oja", "v"): Input("BTHV", "unit"),
    ("based", "q"): Input("BTHE"),
    ("based", "k"): Input("BTHE"),
    ("rebased", "q"): Input("BTHE"),
    ("rebased", "k"): Input("BTHE"),
    ("rwkv4", "w"): Input("D"),
    ("rwkv4", "u"): Input("D"),
    ("rwkv4", "k"): Input("BTD"),
    ("rwkv4", "v"): Input("BTD"),
    ("lightning_attn", "g"): Input("H", "log_decay"),
    ("mamba2", "x"): Input("BTHV"),
    ("mamba2", "dt"): Input("BTH"),
    ("mamba2", "a_log"): Input("H"),
    ("mamba2", "b"): Input("BTHK"),
    ("mamba2", "c"): Input("BTHK"),
    ("mamba2", "d"): Input("H"),
    ("mamba2", "dt_bias"): Input("H"),
    ("linear_attn_normalized", "q"): Input("BTHK", "sigmoid"),
    ("linear_attn_normalized", "k"): Input("BTHK", "sigmoid"),
    ("kda", "g"): Input("BTHK", "log_decay"),
    ("kda", "k"): Input("BTHK", "unit"),
    ("comba", "k"): Input("BTHK", "unit"),
    ("delta_rule", "k"): Input("BTHK", "unit"),
    ("gated_delta_rule", "k"): Input("BTHK", "unit"),
}


def _draws() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Distributions, as functions of standard normal numbers."""
    import torch.nn.functional as F

    return {
        "normal": lambda x: x,
        "state": lambda x: x,
        "unit": lambda x: F.normalize(x, dim=-1),
        "sigmoid": lambda x: x.sigmoid(),
        "log_decay": lambda x: F.logsigmoid(x) / 16,
    }


def draw(
    op: str, names: tuple[str, ...], shape: Shape, dtype: torch.dtype, device: str, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Inputs of `op` by name; the state is float32, all others have `dtype`."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    draws, inputs = _draws(), {}
    for name in names:
        known = INPUTS_OF.get((op, name)) or INPUTS.get(name)
        if known is None:
            raise KeyError(f"`{name}` of {op} is not in INPUTS of bench/cases.py")
        size = [getattr(shape, axis) for axis in known.axes]
        values = draws[known.draw](torch.randn(size, generator=generator, device=device))
        inputs[name] = values if known.draw == "state" else values.to(dtype)
    return inputs


def operators() -> dict[str, tuple[str, ...]]:
    """The operators in `generated/` and their public functions, read and not imported."""
    found = {}
    for init in sorted((ROOT / "generated").glob("*/__init__.py")):
        for node in ast.parse(init.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found[init.parent.name] = tuple(ast.literal_eval(node.value))
    return found


def forms(op: str) -> dict[str, str]:
    """form → function, of the forms that `op` has: `chunk` → `chunk_retention`."""
    suffix = f"_{op}"
    return {n.removesuffix(suffix): n for n in operators()[op] if n.endswith(suffix)}


def required_inputs(function: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments of an operator that have no default: its tensors."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(
        p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    )


def shorter(shape: Shape, T: int, B: int = 1) -> Shape:
    """The same heads with fewer tokens."""
    return replace(shape, B=B, T=T)
