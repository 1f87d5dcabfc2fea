"""Every mistake has a code, a place and an exact message: tests/spec/bad/*.yaml and *.txt.

FLAGEN_UPDATE=1 rewrites the messages; read the diff before committing it.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from flagen.codes import CODES
from flagen.diagnostics import Diagnostic, FlagenError, Span, render, render_rich
from flagen.load import MAX_BYTES, load, load_data, load_text
from flagen.parse import json_schema, parse

ROOT = Path(__file__).parent.parent
BAD = Path(__file__).parent / "spec" / "bad"
WORDS = "name inputs decay state update output scale forms axes value domain q k S T H K o g é"
SIGNS = ": |- > | - [ ] { } , # ' \" & * ! ? --- ... = + / ** ( ) . 1 2.5 1e9"
FRAGMENTS = (*WORDS.split(), *SIGNS.split(), "\n", "\n\n", "\t", ": ", "\n  ")

# Mistakes that are no file: how to make one in an empty folder.
MADE: dict[str, Callable[[Path], object]] = {
    "fg001_no_such_file": lambda path: None,
    "fg002_directory": lambda path: path.mkdir(),
    "fg003_too_large": lambda path: path.write_text("#" * (MAX_BYTES + 1)),
}
CASES = sorted([*MADE, *(path.stem for path in BAD.glob("*.yaml"))])


def mistakes(text: str) -> FlagenError:
    with pytest.raises(FlagenError) as raised:
        parse(load_text(text, "spec.yaml"))
    return raised.value


@pytest.mark.parametrize("case", CASES)
def test_message(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = Path(f"{case}.yaml")
    monkeypatch.chdir(tmp_path if case in MADE else BAD)
    if case in MADE:
        MADE[case](path)
    with pytest.raises(FlagenError) as raised:
        parse(load(path))
    message, expected = f"{raised.value}\n", BAD / f"{case}.txt"
    if os.environ.get("FLAGEN_UPDATE"):
        expected.write_text(message)
    assert message == expected.read_text(), "FLAGEN_UPDATE=1 accepts a new message"
    found = {each.code for each in raised.value.diagnostics}
    assert found == {case.split("_")[0].upper()}, "a bad spec shows one mistake"
    assert found <= CODES.keys()


def test_every_code_has_a_bad_spec():
    shown = {case.split("_")[0].upper() for case in CASES}
    assert {code for code in CODES if code < "FG2"} == {code for code in shown if code < "FG2"}


def test_every_message_has_a_bad_spec():
    assert {path.stem for path in BAD.glob("*.txt")} == set(CASES)


def test_all_mistakes_at_once_in_file_order_without_cascades():
    error = mistakes(
        """\
name: Two
inputs: {q: [T, H, K], v: [T, H, V], unused: [H]}
state: {S: [K, V]}
update: S = S * dot(qq, v) + outer(q, v)
output: o = dot(q, S
extra: 1
"""
    )
    assert [each.code for each in error.diagnostics] == ["FG104", "FG112", "FG111", "FG102"]


@pytest.mark.parametrize(
    ("update", "place"),
    [
        ("update: S = S + nope * v", (4, 17, 4)),
        ("update: 'S = S + nope * v'", (4, 18, 4)),
        ('update: "S = S + nope * v"', (4, 18, 4)),
        ("update: S = S +\n   nope * v", (5, 4, 4)),
        ("update: |\n  S = S\n    + nope * v", (6, 7, 4)),
        ("update: >-\n\n   S = S + nope\n   * v", (6, 12, 4)),
        ("update:\n  - S = S + v\n  -   S = S + nope * v", (6, 15, 4)),
        ('update: "S = S + \\x6eope * v"', (4, 9, 21)),  # an escape: the whole scalar
    ],
)
def test_place_in_every_kind_of_scalar(update: str, place: tuple[int, int, int]):
    text = f"name: x\ninputs: {{v: [T, H, V]}}\nstate: {{S: [V]}}\n{update}\noutput: o = S\n"
    (problem,) = mistakes(text).diagnostics
    assert (problem.code, problem.span) == ("FG112", Span(*place))


@pytest.mark.parametrize("nest", ["(", "-", "2**", "exp(", "1+", "(-"])
def test_deep_expressions_are_refused(nest: str):
    closing = ")" * nest.count("(")
    for depth in (150, 10_000):
        expression = nest * depth + "v" + closing * depth
        text = "name: x\ninputs: {v: [T, H, V]}\nstate: {S: [V]}\nupdate: 'S = S + "
        error = mistakes(f"{text}{expression}'\noutput: o = S\n")
        assert [each.code for each in error.diagnostics] == ["FG115"]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 60_000,
        "a: " * 20_000,
        "- " * 30_000,
        "? " * 30_000,
        "{a: " * 15_000,
        "&a [*a, *a]",
        "%YAML 1.1\n---\na: 1",
        "%TAG ! !x\n--- !y a",
        "%YAML 9",
        "\ud800",
        "a: \x00",
        'inputs: {"\\0list": 1}',
        'a: "\\ud800"',
        "\ufeff",
        "a: 1\n\ufeffb: 2",
    ],
)
def test_hostile_files(text: str):
    mistakes(text)


@pytest.mark.parametrize(
    "value",
    [
        "9**9**9",
        "((9**64)**64)**64",
        "1e99999999",
        "1e-0000000000000065",
        "0/0",
        "(-1)**0.5",
        "log(0)",
        "exp(1000)",
        "9" * 400,
    ],
)
def test_numbers_stay_small(value: str):
    text = (
        "name: x\ninputs: {v: [T, H, V]}\nstate: {S: [V]}\nupdate: S = S + v\noutput: o = scale*S\n"
    )
    error = mistakes(f"{text}scale: {value}\n")
    assert [each.code for each in error.diagnostics] == ["FG116"]


def test_nothing_is_evaluated(tmp_path: Path):
    for attack in (
        "__import__('os').getcwd()",
        "().__class__",
        "[x for x in v]",
        "f'{v}'",
        "v := 1",
    ):
        spec = "name: x\ninputs: {v: [T, V]}\nstate: {S: [V]}\noutput: o = S\n"
        text = f'{spec}update: "S = {attack}"\n'
        assert {each.code for each in mistakes(text).diagnostics} <= {"FG111", "FG114", "FG120"}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=60).map(" ".join) | st.text(max_size=200))
def test_random_text_is_an_error_and_no_crash(text: str):
    assert str(mistakes(text))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted((ROOT / "specs").glob("*.yaml"))),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 20), st.sampled_from(FRAGMENTS))),
)
def test_mutated_specs_never_crash(path: Path, edits: list[tuple[int, int, str]]):
    text = path.read_text()
    for start, length, fragment in edits[:4]:
        start %= len(text) + 1
        text = text[:start] + fragment + text[start + length :]
    try:
        parse(load_text(text))
    except FlagenError as error:
        assert str(error)
        assert {each.code for each in error.diagnostics} <= CODES.keys()


def test_data_is_read_like_text():
    data = {
        "name": "x",
        "inputs": {"v": ("T", "H", "V"), "u": {"axes": ["T", "H", "V"], "domain": [0, 1.5]}},
        "state": {"S": ["V"]},
        "update": ["S = S + v"],
        "output": "o = scale * S * u",
        "scale": 1e-6,
    }
    spec = parse(load_data(data))
    assert spec.inputs[0].axes == ("T", "H", "V")
    assert spec.inputs[1].domain == (0.0, 1.5)
    with pytest.raises(TypeError, match="not set"):
        load_data({"name": {1}})
    cycle: dict[str, object] = {}
    cycle["name"] = cycle
    with pytest.raises(TypeError, match="levels"):
        load_data(cycle)


def test_rendering():
    problem = Diagnostic("FG112", "unknown\x1b[2J", Span(2, 5, 99), ("known: x",), "do this")
    text = "first\n\t日本 x\x1b\n"
    plain = render(problem, "a\nb.yaml", text)
    assert plain.splitlines() == [
        "error[FG112]: unknown\\u001b[2J",
        " --> a\\u000ab.yaml:2:5",
        "  |",
        "2 |  日本 x\N{REPLACEMENT CHARACTER}",
        "  |       ^^",
        "  = known: x",
        "  = help: do this",
    ]
    assert render_rich(problem, "a\nb.yaml", text).plain == plain
    console = Console(force_terminal=True, width=200)
    with console.capture() as captured:
        console.print(render_rich(problem, "b.yaml", text))
    assert "\x1b[1;31merror[FG112]" in captured.get()
    long = render(Diagnostic("FG112", "m", Span(1, 500, 4)), "x", "a" * 499 + "bbbb" + "c" * 500)
    _, _, _, line, caret = long.splitlines()
    assert len(line) < 120
    assert line[caret.index("^") :].startswith("bbbb")


def test_error_survives_pickling():
    error = mistakes("name: 1")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_schema_knows_the_keys():
    schema = json_schema()
    assert {"name", "inputs", "state", "update", "output"} == set(schema["required"])
    assert schema["additionalProperties"] is False
    assert "fused_chunk" in str(schema["properties"]["forms"])


def test_codes_are_complete():
    for code, (title, explanation, fix) in CODES.items():
        assert len(code) == 5
        assert title and explanation.endswith(".") and fix.endswith(".")
