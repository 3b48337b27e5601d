"""HTML report of comparisons: tables, plots and settings on one page without external links."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bmt_trainer.comparison import plots, tables
from bmt_trainer.comparison.plot_style import png
from bmt_trainer.comparison.results import groups
from bmt_trainer.comparison.results.files import closed_named
from bmt_trainer.comparison.tables import Result
from bmt_trainer.errors import DataError
from bmt_trainer.masking.attach import CLOSED_GATES

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 0.92rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3rem 0.7rem; text-align: right; }
td { white-space: nowrap; } th { vertical-align: bottom; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
img { max-width: 100%; height: auto; } p.note { color: #555; font-size: 0.92rem; }
code { overflow-wrap: anywhere; }
@media (max-width: 48rem) {
  body { margin: 1rem auto; }
  table, tbody, tr, td { display: block; } tr:first-child { display: none; }
  tr { border-top: 2px solid #bbb; padding: 0.4rem 0; }
  td, td:first-child, td:nth-child(2) { display: flex; justify-content: space-between; gap: 1rem;
    border: 0; padding: 0.1rem 0; text-align: right; white-space: normal; overflow-wrap: anywhere; }
  td::before { content: attr(data-label); color: #555; text-align: left; flex: 0 0 auto;
    max-width: 50%; overflow-wrap: normal; }
}
"""
_MEASURES = ("effective_rank", "spectrum_drift", "overlap", "changed")


def write(
    paths: Sequence[Path],
    output: Path,
    title: str,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write `index.html` and the plots as PNG into `output`, and return the page's path.

    paths: of results, as in `tables.read`, and of single runs, as a mask or `.history.json` file;
    say: shows a line on each file of a folder that is left out. Raises DataError.
    """
    results, histories = _read(paths, say)
    rows = tables.rows(results)
    results = tables.labeled(rows)
    output.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, heading, draw in plots.PLOTS:
        figure = draw(results, rows) if results else None
        if figure is not None:
            pictures.append((name, heading, png(figure)))
    if (figure := plots.training(histories)) is not None:
        pictures.append(("training", "Training", png(figure)))
    for name, _, data in pictures:
        (output / f"{name}.png").write_bytes(data)
    page = output / "index.html"
    page.write_text("\n".join(_page(title, results, rows, pictures)), encoding="utf-8")
    return page


def _read(
    paths: Sequence[Path], say: Callable[[str], None]
) -> tuple[list[Result], dict[str, Result]]:
    """Results of comparisons, and histories of single runs by the name of their mask."""
    histories: dict[str, Result] = {}
    rest = []
    for given in paths:
        path = given.with_name(f"{given.name}.history.json") if given.suffix == ".bmt" else given
        if path.name.endswith(".history.json"):
            try:
                value = json.loads(path.read_text())
                history = {
                    "steps": [closed_named(step) for step in value["steps"]],
                    "validation": [dict(look) for look in value["validation"]],
                    "reading": value.get("reading", "exact"),
                }
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path} is not the history of a run ({error})") from None
            name = path.name.removesuffix(".bmt.history.json")
            # Runs in folders of their own may have masks of one name.
            while name in histories:
                name = f"{path.absolute().parent.name}/{name}"
            histories[name] = history
        else:
            rest.append(given)
    return (tables.read(rest, say) if rest else []), histories


def _page(
    title: str,
    results: Sequence[Result],
    rows: Sequence[tables.Row],
    pictures: Sequence[tuple[str, str, bytes]],
) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width">'
    yield f"<title>{_e(title)}</title><style>{_STYLE}</style></head>\n<body>"
    yield f"<h1>{_e(title)}</h1>"
    if rows:
        yield "<h2>Methods</h2>"
        yield from _table(tables.HEADER, [row.cells() for row in rows])
        yield (
            '<p class="note">Accuracy is of greedy answers after the last step, unweighted over '
            "data sets. Of one run, its 95 % interval is of the held-out sample alone, and p is "
            "McNemar's exact test against the base on the same examples, all data sets together. "
            "Of several seeds, both are over the runs: Student's interval, and the t-test of each "
            "seed's difference from the base. Size follows the paper's appendix B; size on disk "
            "is that of the .bmt file.</p>"
        )
        yield from _differences(rows)
        yield from _by_dataset(rows)
    for name, heading, data in pictures:
        text = base64.b64encode(data).decode()
        yield f'<h2>{_e(heading)}</h2>\n<img alt="{_e(name)}" src="data:image/png;base64,{text}">'
    yield from _geometry(results)
    yield from _wanda(results)
    yield from _suites(results)
    yield from _tracks(results)
    yield from _settings(results)
    yield "</body>\n</html>"


def _differences(rows: Sequence[tables.Row]) -> Iterator[str]:
    lines = tables.differences(rows)
    if lines:
        yield "<h2>Masks minus other methods, by seed</h2>"
        yield from _table(tables.DIFFERENCES, lines)
        yield (
            '<p class="note">Mean of the differences of the seeds, with Student\'s 95 % interval '
            "over them; p is the paired t-test's.</p>"
        )


def _by_dataset(rows: Sequence[tables.Row]) -> Iterator[str]:
    names = tables.labels([result for row in rows for result in row.results])
    if len(names) < 2:
        return
    yield "<h2>By data set, accuracy in %</h2>"
    lines = []
    for row in rows:
        cells = []
        for key in names:
            shares = [
                result["right"].count("1") / len(result["right"])
                for result in row.results
                if result.get("score") and groups.data(result) == key
            ]
            cells.append(f"{100 * sum(shares) / len(shares):.1f}" if shares else "-")
        lines.append((row.model, row.label, *cells))
    yield from _table(("model", "method", *names.values()), lines)


def _geometry(results: Sequence[Result]) -> Iterator[str]:
    measured = [r for r in results if r.get("geometry")]
    if not measured:
        return
    yield "<h2>Geometry in numbers</h2>"
    lines = []
    for result in measured:
        for part in ("gate", "all"):
            means = result["geometry"][part]
            values = ("-" if means[k] is None else f"{means[k]:.4g}" for k in _MEASURES)
            counts = f"{means['updated']} of {means['modules']}"
            run = f"{tables.named(result)}, {tables.short(result['dataset'])}"
            lines.append((run, part, *values, counts))
    header = ("method", "modules", "effective rank", "spectrum drift", "overlap", "changed")
    yield from _table((*header, "updated"), lines)
    yield (
        '<p class="note">Means over matrices. Those without an update have neither rank nor '
        "overlap and do not count there; in drift they count as 0. The paper, on Llama-3-8B and "
        "Qwen2.5-7B after GRPO: effective rank 66 to 93 for masks, 14 to 25 full, 400 to 650 MTH, "
        "1 to 2 LoRA; overlap 0.43 to 0.46 masks, 0.41 to 0.46 full, 0.48 to 0.50 LoRA, 0.5 "
        "MTH.</p>"
    )


def _wanda(results: Sequence[Result]) -> Iterator[str]:
    swept = [r for r in results if r.get("levels")]
    if not swept:
        return
    yield "<h2>Wanda alone, by share deleted</h2>"
    names = [f"1/{round(1 / level['eta'])}" for level in swept[0]["levels"]]
    lines = []
    for result in swept:
        reading = "lenient" if result.get("reading") == "lenient" else "exact"
        scores = [level.get("score") for level in result["levels"]]
        shares = [f"{100 * s[reading] / s['total']:.1f}" if s else "-" for s in scores]
        lines.append((result["model"], tables.short(result["dataset"]), *shares))
    yield from _table(("model", "data set", *names), lines)


def _suites(results: Sequence[Result]) -> Iterator[str]:
    scored = [r for r in results if r.get("suites")]
    if not scored:
        return
    yield "<h2>Evaluation sets, accuracy in %</h2>"
    names = list(dict.fromkeys(s["suite"] for result in scored for s in result["suites"]))
    lines = []
    for result in scored:
        scores = {s["suite"]: s["scores"]["tuned"] for s in result["suites"] if "scores" in s}
        shares = {name: 100 * scores[name]["accuracy"] for name in names if name in scores}
        # A mean of some of the sets would be taken for that of all.
        whole = shares.keys() == set(names)
        mean = f"{sum(shares.values()) / len(shares):.2f}" if whole and shares else "-"
        named = {s["suite"] for s in result["suites"]}
        cells = (
            f"{shares[name]:.1f}" if name in shares else "skipped" if name in named else "-"
            for name in names
        )
        lines.append((result["model"], tables.named(result), mean, *cells))
    yield from _table(("model", "method", "mean", *names), lines)


def _tracks(results: Sequence[Result]) -> Iterator[str]:
    tracked = [r for r in results if r.get("track")]
    if not tracked:
        return
    yield "<h2>First and last measurement</h2>"
    lines = []
    for result in tracked:
        first, last = result["track"][0], result["track"][-1]
        kept = [
            f"{100 * row['retention_lenient']:.1f}" if "retention_lenient" in row else "-"
            for row in (first, last)
        ]
        closed = [f"{100 * row[CLOSED_GATES] / result['parameters']:.4f}" for row in (first, last)]
        lines.append(
            (
                *(
                    tables.named(result),
                    f"{result['trainer']}, {tables.short(result['dataset'])}",
                    str(last["step"]),
                ),
                *(f"{last['kl_token']:.4g}", f"{last['kl_sequence']:.4g}", *kept, *closed),
            )
        )
    header = ("method", "run", "steps", "KL per token", "KL per answer", "kept before, %")
    yield from _table((*header, "after, %", "closed gates before, %", "after, %"), lines)
    yield from _best(tracked)


def _best(tracked: Sequence[Result]) -> Iterator[str]:
    """Held-out scores of the last step, and of the best measurement as the paper reports it."""
    lines = [
        (
            tables.named(result),
            f"{result['trainer']}, {tables.short(result['dataset'])}",
            f"{100 * result['track'][-1]['heldout']:.1f}",
            *(f"{100 * result['best']['heldout']:.1f}", str(result["best"]["step"])),
        )
        for result in tracked
        if result.get("best") and "heldout" in result["track"][-1]
    ]
    if lines:
        yield "<h2>Best and last held-out score</h2>"
        yield "<p>The best is chosen by the score that it reports, and is too good.</p>"
        yield from _table(("method", "run", "last, %", "best, %", "at step"), lines)


def _settings(results: Sequence[Result]) -> Iterator[str]:
    if not results:
        return
    yield "<h2>Settings</h2>"
    for text in dict.fromkeys(
        json.dumps(
            {
                "trainer": r["trainer"],
                **{k: v for k, v in r.get("settings", {}).items() if k != "learning_rate"},
                "versions": r.get("versions", {}),
            },
            sort_keys=True,
        )
        for r in results
    ):
        yield f'<p class="note"><code>{_e(text)}</code></p>'


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "<table>\n<tr>" + "".join(f"<th>{_e(cell)}</th>" for cell in header) + "</tr>"
    for line in lines:
        cells = zip(header, line, strict=True)
        # On a narrow page each row is a list, and each cell says its column.
        shown = (f'<td data-label="{_e(name)}">{_e(cell)}</td>' for name, cell in cells)
        yield f"<tr>{''.join(shown)}</tr>"
    yield "</table>"


def _e(text: str) -> str:
    return html.escape(str(text))
