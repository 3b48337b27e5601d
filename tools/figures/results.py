"""Kept results, by the reference that a page's mark has.

    FILE#ID             the value of an entry of FILE below benchmarks/results/latest
    FILE#ID.baseline    another field of it, dots for fields of fields; `interval` is two numbers
    KEY#score.accuracy  a run of a comparison, by the eight digits in its file's name
    KEY#score.lenient.share, KEY#score.lenient.interval95    the same in the lenient reading
    log:PAGE            a figure of docs/results/log/PAGE.md that was not kept as a result
    code:PATH:NAME      a constant of a module, or `PATH:CLASS.FIELD`, a default
    arithmetic: WORDS   one number that follows from others, or from a definition

A result's reference may end in `*NUMBER` or `/NUMBER`, which changes its unit.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bmt_trainer.evaluation.intervals import wilson

ROOT = Path(__file__).resolve().parents[2]
LATEST = ROOT / "benchmarks/results/latest"
LOG = ROOT / "docs/results/log"
NOT_KEPT = "not kept as a result"
NUMBER = r"(?<![\w.,-])[-−]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w])"

_SCALE = re.compile(r"(?P<reference>.*?)\s*(?:(?P<sign>[*/])\s*(?P<number>[\d.e+-]+))?$", re.DOTALL)
_OPERATORS = {
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
}


class FigureError(ValueError):
    """A mark that names nothing, or names it wrongly."""


@dataclass(frozen=True)
class Known:
    """Numbers that a reference stands for.

    values: one, or the two of an interval; None for arithmetic, which nothing is compared with.
    interval: of the one value, if there is one. texts: numbers as they are printed elsewhere.
    unit: of the values before `scale`, which changes it, if the result names one.
    """

    values: Sequence[float] | None
    interval: tuple[float, float] | None = None
    texts: frozenset[str] | None = None
    unit: str = ""
    scale: float = 1.0


def known(reference: str) -> Known:
    """The numbers of a reference. Raises FigureError."""
    kind, colon, rest = reference.partition(":")
    if colon and kind == "arithmetic":
        if not rest.strip():
            raise FigureError("arithmetic: without a word on what it follows from")
        return Known(None)
    if colon and kind == "log":
        return Known(None, texts=_printed(rest.strip()))
    match = _SCALE.fullmatch(reference)
    assert match is not None  # it matches any text
    try:
        scale = float(match["number"] or 1)
        scale = 1 / scale if match["sign"] == "/" else scale
    except (ValueError, ZeroDivisionError):
        raise FigureError(f"{reference}: {match['number']} is no factor") from None
    if colon and kind == "code":
        return Known([_constant(match["reference"].removeprefix("code:")) * scale])
    values, interval, unit = _result(match["reference"])
    scaled = [value * scale for value in values]
    if interval is not None:  # a negative scale turns it around
        low, high = sorted(bound * scale for bound in interval)
        interval = low, high
    return Known(scaled, interval, unit=unit, scale=scale)


def _printed(page: str) -> frozenset[str]:
    path = LOG / f"{page}.md"
    if not path.is_file():
        raise FigureError(f"log:{page}: no such page in {LOG.relative_to(ROOT)}")
    text = path.read_text()
    if NOT_KEPT not in text:
        raise FigureError(f"log:{page}: its figures were kept; name the result")
    return frozenset(re.findall(NUMBER, text))


def _result(reference: str) -> tuple[Sequence[float], tuple[float, float] | None, str]:
    """Values, the interval of one, and the unit. Raises FigureError."""
    source, mark, path = reference.partition("#")
    name, *fields = path.split(".")
    content = _file(source.strip())
    if not mark or not name:
        raise FigureError(f"{reference}: a result is FILE#ID")
    if isinstance(content, list):
        entries = [entry for entry in content if entry["id"] == name]
        if len(entries) != 1:
            raise FigureError(f"{reference}: {source} has {len(entries)} results of this id")
        found: Any = entries[0]
        fields = fields or ["value"]
    else:
        found, fields = content, [name, *fields]
    owner = found
    for field in fields:
        owner, found = found, _part(found, field, reference)
    values = found if isinstance(found, list) else [found]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise FigureError(f"{reference}: {found!r} is no number")
    last, unit = fields[-1], ""
    if isinstance(content, list) and last in ("value", "interval", "bound"):
        unit = re.split("[ /]", owner.get("unit") or "")[0]
    elif last in ("accuracy", "share", "interval95"):
        unit = "share"
    if last not in ("value", "accuracy", "share"):
        return values, None, unit
    interval = owner.get("interval" if last == "value" else "interval95")
    return values, tuple(interval) if interval else None, unit


def _part(found: Any, field: str, reference: str) -> Any:
    """A field of an object, an entry of a list, or what is computed of a score."""
    if isinstance(found, list) and field.isdigit() and int(field) < len(found):
        return found[int(field)]
    if isinstance(found, dict) and field == "lenient" and "total" in found:
        right, total = found["lenient"], found["total"]
        return {"share": right / total, "interval95": list(wilson(right, total))}
    if not isinstance(found, dict) or field not in found:
        raise FigureError(f"{reference}: no field {field}")
    if field == "bound":
        return float(found[field].rpartition(" ")[2] or "nan")
    return found[field]


@cache
def _file(source: str) -> Any:
    path = LATEST / source
    if re.fullmatch(r"[0-9a-f]{8}", source):
        found = sorted(LATEST.glob(f"**/*.{source}.json"))
        if len(found) != 1:
            raise FigureError(f"{source}: {len(found)} runs have this key")
        path = found[0]
    if not source or not path.is_file():
        raise FigureError(f"{source}: no such file in {LATEST.relative_to(ROOT)}")
    return json.loads(path.read_text())


def _constant(place: str) -> float:
    path, _, name = place.partition(":")
    file = ROOT / path
    if not file.is_file():
        raise FigureError(f"code:{place}: no such file")
    owner, _, field = name.rpartition(".")
    body = ast.parse(file.read_text()).body
    names = _assigned(body)
    if owner:
        body = next((n.body for n in body if isinstance(n, ast.ClassDef) and n.name == owner), [])
        names = names | {field: _assigned(body).get(field)}
    return _value(names.get(field), names, place)


def _assigned(body: Sequence[ast.stmt]) -> dict[str, ast.AST | None]:
    """Values of a block's names, in `A = 1`, `A: int = 1` and `A, B = 1, 2`."""
    found: dict[str, ast.AST | None] = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node.value
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name):
                found[target.id] = node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=False)
                found |= {a.id: b for a, b in pairs if isinstance(a, ast.Name)}
    return found


def _value(node: ast.AST | None, names: dict[str, ast.AST | None], place: str) -> float:
    """A number, an expression of numbers and names, or the number that a declaration has first."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return _value(names[node.id], names, place)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, names, place), _value(node.right, names, place)
        return float(_OPERATORS[type(node.op)](left, right))
    if isinstance(node, ast.Call):
        named = [word.value for word in node.keywords if word.arg == "default"]
        for part in (*named, *node.args):
            if isinstance(part, ast.Constant) and isinstance(part.value, int | float):
                return part.value
    raise FigureError(f"code:{place}: no such number")
