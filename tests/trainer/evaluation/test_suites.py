"""Evaluation sets on made-up files, and the reasons for skipped sets."""

from __future__ import annotations

import json
import math
import sys

import bmt_core
import numpy as np
import pytest
import torch
from bmt_trainer.cli.main import app
from bmt_trainer.data.examples import Example, chat
from bmt_trainer.data.sources import load
from bmt_trainer.errors import ConfigError, DataError
from bmt_trainer.evaluation import retention, suites
from bmt_trainer.evaluation.backends import by_transformers
from bmt_trainer.evaluation.suites import SUITES, named, run
from typer.testing import CliRunner

from tests.support.tiny_model import byte_tokenizer, tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    lines(
        root / "gsm8k" / "test.jsonl",
        [{"question": f"{n} and one?", "answer": f"So.\n#### {n + 1}"} for n in range(8)],
    )
    lines(
        root / "mmlu_pro" / "test.jsonl",
        [
            {"question": f"Law {n}?", "options": ["a", "b"], "answer": "AB"[n % 2], "category": c}
            for n in range(11)
            for c in ("law", "history")
        ],
    )
    (root / "bbeh").mkdir()
    rows = [{"input": f"Is {n} even?", "target": "yes" if n % 2 == 0 else "no"} for n in range(9)]
    (root / "bbeh" / "bbeh_nycc.json").write_text(json.dumps({"examples": rows, "canary": ""}))
    return root


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))


def test_right_answers_are_counted_for_each_model(folder):
    def knows(examples, tokens):
        assert tokens == 100
        numbers = [int(e.messages[-1]["content"].split()[0]) for e in examples]
        return [f"#### {n + 1}" if n < 6 else f"It is {n + 1}" for n in numbers]

    def guesses(examples, tokens):
        return ["#### 1"] * len(examples)

    [result] = run(
        named("gsm8k"), {"base": guesses, "mask": knows}, folder=folder, max_new_tokens=100
    )
    assert (sum(result.right["base"]), sum(result.right["mask"])) == (1, 6)
    assert result.lenient == {"base": 1, "mask": 8}
    summary = result.to_json()
    assert summary["scores"]["mask"]["exact"] == 6
    assert summary["difference"] == pytest.approx(5 / 8)
    assert summary["mcnemar_p"] == pytest.approx(2 / 2**5)


def test_the_held_out_quarter_equals_that_of_training(folder):
    [suite] = named("mmlu-pro law")
    path = folder / "mmlu_pro" / "test.jsonl"
    split = load(f"mmlu-pro:{path}?subject=law", heldout=3, train=100, seed=5)
    assert suite.load(folder, seed=5) == split.heldout
    assert len(split.train) == 8


@pytest.mark.found
def test_duplicates_are_kept_by_a_setting_and_their_share_is_said(tmp_path):
    """Table 9's law: 825 and 276 rows, of 1,037 different prompts."""
    path = tmp_path / "mmlu_pro" / "test.jsonl"
    numbers = [*range(1037), *range(64)]
    lines(
        path,
        [
            {"question": f"Law {n}?", "options": ["a", "b"], "answer": "A", "category": "law"}
            for n in numbers
        ],
    )
    name = f"mmlu-pro:{path}?subject=law"
    share = {"heldout": 0, "share": 0.25, "train": 10_000, "seed": 3}
    split = load(name, **share)
    assert len(split.heldout) == 260
    assert len({example.key for example in split.train}) == 777
    kept = load(f"{name}&duplicates=keep", **share)
    assert (len(kept.train), len(kept.heldout)) == (825, 276)
    prompts = {example.key for example in kept.train}
    both = sum(example.key in prompts for example in kept.heldout)
    assert 0 < both <= 64
    assert any(f"{both} of 276 held-out rows ({both / 276:.1%})" in n for n in kept.counts.notes)
    [suite] = named("mmlu-pro law")
    assert suite.load(tmp_path, seed=3) == split.heldout
    assert suite.load(tmp_path, seed=3, duplicates=True) == kept.heldout
    models = {"base": lambda examples, tokens: ["The answer is (A)."] * len(examples)}
    for duplicates, total, said in ((False, 260, 0), (True, 276, both)):
        [result] = run([suite], models, folder=tmp_path, seed=3, duplicates=duplicates)
        assert (result.score("base").total, result.trained_on) == (total, said)
        assert result.to_json().get("trained_on", 0) == said
        assert (f"prompts that are trained on: {said}" in str(result)) == duplicates


@pytest.mark.found
def test_duplicates_are_kept_where_rows_are_split_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines(path, [{"prompt": str(n % 9), "completion": "a"} for n in range(12)])
    for name in (f"{path}?duplicates=keep&streaming=true", "task:arithmetic?duplicates=keep"):
        with pytest.raises(DataError, match="duplicates=keep is for files"):
            load(name, heldout=1, train=1)
    with pytest.raises(DataError, match="a data set alone"):
        load(f"{path}?duplicates=keep&weight=1 + {path}?weight=1", heldout=1, train=1)
    with pytest.raises(DataError, match="duplicates"):
        load(f"{path}?duplicates=perhaps", heldout=1, train=1)
    assert load(f"{path}?duplicates=drop", heldout=3, train=99) == load(
        str(path), heldout=3, train=99
    )


def test_sets_without_data_or_package_are_skipped_with_a_reason(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    monkeypatch.setattr(suites.sources, "load", _no_hub(suites.sources.load))
    names = "minerva,aime24,toolalpaca,bbeh nycc,bbeh sportqa"
    models = {"base": lambda examples, tokens: ["The answer is: yes"] * len(examples)}
    found = {r.suite: r for r in run(named(names), models, folder=folder)}
    assert "no file simplerl_eval/minerva_math.jsonl" in found["minerva"].skipped
    assert "no file toolalpaca" in found["toolalpaca"].skipped
    assert "no file bbeh/bbeh_sportqa.json" in found["bbeh sportqa"].skipped
    assert found["bbeh nycc"].skipped is None
    assert len(found["bbeh nycc"].right["base"]) == 3
    assert found["minerva"].to_json().keys() == {"suite", "skipped"}
    lines(folder / "simplerl_eval" / "aime24.jsonl", [{"problem": "p", "answer": 3}])
    [aime] = run(named("aime24"), models, folder=folder)
    if aime.skipped:  # if the package is installed, it is graded
        assert "math-verify" in aime.skipped


def _no_hub(real):
    def offline(dataset, **options):
        assert "HuggingFaceH4" not in dataset
        return real(dataset, **options)

    return offline


def test_names():
    assert len(named("mmlu-pro")) == 14
    assert len(named("bbeh")) == 23
    assert [s.name for s in named("mmlu-pro computer science, gsm8k")] == [
        "mmlu-pro computer science",
        "gsm8k",
    ]
    for bad in ("gsm9k", "mmlu-pro astrology", "", "gsm8k x"):
        with pytest.raises(ConfigError, match="tasks"):
            named(bad)
    assert all(s.name.partition(" ")[0] == group for group, all_ in SUITES.items() for s in all_)


def test_the_command(folder, checkpoint):
    arguments = ["suites", "--model", str(checkpoint), "--tasks", "gsm8k,bbeh sportqa"]
    arguments += ["--data", str(folder), "--limit", "3", "--max-new-tokens", "2", "--json"]
    arguments += ["--engine", "transformers"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    scored, skipped = json.loads(done.stdout.splitlines()[-1])
    assert scored["scores"]["base"]["total"] == 3
    assert "bbeh_sportqa.json" in skipped["skipped"]


def test_retention_without_lm_eval_names_the_package(monkeypatch):
    monkeypatch.setattr(retention.importlib.util, "find_spec", lambda name: None)
    found = retention.retained(None, None, ("winogrande",))
    assert found.mean is None
    assert "pip install lm-eval" in found.skipped["winogrande"]


@pytest.mark.found
def test_a_mean_is_of_all_tasks_or_there_is_none():
    assert retention.Retained({"a": 0.5, "b": 0.7}, {}).mean == pytest.approx(0.6)
    assert retention.Retained({"a": 0.5, "b": 0.7}, {"c": "why"}).mean is None


def test_a_mask_is_compared_with_its_base(tmp_path):
    """A mask without zeros answers as the base; one that deletes all weights does not."""
    model = tiny_llama()
    with torch.no_grad():  # so large that the MLP decides the answer
        for name, weight in model.named_parameters():
            weight.mul_(20 if ".mlp." in name else 1)
    checkpoint = tmp_path / "base"
    model.save_pretrained(checkpoint)
    byte_tokenizer().save_pretrained(checkpoint)
    base = bmt_core.Base("tiny", bmt_core.fingerprint(checkpoint))
    asked = {}
    for name, share in (("none", 0), ("all", 1)):
        tensors = tuple(
            bmt_core.TensorMask(tensor, shape, np.arange(share * math.prod(shape), dtype=np.uint32))
            for tensor, shape in bmt_core.geometry(checkpoint).items()
        )
        bmt_core.save(bmt_core.Mask(base, tensors, {}), tmp_path / f"{name}.bmt")
        models = by_transformers(
            str(checkpoint), tmp_path / f"{name}.bmt", batch_size=4, device="cpu"
        )
        examples = [Example(chat("Say it."), "")]
        asked[name] = {who: answer(examples, 12)[0] for who, answer in models.items()}
    assert asked["none"]["base"] == asked["none"]["mask"] == asked["all"]["base"]
    assert asked["all"]["mask"] != asked["all"]["base"]
