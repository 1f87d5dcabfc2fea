"""The generated operators, by name: `from flagen.ops import chunk_retention`.

Nothing is imported until a name is asked for; then that operator's folder is, and torch and Triton
with it. `from flagen.ops.retention import chunk_retention` works too; the attribute
`flagen.ops.retention` is the function `retention`.

In a checkout the folder is `generated/` and keeps that name, so that `generated.retention` and
`flagen.ops` hold the same objects; in an installed package it is `flagen._generated`.
"""

from __future__ import annotations

import ast
import difflib
import sys
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

_INSTALLED = Path(__file__).resolve().parents[1] / "_generated"
_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "generated"


def _package() -> str:
    """The folder's import name."""
    if _FOLDER == _INSTALLED:
        return "flagen._generated"
    found = find_spec("generated")
    first = next(iter(found.submodule_search_locations or ()), "") if found else ""
    if Path(first).resolve() == _FOLDER:
        return "generated"
    # Another `generated` comes first on sys.path, or none is there.
    ours = ModuleSpec("flagen._generated", None, is_package=True)
    ours.submodule_search_locations = [str(_FOLDER)]
    return sys.modules.setdefault(ours.name, module_from_spec(ours)).__name__


def _public_names(operator: Path) -> list[str]:
    """The `__all__` of an operator's folder, read and not executed."""
    for statement in ast.parse((operator / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    return []


_PACKAGE = _package()
_OPERATORS = {
    init.parent.name: _public_names(init.parent) for init in sorted(_FOLDER.glob("*/__init__.py"))
}
_OPERATOR_OF = {name: operator for operator, names in _OPERATORS.items() for name in names}

__all__ = sorted(_OPERATOR_OF)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _OPERATOR_OF:
        raise AttributeError(_unknown(name))
    value = getattr(import_module(f"{_PACKAGE}.{_OPERATOR_OF[name]}"), name)
    globals()[name] = value
    return value


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, __all__, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"operators: {', '.join(_OPERATORS)}."
    return f"flagen.ops has no `{name}`; {hint} `flagen build` makes an operator from its spec."


def _attribute(operator: str, name: str) -> Any:
    """What a stand-in for `operator` has under `name`."""
    # `inspect` asks all modules for `__file__` and the like, which must not import them all.
    if name.startswith("__") and name != "__all__":
        raise AttributeError(name)
    return getattr(import_module(f"{_PACKAGE}.{operator}"), name)


for _operator in _OPERATORS:
    # `from flagen.ops.retention import …` finds this stand-in, which imports on first use.
    _module = module_from_spec(ModuleSpec(f"{__name__}.{_operator}", None))
    _module.__dict__["__getattr__"] = partial(_attribute, _operator)
    sys.modules[_module.__name__] = _module


class _Explain:
    """Without it, `from flagen.ops import …` replaces the message of `__getattr__` by its own."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name.startswith(f"{__name__}."):
            raise ImportError(_unknown(name.rpartition(".")[2]), name=name)


sys.meta_path.append(_Explain)
