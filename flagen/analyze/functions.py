"""The pointwise functions of the language: how each one is written in SymPy and in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import sympy


class _Pointwise(sympy.Function):
    """A named function of one real argument, kept whole so that generated code can name it."""

    nargs = 1

    def _eval_is_real(self) -> bool:
        return True


class sigmoid(_Pointwise):
    """1 / (1 + exp(-x))."""

    def _eval_is_positive(self) -> bool:
        return True

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """The derivative."""
        return self * (1 - self)


class softplus(_Pointwise):
    """log(1 + exp(x))."""

    def _eval_is_positive(self) -> bool:
        return True

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """The derivative."""
        return sigmoid(self.args[0])


class log1p(_Pointwise):
    """log(1 + x), exact for small x."""

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """The derivative."""
        return 1 / (1 + self.args[0])


class expm1(_Pointwise):
    """exp(x) - 1, exact for small x."""

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """The derivative."""
        return sympy.exp(self.args[0])


class silu(_Pointwise):
    """x sigmoid(x)."""

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """The derivative."""
        s = sigmoid(self.args[0])
        return s + self.args[0] * s * (1 - s)


class relu(_Pointwise):
    """max(x, 0)."""

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """The derivative, 0 at 0."""
        return sympy.Piecewise((1, self.args[0] > 0), (0, True))


def _softplus(x: Any) -> Any:
    return np.logaddexp(0.0, x)


def _sigmoid(x: Any) -> Any:
    return np.exp(-_softplus(-x))


# name in the spec: (SymPy, NumPy)
POINTWISE: dict[str, tuple[Callable[..., sympy.Expr], Callable[..., Any]]] = {
    "exp": (sympy.exp, np.exp),
    "expm1": (expm1, np.expm1),
    "log": (sympy.log, np.log),
    "log1p": (log1p, np.log1p),
    "sqrt": (sympy.sqrt, np.sqrt),
    "rsqrt": (lambda x: 1 / sympy.sqrt(x), lambda x: 1 / np.sqrt(x)),
    "square": (lambda x: x**2, np.square),
    "abs": (sympy.Abs, np.abs),
    "tanh": (sympy.tanh, np.tanh),
    "max": (sympy.Max, np.maximum),
    "min": (sympy.Min, np.minimum),
    "sigmoid": (sigmoid, _sigmoid),
    "softplus": (softplus, _softplus),
    "silu": (silu, lambda x: x * _sigmoid(x)),
    "relu": (relu, lambda x: np.maximum(x, 0.0)),
}

# The nodes of a SymPy expression that are no numbers, symbols or contractions.
NUMPY_OF: dict[type, Callable[..., Any]] = {
    sympy.Add: lambda *xs: reduce(np.add, xs),
    sympy.Mul: lambda *xs: reduce(np.multiply, xs),
    sympy.Pow: np.power,
    sympy.exp: np.exp,
    sympy.log: np.log,
    sympy.tanh: np.tanh,
    sympy.Abs: np.abs,
    sympy.Max: lambda *xs: reduce(np.maximum, xs),
    sympy.Min: lambda *xs: reduce(np.minimum, xs),
    sigmoid: _sigmoid,
    softplus: _softplus,
    log1p: np.log1p,
    expm1: np.expm1,
    silu: lambda x: x * _sigmoid(x),
    relu: lambda x: np.maximum(x, 0.0),
}
