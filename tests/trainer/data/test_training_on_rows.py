"""Training and evaluation on rows of all kinds: what the model is given, and what is refused."""

from __future__ import annotations

import io
import json

import pytest
from bmt_trainer.console import Display
from bmt_trainer.data.encoding import Encoder
from bmt_trainer.data.examples import Example, with_shots, with_system
from bmt_trainer.data.row_formats import example_of
from bmt_trainer.errors import DataError
from bmt_trainer.evaluation.generate import generate, stop_at_end_of_turn
from bmt_trainer.evaluation.graders import find
from bmt_trainer.evaluation.score import require_answers
from bmt_trainer.methods import grpo, sdft, sft
from bmt_trainer.methods.config import GrpoConfig, SdftConfig, SftConfig
from bmt_trainer.methods.rollouts.local import eos_token_ids
from bmt_trainer.methods.sdft import teacher_example
from bmt_trainer.rewards.find import find as find_reward
from rich.console import Console

from tests.support.tiny_model import byte_tokenizer, tiny_llama

USER = {"role": "user", "content": "q"}
REPLY = {"role": "assistant", "content": "a"}
CALL = {"id": "c1", "function": {"name": "f", "arguments": '{"p": 1}'}}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "F."}}]


def write(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(method, checkpoint, folder, rows, **changes):
    """Train for two steps on the rows; the lines of the display, and the mask."""
    config = {"sft": SftConfig, "grpo": GrpoConfig, "sdft": SdftConfig}[method.__name__[20:]]
    sizes = {"batch_size": 2} if config is SftConfig else {"prompts_per_step": 2, "micro_batch": 2}
    if config is not SftConfig:
        sizes |= {"validation": 0}
    shown = io.StringIO()
    settings = {
        "model": str(checkpoint),
        "dataset": write(folder, rows),
        "output": folder / "m.bmt",
        "heldout": 0,
        "steps": 2,
        "calibration_prompts": 4,
        "max_new_tokens": 4,
        "checkpoint_every": 0,
        "device": "cpu",
        **sizes,
        **changes,
    }
    mask = method.train(config(**settings), Display(Console(file=shown, width=400)))
    return shown.getvalue(), mask


def test_sft_on_text_and_on_tokens(checkpoint, tmp_path):
    rows = [{"text": f"line {n}"} for n in range(4)]
    rows += [{"input_ids": [5, 6, 7 + n], "labels": [-100, 6, 7 + n]} for n in range(4)]
    _, mask = run(sft, checkpoint, tmp_path, rows, train_examples=8)
    assert mask.metadata["train_examples"] == 8
    with pytest.raises(DataError, match=r"rows\.jsonl, line \d: text and tokens .*heldout: 0"):
        run(sft, checkpoint, tmp_path, rows, heldout=2, overwrite=True)


@pytest.mark.found
def test_sft_on_tool_calls_learns_the_calls_and_grades_them(checkpoint, tmp_path):
    message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    rows = [{"messages": [{**USER, "content": f"q{n}"}, message], "tools": TOOLS} for n in range(8)]
    with pytest.raises(DataError, match=r"line \d: .*function\.name: the chat template leaves"):
        run(sft, checkpoint, tmp_path, rows)
    shown, mask = run(sft, checkpoint, tmp_path, rows, heldout=2, chat_template="tools")
    # The tiny model says something, and never the call.
    assert mask.metadata["scores"]["base"]["exact"] == 0
    assert '"name":·"f"' in shown.replace("│", "")


def test_sft_says_what_a_template_changes_and_what_of_a_pair_is_learnt(checkpoint, tmp_path):
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(4)]
    shown, mask = run(sft, checkpoint, tmp_path, rows)
    assert "the chosen answer is learnt" in shown
    assert mask.metadata["train_examples"] == 4


def test_sft_learns_the_last_turn_alone_if_it_is_set(checkpoint, tmp_path):
    last = {"role": "assistant", "content": "b"}
    rows = [{"messages": [{**USER, "content": f"q{n}"}, REPLY, USER, last]} for n in range(4)]
    for learn, turns in (("all", 2), ("last", 1)):
        shown, _ = run(sft, checkpoint, tmp_path, rows, learn=learn, overwrite=True)
        assert shown.count("⟦") - shown.count("between ⟦") == turns


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([{"prompt": f"q{n}"} for n in range(4)], r"line \d: the row has no completion"),
        ([{"prompt": "q", "completion": "a", "system": "\udc80"}] * 4, "line 1: system"),
    ],
)
def test_sft_refuses_rows_by_name(checkpoint, tmp_path, rows, part):
    with pytest.raises(DataError, match=part):
        run(sft, checkpoint, tmp_path, rows)


CALLED = [USER, {**REPLY, "tool_calls": [CALL]}, {"role": "tool", "content": "r"}]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "q"}, "no answer that the grader words"),
        ({"text": "t"}, "text and tokens have no prompt"),
    ],
)
def test_grpo_refuses_rows_that_rollouts_cannot_use(checkpoint, tmp_path, row, part):
    rows = [{**row, "id": n} for n in range(4)]
    changes = {"completions": 2, "chat_template": "tools", "live_set": "off"}
    with pytest.raises(DataError, match=rf"line \d: .*{part}"):
        run(grpo, checkpoint, tmp_path, rows, **changes)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "q"}, "neither demonstration nor completion"),
        ({"text": "t"}, "text or tokens"),
        ({"messages": [*CALLED, REPLY], "tools": TOOLS}, "tools"),
        (
            {"prompt": [USER, {"role": "system", "content": "s"}], "completion": "a"},
            "of the system",
        ),
    ],
)
def test_sdft_refuses_rows_without_a_users_turn_to_fill(row, part):
    with pytest.raises(DataError, match=f"line 7: .*{part}"):
        teacher_example(example_of(row, "line 7"), "{prompt}|{demonstration}")


def test_sdft_fills_the_last_turn_of_a_longer_chat(checkpoint, tmp_path):
    row = {"messages": [USER, REPLY, {"role": "user", "content": "r"}, REPLY]}
    taught = teacher_example(example_of(row, "x"), "{prompt}|{demonstration}")
    assert [m["content"] for m in taught.prompt] == ["q", "a", "r|a"]
    rows = [
        {"messages": [*row["messages"][:2], {**USER, "content": f"r{n}"}, REPLY]} for n in "abcd"
    ]
    _, mask = run(sdft, checkpoint, tmp_path, rows)
    assert mask.metadata["train_examples"] == 4


@pytest.mark.found
def test_answers_end_where_the_template_ends_turns_whatever_the_checkpoint_says():
    model, tokenizer = tiny_llama(), byte_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end not in eos_token_ids(model, tokenizer)
    line = stop_at_end_of_turn(model, tokenizer)
    assert "'<|im_end|>'" in line
    assert f"[{end}]" in line
    assert end in eos_token_ids(model, tokenizer)
    assert stop_at_end_of_turn(model, tokenizer) is None
    # A model that says nothing else than the end of a turn.
    model.lm_head.weight = model.lm_head.weight.__class__(model.lm_head.weight.clone())
    model.lm_head.weight.data.zero_()
    model.model.norm.register_forward_hook(lambda *_: _[2].abs() + 1)
    model.lm_head.weight.data[end] = 1.0
    ids = []
    model.register_forward_hook(lambda *_: ids.append(1))
    generate(model, tokenizer, [Example((USER,), "")], max_new_tokens=6, batch_size=1)
    assert len(ids) == 2  # the prompt's beginning, and one step


@pytest.mark.parametrize("given", [0, None])
def test_answers_end_at_the_tokenizers_eos_as_on_a_server(given):
    """The checkpoint's generation settings name another token, or none."""
    model, tokenizer = tiny_llama(), byte_tokenizer()
    model.generation_config.eos_token_id = given
    assert stop_at_end_of_turn(model, tokenizer) is None  # a server ends answers there by itself
    stops = model.generation_config.eos_token_id
    assert stops == [*([] if given is None else [given]), tokenizer.eos_token_id]
    tokenizer.chat_template = None
    model.generation_config.eos_token_id = given
    assert stop_at_end_of_turn(model, tokenizer) is None
    assert model.generation_config.eos_token_id == stops


def test_a_template_that_ends_turns_with_eos_changes_nothing():
    model, tokenizer = tiny_llama(), byte_tokenizer()
    before = model.generation_config.eos_token_id
    assert stop_at_end_of_turn(model, tokenizer) is None
    assert model.generation_config.eos_token_id == before


def test_a_system_message_shifts_the_turns_that_are_learnt():
    last = {"role": "assistant", "content": "b"}
    example = example_of({"messages": [USER, REPLY, USER, last]}, "line 7")
    [encoded] = Encoder(byte_tokenizer()).encode(with_system(example, "s"))
    assert [text for text, learnt in encoded.pieces if learnt] == ["a<|im_end|>", "b<|im_end|>"]
    assert encoded.pieces[0][0].startswith("<|im_start|>system\ns<|im_end|>")
    with pytest.raises(DataError, match="line 7: system"):
        with_system(example_of({"text": "t"}, "line 7"), "s")


def test_few_shots_keep_tools_and_calls():
    rows = [{"messages": [USER, {**REPLY, "tool_calls": [CALL]}], "tools": TOOLS}] * 2
    one, two = (example_of(row, "x") for row in rows)
    shown = with_shots(one, [two])
    assert shown.tools == one.tools
    assert shown.messages[1]["tool_calls"]


def test_graders_need_an_answer_and_rewards_of_a_users_own_do_not(tmp_path):
    path = tmp_path / "r.py"
    path.write_text("def reward(completion, answer):\n    return 1.0\n")
    [example] = [example_of({"prompt": "q"}, "line 7")]
    with pytest.raises(DataError, match=r"line 7: .*answer"):
        require_answers([example], find("words"), "fix")
    require_answers([example], find_reward(f"{path}:reward"), "fix")


@pytest.mark.found
@pytest.mark.parametrize(("completion", "answer"), [("", "a"), ("a", ""), ("", ""), ("!", "a")])
def test_leniency_never_finds_nothing_in_something(completion, answer):
    assert not find("words").lenient(completion, answer)
    assert find("words").lenient("?", "?")
