"""Shapes of request bodies: those of the app's own routes, where the first error ends the check.

vLLM's models have unions of up to fifty members in lists. Its validation reports every error of
every member for every item: 29 KB of wrong items are two million errors and most of a minute. The
same schemas with pydantic's `fail_fast` set on each list stop at the first wrong item, and their
large unions try the members alone that an item's `type` allows (`narrowing.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import SchemaValidator

from bmt_server.api.body.narrowing import narrow_unions
from bmt_server.errors import BadRequest

MAX_UNKNOWN_FIELDS = 32
MAX_FIELD_CHARACTERS = 256
MAX_MESSAGE_CHARACTERS = 500
_FIELD = re.compile(r"(?!(?:str|int|float|bool|list|dict|none|nullable)$)[a-z][a-z0-9_]*")
_LISTS = ("list", "set", "frozenset", "tuple")


@dataclass(frozen=True, slots=True)
class RequestSchema:
    """Shape of one route's body. fields: the names at its top."""

    validator: SchemaValidator
    fields: frozenset[str]

    @classmethod
    def of(cls, annotation: Any) -> RequestSchema:
        """Schema of a pydantic model, or of a union of several."""
        members = [annotation, *get_args(annotation)]
        models = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
        names = {
            name
            for model in models
            for field, info in model.model_fields.items()
            for name in (field, info.alias)
            if name
        }
        schema = _fail_fast(TypeAdapter(annotation).core_schema, {})
        narrow_unions(schema)
        return cls(SchemaValidator(schema), frozenset(names))

    def check(self, body: Mapping[str, Any]) -> None:
        """Raise BadRequest, which names the field, if the app's validation would fail.

        Some checks of vLLM's models raise what the app answers by 500, such as AttributeError for
        an array in place of an object. They depend on the body alone, so they are its fault too.
        """
        unknown = [name for name in body if name not in self.fields]
        if len(unknown) > MAX_UNKNOWN_FIELDS:
            raise BadRequest(
                f"the body has {len(unknown)} fields that this route does not know; allowed: at "
                f"most {MAX_UNKNOWN_FIELDS}",
                code="body_too_complex",
            )
        if any(len(name) > MAX_FIELD_CHARACTERS for name in unknown):
            raise BadRequest(
                f"the name of a field has more than {MAX_FIELD_CHARACTERS} characters",
                code="body_too_complex",
            )
        try:
            self.validator.validate_python(body)
        except ValidationError as error:
            raise self._bad_field(error) from None
        except Exception as error:
            param = getattr(error, "parameter", None)
            # Texts of errors that are no ValueError are about Python objects.
            text = str(error) if isinstance(error, ValueError) else "a field has a wrong type"
            raise BadRequest(
                (text or "a field has a wrong value")[:MAX_MESSAGE_CHARACTERS],
                code="field_invalid",
                param=param if isinstance(param, str) else None,
            ) from None

    def _bad_field(self, error: ValidationError) -> BadRequest:
        """The error of the first field: where it is, and what was expected there."""
        # Without a message for each error: there may be one for each member of a union.
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = list(first["loc"])
        # Names of models and of types of vLLM's unions come before and between fields.
        while place and place[0] not in self.fields:
            del place[0]
        param = str(place[0]) if place else None
        places = [str(part) for part in place if isinstance(part, int) or _FIELD.fullmatch(part)]
        where = f"`{'.'.join(places)[:200]}`: " if places else ""
        return BadRequest(
            f"{where}{first['msg'][:MAX_MESSAGE_CHARACTERS]}", code="field_invalid", param=param
        )


class RequestSchemas:
    """Schemas of an app's routes, by path."""

    def __init__(self, schemas: Mapping[str, RequestSchema]) -> None:
        self._schemas = schemas

    @classmethod
    def of_routes(cls, routes: Iterable[Any]) -> RequestSchemas:
        """Schemas of all FastAPI routes that have a body of their own type.

        The routes' own validation uses them from then on, for it costs the same time as the gate's:
        FastAPI 0.136 keeps a TypeAdapter with each body (`_compat/v2.py`, `ModelField`).
        """
        found: dict[str, RequestSchema] = {}
        for route in routes:
            field = getattr(route, "body_field", None)
            annotation = getattr(getattr(field, "field_info", None), "annotation", None)
            if annotation is not None and "POST" in route.methods:
                schema = found.setdefault(route.path, RequestSchema.of(annotation))
                adapter = getattr(field, "_type_adapter", None)
                if adapter is not None:
                    adapter.validator = schema.validator
        return cls(found)

    def get(self, path: str) -> RequestSchema | None:
        """The schema of a route, or None if the app reads its body without one."""
        return self._schemas.get(path)


def _fail_fast(node: Any, copies: dict[int, Any]) -> Any:
    """A copy of a core schema whose lists stop at the first error. copies: made so far, by id."""
    if isinstance(node, dict):
        if id(node) not in copies:
            copy = copies[id(node)] = {}
            copy.update((key, _fail_fast(value, copies)) for key, value in node.items())
            if copy.get("type") in _LISTS and ("items_schema" in copy or copy["type"] == "list"):
                copy["fail_fast"] = True
        return copies[id(node)]
    if isinstance(node, list):
        return [_fail_fast(item, copies) for item in node]
    if type(node) is tuple:
        return tuple(_fail_fast(item, copies) for item in node)
    return node
