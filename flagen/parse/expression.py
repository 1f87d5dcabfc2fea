"""The expression language: text to tree and back, with a place for every node.

The text is first checked token by token, which bounds its depth; only then does Python's own
parser see it, for the precedence. Nothing is ever evaluated.
"""

from __future__ import annotations

import ast
import keyword
import re
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fractions import Fraction

from flagen.diagnostics import Diagnostic, Span, listing, nearest, quote
from flagen.parse.spec import Apply, Expression, Number, Symbol
from flagen.parse.text import Text

Report = Callable[[Diagnostic], None]

MAX_LENGTH = 2000
MAX_DEPTH = 100
MAX_NUMBER = 10**12
MAX_EXPONENT = 64

POINTWISE = {
    name: 1
    for name in (
        "exp",
        "log",
        "log1p",
        "expm1",
        "sqrt",
        "rsqrt",
        "abs",
        "sigmoid",
        "softplus",
        "silu",
        "relu",
        "tanh",
        "square",
    )
} | {"min": 2, "max": 2}
REDUCTIONS = {"sum": 2, "mean": 2, "softmax": 2}
FUNCTIONS = POINTWISE | REDUCTIONS | {"dot": 2, "outer": 2, "kron": 3, "prev": 1, "frozen": 1}
CONSTANT_FUNCTIONS = ("exp", "log", "sqrt", "sigmoid", "tanh", "abs", "min", "max")

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<op>\*\*|/(?!/)|[-+*])|(?P<bracket>[(),])"
    r"|(?P<other>//|:=|[=!<>]=|\S))"
)
_FORBIDDEN = {
    "'": "text in quotes",
    '"': "text in quotes",
    "[": "indexing",
    "]": "indexing",
    ".": "an attribute",
    "{": "a set or mapping",
    "}": "a set or mapping",
    "#": "a comment",
    "<": "a comparison",
    ">": "a comparison",
    "==": "a comparison",
    "!=": "a comparison",
    "<=": "a comparison",
    ">=": "a comparison",
    "=": "a keyword argument",
    ":=": "an assignment",
}
_INSTEAD = {
    "^": "a power is written `**`",
    "@": "a contraction is written `dot(a, b)`",
    "=": "arguments go by position, as in `softmax(x, M)`",
    "[": "axes go by name; `T`, the heads and the batch need no index",
    "\N{MINUS SIGN}": "write `-`",
    "\N{MULTIPLICATION SIGN}": "write `*`",
    "\N{MIDDLE DOT}": "write `*`, or `dot(a, b)`",
}
_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
}
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3, "**": 4}
OPERATORS = frozenset(_PRECEDENCE)


def parse_expression(
    text: Text, report: Report, start: int = 0, functions: Collection[str] = FUNCTIONS
) -> Expression | None:
    """The tree of the expression in `text` from `start` on, or None if it has none.

    Reports FG111 (malformed), FG113 (unknown function), FG114 (forbidden), FG115 (too long or
    deep), FG116 (bad number) and FG117 (number of arguments). With FG113 and FG117 there still is
    a tree, for the checks that can go on.
    """
    if problem := _check_tokens(text, start):
        report(problem)
        return None
    body = re.sub(r"\s", " ", text.value[start:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(f"({body})", mode="eval").body
        except (SyntaxError, ValueError):  # some Python might refuse what the tokens allow
            report(
                Diagnostic("FG111", "this expression cannot be read", text.span(start, start + 1))
            )
            return None
    return _Builder(text, start, report, functions).build(tree)


def unparse(expression: Expression) -> str:
    """The expression as text, with the fewest brackets; parsing it gives the same tree."""
    return _unparse(expression, 0)


@dataclass(slots=True)
class _Bracket:
    """An open bracket: how deep the tree inside it can be, at most."""

    start: int
    call: bool
    operators: int = 0
    inner: int = 0
    deepest: int = 0

    def end_segment(self) -> None:
        self.deepest = max(self.deepest, self.operators + self.inner + 1)
        self.operators = self.inner = 0


def _check_tokens(text: Text, start: int) -> Diagnostic | None:
    """The first thing that makes the text no expression of this language, if there is one."""
    start += len(text.value[start:]) - len(text.value[start:].lstrip())
    if len(text.value) - start > MAX_LENGTH:
        message = f"the expression is longer than {MAX_LENGTH} characters"
        return Diagnostic(
            "FG115", message, text.span(start, start + 1), (), "split it in statements"
        )
    brackets = [_Bracket(start, call=False)]
    operand, previous, end = True, "", start  # operand: one must come next
    for match in _TOKEN.finditer(text.value, start):
        token, kind = match[match.lastgroup or 0], match.lastgroup
        at, end = match.start(match.lastgroup or 0), match.end()
        span, top = text.span(at, end), brackets[-1]
        if kind == "other" or (kind == "name" and keyword.iskeyword(token)):
            return _forbidden(token, span)
        if kind in ("number", "name"):
            if not operand:
                return _expected("an operator", token, span)
            if kind == "number" and (problem := _number_problem(token)):
                return Diagnostic("FG116", f"{quote(token)} {problem}", span)
            operand = False
        elif token == "(":
            call = previous == "name"
            if not operand and not call:
                return _expected("an operator", token, span)
            brackets.append(_Bracket(at, call))
            operand = True
        elif operand and token != "-":
            empty_call = token == ")" and previous == "(" and top.call
            if not empty_call:
                return _expected("a name or a number", token, span)
        if kind == "op":
            operand = True
            top.operators += 1
        elif token in "),":
            if len(brackets) == 1 or (token == "," and not top.call):
                what = "this comma is" if token == "," else "this bracket is"
                outside = "outside of a function's brackets" if token == "," else "never opened"
                return Diagnostic("FG111", f"{what} {outside}", span)
            top.end_segment()
            operand = token == ","
            if token == ")":
                brackets.pop()
                brackets[-1].inner = max(brackets[-1].inner, top.deepest)
        previous = kind if kind == "name" else token
    if len(brackets) > 1:
        at = brackets[-1].start
        help = "close it; a statement with commas in a YAML list `[…]` needs quotes around it"
        span = text.span(at, at + 1)
        return Diagnostic("FG111", "this bracket is never closed", span, (), help)
    if operand:
        return _expected("a name or a number", "", text.span(end, end + 1))
    brackets[0].end_segment()
    return _too_deep(text.span(start, start + 1)) if brackets[0].deepest > MAX_DEPTH else None


def _number_problem(text: str) -> str:
    """Why a literal is refused, or nothing. Its exponent comes first: it bounds the work."""
    exponent = int(re.split("[eE]", text + "e0")[1])
    if re.match("0[0-9]", text):
        return "begins with a zero"
    if abs(exponent) > MAX_EXPONENT:
        return f"has an exponent larger than {MAX_EXPONENT}"
    return "is larger than 10**12" if Fraction(text) > MAX_NUMBER else ""


def _expected(what: str, found: str, span: Span) -> Diagnostic:
    found = f"before {quote(found)}" if found else "at the end"
    return Diagnostic("FG111", f"{what} is missing {found}", span)


def _forbidden(token: str, span: Span) -> Diagnostic:
    known = _FORBIDDEN.get(token)
    word = f"the Python word {quote(token)}" if keyword.iskeyword(token) else quote(token)
    message = f"{known} is" if known else f"{word} is"
    notes = ("allowed: numbers, names, + - * / **, brackets and functions",)
    return Diagnostic(
        "FG114", f"{message} not allowed in an expression", span, notes, _INSTEAD.get(token)
    )


def _too_deep(span: Span) -> Diagnostic:
    message = f"the expression nests more than {MAX_DEPTH} operators and brackets"
    return Diagnostic("FG115", message, span, (), "give parts of it a name in statements before it")


@dataclass(slots=True)
class _Builder:
    """Python's tree to ours. Whatever is not in the whitelist is reported."""

    text: Text
    start: int
    report: Report
    functions: Collection[str]
    failed: bool = False

    def build(self, tree: ast.expr) -> Expression | None:
        expression = self.node(tree)
        return None if self.failed else expression

    def node(self, tree: ast.expr) -> Expression:
        # The text is ASCII and stands in one pair of brackets: columns are characters, plus one.
        start = self.start + tree.col_offset - 1
        end = self.start + (tree.end_col_offset or 0) - 1
        span = self.text.span(start, end)
        match tree:
            case ast.Constant():
                value = Fraction(self.text.value[start:end])
                return Number(value.numerator, value.denominator, span)
            case ast.Name(id=name):
                return Symbol(name, span)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return Apply("neg", (self.node(operand),), span)
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
                op = _OPERATORS[type(operator)]
                return Apply(op, (self.node(left), self.node(right)), span)
            case ast.Call(func=ast.Name() as function, args=args, keywords=[]):
                self.check_call(
                    function.id, len(args), self.text.span(start, start + len(function.id))
                )
                return Apply(function.id, tuple(self.node(each) for each in args), span)
        self.report(_forbidden(self.text.value[start:end], span))
        self.failed = True
        return Symbol("", span)

    def check_call(self, name: str, count: int, span: Span) -> None:
        if name not in self.functions:
            guess = nearest(name, self.functions)
            known = (f"known here: {listing(sorted(self.functions))}",)
            help = f"did you mean `{guess}`?" if guess else "a product is written with `*`"
            if name in FUNCTIONS:
                help = "the value of a constant and the scale are computed from sizes alone"
            self.report(Diagnostic("FG113", f"unknown function {quote(name)}", span, known, help))
        elif count != FUNCTIONS[name]:
            takes = f"`{name}` takes {_arguments(FUNCTIONS[name])}"
            self.report(Diagnostic("FG117", f"{takes} and here has {count}", span))


def _arguments(count: int) -> str:
    return ("one argument", "two arguments", "three arguments")[count - 1]


def _unparse(expression: Expression, context: int) -> str:
    if isinstance(expression, Symbol):
        return expression.name
    if isinstance(expression, Number):
        return _decimal(expression)
    op, args = expression.op, expression.args
    if op not in _PRECEDENCE:
        return f"{op}({', '.join(_unparse(each, 0) for each in args)})"
    rank = _PRECEDENCE[op]
    if op == "neg":
        text = f"-{_unparse(args[0], rank)}"
    elif op == "**":  # right associative; its right side may be a bare `-x`
        text = f"{_unparse(args[0], rank + 1)}**{_unparse(args[1], _PRECEDENCE['neg'])}"
    else:
        text = f"{_unparse(args[0], rank)} {op} {_unparse(args[1], rank + 1)}"
    return f"({text})" if rank < context else text


def _decimal(number: Number) -> str:
    """A literal that reads back as the same number."""
    places, scale = 0, 1
    while scale % number.denominator:
        if places > MAX_LENGTH:  # not from a spec: no decimal is this fraction
            return f"({number.numerator} / {number.denominator})"
        places, scale = places + 1, scale * 10
    digits = number.numerator * (scale // number.denominator)
    if places == 0:
        return str(digits)
    if 8 < places <= MAX_EXPONENT:
        return f"{digits}e-{places}"
    return f"{digits // scale}.{digits % scale:0{places}d}"
