"""Signatures and docstrings in Markdown, for the lines by which mkdocstrings fills a page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[2]
_SOURCES = [str(ROOT / folder) for folder in ("core", "client", "trainer", "server")]
_DIRECTIVE = re.compile(r"^::: ([\w.]+)\n(?: {4}.*\n?)*", re.MULTILINE)

_DECLARED = re.compile(r"(option|redefined)\(.*\)", re.DOTALL)
#: Parameters of a class that stand in its heading; more are a list.
_IN_LINE = 5


def expanded(text: str) -> str:
    """The page with each `::: name` replaced by the name's signature and docstring."""
    return _DIRECTIVE.sub(lambda match: "\n\n".join(_described(_find(match[1]))) + "\n", text)


def _find(name: str) -> griffe.Object | griffe.Alias:
    package, _, rest = name.partition(".")
    loaded = _loaded(package)
    found = loaded[rest] if rest else loaded
    assert isinstance(found, griffe.Object | griffe.Alias)
    return found


@cache
def _loaded(package: str) -> griffe.Object | griffe.Alias:
    return griffe.load(package, search_paths=_SOURCES)


def _described(thing: griffe.Object | griffe.Alias, level: int = 2) -> Iterator[str]:
    """Heading, signature and docstring of a function, a class or a module with its members."""
    given = [p for p in _parameters(thing) if p.name != "self"]
    listed = thing.is_class and len(given) > _IN_LINE
    if not thing.is_module:
        called = thing.is_function or (thing.is_class and not listed)
        signature = f"({', '.join(map(_parameter, given))})" if called else ""
        kind = "class " if thing.is_class else ""
        yield f"{'#' * level} `{kind}{thing.path}{signature}`"
    if thing.docstring:
        yield thing.docstring.value.strip()
    if listed:
        yield "\n".join(map(_item, given))
    if thing.is_function or thing.is_attribute:
        return
    for name in _public(thing):
        member = thing.all_members.get(name) if thing.is_class else thing.members.get(name)
        try:
            if member is not None and (member.docstring or member.is_class or member.is_function):
                yield from _described(member, level + 1)
        except (griffe.AliasResolutionError, griffe.CyclicAliasError):
            continue


def _public(thing: griffe.Object | griffe.Alias) -> list[str]:
    exports = [str(e) if isinstance(e, str) else e.name for e in thing.exports or []]
    own = [n for n, m in thing.members.items() if not n.startswith("_") and not m.is_alias]
    return exports or own


def _parameters(thing: griffe.Object | griffe.Alias) -> list[griffe.Parameter]:
    return list(getattr(thing, "parameters", []))


def _parameter(parameter: griffe.Parameter) -> str:
    default = f" = {parameter.default}" if parameter.default is not None else ""
    return f"{parameter.name}: {parameter.annotation}{default}"


def _item(parameter: griffe.Parameter) -> str:
    """A field of a class as an item of a list; of a declared setting, its default and its help."""
    declared = _DECLARED.fullmatch(str(parameter.default or ""))
    if not declared:
        return f"- `{_parameter(parameter)}`"
    parts = list(ast.parse(declared[0], mode="eval").body.args)  # type: ignore[attr-defined]
    if declared[1] == "option":
        words, *rest = parts
        default = rest[0] if rest else None
    else:
        default, *rest = parts[2:]
        words = rest[0] if rest else None
    text = str(words.value) if isinstance(words, ast.Constant) else ""
    shown = f" = {ast.unparse(default)}" if default is not None else ""
    return f"- `{parameter.name}: {parameter.annotation}{shown}`" + (f": {text}" if text else "")
