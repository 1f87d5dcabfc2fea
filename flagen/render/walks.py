"""The host side of the chunk forms on canonical operands.

From `host/walks.py.jinja`, or where channels decay by themselves from `host/channel.py.jinja`.
"""

from __future__ import annotations

from dataclasses import dataclass

from flagen.analyze.recurrence import Level
from flagen.derive.derivation import Operands
from flagen.plan.kernel_plan import KernelPlan
from flagen.render.environment import Block, fill
from flagen.render.finish import spec_digest


@dataclass(frozen=True, slots=True)
class WalksContext:
    """What the templates may print. `tensors` counts the operands."""

    name: str
    digest: str
    least_segment: int
    gated: bool
    bonus: bool
    gate_arguments: str
    tensors: int
    positions: str
    dtypes: str
    gradients: str
    gate_gradients: str
    gradient_types: str
    empty_gradients: str


def operand_names(operands: Operands) -> list[str]:
    """The canonical names of the operands, as the kernels and `_chunk` take them."""
    return ["q", "k", "v", *["g"] * operands.gated, *["u"] * (operands.bonus is not None)]


def gate_axes(operands: Operands) -> list[tuple[str, str]]:
    """The gates that are vectors, with the axis of each: K, which reads sum over, or V."""
    return [("g", "K")] * operands.by_channel


def walks_text(plan: KernelPlan, operands: Operands) -> Block:
    """The functions on canonical operands: `_chunk`, and what it launches."""
    names = operand_names(operands)
    by_channel = operands.level is Level.KEY
    gates = {"g": "dg", "u": "du.sum(0)"}
    spec = plan.derivation.recurrence.spec
    context = WalksContext(
        name=spec.name,
        digest=spec_digest(spec),
        least_segment=plan.least_segment,
        gated=operands.gated,
        bonus=operands.bonus is not None,
        gate_arguments="".join(f"{gate}, " for gate in names[3:]),
        tensors=len(names),
        positions=", ".join(map(str, range(len(names) + 1))),
        dtypes=f"({', '.join(f'{name}.dtype' for name in names)})",
        gradients=", ".join(f"d{name}" for name in names),
        gate_gradients=", ".join(gates[gate] for gate in names[3:]),
        gradient_types=", ".join(["torch.Tensor"] * (len(names) + 1)),
        empty_gradients=", ".join(f"{name}.new_empty({name}.shape)" for name in names),
    )
    template = "host/channel.py.jinja" if by_channel else "host/walks.py.jinja"
    return Block.of(fill(template, context))
