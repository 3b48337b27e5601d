"""Before training: the row that is shown, rows left out or cut, and the model's context."""

from __future__ import annotations

import dataclasses
import io
import json

import bmt_core
import pytest
from bmt_trainer.console import Display
from bmt_trainer.data import sources
from bmt_trainer.errors import ConfigError, DataError
from bmt_trainer.methods import grpo, sdft, sft
from bmt_trainer.methods.config import GrpoConfig, SdftConfig, SftConfig
from bmt_trainer.models import load_tokenizer
from bmt_trainer.templates.chat_templates import template_digest
from rich.console import Console

from tests.support.tiny_model import TEMPLATE, byte_tokenizer

COMMON = {
    "heldout": 2,
    "steps": 1,
    "learning_rate": 0.01,
    "calibration_prompts": 4,
    "train_examples": 100,
    "max_new_tokens": 4,
    "checkpoint_every": 0,
    "device": "cpu",
}
ON_POLICY = {**COMMON, "validation": 0, "prompts_per_step": 2, "micro_batch": 2}


class Recorded:
    """A display that keeps what it shows."""

    def __init__(self):
        self.file = io.StringIO()
        self.display = Display(Console(file=self.file, width=300))

    @property
    def lines(self):
        return self.file.getvalue().splitlines()

    def at(self, part):
        return next(n for n, line in enumerate(self.lines) if part in line)


@pytest.fixture
def recorded():
    return Recorded()


def rows(path, lengths, answer="ok"):
    with path.open("w") as file:
        for n, length in enumerate(lengths):
            prompt = f"{n} ".ljust(length, "x")
            file.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")
    return str(path)


def small_context(checkpoint, tmp_path, context):
    """The checkpoint with another context in its config.json."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((checkpoint / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context}))
    return folder


def config_of(kind, checkpoint, dataset, tmp_path, **changes):
    common = COMMON if kind is SftConfig else ON_POLICY
    if kind is SftConfig:
        common = {**common, "batch_size": 2}
    if kind is GrpoConfig:
        common = {**common, "completions": 2}
    settings = {**common, "model": str(checkpoint), "dataset": dataset}
    return kind(**{**settings, "output": tmp_path / "m.bmt", **changes})


METHODS = {"sft": (SftConfig, sft), "grpo": (GrpoConfig, grpo), "sdft": (SdftConfig, sdft)}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_shows_a_row_before_the_base_answers(method, checkpoint, tmp_path, recorded):
    kind, module = METHODS[method]
    dataset = rows(tmp_path / "a.jsonl", [8] * 12, answer="the answer")
    module.train(config_of(kind, checkpoint, dataset, tmp_path), recorded.display)
    answers = recorded.at("evaluate ")
    if method == "sft":
        first = recorded.at("first example (")
        assert "10 training" in "\n".join(recorded.lines)
        text = "\n".join(recorded.lines[first:answers])
        assert "⟦t│h│e│·│a│n│s│w│e│r│<|im_end|>⟧" in text
    else:
        first = recorded.at("first prompt (")
    assert "a.jsonl, line" in recorded.lines[first]
    assert first < answers
    if method == "sdft":
        teacher = recorded.at("the teacher's prompt (")
        assert first < teacher < answers
        assert "the answer" in "\n".join(recorded.lines[teacher:answers])
    assert answers - first < 15


@pytest.mark.found
def test_examples_over_max_length_are_counted(checkpoint, tmp_path, recorded):
    dataset = rows(tmp_path / "a.jsonl", [8] * 9 + [300] * 3)
    config = config_of(SftConfig, checkpoint, dataset, tmp_path, heldout=0, max_length=200)
    _, made = sft.load(config, recorded.display)
    assert len(made) == 9
    assert "left out 3 of 12 examples of more than 200 tokens" in "\n".join(recorded.lines)


@pytest.mark.parametrize("choice", ["truncate-left", "truncate-right"])
def test_examples_over_max_length_are_cut_if_asked_for(choice, checkpoint, tmp_path, recorded):
    dataset = rows(tmp_path / "a.jsonl", [8] * 9 + [300] * 3)
    config = config_of(
        SftConfig, checkpoint, dataset, tmp_path, heldout=0, max_length=200, overlong=choice
    )
    _, made = sft.load(config, recorded.display)
    text = "\n".join(recorded.lines)
    if choice == "truncate-left":
        assert len(made) == 12
        assert "truncated 3 of 12" in text
    else:  # the answers are cut off
        assert len(made) == 9
        assert "left out 3 examples: nothing to learn is left by truncation" in text
    assert max(len(row["input_ids"]) for row in made) <= 200


def test_examples_over_max_length_are_an_error_if_asked_for(checkpoint, tmp_path, recorded):
    dataset = rows(tmp_path / "a.jsonl", [8, 8, 8, 300])
    config = config_of(
        SftConfig, checkpoint, dataset, tmp_path, heldout=0, max_length=200, overlong="error"
    )
    with pytest.raises(DataError, match=r"a\.jsonl, line 4.*max_length"):
        sft.load(config, recorded.display)


@pytest.mark.found
@pytest.mark.parametrize("method", ["grpo", "sdft"])
def test_prompts_over_max_length_are_counted(method, checkpoint, tmp_path, recorded):
    kind, module = METHODS[method]
    dataset = rows(tmp_path / "a.jsonl", [8] * 9 + [600] * 3)
    config = config_of(kind, checkpoint, dataset, tmp_path, heldout=0, max_length=512)
    _, made = module.load(config, recorded.display)
    assert len(made) == 9
    assert "left out 3 of 12 prompts of more than 512 tokens" in "\n".join(recorded.lines)


@pytest.mark.found
@pytest.mark.parametrize("method", METHODS)
def test_long_ones_are_replaced_by_the_rest_of_the_data(method, checkpoint, tmp_path, recorded):
    """Every other row is too long, and a step takes as many as are short."""
    kind, module = METHODS[method]
    dataset = rows(tmp_path / "a.jsonl", [8, 600] * 12)
    changes = {"batch_size": 6} if method == "sft" else {"prompts_per_step": 6}
    config = config_of(
        *(kind, checkpoint, dataset, tmp_path),
        **{"heldout": 4, "max_length": 400, "train_examples": 6, "calibration_prompts": 6},
        **changes,
    )
    loaded, made = module.load(config, recorded.display)
    assert len(made) == 6
    assert all(len(e.messages[0]["content"]) == 8 for e in loaded.split.train)
    [line] = [line for line in recorded.lines if line.startswith("left out ")]
    left_out, asked = [int(word) for word in line.split() if word.isdigit()][:2]
    assert asked - left_out == 6
    assert "more than 400 tokens" in line
    assert "a.jsonl, line" in line
    # The held-out examples are those of `bmt-train eval`.
    assert loaded.split.heldout == sources.load(dataset, heldout=4, train=0).heldout


@pytest.mark.found
def test_held_out_demonstrations_are_filtered_as_those_of_training(checkpoint, tmp_path, recorded):
    """The teacher reads no prompt beyond max_length; base and mask answer all held-out prompts."""
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for n in range(12):
            long = {"demonstration": "word " * 200} if n % 3 == 0 else {}
            file.write(json.dumps({"prompt": f"Say {n}.", "completion": f"{n}", **long}) + "\n")
    config = config_of(
        *(SdftConfig, small_context(checkpoint, tmp_path, 512), str(path), tmp_path),
        **{"heldout": 6, "max_length": 1024},
    )
    scores = sdft.train(config, recorded.display).metadata["scores"]
    long = sum("word" in e.demonstration for e in held(path) if e.demonstration)
    assert 0 < long < 6
    assert (scores["teacher"]["total"], scores["base"]["total"]) == (6 - long, 6)
    told = "\n".join(recorded.lines)
    assert f"teacher: left out {long} of 6 prompts of more than 512 tokens" in told
    assert f"left out {4 - long} of {6} prompts of more than 512 tokens" in told


def held(path):
    return sources.load(str(path), heldout=6, train=0).heldout


@pytest.mark.found
def test_demonstrations_that_leave_little_room_shorten_answers_in_a_line(
    checkpoint, tmp_path, recorded
):
    dataset = rows(tmp_path / "a.jsonl", [8] * 8, answer="w" * 280)
    model = small_context(checkpoint, tmp_path, 512)
    config = config_of(SdftConfig, model, dataset, tmp_path, max_length=1024, max_new_tokens=100)
    loaded, _ = sdft.load(config, recorded.display)
    [line] = [line for line in recorded.lines if line.startswith("max_new_tokens: ")]
    assert f"after {loaded.config.max_new_tokens} tokens, not 100" in line
    assert 3 < loaded.config.max_new_tokens < 100
    assert "a.jsonl, line" in line
    none = dataclasses.replace(config, skip_tokens=loaded.config.max_new_tokens)
    with pytest.raises(ConfigError, match=r"skip_tokens: \d+ leaves no .* max_new_tokens"):
        sdft.load(none, recorded.display)


@pytest.mark.found
@pytest.mark.parametrize("method", METHODS)
def test_answers_beyond_the_context_end_where_it_ends(method, checkpoint, tmp_path, recorded):
    """The default of 4,096 new tokens and a model of 512: only a reminder of transformers."""
    kind, module = METHODS[method]
    model = small_context(checkpoint, tmp_path, 512)
    dataset = rows(tmp_path / "a.jsonl", [8] * 8)
    config = config_of(kind, model, dataset, tmp_path, max_new_tokens=4096)
    loaded, _ = module.load(config, recorded.display)
    [line] = [line for line in recorded.lines if "max_new_tokens" in line]
    assert "512" in line
    assert "4,096" in line
    room = loaded.config.max_new_tokens
    assert 512 - 400 < room < 512
    assert f"{room:,}" in line


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_without_room_for_an_answer_is_named(method, checkpoint, tmp_path, recorded):
    kind, module = METHODS[method]
    model = small_context(checkpoint, tmp_path, 256)
    dataset = rows(tmp_path / "a.jsonl", [400] * 6)
    config = config_of(kind, model, dataset, tmp_path, max_new_tokens=4)
    with pytest.raises(DataError, match=r"a\.jsonl, line \d.*256"):
        module.load(config, recorded.display)


def test_max_length_beyond_the_context_is_the_context(checkpoint, tmp_path, recorded):
    model = small_context(checkpoint, tmp_path, 256)
    dataset = rows(tmp_path / "a.jsonl", [8] * 9 + [300] * 3)
    config = config_of(SftConfig, model, dataset, tmp_path, heldout=0)
    loaded, made = sft.load(config, recorded.display)
    assert len(made) == 9
    assert loaded.config.max_length == 256
    assert any("256" in line and "1,024" in line for line in recorded.lines)


def test_the_template_of_the_training_is_in_the_metadata(checkpoint, tmp_path, recorded):
    template = tmp_path / "t.jinja"
    template.write_text(TEMPLATE.replace("assistant\n", "bot{{ mood }}\n").replace("\n<", "<"))
    dataset = rows(tmp_path / "a.jsonl", [8] * 8)
    plain = config_of(SftConfig, checkpoint, dataset, tmp_path)
    own = sft.train(plain, recorded.display).metadata
    assert own["chat_template"] == template_digest(byte_tokenizer())
    assert (own["chat_template_kwargs"], own["end_of_turn"]) == ({}, "<|im_end|>")
    other = config_of(
        *(SftConfig, checkpoint, dataset, tmp_path),
        output=tmp_path / "n.bmt",
        chat_template=str(template),
        chat_template_kwargs='{"mood": "calm"}',
    )
    made = sft.train(other, recorded.display).metadata
    assert made["chat_template"] == template_digest(load_tokenizer(checkpoint, str(template)))
    assert made["chat_template"] != own["chat_template"]
    assert made["chat_template_kwargs"] == {"mood": "calm"}
    assert any("botcalm" in line for line in recorded.lines)
    assert bmt_core.load(tmp_path / "n.bmt").metadata == made


@pytest.mark.parametrize("method", METHODS)
def test_unused_arguments_of_the_template_are_refused(method, checkpoint, tmp_path, recorded):
    kind, module = METHODS[method]
    dataset = rows(tmp_path / "a.jsonl", [8] * 8)
    config = config_of(
        kind, checkpoint, dataset, tmp_path, chat_template_kwargs={"enable_thinkin": False}
    )
    with pytest.raises(ConfigError, match="enable_thinkin"):
        module.load(config, recorded.display)
