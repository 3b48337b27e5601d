"""Settings and prompts that could have no effect, found before a weight is loaded."""

from __future__ import annotations

import io
import json

import pytest
from bmt_trainer.console import Display
from bmt_trainer.errors import ConfigError, DataError
from bmt_trainer.methods import grpo, pipeline, sdft, sft
from bmt_trainer.methods.config import TEACHER_PROMPT, GrpoConfig, SdftConfig, SftConfig
from bmt_trainer.rewards.find import find
from rich.console import Console

METHODS = {"sft": (SftConfig, sft), "grpo": (GrpoConfig, grpo), "sdft": (SdftConfig, sdft)}
SMALL = {
    **{"heldout": 2, "steps": 1, "calibration_prompts": 4, "max_new_tokens": 8},
    **{"checkpoint_every": 0, "device": "cpu"},
}
ON_POLICY = {**SMALL, "validation": 0, "prompts_per_step": 2, "micro_batch": 2}


def made(method, checkpoint, dataset, tmp_path, **changes):
    kind, module = METHODS[method]
    common = SMALL if method == "sft" else ON_POLICY
    more = {"completions": 2} if method == "grpo" else {}
    settings = {**common, **more, "model": str(checkpoint), "dataset": str(dataset)}
    config = kind(**{**settings, "output": tmp_path / "m.bmt", **changes})
    return config, module


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Say {n}.", "completion": f"{n}"} for n in range(12)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.found
@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("sdft", {"skip_tokens": 100, "max_new_tokens": 8}, r"skip_tokens: 100 .*max_new_tokens 8"),
        ("sdft", {"skip_tokens": 8, "max_new_tokens": 8}, r"skip_tokens: 8 .*max_new_tokens 8"),
        ("sdft", {"max_new_tokens": 1}, r"skip_tokens: 3 .*max_new_tokens 1"),
        ("sdft", {"teacher_prompt": "{prompt!r:>10} {demonstration}"}, "teacher_prompt: .*!r"),
        ("sdft", {"teacher_prompt": "{prompt!s} {demonstration}"}, "teacher_prompt"),
        ("sdft", {"teacher_prompt": "{prompt} {demonstration:>9}"}, "teacher_prompt"),
        ("sdft", {"teacher_prompt": "{prompt.x} {demonstration}"}, r"teacher_prompt: .*prompt\.x"),
        ("sdft", {"teacher_prompt": "{prompt[0]} {demonstration}"}, "teacher_prompt"),
        ("sdft", {"teacher_prompt": "{} {prompt} {demonstration}"}, "teacher_prompt"),
        ("sdft", {"teacher_prompt": "{prompt} {demonstration} {privileged_context}"}, "doubled"),
        ("sdft", {"teacher_prompt": "{prompt {demonstration}"}, "teacher_prompt"),
        ("grpo", {"top_k": 1}, "top_k: 1 leaves one token"),
        ("grpo", {"min_p": 1.0}, "min_p: 1.0 leaves one token"),
        ("grpo", {"completions": 1}, "completions: 1 is below 2"),
        ("grpo", {"temperature": 0}, "temperature: 0.0 must be above 0"),
        ("grpo", {"max_tool_calling_iterations": 3}, "max_tool_calling_iterations: 3 .*nothing"),
        ("grpo", {"heldout_dataset": "x.jsonl", "heldout": 0}, "heldout_dataset: x.*heldout 0"),
        ("sdft", {"heldout_dataset": "x.jsonl", "heldout_share": 0.5}, "heldout_share: 0.5"),
        *((name, {"learning_rate": 0}, "learning_rate: 0.0 must be above") for name in METHODS),
        *((name, {"lean": "auto", "heldout": 0}, "lean: auto .*heldout 0") for name in METHODS),
    ],
)  # fmt: skip
def test_settings_without_effect_are_refused(method, changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        made(method, tmp_path, tmp_path / "rows.jsonl", tmp_path, **changes)


def test_rewards_that_weigh_nothing_are_refused():
    for text in ("words?weight=0", "words?weight=0 + number?weight=0.0"):
        with pytest.raises(ConfigError, match="weight 0"):
            find(text)
    assert find("words?weight=0 + number").weights == [0, 1]


@pytest.mark.parametrize("text", [TEACHER_PROMPT, "{{demonstration}} {prompt} {demonstration}}}"])
def test_the_teachers_prompt_is_the_same_for_the_trainer_and_its_library(text, tmp_path):
    config, _ = made("sdft", tmp_path, tmp_path, tmp_path, teacher_prompt=text)
    ours = config.template.format(prompt="{p}", demonstration="{d}")
    assert config.template_of("other").format(prompt="{p}", other="{d}") == ours


SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Say 1."}
PREFILL = {"role": "assistant", "content": "The number"}


@pytest.mark.found
@pytest.mark.parametrize("method", ["grpo", "sdft"])
@pytest.mark.parametrize("last", [PREFILL, SYSTEM], ids=["assistant", "system"])
@pytest.mark.parametrize("heldout", [False, True])
def test_last_turns_that_ask_nothing_are_named(
    method, last, heldout, checkpoint, dataset, tmp_path, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(pipeline.models, "load_model", never)
    odd = tmp_path / "odd.jsonl"
    rows = [{"prompt": [USER, last], "completion": f"{n}"} for n in range(3)]
    rows = [{**r, "prompt": [SYSTEM, {**USER, "content": f"{n}"}, *r["prompt"][1:]]}
            for n, r in enumerate(rows)]  # fmt: skip
    odd.write_text("\n".join(map(json.dumps, rows)))
    source, changes = (dataset, {"heldout_dataset": str(odd)}) if heldout else (odd, {"heldout": 0})
    config, module = made(method, checkpoint, source, tmp_path, **changes)
    with pytest.raises(DataError, match=rf"odd\.jsonl, line \d.*{last['role']}"):
        module.load(config, Display(Console(file=io.StringIO())))


@pytest.mark.parametrize(
    ("method", "changes", "line"),
    [
        ("sft", {"batch_size": 64}, "a step takes 64 examples"),
        ("grpo", {}, "select: best chooses by validations, and there are none"),
        ("grpo", {"reward": "R.py:f", "reading": "lenient"}, "reading: R.py:f has no lenient"),
    ],
)
def test_settings_of_little_effect_are_told(
    method, changes, line, checkpoint, dataset, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "R.py").write_text("def f(completion, answer): return len(completion)\n")
    config, module = made(method, checkpoint, dataset, tmp_path, **changes)
    told = io.StringIO()
    module.load(config, Display(Console(file=told, width=300)))
    assert line in told.getvalue()


def test_one_step_of_sdft_learns(checkpoint, dataset, tmp_path):
    """The warm-up's first rate is 0, so it may not take the only step."""
    changes = {"learning_rate": 0.01, "heldout": 0, "max_new_tokens": 4}
    config, module = made("sdft", checkpoint, dataset, tmp_path, **changes)
    module.train(config, Display(Console(file=io.StringIO())))
    history = json.loads((tmp_path / "m.bmt.history.json").read_text())
    assert [step["learning_rate"] for step in history["steps"]] == [0.01]
