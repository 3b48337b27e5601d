"""Valid requests with one place changed: a field, a part of the path, or a byte of an upload.

Values of fields are schemathesis's, generated from the app's own OpenAPI: those that the schema
allows, and those that it does not.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest
from urllib.parse import quote

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException

USER = {"role": "user", "content": "x"}
TOOL = {"name": "pick", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
FUNCTION = {"type": "function", "function": TOOL}
#: Path -> small valid bodies without a model.
VALID: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": [USER], "max_tokens": 2, **more}
        for more in (
            {},
            {"stream": True},
            {"logprobs": True, "top_logprobs": 2, "temperature": 0},
            {"tools": [FUNCTION], "tool_choice": "required"},
            {"response_format": {"type": "json_object"}, "n": 2},
        )
    ],
    "/v1/completions": [
        {"prompt": "x", "max_tokens": 2, **more}
        for more in ({}, {"stream": True}, {"n": 2, "logprobs": 1}, {"prompt": ["a", "b"]})
    ],
    "/v1/responses": [
        {"input": "x", "max_output_tokens": 2, **more}
        for more in ({}, {"stream": True}, {"tools": [{"type": "function", **TOOL}]})
    ],
    "/v1/messages": [
        {"messages": [USER], "max_tokens": 2, **more} for more in ({}, {"stream": True})
    ],
    "/v1/messages/count_tokens": [{"messages": [USER]}],
    "/tokenize": [{"prompt": "x"}, {"messages": [USER]}],
    "/detokenize": [{"tokens": [7, 9]}],
}
_M = ["v1", "masks", "m"]
_TARGET = b'{"rev": 1}'
_SPLIT = b'{"rev": 1, "canary": {"rev": 2, "percent": 5}, "shadow": {"rev": 2, "percent": 9.5}}'
_OPEN = ("livez", "readyz", "health", "ping", "version", "metrics")


def plain_routes(mask: bytes) -> list[tuple[str, list[str], bytes | None]]:
    """Routes without a JSON schema: method, parts of the path, and body."""
    return [
        *(("GET", [name], None) for name in _OPEN),
        *(("GET", ["v1", *parts], None) for parts in (["models"], ["models", "smol"], ["masks"])),
        *(("GET", [*_M, *parts], None) for parts in ([], ["versions"])),
        ("PUT", _M, mask),
        ("PUT", [*_M, "aliases", "prod"], _TARGET),
        ("PUT", [*_M, "aliases", "prod"], _SPLIT),
        ("GET", [*_M, "aliases", "prod"], None),
        *(("POST", [*_M, "aliases", "prod", what], b"{}") for what in ("promote", "rollback")),
        ("DELETE", [*_M, "aliases", "prod"], None),
        *((method, [*_M, "pin"], None) for method in ("PUT", "DELETE")),
        ("DELETE", ["v1", "masks", "gone"], None),
    ]


@dataclass(frozen=True)
class Request:
    """One request. route: its path before the change."""

    method: str
    route: str
    path: str
    data: bytes | None = None
    place: str = ""

    @property
    def content_type(self) -> str:
        uploads = self.method == "PUT" and "aliases" not in self.route
        return "application/octet-stream" if uploads else "application/json"


def field_operations(openapi: dict[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """Path -> fields of its body, each with an operation whose body is that field alone."""
    import schemathesis

    components = openapi["components"]["schemas"]
    paths: dict[str, Any] = {}
    owners: list[tuple[str, str]] = []
    for path in VALID:
        body = openapi["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for name, schema in _properties(body["schema"], components).items():
            alone = {"type": "object", "properties": {name: schema}, "required": [name]}
            content = {"application/json": {"schema": {**alone, "additionalProperties": False}}}
            paths[f"/{len(owners)}"] = {
                "post": {"requestBody": {"content": content, "required": True}, "responses": {}}
            }
            owners.append((path, name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = schemathesis.openapi.from_dict({**openapi, "paths": paths})
        operations = {one.path: one for o in made.get_all_operations() for one in [o.ok()]}
    found: dict[str, list[tuple[str, Any]]] = {path: [] for path in VALID}
    for number, (path, name) in enumerate(owners):
        found[path].append((name, operations[f"/{number}"]))
    return found


def mutated_bodies(path: str, name: str, operation: Any, count: int) -> Iterator[Request]:
    """Each valid body of a route with each of some values of one field.

    Two of three values are as the field's schema allows.
    """
    import schemathesis

    modes = schemathesis.GenerationMode
    values = -(-count // len(VALID[path]))
    for mode, examples in ((modes.POSITIVE, values - values // 3), (modes.NEGATIVE, values // 3)):
        drawn = operation.as_strategy(generation_mode=mode)
        # Raised now and then while a value is drawn, of schemas that it models at other times.
        for value in _drawn(drawn, examples, schemathesis.errors.UnsupportedSchema):
            if not isinstance(value.body, dict) or name not in value.body:
                continue
            for body in VALID[path]:
                body = {"model": "smol", **body, name: value.body[name]}
                with contextlib.suppress(ValueError, TypeError):
                    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
                    yield Request("POST", path, path, data, name)


def mutated_requests(mask: bytes, count: int) -> list[Request]:
    """Requests of the other routes, two of three with one part or byte changed."""
    routes = plain_routes(mask)

    @st.composite
    def requests(draw: Callable[[Any], Any]) -> Request:
        method, parts, data = draw(st.sampled_from(routes))
        route = "/" + "/".join(parts)
        what = draw(st.sampled_from(["nothing", "part", "part" if data is None else "byte"]))
        if what == "part":
            at = draw(st.integers(0, len(parts) - 1))
            parts = [*parts[:at], draw(st.text(max_size=40)), *parts[at + 1 :]]
        elif what == "byte" and data is not None:
            at = draw(st.integers(0, len(data) - 1))
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        path = "/" + "/".join(quote(p, safe="", errors="replace") for p in parts)
        return Request(method, route, path, data, what)

    return _drawn(requests(), count)


def valid_requests(mask: bytes) -> Iterator[Request]:
    """All valid requests as they are, uploads first."""
    for method, parts, data in sorted(plain_routes(mask), key=lambda r: r[0] != "PUT"):
        if method != "DELETE":
            path = "/" + "/".join(parts)
            yield Request(method, path, path, data)
    for path, bodies in VALID.items():
        for body in bodies:
            yield Request("POST", path, path, json.dumps({"model": "smol", **body}).encode())


def _drawn(strategy: Any, count: int, *gives_up: type[Exception]) -> list[Any]:
    """So many values; fewer where there are no others, or where the strategy gives up."""
    found: list[Any] = []
    if count < 1:
        return found

    @seed(20)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    with contextlib.suppress(SkipTest, HypothesisException, *gives_up):
        collect()
    return found[:count]


def _properties(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """Fields of a body's schema, those of all members of a union together."""
    if "$ref" in schema:
        return _properties(components[schema["$ref"].rpartition("/")[2]], components)
    found = dict(schema.get("properties", {}))
    for member in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        found = {**_properties(member, components), **found}
    return found
