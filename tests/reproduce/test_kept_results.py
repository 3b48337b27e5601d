"""Results that are kept are found by the runs of today, and give the figures that are kept."""

from __future__ import annotations

import json

import pytest
from bmt_trainer.comparison import provenance, tables

from benchmarks.report.results import LATEST
from reproduce import catalog
from reproduce.catalog import Comparison, Run
from reproduce.experiments import comparisons, record

ENTRIES = catalog.entries()
KEPT = {entry["id"]: entry for entry in json.loads((LATEST / "paper.json").read_text())}
SMALL = [e for e in ENTRIES if isinstance(e, Comparison) and e.file.stem == "small"]


#: Those with a result; the others are listed as not run.
RUN = [entry for entry in SMALL if any(entry.plan({}).output.glob("*.json"))]


def results(entry):
    return tables.read([entry.plan({}).output]) if entry in RUN else []


@pytest.mark.parametrize("entry", RUN, ids=lambda e: e.name)
def test_kept_results_give_the_kept_figures(entry):
    made = comparisons.figures(entry.name, results(entry))
    # Means over seeds need two.
    assert made or len({r["settings"].get("seed", 0) for r in results(entry)}) == 1
    for figure in made:
        kept = KEPT[figure.id]
        new = json.loads(json.dumps(figure.entry))
        assert {**new, "command": ""} == {**kept, "command": ""}
        assert kept["command"] == figure.command


def test_each_kept_figure_has_an_entry_that_makes_it():
    declared = {i for entry in ENTRIES if isinstance(entry, Run) for i in entry.figures}
    compared = {f.id for entry in SMALL for f in comparisons.figures(entry.name, results(entry))}
    assert not declared & compared
    assert set(KEPT) <= declared | compared
    names = {entry.name for entry in ENTRIES}
    for kept in KEPT.values():
        if kept["command"].startswith("make"):
            made = kept["command"].split()
            assert made[:2] == ["make", "reproduce"]
            assert made[2].removeprefix("NAME=") in names, kept["id"]


@pytest.mark.parametrize("entry", RUN, ids=lambda e: e.name)
def test_runs_of_today_find_the_results_that_are_kept(entry, monkeypatch):
    kept = sorted(entry.plan({}).output.glob("*.json"))
    found = [json.loads(path.read_text()) for path in kept]
    [fingerprint] = {result["fingerprint"] for result in found}
    # Neither the model nor the data need be there. Names of results hold a digest of both: without
    # the data's files, what precedes the digest is compared.
    monkeypatch.setattr(provenance, "of_model", lambda model: fingerprint)
    for model in {r["key"]["sources"]["model"] for r in found if "key" in r}:
        monkeypatch.setattr(provenance, "sources_of_model", lambda _, model=model: model)
    plan = entry.plan({})
    cells = list(plan.cells())
    files, seeds = {cell.file for cell in cells}, len(plan.seeds)
    assert len(files) == len(cells) == seeds * len({cell.file for cell in cells if not cell.seed})
    # Some that are kept are of builds that knew less of what decides a result.
    files |= {cell.earlier for cell in cells}
    if any(one.path and one.only == entry.name for one in entry.data):
        stems = {file.name.rsplit(".", 2)[0] for file in files}
        assert {file.name.rsplit(".", 2)[0] for file in kept} == stems
    else:
        assert set(kept) <= files


def test_figures_of_another_seed_have_ids_of_their_own():
    [entry] = [e for e in SMALL if e.name == "small-table3"]
    found = results(entry)
    second = [{**r, "settings": {**r["settings"], "seed": 1}} for r in found]
    first = {f.id: f.value for f in comparisons.figures(entry.name, found)}
    both = {f.id: f.value for f in comparisons.figures(entry.name, [*found, *second])}
    assert first.keys() < both.keys()
    assert {name: both[name] for name in first} == first
    assert both.keys() - first.keys() == {f"{name}_seed_1" for name in first}


def test_gains_over_seeds_are_paired_by_seed():
    [entry] = [e for e in SMALL if e.name == "small-sort"]
    found = results(entry)
    for half in (found[:1], found):
        # A base with ten answers right, of each seed on its own examples.
        answered = {"method": "base", "right": "1" * 10 + "0" * 390}
        bases = [{k: v for k, v in r.items() if k != "zeros"} | answered for r in half]
        made = {f.id: f for f in comparisons.figures(entry.name, [*half, *bases])}
        assert ("sort_bmt_gain_points_over_seeds" in made) == (half is found)
    gain, share = made["sort_bmt_gain_points_over_seeds"], made["sort_bmt_over_seeds"]
    assert gain.value == pytest.approx(share.value - 2.5)
    assert gain.interval == pytest.approx([bound - 2.5 for bound in share.interval])
    assert (gain.n, gain.seeds) == (5, (0, 1, 2, 3, 4))
    zeros = made["sort_bmt_zeros_over_seeds"]
    assert zeros.value == pytest.approx(sum(r["zeros"] for r in found) / 5)
    assert "sort_base_zeros_over_seeds" not in made


def test_failed_analyses_leave_out_their_own_figures_alone():
    [entry] = [e for e in SMALL if e.name == "small-grpo"]
    found = results(entry)
    names = {f.id for f in comparisons.figures(entry.name, found)}
    *others, last = found
    rest = {k: v for k, v in last.items() if k != "geometry"}
    *rows, final = last["track"]
    rest["track"] = [*rows, {k: v for k, v in final.items() if k not in ("retention_lenient", "n")}]
    left = {f.id for f in comparisons.figures(entry.name, [*others, rest])}
    lost = names - left
    assert left < names
    assert all("geometry_" in name or name.endswith("_kept_points") for name in lost)
    assert sum(name.endswith("_kept_points") for name in lost) == 1


def test_keeping_figures_replaces_those_of_their_ids(tmp_path):
    file = tmp_path / "paper.json"
    record.keep([record.Figure(id="a", value=1, n=1, command="c")], file)
    record.keep([record.Figure(id="b", value=2, n=1, command="c")], file)
    record.keep([record.Figure(id="a", value=3.14159265, n=1, command="c")], file)
    assert [(e["id"], e["value"]) for e in json.loads(file.read_text())] == [
        ("a", 3.1416),
        ("b", 2),
    ]
