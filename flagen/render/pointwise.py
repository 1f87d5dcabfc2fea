"""A pointwise stage as text: two kernels, and the host functions that launch them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flagen.derive.pointwise import Pointwise
from flagen.render.environment import Block, fill
from flagen.render.finish import digest
from flagen.render.pointwise_host import host_context
from flagen.render.pointwise_kernel import kernel_context
from flagen.render.pointwise_layout import PointwiseLayout
from flagen.render.step_text import HELPERS


@dataclass(frozen=True, slots=True)
class PointwiseText:
    """Text for a module: the kernels, the host functions, and what they import from the runtime.

    `call` is the statement that computes all results, under their own names, from the tensors.
    """

    kernels: Block
    host: Block
    imports: tuple[str, ...]
    call: str


def pointwise_text(program: Pointwise) -> PointwiseText:
    """The text of a stage. Its differentiable function is `_<stage>`."""
    layout = PointwiseLayout(program)
    context = kernel_context(layout)
    forward, backward = (
        fill(f"kernel/pointwise_{each}.py.jinja", context).strip("\n") for each in ("fwd", "bwd")
    )
    kernels = f"{forward}\n\n\n{backward}"
    stamp = digest(kernels + repr((program.results, program.sizers)))
    host = fill("host/pointwise.py.jinja", host_context(layout, stamp))
    imports = ["Operator", "cdiv", "folded", "launch", "partials"]
    imports += [name for name in ("block",) if calls(name, host)]
    imports += [name for name in HELPERS if calls(name, kernels)]
    results = ", ".join(result.name for result in program.results)
    call = f"{results} = _{program.stage}({', '.join(layout.arguments)})"
    return PointwiseText(Block.of(kernels), Block.of(host), tuple(sorted(imports)), call)


def calls(name: str, text: str) -> bool:
    """Whether a statement of `text` calls `name`; comments do not count."""
    return re.search(rf"^[^#\n]*(?<![.\w]){name}\(", text, re.MULTILINE) is not None
