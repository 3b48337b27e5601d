"""The page of departures and the code: names exist, say so themselves, and defaults are equal."""

from __future__ import annotations

import ast
import re
from dataclasses import MISSING, fields
from fractions import Fraction
from pathlib import Path

import pytest
from bmt_trainer.methods import config

ROOT = Path(__file__).resolve().parents[2]
TRAINER = ROOT / "trainer/bmt_trainer"
PAGE = (ROOT / "docs/design/departures.md").read_text()
PLACE = re.compile(r"`([\w/]+\.py):(\w+)`")
DEFAULT = re.compile(r"`(\w+Config)\.(\w+) = ([^`]+)`")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| paper |")
]
PLACES = sorted({place for row in ROWS for place in PLACE.findall(row[3])})
DEFAULTS = sorted(set(DEFAULT.findall(PAGE)))
SAYS_SO = re.compile(r"\b[Dd]epart(?:ure|s)\b")


def source(path: str, name: str) -> str:
    """Text of a module's function, class or constant, with the comment above it."""
    text = (TRAINER / path).read_text()
    lines = text.splitlines()
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if name in (getattr(node, "name", None), *(getattr(t, "id", None) for t in targets)):
            return "\n".join(lines[max(0, node.lineno - 3) : node.end_lineno])
    raise LookupError(f"{path} has no {name}")


def is_value(given: str, default: object) -> bool:
    """The text says the default, a number also as a fraction."""
    if given == str(default):
        return True
    try:
        return isinstance(default, float) and float(Fraction(given)) == default
    except ValueError:
        return False


def test_every_row_names_its_place():
    assert len(ROWS) > 30
    for row in ROWS:
        assert len(row) == 5, row
        assert all(row), row
        assert PLACE.search(row[3]), row


@pytest.mark.parametrize(("path", "name"), PLACES)
def test_the_place_says_that_it_departs(path, name):
    assert SAYS_SO.search(source(path, name)), f"no 'Departure: …' in {path}:{name}"


@pytest.mark.parametrize(("owner", "name", "given"), DEFAULTS)
def test_defaults_are_those_of_the_settings(owner, name, given):
    (field,) = [f for f in fields(getattr(config, owner)) if f.name == name]
    assert field.default is not MISSING
    assert is_value(given, field.default), f"{owner}.{name} is {field.default!r}, not {given}"


def test_every_departure_in_code_is_on_the_page():
    """A place that says so has a row, so that the page is whole."""
    missing = []
    for path in sorted(TRAINER.rglob("*.py")):
        relative = path.relative_to(TRAINER).as_posix()
        text = path.read_text()
        for at, line in enumerate(text.splitlines(), 1):
            if not re.search(r"\bDeparture: ", line):
                continue
            rows = [n for f, n in PLACES if f == relative]
            if not any("\n" + line in "\n" + source(relative, name) for name in rows):
                missing.append(f"{relative}:{at}")
    assert not missing


def test_a_wrong_default_or_a_lost_name_is_found():
    assert is_value("1/2048", 1 / 2048)
    assert not is_value("1/1024", 1 / 2048)
    assert not is_value("auto", "bf16")
    with pytest.raises(LookupError):
        source("masking/equations.py", "no_such_name")
