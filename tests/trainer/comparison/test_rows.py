"""Rows of tables: what may be averaged, what may be paired, means over seeds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from bmt_trainer.cli.main import app
from bmt_trainer.comparison import report, tables
from bmt_trainer.errors import DataError
from bmt_trainer.evaluation.intervals import over_runs, student, wilson
from typer.testing import CliRunner


def result(method, right, *, dataset="train.jsonl", data="d", seed=0, **more):
    """A result as this build writes it; data: of the held-out examples."""
    settings = {"steps": 2, "seed": seed, "max_new_tokens": 8, **more.pop("settings", {})}
    contents = {"held-out data": f"{data} {seed}", "tokenizer": "t", **more.pop("contents", {})}
    return {
        **{"method": method, "model": "tiny", "fingerprint": "f", "trainer": "sft"},
        **{"dataset": dataset, "changes": {}, "settings": settings, "right": right},
        "score": {"exact": right.count("1"), "lenient": right.count("1"), "total": len(right)},
        **{"size_bytes": 4, "contents": contents, "key": {"dataset": f"{dataset} {data}"}},
        **more,
    }


def row_of(results, method):
    return [row for row in tables.rows(results) if row.method == method]


@pytest.mark.found
def test_two_settings_in_one_folder_are_two_rows():
    steps = [
        result(method, right, settings={"steps": n})
        for n in (2, 3)
        for method, right in (("base", "0000"), ("bmt", "0011" if n == 2 else "0111"))
    ]
    rows = row_of(steps, "bmt")
    assert [(r.changes, r.datasets, r.total, r.accuracy) for r in rows] == [
        ("steps 2", 1, 4, 0.5),
        ("steps 3", 1, 4, 0.75),
    ]
    assert [r.against.gained for r in rows] == [2, 3]


@pytest.mark.found
@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"steps": 3}},
        {"changes": {"eta": 0.5}},
        {"fingerprint": "g"},
        {"reading": "lenient"},
        {"trainer": "grpo"},
        {"contents": {"tokenizer": "u"}},
    ],
)
def test_data_sets_answered_in_unlike_ways_are_not_one_row(change):
    alike = [result("bmt", "0011", dataset=name, data=name) for name in ("a", "b")]
    assert [row.datasets for row in tables.rows(alike)] == [2]
    unlike = [alike[0], result("bmt", "0111", dataset="b", data="b", **change)]
    rows = tables.rows(unlike)
    assert sorted((row.datasets, row.accuracy) for row in rows) == [(1, 0.5), (1, 0.75)]
    assert len({(row.model, row.label) for row in rows}) == 2


def test_runs_of_one_name_have_labels_of_their_own():
    runs = [result("bmt", "01", settings={"steps": n}, seed=s) for n in (2, 3) for s in (0, 1)]
    found = [tables.named(one) for one in tables.labeled(tables.rows(runs))]
    assert found == ["bmt steps 2", "bmt steps 2, seed 1", "bmt steps 3", "bmt steps 3, seed 1"]


@pytest.mark.found
def test_data_sets_of_one_file_name_are_paired_with_their_own_base(tmp_path):
    mixed = [
        result("base", "0000", data="a"),
        result("bmt", "1111", data="a"),
        result("base", "1111", data="b"),
        result("bmt", "0000", data="b"),
    ]
    [row] = row_of(mixed, "bmt")
    assert (row.against.gained, row.against.lost, row.against.p_value) == (4, 4, 1.0)
    assert row.datasets == 2
    labels = tables.labels(mixed)
    assert len(labels) == len(set(labels.values())) == 2
    for at, one in enumerate(mixed):
        (tmp_path / f"{at}.json").write_text(json.dumps(one))
    page = report.write([tmp_path], tmp_path / "out", "t").read_text()
    assert "By data set" in page
    assert all(label in page for label in labels.values())


@pytest.mark.found
@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "g"},
        {"data": "other"},
        {"seed": 1},
        {"right": "00000"},
        {"reading": "lenient"},
        {"settings": {"max_new_tokens": 9}},
        {"settings": {"grader": "number"}},
        {"settings": {"system": "Be brief."}},
        {"settings": {"eval_batch_size": 3}},
        {"contents": {"tokenizer": "u"}},
        {"contents": {"base's configuration": "c"}},
        {"contents": {"chat template": "c"}},
        {"trainer": "grpo"},
    ],
)
def test_a_base_of_other_answers_is_never_paired(change):
    change = dict(change)
    base = result("base", change.pop("right", "0000"), **change)
    [row] = row_of([base, result("bmt", "1111")], "bmt")
    assert row.against is None
    [row] = row_of([base, result("base", "0001"), result("bmt", "1111")], "bmt")
    assert row.against.gained == 3


@pytest.mark.found
def test_older_results_that_nothing_tells_apart_are_neither_averaged_nor_paired():
    def older(method, right):
        made = result(method, right)
        return {k: v for k, v in made.items() if k not in ("contents", "key")}

    mixed = [older("base", "0000"), older("bmt", "1111"), older("base", "1111")]
    mixed.append(older("bmt", "0000"))
    rows = tables.rows(mixed)
    assert [(r.label, r.accuracy, r.against) for r in rows] == [
        ("base run 1", 0.0, None),
        ("base run 2", 1.0, None),
        ("bmt run 1", 1.0, None),
        ("bmt run 2", 0.0, None),
    ]
    assert tables.rows(mixed[:2])[1].against.gained == 4


def test_settings_at_their_defaults_tell_no_rows_apart():
    """Results of builds that lacked a setting are in one row with those that record it."""
    old, new = result("bmt", "01"), result("bmt", "11", data="e", settings={"hold_zeros": False})
    assert len(tables.rows([old, new])) == 1


def seeds(method, accuracies):
    return [
        result(method, "1" * round(100 * share) + "0" * (100 - round(100 * share)), seed=seed)
        for seed, share in enumerate(accuracies)
    ]


MASKS, FULL, BASE = (0.90, 0.82, 0.91), (0.85, 0.79, 0.88), (0.1, 0.2, 0.1)


def test_runs_of_several_seeds_have_students_interval():
    rows = tables.rows([*seeds("bmt", MASKS), *seeds("full", FULL), *seeds("base", BASE)])
    by_method = {row.method: row for row in rows}
    mask = by_method["bmt"]
    assert mask.accuracy == pytest.approx(sum(MASKS) / 3)
    assert mask.interval == pytest.approx((0.754, 1.0), abs=1e-3)  # 0.8767 ± 4.303 · 0.0285
    assert mask.total == 100
    # The t-test by hand: differences 0.8, 0.62, 0.81.
    assert mask.against.difference == pytest.approx(0.7433, abs=1e-4)
    assert mask.against.p_value == pytest.approx(0.00684, abs=1e-4)
    assert mask.cells()[-2] == "3"
    found = tables.differences(rows)
    assert [(line[1], line[2], line[3], line[-1]) for line in found] == [
        ("bmt", "base", "+74.3", "3"),
        ("bmt", "full", "+3.7", "3"),
    ]


def test_only_seeds_that_both_methods_have_are_paired():
    rows = tables.rows([*seeds("bmt", MASKS), *seeds("full", FULL)[:2]])
    [line] = tables.differences(rows)
    assert line[3:] == ("+4.0", "-8.7 to +16.7", "0.16", "2")
    assert not tables.differences(tables.rows([*seeds("bmt", MASKS), *seeds("full", FULL)[:1]]))


def test_examples_that_differ_are_not_compared_by_seed():
    other = [{**r, "contents": {"held-out data": "x"}} for r in seeds("full", FULL)]
    assert not tables.differences(tables.rows([*seeds("bmt", MASKS), *other]))


def test_seeds_that_some_data_sets_lack_are_rows_of_their_own():
    partial = [*seeds("bmt", MASKS[:2]), result("bmt", "01", data="other")]
    rows = tables.rows(partial)
    assert [(row.label, row.datasets) for row in rows] == [("bmt", 2), ("bmt seed 1", 1)]
    assert rows[1].interval == wilson(82, 100)


def test_equal_runs_have_the_interval_of_their_answers():
    [row] = tables.rows(seeds("bmt", (0.0, 0.0, 0.0)))
    assert row.interval[1] > 0.01
    [row] = [r for r in tables.rows([*seeds("bmt", (0.5,) * 3), *seeds("base", (0.25,) * 3)])
             if r.method == "bmt"]  # fmt: skip
    assert math.isnan(row.against.p_value)
    assert row.cells()[5] == "-"
    rows = tables.rows([*seeds("bmt", (0.5,) * 3), *seeds("base", (0.25,) * 3)])
    assert [line[3:6] for line in tables.differences(rows)] == [("+25.0", "-", "-")]
    assert {row.interval for row in rows} == {wilson(50, 100), wilson(25, 100)}


@pytest.mark.found
def test_differences_that_are_equal_but_for_rounding_have_no_p_value():
    assert 0.7 - 0.6 != 0.8 - 0.7
    rows = tables.rows([*seeds("bmt", (0.7, 0.8)), *seeds("base", (0.6, 0.7))])
    assert [line[3:6] for line in tables.differences(rows)] == [("+10.0", "-", "-")]
    [row] = [r for r in rows if r.method == "bmt"]
    assert row.cells()[4:6] == ("+10.0", "-")


@pytest.mark.found
def test_means_that_are_equal_but_for_rounding_have_the_interval_of_their_answers():
    """Two data sets, of 1 and 2 right answers in ten, and of 3 and 0."""
    rights = (("1", 0, "a"), ("11", 0, "b"), ("111", 1, "a"), ("", 1, "b"))
    runs = [result("bmt", right.ljust(10, "0"), seed=s, data=d) for right, s, d in rights]
    [row] = tables.rows(runs)
    assert len(set(row.by_seed.values())) == 2
    low, high = row.interval
    assert low < 0.1 < 0.2 < high


@pytest.mark.parametrize("runs", [2, 3, 4, 5, 6, 9, 10])
def test_the_paired_t_test(runs):
    """Against the integral of Student's density."""
    draw = np.random.default_rng(runs)
    for _ in range(5):
        values = draw.normal(0.3, 1.0, runs)
        v = runs - 1
        t = abs(values.mean()) / (values.std(ddof=1) / math.sqrt(runs))
        at = np.linspace(0, t, 20001)
        density = (1 + at**2 / v) ** (-(v + 1) / 2)
        density *= math.gamma((v + 1) / 2) / math.gamma(v / 2) / math.sqrt(v * math.pi)
        found = over_runs(list(values))
        assert found.p_value == pytest.approx(1 - 2 * np.trapezoid(density, at), abs=1e-6)
        assert found.difference == pytest.approx(values.mean())
        assert found.interval == student(list(values))


@pytest.mark.found
def test_files_that_cannot_be_read_are_left_out_with_a_line(tmp_path):
    good = result("base", "01")
    (tmp_path / "a.json").write_text(json.dumps(good))
    (tmp_path / "b.json").write_text(json.dumps(good)[:40])
    for name, missing in (("c", "size_bytes"), ("d", "trainer"), ("e", "right")):
        rest = {k: v for k, v in good.items() if k != missing}
        (tmp_path / f"{name}.json").write_text(json.dumps(rest))
    bad = {"track": [{"step": 0}], "score": {"total": 0}, "levels": [{}], "geometry": {"gate": {}}}
    bad |= {
        "suites": [{"suite": "x", "scores": {}}],
        "logs": {"closed_gates": ["a"]},
        "disk_bytes": "1",
    }
    bad |= {
        "settings": {"seed": None},
        "key": None,
        "fingerprint": [1],
        "contents": {"tokenizer": 1},
    }
    for name, value in bad.items():
        (tmp_path / f"f-{name}.json").write_text(json.dumps({**good, name: value}))
    (tmp_path / "g.json").write_text('{"another": "kind"}')
    said = []
    assert tables.read([tmp_path], said.append) == [good]
    assert len(said) == 4 + len(bad)
    for name in ("b", "c", "d", "e", *(f"f-{name}" for name in bad)):
        assert any(f"{name}.json" in line for line in said), name
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.exception
    with pytest.raises(DataError, match="cannot be read"):
        tables.read([tmp_path / "b.json"])


@pytest.mark.found
def test_a_result_that_is_given_twice_counts_once(tmp_path, monkeypatch):
    for seed in (0, 1):
        (tmp_path / f"{seed}.json").write_text(json.dumps(result("bmt", "01", seed=seed)))
    monkeypatch.chdir(tmp_path)
    found = tables.read([tmp_path, tmp_path / "0.json", tmp_path.relative_to(tmp_path)])
    [row] = tables.rows(found)
    assert len(found) == len(row.by_seed) == 2
