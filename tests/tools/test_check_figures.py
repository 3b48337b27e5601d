"""Figures on pages against kept results: a wrong digit, id, bound or a missing mark is found."""

from __future__ import annotations

import json
import re

import pytest

from tools import check_figures
from tools.figures import results, unmarked
from tools.figures.marks import MARK, marks

ENTRIES = [
    {"id": "gain_points", "value": 38.75, "interval": [32.154, 44.83], "bound": ""},
    {"id": "cold_ms", "value": 8.93, "interval": None, "bound": "<= 50", "unit": "ms"},
    {"id": "lost", "value": -4.5, "interval": [-10.9, 1.9], "bound": ""},
]
RUN = {"score": {"accuracy": 0.8975, "interval95": [0.864, 0.9235], "lenient": 289, "total": 400}}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder of results and a log in the place of the project's."""
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper.json").write_text(json.dumps(ENTRIES))
    (tmp_path / "paper/model.task.bmt.0a1b2c3d.json").write_text(json.dumps(RUN))
    log = tmp_path / "log"
    log.mkdir()
    (log / "old.md").write_text(
        "# Old\n\n2026\n\nFigures of this page were not kept as a result.\n\n73.5 %\n"
    )
    (log / "new.md").write_text("# New\n\n2026\n\nResults: `paper.json#gain_points`.\n\n38.8\n")
    for module in (results, check_figures):
        monkeypatch.setattr(module, "LATEST", tmp_path)
        monkeypatch.setattr(module, "LOG", log)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    results._file.cache_clear()
    yield tmp_path
    results._file.cache_clear()


def faults(text: str) -> list[str]:
    return [fault for mark in marks(text) for fault in mark.faults]


@pytest.mark.parametrize(
    "text",
    [
        "38.8 points <!-- figure: paper.json#gain_points -->",
        "39 <!-- figure: paper.json#gain_points -->",
        "+38.75 (32.2 to 44.8) <!-- figure: paper.json#gain_points; "
        "paper.json#gain_points.interval -->",
        "at least 32 points <!-- figure: paper.json#gain_points -->",
        "at most 45 points <!-- figure: paper.json#gain_points -->",
        "89.8 % <!-- figure: 0a1b2c3d#score.accuracy*100 -->",
        "72.3 % <!-- figure: 0a1b2c3d#score.lenient.share*100 -->",
        "8.9 ms of 50 <!-- figure: paper.json#cold_ms; paper.json#cold_ms.bound -->",
        "8,930 us <!-- figure: paper.json#cold_ms*1000 -->",
        "89.8 (86.4 to 92.4) <!-- figure: 0a1b2c3d#score.accuracy*100; "
        "0a1b2c3d#score.interval95*100 --> %",
        "at most 10.9 points <!-- figure: paper.json#lost*-1 -->",
        "73.5 % <!-- figure: log:old -->",
        "1,000 <!-- figure: arithmetic: a thousand -->",
    ],
)
def test_a_page_that_agrees_has_no_fault(kept, text):
    assert not faults(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("38.6 points <!-- figure: paper.json#gain_points -->", "38.6 on the page, 38.75"),
        ("40 <!-- figure: paper.json#gain_points -->", "40 on the page"),
        ("38.8 (32.2 to 44.9) <!-- figure: paper.json#gain_points.interval -->", "44.9"),
        ("at least 35 points <!-- figure: paper.json#gain_points -->", "begins at 32.154"),
        ("≤ 40 points <!-- figure: paper.json#gain_points -->", "ends at 44.83"),
        ("at most 8.5 ms <!-- figure: paper.json#cold_ms -->", "ends at 8.93"),
        ("38.8 <!-- figure: paper.json#no_such -->", "0 results of this id"),
        ("38.8 <!-- figure: other.json#gain_points -->", "no such file"),
        ("38.8 <!-- figure: paper.json -->", "FILE#ID"),
        ("89.8 <!-- figure: 0a1b2c3e#score.accuracy*100 -->", "0 runs have this key"),
        ("89.8 <!-- figure: 0a1b2c3d#score.nothing*100 -->", "no field nothing"),
        ("73.6 % <!-- figure: log:old -->", "not on that page"),
        ("38.8 <!-- figure: log:new -->", "were kept"),
        ("38.8 <!-- figure: log:none -->", "no such page"),
        ("one <!-- figure: paper.json#gain_points -->", "0 before the mark"),
        ("1,000 <!-- figure: arithmetic: -->", "without a word"),
        ("8.93 s <!-- figure: paper.json#cold_ms -->", "s on the page"),
        ("8.9 <!-- figure: paper.json#cold_ms --> us", "us on the page"),
        ("8,930 ms <!-- figure: paper.json#cold_ms*1000 -->", "ms on the page"),
        ("8.9 % <!-- figure: paper.json#cold_ms -->", "% on the page"),
        ("0.9 % <!-- figure: 0a1b2c3d#score.accuracy -->", "% on the page"),
        ("at least 10 points <!-- figure: paper.json#lost*-1 -->", "begins at -1.9"),
        ("38.8 <!-- figure: paper.json#gain_points/0 -->", "no factor"),
        ("5 s <!-- figure: code:no/such.py:A -->", "no such file"),
    ],
)
def test_a_page_that_differs_is_found(kept, text, says):
    (fault,) = faults(text)
    assert says in fault


def test_constants_of_code(kept):
    (kept / "a.py").write_text("KIB = 1 << 10\nA, B = 32 * KIB, 7\nclass C:\n    d: int = 5\n")
    assert not faults("32 KiB and 7 <!-- figure: code:a.py:A/1024; code:a.py:B -->")
    assert not faults("5 s <!-- figure: code:a.py:C.d -->")
    assert faults("33 KiB <!-- figure: code:a.py:A/1024 -->")
    assert faults("5 s <!-- figure: code:a.py:E -->")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("It takes 5 ms.", ["5 ms"]),
        ("It is 0.96 of bare vLLM.", ["0.96 of"]),
        ("| 0.05 to 0.09 % |", ["0.05 to 0.09 %"]),
        ("1.03 times, 5 MB, 542.8 tokens/s and 3 GiB", ["1.03 times", "5 MB", "542.8 tokens/s"]),
        ("`sleep 5 s`, [x](a-5ms), vLLM 0.32, n = 400, 8B, H100, step 5", []),
        (
            "```\n5 ms\n```\n<!-- benchmarks: `make docs` -->\n5 ms\n<!-- end of benchmarks -->",
            [],
        ),
        ("38.8 points <!-- figure: paper.json#gain_points --> and 5 ms", ["5 ms"]),
        ("within 5 s", []),
        ("It takes 15\nminutes.", ["15 minutes"]),
        ("5ms, 23-24 ms, 23–24 ms, 84 ± 3 ms", ["5ms", "23-24 ms", "23–24 ms", "84 ± 3 ms"]),
        ("**97** %, 97&nbsp;%, 97\u202f%", ["97** %", "97&nbsp;%", "97 %"]),
        ("`97 %` and `a` or `b`", ["97 %"]),
        ("97 percent, ninety percent", ["97 percent", "ninety percent"]),
        ("twelve times, 3x, 3-fold, 14 min", ["twelve times", "3x", "3-fold", "14 min"]),
        ("thousands, an eighth, 14336 x 4096, 1024 × 1024, 2026-11-30", []),
        ("<!-- x: `make docs` -->\n5 ms\n<!-- end of x -->", ["5 ms"]),
        ("| a | gain, points |\n|---|---|\n| 2 | 38.8 (32.2) |", ["38.8", "32.2"]),
        ("| a | b |\n|---|---|\n| rate, % | 97.3 |\n| rows | 20 |", ["97.3"]),
        ("| a, % |\n|---|\n| 38.8 <!-- figure: paper.json#gain_points --> |", []),
    ],
)
def test_numbers_with_a_unit_need_a_result_or_a_reason(kept, text, wanted):
    found = [u.text for u in unmarked.unmarked(text, list(marks(text)), {"within 5 s": "a limit"})]
    assert found[: len(wanted)] == wanted
    assert bool(found) == bool(wanted)


def test_allowed_text_must_be_on_its_page():
    assert not list(unmarked.stale("it answers\nwithin 5 s", {"answers within 5 s": "a limit"}))
    assert list(unmarked.stale("within 6 s", {"within 5 s": "a limit"}))
    assert list(unmarked.stale("within", {"within": "a limit"}))
    assert not list(unmarked.stale("in five seconds", {"in five seconds": "a limit"}))


def test_every_page_is_held_to_it():
    """But the log's entries, which name their results at the top."""
    for page in check_figures.pages():
        found = list(check_figures.faults(page, page.read_text() + "\n\n97.31 ms\n"))
        assert bool(found) == (page.parent != check_figures.LOG), page


def test_entries_of_the_log_name_their_results(kept):
    page = "# A\n\n2026\n\n{}\n\nText\n".format
    assert not list(check_figures.log_faults(page("Results: `paper.json#gain_points`.")))
    assert not list(check_figures.log_faults(page("Results: `paper.json#gain_*`, `paper`.")))
    assert not list(check_figures.log_faults(page("Figures were not kept as a result.")))
    assert list(check_figures.log_faults(page("Figures of a run.")))
    for wrong in ("paper.json#gain", "paper.json#none_*", "other.json#a", "other"):
        assert list(check_figures.log_faults(page(f"Results: `{wrong}`."))), wrong


def test_the_index_of_the_log_says_what_its_entries_say(kept):
    row = "| 2026-11-26 | [A title](old.md) | {} | 2 cores | training |\n".format
    other = "| 2026-11-26 | [New](new.md) | 38.8 points | 2 cores | training |\n"
    assert not list(check_figures.index_faults(row("73.5 %") + other))
    assert list(check_figures.index_faults(row("73.4 %") + other))
    assert list(check_figures.index_faults(row("73.5 %")))


def test_the_pages_agree_with_their_results():
    """As they are; then each mark of README with a changed digit."""
    found = [
        f for path in check_figures.pages() for f in check_figures.faults(path, path.read_text())
    ]
    assert not found
    readme = check_figures.ROOT / "README.md"
    text = readme.read_text()
    assert len(list(MARK.finditer(text))) > 15
    for mark in marks(text):
        begin, end = mark.numbers[-1]
        number = text[begin:end]
        changed = number[:-1] + str((int(number[-1]) + 5) % 10)
        wrong = text[:begin] + changed + text[end:]
        if "arithmetic:" in text[mark.span[0] : mark.span[1]]:
            continue
        assert list(check_figures.faults(readme, wrong)), f"{number} as {changed}"
    bare = re.sub(MARK, "", text)
    assert len(list(check_figures.faults(readme, bare))) > 10
