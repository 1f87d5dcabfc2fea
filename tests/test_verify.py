"""`flagen verify` finds what is wrong: too large an error, memory that no kernel wrote, NaN."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_cli import ROOT, flagen_

from flagen import verify
from flagen.accuracy import compare, conditions, floor
from flagen.load import load
from flagen.parse import parse
from flagen.verify import Case, Result

SPEC = parse(load(ROOT / "specs" / "retention.yaml"))


def naive(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Anything differentiable will do: only the comparison is tested here."""
    o = (q.sum(-1, True) + k.sum(-1, True)) * v
    state = None if initial_state is None else initial_state * 2 + v.sum()
    return o, state


def exact(**x: Any) -> Any:
    return naive(**x)


def far_off(**x: Any) -> Any:
    o, state = naive(**x)
    return o * 1.001, state


def not_written(**x: Any) -> Any:
    o, state = naive(**x)
    return o + 0 * torch.empty(1), state


def infinite(**x: Any) -> Any:
    o, state = naive(**x)
    return o / 0, state


def results(form: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    def with_state(
        q: Any,
        k: Any,
        v: Any,
        initial_state: Any = None,
        output_final_state: bool = False,
        **x: Any,
    ) -> Any:
        states = {"initial_state": initial_state, "output_final_state": output_final_state}
        return form(q=q, k=k, v=v, **states, **x)

    monkeypatch.setattr(verify, "INTERPRETED_CHUNKS", (Case(1, 3, 1, 4, 5),))
    module: Any = SimpleNamespace(naive_retention=naive, chunk_retention=with_state)
    return list(verify.verify(module, SPEC, torch.device("cpu")))


def test_right(monkeypatch: pytest.MonkeyPatch) -> None:
    found = results(exact, monkeypatch)
    assert {each.tensor for each in found} == {"o", "ht", "dq", "dk", "dv", "dh0"}
    assert {each.dtype for each in found} == {"float32", "float16"}
    assert all(each.passed for each in found)


@pytest.mark.parametrize("form", [far_off, not_written, infinite])
def test_wrong(form: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {each.tensor for each in results(form, monkeypatch) if not each.passed}
    assert "o" in failed
    assert "ht" not in failed


def test_memory_is_itself_again() -> None:
    before = torch.empty, torch.empty_like, torch.Tensor.new_empty
    with verify.poisoned_memory():
        assert torch.empty(2).isnan().all()
        assert torch.empty(2, dtype=torch.int32).shape == (2,)
    assert (torch.empty, torch.empty_like, torch.Tensor.new_empty) == before


def test_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Result("chunk", "float32", Case(1, 2, 3, 4, 5), "o", 1e-7, 1e-6)
    bad = Result("chunk", "float32", Case(1, 2, 3, 4, 5, (0, 2)), "dq", float("inf"), 1e-6)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for found, code in (([good], 0), ([good, bad], 1)):
        monkeypatch.setattr(verify, "verify", lambda *_, found=found: iter(found))
        done = flagen_("verify", str(ROOT / "specs" / "retention.yaml"))
        assert done.code == code
    assert (
        "failed chunk float32 dq, B1 T2 H3 K4 V5 packed at 0,2: error inf, bound 1.00e-06"
        in done.out
    )
    assert "1 of 2 comparisons failed" in done.out


def test_bad_spec() -> None:
    assert flagen_("verify", "nosuch.yaml").code == 2


def test_condition_of_a_sum() -> None:
    """A sum moves by the root of its summands' squares, however little of it is left."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for total in (30.0, 1.0, 0.01):
        summands = x + (total - x.sum()) / 1000
        found = conditions(lambda t: {"sum": t["x"].sum()[None]}, {"x": summands})["sum"]
        wanted = summands.norm().item() / total
        assert wanted / 2 < found < 2 * wanted


def test_bound_follows_the_condition() -> None:
    """Where a result is known to be ill-conditioned, and only there."""
    exact = {"o": torch.ones(4, dtype=torch.float64), "dg": torch.ones(4, dtype=torch.float64)}
    half = torch.float16
    for share, times, passes in ((0.9, {}, True), (2.5, {}, False), (2.5, {"dg": 3.0}, True)):
        off = {name: value * (1 + share * floor(half)) for name, value in exact.items()}
        found = list(compare(off, exact, exact, half, lambda times=times: times))
        assert [error <= bound for _, error, bound in found] == [share < 1, passes]


def test_what_vanishes_has_the_error_of_naive() -> None:
    """As the gradient of a weighted mean's only weight: all is rounding. Others have a limit."""
    exact, usual = {"dq": torch.tensor([1e-12] * 4)}, {"dq": torch.tensor([5e-8] * 4)}
    for off, within in ((6e-8, True), (9e-8, True), (2e-7, False)):
        found = {"dq": torch.tensor([off] * 4)}
        for known in ({"dq": 1.0}, {}):
            (row,) = compare(found, exact, usual, torch.float32, lambda known=known: known)
            assert (row[1] <= row[2]) == (within and bool(known))


def test_cancelling_gradients_have_a_bound() -> None:
    """A gradient of a parameter that is wrong by more than its condition explains fails."""
    spec = parse(load(ROOT / "specs" / "lightning_attn.yaml"))
    module = importlib.import_module("generated.lightning_attn")
    x = verify.make(spec, Case(1, 1, 1, 16, 24), torch.float16, torch.device("cpu"))
    naive = module.naive_lightning_attn
    exact = verify.run(naive, verify.cast(x, torch.float64), spec, True)
    times = verify.conditions_of_sums(naive, x, spec, True)
    assert times.keys() == {"dg"}
    assert 2 < times["dg"] < 30
    wrong = {**exact, "dg": exact["dg"] * (1 + 3 * times["dg"] * floor(torch.float16))}
    failed = [
        n for n, off, b in compare(wrong, exact, exact, torch.float16, lambda: times) if off > b
    ]
    assert failed == ["dg"]
