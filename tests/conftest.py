"""What all tests share: where kernels run, the `gpu` and `huge` markers, and poisoned memory.

Without a GPU the kernels run in Triton's interpreter. Triton reads TRITON_INTERPRET when a kernel
is defined, and its own library has kernels too: so it is set here, before Triton is imported.
Tests of what needs the variable unset (the reference path on a CPU, offline compilation) start a
process of their own.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
HAS_GPU = torch.cuda.is_available()

if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
if not HAS_GPU and importlib.util.find_spec("triton") is not None:
    import interpreter

    interpreter.quicken()


def pytest_addoption(parser: pytest.Parser) -> None:
    if importlib.util.find_spec("pytest_timeout") is None:
        parser.addini("timeout", "seconds per test; without pytest-timeout it has no effect")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU; skipped where there is none")
    config.addinivalue_line(
        "markers",
        "huge: needs 100 GB of GPU memory for itself; runs only with -m huge, not with -n",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="no GPU: torch.cuda.is_available() is False")
    not_asked = pytest.mark.skip(reason="needs a GPU for itself: choose it with -m huge")
    for item in items:
        if "gpu" in item.keywords and not HAS_GPU:
            item.add_marker(no_gpu)
        elif "huge" in item.keywords and "huge" not in (config.getoption("-m") or ""):
            item.add_marker(not_asked)


def pytest_collection_finish() -> None:
    """Tests build the same files again and again; two starts of the formatter each take longest."""
    finish: Any = sys.modules.get("flagen.render.finish")
    if finish is not None:
        finish._format = cache(finish._format)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run: the GPU, or the CPU under Triton's interpreter."""
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fresh memory is full of NaN, so that an element that no kernel writes is seen."""

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(*args: Any, **kwargs: Any) -> torch.Tensor:
            x = allocate(*args, **kwargs)
            return x.fill_(float("nan")) if x.dtype.is_floating_point else x

        return run

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    yield
