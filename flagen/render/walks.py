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
    """What the templates may print. `tensors` counts the operands; `of_gate`: k has no gradient."""

    name: str
    digest: str
    least_segment: int
    blocks: str
    thirds: str
    gated: bool
    bonus: bool
    of_gate: bool
    parameters: Block
    operands: str
    gate_arguments: str
    tensors: int
    positions: str
    dtypes: str
    gradients: str
    make_gate_results: Block
    gate_results: str
    gate_gradients: str
    gradient_types: str
    empty_gradients: str


def operand_names(operands: Operands) -> list[str]:
    """The canonical names of the operands, as the kernels and `_chunk` take them."""
    gates = ["g"] * (operands.gated and operands.level is not Level.VALUE) + ["gv"] * operands.kept
    return ["q", "k", "v", *gates, *["u"] * (operands.bonus is not None)]


def gate_axes(operands: Operands) -> list[tuple[str, str]]:
    """The gates that are vectors, with the axis of each: K, which reads sum over, or V."""
    return [("g", "K")] * operands.summed + [("gv", "V")] * operands.kept


def gate_parts(operands: Operands, blocks: str) -> list[str]:
    """Statements that make room for what walks over `blocks` know of the gates' gradients.

    r for reads and w for writes, per token, and s for what crosses a block's end.
    """
    lines = []
    for _, axis in gate_axes(operands):
        a, parts = axis.lower(), "NV" if axis == "K" else "NK"
        lines += [
            f"r{a} = torch.empty({parts}, B, T, H, {axis}, dtype=torch.float32, device=q.device)",
            f"w{a} = torch.empty_like(r{a})",
            f"s{a} = r{a}.new_empty({parts}, {blocks}, H, {axis}, dtype=torch.float64)",
        ]
    return lines


def _kept_gate(operands: Operands, gate: str, axis: str) -> str:
    """The call that makes the gradient of a gate of the chunk form with kept decays."""
    others = [other for other, _ in gate_axes(operands) if other != gate]
    strides = "(V, 1)" if axis == "K" else "(1, V)"
    a = axis.lower()
    gates = f"({gate}, {others[0] if others else None})"
    return f"_gate((r{a}, w{a}, s{a}), {gates}, h_c, dh_c, {strides}, cu_seqlens, BT)"


def walks_text(plan: KernelPlan, operands: Operands, of_gate: bool) -> Block:
    """The functions on canonical operands: `_chunk`, and what it launches.

    `of_gate`: k is made of the gate, whose gradient has that of k in it.
    """
    names = operand_names(operands)
    given = [name for name in names if not (of_gate and name == "k")]
    by_channel = operands.level is Level.KEY
    gates = {"g": "dg", "u": "du.sum(0)"}
    made = gate_parts(operands, "chunks") if operands.kept else []
    if operands.kept:
        gates |= {gate: _kept_gate(operands, gate, axis) for gate, axis in gate_axes(operands)}
    spec = plan.derivation.recurrence.spec
    context = WalksContext(
        name=spec.name,
        digest=spec_digest(spec),
        least_segment=plan.least_segment,
        blocks="2 * H * cdiv(V, 64)" if plan.alone else "H * cdiv(V, 64)",
        thirds=", thirds=2" if plan.alone else "",
        gated=operands.gated,
        bonus=operands.bonus is not None,
        of_gate=of_gate,
        parameters=Block(tuple(f"{name}: torch.Tensor," for name in names)),
        operands=", ".join(names),
        gate_arguments="".join(f"{gate}, " for gate in names[3:]),
        tensors=len(names),
        positions=", ".join(str(names.index(name)) for name in given) + f", {len(names)}",
        dtypes=f"({', '.join(f'{name}.dtype' for name in given)})",
        gradients=", ".join(f"d{name}" for name in given),
        make_gate_results=Block(tuple(made)),
        gate_results="".join(f"{line.split()[0]}, " for line in made),
        gate_gradients=", ".join(gates[gate] for gate in names[3:]),
        gradient_types=", ".join(["torch.Tensor"] * (len(given) + 1)),
        empty_gradients=", ".join(f"{name}.new_empty({name}.shape)" for name in given),
    )
    decays = "channel" if by_channel else "walks"
    return Block.of(fill(f"host/{'kept' if operands.kept else decays}.py.jinja", context))
