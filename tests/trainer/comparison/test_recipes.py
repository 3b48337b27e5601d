"""Recipes are valid for their commands, and the paper's run on tiny models of the same
architectures."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bmt_trainer.comparison import plan
from bmt_trainer.comparison.runner import run
from bmt_trainer.console import Display
from bmt_trainer.data.benchmark_formats import FORMS
from bmt_trainer.data.sources import parse_name
from bmt_trainer.evaluation.graders import find_for
from bmt_trainer.evaluation.suites import named
from bmt_trainer.settings import build, read_yaml
from rich.console import Console
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.support.tiny_model import byte_tokenizer

ROOT = Path(__file__).resolve().parents[3]
PAPER = sorted((ROOT / "recipes" / "paper").glob("*.yaml"))
SMALL = sorted((ROOT / "recipes" / "small").glob("*.yaml"))


def test_the_papers_recipes_are_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/generate.py"), "--check", "recipes"], check=False
    )
    assert done.returncode == 0, "out of date: run `make docs`"


@pytest.mark.parametrize("path", [*PAPER, *SMALL], ids=lambda p: p.stem)
def test_a_comparison_accepts_each_recipe(path, tmp_path):
    changes = {"output": tmp_path} | ({"model": "m"} if path in SMALL else {})
    made = plan.read(path, changes)
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


def test_every_row_of_the_tables_has_its_file():
    names = {p.stem for p in PAPER}
    rows = ("base", "full", "lora-1", "lora-4", "mth-99", "mth-99.95", "bmt")
    for setting in ("llama-gsm8k", "qwen-simplerl"):
        assert {f"table1-{setting}-{row}" for row in rows} <= names
        assert f"table2-{setting}-wanda" in names
    assert len({n for n in names if n.startswith("table3")}) == 6
    assert len({n for n in names if n.startswith("table4")}) == 3
    made = plan.read(ROOT / "recipes/paper/table3-mmlu-pro-bmt.yaml", {"output": "x"})
    assert (len(made.models), len(made.datasets), len(list(made.cells()))) == (2, 14, 28)
    made = plan.read(ROOT / "recipes/paper/table5-eta-4096.yaml", {"output": "x"})
    assert [c.changes for c in made.cells()] == [
        {"reg_lambda": reg, "learning_rate": rate} for reg in (0.0, 1e-5) for rate in (1e-4, 3e-4)
    ]


def test_recipes_have_the_papers_settings():
    """Settings of section 5.1, defaults included."""
    seen = {}
    for name in ("table1-llama-gsm8k-bmt", "table1-qwen-simplerl-bmt", "table3-bbeh-bmt"):
        made = plan.read(ROOT / "recipes" / "paper" / f"{name}.yaml", {"output": "x"})
        seen[name] = next(made.cells()).config()
    gsm8k, simplerl, sft = seen.values()
    for config in (gsm8k, simplerl):
        assert (config.learning_rate, config.alpha_start, config.alpha_end) == (3e-4, 1e3, 1e4)
        assert (config.eta, config.reg_lambda, config.seed) == (1 / 2048, 1e-5, 0)
        assert config.max_new_tokens == 4096
    assert (gsm8k.prompts_per_step, gsm8k.completions, gsm8k.beta, gsm8k.steps) == (64, 4, 0, 348)
    assert (simplerl.prompts_per_step, simplerl.completions) == (256, 8)
    assert (simplerl.beta, simplerl.steps) == (1e-4, 150)
    assert (sft.steps, sft.batch_size, sft.learning_rate) == (400, 4, 5e-4)
    assert (sft.alpha_start, sft.alpha_end, sft.heldout_share) == (1e2, 1e3, 0.25)
    sdft = next(plan.read(ROOT / "recipes/paper/table4-bmt.yaml", {"output": "x"}).cells()).config()
    assert (sdft.learning_rate, sdft.alpha_start, sdft.alpha_end) == (5e-3, 1e2, 1e4)
    assert (sdft.reg_lambda, sdft.teacher_rate, sdft.prompts_per_step) == (0, 0.01, 32)
    assert (sdft.warmup, sdft.skip_tokens) == (0.1, 3)
    rates = {}
    for name in ("table1-llama-gsm8k-full", "table1-qwen-simplerl-full", "table4-full"):
        made = plan.read(ROOT / "recipes" / "paper" / f"{name}.yaml", {"output": "x"})
        rates[name] = next(made.cells()).config().learning_rate
    assert list(rates.values()) == [1e-6, 5e-7, 5e-5]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A tiny random Qwen2, with attention biases as in the real model."""
    folder = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def rows(path, made):
    path.write_text("\n".join(map(json.dumps, made)))
    return path


DRY = {"steps": 1, "max_new_tokens": 4, "calibration_prompts": 4, "eval_batch_size": 8}
DRY |= {"device": "cpu", "gradient_checkpointing": False, "max_length": 2048}
ONLINE = {"prompts_per_step": 2, "micro_batch": 2}


@pytest.mark.parametrize(
    ("recipe", "which"),
    [
        ("table1-llama-gsm8k-bmt", "llama"),
        ("table1-qwen-simplerl-bmt", "qwen"),
        ("table3-mmlu-pro-full", "llama"),
        ("table4-bmt", "qwen"),
    ],
)
def test_dry_runs_on_the_same_architecture(recipe, which, checkpoint, qwen, tmp_path):
    path = ROOT / "recipes" / "paper" / f"{recipe}.yaml"
    changes = {**DRY, "output": tmp_path / "out", "model": str(checkpoint)}
    sums = [{"question": f"{n} and 1?", "answer": f"So.\n#### {n + 1}"} for n in range(8)]
    if which == "qwen":
        changes["model"] = str(qwen)
    if "gsm8k" in recipe:
        data = f"gsm8k:{rows(tmp_path / 'g.jsonl', sums)}"
        changes |= {**ONLINE, "dataset": data, "heldout_dataset": data, "heldout": 2}
        changes |= {"completions": 2}
    elif "simplerl" in recipe:
        made = [{"problem": f"{n} and 1?", "answer": str(n + 1)} for n in range(8)]
        changes |= {**ONLINE, "dataset": f"math:{rows(tmp_path / 'm.jsonl', made)}"}
        # A set without its package or data is skipped; training needs neither.
        changes |= {"completions": 2, "reward": "number"}
    elif "mmlu" in recipe:
        made = [
            {"question": f"{n}?", "options": ["a", "b"], "answer": "A", "category": "law"}
            for n in range(12)
        ]
        place = rows(tmp_path / "p.jsonl", made)
        changes |= {"dataset": f"mmlu-pro:{place}?subject=law", "batch_size": 2}
    else:
        calls = [{"Action": "boil", "Action_Input": "{}"}]
        made = [
            {"prompt": f"Boil {n}.", "golden_answer": calls, "golden_response": ["Action: boil"]}
            for n in range(8)
        ]
        data = f"tools:{rows(tmp_path / 't.jsonl', made)}"
        changes |= {**ONLINE, "dataset": data, "heldout_dataset": data, "heldout": 2}
    [result] = run(plan.read(path, changes), Display(Console(file=io.StringIO())))
    assert result["method"] in ("bmt", "full")
    assert (result["score"] is None) == ("simplerl" in recipe)
    if "mmlu" in recipe:
        assert result["score"]["total"] == 3
    if "simplerl" in recipe:
        assert len(result["suites"]) == 6


def test_the_trainers_own_recipes_are_valid_settings():
    from bmt_trainer.comparison.plan import CONFIGS

    for path in (ROOT / "recipes").glob("*.yaml"):
        kind = CONFIGS.get(path.stem.partition("-")[0])
        if kind is None:
            continue
        values = {"dataset": "d", **read_yaml(path), "model": "m", "output": "o.bmt"}
        assert build(kind, values)
