"""A run: failures are reported and do not stop it; finished steps are not repeated."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import __main__ as run
from benchmarks import registry
from benchmarks.report.results import REACH, Baseline, Entry, Findings

ROOT = Path(__file__).resolve().parents[2]


def figure(entry_id: str, command: str) -> Entry:
    baseline = Baseline(what="b", value=1.0, unit="s")
    return Entry(id=entry_id, value=1.0, unit="s", baseline=baseline, command=command)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Runs `python -m benchmarks` on sections of our own; counts what each step did."""
    calls: list[str] = []
    broken: set[str] = set()

    def section(name):
        def measure(context):
            if name in broken:
                raise RuntimeError(f"{name} broke in {ROOT}/x")
            for key in ("one", "two"):
                context.step(key, calls.append, f"{name}-{key}")
            return Findings(entries=[figure(name, context.command)])

        return measure

    sections = {"format": {"a": section("a"), "b": section("b")}, "swap": {"c": section("c")}}
    monkeypatch.setattr(registry, "SECTIONS", sections)
    monkeypatch.setattr(run, "WORK", tmp_path / "work")
    monkeypatch.setattr(run, "folder", lambda quick: tmp_path / "results")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    return lambda *arguments: run.main([*arguments]), calls, broken, tmp_path / "results"


def ids(path: Path) -> list[str]:
    return [e["id"] for e in json.loads(path.read_text())]


def test_all_parts_run_and_are_kept(bench):
    main, calls, _, folder = bench
    assert main("all") == 0
    assert ids(folder / "format.json") == ["a", "b"]
    assert ids(folder / "swap.json") == ["c"]
    assert (folder / "README.md").exists()
    (a, _) = json.loads((folder / "format.json").read_text())
    assert a["command"] == 'make bench-format BENCH="--only a"'


def test_a_failing_section_is_told_and_the_others_go_on(bench, capsys):
    main, _, broken, folder = bench
    broken.add("a")
    assert main("all") == 1
    assert ids(folder / "format.json") == ["b"]
    assert ids(folder / "swap.json") == ["c"]
    assert "failed: format: a" in capsys.readouterr().out
    assert "a broke in" in (folder / "README.md").read_text()


def test_resume_does_only_what_is_missing(bench):
    main, calls, broken, folder = bench
    broken.add("b")
    assert main("all") == 1
    calls.clear()
    broken.clear()
    assert main("all", "--resume") == 0
    assert calls == ["b-one", "b-two"]
    assert ids(folder / "format.json") == ["a", "b"]
    calls.clear()
    assert main("all") == 0
    assert len(calls) == 6, "without --resume everything is measured again"


def test_another_commit_or_scale_is_not_resumed(bench, monkeypatch):
    main, calls, _, _ = bench
    main("swap")
    main("swap", "--resume", "--quick")
    assert len(calls) == 4
    monkeypatch.setattr(run, "commit", lambda: "another")
    main("swap", "--resume")
    assert len(calls) == 6


def test_only_some_sections(bench):
    main, calls, _, folder = bench
    assert main("format", "--only", "b") == 0
    assert calls == ["b-one", "b-two"]
    assert ids(folder / "format.json") == ["b"]
    with pytest.raises(SystemExit):
        main("format", "--only", "c")


def test_make_has_a_target_for_each_part():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert {"bench", *(f"bench-{part}" for part in registry.SECTIONS)} <= targets
    for part in registry.SECTIONS:
        shown = subprocess.run(
            ["make", "-n", f"bench-{part}", "BENCH=--quick"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert f"-m benchmarks {part} --quick" in shown


def test_every_figure_to_reach_is_measured_somewhere():
    source = "\n".join(
        p.read_text() for p in (ROOT / "benchmarks").rglob("*.py") if p.name != "results.py"
    )
    for entry_id in REACH:
        stem = entry_id.removesuffix("_half_width")
        assert stem in source, f"no section measures {entry_id}"
