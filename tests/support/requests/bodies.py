"""Bodies made to be costly or wrong, at every position of a route's own schema.

A position is a place in the body: the field `messages`, the first item of it, that item's
`content`. At each one that takes an array, an object or a string a body is made that is wide, deep,
long or of a wrong type there, and valid around it as far as the schema says how.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: (path, body without model) of small requests that once stopped an API process for up to a minute.
STOPPED_A_SERVER: list[tuple[str, dict[str, Any]]] = [
    ("/v1/responses", {"input": [{}] * 1000}),
    ("/v1/responses", {"input": [{}] * 3000}),
    ("/v1/responses", {"input": [{}] * 10_000}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{}] * (1 << 20)}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{}] * (11 << 20)}]}),
    ("/tokenize", {"prompt": "a" * (8 << 20)}),
]

Path = tuple[str | int, ...]
MAX_POSITION_DEPTH = 6


@dataclass(frozen=True)
class HostileBody:
    """One body and where it is wrong."""

    name: str
    data: bytes


class BodySchema:
    """JSON schema of one route's body."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._root = schema
        self._definitions = schema.get("$defs", {})

    def positions(self) -> dict[Path, set[str]]:
        """Path -> types that the schema allows there, to MAX_POSITION_DEPTH."""
        found: dict[Path, set[str]] = {}
        self._walk(self._root, (), found, ())
        return found

    def valid(self, node: dict[str, Any] | None = None, depth: int = 0) -> Any:
        """A small value that the schema accepts, as far as it can be read from it."""
        node = next(iter(self._branches(self._root if node is None else node)))
        if "const" in node:
            return node["const"]
        if "enum" in node:
            return node["enum"][0]
        kind = node.get("type")
        if kind == "object":
            needed = node.get("required", ()) if depth < 8 else ()
            return {
                name: self.valid(node["properties"][name], depth + 1)
                for name in needed
                if name in node.get("properties", {})
            }
        scalars = {"array": [], "string": "x", "integer": 1, "number": 1, "boolean": False}
        return scalars.get(str(kind))

    def item(self, path: Path) -> list[Any]:
        """Valid items of the array at a path, one for each branch of its schema."""
        node: dict[str, Any] | None = self._root
        for step in path:
            node = self._child(node, step) if node is not None else None
        if node is None:
            return []
        arrays = [b for b in self._branches(node) if b.get("type") == "array"]
        branches = [i for a in arrays for i in self._branches(a.get("items") or {})]
        return [self.valid(branch) for branch in branches]

    def put(self, path: Path, value: Any) -> Any:
        """The smallest valid body with `value` at `path`."""
        return self._put(self._root, path, value, self.valid())

    def _put(self, node: dict[str, Any] | None, path: Path, value: Any, around: Any) -> Any:
        if not path:
            return value
        step, child = path[0], self._child(node, path[0]) if node is not None else None
        inner = self._put(child, path[1:], value, self._around(child, path[1:]))
        if isinstance(step, int):
            return [inner]
        return {**around, step: inner} if isinstance(around, dict) else {step: inner}

    def _around(self, node: dict[str, Any] | None, path: Path) -> Any:
        """A valid object of the branch that has the next field of the path."""
        if node is None or not path:
            return None
        for branch in self._branches(node):
            if path[0] in branch.get("properties", {}):
                return self.valid(branch)
        return None

    def _child(self, node: dict[str, Any], step: str | int) -> dict[str, Any] | None:
        for branch in self._branches(node):
            if isinstance(step, int) and branch.get("type") == "array":
                items: dict[str, Any] = branch.get("items") or {}
                return items
            if isinstance(step, str) and step in branch.get("properties", {}):
                field: dict[str, Any] = branch["properties"][step]
                return field
        return None

    def _branches(self, node: dict[str, Any], seen: tuple[str, ...] = ()) -> Iterator[Any]:
        """Members of a union, with references resolved; others than null first."""
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            if name not in seen:
                yield from self._branches(self._definitions[name], (*seen, name))
            return
        members = node.get("anyOf") or node.get("oneOf") or node.get("allOf")
        if members:
            for member in members:
                yield from self._branches(member, seen)
        else:
            yield node

    def _walk(
        self, node: dict[str, Any], path: Path, found: dict[Path, set[str]], refs: tuple[int, ...]
    ) -> None:
        for branch in self._branches(node):
            if path and branch.get("type"):
                found.setdefault(path, set()).add(branch["type"])
            if len(path) >= MAX_POSITION_DEPTH or id(branch) in refs:
                continue
            inside = (*refs, id(branch))
            for name, field in branch.get("properties", {}).items():
                self._walk(field, (*path, name), found, inside)
            if branch.get("type") == "array":
                self._walk(branch.get("items") or {}, (*path, 0), found, inside)


def hostile_bodies(
    schema: BodySchema, path: Path, kinds: set[str], size: int, model: str
) -> Iterator[HostileBody]:
    """Bodies of about `size` bytes that are wrong at one position."""
    where = ".".join(map(str, path))
    for name, value in _values(schema, path, kinds, size):
        body = schema.put(path, value)
        if isinstance(body, dict) and path[0] != "model":
            body = {**body, "model": model}
        if isinstance(body, dict) and "max_tokens" not in path and "max_output_tokens" not in path:
            body = {**body, "max_tokens": 1, "max_output_tokens": 1}
        yield HostileBody(f"{where}: {name}, {size} bytes", json.dumps(body).encode())


def _values(
    schema: BodySchema, path: Path, kinds: set[str], size: int
) -> Iterator[tuple[str, Any]]:
    if kinds & {"array", "object"}:
        for name, item in (("{}", {}), ("[]", []), ("number", 5), ("string", ""), ("null", None)):
            yield f"wide, of {name}", [item] * (size // (len(json.dumps(item)) + 2))
        yield "wide, of names", {f"k{i}": {} for i in range(size // 12)}
        deep: Any = 5
        for _ in range(min(size // 2, 900)):
            deep = [deep]
        yield "deep", deep
        for number, item in enumerate(schema.item(path)):
            yield f"wide, of valid item {number}", [item] * (size // (len(json.dumps(item)) + 2))
    if "string" in kinds:
        yield "long", "a" * size
        yield "long, escaped", '\\"\n\u00e9' * (size // 12)
    if size <= 1024:
        for name, value in (
            ("a number", 5),
            ("a float", 0.5),
            ("a huge number", 10**300),
            ("true", True),
            ("null", None),
            ("a string", "x"),
            ("a lone surrogate", "\udc00"),
            ("nul", "\x00"),
            ("an empty array", []),
            ("an empty object", {}),
            ("an array of arrays", [[5]]),
        ):
            yield f"wrong type, {name}", value
