"""Formulas of `multi` graders: numbers, names of graders, + - * / ^ and a few functions.

Python's own parser reads them, and a walk of a closed list of nodes computes them: nothing of a
formula is ever compiled or called by a name that it chooses.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bmt_core.errors import GraderError

MAX_FORMULA_CHARACTERS, _MAX_DEPTH = 500, 40
_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_MANY = ("min", "max")


@dataclass(frozen=True)
class Formula:
    """A parsed formula. text: as it was given; names: the graders that it reads."""

    text: str
    names: frozenset[str]
    _root: ast.expr

    @classmethod
    def parse(cls, text: Any, graders: Collection[str], field: str) -> Formula:
        """The formula of a text. graders: the names it may read. Raises GraderError."""
        if not isinstance(text, str) or not 0 < len(text) <= MAX_FORMULA_CHARACTERS:
            raise _error(field, f"expected text of 1 to {MAX_FORMULA_CHARACTERS} characters")
        try:
            # OpenAI's power is ^, which Python reads as another operator, of another precedence.
            root = ast.parse(text.strip().replace("^", "**"), mode="eval").body
            names = _checked(root, graders, field)
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            reason = getattr(error, "msg", None) or type(error).__name__
            raise _error(field, f"{text[:80]!r} is no formula ({reason})") from None
        if not names:
            raise _error(
                field, f"{text[:80]!r} reads no grader; there are {', '.join(sorted(graders))}"
            )
        return cls(text, frozenset(names), root)

    def value(self, scores: Mapping[str, float]) -> float:
        """The number for the graders' scores. Raises GraderError where it is none."""
        try:
            number = _value(self._root, scores)
        except (ArithmeticError, ValueError) as error:
            raise self._undefined(scores, str(error)) from None
        if not math.isfinite(number):
            raise self._undefined(scores, f"it is {number}")
        return number

    def _undefined(self, scores: Mapping[str, float], why: str) -> GraderError:
        read = ", ".join(f"{name} = {scores[name]:g}" for name in sorted(self.names))
        return _error("calculate_output", f"{self.text[:80]!r} is no number for {read} ({why})")


def _checked(root: ast.expr, graders: Collection[str], field: str) -> set[str]:
    names = set[str]()
    _check(root, graders, names, field, 0)
    return names


def _check(
    node: ast.expr, graders: Collection[str], names: set[str], field: str, depth: int
) -> None:
    """Raise GraderError for a node that is not of a formula; collect names."""
    if depth > _MAX_DEPTH:
        raise _error(field, f"nested deeper than {_MAX_DEPTH} levels, which are allowed")
    inner: list[ast.expr]
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            # A longer integer is no float, and neither is 1e999.
            if len(str(value)) > 24 or not math.isfinite(value):
                raise _error(field, f"the number {str(value)[:30]} is out of range")
            return
        case ast.Name(id=name) if name in graders:
            names.add(name)
            return
        case ast.Name(id=name):
            raise _error(
                field, f"{name[:60]!r} is no grader; there are {', '.join(sorted(graders))}"
            )
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            inner = [operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            inner = [left, right]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            if not (args if name in _MANY else len(args) == 1):
                raise _error(field, f"{name} takes another number of values than {len(args)}")
            inner = args
        case _:
            raise _error(
                field,
                f"{ast.unparse(node)[:60]!r} is not allowed; numbers, graders, + - * / ^ and "
                f"{', '.join(_FUNCTIONS)} are",
            )
    for one in inner:
        _check(one, graders, names, field, depth + 1)


def _value(node: ast.expr, scores: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=value):
            number: Any = value
        case ast.Name(id=name):
            number = scores[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            number = -_value(operand, scores)
        case ast.UnaryOp(operand=operand):
            number = _value(operand, scores)
        case ast.BinOp(left=left, op=op, right=right):
            number = _OPERATORS[type(op)](_value(left, scores), _value(right, scores))
        case ast.Call(func=ast.Name(id=name), args=args):
            values = [_value(one, scores) for one in args]
            number = _FUNCTIONS[name](values) if name in _MANY else _FUNCTIONS[name](*values)
        case _:
            raise AssertionError(node)
    if isinstance(number, complex):
        raise ValueError("a power of a negative number")
    # Always a float: powers of integers have no bound.
    return float(number)


def _error(field: str, why: str) -> GraderError:
    return GraderError(f"{field}: {why}", field=field)
