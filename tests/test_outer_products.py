"""Chunk forms made of walks and pointwise stages: results and gradients against float64."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from outer_product_cases import CASES

from flagen.parse.spec import Spec
from flagen.pipeline import Pipeline
from flagen.render import runtime_file
from flagen.verify import LIMIT, Case, Tensors, cast, error, floor, make, poisoned_memory, run
from flagen.write import compare, write

Build = Callable[[str], tuple[Spec, ModuleType]]
PACKED = Case(1, 40, 2, 12, 20, (0, 0, 1, 18, 40, 40))


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The operator of a spec's text, and the spec."""
    folder = tmp_path_factory.mktemp("walks")
    sys.path.insert(0, str(folder))

    @cache
    def made(text: str) -> tuple[Spec, ModuleType]:
        compilation = Pipeline()(text)
        package = folder / f"made_{abs(hash(text))}"
        files = (runtime_file(), *compilation.files)
        write(compare(files, package), package)
        return compilation.spec, importlib.import_module(f"{package.name}.{compilation.spec.name}")

    return made


def verify(
    build: Build, text: str, case: Case, dtype: torch.dtype, device: torch.device, strength: float = 1
) -> None:
    """`chunk` and `fused_chunk` within twice the error of naive, or the floor."""
    spec, module = build(text)
    x = make(spec, case, dtype, device)
    naive = getattr(module, f"naive_{spec.name}")
    exact, usual = run(naive, cast(x, torch.float64), spec, True), run(naive, x, spec, True)
    for form in ("chunk", "fused_chunk"):
        with poisoned_memory():
            found = run(getattr(module, f"{form}_{spec.name}"), x, spec, True)
        assert found.keys() == exact.keys()
        for name, value in found.items():
            bound = min(max(2 * error(usual[name], exact[name]), floor(dtype)), LIMIT)
            assert error(value, exact[name]) <= bound, (form, name)
            assert value.dtype == usual[name].dtype, (form, name)


@pytest.mark.parametrize("name", CASES)
def test_every_gradient(name: str, build: Build, device: torch.device) -> None:
    verify(build, CASES[name], PACKED, torch.float32, device)
