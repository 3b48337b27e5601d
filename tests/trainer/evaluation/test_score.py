"""Scores of answers, and greedy generation."""

from dataclasses import replace

import pytest
import torch
from bmt_trainer.data.encoding import render
from bmt_trainer.data.examples import Example
from bmt_trainer.evaluation.generate import generate
from bmt_trainer.evaluation.graders import is_exact, is_lenient
from bmt_trainer.evaluation.score import Score, best_guess, evaluate, grade
from bmt_trainer.models import load_model, load_tokenizer


def user(text):
    return ({"role": "user", "content": text},)


@pytest.mark.parametrize(
    ("text", "answer", "exact", "lenient"),
    [
        ("3, 2, 1", "3, 2, 1", True, True),
        (" 3, 2, 1\n", "3, 2, 1", True, True),
        ("The order is 3, 2, 1.", "3, 2, 1", False, True),
        ("[3, 2, 1]", "3, 2, 1", False, True),
        ("1. river\n2. **King**", "river, king", False, True),
        ("13, 2, 1", "3, 2, 1", False, False),
        ("3, 2, 4, 1", "3, 2, 1", False, False),
        ("king, river", "river, king", False, False),
        ("", "a", False, False),
    ],
)
def test_exact_and_lenient(text, answer, exact, lenient):
    assert (is_exact(text, answer), is_lenient(text, answer)) == (exact, lenient)


def test_grade_and_best_guess():
    examples = [Example(user(str(i)), a) for i, a in enumerate("aab")]
    assert grade(["a", "the a", "x"], examples) == Score(1, 2, 3)
    assert best_guess(examples, examples) == Score(2, 2, 3)
    assert best_guess([], examples) == Score(0, 0, 3)
    assert Score(1, 2, 4).to_json()["accuracy"] == 0.25


def test_padded_batches_generate_as_single_prompts(checkpoint):
    model, tokenizer = load_model(checkpoint).float(), load_tokenizer(checkpoint)
    examples = [Example(user("x" * n), "") for n in (3, 40, 1, 17, 25)]
    with torch.no_grad():
        alone = []
        for example in examples:
            ids = torch.tensor([render(tokenizer, example)])
            for _ in range(12):
                token = int(model(ids).logits[0, -1].argmax())
                if token == tokenizer.eos_token_id:
                    break
                ids = torch.cat([ids, torch.tensor([[token]])], 1)
            new = ids[0, len(render(tokenizer, example)) :]
            alone.append(tokenizer.decode(new, skip_special_tokens=True))
    seen = []
    texts = generate(
        model, tokenizer, examples, max_new_tokens=12, batch_size=2, advance=seen.append
    )
    assert texts == alone
    assert sum(seen) == 5
    answers = [replace(e, answer=t) for e, t in zip(examples, texts, strict=True)]
    assert evaluate(model, tokenizer, answers, max_new_tokens=12).exact == 5


def test_a_frozen_head_multiplies_all_rows_in_one_product(checkpoint):
    """On a CPU torch copies a frozen head's weight for each row if the rows are a view."""
    model, tokenizer = load_model(checkpoint).requires_grad_(False), load_tokenizer(checkpoint)
    examples = [Example(user(text), "") for text in ("a", "bc", "def")]
    with torch.profiler.profile(record_shapes=True) as seen:
        generate(model, tokenizer, examples, max_new_tokens=2, batch_size=3)
    batched = [event.input_shapes for event in seen.events() if event.name == "aten::bmm"]
    assert batched, "rotary embeddings use bmm; if not, the event has another name"
    head_inputs = [rows for rows, weight in batched if model.config.vocab_size in weight]
    assert all(rows[0] == 1 for rows in head_inputs), head_inputs


def test_generation_is_greedy_against_the_checkpoints_settings(checkpoint):
    tokenizer, models = load_tokenizer(checkpoint), [load_model(checkpoint) for _ in range(2)]
    recommended = {"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1}
    recommended |= {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1}
    models[1].generation_config.update(**recommended)
    examples = [Example(user("aaaa"), ""), Example(user("b"), "")]
    answers = [generate(m, tokenizer, examples, max_new_tokens=16, batch_size=2) for m in models]
    assert answers[0] == answers[1]
