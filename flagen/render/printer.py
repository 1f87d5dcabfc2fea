"""SymPy expressions as Triton and as torch text."""

from __future__ import annotations

from typing import ClassVar

import sympy
from sympy.printing.precedence import PRECEDENCE, precedence
from sympy.printing.str import StrPrinter


class _Printer(StrPrinter):
    """Prints sums and products in SymPy's order, and calls of `functions`."""

    functions: ClassVar[dict[str, str]] = {}

    def _print_Function(self, expression: sympy.Function) -> str:
        name = type(expression).__name__
        if name not in self.functions:
            raise ValueError(f"`{name}` cannot be printed")
        return f"{self.functions[name]}({self.stringify(expression.args, ', ')})"

    def _print_exp(self, expression: sympy.Expr) -> str:
        return f"{self.functions['exp']}({self._print(expression.args[0])})"


class TritonPrinter(_Printer):
    """Scalar Triton text; every number is a float."""

    functions: ClassVar[dict[str, str]] = {
        "exp": "tl.exp",
        "log": "tl.log",
        "sqrt": "tl.sqrt",
        "Abs": "tl.abs",
    }

    def _print_Integer(self, expression: sympy.Integer) -> str:
        return f"{expression.p}.0"

    def _print_Rational(self, expression: sympy.Rational) -> str:
        return f"({expression.p}.0 / {expression.q}.0)"

    def _print_Pow(self, expression: sympy.Pow, rational: bool = False) -> str:
        base, exponent = expression.args
        if base == 2:
            return f"tl.exp2({self._print(exponent)})"
        if exponent == -1:
            return f"1.0 / {self.parenthesize(base, PRECEDENCE['Mul'])}"
        if exponent == sympy.S.Half:
            return f"tl.sqrt({self._print(base)})"
        power = self.parenthesize(exponent, PRECEDENCE["Mul"])
        return f"tl.exp2({power} * tl.log2({self._print(base)}))"


class TorchPrinter(_Printer):
    """Pointwise torch text."""

    functions: ClassVar[dict[str, str]] = {
        "exp": "torch.exp",
        "log": "torch.log",
        "sqrt": "torch.sqrt",
        "Abs": "torch.abs",
    }

    def _print_Pow(self, expression: sympy.Pow, rational: bool = False) -> str:
        base, exponent = (
            self.parenthesize(part, precedence(expression) + 1) for part in expression.args
        )
        return f"{base} ** {exponent}"
