"""Hold every figure on the pages against the result that is kept of it.

    python tools/check_figures.py [PAGE ...]

A figure is marked with its result in a comment (tools/figures/marks.py); a digit or a unit that
differs, an id that is not there and a number with a unit and without a mark are faults. Pages of
the log name their results at the top, or say that there are none. Exit code 1 if there is a fault.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Of a program that is run by its path, Python looks in its own folder alone.
sys.path.insert(0, str(ROOT))

from tools.figures.marks import marks  # noqa: E402
from tools.figures.results import LATEST, LOG, NOT_KEPT, NUMBER, FigureError, known  # noqa: E402
from tools.figures.unmarked import lists, stale, unmarked  # noqa: E402

_RESULTS = re.compile(r"^Results: (.+?)\.$", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\| \d{4}-\d\d-\d\d \| \[.*?\]\(([\w-]+)\.md\) \| (.*?) \|", re.MULTILINE)


def pages() -> list[Path]:
    """README and all pages of the docs that no program writes."""
    generated = {"cli.md", "settings.md", "http.md"}
    docs = sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name not in generated)
    return [ROOT / "README.md", *docs]


def faults(path: Path, text: str) -> Iterator[str]:
    """Faults of one page, each with its line."""
    name = path.relative_to(ROOT).as_posix()
    found = list(marks(text))
    for mark in found:
        line = text.count("\n", 0, mark.span[0]) + 1
        yield from (f"{name}:{line}: {fault}" for fault in mark.faults)
    if path.parent == LOG:
        about = index_faults(text) if path.name == "index.md" else log_faults(text)
        yield from (f"{name}: {fault}" for fault in about)
    else:
        allowed = lists().get(name, {})
        yield from (f"{name}: {fault}" for fault in stale(text, allowed))
        for number in unmarked(text, found, allowed):
            yield f"{name}:{number.line}: {number.text} names no result"


def log_faults(text: str) -> Iterator[str]:
    """Faults of an entry of the log: results that are not kept, or no word about results."""
    head = text.partition("\n\n")[2].partition("\n\n")[2].partition("\n\n")[0]
    named = _RESULTS.search(head)
    if not named:
        if NOT_KEPT not in head:
            yield f"names no results, and does not say that its figures were {NOT_KEPT}"
        return
    for result in re.findall(r"`([^`]+)`", named[1]):
        source, mark, pattern = result.partition("#")
        if not mark:
            if not list((LATEST / source).glob("*.json")):
                yield f"{result}: no such folder of results"
        elif not (LATEST / source).is_file():
            yield f"{result}: no such file of results"
        elif "*" in pattern:
            if f'"id": "{pattern.rstrip("*")}' not in (LATEST / source).read_text():
                yield f"{result}: no id begins so"
        else:
            try:
                known(result)
            except FigureError as error:
                yield str(error)


def index_faults(text: str) -> Iterator[str]:
    """Numbers in the index of the log that are not in the entry which they are about."""
    entries = {page.stem for page in LOG.glob("*.md")} - {"index"}
    rows = _ROW.findall(text)
    yield from (f"has no row of {page}" for page in sorted(entries - {page for page, _ in rows}))
    for page, line in rows:
        entry = (LOG / f"{page}.md").read_text() if page in entries else ""
        printed = set(re.findall(NUMBER, entry))
        for number in re.findall(NUMBER, line):
            if not any(rounds_to(full, number) for full in printed):
                yield f"{page}: {number} is not in the entry"


def rounds_to(full: str, short: str) -> bool:
    """`full` is `short`, or rounds to it."""
    decimals = len(short.partition(".")[2])
    try:
        near = abs(float(full.replace(",", "")) - float(short.replace(",", "")))
    except ValueError:
        return full == short
    return full == short or (decimals > 0 and near <= 0.5 * 10**-decimals * (1 + 1e-9))


def main(names: list[str]) -> int:
    chosen = [Path(name).resolve() for name in names] or pages()
    found = [fault for path in chosen for fault in faults(path, path.read_text())]
    print("\n".join(found) or f"{len(chosen)} pages agree with their results")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
