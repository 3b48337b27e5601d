"""Contract with another library: names of its private parts that code of this project needs.

A table of `Seam`s lists them; `broken` compares it with the installed library and names everything
that is missing or has another form. Nothing in that depends on a version number;
`minor_version` reads one, for lists of tested versions.
"""

from __future__ import annotations

import ast
import dis
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

_EMPTY = inspect.Parameter.empty
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Seam:
    """One object of another library, and the form of it that `used_by` needs.

    target: `package.module:Qualified.name`, or a module alone.
    used_by: the file of this project that needs it.
    exactly: names of all its parameters, `self` included, for a function that this project
    replaces, because the library passes them.
    accepts: names that this project passes; every other parameter has a default.
    attributes: names that a module or class defines, annotates, or sets on an object in a method.
    abstract: the most that a class may leave abstract, for a class that this project implements.
    reached: an attribute's name, and the most that the target's source may use of that attribute,
    for an object of the library that this project replaces.
    mentions: words of the target's source, for attributes that it looks up by name.
    """

    target: str
    used_by: str
    exactly: tuple[str, ...] | None = None
    accepts: tuple[str, ...] | None = None
    attributes: tuple[str, ...] = ()
    abstract: tuple[str, ...] | None = None
    reached: tuple[str, tuple[str, ...]] | None = None
    mentions: tuple[str, ...] = ()

    @property
    def library(self) -> str:
        """The import name of the library."""
        return self.target.partition(":")[0].partition(".")[0]


@dataclass(frozen=True, slots=True)
class Breach:
    """One seam that the installed library does not fit, and the difference."""

    seam: Seam
    difference: str

    def __str__(self) -> str:
        return f"{self.difference} (for {self.seam.used_by})"


def minor_version(version: str) -> tuple[int, int] | None:
    """Major and minor number; None for a version without them, as builds from source may have.

    A clone without tags builds `0.1.devN`, whatever release it is near.
    """
    found = re.match(r"(\d+)\.(\d+)(?:\.(dev))?", version)
    if found is None or (found[3] and found[1] == "0" and found[2] in "01"):
        return None
    return int(found[1]), int(found[2])


def minor_names(versions: Iterable[tuple[int, int]]) -> str:
    """The versions as people write them, in their order: `0.32, 0.33`."""
    return ", ".join(f"{major}.{minor}" for major, minor in sorted(versions))


def broken(seams: Iterable[Seam]) -> list[Breach]:
    """Compare seams with the installed libraries, in order. Imports the modules that they name."""
    return [Breach(seam, difference) for seam in seams for difference in _differences(seam)]


def _differences(seam: Seam) -> Iterator[str]:
    module, _, name = seam.target.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and module.startswith(error.name or "?")
        yield f"no module {module}" if missing else f"{module} cannot be imported ({error})"
        return
    for part in filter(None, name.split(".")):
        try:
            # Packages may import their names when they are asked for.
            look = getattr if isinstance(found, ModuleType) else inspect.getattr_static
            found = look(found, part)
        except AttributeError:
            yield f"no {name} in {module}"
            return
    found = getattr(found, "__func__", found)
    if seam.exactly is not None or seam.accepts is not None:
        yield from _of_signature(seam, found)
    if seam.attributes:
        known = _names(found)
        for attribute in seam.attributes:
            if attribute not in known:
                yield f"no {attribute} in {seam.target}"
    if seam.abstract is not None:
        for method in sorted(getattr(found, "__abstractmethods__", set()) - {*seam.abstract}):
            yield f"{seam.target} asks for a method {method}"
    if seam.reached is not None:
        attribute, known_names = seam.reached
        for method in sorted(_uses(found, attribute) - {*known_names}):
            yield f"{seam.target} uses {attribute}.{method}"
    for word in seam.mentions:
        if word not in inspect.getsource(found):
            yield f"no word {word} in {seam.target}"


def _of_signature(seam: Seam, function: Any) -> Iterator[str]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        yield f"{seam.target} has no signature"
        return
    if seam.exactly is not None and tuple(parameters) != seam.exactly:
        yield f"{seam.target} takes ({', '.join(parameters)}), not ({', '.join(seam.exactly)})"
    if seam.accepts is None:
        return
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in seam.accepts:
        if name not in parameters and not open_ended:
            yield f"{seam.target} takes no {name}"
    for name, parameter in parameters.items():
        needed = parameter.default is _EMPTY and parameter.kind not in _VARIABLE
        if needed and name not in seam.accepts:
            yield f"{seam.target} needs {name}"


def _names(found: Any) -> set[str]:
    """Names that a module or class defines, annotates, or sets on an object in its functions."""
    names = {*dir(found)}
    if not isinstance(found, type):
        return names
    for owner in found.__mro__[:-1]:
        names.update(inspect.get_annotations(owner))
        for member in owner.__dict__.values():
            for wrapped in ("__func__", "fget", "func"):
                member = getattr(member, wrapped, member)
            function = inspect.unwrap(member) if callable(member) else None
            if isinstance(function, FunctionType):
                names.update(_stored(function.__code__))
    return names


def _stored(code: CodeType) -> Iterator[str]:
    """Names of attributes that a function's code assigns."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_ATTR":
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _stored(constant)


def _uses(found: type | ModuleType, attribute: str) -> set[str]:
    """Names that the source of a class or module looks up on `<anything>.attribute`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(found)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == attribute
    }
