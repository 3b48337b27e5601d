"""Pages of the site, from mkdocs.yml: title, place, Markdown, and a line on each."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from tools.site.docstrings import expanded

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
# A comment with its line, or with the blank before it: marks of figures stand within sentences.
_COMMENT = re.compile(r"^<!--(?:(?!-->).)*-->\n| ?<!--.*?-->", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_ROW = re.compile(r"^\| [\d-]+ \| \[.*?\]\(([\w-]+\.md)\) \| (.*?) \|", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """One page: its Markdown file below docs/, its title, and the section of the navigation."""

    file: str
    title: str
    section: str

    @property
    def twin(self) -> str:
        """Path in the site of its Markdown: index.md in the folder that is the page's address."""
        path = PurePosixPath(self.file)
        return str(path if path.stem == "index" else path.with_suffix("") / "index.md")

    @property
    def text(self) -> str:
        return (DOCS / self.file).read_text()

    def markdown(self) -> str:
        """Its Markdown as it lies in the site: links to twins, docstrings in full."""
        return relinked(expanded(without_comments(self.text)), self.file, self.twin)

    def summary(self) -> str:
        """One line: its row in an index of its folder, else the first sentence of the page."""
        index = DOCS / self.file
        rows = (
            dict(_ROW.findall(index.with_name("index.md").read_text())) if _has_index(index) else {}
        )
        return plain(rows.get(index.name) or first_sentence(self.text))


def _has_index(path: Path) -> bool:
    return path.name != "index.md" and path.with_name("index.md").exists()


def configuration() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    return loaded


def pages() -> list[Page]:
    """All pages in the order of the navigation."""
    return list(_of(configuration()["nav"], ""))


def _of(entries: list[Any], section: str) -> Iterator[Page]:
    for entry in entries:
        [(title, value)] = entry.items() if isinstance(entry, dict) else [(None, entry)]
        if isinstance(value, list):
            yield from _of(value, title or section)
        else:
            yield Page(value, title or _heading(value), section)


def _heading(file: str) -> str:
    match = re.search(r"^# (.+)$", (DOCS / file).read_text(), re.MULTILINE)
    return match[1] if match else file


def without_comments(text: str) -> str:
    """The text without HTML comments; lines and sentences stay as they are."""
    return _COMMENT.sub("", text)


def relinked(text: str, file: str, twin: str) -> str:
    """The text with relative links as they are right from `twin`; code stays as it is."""

    def link(match: re.Match[str]) -> str:
        target = match[2]
        if re.match(r"\w+:|/", target):
            return match[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(file), target))
        if place.endswith(".md"):
            place = Page(place, "", "").twin
        return match[1] + posixpath.relpath(place, posixpath.dirname(twin) or ".") + match[3]

    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [_LINK.sub(link, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _LINK.sub(link, text[end:])])


def first_sentence(text: str) -> str:
    """Of the first paragraph below the title."""
    blocks = without_comments(text).split("\n\n")
    prose = (b.strip() for b in blocks if b.strip() and not re.match(r"\s*(#|\||:::|```|!\[)", b))
    words = " ".join(next(prose, "").split())
    return re.split(r"(?<=[.:])\s", words, maxsplit=1)[0].rstrip(":")


def plain(text: str) -> str:
    """The text without links and emphasis."""
    return re.sub(r"\*\*", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text))
