"""Calls that are recorded and repeated: the same bits as those that are decided anew.

Here Triton's interpreter runs the launches; `tests/gpu/test_repeated_calls.py` has direct ones.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flagen.accuracy import Tensors
from flagen.load import load
from flagen.parse import parse
from flagen.verify import Case, make, run
from generated import _runtime

SPECS = {
    path.stem: parse(load(path)) for path in sorted(Path(__file__).parents[1].glob("specs/*.yaml"))
}
FORMS = [
    (op, form)
    for op in SPECS
    for form in ("chunk", "parallel", "fused_recurrent")
    if hasattr(importlib.import_module(f"generated.{op}"), f"{form}_{op}")
]
CPU = torch.device("cpu")


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Calls are recorded on the CPU too; a note for each that was repeated."""
    notes: list[int] = []
    repeat = _runtime.Recording.repeat

    def noted(self: Any, *arguments: Any) -> Any:
        notes.append(len(self.steps))
        return repeat(self, *arguments)

    monkeypatch.setattr(_runtime, "_stream", lambda device: 0)
    monkeypatch.setattr(_runtime.Recording, "repeat", noted)
    yield notes
    _runtime.forget_calls()


def inputs(op: str, seed: int, bounds: tuple[int, ...] | None = None) -> Tensors:
    torch.manual_seed(seed)
    return make(SPECS[op], Case(1, 5, 2, 6, 8, bounds), torch.float16, CPU)


@pytest.mark.parametrize(("op", "form"), FORMS, ids=lambda x: x)
def test_same_bits_for_other_tensors(
    op: str, form: str, repeats: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, states and gradients."""
    function = getattr(importlib.import_module(f"generated.{op}"), f"{form}_{op}")
    first, second = inputs(op, 1), inputs(op, 2)
    states = form != "parallel"
    for _ in range(2):
        run(function, first, SPECS[op], states)
    before = len(repeats)  # walks of one call that are alike
    found = run(function, second, SPECS[op], states)
    assert len(repeats) >= before + 2
    monkeypatch.setattr(_runtime, "_stream", lambda device: None)
    expected = run(function, second, SPECS[op], states)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_decoding_is_repeated(repeats: list[int]) -> None:
    """What changes in place is the pool of each call."""
    op = importlib.import_module("generated.gla")
    torch.manual_seed(0)
    pools = [torch.randn(2, 2, 6, 8) for _ in range(3)]
    slots = torch.tensor([1])
    for pool in pools:
        x = {name: v[:, :1].contiguous() for name, v in inputs("gla", 3).items() if name in "qkvg"}
        expected, o = pool.clone(), None
        with torch.no_grad():
            o, _ = op.decode_gla(**x, state_pool=pool, slots=slots)
            naive, last = op.naive_gla(**x, initial_state=expected[1:], output_final_state=True)
        assert torch.equal(pool[0], expected[0])
        torch.testing.assert_close(pool[1], last[0].float(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(o, naive, rtol=1e-2, atol=1e-2)
    assert len(repeats) == 1
    with pytest.raises(TypeError, match="slots"):
        op.decode_gla(**x, state_pool=pools[0], slots=[1])


def scaled(scale: float) -> Callable[..., torch.Tensor]:
    return lambda x, y: (x + scale * y).sum(0)


def test_a_tensor_given_twice_has_two_places(repeats: list[int]) -> None:
    add = _runtime.Repeated(scaled(2.0))
    x, y = torch.ones(2, 3), torch.full((2, 3), 5.0)
    for _ in range(2):
        assert torch.equal(add(x, x), torch.full((3,), 6.0))
    assert torch.equal(add(x, y), torch.full((3,), 22.0))
    assert len(repeats) == 1


def test_what_differs_is_decided_anew(repeats: list[int]) -> None:
    """Shapes, strides, dtypes, alignment, numbers, None, and segments that are fixed."""
    add = _runtime.Repeated(lambda x, number, other: x * number)
    x = torch.arange(64.0).reshape(8, 8)
    kinds: list[tuple[Any, ...]] = [
        (x, 2, None),
        (x[:4], 2, None),
        (x.t(), 2, None),
        (x.double(), 2, None),
        (x.flatten()[1:], 2, None),
        (x.flatten()[:63], 2, None),
        (x, 3, None),
        (x, 2, 1),
    ]
    for given in 2 * kinds:
        assert torch.equal(add(*given), given[0] * given[1])
    assert not repeats
    for given in kinds:
        assert torch.equal(add(*given), given[0] * given[1])
    assert len(repeats) == len(kinds)
    _runtime.batch_invariant(64)
    try:
        add(*kinds[0])
    finally:
        _runtime.batch_invariant(0)
    assert len(repeats) == len(kinds)


def test_what_cannot_be_repeated_is_not(repeats: list[int]) -> None:
    """Changes of a tensor, decisions by values, tensors from elsewhere, within, of other kinds."""
    known = torch.ones(3)

    def changes(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x).copy_(x)

    def decides(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x[0].item() > 0 else x - 1

    def remembers(x: torch.Tensor) -> torch.Tensor:
        return x + known

    class Other(torch.Tensor):
        pass

    functions: list[Callable[[torch.Tensor], torch.Tensor]] = [
        changes,
        decides,
        remembers,
        lambda x: torch.cat([x, x]),
        lambda x: torch.add(x, other=x),
        lambda x: x[(x > 1,)],
    ]
    for function in functions:
        call = _runtime.Repeated(function)
        for value in range(4):
            x = torch.full((3,), float(value))
            assert torch.equal(call(x), function(x))
    double = _runtime.Repeated(lambda x: 2 * x)
    for value in range(4):
        x = torch.full((3,), float(value)).as_subclass(Other)
        assert torch.equal(double(x), 2 * x)
    known.zero_()
    decided = _runtime.Repeated(decides)
    signs = (1.0, 1.0, -1.0, 1.0)
    assert [decided(torch.full((1,), x)).item() for x in signs] == [2.0, 2.0, -2.0, 2.0]
    assert not repeats


def test_nothing_is_made_that_nobody_needs(repeats: list[int]) -> None:
    def wasteful(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.empty(1000, dtype=torch.float64)
        (x * 2).sum()
        return x + 1, x, torch.empty(2, 5, dtype=torch.float64)

    call = _runtime.Repeated(wasteful)
    x, y = torch.ones(3), torch.zeros(3)
    call(x), call(x)
    made, given, room = call(y)
    assert torch.equal(made, torch.ones(3)) and given is y
    assert room.shape == (2, 5) and room.dtype == torch.float64
    assert repeats == [2]


def test_memory_is_given_back_where_it_was(repeats: list[int]) -> None:
    """Each tensor that was made for others, after the last that reads it."""

    def chain(x: torch.Tensor) -> torch.Tensor:
        a = x + 1
        b = a * 2
        return b + a * 0 + x

    call = _runtime.Repeated(chain)
    for value in (1.0, 2.0, 3.0):
        assert torch.equal(call(torch.full((2,), value)), torch.full((2,), 3 * value + 2))
    (recording,) = call.known.values()
    assert [len(last) for _, last in recording.steps] == [0, 0, 1, 2, 1]


def test_a_number_that_changes_is_no_other_kernel(
    repeats: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsals: list[Any] = []
    monkeypatch.setattr(_runtime, "compile_ahead", rehearsals.append)
    call = _runtime.Repeated(lambda x, scale, size: x * scale)
    for scale in (0.5, 0.25, 0.125):
        assert torch.equal(call(torch.ones(2, 3), scale, 4), torch.full((2, 3), scale))
    assert len(rehearsals) == 1
    call(torch.ones(2, 3), 0.5, 5)
    assert len(rehearsals) == 2


def test_an_error_is_not_recorded(repeats: list[int]) -> None:
    broken = [True]

    def fails(x: torch.Tensor) -> torch.Tensor:
        if broken:
            raise RuntimeError("no memory")
        return x + 1

    call = _runtime.Repeated(fails)
    x = torch.zeros(2)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="no memory"):
            call(x)
    broken.clear()
    for _ in range(3):
        assert torch.equal(call(x), torch.ones(2))
    assert len(repeats) >= 1


class Kernel:
    """Notes what becomes of it."""

    def __init__(self, name: str, notes: list[str], wrong: bool = False) -> None:
        self.name, self.notes, self.wrong = name, notes, wrong
        self.fn, self.cache_key, self.params = self, "", ()
        self.device_caches: defaultdict[int, int] = defaultdict(int)

    def warmup(self, *arguments: Any, **options: Any) -> None:
        if self.wrong:
            raise RuntimeError("out of registers")
        self.notes.append(f"compile {self.name} {arguments}")

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **options: self.notes.append(f"launch {self.name}")


def test_kernels_of_a_first_call_are_compiled_together(
    repeats: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of its backward too, and before anything is launched; not again for another length."""
    monkeypatch.setattr(_runtime, "INTERPRET", False)
    monkeypatch.setattr(_runtime, "starts_early", lambda: False)
    notes: list[str] = []
    read, write, back = (Kernel(name, notes) for name in ("read", "write", "back"))
    broken = Kernel("broken", notes, wrong=True)

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        _runtime.launch(read, 1, (x, None, y), (0.5,), (16,))
        _runtime.launch(broken, 1, (x, y), (), ())
        _runtime.launch(write, len(x), (y,), (), ())
        return y

    def backward(y: torch.Tensor) -> None:
        _runtime.launch(back, 1, (y,), (), ())

    call = _runtime.Repeated(forward)
    launched = ["launch read", "launch broken", "launch write"]
    call(torch.zeros(2, 3, 4), then=backward)
    assert sorted(notes[:3]) == [
        "compile back (torch.float32,)",
        "compile read (torch.float32, None, torch.float32, 0.5, 16)",
        "compile write (torch.float32,)",
    ]
    assert notes[3:] == launched
    for x in (torch.zeros(2, 5, 4), torch.zeros(2, 3, 4)):
        notes.clear()
        call(x, then=backward)
        assert notes == launched
    notes.clear()
    call(torch.zeros(2, 3, 5), then=backward)
    assert len(notes) == 6 and notes[3:] == launched
