"""Signatures and docstrings in Markdown, for the lines by which mkdocstrings fills a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[2]
_SOURCES = [str(ROOT / folder) for folder in ("core", "client", "trainer", "server")]
_DIRECTIVE = re.compile(r"^::: ([\w.]+)\n(?: {4}.*\n?)*", re.MULTILINE)


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
    if not thing.is_module:
        signature = (
            f"({', '.join(_parameter(p) for p in thing.parameters if p.name != 'self')})"
            if _called(thing)
            else ""
        )
        kind = "class " if thing.is_class else ""
        yield f"{'#' * level} `{kind}{thing.path}{signature}`"
    if thing.docstring:
        yield thing.docstring.value.strip()
    if thing.is_function or thing.is_attribute:
        return
    for name in _public(thing):
        member = thing.all_members.get(name) if thing.is_class else thing.members.get(name)
        if member is None:
            continue
        try:
            if member.is_alias and not isinstance(member, griffe.Alias):
                continue
            if member.docstring or member.is_class or member.is_function:
                yield from _described(member, level + 1)
        except (griffe.AliasResolutionError, griffe.CyclicAliasError):
            continue


def _public(thing: griffe.Object | griffe.Alias) -> list[str]:
    exports = [str(e) if isinstance(e, str) else e.name for e in thing.exports or []]
    own = [n for n, m in thing.members.items() if not n.startswith("_") and not m.is_alias]
    return exports or own


def _called(thing: griffe.Object | griffe.Alias) -> bool:
    return bool(thing.is_function or thing.is_class)


def _parameter(parameter: griffe.Parameter) -> str:
    default = f" = {parameter.default}" if parameter.default is not None else ""
    return f"{parameter.name}: {parameter.annotation}{default}"
