"""Unions of many objects, each tried only with the members that its `type` allows.

Pydantic tries all members of a union for each value, also those whose literal `type` is another
one. An item of `/v1/responses` has sixty; with this, it has one or two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SMALLEST = 8
# Tag of values without a `type`.
_UNTYPED = ""


def narrow_unions(schema: dict[str, Any]) -> None:
    """Replace the large unions of a pydantic core schema, in place.

    A union stays as it is if the `type` of one of its members cannot be read from the schema.
    """
    definitions = {d["ref"]: d for d in schema.get("definitions", ()) if "ref" in d}
    for union in _unions(schema):
        members = _members(union, definitions)
        if members is not None:
            replaced = _tagged(members)
            for key in ("choices", "mode", "auto_collapse", "strict"):
                union.pop(key, None)
            union.update(replaced)


def _unions(schema: dict[str, Any]) -> list[dict[str, Any]]:
    found, pending, seen = [], [schema], set()
    while pending:
        node: Any = pending.pop()
        if isinstance(node, dict):
            if id(node) in seen:
                continue
            seen.add(id(node))
            if node.get("type") == "union" and len(node["choices"]) >= SMALLEST:
                found.append(node)
            pending += node.values()
        elif isinstance(node, (list, tuple)):
            pending += node
    return found


def _members(
    union: Mapping[str, Any], definitions: Mapping[str, Any]
) -> list[tuple[Any, set[str]]] | None:
    """Members with the types that each one accepts; unions inside are flattened."""
    found: list[tuple[Any, set[str]]] = []
    for choice in union["choices"]:
        member = choice[0] if isinstance(choice, tuple) else choice
        if member.get("type") == "union":
            inner = _members(member, definitions)
            if inner is None:
                return None
            found += inner
            continue
        types = _types(member, definitions)
        if types is None:
            return None
        found.append((member, types))
    return found


def _types(member: Any, definitions: Mapping[str, Any]) -> set[str] | None:
    """Values of `type` that an object schema accepts, or None if they are not literals."""
    node = member
    while "fields" not in node:
        if node.get("type") == "definition-ref":
            node = definitions.get(node["schema_ref"], {})
        elif isinstance(node.get("schema"), dict):
            node = node["schema"]
        else:
            return None
    field = node["fields"].get("type") if isinstance(node["fields"], dict) else None
    if field is None:
        return None
    literal, optional = field["schema"], field.get("required") is False
    while literal.get("type") in ("nullable", "default"):
        literal, optional = literal["schema"], True
    if literal.get("type") != "literal":
        return None
    return {str(value) for value in literal["expected"]} | ({_UNTYPED} if optional else set())


def _tagged(members: list[tuple[Any, set[str]]]) -> dict[str, Any]:
    tags = {tag for _, types in members for tag in types}

    def tag_of(value: Any) -> str | None:
        given = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        return _UNTYPED if given is None else given if isinstance(given, str) else None

    choices: dict[str, Any] = {}
    for tag in tags:
        fitting = [member for member, types in members if tag in types]
        choices[tag] = {"type": "union", "choices": fitting} if len(fitting) > 1 else fitting[0]
    return {"type": "tagged-union", "discriminator": tag_of, "choices": choices}
