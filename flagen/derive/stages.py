"""The pointwise stages around walks and scans: tensors from inputs, the output from results."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import count

import sympy

from flagen.analyze.recurrence import Recurrence, output_heads
from flagen.derive.pointwise import Axes, Pointwise, Result, pointwise_program
from flagen.derive.token import arguments
from flagen.parse.spec import Tensor


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tensor that a kernel takes: its name there, what it is, its axes. "g", "gv": decays."""

    name: str
    expression: sympy.Expr
    axes: Axes


@dataclass(frozen=True, slots=True)
class Stages:
    """What is around walks or scans: the tensors that they take, and what is made of their results.

    `arguments` has the tensors of each by name, in the order of the kernels' arguments: inputs as
    they are, results of the `prologue`, or `simple` ones, which are a number in every element or an
    input in float32. Without an `epilogue` the output is the only result. `constants` are those of
    the spec that the stages take.
    """

    arguments: tuple[tuple[str, ...], ...]
    simple: tuple[Result, ...]
    prologue: Pointwise | None
    epilogue: Pointwise | None
    constants: tuple[str, ...]

    @property
    def inputs(self) -> list[str]:
        """The inputs that are operands as they are, or but for their dtype."""
        made = {each.name for each in (self.prologue.results if self.prologue else ())}
        simple = {each.name: str(each.expression) for each in self.simple}
        names = dict.fromkeys(name for each in self.arguments for name in each)
        return [simple.get(name, name) for name in names if name not in made]


def gates_of(recurrence: Recurrence) -> frozenset[str]:
    """The tensors that a decay is made of: logarithms, whose digits count."""
    factors = (state.decay.factor for state in recurrence.states)
    return frozenset(str(symbol) for factor in factors for symbol in factor.free_symbols)


def like_of(recurrence: Recurrence, features: Axes) -> Tensor:
    """The tensor whose dtype the output has: the last one with its shape that is no gate.

    `features` are the output's axes beside time and heads.
    """
    tensors, gates = arguments(recurrence.spec), gates_of(recurrence)
    wanted = ("T", *output_heads(recurrence.spec), *features)
    fitting = [each for each in tensors if each.axes == wanted and each.name not in gates]
    others = [each for each in tensors if "T" in each.axes and each.name not in gates]
    return (fitting or others or list(tensors))[-1 if fitting else 0]


def stages_of(
    recurrence: Recurrence,
    wanted: tuple[tuple[Wanted, ...], ...],
    results: Mapping[str, Axes],
    output: sympy.Expr,
    features: Axes,
) -> Stages | str:
    """The stages that make the tensors `wanted`, and `output` of inputs and `results`.

    Or why there are none, in the spec's words. Tensors have the dtype of the output, but for decays
    that are computed: those are float32.
    """
    spec, heads = recurrence.spec, output_heads(recurrence.spec)
    inputs = {each.name: each.axes for each in spec.inputs if each.value is None}
    constants = {each.name: each.axes for each in spec.inputs if each.value is not None}
    tensors = inputs | constants
    domains = {each.name: each.domain for each in spec.inputs if each.value is None}
    every = [each for one in wanted for each in one]
    for each in every:
        if not each.expression.is_number and not _symbols(each.expression) & tensors.keys():
            return f"`{each.expression}` depends on no input"
    gates, like = gates_of(recurrence), like_of(recurrence, features).name
    # What two results hold may cancel in a quotient and its slopes: it must not be rounded before.
    wide = recurrence.epilogue is not None and len(results) > 1

    def is_plain(each: Wanted) -> bool:
        """Whether it is an input, in a dtype that kernels take."""
        name, fixed = str(each.expression), each.name in ("g", "gv", "u")
        return (fixed or not (wide or name in gates)) and inputs.get(name) == each.axes

    epilogue = None
    if str(output) not in results:
        last = Result(recurrence.output, output, ("T", *heads, *features), like)
        epilogue = pointwise_program(
            spec.name, "epilogue", (last,), {**results, **tensors}, spec.products, domains
        )
    later = set(_tensors(epilogue))
    named = [(str(each.expression), each.axes) for each in every]
    whole = {name for name, axes in named if inputs.get(name) == axes}
    made: list[Result] = []

    def tensor(each: Wanted) -> str:
        if is_plain(each):
            return str(each.expression)
        dtype = "float32" if wide or each.name in ("g", "gv") else like
        for known in made:
            if (known.expression, known.axes, known.like) == (each.expression, each.axes, dtype):
                return known.name
        taken = {*later, *(whole - {str(each.expression)}), *constants, *(x.name for x in made)}
        name = _free(each.name, taken)
        made.append(Result(name, each.expression, each.axes, dtype))
        return name

    found = tuple(tuple(map(tensor, one)) for one in wanted)
    simple = tuple(each for each in made if _is_simple(each, inputs))
    rest = [each for each in made if each not in simple]
    prologue = (
        pointwise_program(spec.name, "prologue", rest, tensors, spec.products, domains)
        if rest
        else None
    )
    taken = {*_tensors(prologue), *_tensors(epilogue)}
    return Stages(found, simple, prologue, epilogue, tuple(x for x in constants if x in taken))


def _is_simple(result: Result, inputs: Mapping[str, Axes]) -> bool:
    """See `Stages`."""
    whole = inputs.get(str(result.expression)) == result.axes and result.like == "float32"
    return bool(result.expression.is_number) or whole


def _symbols(expression: sympy.Expr) -> set[str]:
    return set(map(str, expression.free_symbols))


def _tensors(stage: Pointwise | None) -> list[str]:
    """The tensors that a stage takes."""
    return [] if stage is None else [name for name, _ in (*stage.inputs, *stage.sizers)]


def _free(name: str, taken: Collection[str]) -> str:
    """`name`, or with the first number that makes it free."""
    numbered = (f"{name}_{n}" if n else name for n in count())
    return next(each for each in numbered if each not in taken)
