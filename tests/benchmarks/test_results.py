"""Written results: shape of the short list, raw file, page and plots."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from benchmarks.harness.environment import provenance
from benchmarks.report import page, readme, results
from benchmarks.report.results import Baseline, Entry, Findings, Plot, Series, Table, keep, verdict


def entry(entry_id: str, value: float, unit: str = "ratio of tokens/s") -> Entry:
    return Entry(
        id=entry_id,
        value=value,
        unit=unit,
        baseline=Baseline(what="bare vLLM", value=555.0, unit="tokens/s"),
        command="make bench-serve",
        interval=(value - 0.01, value + 0.01),
        note="a | b",
    )


def section(*entries: Entry, **more) -> dict:
    plot = Plot(
        file="growth.png",
        title="Growth",
        x_label="masks",
        y_label="tokens/s",
        log="x",
        series=[
            Series(label="bare", x=[1, 100], y=[5, 5]),
            Series(label="masks, uniform", x=[1, 10, 100], y=[5, 4, 3]),
            Series(label="masks, Zipf", x=[1, 10, 100], y=[5, 5, 4]),
        ],
    )
    table = Table(title="Offline", header=("what", "n"), rows=[("x|y", "1")], note="A note.")
    found = asdict(Findings(entries=list(entries), tables=[table], plots=[plot]))
    return {**found, "environment": provenance(), "seconds": 90.0, **more}


def test_the_short_list_has_its_five_keys(tmp_path):
    keep("serve", {"compiled": section(entry("mixed32_over_base", 0.97))}, tmp_path)
    (found,) = json.loads((tmp_path / "serve.json").read_text())
    assert set(found) == {"id", "value", "unit", "baseline", "command"}
    assert found["baseline"] == {"what": "bare vLLM", "value": 555.0, "unit": "tokens/s"}
    assert found == entry("mixed32_over_base", 0.97).short()


def test_a_section_run_again_replaces_its_own_figures_only(tmp_path):
    keep("serve", {"a": section(entry("one", 1)), "b": section(entry("two", 2))}, tmp_path)
    keep("serve", {"a": section(entry("one", 3))}, tmp_path)
    found = {e["id"]: e["value"] for e in json.loads((tmp_path / "serve.json").read_text())}
    assert found == {"one": 3, "two": 2}


def test_a_damaged_file_is_written_anew(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "serve.json").write_text("{")
    keep("serve", {"a": section(entry("one", 1))}, tmp_path)
    assert len(json.loads((tmp_path / "serve.json").read_text())) == 1


@pytest.mark.parametrize(
    ("entry_id", "value", "wanted"),
    [
        ("mixed32_over_base", 0.97, "yes"),
        ("mixed32_over_base", 0.9699, "no"),
        ("open_8b_ms", 30.0, "yes"),
        ("open_8b_ms", 30.1, "no"),
        ("switch_over_lora_merge", 0.021, "no"),
        ("mixed32_over_base_eager", 0.1, ""),
    ],
)
def test_reached_or_not(entry_id, value, wanted):
    assert verdict(entry_id, value) == wanted


def test_the_page_shows_figures_tables_plots_and_what_failed(tmp_path):
    keep("serve", {"compiled": section(entry("mixed32_over_base", 0.93))}, tmp_path)
    keep("swap", {"switch": section(error="RuntimeError: no memory")}, tmp_path)
    text = page.write(tmp_path).read_text()
    assert (
        "| `mixed32_over_base` | 0.9300 ratio of tokens/s | 0.9200 to 0.9400 | ≥ 0.97 | no |"
        in text
    )
    assert "Not measured here:" in text
    assert "`open_8b_ms`" in text
    assert "| x\\|y | 1 |" in text
    assert "RuntimeError: no memory" in text
    assert f"torch {provenance()['versions']['torch']}" in text
    for image in ("growth.png", "serve-compiled.png"):
        assert f"]({image})" in text
        assert (tmp_path / image).read_bytes().startswith(b"\x89PNG")


def test_a_quick_run_does_not_replace_results():
    assert results.folder(quick=True) != results.folder(quick=False)
    assert results.folder(quick=False).parts[-3:] == ("benchmarks", "results", "latest")


def test_provenance_shows_no_folder_of_the_host(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/some/where/libtcmalloc.so.4")
    found = provenance()
    assert found["settings"]["LD_PRELOAD"] == "libtcmalloc.so.4"
    assert found["cores"] >= 1
    assert found["memory_gib"] > 0
    assert "/some/where" not in json.dumps(found)


def test_the_readmes_table_is_filled_from_the_results(tmp_path):
    text = f"Before\n{readme.BEGIN}STALE{readme.END}\nAfter"
    keep("serve", {"compiled": section(entry("mixed32_over_base", 0.971))}, tmp_path)
    once = readme.filled(text, tmp_path)
    assert once.startswith("Before\n")
    assert once.endswith("\nAfter")
    assert "STALE" not in once
    assert "(`mixed32_over_base`) | 0.9710 | ≥ 0.97 | bare vLLM: 555.0 tokens/s |" in once
    assert "(`open_8b_ms`) | run `make bench` | ≤ 30 |" in once
    assert readme.filled(once, tmp_path) == once
