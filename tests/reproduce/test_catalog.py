"""Entries of reproduce/*.yaml: the paper's rows and settings, texts, data, and faulty files."""

from __future__ import annotations

import pytest
import yaml
from bmt_trainer.data.benchmark_formats import FORMS
from bmt_trainer.data.sources import parse_name
from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation.graders import find_for
from bmt_trainer.evaluation.suites import named

from reproduce import catalog
from reproduce.catalog import Comparison, Run

ENTRIES = {entry.name: entry for entry in catalog.entries()}
COMPARISONS = [e for e in ENTRIES.values() if isinstance(e, Comparison)]
RUNS = [e for e in ENTRIES.values() if isinstance(e, Run)]


def plan(name, **changes):
    return ENTRIES[name].plan(changes)


@pytest.mark.parametrize("entry", COMPARISONS, ids=lambda e: e.name)
def test_a_comparison_accepts_each_entry(entry):
    made = entry.plan({})
    assert entry.about
    for cell in made.cells():
        name, _ = parse_name(cell.dataset)
        kind, _, place = name.partition(":")
        assert place
        assert kind in {*FORMS, "task"}
        grader = made.settings.get("grader", made.settings.get("reward"))
        if grader != "math":  # its package is optional
            assert find_for(cell.dataset, grader)
    if made.suites:
        assert named(made.suites)


@pytest.mark.parametrize("entry", RUNS, ids=lambda e: e.name)
def test_each_run_has_its_function(entry):
    assert callable(entry.load())
    assert entry.about


def test_each_file_of_the_folder_is_read():
    assert {path.stem for path in catalog.FOLDER.glob("*.yaml")} == set(catalog.FILES)
    assert {entry.file.stem for entry in ENTRIES.values()} == set(catalog.FILES)


def test_every_row_of_the_tables_is_there():
    rows = ("base", "full", "lora-1", "lora-4", "mth-99", "mth-99.95", "bmt")
    for family in ("llama", "qwen"):
        assert set(plan(f"table1-{family}").methods) == set(rows)
        assert len(plan(f"table1-{family}").models) == 3
        assert list(plan(f"table2-{family}").methods) == ["wanda"]
        assert set(plan(f"figure3-{family}").methods) == set(rows) - {"base"}
        assert plan(f"figure3-{family}").geometry
    assert set(plan("figure2").methods) == {"full", "bmt"}
    for name, count in (("table3-mmlu-pro", 14), ("table3-bbeh", 23)):
        made = plan(name)
        assert set(made.methods) == {"base", "full", "bmt"}
        assert (len(made.models), len(made.datasets)) == (2, count)
        assert len(list(made.cells())) == 3 * 2 * count
    assert set(plan("table4").methods) == {"base", "full", "bmt"}
    for name in ("table5", "table6"):
        cells = [dict(cell.changes) for cell in plan(name).cells()]
        assert cells == [
            {"eta": eta, "reg_lambda": reg, "learning_rate": rate}
            for eta in (1 / 2048, 1 / 4096, 1 / 8192)
            for reg in (0.0, 1e-5)
            for rate in (1e-4, 3e-4)
        ]


def test_entries_have_the_papers_settings():
    """Settings of section 5.1, defaults included."""

    def config(name, method):
        return next(c for c in plan(name).cells() if c.method == method).config()

    gsm8k, simplerl = (config(name, "bmt") for name in ("table1-llama", "table1-qwen"))
    sft, sdft = (config(name, "bmt") for name in ("table3-bbeh", "table4"))
    for made in (gsm8k, simplerl):
        assert (made.learning_rate, made.alpha_start, made.alpha_end) == (3e-4, 1e3, 1e4)
        assert (made.eta, made.reg_lambda, made.seed) == (1 / 2048, 1e-5, 0)
        assert made.max_new_tokens == 4096
    assert (gsm8k.prompts_per_step, gsm8k.completions, gsm8k.beta, gsm8k.steps) == (64, 4, 0, 348)
    assert (simplerl.prompts_per_step, simplerl.completions) == (256, 8)
    assert (simplerl.beta, simplerl.steps) == (1e-4, 150)
    assert (sft.steps, sft.batch_size, sft.learning_rate) == (400, 4, 5e-4)
    assert (sft.alpha_start, sft.alpha_end, sft.heldout_share) == (1e2, 1e3, 0.25)
    assert (sdft.learning_rate, sdft.alpha_start, sdft.alpha_end) == (5e-3, 1e2, 1e4)
    assert (sdft.reg_lambda, sdft.teacher_rate, sdft.prompts_per_step) == (0, 0.01, 32)
    assert (sdft.warmup, sdft.skip_tokens) == (0.1, 3)
    rates = [config(name, "full").learning_rate for name in ("table1-llama", "table1-qwen")]
    rates += [config(name, "full").learning_rate for name in ("table3-bbeh", "table4")]
    assert rates == [1e-6, 5e-7, 1e-6, 5e-5]


def test_data_of_another_folder(tmp_path):
    for name in ("small-table3", "table4", "table1-qwen"):
        here, there = ENTRIES[name].plan({}), ENTRIES[name].plan({}, tmp_path)
        for old, new in zip(here.datasets, there.datasets, strict=True):
            assert new == old.replace(":data/", f":{tmp_path}/")
            assert new != old
    made = ENTRIES["table4"].plan({}, tmp_path)
    assert str(tmp_path) in made.settings["heldout_dataset"]
    assert ENTRIES["table1-qwen"].plan({}, tmp_path).suites_data == tmp_path
    # Neither a task nor a data set of the Hub.
    for name in ("table1-llama", "small-grpo"):
        assert ENTRIES[name].plan({}, tmp_path).datasets == ENTRIES[name].plan({}).datasets


def test_names():
    known = list(ENTRIES.values())
    assert [e.name for e in catalog.select(known, "table3")] == ["table3-mmlu-pro", "table3-bbeh"]
    assert [e.name for e in catalog.select(known, "grpo")] == ["grpo"]
    assert [e.name for e in catalog.select(known, "small-forgetting")] == [
        "small-forgetting-sft",
        "small-forgetting-letters",
        "small-forgetting-letters-plain",
        "small-forgetting-letters-sdft",
    ]
    for name in ("table", "table33", "", "small-"):
        with pytest.raises(ConfigError, match="nothing is named"):
            catalog.select(known, name)


COMPARED = {
    "about": "A file",
    "hardware": {"note": "anywhere"},
    "data": [{"name": "n", "source": "s", "license": "l"}],
    "shared": {"trainer": "sft", "model": "m"},
    "comparisons": {"one": {"methods": ["base"], "dataset": "task:initials"}},
}
RUN = {"about": "a", "run": "grpo:harder", "figures": ["f"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": None}, "data must list"),
        ({"data": ["n"]}, "data must list"),
        ({"data": [{"name": "n", "source": "s"}]}, "license must be set"),
        ({"data": [{"name": "n", "source": "s", "licence": "l"}]}, "did you mean license"),
        ({"hardware": None}, "hardware"),
        ({"hardware": {"note": "n", "gpus": -1}}, "gpus"),
        ({"sharde": {}}, "sharde must stand in"),
        ({"steps": 3}, "steps must stand in"),
        ({"shared": 3}, "shared must hold"),
        ({"comparisons": {}}, "at least one comparison"),
        ({"comparisons": {"one": None}}, "one must hold"),
        ({"runs": {"one": RUN}}, "comparisons, shared is not one of"),
        ({"comparisons": None, "runs": {"one": {**RUN, "figures": []}}}, "figures must list"),
        ({"comparisons": None, "runs": {"one": {**RUN, "more": 1}}}, "and nothing else"),
    ],
)
def test_faulty_files(tmp_path, changes, words):
    values = {k: v for k, v in {**COMPARED, **changes}.items() if (k, v) != ("comparisons", None)}
    if "runs" in values and "comparisons" not in values:
        del values["shared"]
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=words):
        catalog.entries(tmp_path, ["file"])


def test_a_name_stands_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(COMPARED))
    assert [entry.name for entry in catalog.entries(tmp_path, ["a"])] == ["one"]
    with pytest.raises(ConfigError, match=r"one stands in .*a\.yaml too"):
        catalog.entries(tmp_path, ["a", "b"])


@pytest.mark.parametrize("function", ["grpo:nothing", "nothing:harder", "grpo", ":"])
def test_a_run_without_its_function(function):
    [run] = [entry for entry in RUNS if entry.name == "grpo"]
    changed = Run(**{**vars(run), "function": function})
    with pytest.raises(ConfigError, match="run: "):
        changed.load()
