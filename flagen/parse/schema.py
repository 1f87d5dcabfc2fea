"""The shape of a spec's YAML: which keys there are and what kind of value each takes.

Pydantic checks it, all errors at once, and exports it as JSON schema for editors. Names, axes and
expressions are checked later; here they are text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
)

from flagen.diagnostics import Diagnostic, listing, nearest, quote
from flagen.load import Node, Source

FORMS = ("chunk", "fused_chunk", "fused_recurrent", "parallel")
DOMAINS = {"<= 0": (None, 0.0), "< 0": (None, 0.0), ">= 0": (0.0, None), "> 0": (0.0, None)}

Location = tuple[int | str, ...]

# A tag becomes part of an error's path; no key of a file contains this character.
_TAG = "\0"


def _kind(value: object) -> str:
    kinds: dict[type, str] = {dict: "mapping", list: "list"}
    return _TAG + kinds.get(type(value), "scalar")


def _pattern(description: str, pattern: str) -> Any:
    return Field(description=description, json_schema_extra={"pattern": pattern})


_AXIS = "[A-Z][A-Z0-9]{0,3}"
_Axis = Annotated[str, _pattern("An axis, e.g. T, H or K", f"^{_AXIS}$")]
_Axes = Annotated[list[_Axis], Field(description="Axes in memory order, without the batch")]
_Product = Annotated[str, _pattern("The axes of the pairs, e.g. K*K", rf"^{_AXIS} *\* *{_AXIS}$")]
_Statement = Annotated[str, Field(description="target = expression")]
_Statements = Annotated[
    Annotated[list[_Statement], Tag(_TAG + "list")] | Annotated[_Statement, Tag(_TAG + "scalar")],
    Discriminator(lambda value: _TAG + "list" if isinstance(value, list) else _TAG + "scalar"),
]
_Number = {"type": "number"}
_Domain = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": list(DOMAINS)},
                {"type": "array", "items": _Number, "minItems": 2, "maxItems": 2},
            ]
        }
    ),
]
_Formula = Annotated[
    Any,
    AfterValidator(lambda value: _formula(value)),
    WithJsonSchema({"type": ["string", "number"]}),
]
_Form = Annotated[str, WithJsonSchema({"enum": [*FORMS, "recurrent"]})]


def _formula(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    return value


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Input(_Model):
    axes: _Axes
    domain: _Domain = Field(None, description="Where the values lie; never checked at run time")


class _Decay(_Input):
    value: _Formula = Field("", description="A constant decay, from axis sizes (H) and indices (h)")


def _axes_or(model: type[_Input]) -> Any:
    return Annotated[
        Annotated[_Axes, Tag(_TAG + "list")] | Annotated[model, Tag(_TAG + "mapping")],
        Discriminator(lambda value: _TAG + "mapping" if isinstance(value, dict) else _TAG + "list"),
    ]


class _Spec(_Model):
    """A recurrence for flagen."""

    model_config = ConfigDict(title="flagen spec")

    name: Annotated[str, _pattern("The op's name", "^[a-z][a-z0-9_]*$")]
    doc: str = Field("", description="What it is, for the generated docstring")
    inputs: dict[str, _axes_or(_Input)] = Field(description="Tensors with a gradient")  # type: ignore[valid-type]
    axes: dict[str, _Product] = Field({}, description="Axes of pairs, such as F: K*K")
    time: Literal["forward", "reverse"] = Field(
        "forward", description="Which token comes first: the first or the last"
    )
    decay: dict[str, _axes_or(_Decay)] = Field({}, description="Decays, as logarithms")  # type: ignore[valid-type]
    state: dict[str, _Axes] = Field(description="States, at most two axes each")
    update: _Statements = Field(description="How a token changes the states, in order")
    output: _Statements = Field(description="What is read; the last statement is the output")
    scale: _Formula = Field("", description="Default of the argument `scale`")
    forms: list[_Form] = Field([], description="Forms to generate; all possible ones if absent")


KEYS = tuple(_Spec.model_fields)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a spec, for `# yaml-language-server: $schema=…`."""
    schema = _Spec.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def check_schema(source: Source) -> Iterator[Diagnostic]:
    """Missing keys (FG101), unknown keys (FG102) and values of the wrong kind (FG103)."""
    try:
        _Spec.model_validate(_data(source.root))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    else:
        return
    unknown = {p["loc"]: _unknown_key(source, p["loc"]) for p in problems if _is_unknown(p["type"])}
    yield from unknown.values()
    for problem in problems:
        location = problem["loc"]
        if problem["type"] == "missing":
            # A misspelt key is one mistake, not two.
            meant = (each.help for each in unknown.values())
            if f"did you mean `{location[-1]}`?" not in meant:
                yield _missing_key(source, location)
        elif not _is_unknown(problem["type"]):
            yield _wrong_kind(source, location)


def _is_unknown(problem: str) -> bool:
    return problem == "extra_forbidden"


def _data(node: Node) -> Any:
    """A node as the Python data that pydantic expects. Nodes nest at most 20 levels."""
    if node.kind == "mapping":
        return {key.value: _data(value) for key, value in node.pairs}
    if node.kind == "sequence":
        return [_data(item) for item in node.items]
    return node.value


def _descend(root: Node, location: Location) -> tuple[Node, Node | None, tuple[str, ...]]:
    """The node at a location, its key if it has one, and the location without pydantic's tags."""
    node: Node = root
    key: Node | None = None
    path: list[str] = []
    for part in location:
        if isinstance(part, str) and part.startswith(_TAG):
            continue
        if isinstance(part, int):
            node = node.items[part]
        else:
            key, node = next(pair for pair in node.pairs if pair[0].value == part)
        path.append(str(part))
    return node, key, tuple(path)


def _unknown_key(source: Source, location: Location) -> Diagnostic:
    _, parent, path = _descend(source.root, location[:-1])
    node, key, _ = _descend(source.root, location)
    name = str(location[-1])
    known = _known_keys(path)
    guess = nearest(name, known)
    within = f" in {quote(path[-1])}" if path else ""
    return Diagnostic(
        "FG102",
        f"unknown key {quote(name)}{within}",
        (key or parent or node).span,
        (f"allowed here: {listing(known)}",),
        f"did you mean `{guess}`?" if guess else None,
    )


def _known_keys(path: tuple[str, ...]) -> list[str]:
    model = _Spec if not path else _Decay if path[0] == "decay" else _Input
    return list(model.model_fields)


def _missing_key(source: Source, location: Location) -> Diagnostic:
    node, key, path = _descend(source.root, location[:-1])
    name = str(location[-1])
    within = f"{quote(path[-1])}" if path else "the spec"
    example = _EXAMPLES.get((*path[:-1], "*", name) if path else (name,), "")
    help = f"add `{name}: {example}`" if example else None
    span = key.span if key else replace(node.span, length=1)
    return Diagnostic("FG101", f"{within} lacks the key `{name}`", span, (), help)


def _wrong_kind(source: Source, location: Location) -> Diagnostic:
    node, _, path = _descend(source.root, location)
    pattern = path[:1] + tuple("*" if i == 0 else part for i, part in enumerate(path[1:]))
    where = quote(path[-1]) if path else "a spec"
    expected = _EXPECTED.get(pattern, "a list of axes, such as `[T, H, K]`")
    if location and isinstance(location[-1], int):
        where = f"an item of {quote(path[-2])}"
        expected = _ITEMS.get(path[0], "the name of an axis, such as `K`")
    found = quote(node.value) if path == ("time",) and isinstance(node.value, str) else _found(node)
    return Diagnostic("FG103", f"{where} must be {expected}, not {found}", node.span)


def _found(node: Node) -> str:
    match node.value:
        case None:
            return "empty"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
    return f"a {'list' if node.kind == 'sequence' else 'mapping'}"


_EXAMPLES: dict[tuple[str, ...], str] = {
    ("name",): "retention",
    ("inputs",): "{q: [T, H, K], …}",
    ("state",): "{S: [K, V]}",
    ("update",): "S = S + outer(k, v)",
    ("output",): "o = scale * dot(q, S)",
    ("inputs", "*", "axes"): "[T, H, K]",
    ("decay", "*", "axes"): "[T, H]",
}
_ITEMS = {"update": "a statement", "output": "a statement", "forms": "the name of a form"}
_STATEMENT = "a statement, or a list of statements"
_EXPECTED: dict[tuple[str, ...], str] = {
    (): "a mapping with keys such as `name:` and `inputs:`",
    ("name",): "text",
    ("doc",): "text",
    ("time",): "`forward` or `reverse`",
    ("inputs",): "a mapping of names to axes, such as `q: [T, H, K]`",
    ("decay",): "a mapping of names to axes, such as `g: {axes: [T, H]}`",
    ("state",): "a mapping of names to axes, such as `S: [K, V]`",
    ("update",): _STATEMENT,
    ("output",): _STATEMENT,
    ("scale",): "an expression or a number",
    ("forms",): "a list such as `[chunk, fused_recurrent]`",
    ("decay", "*", "value"): "an expression",
    ("state", "*"): "a list of axes, such as `[K, V]`",
    ("axes",): "a mapping of names to products, such as `F: K*K`",
    ("axes", "*"): "a product of two axes, such as `K*K`",
}
