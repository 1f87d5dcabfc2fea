"""The expression language: precedence, places, and text -> tree -> text."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagen.diagnostics import Diagnostic, Span
from flagen.parse.expression import FUNCTIONS, OPERATORS, parse_expression, unparse
from flagen.parse.spec import Apply, Expression, Number, Symbol
from flagen.parse.text import Text

NOWHERE = Span(1, 1)


def read(text: str) -> Expression:
    problems: list[Diagnostic] = []
    places = tuple(range(len(text)))
    tree = parse_expression(Text(text, places, text, NOWHERE), problems.append)
    assert tree is not None and not problems, problems
    return tree


def problems_of(text: str) -> list[Diagnostic]:
    problems: list[Diagnostic] = []
    parse_expression(Text(text, tuple(range(len(text))), text, NOWHERE), problems.append)
    return problems


def bare(tree: Expression) -> Expression:
    """The tree without its places."""
    match tree:
        case Number(numerator, denominator):
            return Number(numerator, denominator, NOWHERE)
        case Symbol(name):
            return Symbol(name, NOWHERE)
    return Apply(tree.op, tuple(map(bare, tree.args)), NOWHERE)


def brackets(tree: Expression) -> str:
    """The tree with every bracket written."""
    if isinstance(tree, Apply):
        args = [brackets(each) for each in tree.args]
        if tree.op == "neg":
            return f"(-{args[0]})"
        return f"({tree.op.join(args)})" if tree.op in OPERATORS else f"{tree.op}({','.join(args)})"
    return unparse(tree)


def number(value: Fraction) -> Number:
    return Number(value.numerator, value.denominator, NOWHERE)


NUMBERS = st.builds(
    lambda digits, places: number(Fraction(digits, 10**places)),
    st.integers(0, 10**12),
    st.integers(0, 30),
)
NAMES = st.sampled_from(["a", "b", "S", "scale", "K", "h", "x1", "long_name"])


def calls(children: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    arity = {**FUNCTIONS, **dict.fromkeys(OPERATORS, 2), "neg": 1}
    return st.sampled_from(sorted(arity)).flatmap(
        lambda op: st.tuples(*[children] * arity[op]).map(lambda args: Apply(op, args, NOWHERE))
    )


TREES = st.recursive(NUMBERS | st.builds(Symbol, NAMES, st.just(NOWHERE)), calls, max_leaves=20)


@settings(max_examples=300, deadline=None)
@given(TREES)
def test_a_tree_reads_back_from_its_text(tree: Expression):
    assert bare(read(unparse(tree))) == tree


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a + b * c", "(a+(b*c))"),
        ("a - b - c", "((a-b)-c)"),
        ("a / b / c", "((a/b)/c)"),
        ("a / b * c", "((a/b)*c)"),
        ("a ** b ** c", "(a**(b**c))"),
        ("-a ** b", "(-(a**b))"),
        ("a ** -b", "(a**(-b))"),
        ("a ** -b * c", "((a**(-b))*c)"),
        ("-a * b", "((-a)*b)"),
        ("a * -b", "(a*(-b))"),
        ("--a", "(-(-a))"),
        ("(a + b) * c", "((a+b)*c)"),
        ("exp(-a)**2", "(exp((-a))**2)"),
        ("dot(a, b + c)\n * 2", "(dot(a,(b+c))*2)"),
        ("1e-6 + .5 + 2. + 0.30", "(((0.000001+0.5)+2)+0.3)"),
    ],
)
def test_precedence(text: str, meaning: str):
    assert brackets(read(text)) == meaning


@pytest.mark.parametrize(
    "text", ["a * (b + c)", "(a**b)**c", "a - (b - c)", "-(a * b)", "a / (b * c)"]
)
def test_text_has_the_fewest_brackets(text: str):
    assert unparse(read(text)) == text


def test_numbers_are_exact():
    assert read("0.1") == Number(1, 10, Span(1, 1, 3))
    assert bare(read("1e-10")) == number(Fraction(1, 10**10))


def test_every_node_knows_its_place():
    tree = read("a * exp(bcd)")
    assert isinstance(tree, Apply) and isinstance(tree.args[1], Apply)
    assert tree.span == Span(1, 1, 12)
    assert tree.args[1].span == Span(1, 5, 8)
    assert tree.args[1].args[0].span == Span(1, 9, 3)


@pytest.mark.parametrize(
    ("text", "code", "column"),
    [
        ("", "FG111", 1),
        ("a +", "FG111", 4),
        ("+a", "FG111", 1),
        ("2a", "FG111", 2),
        ("a b", "FG111", 3),
        ("a (b)", "FG113", 1),
        ("(a)(b)", "FG111", 4),
        ("exp(a)(b)", "FG111", 7),
        ("()", "FG111", 2),
        ("exp()", "FG117", 1),
        ("exp(a,)", "FG111", 7),
        ("a, b", "FG111", 2),
        ("(a, b)", "FG111", 3),
        ("a)", "FG111", 2),
        ("(a", "FG111", 1),
        ("1.2.3", "FG111", 4),
        ("0x10", "FG111", 2),
        ("1_000", "FG111", 2),
        ("1j", "FG111", 2),
        ("007", "FG116", 1),
        ("1e65", "FG116", 1),
        ("1000000000001", "FG116", 1),
        ("a // b", "FG114", 3),
        ("a % b", "FG114", 3),
        ("a @ b", "FG114", 3),
        ("a < b", "FG114", 3),
        ("a == b", "FG114", 3),
        ("a.b", "FG114", 2),
        ("a[0]", "FG114", 2),
        ("'a'", "FG114", 1),
        ("f'a'", "FG114", 2),
        ("a if b else c", "FG114", 3),
        ("not a", "FG114", 1),
        ("None", "FG114", 1),
        ("exp(*a)", "FG111", 5),
        ("exp(x=a)", "FG114", 6),
        ("(a := 1)", "FG114", 4),
        ("a # b", "FG114", 3),
        ("a − b", "FG114", 3),
        ("β * a", "FG114", 1),
        ("\uff4b", "FG114", 1),
        ("nope(a)", "FG113", 1),
        ("exp(a, b)", "FG117", 1),
    ],
)  # fmt: skip
def test_mistake(text: str, code: str, column: int):
    (problem,) = problems_of(text)
    assert (problem.code, problem.span and problem.span.column) == (code, column)


@settings(max_examples=500, deadline=None)
@given(st.text("ab1.e*+-/(), =[]{}'\"\\:\n\t_lambdifnotEé", max_size=80) | st.text(max_size=60))
def test_any_text_is_a_tree_or_a_mistake(text: str):
    problems: list[Diagnostic] = []
    tree = parse_expression(Text(text, tuple(range(len(text))), text, NOWHERE), problems.append)
    if problems:
        assert tree is None or {each.code for each in problems} <= {"FG113", "FG117"}
    else:
        assert tree is not None
        assert bare(read(unparse(tree))) == bare(tree)
