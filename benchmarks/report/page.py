"""The Markdown page of results: figures against what they are to reach, tables, plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import gpu, plots
from benchmarks.report.results import REACH, read_raw, verdict

PARTS = ("serve", "swap", "cold", "format")


def write(target: Path) -> Path:
    """Make `README.md` and its plots in `target` from the raw files there; returns the page."""
    parts = {name: raw for name in PARTS if (raw := read_raw(target / "raw" / f"{name}.json"))}
    lines = ["# Results", "", *_summary(parts)]
    for name, raw in parts.items():
        lines += [f"## bench-{name}", ""]
        shown = ""
        for section, found in raw["sections"].items():
            # Once, unless a section was measured later, on other versions say.
            where = _environment(found["environment"])
            if where != shown:
                shown = where
                lines += [where, ""]
            lines += _section(name, section, found, target)
    lines += gpu.section(target)
    path = target / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines).rstrip() + "\n")
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [*lines, ""]


def figure(value: float) -> str:
    """Four significant digits, no exponent."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def _summary(parts: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The figures that have something to reach."""
    entries = {
        e["id"]: e
        for raw in parts.values()
        for found in raw["sections"].values()
        for e in found["entries"]
    }
    rows = [_row(entries[i]) for i in REACH if i in entries]
    yield from table(("figure", "value", "95 %", "reach", "reached", "baseline"), rows)
    missing = [f"`{i}`" for i in REACH if i not in entries]
    if missing:
        yield from (f"Not measured here: {', '.join(missing)}.", "")


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    interval, baseline = entry["interval"], entry["baseline"]
    return (
        f"`{entry['id']}`",
        f"{figure(entry['value'])} {entry['unit']}",
        f"{figure(interval[0])} to {figure(interval[1])}" if interval else "",
        str(REACH.get(entry["id"], "")),
        verdict(entry["id"], entry["value"]),
        f"{baseline['what']}: {figure(baseline['value'])} {baseline['unit']}",
    )


def _environment(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
    settings = ", ".join(f"`{k}={v}`" for k, v in environment["settings"].items())
    return (
        f"{environment['cores']} cores of {environment['cpu']} "
        f"({', '.join(environment['instructions'])}), {environment['memory_gib']} GiB, GPU: "
        f"{environment['gpu']}; {environment['system']}, Python {environment['python']}, "
        f"{versions}; commit {environment['commit']}; set for all processes: "
        f"{settings or 'nothing'}."
    )


def _section(part: str, name: str, found: dict[str, Any], target: Path) -> Iterator[str]:
    if found.get("error"):
        yield from (f"### {name}: failed", "", f"```\n{found['error']}\n```", "")
        return
    if found["entries"]:
        command = found["entries"][0]["command"]
        load, minutes = found["environment"]["load_average"], found["seconds"] / 60
        text = f"`{command}`: {minutes:.1f} minutes; load average at its start {load:.1f}."
        yield from (text, "")
    for t in found["tables"]:
        yield from (f"### {t['title']}", "", *table(t["header"], t["rows"]))
        if t["note"]:
            yield from (t["note"], "")
    ratios = [e for e in found["entries"] if e["interval"] and e["unit"] == "ratio of tokens/s"]
    if ratios:
        file = f"{part}-{name}.png"
        title = found["tables"][0]["title"] if found["tables"] else name
        plots.intervals(ratios, title, target / file)
        yield from (f"![{title}, ratios and intervals]({file})", "")
    for plot in found["plots"]:
        yield from (f"![{plot['title']}]({plots.lines(plot, target)})", "")
