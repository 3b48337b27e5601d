"""Templates of graders: text with `{{ item.column }}` and `{{ sample.output_text }}`.

The grammar is a path and nothing else, and a path reads JSON and nothing else: no expression, no
call and no attribute of a Python object, so a template runs no code whoever wrote it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bmt_core.errors import GraderError

MAX_TEMPLATE_CHARACTERS, MAX_REFERENCES = 16_384, 64
#: Characters of a rendered text: a column may be as long as a row, and stand in it many times.
MAX_RENDERED_CHARACTERS = 4 << 20
#: The one part of a sample that graders here read.
OUTPUT_TEXT = "sample.output_text"
_PATH = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_-]+|\[[0-9]{1,6}\])*)\s*")
_BRACES = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_STEP = re.compile(r"\.([A-Za-z0-9_-]+)|\[([0-9]+)\]")
_FORM = "{{ item.column }} and {{ sample.output_text }} are read, and nothing else"


@dataclass(frozen=True)
class Template:
    """Pieces of text, and between them paths. field: of the grader, for error messages."""

    field: str
    pieces: tuple[str, ...]
    paths: tuple[str, ...]

    @classmethod
    def parse(cls, text: Any, field: str) -> Template:
        """The template of a text. Raises GraderError."""
        if not isinstance(text, str):
            raise GraderError(f"{field}: expected text, not {type(text).__name__}", field=field)
        if len(text) > MAX_TEMPLATE_CHARACTERS:
            raise GraderError(
                f"{field}: {len(text)} characters, and {MAX_TEMPLATE_CHARACTERS} are allowed",
                field=field,
            )
        pieces, paths, end = [], [], 0
        for found in _BRACES.finditer(text):
            pieces.append(text[end : found.start()])
            paths.append(_checked(found[1], field))
            end = found.end()
        pieces.append(text[end:])
        if any(mark in piece for piece in pieces for mark in ("{{", "{%", "{#")):
            raise GraderError(f"{field}: braces that are no reference; {_FORM}", field=field)
        if len(paths) > MAX_REFERENCES:
            raise GraderError(
                f"{field}: {len(paths)} references, and {MAX_REFERENCES} are allowed", field=field
            )
        return cls(field, tuple(pieces), tuple(paths))

    def render(self, item: Mapping[str, Any], output: str) -> str:
        """The text for a row and an answer. Raises GraderError for what the row has not."""
        texts = [output if path == OUTPUT_TEXT else self._of(item, path) for path in self.paths]
        if sum(map(len, texts)) > MAX_RENDERED_CHARACTERS:
            raise GraderError(
                f"{self.field}: more than {MAX_RENDERED_CHARACTERS} characters once it is filled "
                "in, which is the limit; shorten the row's columns",
                field=self.field,
            )
        filled = [self.pieces[0]]
        for text, piece in zip(texts, self.pieces[1:], strict=True):
            filled += [text, piece]
        return "".join(filled)

    def check(self, item: Mapping[str, Any]) -> None:
        """Raise GraderError for a row that lacks what the template reads."""
        for path in self.paths:
            if path != OUTPUT_TEXT:
                self._of(item, path)

    def _of(self, item: Mapping[str, Any], path: str) -> str:
        value: Any = item
        for name, index in _STEP.findall(path.removeprefix("item")):
            try:
                value = value[int(index or name)] if isinstance(value, list) else value[name]
            except (LookupError, TypeError, ValueError):
                raise GraderError(
                    f"{self.field}: the row has no {path}; its columns besides messages are "
                    f"{', '.join(sorted(map(str, item))[:8]) or '(none)'}",
                    field=self.field,
                ) from None
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _checked(inside: str, field: str) -> str:
    found = _PATH.fullmatch(inside)
    if found is None:
        raise GraderError(f"{field}: {{{{{inside[:60]}}}}}: {_FORM}", field=field)
    path = found[1]
    if path == OUTPUT_TEXT or path.startswith(("item.", "item[")):
        return path
    raise GraderError(f"{field}: {{{{ {path[:60]} }}}} is unknown: {_FORM}", field=field)
