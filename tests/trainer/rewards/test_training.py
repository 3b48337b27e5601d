"""GRPO with rewards of users on a tiny model: which mask is written, errors, warnings, settings."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
import torch
from bmt_trainer.cli.main import app
from bmt_trainer.console import Display
from bmt_trainer.errors import ConfigError, ResumeError, RewardError
from bmt_trainer.methods import grpo, sdft, sft
from bmt_trainer.methods.config import GrpoConfig, SdftConfig, SftConfig
from rich.console import Console
from typer.testing import CliRunner

from tests.support.tiny_model import byte_tokenizer, tiny_llama

STEPS = 6
REWARDS = """
import math
def right(completion, answer): return 0.9 * (completion.strip() == answer)
def letters(completion, answer): return min(0.9, sum(map(str.isalpha, completion)) / 40)
def cost(completion, answer): return -sum(ord(c) % 7 for c in completion)
def length(completion, answer): return len(completion) + 1
def small(completion, answer): return 1e-5 * (len(completion) + 1)
def nothing(completion, answer): return 0
def same(completions): return [0.25] * len(completions)
class Spread:
    def __init__(self): self.calls = 0
    def __call__(self, completions, completion_ids, **kw):
        self.calls += 1
        return [sum(ids) % 11 / 11 for ids in completion_ids]
"""


def row(n):
    text = f"Spell {n:03d}"
    return {"prompt": text, "completion": "abc"[n % 3], "level": n, "mixed": [n, "x"][n % 2]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny Llama whose answers depend on its gates: the shared one's do not."""
    folder = tmp_path_factory.mktemp("loud")
    model = tiny_llama()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "mlp" in name or "self_attn" in name:
                weight.mul_(12)
    model.to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [row(n) for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def settings(checkpoint, tmp_path, rows):
    (tmp_path / "r.py").write_text(REWARDS)

    def made(reward, **changes):
        return GrpoConfig(
            **{
                "model": str(checkpoint),
                "dataset": str(rows),
                "output": tmp_path / "m.bmt",
                "heldout": 6,
                "validation": 6,
                "validate_every": 1,
                "steps": STEPS,
                "prompts_per_step": 2,
                "completions": 4,
                "micro_batch": 8,
                "learning_rate": 0.1,
                "eta": 0.05,
                "calibration_prompts": 8,
                "max_new_tokens": 6,
                "max_length": 128,
                "checkpoint_every": 0,
                "reward": f"{tmp_path}/{reward}" if ".py:" in reward else reward,
                "device": "cpu",
                **changes,
            }
        )

    return made


def trained(config):
    """(mask, its validations, lines that the run said)."""
    out = io.StringIO()
    mask = grpo.train(config, Display(Console(file=out, width=10_000)))
    path = config.output.with_name(config.output.name + ".history.json")
    return mask, json.loads(path.read_text()), out.getvalue()


@pytest.mark.found
@pytest.mark.parametrize("name", ["letters", "cost", "length", "small"])
def test_the_mask_of_the_best_mean_reward_is_written_and_eval_agrees(settings, name):
    config = settings(f"r.py:{name}", validation=16)
    mask, history, _ = trained(config)
    means = [v["mean"] for v in history["validation"]]
    assert len(means) == STEPS
    assert len(set(means)) > 1, "the test needs validations that differ"
    best = max(range(STEPS), key=lambda i: (means[i], i))
    assert mask.metadata["step"] == best + 1
    assert history["validation"][best]["closed_gates"] == mask.zeros
    ran = CliRunner().invoke(
        app,
        [
            *("eval", "--model", config.model, "--dataset", config.dataset),
            *("--mask", str(config.output), "--heldout", "6", "--grader", config.reward),
            *("--max-new-tokens", "6", "--engine", "transformers", "--device", "cpu", "--json"),
        ],
    )
    assert ran.exit_code == 0, ran.output
    result, trained_as = json.loads(ran.stdout), mask.metadata["scores"]["mask"]
    assert result["mean"] == pytest.approx(trained_as["mean"], rel=1e-9)
    assert result["mean_interval95"] == pytest.approx(trained_as["mean_interval95"], rel=1e-9)
    low, high = result["mean_interval95"]
    assert low <= result["mean"] <= high


@pytest.mark.found
def test_equal_validations_take_the_later_mask_and_are_warned_of(settings):
    mask, history, said = trained(settings("r.py:nothing"))
    assert {v["mean"] for v in history["validation"]} == {0}
    assert mask.metadata["step"] == STEPS
    [validations] = [w for w in mask.metadata["warnings"] if "validations" in w]
    assert "6 validations have the same mean reward, 0" in validations
    assert said.count("validations have the same mean reward") == 1
    assert said.index("3 validations have the same") < said.index("step 4:")


@pytest.mark.found
def test_flat_rewards_and_cut_off_answers_are_warned_of_while_the_run_goes_on(settings):
    mask, _, said = trained(settings("r.py:same", steps=7, reg_lambda=10.0))
    lines = [line for line in said.splitlines() if line.startswith("warning: steps")]
    assert [line for line in lines if "no group of 4 answers had different rewards" in line]
    assert [line for line in lines if "cut off at max_new_tokens 6; raise it" in line]
    kept = [f"warning: {w}" for w in mask.metadata["warnings"] if w.startswith("steps")]
    assert lines == kept
    assert len(lines) == len(set(lines))
    assert said.index("warning: steps 1 to 5") < said.index("step 6:")


def test_a_run_that_learns_is_not_warned_of(settings):
    mask, _, said = trained(settings("r.py:Spread", max_new_tokens=6, validation=0))
    assert "no group" not in said
    assert not [w for w in mask.metadata.get("warnings", []) if "does not move" in w]


ALL = """
import asyncio
seen = []
def named(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, answer, level,
          mixed, **kwargs):
    seen.append((trainer_state.global_step, prompts, completions, answer, level, mixed, kwargs))
    log_extra("level", level)
    log_metric("levels", sum(level))
    return [len(ids) / 6 for ids in completion_ids]
async def later(completion_ids, level, **kwargs):
    await asyncio.sleep(0)
    return [None if x % 2 else sum(ids) % 7 / 7 for ids, x in zip(completion_ids, level)]
"""


@pytest.mark.found
def test_training_passes_trls_arguments_and_the_rows_own_columns(settings, tmp_path):
    (tmp_path / "all.py").write_text(ALL)
    names = [f"{tmp_path}/all.py:named?weight=0.5", f"{tmp_path}/all.py:later"]
    config = settings("words", steps=2, heldout=0, validation=0)
    config = dataclasses.replace(config, reward=names)
    assert config.reward == " + ".join(names)
    functions = []
    make = grpo.trl_functions

    def kept(*given):
        functions.extend(make(*given))
        return functions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "trl_functions", kept)
        _, history, _ = trained(config)
    seen = functions[0]._reward.function.__globals__["seen"]
    assert [step for step, *_ in seen] == [0, 0, 1]  # tried, then two steps
    for _, prompts, completions, answer, level, mixed, kwargs in seen[1:]:
        assert len(prompts) == 8
        assert all(c[0]["role"] == "assistant" for c in completions)
        for prompt, right, number, value in zip(prompts, answer, level, mixed, strict=True):
            assert prompt[-1]["content"] == f"Spell {number:03d}"
            assert right == "abc"[number % 3]
            assert value == [number, "x"][number % 2]  # of mixed types, as they are in the file
        assert "row" not in kwargs
    steps = history["steps"]
    assert {"rewards/named/mean", "rewards/later/mean", "levels"} <= steps[0].keys()


@pytest.mark.found
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return float('nan')", "nan, expected a finite number"),
        ("return None", "None, expected a number"),
        ("raise ValueError('lost')", r"ValueError: lost, late.py line \d"),
    ],
)
def test_a_reward_that_fails_later_names_itself_the_step_and_the_answer(
    settings, tmp_path, body, message
):
    (tmp_path / "late.py").write_text(
        "calls = 0\ndef late(completion, answer):\n    global calls\n    calls += 1\n"
        f"    if calls > 8 + 8:\n        {body}\n    return calls % 3\n"
    )
    with pytest.raises(RewardError, match=message) as raised:
        trained(settings("late.py:late", heldout=0, validation=0))
    assert f"{tmp_path}/late.py:late" in str(raised.value)
    assert "at step 2; completion: '" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.found
@pytest.mark.parametrize("place", ["rollouts", "validation"])
def test_a_reward_that_fails_is_mended_and_the_run_goes_on(settings, tmp_path, place):
    code = tmp_path / "late.py"
    now = "trainer_state.global_step == 3" if place == "rollouts" else "seen == 3 and not training"
    body = """
seen = 0
def late(completions, trainer_state):
    global seen
    training = trainer_state.global_step > 0
    seen = max(seen, trainer_state.global_step + training)
    if {now}:
        raise ValueError("lost")
    return [float(len(str(c)) % 5) for c in completions]
"""
    code.write_text(body.format(now=now))
    config = settings("late.py:late", checkpoint_every=100)
    out = io.StringIO()
    with pytest.raises(RewardError, match="ValueError: lost"):
        grpo.train(config, Display(Console(file=out, width=10_000)))
    assert "a reward failed; a checkpoint of step 3 is written" in out.getvalue()
    code.write_text(body.format(now="False"))
    config = dataclasses.replace(config, resume=True)
    with pytest.raises(ResumeError, match=r"another reward: .*--accept-changes"):
        trained(config)
    mask, history, said = trained(dataclasses.replace(config, accept_changes=True))
    assert "resuming at step 3 of 6" in said
    assert "reward: changed after step 3" in said
    assert mask.metadata["changes"] == [{"changed": ["reward"], "after_step": 3}]
    assert "accept_changes" not in mask.metadata["config"]
    assert [step["step"] for step in history["steps"]] == [1, 2, 3, 4, 5, 6]
    assert [v["step"] for v in history["validation"]] == [3, 4, 5, 6]  # by the mended one alone
    assert {"base", "mask"} <= mask.metadata["scores"].keys()


def test_a_reward_of_another_length_later(settings, tmp_path):
    (tmp_path / "late.py").write_text(
        "def late(completions, trainer_state, prompts):\n"
        "    short = trainer_state.global_step == 1\n"
        "    return [float(i) for i in range(len(completions) - short)]\n"
    )
    with pytest.raises(RewardError, match="7 values for 8 completions, at step 2"):
        trained(settings("late.py:late", heldout=0, validation=0))


@pytest.mark.found
@pytest.mark.parametrize("method", ["grpo", "sft", "sdft"])
def test_a_wrong_reward_is_refused_before_anything_is_generated(
    settings, tmp_path, monkeypatch, method
):
    path = tmp_path / "wrong.py"
    path.write_text("def wrong(completion, answer): return None\n")

    def generated(*_, **__):
        raise AssertionError("the model answered")

    monkeypatch.setattr("bmt_trainer.evaluation.score.generate", generated)
    config = settings("words")
    common = {"model": config.model, "dataset": config.dataset, "output": config.output}
    common |= {"heldout": 6, "device": "cpu", "steps": 2}
    more = {"prompts_per_step": 4, "validation": 4}
    wrong = f"{path}:wrong"
    run = {
        "grpo": lambda: trained(dataclasses.replace(config, reward=wrong)),
        "sft": lambda: sft.train(SftConfig(**common, grader=wrong)),
        "sdft": lambda: sdft.train(SdftConfig(**common, **more, grader=wrong)),
    }[method]
    with pytest.raises(ConfigError, match=r"wrong\.py:wrong: returned None"):
        run()


def test_overlong_penalty_and_truncated_answers(settings):
    config = settings("words", overlong_penalty=3, mask_truncated_completions=True, steps=2)
    mask, history, _ = trained(config)
    assert mask.metadata["config"]["overlong_penalty"] == 3
    name = "rewards/get_soft_overlong_punishment/mean"
    assert all(-1 <= step[name] <= 0 for step in history["steps"])
    assert min(v["mean"] for v in history["validation"]) >= -1
    text = (
        "words + trl.rewards.get_soft_overlong_punishment?max_completion_len=6&soft_punish_cache=3"
    )
    ran = CliRunner().invoke(
        app,
        [
            *("eval", "--model", config.model, "--dataset", config.dataset, "--json"),
            *("--mask", str(config.output), "--heldout", "6", "--grader", text),
            *("--max-new-tokens", "6", "--engine", "transformers", "--device", "cpu"),
        ],
    )
    assert json.loads(ran.stdout)["mean"] == pytest.approx(mask.metadata["scores"]["mask"]["mean"])
    with pytest.raises(ConfigError, match="overlong_penalty: 7 exceeds"):
        settings("words", overlong_penalty=7)


def test_sampling_settings_reach_rollouts(settings, monkeypatch):
    seen = []
    sample = grpo.HardRollouts.sampled.__globals__["sample"]

    def spying(*given, **options):
        seen.append({k: options[k] for k in ("top_p", "top_k", "min_p", "temperature")})
        return sample(*given, **options)

    monkeypatch.setitem(grpo.HardRollouts.sampled.__globals__, "sample", spying)
    changes = {"top_p": 0.5, "top_k": 7, "min_p": 0.1, "temperature": 0.8}
    trained(settings("r.py:Spread", steps=1, heldout=0, validation=0, **changes))
    assert seen == [changes]
    for wrong in ({"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"min_p": 2}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            settings("words", **wrong)
