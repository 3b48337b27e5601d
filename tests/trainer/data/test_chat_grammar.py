"""Chats drawn from a grammar: the chosen turns are learnt exactly, or row and field are named."""

from __future__ import annotations

from random import Random

import pytest
from bmt_trainer.data.encoding import Encoder
from bmt_trainer.data.row_formats import example_of
from bmt_trainer.errors import DataError

from tests.support.chats.grammar import draw
from tests.support.chats.templates import FAMILIES, tokenizer_of

DRAWS = {"chatml": 400, "chatml-tools": 600, "llama": 400, "gemma": 300, "qwen": 400, "phi": 100}
DRAWS["vicuna"] = 100


def encoded(encoder, row, location):
    """The training rows of a row, or the error's text."""
    try:
        return encoder.encode(encoder.checked(example_of(row, location)))
    except DataError as error:
        return str(error)


def learnt_of(tokenizer, encoded):
    """The text of each stretch of learnt tokens."""
    texts, before = [], 0
    for token, learnt in zip(encoded.input_ids, encoded.completion_mask, strict=True):
        if learnt:
            texts = [*texts, []] if not before else texts
            texts[-1].append(token)
        before = learnt
    return [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in texts]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_learnt_is_the_text_of_the_chosen_turns(name):
    family, tokenizer, random = FAMILIES[name], tokenizer_of(name), Random(f"19 {name}")
    encoders = {learn: Encoder(tokenizer, learn) for learn in ("all", "last")}
    kept = refused = 0
    for number in range(DRAWS[name]):
        learn = random.choice(("all", "all", "last"))
        case = draw(random, family, learn)
        location = f"rows.jsonl, line {number + 1}"
        rows = encoded(encoders[learn], case.row, location)
        if isinstance(rows, str):
            assert any(part in rows for part in case.refused), (case.refused, rows)
            assert rows.startswith(f"{location}: ")
            assert "\n" not in rows
            refused += 1
            continue
        assert not case.refused, (case.row, case.refused)
        kept += 1
        learnt = [text for row in rows for text in learnt_of(tokenizer, row)]
        assert learnt == [text + family.end for text in case.learnt], case.row
        for row in rows:
            whole = tokenizer.decode(row.input_ids, clean_up_tokenization_spaces=False)
            assert whole == "".join(text for text, _ in row.pieces)
            # Each learnt turn follows the header of an answer, as in generation.
            for at, (_, is_learnt) in enumerate(row.pieces[: len(row.pieces)]):
                if is_learnt and row.pieces[at - 1][1] is False:
                    assert row.pieces[at - 1][0].endswith(family.header)
    assert kept > DRAWS[name] // 3
    assert refused > DRAWS[name] // 30


def test_the_draws_are_two_thousand():
    assert sum(DRAWS.values()) >= 2000
